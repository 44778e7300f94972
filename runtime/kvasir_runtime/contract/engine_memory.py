"""What an engine with given settings will ask the memory formula: for the planner and for `inspect`."""

from kvasir_runtime.contract.engine_args import EngineArgs
from kvasir_runtime.contract.memory import DTYPE_BYTES, MemoryQuestion, ModelShape, resident_adapters, resolve_dtype


def memory_question(args: EngineArgs, shape: ModelShape, limit: int, device: str = "cpu") -> MemoryQuestion:
    """The question of an engine on a device of `limit` bytes (on CPU: with that memory limit).

    Raises ValueError for a type that the formula does not know.
    """
    dtype = resolve_dtype(args.dtype, shape.dtype, device)
    if dtype not in DTYPE_BYTES:
        msg = f"dtype must be one of {', '.join(DTYPE_BYTES)}, got {dtype!r}"
        raise ValueError(msg)
    return MemoryQuestion(
        shape=shape,
        dtype=dtype,
        quantization="none" if args.quantization == "auto" else args.quantization,
        kv_dtype=dtype if args.kv_cache_dtype == "auto" else args.kv_cache_dtype,
        block_size=args.block_size,
        max_model_len=args.max_model_len or shape.max_position,
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        limit=limit,
        utilization=args.gpu_memory_utilization,
        kv_cache_memory=args.kv_cache_memory,
        tensor_parallel=args.tensor_parallel_size,
        device=device,
        num_adapters=resident_adapters(
            enabled=args.enable_lora, max_loras=args.max_loras, max_cpu_loras=args.max_cpu_loras, device=device
        ),
        max_lora_rank=args.max_lora_rank,
        kv_offload_host=args.kv_offload_host,
    )
