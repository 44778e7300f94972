"""The tiers of the KV cache with a real model: the same tokens, from every tier, over restarts, faults and sleep."""

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvasir_runtime.config import CacheConfig, DiskConfig, EngineConfig, SchedulerConfig
from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.contract.memory import plan_memory
from kvasir_runtime.engine import kv_tiers
from kvasir_runtime.engine.llm_engine import Completion, LLMEngine
from kvasir_runtime.engine.messages import (
    CacheReset,
    CacheSaved,
    EngineRequest,
    ResetCache,
    SaveCache,
    SetSleep,
    SleepDone,
    TierStats,
)
from kvasir_runtime.sampling_params import SamplingParams
from kvasir_runtime.worker.loader import memory_question, resolve
from tests.kvasir_runtime.models.families import make_checkpoint

TINY_LLAMA = Path(__file__).parents[2] / "models" / "tiny-llama"
GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
PROMPTS = [[number, *range(200, 330)] for number in range(6)]
SMALL, LARGE = 3 << 19, 16 << 20
"""Bytes of a KV cache that holds two of the prompts, and of one that holds all."""


def make_engine(
    folder: Path | None = None, *, memory: int = SMALL, host: int = LARGE, model: Path = TINY_LLAMA, **changes: Any
) -> LLMEngine:
    tier = None if folder is None else DiskConfig(folder, 64 << 20)
    cache = CacheConfig(memory=memory, host_memory=host, disk=tier)
    config = EngineConfig(
        model,
        "float32",
        num_threads=1,
        max_model_len=256,
        cache=replace(cache, **changes),
        scheduler=SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=512),
    )
    return LLMEngine(config)


def ask(engine: LLMEngine, prompts: list[list[int]] = PROMPTS) -> list[Completion]:
    """One after the other; the books are right afterwards."""
    completions = [engine.generate([prompt], GREEDY)[0][0] for prompt in prompts]
    engine.core.check_integrity()
    return completions


def tokens(completions: list[Completion]) -> list[list[int]]:
    return [completion.token_ids for completion in completions]


def tiers(engine: LLMEngine) -> TierStats:
    return engine.core.stats().tiers


def save(engine: LLMEngine) -> CacheSaved:
    saved = engine.core.call(SaveCache(1, 30.0))
    assert isinstance(saved, CacheSaved)
    return saved


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.kv"))


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    """What is computed without any cache."""
    return tokens(ask(make_engine(memory=LARGE, host=0)))


def test_evicted_prefixes_come_back_from_host_memory(expected: list[list[int]]) -> None:
    """With the same tokens; counted apart, and told with the request that they were for."""
    engine = make_engine()
    for turn in range(2):
        completions = ask(engine)
        assert tokens(completions) == expected
        assert [one.cached_tokens for one in completions] == [0 if turn == 0 else 128] * 6
    stats = engine.core.stats()
    assert (stats.prefix_hit_tokens, stats.tiers.host_hit_tokens, stats.tiers.disk_hit_tokens) == (768, 768, 0)
    assert stats.tiers.host_cached > 40
    engine.core.add_request(EngineRequest("again", PROMPTS[0], GREEDY, time.monotonic()))
    assert engine.core.step().outputs[0].tier_tokens == {"host": 128}
    engine.core.abort_requests(["again"])


def test_without_tiers_nothing_is_kept(expected: list[list[int]]) -> None:
    """Off by default: no memory, no orders, no hits."""
    engine = make_engine(host=0)
    ask(engine)
    completions = ask(engine)
    assert (tokens(completions), [one.cached_tokens for one in completions]) == (expected, [0] * 6)
    assert tiers(engine) == TierStats()
    assert engine.core._runner.host_pool is None


def test_a_restarted_engine_finds_what_the_last_one_saved(tmp_path: Path, expected: list[list[int]]) -> None:
    """In its files, all of it; nothing is saved twice."""
    first = make_engine(tmp_path)
    assert tokens(ask(first)) == expected
    assert save(first).complete
    assert len(files(tmp_path)) == tiers(first).disk_cached == 6 * 8
    assert save(first).written == 0
    second = make_engine(tmp_path)
    assert tiers(second).disk_cached == 48
    completions = ask(second)
    assert tokens(completions) == expected
    assert [one.cached_tokens for one in completions] == [128] * 6
    assert tiers(second).disk_hit_tokens == 768
    assert tiers(second).written == 0


def test_damaged_and_foreign_files_are_computed_anew(tmp_path: Path, expected: list[list[int]]) -> None:
    """Each is counted, no token is another, and the damaged file is replaced."""
    first = make_engine(tmp_path)
    ask(first)
    save(first)
    for number, path in enumerate(files(tmp_path)):
        content = bytearray(path.read_bytes())
        content[-1 if number % 2 else 2] ^= 0xFF
        path.write_bytes(content)
    second = make_engine(tmp_path)
    completions = ask(second)
    assert (tokens(completions), [one.cached_tokens for one in completions]) == (expected, [0] * 6)
    assert tiers(second).corrupt_files == 48, "the whole prompt is read at once"
    save(second)
    assert [one.cached_tokens for one in ask(make_engine(tmp_path))] == [128] * 6


def test_other_settings_find_nothing_and_leave_the_files(tmp_path: Path) -> None:
    """Another type, and a model whose config.json says something else, are told apart; so is a block size."""
    first = make_engine(tmp_path)
    ask(first)
    save(first)
    folder = tmp_path / "model"
    shutil.copytree(TINY_LLAMA, folder)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"rms_norm_eps": 1', '"rms_norm_eps": 2'))
    assert config != (folder / "config.json").read_text()
    for engine in (make_engine(tmp_path, model=folder), make_engine(tmp_path, block_size=32)):
        assert [one.cached_tokens for one in ask(engine, PROMPTS[:1])] == [0]
        assert (tiers(engine).foreign_files, tiers(engine).disk_state) == (48, "on")
    assert len(files(tmp_path)) == 48


def test_an_idle_engine_writes_what_it_has_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without eviction or signal: whoever is killed later has saved it."""
    monkeypatch.setattr(kv_tiers, "IDLE_BEFORE_SAVING_S", 0.0)
    engine = make_engine(tmp_path, memory=LARGE)
    ask(engine, PROMPTS[:2])
    assert tiers(engine).written == 0
    for _ in range(1000):
        engine.core.poll()
        engine.core.wait(1.0)
        if not engine.core.is_waiting():
            break
    assert tiers(engine).written == len(files(tmp_path)) == 16
    assert tiers(engine).host_cached == 0, "host memory was only passed through"
    assert not engine.core.is_waiting()


def test_a_full_disk_turns_off_writing_alone(
    tmp_path: Path, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Serving goes on, from memory."""
    engine = make_engine(tmp_path)
    ask(engine, PROMPTS[:3])
    save(engine)
    count = len(files(tmp_path))

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    assert tokens(ask(engine)) == expected
    save(engine)
    assert tiers(engine).disk_state == "full"
    monkeypatch.undo()
    assert tokens(ask(engine)) == expected
    assert len(files(tmp_path)) == count
    assert not engine.core.is_waiting()


def test_salted_prompts_stay_in_memory(tmp_path: Path) -> None:
    """Their hits come from the host, never from files, unless that is allowed."""
    for allowed in (False, True):
        engine = make_engine(disk=DiskConfig(tmp_path, 64 << 20, salted=allowed))
        for number, prompt in enumerate([*PROMPTS[:4], PROMPTS[0]]):
            request = EngineRequest(str(number), prompt, GREEDY, time.monotonic(), cache_salt="tenant")
            engine.core.add_request(request)
            while engine.core.has_work():
                engine.core.step()
        assert tiers(engine).host_hit_tokens == 128
        save(engine)
        assert len(files(tmp_path)) == (32 if allowed else 0)


def test_sleep_keeps_prefixes_in_host_memory_or_in_files(tmp_path: Path, expected: list[list[int]]) -> None:
    """Level 1: in memory; level 2, which gives that back too: in files. Awake, they are hit."""
    engine = make_engine(tmp_path, memory=LARGE)
    for level, tier in ((1, "host"), (2, "disk")):
        ask(engine)
        done = engine.core.call(SetSleep(1, level))
        assert isinstance(done, SleepDone)
        assert (done.level, done.error) == (level, "")
        pool = engine.core._runner.host_pool
        assert pool is not None
        assert bool(pool.nbytes) is (level == 1)
        engine.core.call(SetSleep(2, 0))
        before = getattr(tiers(engine), f"{tier}_hit_tokens")
        assert tokens(ask(engine)) == expected
        assert getattr(tiers(engine), f"{tier}_hit_tokens") - before == 768


def test_a_reset_forgets_every_tier(tmp_path: Path) -> None:
    """Memory always, files where that is asked for; then nothing is hit."""
    engine = make_engine(tmp_path)
    ask(engine)
    save(engine)
    for remove, cached in ((False, 128), (True, 0)):
        reset = engine.core.call(ResetCache(1, files=remove))
        assert isinstance(reset, CacheReset)
        assert reset.blocks.get("disk", 0) == (48 if remove else 0)
        assert tiers(engine).host_cached == 0
        assert [one.cached_tokens for one in ask(engine, PROMPTS[:1])] == [cached]


def test_several_prompts_wait_for_their_files_beside_others(tmp_path: Path, expected: list[list[int]]) -> None:
    """All at once, with new ones between: everybody gets the right tokens."""
    first = make_engine(tmp_path)
    ask(first)
    save(first)
    engine = make_engine(tmp_path)
    fresh = [[7 * number, *range(900, 960)] for number in range(1, 4)]
    mixed = [*PROMPTS[:3], *fresh, *PROMPTS[3:]]
    completions = [group[0] for group in engine.generate(mixed, GREEDY)]
    assert tokens(completions[:3] + completions[6:]) == expected
    assert tokens(completions[3:6]) == tokens(ask(make_engine(host=0, memory=LARGE), fresh))
    assert [one.cached_tokens for one in completions[:3]] == [128] * 3
    engine.core.check_integrity()


@pytest.mark.slow
def test_windows_are_loaded_as_far_as_they_are_seen(tmp_path: Path) -> None:
    """A model whose every layer has a window: blocks before it are not needed from any tier."""
    make_checkpoint("mistral", tmp_path)
    prompts = [[number + 3, *[5 + number] * 60, *range(20, 60)] for number in range(4)]
    plain = make_engine(model=tmp_path, memory=LARGE, host=0)
    small = 20 * 16 * plain.core.ready.kv_bytes_per_token
    engine = make_engine(model=tmp_path, memory=small)
    expected = tokens(ask(plain, prompts))
    assert tokens(ask(engine, prompts)) == expected
    assert tokens(ask(engine, prompts)) == expected
    assert tiers(engine).host_hit_tokens > 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"disk": DiskConfig(Path("/proc/none"), 1 << 30)}, "kv_offload_disk: /proc/none cannot be used"),
        ({"disk": DiskConfig(Path("unused"), 1000)}, "kv_offload_disk must have room for at least one KV block"),
        ({"host_memory": 1000}, "kv_offload_host must hold at least one KV block"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], words: str
) -> None:
    """With the setting, the bound and the value."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KvasirError, match=words) as caught:
        make_engine(**change)
    assert caught.value.report.cause is Cause.INVALID_ARGUMENTS


def test_host_memory_is_as_planned() -> None:
    """Slots of whole blocks, counted out of the same limit."""
    engine = make_engine(host=LARGE + 1000)
    config = engine.core._config
    question = memory_question(config, resolve(config))
    plan = plan_memory(question)
    pool = engine.core._runner.host_pool
    assert pool is not None
    assert pool.nbytes == plan.host_kv_bytes == LARGE
    assert engine.core.ready.host_blocks == plan.num_host_blocks
    by_limit = replace(question, kv_cache_memory=None, limit=2 << 30, limited=True, max_num_seqs=4096)
    without = plan_memory(replace(by_limit, kv_offload_host=0))
    assert without.kv_bytes - plan_memory(by_limit).kv_bytes == LARGE
