"""From a configuration to a model in memory: settings resolved, memory planned, weights loaded, kernels warmed up."""

import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch

from kvasir_runtime.attention.backend import AttentionBackend
from kvasir_runtime.attention.cpu_backend import CpuBackend, supports
from kvasir_runtime.attention.reference import ReferenceBackend
from kvasir_runtime.config import AdapterConfig, EngineConfig
from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.contract.memory import (
    MemoryPlan,
    MemoryQuestion,
    ModelShape,
    plan_memory,
    resident_adapters,
    resolve_dtype,
)
from kvasir_runtime.core.scheduler_output import SchedulerOutput, Seating
from kvasir_runtime.engine.messages import EngineReady, StartupProgress
from kvasir_runtime.kernels.cpu.layers import FusedLayers
from kvasir_runtime.kernels.cpu.library import load_library
from kvasir_runtime.kernels.cpu.ops import CpuOps
from kvasir_runtime.layers.linear import LoadContext
from kvasir_runtime.layers.ops import Ops, TorchOps
from kvasir_runtime.lora.image import STORED_TYPES
from kvasir_runtime.lora.kernels import CpuLora, LoraKernel, TorchLora
from kvasir_runtime.lora.runtime import LoraRuntime
from kvasir_runtime.lora.targets import projections
from kvasir_runtime.models.checkpoint import Checkpoint
from kvasir_runtime.models.config import DecoderConfig, HFConfig, eos_token_ids
from kvasir_runtime.models.decoder import DecoderModel
from kvasir_runtime.models.registry import Family, find_family
from kvasir_runtime.quantization.base import LinearMethod
from kvasir_runtime.quantization.bf16 import Bf16Method
from kvasir_runtime.quantization.int8 import Int8Method
from kvasir_runtime.quantization.onednn import OneDnnMethod
from kvasir_runtime.quantization.plain import PlainMethod
from kvasir_runtime.sampling_params import SamplingParams
from kvasir_runtime.worker.device import Device, find_device
from kvasir_runtime.worker.host import cpu_count, keep_freed_memory
from kvasir_runtime.worker.host_pool import HostPool
from kvasir_runtime.worker.kv_cache import KVCache
from kvasir_runtime.worker.model_runner import ModelRunner
from kvasir_runtime.worker.sampler import Draw

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Progress = Callable[[StartupProgress], None]


@dataclass(frozen=True)
class Resolved:
    """Settings with nothing automatic left."""

    family: Family
    decoder: DecoderConfig
    shape: ModelShape
    eos_token_ids: frozenset[int]
    dtype: str
    kv_dtype: str
    quantization: str
    max_model_len: int
    device: Device


@dataclass(frozen=True)
class LoadedEngine:
    runner: ModelRunner
    ready: EngineReady
    resolved: Resolved


def load_engine(config: EngineConfig, on_progress: Progress) -> LoadedEngine:
    """Raises KvasirError with the cause when the model cannot be served as asked."""
    phases = _Phases(on_progress)
    with phases.phase("configuration"):
        resolved = resolve(config)
        torch.set_num_threads(config.num_threads or cpu_count())
        plan = plan_memory(memory_question(config, resolved))
    with phases.phase("weights"):
        lora = make_lora(config, resolved)
        model, digest = _load_model(config, resolved, lora, phases.report)
    with phases.phase("kv_cache"):
        runner = _make_runner(config, resolved, plan, model, lora)
    keep_freed_memory()  # from here on: what loading frees goes back to the system
    with phases.phase("kernels"):
        _warm_up(runner, config)
    ready = EngineReady(
        max_model_len=resolved.max_model_len,
        vocab_size=resolved.decoder.vocab_size,
        block_size=config.cache.block_size,
        num_blocks=plan.num_blocks,
        weights_bytes=model.nbytes,
        kv_bytes_per_token=plan.kv_bytes_per_token,
        model_digest=digest,
        dtype=resolved.dtype,
        startup_seconds=phases.seconds,
        host_blocks=plan.num_host_blocks,
    )
    return LoadedEngine(runner, ready, resolved)


def resolve(config: EngineConfig) -> Resolved:
    """Read the model's folder and settle what was left to us."""
    hf = HFConfig.load(config.model)
    family = find_family(hf)
    decoder = family.config(hf)
    _refuse_unsupported(config, hf)
    try:
        shape = ModelShape.from_hf_config(hf.values)
    except ValueError as error:
        raise KvasirError(Cause.MODEL_INVALID, f"{config.model}: {error}") from error
    device = find_device(config.device)
    dtype = resolve_dtype(config.dtype, shape.dtype, device.memory)
    if dtype not in DTYPES:
        raise KvasirError(
            Cause.MODEL_UNSUPPORTED, f"dtype {dtype!r} is not supported", f"supported: {', '.join(DTYPES)}"
        )
    if config.cache.dtype not in ("auto", dtype):
        raise KvasirError(
            Cause.INVALID_ARGUMENTS,
            f"kv_cache_dtype must be auto or the model's own dtype {dtype} in this version, got {config.cache.dtype}",
            "set kv_cache_dtype to auto",
        )
    return Resolved(
        family=family,
        decoder=decoder,
        shape=shape,
        eos_token_ids=eos_token_ids(config.model, hf),
        dtype=dtype,
        kv_dtype=dtype,
        quantization="none" if config.quantization == "auto" else config.quantization,
        max_model_len=_max_model_len(config, decoder),
        device=device,
    )


def memory_question(config: EngineConfig, resolved: Resolved) -> MemoryQuestion:
    """What the memory plan is asked for on this machine."""
    host, adapters = resolved.device.memory_limit(), config.adapters or AdapterConfig()
    return MemoryQuestion(
        shape=resolved.shape,
        dtype=resolved.dtype,
        quantization=resolved.quantization,
        kv_dtype=resolved.kv_dtype,
        block_size=config.cache.block_size,
        max_model_len=resolved.max_model_len,
        max_num_seqs=config.scheduler.max_num_seqs,
        max_num_batched_tokens=config.scheduler.max_num_batched_tokens,
        limit=host.limit,
        limited=host.limited,
        utilization=config.cache.utilization,
        kv_cache_memory=config.cache.memory,
        tensor_parallel=config.tensor_parallel_size,
        device=resolved.device.memory,
        num_adapters=resident_adapters(
            enabled=config.adapters is not None,
            max_loras=adapters.max_loras,
            max_cpu_loras=adapters.max_cpu_loras,
            device=resolved.device.memory,
        ),
        max_lora_rank=adapters.max_rank,
        kv_offload_host=config.cache.host_memory,
    )


def _refuse_unsupported(config: EngineConfig, hf: HFConfig) -> None:
    choices: tuple[tuple[str, Any, tuple[Any, ...]], ...] = (
        ("tensor_parallel_size", config.tensor_parallel_size, (1,)),
        ("quantization", config.quantization, ("auto", "none", "int8")),
    )
    for name, value, supported in choices:
        if value not in supported:
            raise KvasirError(
                Cause.INVALID_ARGUMENTS,
                f"{name} must be one of {', '.join(map(str, supported))} in this version, got {value}",
                f"set {name} to {supported[0]}",
            )
    if hf.values.get("quantization_config"):
        raise hf.refuse("quantization_config", "checkpoints in float32, bfloat16 or float16")


def _max_model_len(config: EngineConfig, decoder: DecoderConfig) -> int:
    if config.max_model_len is None:
        return decoder.max_position
    if config.max_model_len > decoder.max_position:
        raise KvasirError(
            Cause.INVALID_ARGUMENTS,
            f"max_model_len must be at most {decoder.max_position}, the model's own limit, got {config.max_model_len}",
            f"set max_model_len to {decoder.max_position} or less",
        )
    return config.max_model_len


def load_model(config: EngineConfig, lora: LoraRuntime | None) -> tuple[DecoderModel, str]:
    """The model once more, with its weights' digest: for an engine that gave its own back. Its adapters stay."""
    return _load_model(config, resolve(config), lora, lambda _done, _message: None)


def make_lora(config: EngineConfig, resolved: Resolved) -> LoraRuntime | None:
    """What the model's layers ask for adapters; None when they are off."""
    if config.adapters is None:
        return None
    if resolved.dtype not in STORED_TYPES:
        raise KvasirError(
            Cause.INVALID_ARGUMENTS,
            f"adapters need dtype {' or '.join(STORED_TYPES)}, got {resolved.dtype}",
            "set dtype to bfloat16",
        )
    kernel = choose_lora(resolved.device)
    return LoraRuntime(config.adapters.max_loras, kernel, frozenset(projections(resolved.shape)))


def choose_lora(device: Device) -> LoraKernel:
    """What adds adapters on this device."""
    if device.triton:
        from kvasir_runtime.lora.gpu import TritonLora  # noqa: PLC0415 - imports Triton

        return TritonLora(device.torch)
    library = load_library()
    return TorchLora() if library is None else CpuLora(library)


def _load_model(
    config: EngineConfig, resolved: Resolved, lora: LoraRuntime | None, report: Callable[[float, str], None]
) -> tuple[DecoderModel, str]:
    checkpoint = Checkpoint(config.model, lambda done: report(done, ""))
    load = LoadContext(
        checkpoint,
        DTYPES[resolved.dtype],
        choose_method(resolved),
        choose_ops(resolved.device),
        lora,
        device=resolved.device.torch,
    )
    backend = choose_backend(resolved)
    model = resolved.family.model(resolved.decoder, load, backend, resolved.max_model_len)
    if not resolved.device.triton:
        model.fused = FusedLayers.of(model, lora)
    digest = checkpoint.digest()
    checkpoint.close()
    return model, digest


def choose_method(resolved: Resolved) -> LinearMethod:
    """The weight format's kernel for this device."""
    if resolved.device.triton:
        return _gpu_method(resolved)
    if resolved.quantization == "int8":
        library = load_library()
        if library is None:
            raise KvasirError(
                Cause.INVALID_ARGUMENTS,
                "quantization int8 needs the CPU kernels, which are not compiled here",
                "install g++, or run python -m kvasir_runtime.kernels.cpu.build where there is one",
            )
        return Int8Method(library)
    if resolved.dtype == "bfloat16":
        library = load_library()
        if library is not None and Bf16Method.available(library):
            return Bf16Method(library)
        if OneDnnMethod.available():
            return OneDnnMethod()
    return PlainMethod()


def _gpu_method(resolved: Resolved) -> LinearMethod:
    if resolved.quantization != "none":
        raise KvasirError(
            Cause.INVALID_ARGUMENTS,
            f"quantization must be none on a GPU in this version, got {resolved.quantization}",
            "set quantization to none, or device to cpu",
        )
    return PlainMethod()


def choose_backend(resolved: Resolved) -> AttentionBackend:
    """The attention kernels for this device."""
    if resolved.device.triton:
        from kvasir_runtime.attention.triton_backend import TritonBackend  # noqa: PLC0415 - imports Triton

        return TritonBackend()
    library = load_library()
    if library is not None and supports(library, resolved.decoder, DTYPES[resolved.dtype]):
        return CpuBackend(library)
    return ReferenceBackend()


def choose_ops(device: Device) -> Ops:
    """The small operations for this device."""
    if device.triton:
        from kvasir_runtime.kernels.gpu.ops import TritonOps  # noqa: PLC0415 - imports Triton

        return TritonOps()
    library = load_library()
    return TorchOps() if library is None else CpuOps(library)


def choose_draw(device: Device) -> Draw | None:
    """What draws tokens where the logits are; None for the host's way."""
    if not device.triton:
        return None
    from kvasir_runtime.kernels.gpu.sampling import sample  # noqa: PLC0415 - imports Triton

    return lambda logits_RV, settings_5R: sample(logits_RV, torch.from_numpy(settings_5R).to(device.torch))


def _make_runner(
    config: EngineConfig, resolved: Resolved, plan: MemoryPlan, model: DecoderModel, lora: LoraRuntime | None
) -> ModelRunner:
    decoder = resolved.decoder
    kv_cache = KVCache(
        num_layers=decoder.num_layers,
        num_blocks=plan.num_blocks,
        num_kv_heads=decoder.num_kv_heads,
        block_size=config.cache.block_size,
        head_dim=decoder.head_dim,
        dtype=DTYPES[resolved.kv_dtype],
        device=resolved.device.torch,
    )
    return ModelRunner(
        model,
        kv_cache,
        num_seats=min(config.scheduler.max_num_seqs, config.scheduler.max_num_batched_tokens),
        max_model_len=resolved.max_model_len,
        block_size=config.cache.block_size,
        lora=lora,
        draw=choose_draw(resolved.device),
        host_pool=HostPool(kv_cache, plan.num_host_blocks) if plan.num_host_blocks else None,
    )


def _warm_up(runner: ModelRunner, config: EngineConfig) -> None:
    """Run a prompt and a decode on the null block, so that kernels are built before the first request."""
    length = min(config.cache.block_size, runner.batch.token_ids.shape[1] - 2)
    seating = Seating(0, array("i", [0] * length), length, 0, SamplingParams(temperature=0.0), 0, frozenset())
    runner.execute(SchedulerOutput([0], [length], [0], [True], int(length == 1), [seating], []))
    runner.execute(SchedulerOutput([0], [1], [length - 1], [True], 1, [], []))


class _Phases:
    """Times the phases of a start and reports their progress."""

    def __init__(self, on_progress: Progress) -> None:
        self.seconds: dict[str, float] = {}
        self._on_progress = on_progress
        self._name = ""
        self._started = 0.0

    def phase(self, name: str) -> "_Phases":
        self._name = name
        return self

    def report(self, progress: float, message: str) -> None:
        self._on_progress(StartupProgress(self._name, progress, message))

    def __enter__(self) -> None:
        self._started = time.monotonic()
        self.report(0.0, "")

    def __exit__(self, *_: object) -> None:
        self.seconds[self._name] = round(time.monotonic() - self._started, 3)
        self.report(1.0, "")
