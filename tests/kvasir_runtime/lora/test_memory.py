"""What adapters take is what was planned, and what is unloaded goes back to the system."""

import os
from pathlib import Path

import pytest
import torch

from kvasir_runtime.contract.memory import adapter_bytes, plan_memory
from kvasir_runtime.worker.loader import memory_question, resolve
from tests.kvasir_runtime.lora.adapters import TINY_LLAMA, AdapterEngine, make_adapter

RANK = 256


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_planned_and_real(tmp_path: Path) -> None:
    """Adapters of the largest rank fill their places (one more than asked for) to within 2 %, and leave nothing."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(TINY_LLAMA, dtype=torch.float32)
    folders = [make_adapter(model, tmp_path / str(seed), seed=seed, r=RANK) for seed in range(4)]
    engine = AdapterEngine(TINY_LLAMA, max_loras=2, max_cpu_loras=3, max_rank=RANK)
    lora = engine.core._runner.lora
    assert lora is not None
    before = resident_bytes()
    for number, folder in enumerate(folders):
        engine.load(str(number), folder)
    config = engine.core._config
    plan = plan_memory(memory_question(config, resolve(config)))
    assert lora.nbytes == pytest.approx(plan.adapter_bytes, rel=0.02)
    assert plan.adapter_bytes == 4 * adapter_bytes(resolve(config).shape, "float32", RANK)
    assert resident_bytes() - before > 0.9 * plan.adapter_bytes
    for number in range(4):
        engine.core.unload_adapter(engine.digests[str(number)])
    engine.poll()
    assert lora.nbytes == 0
    assert resident_bytes() - before < 0.2 * plan.adapter_bytes
