"""Log-probabilities of chosen tokens, as they are reported to clients. Shape suffixes: R rows, V vocabulary."""

from torch import Tensor

from kvasir_runtime.engine.messages import TokenLogprobs


def token_logprobs(logprobs_RV: Tensor, tokens_R: Tensor, counts: list[int]) -> list[TokenLogprobs]:
    """Log-probability and rank of each row's token, and the row's `counts` likeliest alternatives."""
    chosen_R1 = logprobs_RV.gather(1, tokens_R[:, None])
    ranks = (logprobs_RV > chosen_R1).sum(-1).tolist()
    values_RK, ids_RK = logprobs_RV.topk(max(counts, default=0), dim=-1)
    rows = zip(
        tokens_R.tolist(), chosen_R1[:, 0].tolist(), ranks, values_RK.tolist(), ids_RK.tolist(), counts, strict=True
    )
    return [
        TokenLogprobs(token, logprob, rank, list(zip(ids[:count], values[:count], strict=True)))
        for token, logprob, rank, values, ids, count in rows
    ]
