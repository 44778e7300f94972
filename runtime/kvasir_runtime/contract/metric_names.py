"""Names of the series that others build on: dashboards, KEDA triggers, endpoint pickers, our own operator.

The `vllm:` names, types and labels are those vLLM exports, so that what works with vLLM works with Kvasir.
Source: https://docs.vllm.ai/en/latest/usage/metrics.html and the Gateway API Inference Extension's model server
protocol.
"""

from typing import Final

MODEL_LABEL: Final = "model_name"

NUM_REQUESTS_RUNNING: Final = "vllm:num_requests_running"
NUM_REQUESTS_WAITING: Final = "vllm:num_requests_waiting"
KV_CACHE_USAGE: Final = "vllm:kv_cache_usage_perc"
GPU_CACHE_USAGE: Final = "vllm:gpu_cache_usage_perc"
CACHE_CONFIG_INFO: Final = "vllm:cache_config_info"
ENGINE_SLEEP_STATE: Final = "vllm:engine_sleep_state"
LORA_REQUESTS_INFO: Final = "vllm:lora_requests_info"
PREFIX_CACHE_QUERIES: Final = "vllm:prefix_cache_queries"
PREFIX_CACHE_HITS: Final = "vllm:prefix_cache_hits"
EXTERNAL_PREFIX_CACHE_QUERIES: Final = "vllm:external_prefix_cache_queries"
EXTERNAL_PREFIX_CACHE_HITS: Final = "vllm:external_prefix_cache_hits"
NUM_PREEMPTIONS: Final = "vllm:num_preemptions"
PROMPT_TOKENS: Final = "vllm:prompt_tokens"
GENERATION_TOKENS: Final = "vllm:generation_tokens"
REQUEST_SUCCESS: Final = "vllm:request_success"
TIME_TO_FIRST_TOKEN: Final = "vllm:time_to_first_token_seconds"  # noqa: S105 - a series, not a secret
INTER_TOKEN_LATENCY: Final = "vllm:inter_token_latency_seconds"  # noqa: S105 - a series, not a secret
E2E_LATENCY: Final = "vllm:e2e_request_latency_seconds"
QUEUE_TIME: Final = "vllm:request_queue_time_seconds"
PREFILL_TIME: Final = "vllm:request_prefill_time_seconds"
DECODE_TIME: Final = "vllm:request_decode_time_seconds"
INFERENCE_TIME: Final = "vllm:request_inference_time_seconds"
REQUEST_PROMPT_TOKENS: Final = "vllm:request_prompt_tokens"
REQUEST_GENERATION_TOKENS: Final = "vllm:request_generation_tokens"

STARTUP_SECONDS: Final = "kvasir:startup_seconds"
CACHE_VALUE: Final = "kvasir:kv_cache_value"
CACHED_TOKENS_BY_TIER: Final = "kvasir:cached_tokens"
HIT_TOKENS_BY_TIER: Final = "kvasir:prefix_cache_hits"
KV_BLOCKS_MOVED: Final = "kvasir:kv_blocks_moved"
KV_BLOCKS_DROPPED: Final = "kvasir:kv_blocks_dropped"
KV_FILES_REJECTED: Final = "kvasir:kv_files_rejected"
KV_DISK_STATE: Final = "kvasir:kv_disk_state"
KV_DISK_BYTES: Final = "kvasir:kv_disk_bytes"
PINNED_TOKENS: Final = "kvasir:pinned_tokens"
WARMUP_TOKENS: Final = "kvasir:warmup_tokens"
DRAINING: Final = "kvasir:draining"
