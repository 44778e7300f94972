"""Settings of the engine that belong to a field of the spec or to the operator, and cannot be set past them."""

from typing import Final

from kvasir_runtime.contract.engine_args import flag_name

RESERVED_SETTINGS: Final = {
    "model": "spec.model.source",
    "served_model_name": "spec.model.servedName",
    "dtype": "spec.model.dtype",
    "quantization": "spec.model.quantization",
    "max_model_len": "spec.model.maxModelLen",
    "max_num_seqs": "spec.engine.maxNumSeqs",
    "max_num_batched_tokens": "spec.engine.maxNumBatchedTokens",
    "scheduling_policy": "spec.engine.schedulingPolicy",
    "prefer_prefill": "spec.engine.preferPrefill",
    "block_size": "spec.engine.blockSize",
    "kv_cache_dtype": "spec.engine.kvCacheDtype",
    "kv_cache_memory": "spec.engine.kvCacheMemory",
    "gpu_memory_utilization": "spec.engine.gpuMemoryUtilization",
    "enable_prefix_caching": "spec.engine.prefixCaching.enabled",
    "prefix_eviction_policy": "spec.engine.prefixCaching.evictionPolicy",
    "kv_offload_host": "spec.engine.kvOffload.host",
    "kv_offload_disk": "spec.engine.kvOffload.disk",
    "enable_lora": "spec.adapters",
    "max_loras": "spec.engine.lora.maxLoras",
    "max_cpu_loras": "spec.engine.lora.maxCpuLoras",
    "max_lora_rank": "spec.engine.lora.maxRank",
    "lora_roots": "spec.adapters",
    "lora_schemes": "spec.adapters",
    "lora_secrets": "spec.adapters",
    "lora_cache": "",
    "tensor_parallel_size": "spec.parallelism.tensor",
    "pipeline_parallel_size": "spec.parallelism.pipeline",
    "device": "spec.accelerator.vendor",
    "drain_timeout": "spec.drain.timeout",
    "api_key": "spec.router.apiKeysSecret",
    "api_key_file": "spec.router.apiKeysSecret",
    "host": "",
    "port": "",
    "admin_port": "",
    "admin_token_file": "",
    "revision": "",
    "log_format": "",
}
"""Settings of the engine that `extraArgs` and `env` cannot set, and the field that does; "" is the operator's own."""


def set_elsewhere(setting: str) -> str:
    """Say who sets it: `must not set --port, which the operator sets itself`."""
    owner = RESERVED_SETTINGS[setting]
    return f"must not set {flag_name(setting)}, which {f'{owner} sets' if owner else 'the operator sets itself'}"
