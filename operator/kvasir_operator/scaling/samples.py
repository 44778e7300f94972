"""What one replica says of its load at one moment, as scaling reads it."""

from dataclasses import dataclass

from kvasir_runtime.contract.admin_api import AdminState


@dataclass(frozen=True, slots=True)
class Sample:
    """One reading of a replica. `boot` names the process: what an earlier one counted says nothing of this one.

    Tokens, but for `waiting` (requests). `prompt_per_s` counts prompts as clients send them; `hits` and `queries` are
    counters of prompt tokens that were found in the prefix cache, and that were looked up. `prompt_busy` is the share
    of the last seconds in which the engine computed prompts, None where it does not say.
    """

    boot: str
    kv_capacity: int
    kv_active: int
    queued_tokens: int = 0
    waiting: int = 0
    prompt_per_s: float = 0.0
    prompt_busy: float | None = None
    hits: int = 0
    queries: int = 0
    ttft_p95_s: float | None = None
    cold_start_s: float | None = None


def read_sample(state: AdminState, prepared_s: float = 0.0) -> Sample | None:
    """The sample in what an engine says; None where it has no KV cache yet. `prepared_s` is what came before its start.

    The cold start is what the pod needed until its containers could run (image, model) and then its engine.
    """
    kv = state.kv
    if kv is None or kv.blocks_total <= 0:
        return None
    started_s = state.startup.seconds.get("total")
    return Sample(
        boot=state.boot_id,
        kv_capacity=kv.blocks_total * kv.block_size,
        kv_active=kv.blocks_active * kv.block_size,
        queued_tokens=state.tokens.queued,
        waiting=state.waiting,
        prompt_per_s=state.tokens.prefill_per_s,
        prompt_busy=state.tokens.prefill_busy,
        hits=kv.hit_tokens,
        queries=kv.query_tokens,
        ttft_p95_s=state.latency.ttft_p95,
        cold_start_s=prepared_s + started_s if started_s is not None else None,
    )
