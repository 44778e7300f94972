"""The runtime's command line for a revision, rendered through the contract that the runtime reads it back with."""

import re
from typing import Any, Final

from kvasir_operator.api.model import KVOffload, LoraSettings
from kvasir_operator.api.reserved import RESERVED_SETTINGS
from kvasir_operator.api.v1alpha1 import AcceleratorSpec, EngineSpec, ModelSpec, ParallelismSpec
from kvasir_operator.resources import names
from kvasir_operator.resources.adapter_files import engine_settings
from kvasir_operator.resources.template_hash import RevisionTemplate
from kvasir_runtime.contract.engine_args import EngineArgs

_SPEC_FIELDS: Final = {name: path for name, path in RESERVED_SETTINGS.items() if path and "_" in name}
"""Where the spec holds what the engine knows by these names; single words are left out, they may be prose."""

_ENGINE_FIELD: Final = re.compile(
    r"(?<![\w.])(?:--)?(" + "|".join(re.sub("_", "[_-]", name) for name in _SPEC_FIELDS) + r")(?![\w-])"
)


def in_words_of_the_spec(text: str) -> str:
    """Name the spec's fields where the engine names its own: `--kv-cache-memory` → `spec.engine.kvCacheMemory`."""
    return _ENGINE_FIELD.sub(lambda found: _SPEC_FIELDS[found[1].replace("-", "_")], text)


def serve_arguments(template: RevisionTemplate, model_folder: str) -> list[str]:
    """Arguments of `kvasir-runtime`; what the spec leaves open is left to the engine, its own flags come last."""
    settings: dict[str, Any] = {
        "model": model_folder,
        "served_model_name": [template.served_name],
        "revision": template.digest(),
        **_model(template.model),
        **_engine(template.engine),
        **_devices(template.accelerator, template.parallelism),
        **_adapters(template),
        "port": names.USER_PORT,
        "admin_port": names.ADMIN_PORT,
        "admin_token_file": f"{names.ADMIN_TOKEN_FOLDER}/{names.ADMIN_TOKEN_KEY}",
        "drain_timeout": template.drain.timeout.seconds,
        "log_format": "json",
    }
    if template.api_keys_secret is not None:
        settings["api_key_file"] = f"{names.API_KEYS_FOLDER}/{names.API_KEYS_KEY}"
    return ["serve", *EngineArgs.model_validate(settings).to_argv(), *template.engine.extra_args]


def _model(model: ModelSpec) -> dict[str, Any]:
    return _set(
        dtype=None if model.dtype == "auto" else model.dtype,
        quantization=None if model.quantization == "auto" else model.quantization,
        max_model_len=model.max_model_len,
    )


def _engine(engine: EngineSpec) -> dict[str, Any]:
    caching = engine.prefix_caching
    return _set(
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        scheduling_policy=engine.scheduling_policy,
        prefer_prefill=engine.prefer_prefill,
        block_size=engine.block_size,
        kv_cache_dtype=engine.kv_cache_dtype,
        kv_cache_memory=engine.kv_cache_memory,
        gpu_memory_utilization=engine.gpu_memory_utilization,
        enable_prefix_caching=None if caching.enabled else False,
        prefix_eviction_policy=None if caching.eviction_policy == "lru" else caching.eviction_policy,
        **kv_offload_settings(engine),
    )


def kv_offload_settings(engine: EngineSpec) -> dict[str, Any]:
    """The tiers behind the device's KV cache, as far as the spec has any."""
    offload = engine.kv_offload or KVOffload()
    disk = offload.disk
    return _set(
        kv_offload_host=None if offload.host is None else offload.host.bytes,
        kv_offload_disk=None if disk is None else f"{names.KV_FOLDER}:{disk.size.bytes}",
    )


def _adapters(template: RevisionTemplate) -> dict[str, Any]:
    """Nothing without adapters: memory is kept for them."""
    if not template.has_lora:
        return {}
    access = template.adapters
    return {
        "enable_lora": True,
        **lora_settings(template.engine),
        **(engine_settings(access) if access is not None else {}),
    }


def lora_settings(engine: EngineSpec) -> dict[str, Any]:
    """How many adapters, and how large, as far as the spec says."""
    lora = engine.lora or LoraSettings()
    return _set(max_loras=lora.max_loras, max_cpu_loras=lora.max_cpu_loras, max_lora_rank=lora.max_rank)


def _devices(accelerator: AcceleratorSpec | None, parallelism: ParallelismSpec) -> dict[str, Any]:
    """The device is always named: an engine that finds no GPU must fail, not serve slowly on the processor."""
    if accelerator is None or accelerator.resource() is None:
        return {"device": "cpu"}
    tensor = parallelism.tensor or accelerator.count // parallelism.pipeline
    return {
        "device": "cuda",
        **_set(
            tensor_parallel_size=tensor if tensor > 1 else None,
            pipeline_parallel_size=parallelism.pipeline if parallelism.pipeline > 1 else None,
        ),
    }


def _set(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
