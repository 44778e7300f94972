"""Carries out what the tiers of the KV cache decide: copies between device and host memory, and files in threads.

The engine's thread owns the books (`core/kv_tiers.py`) and copies. One thread reads files, another writes and removes
them, so that no step waits for a disk; `poll` takes over what they have done, between two steps.
"""

import logging
import time
from collections.abc import Sequence
from concurrent import futures
from typing import Final

from kvasir_runtime.attention.cpu_backend import CpuBackend
from kvasir_runtime.config import CacheConfig, DiskConfig
from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.contract.quantities import format_bytes
from kvasir_runtime.core.disk_tier import DiskTier
from kvasir_runtime.core.kv_cache_manager import KVCacheManager
from kvasir_runtime.core.kv_tiers import Job, KVTiers, Outcome, ReadFile, RemoveFile
from kvasir_runtime.engine.messages import TierStats
from kvasir_runtime.version import version
from kvasir_runtime.worker.block_files import BlockFiles, BlockFormat
from kvasir_runtime.worker.host_pool import HostPool
from kvasir_runtime.worker.loader import DTYPES, LoadedEngine, choose_backend

IDLE_BEFORE_SAVING_S: Final = 0.2
"""How long the engine has had no work before it writes what it has cached: the next request may be near."""

SLEEP_PATIENCE_S: Final = 10.0
"""How long falling asleep, and a reset, wait for files."""

logger = logging.getLogger("kvasir.engine")


class EngineTiers:
    """The tiers of one engine; its methods are called by the engine's thread."""

    def __init__(self, books: KVTiers, pool: HostPool, files: BlockFiles | None) -> None:
        self.books: Final = books
        self._pool = pool
        self._files = files
        self._reader = futures.ThreadPoolExecutor(1, "kv-reader")
        self._writer = futures.ThreadPoolExecutor(1, "kv-writer")
        self._running: list[tuple[Job, futures.Future[Outcome]]] = []
        self._told_state = books.disk_state
        self._idle_since: float | None = None
        self._unsaved = True

    @property
    def is_reading(self) -> bool:
        return self.books.is_reading_any

    @property
    def is_saving(self) -> bool:
        """Whether there is more to write while the engine is idle."""
        return (self._unsaved and self.books.disk_state == "on") or self.books.has_jobs

    @property
    def is_busy(self) -> bool:
        """Whether a thread reads or writes."""
        return bool(self._running)

    def poll(self) -> None:
        """Take over what the threads have done, and give them more. Between two steps."""
        if not self._running and not self.books.has_jobs:
            return
        done = [entry for entry in self._running if entry[1].done()]
        self._running = [entry for entry in self._running if not entry[1].done()] if done else self._running
        for job, future in done:
            self.books.finished(job, future.result())
        self._tell_state()
        for job in self.books.take_jobs():
            self._running.append((job, self._start(job)))

    def wait(self, seconds: float) -> None:
        """Wait up to `seconds` for any job to be done."""
        futures.wait([future for _, future in self._running], seconds, futures.FIRST_COMPLETED)

    def step_begins(self) -> None:
        """There is work: what it adds is saved when it is over."""
        self.poll()
        self._idle_since, self._unsaved = None, True

    def copy_now(self, saves: Sequence[tuple[int, int]], loads: Sequence[tuple[int, int]]) -> None:
        """Carry out orders without a step."""
        if saves or loads:
            self._pool.copy(saves, loads)
            self._pool.wait()
        self.books.copied()

    def save_when_idle(self, kv: KVCacheManager, now: float) -> None:
        """Send some of what is cached on its way to files. Call it often, while there is no work."""
        self._idle_since = now if self._idle_since is None else self._idle_since
        if self._unsaved and now - self._idle_since >= IDLE_BEFORE_SAVING_S:
            self._save_some(kv)

    def save_to_files(self, kv: KVCacheManager, timeout_s: float) -> bool:
        """Write all that is cached, for so long at most; True when nothing is left."""
        deadline = time.monotonic() + timeout_s
        self._unsaved = True
        while self.is_saving and time.monotonic() < deadline:
            self._save_some(kv)
            self.wait(0.01)
        return not self.is_saving

    def fall_asleep(self, kv: KVCacheManager, level: int) -> bool:
        """Save what the device holds to host memory; at level 2 that is given up too, and written to files before.

        False when the disk does not answer in time: then host memory cannot be given up.
        """
        if level >= 2:
            self.save_to_files(kv, SLEEP_PATIENCE_S)
            return self._finish_jobs() and self._forget_host()
        self._unsaved = False
        kv.save_all()
        self.copy_now(*self.books.take_orders())
        return True

    def reset(self, *, files: bool) -> dict[str, int] | None:
        """Forget all host blocks and, with `files`, remove ours; returns how many, or None when the disk is stuck."""
        if not self._finish_jobs():
            return None
        forgotten = {"host": len(self.books.host)}
        self._forget_host()
        if files:
            forgotten["disk"] = self.books.forget_disk()
            self.poll()
        return forgotten

    def stats(self, kv: KVCacheManager) -> TierStats:
        books, counts = self.books, self.books.counts
        return TierStats(
            host_total=books.host.num_slots,
            host_cached=len(books.host),
            disk_cached=len(books.disk) if books.disk is not None else 0,
            disk_bytes=books.disk.used if books.disk is not None else 0,
            disk_state=books.disk_state,
            host_hit_tokens=kv.tier_hit_tokens["host"],
            disk_hit_tokens=kv.tier_hit_tokens["disk"],
            saved=counts.saved,
            loaded=counts.loaded,
            written=counts.written,
            read=counts.read,
            dropped=counts.dropped,
            corrupt_files=counts.rejected["corrupt"],
            foreign_files=counts.rejected["foreign"],
        )

    def _save_some(self, kv: KVCacheManager) -> None:
        self._unsaved = kv.save_unwritten()
        self.copy_now(*self.books.take_orders())
        self.poll()

    def _forget_host(self) -> bool:
        self.books.forget_host()
        return len(self.books.host) == 0

    def _finish_jobs(self) -> bool:
        deadline = time.monotonic() + SLEEP_PATIENCE_S
        self.books.stop_writing()
        self._unsaved = False
        while self.books.has_jobs and time.monotonic() < deadline:
            self.poll()
            self.wait(0.01)
        return not self.books.has_jobs

    def _start(self, job: Job) -> "futures.Future[Outcome]":
        files = self._files
        assert files is not None, job
        if isinstance(job, RemoveFile):
            return self._writer.submit(files.remove, job.name)
        content = self._pool.slot(job.slot)
        if isinstance(job, ReadFile):
            return self._reader.submit(files.read, job.block_hash, job.adapter_digest, content)
        return self._writer.submit(files.write, job.block_hash, job.adapter_digest, content)

    def _tell_state(self) -> None:
        state = self.books.disk_state
        if state != self._told_state and self._files is not None:
            logger.warning("no more KV blocks are written to disk", extra={"state": state, "error": self._files.error})
        self._told_state = state


def open_tiers(config: CacheConfig, loaded: LoadedEngine) -> EngineTiers | None:
    """The tiers as configured, with what the folder holds already; None without any. Raises KvasirError."""
    pool = loaded.runner.host_pool
    if pool is None:
        return None
    if config.disk is None:
        return EngineTiers(KVTiers(pool.num_slots), pool, None)
    files = _open_files(config.disk, loaded, pool.slot_bytes)
    if config.disk.size < files.file_bytes:
        raise KvasirError(
            Cause.INVALID_ARGUMENTS,
            f"kv_offload_disk must have room for at least one KV block of {files.file_bytes} bytes, "
            f"got {config.disk.size}",
            f"give it at least {files.file_bytes}, better {format_bytes(100 * files.file_bytes)} or more",
        )
    disk = DiskTier(config.disk.size, files.file_bytes)
    books = KVTiers(pool.num_slots, disk, writes_salted=config.disk.salted)
    _restore(books, disk, files)
    return EngineTiers(books, pool, files)


def block_format(loaded: LoadedEngine, block_shape: tuple[int, ...]) -> BlockFormat:
    """What decides whether an engine can use a block: all that its keys and values are computed from, and how."""
    resolved, backend = loaded.resolved, choose_backend(loaded.resolved)
    paired = isinstance(backend, CpuBackend) and backend.library.kv_paired(
        DTYPES[resolved.kv_dtype], loaded.ready.block_size
    )
    return BlockFormat(
        version=version(),
        model_digest=loaded.ready.model_digest,
        quantization=resolved.quantization,
        dtype=f"{resolved.dtype}/{resolved.kv_dtype}",
        layout=f"{'x'.join(map(str, block_shape))}:{backend.name}{'-pairs' if paired else ''}",
    )


def _open_files(config: DiskConfig, loaded: LoadedEngine, block_bytes: int) -> BlockFiles:
    try:
        return BlockFiles(config.folder, block_format(loaded, loaded.runner.kv_cache.block_shape), block_bytes)
    except OSError as error:
        raise KvasirError(
            Cause.INVALID_ARGUMENTS,
            f"kv_offload_disk: {config.folder} cannot be used: {error}",
            "name a folder that the process may write to",
        ) from error


def _restore(books: KVTiers, disk: DiskTier, files: BlockFiles) -> None:
    found = files.scan()
    books.restored(disk.restore(found.own, found.foreign), corrupt=found.corrupt, foreign=found.num_foreign)
    logger.info(
        "KV blocks found on disk",
        extra={"blocks": len(disk), "foreign_files": found.num_foreign, "corrupt_files": found.corrupt},
    )
