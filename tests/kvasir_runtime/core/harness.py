"""A scheduler with a pretended model (the next token is a hash of all tokens before it), and pretended KV memory."""

from array import array
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from kvasir_runtime.config import SchedulerConfig
from kvasir_runtime.core.block_hash import hash_root
from kvasir_runtime.core.kv_cache_manager import KVCacheManager
from kvasir_runtime.core.kv_tiers import KVTiers
from kvasir_runtime.core.scheduler import Scheduler, service_order
from kvasir_runtime.core.scheduler_output import SchedulerOutput
from kvasir_runtime.engine.messages import EngineRequest
from kvasir_runtime.request import Request, make_requests
from kvasir_runtime.sampling_params import SamplingParams

VOCABULARY = 1000


def next_token(token_ids: "array[int]") -> int:
    return int.from_bytes(blake2b(token_ids.tobytes(), digest_size=4).digest(), "little") % VOCABULARY


def expected_output(prompt: list[int], count: int) -> list[int]:
    """What the pretended model says after `prompt`."""
    tokens = array("i", prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return list(tokens[len(prompt) :])


def content(request: Request, length: int) -> bytes:
    """What the KV of the last of `length` tokens depends on."""
    return request.origin.cache_salt.encode() + b"|" + request.token_ids[:length].tobytes()


@dataclass
class Harness:
    """Drives a scheduler and models the KV memory: each slot remembers the prefix that was written to it.

    `host` does so for the blocks in host memory.
    """

    scheduler: Scheduler
    max_model_len: int
    written: dict[int, bytes] = field(default_factory=dict)
    host: dict[int, list[bytes | None]] = field(default_factory=dict)
    finished: dict[tuple[str, int], Request] = field(default_factory=dict)
    added: int = 0
    now: float = 0.0

    def add(
        self,
        name: str,
        prompt: list[int],
        max_tokens: int = 4,
        *,
        n: int = 1,
        priority: int = 0,
        arrival: float = 0.0,
        background: bool = False,
        salt: str = "",
    ) -> list[Request]:
        self.added += 1
        sampling = SamplingParams(max_tokens=max_tokens, n=n, ignore_eos=True)
        message = EngineRequest(
            name, prompt, sampling, arrival, priority=priority, background=background, cache_salt=salt
        )
        group = make_requests(
            message,
            sort_key=service_order(self.scheduler.config, arrival, priority, self.added, background=background),
            seed=0,
            max_model_len=self.max_model_len,
            eos_token_ids=frozenset(),
            hash_root=hash_root("model", cache_salt=salt),
        )
        self.scheduler.add(group)
        return group

    def step(self) -> tuple[SchedulerOutput, list[Request]]:
        """One step as the runner would do it, checking every slot that is read or written."""
        self.now += 1.0
        output = self.scheduler.schedule(self.now)
        self._carry_out(output.saves, output.loads)
        sampled = []
        for row, seat in enumerate(output.seats):
            request = self.scheduler.seated[seat]
            assert request is not None
            self._compute(request, output.num_computed_tokens[row], output.num_new_tokens[row])
            if output.samples[row]:
                sampled.append(next_token(request.token_ids))
        advanced = self.scheduler.update(output, sampled)
        for request in advanced:
            if request.finish_reason is not None:
                self.finished[request.request_id, request.index] = request
        return output, advanced

    def run(self, limit: int = 10_000) -> int:
        """Steps until nothing is left to do; returns how many."""
        for count in range(limit):
            if not self.scheduler.has_work():
                return count
            self.step()
        raise AssertionError("the scheduler does not come to an end")

    def output_of(self, name: str, index: int = 0) -> list[int]:
        request = self.finished[name, index]
        return list(request.token_ids[request.num_prompt_tokens :])

    def copy(self) -> None:
        """Carry out what the tiers ordered without a step."""
        assert self.scheduler.kv.tiers is not None
        self._carry_out(*self.scheduler.kv.tiers.take_orders())

    def _carry_out(self, saves: list[tuple[int, int]], loads: list[tuple[int, int]]) -> None:
        tiers, size = self.scheduler.kv.tiers, self.scheduler.kv.block_size
        for block, slot in saves:
            self.host[slot] = [self.written.get(block * size + offset) for offset in range(size)]
        for slot, block in loads:
            for offset, prefix in enumerate(self.host[slot]):
                assert prefix is not None, "what was never written is loaded"
                self.written[block * size + offset] = prefix
        assert len({block for _, block in loads}) == len(loads), "a block is loaded twice"
        assert len({slot for _, slot in saves}) == len(saves), "a slot is saved to twice"
        if tiers is not None:
            tiers.copied()

    def _compute(self, request: Request, start: int, count: int) -> None:
        window = self.scheduler.kv.window
        for position in range(0 if window is None else max(0, start + 1 - window), start + count):
            slot = self._slot(request, position)
            prefix = content(request, position + 1)
            if position >= start:
                block = slot // self.scheduler.kv.block_size
                assert self.scheduler.kv.pool.ref_counts[block] == 1, "a shared block is written"
                assert self.scheduler.kv.pool.hash_of(block) is None, "a findable block is written"
                self.written[slot] = prefix
            assert self.written[slot] == prefix, f"position {position} reads what another sequence wrote"

    def _slot(self, request: Request, position: int) -> int:
        size = self.scheduler.kv.block_size
        return request.block_ids[position // size] * size + position % size


def make_harness(
    num_blocks: int = 64,
    block_size: int = 4,
    max_model_len: int = 64,
    eviction: str = "lru",
    window: int | None = None,
    tiers: KVTiers | None = None,
    **config: Any,
) -> Harness:
    settings = {"max_num_seqs": 8, "max_num_batched_tokens": 16} | config
    step_tokens = settings["max_num_batched_tokens"]
    kv = KVCacheManager(num_blocks, block_size, eviction, window=window, step_tokens=step_tokens, tiers=tiers)  # type: ignore[arg-type]
    return Harness(Scheduler(SchedulerConfig(**settings), kv), max_model_len)
