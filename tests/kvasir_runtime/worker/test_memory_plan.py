"""What the plan says against what the engine really takes: weights, tables and a step's peak, family by family."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from kvasir_runtime.config import CacheConfig, EngineConfig, SchedulerConfig
from kvasir_runtime.contract.memory import MemoryPlan, kv_bytes_per_token, plan_memory
from kvasir_runtime.engine.llm_engine import LLMEngine
from kvasir_runtime.sampling_params import SamplingParams
from kvasir_runtime.worker.loader import memory_question, resolve
from kvasir_runtime.worker.model_runner import ModelRunner
from tests.kvasir_runtime.models.families import FAMILIES, make_checkpoint, prompts

TINY_LLAMA = Path(__file__).parents[2] / "models" / "tiny-llama"
SEATS, LENGTH, BUDGET = 16, 128, 64


def config(folder: Path, dtype: str, quantization: str = "none", **changes: Any) -> EngineConfig:
    settings: dict[str, Any] = {
        "dtype": dtype,
        "quantization": quantization,
        "num_threads": 1,
        "max_model_len": LENGTH,
        "cache": CacheConfig(memory=4 << 20),
        "scheduler": SchedulerConfig(max_num_seqs=SEATS, max_num_batched_tokens=BUDGET),
    }
    return EngineConfig(folder, **(settings | changes))


def planned(settings: EngineConfig) -> MemoryPlan:
    return plan_memory(memory_question(settings, resolve(settings)))


def tables_taken(runner: ModelRunner) -> int:
    """Rotary tables, and what is kept for each seat."""
    rotary = {layer.attention.cos_sin_LC.data_ptr(): layer.attention.cos_sin_LC.nbytes for layer in runner.model.layers}
    return sum(rotary.values()) + runner.batch.token_ids.nbytes + runner.batch.block_tables.nbytes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_planned_and_real_blocks_agree(family: str, dtype: str, tmp_path: Path) -> None:
    """Weights and tables as they are leave as many blocks as planned, within 2 %: as planner and engine count alike."""
    make_checkpoint(family, tmp_path)
    settings = config(tmp_path, dtype)
    runner = LLMEngine(settings).core._runner
    plan = planned(settings)
    block = plan.block_size * plan.kv_bytes_per_token
    budget = 4 << 20
    taken_beyond_plan = runner.model.nbytes - plan.weights_bytes + max(0, tables_taken(runner) - plan.table_bytes)
    assert runner.kv_cache.nbytes == plan.num_blocks * block
    assert (budget - taken_beyond_plan) // block == pytest.approx(plan.num_blocks, rel=0.02)
    assert runner.model.nbytes == pytest.approx(plan.weights_bytes, rel=0.02)


def test_int8_weights_are_what_is_planned() -> None:
    """The committed model: scales, sums and the second table of a tied output projection included."""
    settings = config(TINY_LLAMA, "bfloat16", "int8")
    core = LLMEngine(settings).core
    assert core.ready.weights_bytes == core._runner.model.nbytes
    assert core.ready.weights_bytes == pytest.approx(planned(settings).weights_bytes, rel=0.02)


class _Allocations(TorchDispatchMode):
    """Bytes of the tensors that operations made and that still live, and the most there were at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                known = self._live.get(storage._cdata)
                if known is None or known[0].expired():
                    self._live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._live = {key: entry for key, entry in self._live.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return out


@contextmanager
def watched(runner: ModelRunner, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The peak of each step that runs inside."""
    peaks: list[int] = []
    execute = ModelRunner.execute

    def watch(self: ModelRunner, output: Any) -> Any:
        with _Allocations() as allocations:
            result = execute(self, output)
        peaks.append(allocations.peak)
        return result

    with monkeypatch.context() as patched:
        patched.setattr(type(runner), "execute", watch)
        yield peaks


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_steps_peak_is_within_the_plan(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full prefills, then full batches that ask for everything at once: no more than planned, and not far less."""
    many = 64
    settings = replace(
        config(TINY_LLAMA, dtype, max_model_len=160),
        scheduler=SchedulerConfig(max_num_seqs=many, max_num_batched_tokens=512),
        cache=CacheConfig(memory=64 << 20),
    )
    engine = LLMEngine(settings)
    plan, shape = planned(settings), resolve(settings).shape
    assert kv_bytes_per_token(shape, dtype) == plan.kv_bytes_per_token
    sampling = SamplingParams(
        max_tokens=6, ignore_eos=True, temperature=1.5, top_p=0.99, min_p=1e-6, logprobs=5, repetition_penalty=1.2,
        presence_penalty=0.5, frequency_penalty=0.5, min_tokens=6, logit_bias=dict.fromkeys(range(1000), 1.0),
    )  # fmt: skip
    with watched(engine.core._runner, monkeypatch) as peaks:
        engine.generate(prompts([100] * many, vocab=shape.vocab_size), sampling)
    assert len(peaks) > 10
    assert max(peaks) <= plan.activation_bytes + plan.table_bytes
    assert max(peaks) > 0.2 * plan.activation_bytes
