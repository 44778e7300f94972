"""The adapters that are to be served, and how far each has come. One event loop's alone.

A name leads to one version, a content digest. A new version is fetched, checked and read beside the old one; then the
name is pointed at it in one step, and the old version goes with its last request. A request takes its version in the
moment in which it is handed to the engine, through the same pipe as the word that an old version may go: so none can
ever name a version that is gone.

| what happens to a wanted adapter | state   | new requests get                    |
|----------------------------------|---------|-------------------------------------|
| it is wanted for the first time  | loading | 503 with Retry-After                |
| it is there                      | loaded  | its version                         |
| another version is wanted        | loading | the version before, until it flips  |
| that one cannot be had           | failed  | the version before, or 404 with why |
| it is wanted no more             | -       | 404                                 |
"""

import asyncio
import logging
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Final

from kvasir_runtime.contract.admin_api import AdapterReport, AdapterState, WantedAdapter
from kvasir_runtime.contract.failures import Cause, FailureReport, KvasirError
from kvasir_runtime.engine.async_engine import AsyncEngine, EngineGoneError
from kvasir_runtime.engine.messages import AdapterLoaded, AdapterStates, AdapterUse, LoadAdapter
from kvasir_runtime.fetch.uri import without_credentials
from kvasir_runtime.lora.checkpoint import AdapterFiles, AdapterLimits, check_adapter
from kvasir_runtime.lora.config import invalid
from kvasir_runtime.lora.sources import AdapterSources
from kvasir_runtime.server.errors import ApiError, unavailable

LOADS_AT_ONCE: Final = 2
"""Adapters that are fetched and checked at the same time."""

LOADING_RETRY_AFTER_S: Final = 1.0

DEMAND_HALF_LIFE_S: Final = 600.0
"""As that of prefixes."""

logger = logging.getLogger("kvasir.adapters")


@dataclass(eq=False)
class Adapter:
    """One wanted adapter. `serving` is the digest that new requests get; "" while there is none."""

    wanted: WantedAdapter
    created: int = field(default_factory=lambda: int(time.time()))
    serving: str = ""
    failure: FailureReport | None = None
    note: str = ""
    loading: "asyncio.Task[None] | None" = None
    stop: threading.Event = field(default_factory=threading.Event)
    failures: int = 0
    failed_at: float = 0.0
    demand: float = 0.0
    asked_at: float = 0.0

    def fail(self, failure: FailureReport, now: float) -> None:
        """Note why an attempt failed."""
        self.failure, self.failures, self.failed_at = failure, self.failures + 1, now

    def ask(self, now: float) -> None:
        """A request came for it."""
        self.demand, self.asked_at = self.demand_at(now) + 1, now

    def demand_at(self, now: float) -> float:
        """Requests so far, each worth half as much after `DEMAND_HALF_LIFE_S`."""
        return self.demand * 0.5 ** ((now - self.asked_at) / DEMAND_HALF_LIFE_S) if self.demand else 0.0

    @property
    def state(self) -> str:
        if self.loading is not None:
            return "loading"
        return "loaded" if self.failure is None else "failed"


@dataclass
class _Version:
    """A content that the engine was told of: under which name it came, where it lies, who holds it."""

    name: str
    folder: Path
    holders: int = 0


class AdapterRegistry:
    """`limits` is None when adapters are off."""

    def __init__(
        self,
        engine: AsyncEngine,
        sources: AdapterSources,
        limits: AdapterLimits | None,
        *,
        reserved: Iterable[str] = (),
        max_loras: int = 0,
    ) -> None:
        self.adapters: dict[str, Adapter] = {}
        self.limits = limits
        self.tag = ""
        self._engine = engine
        self._sources = sources
        self._reserved = frozenset(reserved)
        self._max_loras = max_loras
        self._versions: dict[str, _Version] = {}
        self._uses: dict[str, AdapterUse] = {}
        self._turns = asyncio.Semaphore(LOADS_AT_ONCE)
        engine.on_adapters(self._hear)

    def apply(self, wanted: list[WantedAdapter], tag: str = "") -> None:
        """Take over the whole wanted set; what is new loads from here on. Raises ApiError for a set that cannot be."""
        self._check(wanted)
        self.tag = tag
        names = {each.name for each in wanted}
        for name in [name for name in self.adapters if name not in names]:
            self.remove(name)
        for each in wanted:
            self.put(each)

    def put(self, wanted: WantedAdapter) -> Adapter:
        """Want one adapter beside the others. What is there already stays; a failed one is tried again."""
        adapter = self.adapters.get(wanted.name)
        if adapter is None:
            adapter = self.adapters[wanted.name] = Adapter(wanted)
        before, adapter.wanted = adapter.wanted, wanted
        if adapter.loading is not None and _same_content(before, wanted):
            return adapter
        if not _is_served(adapter, before):
            self.reload(adapter)
            return adapter
        _give_up(adapter)
        adapter.failure, adapter.failures = None, 0
        if before.pinned != wanted.pinned:
            self._engine.pin_adapter(self._load_message(adapter.serving))
        return adapter

    def reload(self, adapter: Adapter) -> None:
        """Begin to load what the adapter's source holds now; what was being loaded is given up."""
        _give_up(adapter)
        adapter.failure, adapter.stop = None, threading.Event()
        adapter.loading = asyncio.create_task(self._load(adapter, adapter.wanted, adapter.stop))

    def remove(self, name: str) -> None:
        """Want it no more: gone for new requests at once, from memory with its last one."""
        adapter = self.adapters.pop(name)
        _give_up(adapter)
        self._let_go(adapter.serving)
        logger.info("adapter removed", extra={"adapter": name, "digest": adapter.serving})

    def resolve(self, name: str) -> str:
        """The digest for a request that is handed to the engine now; raises ApiError (404, or 503 while it loads)."""
        adapter = self.adapters.get(name)
        if adapter is not None and adapter.serving:
            return adapter.serving
        if adapter is not None and adapter.loading is not None:
            raise unavailable(f"adapter {name!r} is loading", "loading", LOADING_RETRY_AFTER_S)
        why = f": {adapter.failure.message}" if adapter is not None and adapter.failure is not None else ""
        raise ApiError(
            HTTPStatus.NOT_FOUND, f"adapter {name!r} is not loaded{why}", param="model", code="model_not_found"
        )

    def asked_for(self, name: str) -> str:
        """`resolve` for a request of a user's, which counts as demand, whether it can be answered or not."""
        adapter = self.adapters.get(name)
        if adapter is not None:
            adapter.ask(time.monotonic())
        return self.resolve(name)

    def reports(self) -> list[AdapterReport]:
        now = time.monotonic()
        return [_report(adapter, now) for adapter in self.adapters.values()]

    def states(self) -> Iterator[AdapterState]:
        """Every version that is in the engine, and a row for what is not there yet."""
        refs, demand = self._engine.adapter_refs(), self._demand()
        for digest, version in self._versions.items():
            use = self._uses.get(digest)
            yield AdapterState(
                name=version.name,
                digest=digest,
                residency="loading" if use is None else use.residency,
                refs=refs[digest],
                demand=demand.get(digest, 0.0),
                bytes=0 if use is None else use.nbytes,
            )
        for name, adapter in self.adapters.items():
            if not adapter.serving and adapter.failure is not None:
                message = adapter.failure.message
                yield AdapterState(name=name, digest="", residency="failed", message=message)
            elif not adapter.serving:
                yield AdapterState(name=name, digest="", residency="loading")

    def _demand(self) -> dict[str, float]:
        """By version that is served."""
        now, demand = time.monotonic(), dict[str, float]()
        for adapter in self.adapters.values():
            demand[adapter.serving] = round(demand.get(adapter.serving, 0.0) + adapter.demand_at(now), 3)
        return demand

    async def close(self) -> None:
        """Give up what is being loaded."""
        tasks = [adapter.loading for adapter in self.adapters.values() if adapter.loading is not None]
        for adapter in self.adapters.values():
            _give_up(adapter)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _load(self, adapter: Adapter, wanted: WantedAdapter, stop: threading.Event) -> None:
        held = ""
        try:
            files = await self._prepare(wanted, stop)
            held = self._hold(wanted.name, files)
            answer = await self._engine.load_adapter(self._load_message(held, pinned=adapter.wanted.pinned))
            if answer.report:
                raise _failure(answer.report)
        except (KvasirError, EngineGoneError) as error:
            adapter.fail(error.report, time.monotonic())
            logger.warning("adapter failed: %s", error, extra={"adapter": wanted.name, "cause": error.report.cause})
        else:
            held, adapter.serving = adapter.serving, held  # the flip: what was served before is let go below
            adapter.note, adapter.failures = files.note, 0
            fields = {"adapter": wanted.name, "digest": adapter.serving, "bytes": answer.nbytes}
            logger.info("adapter loaded%s", f": {files.note}" if files.note else "", extra=fields)
        finally:
            self._let_go(held)
            if adapter.stop is stop:
                adapter.loading = None

    async def _prepare(self, wanted: WantedAdapter, stop: threading.Event) -> AdapterFiles:
        """Fetch and check, in a thread."""
        limits = self.limits
        if limits is None:
            raise invalid("adapters are off", "start with --enable-lora")
        async with self._turns:
            job = asyncio.ensure_future(asyncio.to_thread(prepare, self._sources, limits, wanted, stop))
            try:
                return await asyncio.shield(job)
            except asyncio.CancelledError:
                job.add_done_callback(self._discard_result)
                raise

    def _discard_result(self, job: "asyncio.Task[AdapterFiles]") -> None:
        """Nobody waits for it any more."""
        if not job.cancelled() and job.exception() is None:
            self._discard(job.result().folder)

    def _hold(self, name: str, files: AdapterFiles) -> str:
        version = self._versions.setdefault(files.digest, _Version(name, files.folder))
        version.holders += 1
        self._discard(files.folder)  # if the same content lies elsewhere already
        return files.digest

    def _let_go(self, digest: str) -> None:
        version = self._versions.get(digest)
        if version is None:
            return
        version.holders -= 1
        if version.holders == 0:
            self._engine.unload_adapter(digest)
            if digest not in self._uses:  # the engine never took it: it will not say that it has gone
                self._forget(digest)

    def _load_message(self, digest: str, *, pinned: bool = False) -> LoadAdapter:
        """Pinned when any of the names that lead to this version is."""
        pinned = pinned or any(one.wanted.pinned for one in self.adapters.values() if one.serving == digest)
        return LoadAdapter(digest, str(self._versions[digest].folder), pinned)

    def _forget(self, digest: str) -> None:
        self._discard(self._versions.pop(digest).folder)

    def _hear(self, message: AdapterLoaded | AdapterStates) -> None:
        if isinstance(message, AdapterStates):
            self._uses = {use.digest: use for use in message.adapters}
            for digest, version in list(self._versions.items()):
                if version.holders == 0 and digest not in self._uses:
                    self._forget(digest)
        elif message.report:
            self._lose(message)

    def _lose(self, message: AdapterLoaded) -> None:
        """The engine cannot read a version again that it had before."""
        report = FailureReport.from_json(message.report)
        for adapter in self.adapters.values():
            if adapter.serving == message.digest:
                self._let_go(adapter.serving)
                adapter.serving = ""
                if report is not None:
                    adapter.fail(report, time.monotonic())

    def _discard(self, folder: Path) -> None:
        if not any(version.folder == folder for version in self._versions.values()):
            asyncio.get_running_loop().run_in_executor(None, self._sources.discard, folder)

    def _check(self, wanted: list[WantedAdapter]) -> None:
        if wanted and self.limits is None:
            raise ApiError(HTTPStatus.CONFLICT, "adapters are off: start with --enable-lora", code="adapters_off")
        names = [each.name for each in wanted]
        for number, name in enumerate(names):
            if name in self._reserved:
                raise _refused(number, f"must differ from the names of the model itself, got {name!r}")
            if name in names[:number]:
                raise _refused(number, f"must differ from adapters[{names.index(name)}].name, got {name!r}")
        pinned = sum(each.pinned for each in wanted)
        most = self._max_loras if pinned == len(wanted) else self._max_loras - 1
        if pinned > most:
            msg = f"at most {most} of these {len(wanted)} adapters may be pinned with --max-loras {self._max_loras}"
            raise ApiError(HTTPStatus.BAD_REQUEST, f"{msg}, got {pinned}", param="adapters", code="invalid_value")


def prepare(
    sources: AdapterSources, limits: AdapterLimits, wanted: WantedAdapter, stop: threading.Event
) -> AdapterFiles:
    """Obtain an adapter's files and check them; blocks. Raises KvasirError, and then leaves nothing behind."""
    folder: Path | None = None
    try:
        folder = sources.obtain(wanted.uri, stop, wanted.secret)
        files = check_adapter(folder, limits)
        if wanted.digest not in (None, files.digest):
            raise invalid(f"the source has digest {files.digest}, expected {wanted.digest}", "correct uri or digest")
    except OSError as error:
        raise invalid(f"cannot read {without_credentials(wanted.uri)}: {error.strerror or error}") from error
    except KvasirError:
        if folder is not None:
            sources.discard(folder)
        raise
    return files


def _is_served(adapter: Adapter, before: WantedAdapter) -> bool:
    """Whether the version that is served is the one that is wanted now. `before`: what was wanted until now."""
    if not adapter.serving or adapter.wanted.version != before.version:
        return False
    if adapter.wanted.digest is not None:
        return adapter.wanted.digest == adapter.serving
    return adapter.loading is None and adapter.failure is None and adapter.wanted.uri == before.uri


def _give_up(adapter: Adapter) -> None:
    """End what is being loaded, if anything is."""
    if adapter.loading is not None:
        adapter.stop.set()
        adapter.loading.cancel()
        adapter.loading = None


def _same_content(before: WantedAdapter, after: WantedAdapter) -> bool:
    return (before.uri, before.digest, before.version, before.secret) == (
        after.uri,
        after.digest,
        after.version,
        after.secret,
    )


def _report(adapter: Adapter, now: float) -> AdapterReport:
    failure = adapter.failure
    report = AdapterReport(
        name=adapter.wanted.name,
        uri=without_credentials(adapter.wanted.uri),
        state=adapter.state,
        digest=adapter.serving,
        pinned=adapter.wanted.pinned,
        message=adapter.note,
        failures=adapter.failures,
        failed_for_s=round(now - adapter.failed_at, 1) if adapter.failures else 0.0,
    )
    if failure is None:
        return report
    return report.model_copy(update={"cause": failure.cause, "message": failure.message, "remedy": failure.remedy})


def _failure(report: str) -> KvasirError:
    parsed = FailureReport.from_json(report) or FailureReport(Cause.ADAPTER_INVALID, report)
    return KvasirError(parsed.cause, parsed.message, parsed.remedy)


def _refused(number: int, problem: str) -> ApiError:
    path = f"adapters[{number}].name"
    return ApiError(HTTPStatus.BAD_REQUEST, f"{path} {problem}", param=path, code="invalid_value")
