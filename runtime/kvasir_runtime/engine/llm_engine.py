"""The engine in one process, for tests, benchmarks and scripts: prompts in, tokens out."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from kvasir_runtime.config import EngineConfig
from kvasir_runtime.engine.engine_core import EngineCore
from kvasir_runtime.engine.messages import EngineOutput, EngineRequest, FinishReason, TokenLogprobs
from kvasir_runtime.sampling_params import SamplingParams


@dataclass
class Completion:
    """One continuation of one prompt."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0

    def extend(self, output: EngineOutput) -> None:
        self.token_ids += output.new_token_ids
        self.logprobs += output.logprobs or []
        self.prompt_logprobs = output.prompt_logprobs or self.prompt_logprobs
        self.finish_reason = output.finish_reason
        if output.cached_tokens is not None:
            self.cached_tokens = output.cached_tokens


class LLMEngine:
    """Drives an `EngineCore` until all its requests are done."""

    def __init__(self, config: EngineConfig) -> None:
        self.core = EngineCore(config)
        self._num_requests = 0

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingParams | Sequence[SamplingParams]
    ) -> list[list[Completion]]:
        """The `n` completions of each prompt, in order. One `sampling` is used for all prompts, or one for each."""
        params = [sampling] * len(prompts) if isinstance(sampling, SamplingParams) else sampling
        completions: dict[str, list[Completion]] = {}
        for prompt, each in zip(prompts, params, strict=True):
            self._num_requests += 1
            request_id = str(self._num_requests)
            self.core.add_request(EngineRequest(request_id, list(prompt), each, time.monotonic()))
            completions[request_id] = [Completion() for _ in range(each.n)]
        while self.core.has_work():
            if self.core.is_waiting():
                self.core.wait(0.005)
            for output in self.core.step().outputs:
                completions[output.request_id][output.index].extend(output)
        return list(completions.values())
