"""The engine with a real model: what is computed in the background, which prefixes are hot, what sleep frees."""

import shutil
import time
from pathlib import Path

import pytest

from kvasir_runtime.config import CacheConfig, EngineConfig, SchedulerConfig
from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.engine.llm_engine import LLMEngine
from kvasir_runtime.engine.messages import EngineRequest, ListPrefixes, PrefixesListed, SetSleep, SleepDone
from kvasir_runtime.sampling_params import SamplingParams

TINY_LLAMA = Path(__file__).parents[2] / "models" / "tiny-llama"
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
PROMPT = list(range(200, 296))
KV_MEMORY = 8 << 20


def make_engine(model: Path = TINY_LLAMA) -> LLMEngine:
    cache = CacheConfig(memory=KV_MEMORY)
    scheduler = SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=512)
    return LLMEngine(EngineConfig(model, "float32", num_threads=1, max_model_len=256, cache=cache, scheduler=scheduler))


@pytest.fixture(scope="module")
def engine() -> LLMEngine:
    return make_engine()


def warm_up(engine: LLMEngine, prompt: list[int], pin_s: float = 60.0) -> None:
    sampling = SamplingParams(temperature=0.0, max_tokens=1)
    engine.core.add_request(EngineRequest("warmup", prompt, sampling, time.monotonic(), background=True, pin_s=pin_s))
    while engine.core.has_work():
        engine.core.step()


def set_sleep(engine: LLMEngine, level: int) -> SleepDone:
    done = engine.core.call(SetSleep(7, level))
    assert isinstance(done, SleepDone)
    assert (done.call_id, done.error) == (7, "")
    return done


def list_prefixes(engine: LLMEngine, count: int = 8, max_tokens: int = 1000, *, salted: bool = False) -> PrefixesListed:
    listed = engine.core.call(ListPrefixes(3, count, max_tokens, salted))
    assert isinstance(listed, PrefixesListed)
    return listed


def test_what_was_warmed_up_is_found_and_computes_the_same() -> None:
    """A warmed prompt comes from the cache, with the tokens that it has without; it counts as nobody's request."""
    expected = make_engine().generate([PROMPT], GREEDY)[0][0].token_ids
    engine = make_engine()
    warm_up(engine, PROMPT)
    stats = engine.core.stats()
    assert (stats.blocks_pinned, stats.warmup_tokens) == (6, 96)
    assert (stats.prompt_tokens, stats.generation_tokens, stats.prefix_query_tokens, stats.cache_value) == (0, 0, 0, 0)
    (completion,) = engine.generate([PROMPT], GREEDY)[0]
    assert (completion.token_ids, completion.cached_tokens) == (expected, 80)
    engine.core.check_integrity()


def test_pins_are_within_half_of_the_cache_and_last_for_their_time(engine: LLMEngine) -> None:
    """Every distinct prompt is pinned until half of the blocks are; a pin of no length pins nothing."""
    total = engine.core.stats().blocks_total
    for number in range(total // 15 + 2):
        warm_up(engine, [1000 + number] * 250)
    assert engine.core.stats().blocks_pinned == total // 2
    engine.core.check_integrity()
    other = make_engine()
    warm_up(other, PROMPT, pin_s=0.0)
    assert other.core.stats().blocks_pinned == 0
    assert other.generate([PROMPT], GREEDY)[0][0].cached_tokens == 80


def test_hot_prefixes_are_what_prompts_had_in_common() -> None:
    """Three questions under one system prompt: that prompt, with its hits, and nothing that carried a salt."""
    engine = make_engine()
    for question in range(3):
        engine.generate([[*PROMPT[:40], *[900 + question] * 20]], GREEDY)
        salted = EngineRequest(f"s{question}", [5] * 40, SamplingParams(max_tokens=1), 0.0, cache_salt="tenant")
        engine.core.add_request(salted)
        engine.core.step()
    (prefix,) = list_prefixes(engine).prefixes
    assert prefix.token_ids == PROMPT[:32]
    assert prefix.hits == pytest.approx(2.0, abs=0.1)
    assert prefix.cached_tokens == 32
    assert len(list_prefixes(engine, salted=True).prefixes) == 2
    assert list_prefixes(engine, max_tokens=31).prefixes == []


def test_without_a_prefix_cache_there_are_no_prefixes() -> None:
    """Nothing is remembered that nothing could use."""
    cache = CacheConfig(memory=KV_MEMORY, prefix_caching=False)
    engine = LLMEngine(EngineConfig(TINY_LLAMA, "float32", num_threads=1, max_model_len=256, cache=cache))
    for _ in range(3):
        engine.generate([PROMPT], GREEDY)
    assert list_prefixes(engine).prefixes == []


@pytest.mark.parametrize("level", [1, 2])
def test_sleep_frees_memory_and_waking_computes_the_same(level: int) -> None:
    """The KV cache's memory goes, and the weights' at level 2; awake the same tokens come out, from an empty cache."""
    engine = make_engine()
    prompts = [[number, *PROMPT, *PROMPT] for number in range(12)]
    expected = [each[0].token_ids for each in engine.generate(prompts, GREEDY)]
    asleep = set_sleep(engine, level)
    assert asleep.level == level
    assert asleep.freed_bytes > KV_MEMORY * 0.8, "all blocks have been used"
    with pytest.raises(ValueError, match="the engine sleeps"):
        engine.generate([PROMPT], GREEDY)
    awake = set_sleep(engine, 0)
    assert awake.level == 0
    assert [each[0].token_ids for each in engine.generate(prompts, GREEDY)] == expected
    engine.core.check_integrity()


def test_sleep_waits_for_nothing_itself(engine: LLMEngine) -> None:
    """With work under way it is refused; the front end sees to it that there is none."""
    engine.core.add_request(EngineRequest("busy", PROMPT, GREEDY, time.monotonic()))
    done = engine.core.call(SetSleep(1, 1))
    assert isinstance(done, SleepDone)
    assert (done.level, done.error) == (0, "requests still run")
    engine.core.abort_requests(["busy"])


def test_waking_refuses_other_weights(tmp_path: Path) -> None:
    """A folder whose weights were replaced meanwhile is not served under the old name: the process must start anew."""
    folder = tmp_path / "model"
    shutil.copytree(TINY_LLAMA, folder)
    engine = make_engine(folder)
    set_sleep(engine, 2)
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(KvasirError, match="other weights than when the process started") as caught:
        engine.core.call(SetSleep(2, 0))
    assert caught.value.report.cause is Cause.WEIGHTS_CORRUPT
