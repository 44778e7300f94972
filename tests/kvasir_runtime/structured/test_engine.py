"""Constraints through the real engine and the committed model: what ends by itself matches, whatever else is asked."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvasir_runtime.config import CacheConfig, EngineConfig, SchedulerConfig
from kvasir_runtime.engine.llm_engine import Completion, LLMEngine
from kvasir_runtime.engine.messages import EngineRequest, FinishReason
from kvasir_runtime.sampling_params import SamplingParams
from kvasir_runtime.structured.constraint import Constraint
from kvasir_runtime.structured.grammar import GrammarBackend, mask_bytes
from kvasir_runtime.tokenizer import Tokenizer

TINY_LLAMA = Path(__file__).parents[2] / "models" / "tiny-llama"
EOS = (2, 6, 7)
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def config(model: Path = TINY_LLAMA, **changes: Any) -> EngineConfig:
    settings: dict[str, Any] = {
        "dtype": "float32",
        "num_threads": 1,
        "max_model_len": 512,
        "cache": CacheConfig(memory=8 << 20),
        "scheduler": SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=64),
    }
    return EngineConfig(model, **(settings | changes))


@pytest.fixture(scope="module")
def engine() -> LLMEngine:
    return LLMEngine(config())


@pytest.fixture
def copy_model(tmp_path: Path) -> Callable[..., Path]:
    """A copy of the committed model with other values in generation_config.json."""

    def copy(**values: Any) -> Path:
        shutil.copytree(TINY_LLAMA, tmp_path / "model")
        (tmp_path / "model" / "generation_config.json").write_text(json.dumps(values))
        return tmp_path / "model"

    return copy


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(TINY_LLAMA)


def schema(value: Any, **options: Any) -> Constraint:
    return Constraint("json_schema", json.dumps(value), **options)


def run(
    engine: LLMEngine, constraint: Constraint, prompt: list[int] | None = None, **sampling: Any
) -> list[Completion]:
    settings: dict[str, Any] = {"max_tokens": 200, "constraint": constraint} | sampling
    params = SamplingParams(**settings)
    return engine.generate([prompt or [1, 50, 60, 70]], params)[0]


def text(tokenizer: Tokenizer, completion: Completion) -> str:
    ids = completion.token_ids
    return tokenizer.decode(ids[:-1] if completion.finish_reason is FinishReason.STOP and ids[-1] in EOS else ids)


@pytest.mark.parametrize("seed", range(4))
def test_json_of_a_schema(engine: LLMEngine, tokenizer: Tokenizer, seed: int) -> None:
    """All continuations end by themselves, each an object of its own that the schema allows."""
    done = run(engine, schema(PERSON), n=3, seed=seed, temperature=1.5)
    assert {one.finish_reason for one in done} == {FinishReason.STOP}
    people = [json.loads(text(tokenizer, one)) for one in done]
    assert all(0 <= person["age"] <= 150 and set(person) <= set(PERSON["properties"]) for person in people)
    assert len({one["name"] for one in people}) > 1


@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        (Constraint("regex", r"[a-f]{3}-\d+!"), r"[a-f]{3}-\d+!"),
        (Constraint("choice", '["yes", "no \\"really\\"", "über ✓"]'), 'yes|no "really"|über ✓'),
        (Constraint("grammar", 'start: "x" ("+" "y")* "="'), r"x(\+y)*="),
        (Constraint("grammar", 'root ::= "a" [0-9]+ "."'), r"a[0-9]+\."),
        (schema({}), r"(?s).*"),
    ],
)
def test_other_kinds(engine: LLMEngine, tokenizer: Tokenizer, constraint: Constraint, pattern: str) -> None:
    """Regular expressions, choices and both notations of grammars."""
    for one in run(engine, constraint, n=4, seed=1, temperature=2.0):
        assert one.finish_reason in {FinishReason.STOP, FinishReason.LENGTH}
        if one.finish_reason is FinishReason.STOP:
            assert re.fullmatch(pattern, text(tokenizer, one)), text(tokenizer, one)


def test_bytes_of_a_character(engine: LLMEngine, tokenizer: Tokenizer) -> None:
    """Characters that the vocabulary has no token for are made of their bytes, whole."""
    (one,) = run(engine, Constraint("regex", "(龘🙂){3}"))
    assert text(tokenizer, one) == "龘🙂" * 3
    assert len(one.token_ids) > 6


def test_min_tokens_and_ignore_eos_yield_to_a_complete_text(engine: LLMEngine, tokenizer: Tokenizer) -> None:
    """They hold the end back while the grammar can go on, and no longer."""
    for asked in ({"min_tokens": 30}, {"ignore_eos": True}):
        (short,) = run(engine, Constraint("choice", '["yes"]'), **asked)
        assert (text(tokenizer, short), short.finish_reason) == ("yes", FinishReason.STOP)
    (one,) = run(engine, Constraint("regex", "[ab]*"), min_tokens=30, logit_bias={2: 100.0, 6: 100.0})
    assert len(one.token_ids) == 31
    assert one.finish_reason is FinishReason.STOP
    (one,) = run(engine, Constraint("regex", "[ab]*"), ignore_eos=True, logit_bias={2: 100.0, 6: 100.0}, max_tokens=40)
    assert (len(one.token_ids), one.finish_reason) == (40, FinishReason.LENGTH)


def test_stop_token_ids_and_length_end_it_early(engine: LLMEngine, tokenizer: Tokenizer) -> None:
    """What the client asked to stop at still counts."""
    comma = tokenizer.encode(",", add_special_tokens=False)[-1]
    (one,) = run(engine, Constraint("regex", "(a,)+"), stop_token_ids=(comma,))
    assert one.finish_reason is FinishReason.STOP
    assert text(tokenizer, one) == "a,"
    (one,) = run(engine, schema(PERSON), max_tokens=3)
    assert one.finish_reason is FinishReason.LENGTH


def test_logprobs_are_the_models_own(engine: LLMEngine) -> None:
    """The constraint changes what is chosen, not what the model thought of it."""
    (free,) = engine.generate([[1, 50]], SamplingParams(max_tokens=1, temperature=0.0, logprobs=3))[0]
    (held,) = run(engine, Constraint("choice", '["龘"]'), [1, 50], temperature=0.0, logprobs=3)
    assert held.logprobs[0].top == free.logprobs[0].top
    assert held.logprobs[0].rank > 0
    assert held.logprobs[0].token_id == held.token_ids[0]


def test_a_crowd_a_preemption_and_chunks_change_nothing(tokenizer: Tokenizer) -> None:
    """Seeded outputs are the same alone, in a crowd of others, in chunks and after preemptions by recompute."""
    constraints = [schema(PERSON), Constraint("regex", "[a-z]{20,40}"), None, schema({"type": "array"}), None]
    sampling = [
        SamplingParams(max_tokens=60, seed=seed, constraint=constraint, ignore_eos=constraint is None)
        for seed, constraint in enumerate(constraints)
    ]
    prompts = [[1, *range(60 + 5 * row, 100 + 8 * row)] for row in range(len(sampling))]
    roomy = LLMEngine(config())
    alone = [roomy.generate([prompt], one)[0][0].token_ids for prompt, one in zip(prompts, sampling, strict=True)]
    tight = LLMEngine(
        config(
            cache=CacheConfig(memory=1 << 20, prefix_caching=False),
            scheduler=SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=24),
            max_model_len=144,
        )
    )
    crowd = tight.generate(prompts, sampling)
    assert tight.core.stats().preemptions > 0
    assert [one[0].token_ids for one in crowd] == alone
    tight.core.check_integrity()


@pytest.mark.parametrize(
    ("constraint", "reason"),
    [
        (schema({"type": "foo"}, field="f"), "Invalid type: foo"),
        (schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (schema({"$ref": "http://example.com/x"}), "example.com"),
        (Constraint("json_schema", "[1]"), "must be a JSON schema (an object), got list"),
        (Constraint("json_schema", "false"), "allows nothing"),
        (Constraint("regex", "(a"), "unclosed group"),
        (Constraint("regex", "(?=a)b"), "look-around"),
        (Constraint("grammar", "start: foo"), 'unknown name: "foo"'),
        (Constraint("grammar", 'start: start "a"'), "no text matches"),
        (Constraint("grammar", "?!"), "neither Lark nor GBNF"),
        (Constraint("regex", "a" * 300_000), "at most 131072 bytes long, got 300000"),
    ],
)
def test_refusals(engine: LLMEngine, constraint: Constraint, reason: str) -> None:
    """What cannot be compiled ends the request, and it alone, with a reason and the field."""
    sampling = SamplingParams(constraint=constraint, n=2)
    engine.core.add_request(EngineRequest("bad", [1, 2], sampling, 0.0))
    with pytest.raises(ValueError, match="in use"):
        engine.core.add_request(EngineRequest("bad", [1, 2], sampling, 0.0))
    outputs = []
    while engine.core.has_work():
        outputs += engine.core.step().outputs
    assert [(one.index, one.finish_reason, one.error_field) for one in outputs] == [
        (index, FinishReason.ERROR, constraint.field) for index in range(2)
    ]
    assert reason in outputs[0].error
    engine.core.check_integrity()


def test_depth_ends_nothing(engine: LLMEngine) -> None:
    """Chains of rules as long as the bound allows are compiled or refused; the process lives."""
    rules = "start: r0\n" + "\n".join(f"r{i}: r{i + 1}" for i in range(9000)) + '\nr9000: "a"'
    parens = "start: " + "(" * 60_000 + '"a"' + ")" * 60_000
    refs = {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(3500)} | {"a3500": {"const": 1}}
    (one,) = run(engine, Constraint("grammar", rules))
    assert one.finish_reason is FinishReason.STOP
    (one,) = run(engine, schema({"$ref": "#/$defs/a0", "$defs": refs}))
    assert one.finish_reason is FinishReason.STOP
    (one,) = run(engine, Constraint("grammar", parens))
    assert one.finish_reason is FinishReason.ERROR


def test_a_state_too_complex_to_go_on_from(engine: LLMEngine) -> None:
    """It ends the request with the reason and the field, not the others beside it."""
    deep = '("a"{1000}){1000}'
    (one,) = run(engine, Constraint("grammar", f"start: {deep}"))
    assert one.finish_reason is FinishReason.ERROR
    bad = SamplingParams(constraint=Constraint("grammar", f'start: "x" {deep}', field="f"), max_tokens=20)
    good = SamplingParams(constraint=Constraint("regex", "[ab]{30}"), max_tokens=40)
    engine.core.add_request(EngineRequest("bad", [1, 2], bad, 0.0))
    engine.core.add_request(EngineRequest("good", [1, 2], good, 0.0))
    outputs = []
    while engine.core.has_work():
        outputs += engine.core.step().outputs
    last = {one.request_id: one for one in outputs}
    assert (last["bad"].finish_reason, last["bad"].error_field) == (FinishReason.ERROR, "f")
    assert "too complex to go on from" in last["bad"].error
    assert last["good"].finish_reason is FinishReason.STOP
    engine.core.check_integrity()


def test_a_thousand_optional_properties(engine: LLMEngine, tokenizer: Tokenizer) -> None:
    """Wide schemas are followed."""
    wide = {"properties": {f"p{number}": {"type": "boolean"} for number in range(1000)}, "additionalProperties": False}
    (one,) = run(engine, schema({"type": "object", **wide}), max_tokens=60, seed=2)
    assert one.finish_reason in {FinishReason.STOP, FinishReason.LENGTH}
    assert text(tokenizer, one).startswith("{")


def test_without_the_library() -> None:
    """The engine starts without it; a constraint is refused with its name."""
    code = """
import sys
sys.modules["llguidance"] = None
import kvasir_runtime.engine.engine_core, kvasir_runtime.worker.sampler
from pathlib import Path
from kvasir_runtime.structured.constraint import Constraint
from kvasir_runtime.structured.grammar import GrammarBackend, mask_bytes
from kvasir_runtime.structured.grammar import GrammarBackend
GrammarBackend(Path("."), 10, [1]).compile(Constraint("regex", "a"))
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / "runtime")}
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, env=environment)
    assert "GrammarError: cannot be honoured: structured output needs the package llguidance" in done.stderr


def test_thousands_of_choices(engine: LLMEngine, tokenizer: Tokenizer) -> None:
    """A long list is one lexeme, not as many alternatives."""
    options = [f"option {number}" for number in range(5000)]
    (one,) = run(engine, Constraint("choice", json.dumps(options)))
    assert text(tokenizer, one) in options


def test_lenient_schemas_ignore_what_is_not_known(engine: LLMEngine, tokenizer: Tokenizer) -> None:
    """A best effort, for requests that are not strict."""
    (one,) = run(
        engine, schema({"type": "array", "uniqueItems": True, "maxItems": 2, "items": {"const": 1}}, lenient=True)
    )
    assert isinstance(json.loads(text(tokenizer, one)), list)


def test_an_ordinary_token_that_ends_texts(copy_model: Callable[..., Path], tokenizer: Tokenizer) -> None:
    """A model may name `!` as its end: within a string it does not end the answer."""
    engine = LLMEngine(config(model=copy_model(eos_token_id=[2, 7])))
    done = run(engine, schema(PERSON), n=8, seed=3, logit_bias={7: 6.0})
    assert all(json.loads(text(tokenizer, one)) for one in done if one.finish_reason is FinishReason.STOP)


def test_aborts_while_compiling(engine: LLMEngine) -> None:
    """A request that goes before its grammar comes leaves nothing."""
    constraint = schema({"properties": {f"p{i}": {"type": "string"} for i in range(500)}})
    engine.core.add_request(EngineRequest("gone", [1, 2], SamplingParams(constraint=constraint), 0.0))
    assert engine.core.stats().waiting == 1
    engine.core.abort_requests(["gone"])
    assert not engine.core.has_work()
    assert engine.core.stats().waiting == 0


def test_a_tokenizer_with_byte_fallback(tmp_path: Path) -> None:
    """Vocabularies in SentencePiece's manner: spaces are U+2581, rare characters are tokens of their bytes."""
    import numpy as np
    from tokenizers import Tokenizer as FastTokenizer
    from tokenizers import decoders, models, normalizers

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *'▁ab{}":,é', "▁a", "ab"]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    merges = [("▁", "a"), ("a", "b")]
    fast = FastTokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    fast.normalizer = normalizers.Replace(" ", "▁")
    fast.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    fast.add_special_tokens(["<unk>", "<s>", "</s>"])
    fast.save(str(tmp_path / "tokenizer.json"))
    backend = GrammarBackend(tmp_path, len(vocab) + 5, [vocab["</s>"]])
    matcher = backend.compile(Constraint("regex", '"[ab ]*é龘"')).matcher()

    def allowed() -> set[int]:
        bits = np.zeros((1, mask_bytes(len(vocab) + 5)), dtype=np.uint8)
        backend.fill_masks([matcher], bits.ctypes.data)
        return set(np.flatnonzero(np.unpackbits(bits, bitorder="little")).tolist())

    for token, next_ones in (
        ('"', {"▁", "a", "b", "é", "▁a", "ab", "<0x20>", "<0x61>", "<0x62>", "<0xC3>"}),
        ("▁a", {"▁", "a", "b", "é", "▁a", "ab", "<0x20>", "<0x61>", "<0x62>", "<0xC3>"}),
        ("<0xC3>", {"<0xA9>"}),
        ("<0xA9>", {"<0xE9>"}),
        ("<0xE9>", {"<0xBE>"}),
        ("<0xBE>", {"<0x98>"}),
        ("<0x98>", {'"'}),  # what is forced comes as the tokenizer would cut it
        ('"', {"</s>"}),
    ):
        matcher.accept([vocab[token]])
        assert allowed() == {vocab[piece] for piece in next_ones}, token
    assert matcher.complete
