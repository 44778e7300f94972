"""Log-probabilities in the two shapes that OpenAI's endpoints give them."""

from collections.abc import Sequence
from typing import Any

from kvasir_runtime.engine.messages import TokenLogprobs
from kvasir_runtime.server.replies import ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob
from kvasir_runtime.tokenizer import Tokenizer


def completion_logprobs(
    tokenizer: Tokenizer, entries: Sequence[TokenLogprobs | None], top: int, offset: int = 0
) -> CompletionLogprobs:
    """The legacy shape: parallel lists. None entries (a prompt's first token) have no probability."""
    reply = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
    for entry in entries:
        token = "" if entry is None else token_text(tokenizer, entry.token_id)
        reply.tokens.append(token)
        reply.token_logprobs.append(None if entry is None else entry.logprob)
        reply.top_logprobs.append(None if entry is None else _top_map(tokenizer, entry, top))
        reply.text_offset.append(offset)
        offset += len(token)
    return reply


def chat_logprobs(tokenizer: Tokenizer, entries: Sequence[TokenLogprobs], top: int) -> ChatLogprobs:
    """The newer shape: one object a token, with its bytes."""
    content = [
        TokenLogprob(
            **_scored(tokenizer, entry.token_id, entry.logprob),
            top_logprobs=[TopLogprob(**_scored(tokenizer, *alternative)) for alternative in entry.top[:top]],
        )
        for entry in entries
    ]
    return ChatLogprobs(content=content, refusal=None)


def prompt_logprobs(
    tokenizer: Tokenizer, entries: Sequence[TokenLogprobs | None] | None
) -> list[dict[str, Any] | None] | None:
    """For each prompt token but the first, as vLLM shows it: a map from token id to logprob, rank and text."""
    if entries is None:
        return None
    return [None if entry is None else _ranked_map(tokenizer, entry) for entry in entries]


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """A token on its own; parts of characters show as U+FFFD."""
    return tokenizer.token_bytes(token_id).decode(errors="replace")


def _top_map(tokenizer: Tokenizer, entry: TokenLogprobs, top: int) -> dict[str, float]:
    alternatives = {token_text(tokenizer, token_id): logprob for token_id, logprob in entry.top[:top]}
    return alternatives | {token_text(tokenizer, entry.token_id): entry.logprob} if top else alternatives


def _scored(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    data = tokenizer.token_bytes(token_id)
    return {"token": data.decode(errors="replace"), "logprob": logprob, "bytes": list(data)}


def _ranked_map(tokenizer: Tokenizer, entry: TokenLogprobs) -> dict[str, Any]:
    ranked = {
        str(token_id): {"logprob": logprob, "rank": rank, "decoded_token": token_text(tokenizer, token_id)}
        for rank, (token_id, logprob) in enumerate(entry.top, start=1)
    }
    chosen = {"logprob": entry.logprob, "rank": entry.rank + 1, "decoded_token": token_text(tokenizer, entry.token_id)}
    return ranked | {str(entry.token_id): chosen}
