"""Adapters come, change and go at random while requests run: every answer is that of one version, and none fails."""

import copy
import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvasir_runtime.config import CacheConfig
from kvasir_runtime.sampling_params import SamplingParams
from tests.kvasir_runtime.lora.adapters import AdapterEngine, make_adapter, merged
from tests.kvasir_runtime.models.families import make_checkpoint, prompts, reference_greedy

NUM_VERSIONS = 6
NAMES = ("a", "b", "c", "d", "e")
LENGTH = 10

# Few prompts with common beginnings: blocks of another version would be found if their hashes did not tell.
COMMON = prompts([40], seed=7)[0]
PROMPTS = [COMMON, [*COMMON[:36], 5, 6], COMMON[:20], prompts([5], seed=8)[0]]


@functools.cache
def world() -> tuple[Path, list[Path], dict[tuple[int | None, int], list[int]]]:
    """The model, its adapters, and what each version (None: the base) says to each prompt."""
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="kvasir-swaps-"))
    model = make_checkpoint("llama", folder / "model")
    adapters = [
        make_adapter(model, folder / f"v{number}", seed=number, strength=0.6, r=rank)
        for number, rank in enumerate((1, 4, 16, 17, 8, 8))
    ]
    models: dict[int | None, Any] = {None: copy.deepcopy(model)}
    models |= {number: merged(model, adapter) for number, adapter in enumerate(adapters)}
    answers = {
        (version, prompt): reference_greedy(models[version], PROMPTS[prompt], LENGTH)
        for version in models
        for prompt in range(len(PROMPTS))
    }
    assert len({tuple(answers[version, 0]) for version in models}) == len(models), "versions must differ"
    return folder / "model", adapters, answers


class Swaps(RuleBasedStateMachine):
    """`serving` is what a front end knows: the version that each name leads to now."""

    @initialize(
        max_loras=st.integers(1, 3),
        spare=st.integers(0, 2),
        budget=st.sampled_from([16, 256]),
        num_blocks=st.sampled_from([14, 60]),
    )
    def start(self, max_loras: int, spare: int, budget: int, num_blocks: int) -> None:
        self.model, self.adapters, self.answers = world()
        self.engine = AdapterEngine(
            self.model,
            max_loras=max_loras,
            max_cpu_loras=max_loras + spare,
            budget=budget,
            cache=CacheConfig(memory=num_blocks * 16 * 2 * 3 * 2 * 16 * 4),
        )
        self.serving: dict[str, int] = {}
        self.expected: dict[str, list[int]] = {}

    @rule(name=st.sampled_from(NAMES), version=st.integers(0, NUM_VERSIONS - 1))
    def load(self, name: str, version: int) -> None:
        """Load or replace: the name flips once the new version is there, then the old one may go."""
        old = self.engine.digests.get(name, "")
        self.engine.load(name, self.adapters[version])
        assert self.engine.answers[self.engine.digests[name]].report == ""
        self.serving[name] = version
        self.let_go(old)

    @precondition(lambda self: self.serving)
    @rule(data=st.data())
    def unload(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.serving)))
        del self.serving[name]
        self.let_go(self.engine.digests.pop(name))

    @rule(data=st.data(), prompt=st.integers(0, len(PROMPTS) - 1), count=st.integers(1, 3))
    def ask(self, data: st.DataObject, prompt: int, count: int) -> None:
        name = data.draw(st.sampled_from([None, *sorted(self.serving)]))
        sampling = SamplingParams(temperature=0.0, max_tokens=LENGTH, ignore_eos=True, n=1)
        for _ in range(count):
            request = self.engine.add(name, PROMPTS[prompt], sampling)
            self.expected[request] = self.answers[None if name is None else self.serving[name], prompt]

    @rule(count=st.integers(1, 12))
    def step(self, count: int) -> None:
        for _ in range(count):
            if self.engine.core.has_work():
                self.engine.step()

    @invariant()
    def books_are_right(self) -> None:
        if hasattr(self, "engine"):
            self.engine.core.check_integrity()
            for request, completion in self.engine.completions.items():
                assert completion.token_ids == self.expected[request][: len(completion.token_ids)]

    def let_go(self, digest: str) -> None:
        if digest and digest not in self.engine.digests.values():
            self.engine.core.unload_adapter(digest)

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        self.engine.run()
        assert not self.engine.errors
        for request, tokens in self.expected.items():
            assert self.engine.completions[request].token_ids == tokens
        for name in sorted(self.serving):
            del self.serving[name]
            self.let_go(self.engine.digests.pop(name))
        self.engine.poll()
        lora = self.engine.core._runner.lora
        assert lora is not None
        assert (lora.nbytes, list(self.engine.core._scheduler.adapters.states())) == (0, [])


TestSwaps = Swaps.TestCase
TestSwaps.settings = settings(
    max_examples=12, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
