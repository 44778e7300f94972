"""The engine's adapters: reads them beside the running engine and keeps the books of slots and memory in step.

A thread reads one adapter at a time; what it read is taken over by `poll`, between two steps. So the step's path does
no more than to point a slot at memory that is there.
"""

from concurrent import futures
from pathlib import Path
from typing import Final

from kvasir_runtime.config import AdapterConfig
from kvasir_runtime.contract.failures import Cause, FailureReport, KvasirError
from kvasir_runtime.contract.memory import ModelShape, resident_adapters
from kvasir_runtime.core.adapter_slots import AdapterSlots
from kvasir_runtime.engine.messages import AdapterLoaded, AdapterStates, AdapterUse, LoadAdapter
from kvasir_runtime.lora.checkpoint import AdapterLimits
from kvasir_runtime.lora.image import AdapterImage, read_image
from kvasir_runtime.lora.runtime import LoraRuntime
from kvasir_runtime.lora.targets import projections

AdapterMessage = AdapterLoaded | AdapterStates


class EngineAdapters:
    """Owned by the engine's thread; only reading happens in another."""

    def __init__(self, config: AdapterConfig, runtime: LoraRuntime, shape: ModelShape, dtype: str) -> None:
        room = resident_adapters(enabled=True, max_loras=config.max_loras, max_cpu_loras=config.max_cpu_loras)
        self.slots: Final = AdapterSlots(config.max_loras, room)
        self._runtime = runtime
        self._limits = AdapterLimits(config.max_rank, projections(shape))
        self._dtype = dtype
        self._folders: dict[str, Path] = {}
        self._unanswered: set[str] = set()
        self._reading: tuple[str, futures.Future[AdapterImage]] | None = None
        self._threads = futures.ThreadPoolExecutor(1, "adapter-reader")
        self._told = -1

    @property
    def is_reading(self) -> bool:
        return self._reading is not None or self.slots.has_wanted

    def load(self, message: LoadAdapter) -> AdapterLoaded | None:
        """Register an adapter; answered at once when it is known, else by `poll` once it was read."""
        self._folders[message.digest] = Path(message.folder)
        if self.slots.register(message.digest, pinned=message.pinned):
            self._unanswered.add(message.digest)
            return None
        if message.digest in self._unanswered:
            return None
        return AdapterLoaded(message.digest, self._runtime.bytes_of(message.digest))

    def unload(self, digest: str) -> None:
        """Take no new requests for it; its memory is freed once the last one is finished."""
        self.slots.retire(digest)

    def poll(self) -> list[AdapterMessage]:
        """Take over what was read, free what went, begin to read what is next; returns what the front end must know."""
        messages = self._take_over()
        self._free()
        if self._reading is None and (digest := self.slots.next_load()) is not None:
            self._free()
            job = self._threads.submit(read_image, self._folders[digest], digest, self._limits, self._dtype)
            self._reading = (digest, job)
        if self.slots.version != self._told:
            self._told = self.slots.version
            messages.append(self._states())
        return messages

    def wait(self, seconds: float) -> None:
        """Wait up to `seconds` for what is being read."""
        if self._reading is not None:
            futures.wait([self._reading[1]], seconds)

    def _take_over(self) -> list[AdapterMessage]:
        if self._reading is None or not self._reading[1].done():
            return []
        (digest, job), self._reading = self._reading, None
        error = job.exception()
        if error is None:
            image = job.result()
            if self.slots.loaded(digest):
                self._runtime.add(image)
            return self._answer(AdapterLoaded(digest, image.nbytes))
        report = _report(error)
        self.slots.failed(digest)
        return self._answer(AdapterLoaded(digest, 0, report.to_json()), failed=True)

    def _answer(self, answer: AdapterLoaded, *, failed: bool = False) -> list[AdapterMessage]:
        """Only who asked to load is answered, but a failure later on is told too."""
        asked = answer.digest in self._unanswered
        self._unanswered.discard(answer.digest)
        return [answer] if asked or failed else []

    def _free(self) -> None:
        for digest in self.slots.take_dropped():
            self._runtime.drop(digest)

    def _states(self) -> AdapterStates:
        return AdapterStates(
            [AdapterUse(digest, state, self._runtime.bytes_of(digest)) for digest, state in self.slots.states()]
        )


def _report(error: BaseException) -> FailureReport:
    if isinstance(error, KvasirError):
        return error.report
    return FailureReport(Cause.ADAPTER_INVALID, f"the adapter cannot be read: {type(error).__name__}: {error}")
