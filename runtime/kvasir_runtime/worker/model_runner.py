"""Runs the model on what the scheduler chose and samples the next tokens."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from kvasir_runtime.contract.memory import SAMPLED_AT_ONCE
from kvasir_runtime.core.scheduler_output import SchedulerOutput, Seating
from kvasir_runtime.engine.messages import TokenLogprobs
from kvasir_runtime.lora.runtime import LoraRuntime
from kvasir_runtime.models.decoder import DecoderModel
from kvasir_runtime.worker.host_pool import HostPool
from kvasir_runtime.worker.input_batch import InputBatch, StepInputs
from kvasir_runtime.worker.kv_cache import KVCache
from kvasir_runtime.worker.logprobs import token_logprobs
from kvasir_runtime.worker.sampler import Draw, Sampler


@dataclass(frozen=True, slots=True)
class StepResult:
    """Results of the rows that sample, in their order; `prompt_logprobs` by seat.

    `failed` are those of them whose grammar could not go on, with the reason: their tokens mean nothing.
    """

    token_ids: list[int]
    logprobs: list[TokenLogprobs | None] | None = None
    prompt_logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)


class ModelRunner:
    """Owns the model, the KV cache and the tables of the seats."""

    def __init__(
        self,
        model: DecoderModel,
        kv_cache: KVCache,
        *,
        num_seats: int,
        max_model_len: int,
        block_size: int,
        lora: LoraRuntime | None = None,
        draw: Draw | None = None,
        host_pool: HostPool | None = None,
    ) -> None:
        """`host_pool`: where evicted blocks go, if anywhere."""
        self.lora = lora
        self.host_pool = host_pool
        self._model: DecoderModel | None = model
        self.kv_cache = kv_cache
        self.batch = InputBatch(num_seats, max_model_len, block_size)
        self.sampler = Sampler(num_seats, model.config.vocab_size, self.batch.token_ids, draw)
        self._prompts: dict[int, Seating] = {}  # seats whose prompt's log-probabilities are wanted

    @property
    def model(self) -> DecoderModel:
        assert self._model is not None, "the weights were given back"
        return self._model

    @property
    def has_model(self) -> bool:
        return self._model is not None

    def replace_model(self, model: DecoderModel | None) -> None:
        """Take other weights, or none. Only while nothing runs."""
        self._model = model

    @torch.inference_mode()
    def execute(self, output: SchedulerOutput) -> StepResult:
        """One step. Blocks until the tokens are known."""
        if self.host_pool is not None:
            self.host_pool.copy(output.saves, output.loads)
        self.batch.apply(output)
        for seating in output.seatings:
            self._seat(seating)
        inputs = self.batch.prepare(output).to(self.model.embedding_VD.device)
        if self.lora is not None:
            for slot, digest in output.activations:
                self.lora.activate(slot, digest)
            self.lora.prepare(inputs.adapter_slots_T)
        hidden_TD = self.model(inputs.input_ids_T, self.kv_cache.layers, inputs.attention)
        prompt_logprobs = self._prompt_logprobs(output, hidden_TD) if self._prompts else {}
        if len(inputs.sample_seats_R) == 0:
            return StepResult([], None, prompt_logprobs)
        return self._sample(hidden_TD, inputs, prompt_logprobs)

    def _seat(self, seating: Seating) -> None:
        self.sampler.seat(seating)
        self._prompts.pop(seating.seat, None)
        if seating.sampling.prompt_logprobs is not None and len(seating.token_ids) == seating.num_prompt_tokens:
            self._prompts[seating.seat] = seating

    def _sample(
        self, hidden_TD: Tensor, inputs: StepInputs, prompt_logprobs: dict[int, list[TokenLogprobs]]
    ) -> StepResult:
        logits_RV = self.model.logits(hidden_TD[inputs.last_rows_R])
        sampled = self.sampler.sample(logits_RV, inputs.sample_seats_R, inputs.sample_positions_R)
        self.batch.record(inputs, sampled.tokens_R)
        return StepResult(sampled.tokens_R.tolist(), sampled.logprobs, prompt_logprobs, sampled.failed)

    def _prompt_logprobs(self, output: SchedulerOutput, hidden_TD: Tensor) -> dict[int, list[TokenLogprobs]]:
        reports: dict[int, list[TokenLogprobs]] = {}
        start = 0
        for seat, count, computed in zip(output.seats, output.num_new_tokens, output.num_computed_tokens, strict=True):
            seating = self._prompts.get(seat)
            if seating is not None:
                end = min(count, seating.num_prompt_tokens - 1 - computed)  # the last prompt token predicts an output
                targets = torch.from_numpy(
                    self.batch.token_ids[seat, computed + 1 : computed + 1 + end].astype("int64")
                )
                wanted = seating.sampling.prompt_logprobs or 0
                reports[seat] = self._score(hidden_TD[start : start + end], targets, wanted) if end > 0 else []
                if computed + count >= seating.num_prompt_tokens:
                    del self._prompts[seat]
            start += count
        return reports

    def _score(self, hidden_PD: Tensor, targets_P: Tensor, count: int) -> list[TokenLogprobs]:
        reports: list[TokenLogprobs] = []
        portion = max(1, SAMPLED_AT_ONCE // self.model.config.vocab_size)
        for rows_D, targets in zip(*(torch.split(x, portion) for x in (hidden_PD, targets_P)), strict=True):
            logprobs_RV = self.model.logits(rows_D).log_softmax(-1).cpu()
            reports += token_logprobs(logprobs_RV, targets, [count] * len(targets))
        return reports
