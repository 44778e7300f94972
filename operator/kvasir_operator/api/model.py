"""`spec.model` and `spec.engine`: what is served, and how the engine is set."""

from typing import Literal

from pydantic import Field

from kvasir_operator.api.base import ApiModel, DnsName, Duration, Quantity
from kvasir_operator.api.kubernetes import EnvVar
from kvasir_runtime.contract.engine_args import Dtype, KVCacheDtype, Quantization

SOURCE_PATTERN = r"^((s3|hf|pvc|https)://[^/\s]+(/\S*)?|file:///\S+)$"


class Source(ApiModel):
    """Where the files of a model or an adapter are."""

    uri: str = Field(
        pattern=SOURCE_PATTERN,
        max_length=2048,
        description=(
            "Address of a folder in Hugging Face layout: pvc://claim/path (a volume claim of this namespace, mounted "
            "read-only), https://host/path and s3://bucket/prefix (fetched into the pod before the engine starts), "
            "hf://org/name@revision (fetched from the Hugging Face hub or a mirror of it), or file:///path (a folder "
            "on the node; the operator's settings must allow it)."
        ),
    )
    secret_name: DnsName | None = Field(
        default=None,
        description=(
            "Secret of this namespace with the credentials of a source that is fetched. Its keys: AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION and AWS_ENDPOINT_URL for s3, HF_TOKEN and "
            "HF_ENDPOINT for hf, KVASIR_FETCH_TOKEN for https, SSL_CERT_FILE for an authority of one's own. Only the "
            "container that fetches can read it."
        ),
    )
    sha256: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{64}$",
        description=(
            "Digest that the fetched files must have: that of an archive, else that of the sorted output of "
            "`sha256sum` over the files. Unset: only the source's own checksums count."
        ),
    )


class ModelSpec(ApiModel):
    """The model that is served."""

    source: Source = Field(description="Where the model's files are.")
    served_name: str | None = Field(
        default=None,
        min_length=1,
        max_length=253,
        description="Name that requests use in their `model` field. Unset: the name of this InferenceService.",
    )
    quantization: Quantization = Field(
        default="auto",
        description="How weights are stored on the device. auto: as the checkpoint says. This version's runtime "
        "refuses int8, int4 and fp8.",
    )
    dtype: Dtype = Field(default="auto", description="Type of weights and activations. auto: the checkpoint's own.")
    max_model_len: int | None = Field(
        default=None,
        ge=1,
        le=16_777_216,
        description="Longest prompt plus output, in tokens. Unset: the model's own limit.",
    )


class PrefixCaching(ApiModel):
    """Reuse of KV blocks between requests that begin alike."""

    enabled: bool = Field(default=True, description="Whether KV blocks of equal prompt prefixes are shared.")
    eviction_policy: Literal["lru", "lfu"] = Field(
        default="lru",
        description="Which cached block goes first: the least recently used, or the least frequently used.",
    )


class DiskOffload(ApiModel):
    """Files of KV blocks, behind host memory."""

    size: Quantity = Field(
        description="Most bytes of files that one replica writes, such as 50Gi. A claim needs room for all replicas."
    )
    claim_name: DnsName | None = Field(
        default=None,
        description="Volume claim that keeps the files when pods go, shared by all replicas: ReadWriteMany, unless "
        "they are on one node. Unset: a folder that outlives a restart of the container and goes with the pod.",
    )


class KVOffload(ApiModel):
    """Tiers behind the device's KV cache, for blocks that it evicts."""

    host: Quantity | None = Field(
        default=None,
        description="Host memory for evicted KV blocks, such as 8Gi. On CPUs it is part of the memory limit; on GPUs "
        "it is added to the operator's default, and must be within what spec.resources asks for. Unset: none.",
    )
    disk: DiskOffload | None = Field(
        default=None,
        description="Files of KV blocks, found again after a restart. Needs `host`. Blocks of requests with a "
        "cache_salt are not written. Unset: none.",
    )


class LoraSettings(ApiModel):
    """How many adapters the engine serves, and how large."""

    max_loras: int | None = Field(
        default=None, ge=1, le=256, description="Adapters that may take part in one batch. Unset: 4."
    )
    max_cpu_loras: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Adapters kept in host memory; others are read again when they are asked for. Unset: as maxLoras.",
    )
    max_rank: int | None = Field(default=None, ge=1, le=256, description="Largest rank that is accepted. Unset: 16.")


class EngineSpec(ApiModel):
    """Settings of the engine; what is unset is the engine's own choice."""

    image: str | None = Field(
        default=None, min_length=1, description="Image of the runtime. Unset: the one in the operator's settings."
    )
    max_num_seqs: int | None = Field(
        default=None, ge=1, le=4096, description="Sequences that run at the same time. Unset: 128."
    )
    max_num_batched_tokens: int | None = Field(
        default=None,
        ge=16,
        le=1_048_576,
        description="Tokens computed in one step; longer prompts are computed in chunks. Unset: 2048.",
    )
    block_size: Literal[8, 16, 32, 64, 128] | None = Field(
        default=None, description="Tokens in one KV block. Unset: 16."
    )
    kv_cache_dtype: KVCacheDtype | None = Field(
        default=None,
        description="Type in which keys and values are kept. Unset or auto: the model's dtype. This version's runtime "
        "refuses fp8 and int8.",
    )
    kv_cache_memory: Quantity | None = Field(
        default=None,
        description="Memory for KV blocks, such as 20Gi, exactly. Takes the place of gpuMemoryUtilization.",
    )
    gpu_memory_utilization: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Share of the device's memory (on CPUs: of the memory limit) that weights, activations and KV "
        "blocks may fill together. Unset: 0.9.",
    )
    prefix_caching: PrefixCaching = Field(
        default=PrefixCaching(), description="Reuse of KV blocks between requests that begin alike."
    )
    kv_offload: KVOffload | None = Field(
        default=None, description="Tiers behind the device's KV cache, for blocks that it evicts. Unset: none."
    )
    lora: LoraSettings | None = Field(
        default=None,
        description="How many adapters the engine serves, and how large. Set, memory is kept for them even while "
        "`adapters` is empty, so that the first one needs no new replicas. Unset: only with `adapters`.",
    )
    scheduling_policy: Literal["fcfs", "priority"] | None = Field(
        default=None,
        description="Who runs first: fcfs in order of arrival, priority by each request's `priority`. Unset: fcfs.",
    )
    prefer_prefill: bool | None = Field(
        default=None,
        description="Whether a step computes prompts before it goes on with answers under way, which then get every "
        "other step at least: first tokens come sooner, further ones later. Unset: no.",
    )
    env: list[EnvVar] = Field(
        default=[],
        max_length=256,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        description="Further environment variables of the pod's containers.",
    )
    extra_args: list[str] = Field(
        default=[],
        max_length=64,
        description='Further flags of `kvasir-runtime serve`, such as [--seed, "7"]. Flags that a field of this '
        "spec sets, and those that the operator needs for itself, are refused.",
    )


class PromptsFrom(ApiModel):
    """Prompts kept in a ConfigMap."""

    config_map: DnsName = Field(description="Name of a ConfigMap in this namespace.")
    key: str = Field(min_length=1, description="Key that holds one prompt a line.")


class WarmupFromTraffic(ApiModel):
    """Prefixes that the other replicas are asked for most.

    They are kept in the Secret `<name>-prefixes`, and handed over by replicas that a scale-down takes away.
    """

    top_prefixes: int = Field(default=64, ge=1, le=1024, description="How many of the hottest prefixes are computed.")
    max_tokens: int = Field(default=65_536, ge=1, le=1_048_576, description="Most tokens to compute in all.")
    salted: bool = Field(
        default=False,
        description="Whether prefixes of requests with a cache_salt are kept as well. They are another tenant's each.",
    )


class WarmupSpec(ApiModel):
    """What a new replica computes before it takes traffic."""

    prompts: list[str] = Field(default=[], max_length=1024, description="Prompts whose KV blocks are computed first.")
    prompts_from: PromptsFrom | None = Field(default=None, description="ConfigMap with further prompts.")
    from_traffic: WarmupFromTraffic | None = Field(
        default=None, description="Compute the prefixes that the other replicas are asked for most. Unset: no."
    )
    timeout: Duration = Field(default=Duration("2m"), description="How long the warmup of one replica may take.")
    required: bool = Field(
        default=False,
        description="Whether a replica whose warmup fails or times out stays out of traffic. It is tried again.",
    )


class AdapterSource(Source):
    """Where the files of an adapter are."""

    sha256: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{64}$",
        description=(
            "Digest that the adapter must have: what `sha256sum adapter_config.json adapter_model.safetensors | "
            "sha256sum` prints. Unset: whatever is found there."
        ),
    )


class AdapterSpec(ApiModel):
    """One LoRA adapter."""

    name: str = Field(
        min_length=1,
        max_length=253,
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9._:-]*[A-Za-z0-9])?$",
        description="Name that requests use in their `model` field.",
    )
    source: AdapterSource = Field(description="Where the adapter's files are, in PEFT layout.")
    pinned: bool = Field(default=False, description="Whether the adapter stays on the device when others need room.")
    refresh_interval: Duration | None = Field(
        default=None,
        description="How often the source is looked at for another version, which then takes the name without a "
        "failed request. Unset: when the annotation kvasir.dev/adapters-version changes.",
    )
