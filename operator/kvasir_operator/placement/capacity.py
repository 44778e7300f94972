"""What a service will take from a device, before anything is started, and what to change where it does not fit.

The formula is the engine's own (`kvasir_runtime.contract.memory`), asked with the settings that the engine will get, so
that a plan and what is later measured differ only by what a config.json does not say.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from kvasir_operator.api.hardware import AcceleratorSpec
from kvasir_operator.api.kubernetes import parse_quantity
from kvasir_operator.api.status import CapacityStatus
from kvasir_operator.api.v1alpha1 import InferenceServiceSpec
from kvasir_operator.resources.engine import kv_offload_settings, lora_settings
from kvasir_operator.resources.quantities import container_resources
from kvasir_operator.settings import Settings
from kvasir_runtime.contract import engine_memory
from kvasir_runtime.contract.engine_args import EngineArgs
from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.contract.memory import (
    MemoryPlan,
    MemoryQuestion,
    ModelShape,
    plan_memory,
)
from kvasir_runtime.contract.quantities import format_bytes

OFFERED_QUANTIZATIONS: Final = ("int8",)
"""What this version's engine can quantize to by itself."""
LEAST_BATCHED_TOKENS: Final = 256
"""Fewer tokens a step are not proposed: prefill would hardly use the device."""

_MEBIBYTE: Final = 1024**2
_LARGEST_MEMORY: Final = 1 << 50
"""Bytes; no proposal needs more."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A plan that fits. `question` is what was asked."""

    question: MemoryQuestion
    plan: MemoryPlan

    def to_status(self) -> CapacityStatus:
        """The plan as `status.capacity`."""
        return CapacityStatus(
            weights=self.plan.weights_bytes,
            kv_bytes_per_token=self.plan.kv_bytes_per_token,
            kv_tokens=self.plan.kv_tokens,
            max_concurrent_sequences=min(
                self.question.max_num_seqs, self.plan.concurrent_sequences(self.question.max_model_len)
            ),
            source="planned",
        )


@dataclass(frozen=True, slots=True)
class Misfit:
    """Why it does not fit, and the nearest settings that would, each by itself. `problem` holds the numbers."""

    question: MemoryQuestion
    cause: Cause
    problem: str
    ways: tuple[str, ...]

    @property
    def message(self) -> str:
        """For conditions and refusals: the numbers, then the ways out, the least change of the model first."""
        return f"{self.problem}; {self.remedy}" if self.ways else self.problem

    @property
    def remedy(self) -> str:
        """The ways out; empty where no single change would do."""
        return f"what would fit: {' or '.join(self.ways)}" if self.ways else ""


def plan_capacity(spec: InferenceServiceSpec, shape: ModelShape, limit: int) -> Fit | Misfit:
    """Plan one replica on a device of `limit` bytes (on CPU: with that memory limit).

    Raises ValueError for a model whose type the formula does not know.
    """
    question = memory_question(spec, shape, limit)
    try:
        return Fit(question, plan_memory(question))
    except KvasirError as error:
        report = error.report
    return Misfit(question, report.cause, report.message, tuple(_ways(question, on_cpu=question.device == "cpu")))


def memory_question(spec: InferenceServiceSpec, shape: ModelShape, limit: int) -> MemoryQuestion:
    """What the engine will ask the formula. What the spec leaves open is the engine's default."""
    device = "cpu" if _on_cpu(spec.accelerator) else "cuda"
    return engine_memory.memory_question(engine_args(spec), shape, limit, device)


def engine_args(spec: InferenceServiceSpec) -> EngineArgs:
    """The engine's settings on which memory depends."""
    model, engine = spec.model, spec.engine
    given = {
        "model": "planned",
        "dtype": model.dtype,
        "quantization": model.quantization,
        "max_model_len": model.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "max_num_batched_tokens": engine.max_num_batched_tokens,
        "block_size": engine.block_size,
        "kv_cache_dtype": engine.kv_cache_dtype,
        "kv_cache_memory": engine.kv_cache_memory,
        "gpu_memory_utilization": engine.gpu_memory_utilization,
        "tensor_parallel_size": _tensor_parallel(spec),
        "enable_lora": bool(spec.adapters) or engine.lora is not None,
        **lora_settings(engine),
        **kv_offload_settings(engine),
    }
    return EngineArgs.model_validate({name: value for name, value in given.items() if value is not None})


def memory_limit(spec: InferenceServiceSpec, settings: Settings) -> int | None:
    """Bytes that a replica on CPU may use; None where neither the service nor the settings limit it."""
    limits = container_resources(spec.resources, spec.accelerator, settings, spec.engine).limits
    amount = parse_quantity(limits["memory"]) if "memory" in limits else None
    return math.floor(amount) if amount is not None else None


def _on_cpu(accelerator: AcceleratorSpec | None) -> bool:
    return accelerator is None or accelerator.resource() is None


def _tensor_parallel(spec: InferenceServiceSpec) -> int:
    accelerator = spec.accelerator
    if accelerator is None or accelerator.resource() is None:
        return 1
    return spec.parallelism.tensor or accelerator.count // spec.parallelism.pipeline


def _ways(question: MemoryQuestion, *, on_cpu: bool) -> Iterator[str]:
    """Single changes after which the formula agrees; each was asked, none is guessed."""
    yield from _smaller_settings(question)
    for quantization in OFFERED_QUANTIZATIONS:
        changed = replace(question, quantization=quantization)
        if question.quantization == "none" and fits(changed):
            yield f"spec.model.quantization {quantization}"
    memory = least_memory(question)
    if memory is not None:
        where = "spec.resources.limits.memory" if on_cpu else "a device with memory of"
        yield f"{where} at least {_mebibytes(memory)}"


def _smaller_settings(question: MemoryQuestion) -> Iterator[str]:
    q = question
    bounds: tuple[tuple[str, int, int, Callable[[int], MemoryQuestion]], ...] = (
        ("spec.model.maxModelLen", q.block_size, q.max_model_len, lambda n: replace(q, max_model_len=n)),
        (
            "spec.engine.maxNumBatchedTokens",
            LEAST_BATCHED_TOKENS,
            q.max_num_batched_tokens,
            lambda n: replace(q, max_num_batched_tokens=n),
        ),
        ("spec.engine.maxNumSeqs", 1, q.max_num_seqs, lambda n: replace(q, max_num_seqs=n)),
    )
    for field, least, present, change in bounds:
        found = largest(least, present - 1, lambda n, change=change: fits(change(n)))  # type: ignore[misc]
        if found is not None:
            yield f"{field} at most {found}"
    if q.kv_cache_memory is not None and fits(replace(q, kv_cache_memory=None)):
        yield "spec.engine.kvCacheMemory unset"


def least_memory(question: MemoryQuestion) -> int | None:
    """Least bytes of the device, or of the memory limit, with which the service fits, in whole MiB."""
    found = largest(
        -(_LARGEST_MEMORY // _MEBIBYTE),
        -math.ceil(question.limit / _MEBIBYTE),
        lambda n: fits(replace(question, limit=-n * _MEBIBYTE)),
    )
    return -found * _MEBIBYTE if found is not None else None


def fits(question: MemoryQuestion) -> bool:
    """Whether the formula finds room for the weights and one sequence of full length."""
    try:
        plan_memory(question)
    except KvasirError:
        return False
    return True


def largest(low: int, high: int, holds: Callable[[int], bool]) -> int | None:
    """The largest number from `low` to `high` that `holds`, where it holds up to some number; None: for none."""
    if low > high or not holds(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def _mebibytes(count: int) -> str:
    """Exact, since the number is to be copied, and rounded for people."""
    return f"{count // _MEBIBYTE}Mi ({format_bytes(count)})"
