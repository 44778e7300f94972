"""Every setting of an engine, once: a field here, a flag of `kvasir-runtime serve`, a variable `KVASIR_…`.

The operator fills this model from an InferenceService and renders it into the pod; the runtime reads it back from
its command line and environment. Flags bear vLLM's names where vLLM has the flag.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from kvasir_runtime.contract.quantities import parse_bytes, parse_duration

ENV_PREFIX: Final = "KVASIR_"

Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(ge=0)]
"""A byte count; `512Mi` and the like are read."""


def _parse_seconds(value: str | float) -> float:
    """Read a duration, or the plain number of seconds that `to_argv` writes."""
    return float(value) if _PLAIN_NUMBER.fullmatch(str(value)) else parse_duration(value)


_PLAIN_NUMBER: Final = re.compile(r"\d+(\.\d+)?")

Seconds = Annotated[float, BeforeValidator(_parse_seconds), Field(ge=0)]
"""A duration in seconds; `90s`, `5m` and the like are read."""


def _split_commas(value: object) -> object:
    return [part for part in value.split(",") if part] if isinstance(value, str) else value


Names = Annotated[list[str], BeforeValidator(_split_commas)]
"""A list; on the command line and in the environment its items are separated by commas."""


def _whole_number(value: object) -> object:
    return int(value) if isinstance(value, str) and value.isdecimal() else value


BlockSize = Annotated[Literal[8, 16, 32, 64, 128], BeforeValidator(_whole_number)]
"""Tokens; flags and variables bring it as text."""


def split_disk_tier(value: str) -> tuple[str, int]:
    """`/kv:50Gi` → the folder and its size in bytes. Raises ValueError that quotes what it could not read."""
    folder, _, size = value.rpartition(":")
    if not folder:
        msg = f"{value!r} must be FOLDER:SIZE, such as /kv:50Gi"
        raise ValueError(msg)
    return folder, parse_bytes(size)


def _check_disk_tier(value: str) -> str:
    split_disk_tier(value)
    return value


DiskTier = Annotated[str, AfterValidator(_check_disk_tier)]
"""A folder and how many bytes may be in it, with a colon between."""

Dtype = Literal["auto", "bfloat16", "float16", "float32"]
Quantization = Literal["auto", "none", "int8", "int4", "fp8"]
ToolCallParser = Literal["hermes", "llama3_json", "mistral", "pythonic"]
KVCacheDtype = Literal["auto", "bfloat16", "float16", "float32", "fp8", "int8"]


class EngineArgs(BaseModel):
    """Settings of one engine process and its front end. Units are in the names or the descriptions."""

    model_config = ConfigDict(extra="forbid", validate_default=True, protected_namespaces=())

    # What is served
    model: str = Field(min_length=1, description="folder of a model in Hugging Face layout")
    served_model_name: Names = Field(default=[], description="names that requests may use; default: the folder's name")
    revision: str = Field(default="", description="name of the rollout's revision, reported in /admin/state")
    dtype: Dtype = Field(default="auto", description="type of weights and activations; auto: the checkpoint's own")
    quantization: Quantization = Field(default="auto", description="auto: as the checkpoint says")
    max_model_len: int | None = Field(
        default=None, ge=1, description="longest prompt plus output in tokens; default: the model's own limit"
    )
    chat_template: str | None = Field(
        default=None, description="file with a jinja chat template; default: the model's own"
    )

    tool_call_parser: ToolCallParser | None = Field(
        default=None, description="how the model writes tool calls; default: as its chat template tells"
    )

    # Batching
    max_num_seqs: int = Field(default=128, ge=1, le=4096, description="sequences that run at the same time")
    max_num_batched_tokens: int = Field(default=2048, ge=16, le=1_048_576, description="tokens computed in one step")
    scheduling_policy: Literal["fcfs", "priority"] = Field(default="fcfs", description="who runs first")
    prefer_prefill: bool = Field(
        default=False,
        description="compute prompts before decodes, in turns: first tokens come sooner, further ones later",
    )
    max_queued_requests: int = Field(default=1024, ge=0, description="waiting requests beyond which new ones get 429")
    max_queued_tokens: int | None = Field(
        default=None,
        ge=1,
        description="waiting prompt tokens beyond which new ones get 429; default: no bound of its own",
    )

    queue_timeout: Seconds | None = Field(
        default=None,
        description="wait in the queue beyond which requests get 429, or 503 where it shows later; default: no bound",
    )

    # KV cache
    block_size: BlockSize = Field(default=16, description="tokens in one KV block")
    kv_cache_dtype: KVCacheDtype = Field(default="auto", description="auto: the model's dtype")
    kv_cache_memory: Bytes | None = Field(
        default=None, description="bytes for KV blocks, such as 512Mi; takes precedence over gpu-memory-utilization"
    )
    gpu_memory_utilization: float = Field(
        default=0.9, gt=0, le=1, description="share of the device's memory (on CPU: of the memory limit) to plan with"
    )
    enable_prefix_caching: bool = Field(default=True, description="reuse KV blocks of equal prompt prefixes")
    prefix_eviction_policy: Literal["lru", "lfu"] = Field(default="lru", description="which cached block goes first")
    kv_offload_host: Bytes = Field(default=0, description="host memory for evicted KV blocks, such as 8Gi; 0: none")
    kv_offload_disk: DiskTier | None = Field(
        default=None, description="FOLDER:SIZE of files of KV blocks, such as /kv:50Gi; needs --kv-offload-host"
    )
    kv_offload_salted: bool = Field(
        default=False, description="write KV blocks of requests with a cache_salt to files as well"
    )

    # Device
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: cuda where there is a GPU")
    tensor_parallel_size: int = Field(default=1, ge=1, description="GPUs that share each layer")
    pipeline_parallel_size: int = Field(default=1, ge=1, description="stages of consecutive layers")
    num_threads: int | None = Field(default=None, ge=1, description="compute threads on CPU; default: the CPU quota")
    seed: int = Field(default=0, ge=0, description="seed for requests that bring none of their own")

    # Adapters
    enable_lora: bool = Field(default=False, description="serve LoRA adapters")
    max_loras: int = Field(default=4, ge=1, le=256, description="adapters that may take part in one batch")
    max_cpu_loras: int | None = Field(
        default=None, ge=1, le=4096, description="adapters kept in host memory, --max-loras or more; default: as many"
    )
    max_lora_rank: int = Field(default=16, ge=1, le=256, description="largest rank that is accepted")
    lora_roots: Names = Field(default=[], description="folders that local adapters may be loaded from; default: none")
    lora_schemes: Names = Field(
        default=[], description="schemes that adapters may be downloaded from (s3, hf, https); default: none"
    )
    lora_secrets: str | None = Field(
        default=None, description="folder with a folder of credentials for each `secret` that adapters name"
    )
    lora_cache: str | None = Field(
        default=None, description="folder for downloaded adapters; default: a temporary one, gone with the process"
    )
    allow_runtime_lora_updating: bool = Field(
        default=False, description="let users load and unload adapters; so does VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
    )

    # Front end
    host: str = Field(default="0.0.0.0", description="address of both ports")
    port: int = Field(default=8000, ge=1, le=65535, description="port for users: the OpenAI API")
    admin_port: int = Field(default=8001, ge=1, le=65535, description="port for the operator: probes and /admin")
    api_key: Names = Field(default=[], description="keys that users must present; empty: none needed")
    api_key_file: str | None = Field(default=None, description="file with one key a line, read again when it changes")
    max_streams_per_key: int | None = Field(
        default=None, ge=1, description="completions that one API key may have under way; default: no bound of its own"
    )
    admin_token_file: str | None = Field(default=None, description="file with the bearer token of /admin")
    drain_timeout: Seconds = Field(default=300.0, description="how long running requests may finish after SIGTERM")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="least level logged")
    log_format: Literal["auto", "json", "pretty"] = Field(default="auto", description="auto: pretty on a terminal")

    @model_validator(mode="after")
    def _check_across_fields(self) -> "EngineArgs":
        if self.port == self.admin_port:
            msg = f"port and admin_port must differ, both are {self.port}"
            raise ValueError(msg)
        if self.max_cpu_loras is not None and self.max_cpu_loras < self.max_loras:
            msg = f"max_cpu_loras must be at least max_loras ({self.max_loras}), got {self.max_cpu_loras}"
            raise ValueError(msg)
        if self.kv_offload_host and not self.enable_prefix_caching:
            raise ValueError("kv_offload_host keeps what the prefix cache evicts and needs enable_prefix_caching")
        if self.kv_offload_disk is not None and not self.kv_offload_host:
            raise ValueError("kv_offload_disk goes through host memory and needs kv_offload_host")
        if self.max_streams_per_key is not None and not self.api_key and self.api_key_file is None:
            raise ValueError("max_streams_per_key counts by API key and needs api_key or api_key_file")
        return self

    def to_argv(self) -> list[str]:
        """Render the fields that were set as flags for `kvasir-runtime serve`, in declaration order."""
        argv: list[str] = []
        for name in type(self).model_fields:
            if name in self.model_fields_set:
                argv += _render_flag(flag_name(name), getattr(self, name))
        return argv


def flag_name(field: str) -> str:
    """`max_num_seqs` → `--max-num-seqs`."""
    return "--" + field.replace("_", "-")


def env_name(field: str) -> str:
    """`max_num_seqs` → `KVASIR_MAX_NUM_SEQS`."""
    return ENV_PREFIX + field.upper()


def from_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The fields that the environment sets, unparsed."""
    return {name: environ[env_name(name)] for name in EngineArgs.model_fields if env_name(name) in environ}


def _render_flag(flag: str, value: Any) -> list[str]:
    match value:
        case None:
            return []
        case bool():
            return [flag if value else "--no-" + flag.removeprefix("--")]
        case list():
            return [flag, ",".join(map(str, value))]
        case float():
            return [flag, f"{value:g}"]
        case _:
            return [flag, str(value)]
