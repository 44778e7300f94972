"""The engine with a real model: outputs, refusals, aborts, what a start takes and how it fails."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kvasir_runtime.config import CacheConfig, EngineConfig, SchedulerConfig
from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.engine.engine_core import EngineCore
from kvasir_runtime.engine.llm_engine import LLMEngine
from kvasir_runtime.engine.messages import EngineRequest, FinishReason, StartupProgress
from kvasir_runtime.sampling_params import SamplingParams
from kvasir_runtime.worker.host import cpu_count, memory_limit

TINY_LLAMA = Path(__file__).parents[2] / "models" / "tiny-llama"


def config(model: Path = TINY_LLAMA, **changes: Any) -> EngineConfig:
    settings: dict[str, Any] = {
        "dtype": "float32",
        "num_threads": 1,
        "max_model_len": 256,
        "cache": CacheConfig(memory=8 << 20),
        "scheduler": SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=64),
    }
    return EngineConfig(model, **(settings | changes))


@pytest.fixture(scope="module")
def engine() -> LLMEngine:
    return LLMEngine(config())


@pytest.fixture
def copy_model(tmp_path: Path) -> Callable[..., Path]:
    """A copy of the committed model whose config.json has other values."""

    def copy(**values: Any) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(TINY_LLAMA, folder)
        settings = json.loads((folder / "config.json").read_text()) | values
        (folder / "config.json").write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))
        return folder

    return copy


def request(name: str, prompt: list[int], **sampling: Any) -> EngineRequest:
    return EngineRequest(name, prompt, SamplingParams(**sampling), time.monotonic())


def test_greedy_tokens_are_those_of_transformers(engine: LLMEngine) -> None:
    """The committed model, float32, 64 tokens, several prompts at once."""
    from transformers import LlamaForCausalLM

    torch.set_num_threads(1)
    model = LlamaForCausalLM.from_pretrained(TINY_LLAMA, dtype=torch.float32)
    prompts = [[1, 50, 60, 70], [1, *range(100, 140)], [1, 9, 9, 9, 9, 9]]
    completions = engine.generate(prompts, SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True))
    for prompt, (completion,) in zip(prompts, completions, strict=True):
        expected = model.generate(
            torch.tensor([prompt]), max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        assert completion.token_ids == expected[0, len(prompt) :].tolist()


def test_seeded_requests_repeat_whatever_runs_beside_them(engine: LLMEngine) -> None:
    """The same seed gives the same tokens alone and in a crowd; its continuations differ from each other."""
    sampling = SamplingParams(seed=7, n=3, max_tokens=20, ignore_eos=True)
    prompt = [1, 30, 40, 50]
    alone = [one.token_ids for one in engine.generate([prompt], sampling)[0]]
    others = [SamplingParams(max_tokens=20, top_p=0.8)] * 4
    crowd = engine.generate([[1, 5], [1, 6, 7], prompt, [1, 8], [1, 9]], [*others[:2], sampling, *others[2:]])
    assert [one.token_ids for one in crowd[2]] == alone
    assert len({tuple(tokens) for tokens in alone}) == 3


def test_preempted_requests_draw_the_same_tokens(engine: LLMEngine) -> None:
    """Random choices, penalties and min_tokens go on after a preemption as if there had been none."""
    small = LLMEngine(config(cache=CacheConfig(memory=18 * 16 * engine.core.ready.kv_bytes_per_token)))
    settings = [
        SamplingParams(
            seed=seed,
            max_tokens=70,
            min_tokens=50,
            frequency_penalty=0.5,
            repetition_penalty=1.2,
            top_p=0.95,
            logprobs=1,
        )
        for seed in range(5)
    ]
    batch = [[1, *range(100 * number, 100 * number + 30)] for number in range(1, 6)]
    expected, got = (one.generate(batch, settings) for one in (engine, small))
    assert small.core.stats().preemptions > 0
    assert [one.token_ids for (one,) in got] == [one.token_ids for (one,) in expected]


def test_stop_tokens_and_limits(engine: LLMEngine) -> None:
    """A stop token ends with `stop` and is told; otherwise `length`, at max_tokens or at max_model_len."""
    core, prompt = engine.core, [1, 50, 60, 70]
    greedy = engine.generate([prompt], SamplingParams(temperature=0.0, max_tokens=9, ignore_eos=True))[0][0].token_ids
    stop = greedy[4]
    core.add_request(request("stop", prompt, temperature=0.0, stop_token_ids=(stop,), ignore_eos=True))
    outputs = []
    while core.has_work():
        outputs += core.step().outputs
    assert [token for output in outputs for token in output.new_token_ids] == greedy[: greedy.index(stop) + 1]
    assert (outputs[-1].finish_reason, outputs[-1].stop_token_id) == (FinishReason.STOP, stop)
    long = engine.generate([[3] * 250], SamplingParams(temperature=0.0, ignore_eos=True))[0][0]
    assert (len(long.token_ids), long.finish_reason) == (6, FinishReason.LENGTH)


def test_the_end_of_a_text_is_the_models_or_nobodys(engine: LLMEngine) -> None:
    """The model's own end token ends with `stop`, not before `min_tokens`, and not at all with `ignore_eos`."""
    eos = min(engine.core._eos_token_ids)
    often: dict[str, Any] = {"temperature": 0.0, "logit_bias": {eos: 100.0}, "max_tokens": 6}
    settings = [SamplingParams(**often, **more) for more in ({}, {"min_tokens": 3}, {"ignore_eos": True})]
    ended, later, ignored = (one for (one,) in engine.generate([[1, 50, 60]] * 3, settings))
    assert (ended.token_ids, ended.finish_reason) == ([eos], FinishReason.STOP)
    assert not engine.core._eos_token_ids & set(later.token_ids[:3])
    assert (len(later.token_ids), later.finish_reason) == (4, FinishReason.STOP)
    assert (ignored.token_ids, ignored.finish_reason) == ([eos] * 6, FinishReason.LENGTH)


def test_the_first_output_tells_what_was_cached(engine: LLMEngine) -> None:
    """A repeated prompt is taken from the cache but for its last block; another salt shares nothing."""
    prompt = list(range(200, 250))
    first, second = (engine.generate([prompt], SamplingParams(max_tokens=2))[0][0].cached_tokens for _ in range(2))
    assert (first, second) == (0, 48)
    core = engine.core
    core.add_request(EngineRequest("salted", prompt, SamplingParams(max_tokens=1), 0.0, cache_salt="tenant"))
    assert core.step().outputs[0].cached_tokens == 0


def test_without_a_prefix_cache_only_continuations_share() -> None:
    """`n` still shares the prompt's blocks; another request finds nothing."""
    engine = LLMEngine(config(cache=CacheConfig(memory=8 << 20, prefix_caching=False)))
    prompt = list(range(200, 250))
    completions = engine.generate([prompt], SamplingParams(max_tokens=2, n=3))[0]
    assert [one.cached_tokens for one in completions] == [0, 48, 48]
    assert engine.generate([prompt], SamplingParams(max_tokens=2))[0][0].cached_tokens == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_token_ids": []}, "the prompt must hold at least 1 token, got 0"),
        ({"prompt_token_ids": [1] * 256}, r"shorter than max_model_len \(256 tokens\), got 256"),
        ({"prompt_token_ids": [1, 999_999]}, r"between 0 and \d+, got 999999"),
        ({"prompt_token_ids": [-1]}, r"between 0 and \d+, got -1"),
        ({"sampling": SamplingParams(logit_bias={999_999: 1.0})}, r"logit_bias must be between 0 and \d+, got 999999"),
        ({"sampling": SamplingParams(stop_token_ids=(999_999,))}, r"stop_token_ids must be between 0 and \d+, got"),
    ],
)
def test_what_can_never_run_is_refused(engine: LLMEngine, changes: dict[str, Any], message: str) -> None:
    """The error names the field, the bound and the value; nothing is queued."""
    fields: dict[str, Any] = {
        "request_id": "bad",
        "prompt_token_ids": [1],
        "sampling": SamplingParams(),
        "arrival_time": 0.0,
    } | changes
    with pytest.raises(ValueError, match=message):
        engine.core.add_request(EngineRequest(**fields))
    assert not engine.core.has_work()


def test_abort_and_duplicate_ids(engine: LLMEngine) -> None:
    """Aborting frees all at once, at any time; an id can be used again then but not before."""
    core = engine.core
    core.add_request(request("one", [1] * 100, max_tokens=50, ignore_eos=True))
    with pytest.raises(ValueError, match="request_id 'one' is in use"):
        core.add_request(request("one", [1]))
    core.step()
    core.abort_requests(["one", "unknown"])
    assert not core.has_work()
    assert core.stats().blocks_active == 0
    core.add_request(request("one", [1], max_tokens=1))
    assert core.step().outputs[0].request_id == "one"
    core.check_integrity()


def test_an_idle_engine_checks_its_books(engine: LLMEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once after work, not while there is some, not oftener than every ten seconds, and what is wrong comes out."""
    core, checks = engine.core, []
    check = core.check_integrity

    def counted() -> None:
        checks.append(1)
        check()

    monkeypatch.setattr(core, "check_integrity", counted)
    start = time.monotonic() + 100.0
    engine.generate([[5] * 20], SamplingParams(max_tokens=2))
    core.check_when_idle(start)
    core.check_when_idle(start + 20.0)
    assert len(checks) == 1
    core.add_request(request("busy", [5] * 20, max_tokens=2))
    core.step()
    core.check_when_idle(start + 40.0)
    assert len(checks) == 1
    while core.has_work():
        core.step()
    core.check_when_idle(start + 5.0)
    assert len(checks) == 1
    core._scheduler.kv.pool.ref_counts[3] += 1
    with pytest.raises(AssertionError, match="block 3 has 1 references, 0 tables name it"):
        core.check_when_idle(start + 60.0)
    core._scheduler.kv.pool.ref_counts[3] -= 1


def test_stats_count(engine: LLMEngine) -> None:
    """Queue, blocks and counters before, during and after a request whose prompt nothing else shares."""
    core = engine.core
    before = core.stats()
    core.add_request(request("r", list(range(900, 1000)), max_tokens=3, ignore_eos=True))
    assert (core.stats().waiting, core.stats().queued_tokens) == (1, 100)
    step = core.step()
    assert step.scheduled_at.keys() == {"r"}
    assert (step.stats.running, step.stats.blocks_active) == (1, 4)  # 64 tokens of the budget
    while core.has_work():
        step = core.step()
    assert step.stats.prompt_tokens - before.prompt_tokens == 100
    assert step.stats.generation_tokens - before.generation_tokens == 3
    assert step.stats.prefix_query_tokens - before.prefix_query_tokens == 100


@pytest.mark.parametrize(("dtype", "quantization"), [("float32", "none"), ("bfloat16", "none"), ("bfloat16", "int8")])
def test_the_plan_is_what_is_taken(dtype: str, quantization: str) -> None:
    """Weights and KV cache by the formula are within 2 % of the tensors' own sizes."""
    core = EngineCore(config(dtype=dtype, quantization=quantization))
    runner, ready = core._runner, core.ready
    assert runner.kv_cache.nbytes == ready.num_blocks * ready.block_size * ready.kv_bytes_per_token
    assert runner.kv_cache.nbytes == pytest.approx(8 << 20, rel=0.02)
    assert runner.model.nbytes == pytest.approx(ready.weights_bytes, rel=0.02)


def test_progress_is_told() -> None:
    """Each phase starts at 0 and ends at 1, in order; the weights grow in between."""
    seen: list[StartupProgress] = []
    core = EngineCore(config(), seen.append)
    phases = list(dict.fromkeys(entry.phase for entry in seen))
    assert phases == ["configuration", "weights", "kv_cache", "kernels"] == list(core.ready.startup_seconds)
    weights = [entry.progress for entry in seen if entry.phase == "weights"]
    assert weights == sorted(weights)
    assert (weights[0], weights[-1]) == (0.0, 1.0)
    assert len(weights) > 10


def failure(settings: EngineConfig) -> KvasirError:
    with pytest.raises(KvasirError) as raised:
        EngineCore(settings)
    return raised.value


def test_no_model(tmp_path: Path) -> None:
    """A missing folder, a folder without config and one without weights are told apart."""
    assert failure(config(tmp_path / "none")).report.cause is Cause.MODEL_NOT_FOUND
    assert "holds no config.json" in str(failure(config(tmp_path)))
    shutil.copy(TINY_LLAMA / "config.json", tmp_path)
    error = failure(config(tmp_path))
    assert error.report.cause is Cause.MODEL_NOT_FOUND
    assert "model.safetensors" in str(error)


@pytest.mark.parametrize(
    ("values", "cause", "message"),
    [
        ({"architectures": ["MambaForCausalLM"]}, Cause.MODEL_UNSUPPORTED, "MambaForCausalLM is not supported"),
        ({"rope_parameters": {"rope_type": "yarn"}}, Cause.MODEL_UNSUPPORTED, "type 'yarn' is not supported"),
        ({"hidden_act": "relu"}, Cause.MODEL_UNSUPPORTED, "hidden_act = 'relu' is not supported by LlamaForCausalLM"),
        ({"quantization_config": {"quant_method": "awq"}}, Cause.MODEL_UNSUPPORTED, "quantization_config"),
        ({"hidden_size": None}, Cause.MODEL_INVALID, "hidden_size is missing"),
        ({"hidden_size": "big"}, Cause.MODEL_INVALID, "hidden_size must be int, got 'big'"),
        ({"num_key_value_heads": 3}, Cause.MODEL_INVALID, "must be a multiple of num_key_value_heads"),
        ({"intermediate_size": 512}, Cause.WEIGHTS_CORRUPT, "must have shape"),
        ({"num_hidden_layers": 5}, Cause.WEIGHTS_CORRUPT, "is missing"),
        ({"num_hidden_layers": 3}, Cause.MODEL_UNSUPPORTED, "have no place in this architecture"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_model_that_cannot_be_served(
    copy_model: Callable[..., Path], values: Any, cause: Cause, message: str
) -> None:
    """Architecture, option or tensor is named."""
    error = failure(config(copy_model(**values)))
    assert error.report.cause is cause
    assert message in str(error)


def test_corrupt_files(copy_model: Callable[..., Path]) -> None:
    """A truncated file and a config that is no JSON."""
    folder = copy_model()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    assert failure(config(folder)).report.cause is Cause.WEIGHTS_CORRUPT
    (folder / "config.json").write_text("{")
    assert failure(config(folder)).report.cause is Cause.MODEL_INVALID


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    """A folder with only a pytorch_model.bin is refused."""
    shutil.copy(TINY_LLAMA / "config.json", tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    error = failure(config(tmp_path))
    assert "pickled weights" in error.report.remedy


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_model_len": 100_000}, "max_model_len must be at most 2048"),
        ({"quantization": "fp8"}, "quantization must be one of auto, none, int8"),
        ({"tensor_parallel_size": 2}, "tensor_parallel_size must be one of 1"),
        ({"cache": CacheConfig(dtype="fp8")}, "kv_cache_dtype must be auto"),
    ],
)
def test_settings_that_cannot_be_met(changes: dict[str, Any], message: str) -> None:
    """The setting, its bound and the value are named."""
    error = failure(config(**changes))
    assert error.report.cause is Cause.INVALID_ARGUMENTS
    assert message in str(error)


def test_too_little_kv_memory_says_how_much_would_do() -> None:
    """The number in the report is exactly enough."""
    error = failure(config(cache=CacheConfig(memory=100_000)))
    assert error.report.cause is Cause.OUT_OF_MEMORY_KV_CACHE
    needed = error.report.detail["needed"]
    assert EngineCore(config(cache=CacheConfig(memory=needed))).ready.num_blocks == 256 // 16 + 1


def test_sharded_checkpoints(tmp_path: Path) -> None:
    """Weights in several files with an index give the same tokens; a missing file and a bad index are named."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(TINY_LLAMA, dtype=torch.float32)
    model.save_pretrained(tmp_path, max_shard_size="4MB")
    files = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(files) > 1
    sampling = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    whole, sharded = (LLMEngine(config(folder)).generate([[1, 2, 3]], sampling) for folder in (TINY_LLAMA, tmp_path))
    assert sharded[0][0].token_ids == whole[0][0].token_ids
    files[0].unlink()
    assert files[0].name in str(failure(config(tmp_path)))


def test_memory_and_cpus_of_the_cgroup(tmp_path: Path) -> None:
    """The smallest limit counts; `max` and the kernel's huge number mean none."""
    assert not memory_limit(tmp_path, total=1000).limited
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_limit(tmp_path, total=1000).limit == 1000
    (tmp_path / "memory.max").write_text("600\n")
    assert (memory_limit(tmp_path, total=1000).limit, memory_limit(tmp_path, total=1000).limited) == (600, True)
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert memory_limit(tmp_path, total=1000).limit == 600
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert cpu_count(tmp_path) == 1
