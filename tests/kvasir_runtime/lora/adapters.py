"""Random PEFT adapters for the tiny checkpoints, and an engine driven with several of them at once."""

import copy
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from kvasir_runtime.config import AdapterConfig, CacheConfig, EngineConfig, SchedulerConfig
from kvasir_runtime.contract.memory import ModelShape
from kvasir_runtime.engine.engine_core import EngineCore
from kvasir_runtime.engine.llm_engine import Completion
from kvasir_runtime.engine.messages import AdapterLoaded, EngineRequest, LoadAdapter, StepOutputs
from kvasir_runtime.lora.checkpoint import AdapterLimits, check_adapter
from kvasir_runtime.lora.targets import projections
from kvasir_runtime.models.config import HFConfig
from kvasir_runtime.sampling_params import SamplingParams

EVERY_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TINY_LLAMA = Path(__file__).parents[2] / "models" / "tiny-llama"
PIRATE, LEGAL = (TINY_LLAMA.with_name(f"tiny-llama-{name}") for name in ("pirate", "legal"))


def make_adapter(model: Any, folder: Path, *, seed: int = 0, strength: float = 0.3, **config: Any) -> Path:
    """Write a random adapter for a transformers model, both of its matrices far from zero."""
    import peft

    settings = {"r": 8, "lora_alpha": 16, "target_modules": EVERY_LINEAR, "task_type": "CAUSAL_LM"} | config
    with quiet_peft():
        wrapped = peft.get_peft_model(model, peft.LoraConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                std = strength / parameter.shape[1] ** 0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    with quiet_peft():
        wrapped.save_pretrained(folder)
        wrapped.unload()
    return folder


def merged(model: Any, folder: Path) -> Any:
    """The model with the adapter's weights added to its own, by peft."""
    import peft

    with quiet_peft():
        return peft.PeftModel.from_pretrained(copy.deepcopy(model), folder).merge_and_unload().eval()


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Transformers warns of the names under which peft asks it things."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def limits_of(model: Path, max_rank: int = 256) -> AdapterLimits:
    shape = ModelShape.from_hf_config(HFConfig.load(model).values)
    return AdapterLimits(max_rank, projections(shape))


def digest_of(model: Path, folder: Path) -> str:
    return check_adapter(folder, limits_of(model)).digest


class AdapterEngine:
    """An `EngineCore` with adapters by name; requests name theirs, or None."""

    def __init__(
        self,
        model: Path,
        *,
        max_loras: int = 4,
        max_cpu_loras: int | None = None,
        max_rank: int = 256,
        budget: int = 256,
        **config: Any,
    ) -> None:
        settings: dict[str, Any] = {
            "dtype": "float32",
            "num_threads": 1,
            "max_model_len": 128,
            "cache": CacheConfig(memory=8 << 20),
            "scheduler": SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=budget),
        }
        adapters = AdapterConfig(max_loras, max_cpu_loras, max_rank)
        self.core = EngineCore(EngineConfig(model, **(settings | config), adapters=adapters))
        self.model = model
        self.digests: dict[str | None, str] = {None: ""}
        self.answers: dict[str, AdapterLoaded] = {}
        self.completions: dict[str, Completion] = {}
        self.errors: dict[str, str] = {}
        self._count = 0

    def load(self, name: str, folder: Path, *, pinned: bool = False, wait: bool = True) -> str:
        digest = digest_of(self.model, folder)
        answer = self.core.load_adapter(LoadAdapter(digest, str(folder), pinned))
        if answer is not None:
            self.answers[digest] = answer
        while wait and digest not in self.answers:
            self.step() if self.core.has_work() else self.poll()  # what runs may have to end before there is room
        self.digests[name] = digest
        return digest

    def poll(self) -> None:
        assert self.core._adapters is not None
        self.core._adapters.wait(1.0)
        self._hear()

    def _hear(self) -> None:
        for message in self.core.poll():
            if isinstance(message, AdapterLoaded):
                self.answers[message.digest] = message
            if isinstance(message, StepOutputs):
                self._take(message)

    def add(self, name: str | None, prompt: Sequence[int], sampling: SamplingParams, **options: Any) -> str:
        self._count += 1
        request_id = str(self._count)
        digest = self.digests[name]
        self.core.add_request(
            EngineRequest(
                request_id,
                list(prompt),
                sampling,
                time.monotonic(),
                adapter=name or "",
                adapter_digest=digest,
                **options,
            )
        )
        self.completions[request_id] = Completion()
        return request_id

    def step(self) -> None:
        self.poll() if self.core.is_waiting() else self._hear()
        self._take(self.core.step())

    def run(self, limit: int = 20_000) -> None:
        for _ in range(limit):
            if not self.core.has_work():
                return
            self.step()
        raise AssertionError("the engine does not come to an end")

    def generate(
        self, requests: Sequence[tuple[str | None, Sequence[int]]], sampling: SamplingParams
    ) -> list[Completion]:
        """The completions of all requests, which run together."""
        ids = [self.add(name, prompt, sampling) for name, prompt in requests]
        self.run()
        return [self.completions[request_id] for request_id in ids]

    def residencies(self) -> Mapping[str, str]:
        """Where each adapter is, by name."""
        states = dict(self.core._scheduler.adapters.states())
        return {name: states.get(digest, "gone") for name, digest in self.digests.items() if name is not None}

    def _take(self, step: StepOutputs) -> None:
        for output in step.outputs:
            self.completions[output.request_id].extend(output)
            if output.error:
                self.errors[output.request_id] = output.error
