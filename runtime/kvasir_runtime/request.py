"""One sequence while the engine works on it: its tokens, its KV blocks and how far it has come. Torch-free."""

from array import array
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING

from kvasir_runtime.core.prefix_heat import Origin
from kvasir_runtime.engine.messages import EngineRequest, FinishReason, TokenLogprobs
from kvasir_runtime.sampling_params import SamplingParams

if TYPE_CHECKING:
    from kvasir_runtime.structured.grammar import Grammar


class Status(Enum):
    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


@dataclass(eq=False, slots=True)
class Request:
    """One of the `n` continuations of a prompt.

    Everything the scheduler does follows from two numbers: `num_tokens` (prompt and output so far) and
    `num_computed_tokens` (those whose KV is in `block_ids`). A step moves the second towards the first; when they
    meet, the next token is sampled. A new request, a prefix hit, a chunk of a long prompt and a preempted request
    differ in these numbers alone.
    """

    request_id: str
    index: int
    sampling: SamplingParams
    token_ids: "array[int]"
    num_prompt_tokens: int
    max_output_tokens: int
    stop_token_ids: frozenset[int]
    sort_key: tuple[float, int]
    """Position in the order of service: least first. Never changes, so that a preempted request keeps its place."""
    priority: int = 0
    background: bool = False
    """Computed only while no user's request wants the engine."""
    origin: Origin = field(default_factory=Origin)
    seed: int = 0
    status: Status = Status.WAITING
    seat: int = -1
    times_passed: int = 0
    """Later requests that were seated while this one waited for its adapter."""
    num_computed_tokens: int = 0
    num_cached_tokens: int | None = None
    """Prompt tokens taken from the prefix cache when it first ran; None before."""
    tier_tokens: dict[str, int] = field(default_factory=dict)
    """Those of the cached tokens that came from `host` memory and from `disk`."""
    awaited_blocks: list[bytes] = field(default_factory=list)
    read_deadline: float | None = None
    """Until when it waits for `awaited_blocks` to be read from files; None: nothing was looked for yet."""
    block_ids: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)
    hash_root: bytes | None = None
    """First link of the chain of block hashes; None when this request's blocks are not to be shared."""
    num_registered_blocks: int = 0
    num_released_blocks: int = 0
    """Blocks at the beginning that every layer's window has passed: null blocks stand for them."""
    num_sent_blocks: int = 0
    followers: list["Request"] = field(default_factory=list)
    """Continuations 1..n-1 of the same prompt: queued once this one's prompt is computed, to share its blocks."""
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    grammar: "Grammar | None" = None
    """Compiled from the sampling's constraint before the request is queued."""

    @property
    def adapter_digest(self) -> str:
        """Its adapter's content; "" for the base model."""
        return self.origin.adapter_digest

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_pending_tokens(self) -> int:
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    def append(self, token_id: int) -> None:
        """Add a sampled token and decide whether it was the last: sets `finish_reason` and `stop_token_id`."""
        self.token_ids.append(token_id)
        produced = self.num_output_tokens
        # Under a grammar the sampler has held stop tokens back, unless the text is complete and nothing else can come.
        may_stop = produced >= self.sampling.min_tokens or self.grammar is not None
        if token_id in self.stop_token_ids and may_stop:
            self.finish_reason, self.stop_token_id = FinishReason.STOP, token_id
        elif produced >= self.max_output_tokens:
            self.finish_reason = FinishReason.LENGTH


def make_requests(
    message: EngineRequest,
    *,
    sort_key: tuple[float, int],
    seed: int,
    max_model_len: int,
    eos_token_ids: frozenset[int],
    hash_root: bytes | None,
) -> list[Request]:
    """The `n` sequences that `message` asks for. `seed` is used where the message brings none.

    Raises ValueError when no token could be produced within `max_model_len`.
    """
    sampling, prompt_len = message.sampling, len(message.prompt_token_ids)
    if prompt_len == 0:
        msg = "the prompt must hold at least 1 token, got 0"
        raise ValueError(msg)
    if prompt_len >= max_model_len:
        msg = f"the prompt must be shorter than max_model_len ({max_model_len} tokens), got {prompt_len} tokens"
        raise ValueError(msg)
    room = max_model_len - prompt_len
    base_seed = seed if sampling.seed is None else sampling.seed
    endless = sampling.ignore_eos and sampling.constraint is None
    stop_ids = frozenset(sampling.stop_token_ids) | (frozenset() if endless else eos_token_ids)
    return [
        Request(
            request_id=message.request_id,
            index=index,
            sampling=sampling,
            token_ids=array("i", message.prompt_token_ids),
            num_prompt_tokens=prompt_len,
            max_output_tokens=min(room, sampling.max_tokens or room),
            stop_token_ids=stop_ids,
            sort_key=sort_key,
            priority=message.priority,
            background=message.background,
            origin=Origin(message.adapter, message.adapter_digest, message.cache_salt),
            # Any odd constant keeps the continuations' random streams apart; this is 2^64 / golden ratio.
            seed=(base_seed + index * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF,
            hash_root=hash_root,
        )
        for index in range(sampling.n)
    ]
