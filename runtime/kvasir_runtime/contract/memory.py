"""How many bytes a model takes: one formula for the webhook, the planner and the engine itself. Standard library only.

    weights + adapters + tables + activations(max_num_batched_tokens) + KV blocks <= memory limit x utilization

On CPU the blocks kept in host memory (`kv_offload_host`) are among what is taken; a GPU's are not in its memory.
with KV bytes per token = 2 x layers x kv_heads x head_dim x bytes, and a place of the largest rank for each adapter.
Tables are what is kept beside the KV for each sequence that may run, and for each position.
The engine allocates by this plan, never by what looks free at the moment, so that what is planned is what is taken.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.contract.quantities import format_bytes

DTYPE_BYTES: Final = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1, "int8": 1}

PROCESS_BYTES: Final = 512 * 1024**2
"""Interpreters, libraries and the front end: resident before a weight is loaded (two processes)."""

SAMPLED_AT_ONCE: Final = 1 << 21
"""Logits (rows x vocabulary) that random choices and prompt log-probabilities work on at the same time."""

TOKENS_LOOKED_UP_AT_ONCE: Final = 1 << 18
"""Tokens whose penalties are worked out at the same time, however many long sequences are penalized."""

MAX_LOGIT_BIASES: Final = 1024
"""Most entries in a request's `logit_bias`."""

LORA_RANK_STEP: Final = 16
"""Adapters are kept with their rank rounded up to a multiple of this: as many numbers as a vector holds."""

UNLIMITED_CPU_KV_BYTES: Final = 4 * 1024**3
"""Most that the KV cache takes by itself on a machine whose memory nobody limited: others live there too."""


@dataclass(frozen=True)
class ModelShape:
    """The numbers of a config.json on which memory depends."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position: int
    tie_embeddings: bool
    dtype: str
    num_experts: int = 1
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    norms_per_layer: int = 2
    rotary_tables: int = 1

    @classmethod
    def from_hf_config(cls, config: Mapping[str, Any]) -> "ModelShape":
        """Read a Hugging Face config.json. Raises ValueError that names the key."""
        kind = str(config.get("model_type", ""))
        gemma, gemma3 = kind.startswith("gemma"), kind.startswith("gemma3")
        bias = bool(config.get("attention_bias")) and kind != "qwen2"
        heads, hidden = _positive(config, "num_attention_heads"), _positive(config, "hidden_size")
        return cls(
            num_layers=_positive(config, "num_hidden_layers"),
            hidden_size=hidden,
            intermediate_size=_positive(config, "intermediate_size"),
            num_heads=heads,
            num_kv_heads=_positive(config, "num_key_value_heads", heads),
            head_dim=_positive(config, "head_dim", 256 if gemma else max(1, hidden // heads)),
            vocab_size=_positive(config, "vocab_size"),
            max_position=_positive(config, "max_position_embeddings", 131_072 if gemma3 else 2048),
            tie_embeddings=bool(config.get("tie_word_embeddings", gemma)),
            dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32"),
            num_experts=_positive(config, "num_local_experts", 8 if kind == "mixtral" else 1),
            qkv_bias=bias or kind == "qwen2",
            output_bias=bias,
            mlp_bias=bool(config.get("mlp_bias")) and kind == "llama",
            qk_norm=kind == "qwen3" or gemma3,
            norms_per_layer=4 if gemma else 2,
            rotary_tables=2 if gemma3 else 1,
        )

    @property
    def embedding_parameters(self) -> int:
        """Of one table: the input embedding, or the output projection."""
        return self.vocab_size * self.hidden_size

    @property
    def linear_parameters(self) -> int:
        """Of all projections of all layers."""
        attention = 2 * self.hidden_size * self.head_dim * (self.num_heads + self.num_kv_heads)
        return self.num_layers * (attention + 3 * self.num_experts * self.hidden_size * self.intermediate_size)

    @property
    def linear_outputs(self) -> int:
        """Output features of all projections of all layers: each has a scale and a sum when weights are quantized."""
        attention = self.head_dim * (self.num_heads + 2 * self.num_kv_heads) + self.hidden_size
        return self.num_layers * (attention + self.num_experts * (2 * self.intermediate_size + self.hidden_size))

    @property
    def bias_parameters(self) -> int:
        """Of the projections that have a bias."""
        qkv = self.head_dim * (self.num_heads + 2 * self.num_kv_heads) if self.qkv_bias else 0
        mlp = self.num_experts * (2 * self.intermediate_size + self.hidden_size) if self.mlp_bias else 0
        return self.num_layers * (qkv + (self.hidden_size if self.output_bias else 0) + mlp)

    @property
    def norm_parameters(self) -> int:
        """Of all layers' norms, those of single heads included, and the last one."""
        heads = 2 * self.head_dim if self.qk_norm else 0
        return self.num_layers * (self.norms_per_layer * self.hidden_size + heads) + self.hidden_size

    @property
    def lora_features(self) -> int:
        """Inputs plus outputs of all projections that an adapter may change: for each rank it has so many numbers."""
        q_size, kv_size = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = 4 * self.hidden_size + 2 * q_size + 2 * kv_size
        mlp = 3 * (self.hidden_size + self.intermediate_size) if self.num_experts == 1 else 0
        return self.num_layers * (attention + mlp)


@dataclass(frozen=True)
class MemoryQuestion:
    """What the plan is for. Bytes and tokens; `limit` is the device's memory or, on CPU, the memory limit.

    `limited` is False on CPU when nobody set a limit and `limit` is the whole machine.
    """

    shape: ModelShape
    dtype: str
    quantization: str
    kv_dtype: str
    block_size: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    limit: int
    limited: bool = True
    utilization: float = 0.9
    kv_cache_memory: int | None = None
    tensor_parallel: int = 1
    device: str = "cpu"
    num_adapters: int = 0
    """Adapters that are kept on the device at the same time, see `resident_adapters`."""
    max_lora_rank: int = 16
    kv_offload_host: int = 0
    """Bytes for evicted KV blocks, of which whole blocks are kept."""


@dataclass(frozen=True)
class MemoryPlan:
    """What will be allocated. `num_blocks` includes the null block, which holds no tokens."""

    weights_bytes: int
    activation_bytes: int
    kv_bytes_per_token: int
    block_size: int
    num_blocks: int
    adapter_bytes: int = 0
    table_bytes: int = 0
    num_host_blocks: int = 0

    @property
    def host_kv_bytes(self) -> int:
        """Host memory for evicted blocks."""
        return self.num_host_blocks * self.block_size * self.kv_bytes_per_token

    @property
    def kv_bytes(self) -> int:
        return self.num_blocks * self.block_size * self.kv_bytes_per_token

    @property
    def kv_tokens(self) -> int:
        return (self.num_blocks - 1) * self.block_size

    def concurrent_sequences(self, length: int) -> int:
        """How many sequences of `length` tokens fit at the same time."""
        return (self.num_blocks - 1) // math.ceil(length / self.block_size)


def weight_bytes(
    shape: ModelShape, dtype: str, quantization: str = "none", tensor_parallel: int = 1, device: str = "cpu"
) -> int:
    """Bytes of the weights on one rank. The embedding is never quantized; norms, and biases of int8, are float32.

    On CPU a tied output projection is a table of its own, since it is packed for its kernel.
    """
    size = DTYPE_BYTES[dtype]
    packed_head = device == "cpu" and (quantization == "int8" or dtype == "bfloat16")
    heads = 0 if shape.tie_embeddings and not packed_head else 1
    projections = shape.linear_parameters + heads * shape.embedding_parameters
    scales = 0
    if quantization == "int8":
        scales, size_of_projection = 8 * (shape.linear_outputs + heads * shape.vocab_size), 1
    else:
        size_of_projection = size
    biases = shape.bias_parameters * (4 if quantization == "int8" else size)
    norms = 4 * shape.norm_parameters
    routers = shape.num_layers * shape.num_experts * shape.hidden_size * size if shape.num_experts > 1 else 0
    sharded = projections * size_of_projection + scales + biases + shape.embedding_parameters * size
    return math.ceil(sharded / tensor_parallel) + norms + routers


def resident_adapters(*, enabled: bool, max_loras: int, max_cpu_loras: int | None, device: str = "cpu") -> int:
    """How many adapters the device holds.

    On CPU a host copy is computed with as it is, there is no second one; and there is one place more, so that a new
    version can be read while all others are in use.
    """
    if not enabled:
        return 0
    return max(max_loras, max_cpu_loras or 0) + 1 if device == "cpu" else max_loras


def adapter_bytes(shape: ModelShape, dtype: str, rank: int) -> int:
    """Bytes of one adapter of `rank` that changes every projection it may."""
    padded = math.ceil(rank / LORA_RANK_STEP) * LORA_RANK_STEP
    return shape.lora_features * padded * DTYPE_BYTES[dtype]


def kv_bytes_per_token(shape: ModelShape, kv_dtype: str, tensor_parallel: int = 1) -> int:
    """Bytes of keys and values of one token on one rank; a KV head is never split."""
    kv_heads = max(1, shape.num_kv_heads // tensor_parallel)
    return 2 * shape.num_layers * kv_heads * shape.head_dim * DTYPE_BYTES[kv_dtype]


def table_bytes(shape: ModelShape, max_num_seqs: int, max_model_len: int, block_size: int) -> int:
    """Bytes of what is kept for each position (cosines and sines) and for each sequence that may run.

    A sequence has its tokens, its block table, its biases and forbidden tokens (32 bytes each, twice
    `MAX_LOGIT_BIASES` at most), and three masks of a bit for each token where a grammar leads it. Penalties are worked
    out from its tokens, in portions that are counted here.
    """
    rotary = 4 * shape.rotary_tables * max_model_len * shape.head_dim
    masks = 3 * math.ceil(shape.vocab_size / 8)
    sequence = 4 * (max_model_len + 1) + 4 * math.ceil(max_model_len / block_size) + 2 * 32 * MAX_LOGIT_BIASES + masks
    looked_up = 32 * min(max_num_seqs * (max_model_len + 1), TOKENS_LOOKED_UP_AT_ONCE)
    return rotary + max_num_seqs * sequence + looked_up


def activation_bytes(shape: ModelShape, dtype: str, max_num_batched_tokens: int, max_num_seqs: int) -> int:
    """Peak bytes of a step: the widest layer's tensors for all rows, then the logits and what choosing from them takes.

    Logits are there in the model's dtype, in float32 and as log-probabilities; a choice from a sorted distribution
    takes 40 bytes an entry, in portions of `SAMPLED_AT_ONCE`.
    """
    size = DTYPE_BYTES[dtype]
    attention = shape.head_dim * (2 * shape.num_heads + 2 * shape.num_kv_heads)
    row = size * (4 * shape.hidden_size + max(attention, 3 * shape.intermediate_size))
    logits = max_num_seqs * shape.vocab_size
    return max_num_batched_tokens * row + 3 * 4 * logits + 40 * min(logits, SAMPLED_AT_ONCE)


def resolve_dtype(asked: str, stored: str, device: str) -> str:
    """The type that weights and activations get; `auto` is the checkpoint's own.

    On CPUs bfloat16 takes the place of a checkpoint's float16, which they multiply an order of magnitude slower.
    """
    if asked != "auto":
        return asked
    return "bfloat16" if device == "cpu" and stored == "float16" else stored


def plan_memory(question: MemoryQuestion) -> MemoryPlan:
    """Decide how many KV blocks there will be.

    Raises KvasirError OutOfMemoryWeights when the weights alone exceed the limit, and OutOfMemoryKVCache, with the
    number that would do, when not even one sequence of `max_model_len` fits.
    """
    q = question
    weights = weight_bytes(q.shape, q.dtype, q.quantization, q.tensor_parallel, q.device)
    activations = activation_bytes(q.shape, q.dtype, q.max_num_batched_tokens, q.max_num_seqs)
    per_token = kv_bytes_per_token(q.shape, q.kv_dtype, q.tensor_parallel)
    adapters = q.num_adapters * adapter_bytes(q.shape, q.dtype, q.max_lora_rank)
    tables = table_bytes(q.shape, q.max_num_seqs, q.max_model_len, q.block_size)
    usable = int(q.limit * q.utilization)
    taken = weights + adapters + tables + activations + PROCESS_BYTES
    if taken > usable:
        raise _weights_do_not_fit(q, weights, adapters, tables, activations, usable)
    block = q.block_size * per_token
    host_blocks = _host_blocks(q, block)
    taken += host_blocks * block if q.device == "cpu" else 0
    needed_blocks = math.ceil(q.max_model_len / q.block_size) + 1
    budget = _kv_budget(q, usable - taken, needed_blocks * block, per_token)
    plan = MemoryPlan(weights, activations, per_token, q.block_size, budget // block, adapters, tables, host_blocks)
    if plan.num_blocks < needed_blocks:
        raise _kv_does_not_fit(q, budget, needed_blocks * block, (budget // block - 1) * q.block_size)
    if plan.kv_bytes > usable - taken:
        raise KvasirError(
            Cause.OUT_OF_MEMORY_KV_CACHE,
            f"kv_cache_memory {format_bytes(plan.kv_bytes)} is more than the {format_bytes(usable - taken)} that the "
            f"memory limit {format_bytes(q.limit)} x {q.utilization:g} leaves beside weights, tables, activations and "
            "host blocks",
            "lower kv_cache_memory or raise the memory limit to at least "
            f"{format_bytes((plan.kv_bytes + taken) / q.utilization)}",
            needed=plan.kv_bytes + taken,
            limit=q.limit,
        )
    return plan


def _host_blocks(question: MemoryQuestion, block: int) -> int:
    if 0 < question.kv_offload_host < block:
        raise KvasirError(
            Cause.INVALID_ARGUMENTS,
            f"kv_offload_host must hold at least one KV block of {block} bytes, got {question.kv_offload_host}",
            f"raise kv_offload_host to at least {block}, or leave it out",
        )
    return question.kv_offload_host // block


def _kv_budget(question: MemoryQuestion, left: int, one_sequence: int, per_token: int) -> int:
    if question.kv_cache_memory is not None:
        return question.kv_cache_memory
    if question.device != "cpu":
        return left
    block = question.block_size * per_token
    all_sequences = question.max_num_seqs * math.ceil(question.max_model_len / question.block_size) * block + block
    bound = all_sequences if question.limited else min(all_sequences, max(UNLIMITED_CPU_KV_BYTES, one_sequence))
    return min(left, bound)


def _weights_do_not_fit(
    question: MemoryQuestion, weights: int, adapters: int, tables: int, activations: int, usable: int
) -> KvasirError:
    needed = weights + adapters + tables + activations + PROCESS_BYTES
    loras = f"{question.num_adapters} adapters ({format_bytes(adapters)}), " if adapters else ""
    return KvasirError(
        Cause.OUT_OF_MEMORY_WEIGHTS,
        f"weights ({format_bytes(weights)}), {loras}activations ({format_bytes(activations)}), tables of "
        f"{question.max_num_seqs} sequences ({format_bytes(tables)}) and the process "
        f"({format_bytes(PROCESS_BYTES)}) need {format_bytes(needed)}, the memory limit is "
        f"{format_bytes(question.limit)} x {question.utilization:g} = {format_bytes(usable)}",
        f"raise the memory limit to at least {format_bytes(math.ceil(needed / question.utilization))}, "
        "or choose a smaller model, quantization, max_num_batched_tokens or max_num_seqs",
        needed=needed,
        limit=question.limit,
        weights=weights,
    )


def _kv_does_not_fit(question: MemoryQuestion, budget: int, needed: int, longest: int) -> KvasirError:
    ways = [f"raise kv_cache_memory to at least {format_bytes(needed)} ({needed} bytes)"]
    if question.kv_cache_memory is None:
        more = math.ceil((needed - budget) / question.utilization) + question.limit
        ways = [f"raise the memory limit to at least {format_bytes(more)} ({more} bytes)"]
    if longest > 0:
        ways.append(f"lower max_model_len to at most {longest}")
    if question.kv_offload_host and question.device == "cpu":
        ways.append(f"lower kv_offload_host by {format_bytes(needed - budget)}")
    return KvasirError(
        Cause.OUT_OF_MEMORY_KV_CACHE,
        f"one sequence of max_model_len {question.max_model_len} needs {format_bytes(needed)} of KV cache, "
        f"{format_bytes(max(0, budget))} are there",
        " or ".join(ways),
        needed=needed,
        available=max(0, budget),
    )


def _positive(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        msg = f"config.json: {key} must be an integer of at least 1, got {value!r}"
        raise ValueError(msg)
    return value
