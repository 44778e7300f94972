"""The tokenizer wrapper, chat templates and what a model folder says."""

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer as FastTokenizer

from kvasir_runtime.chat_template import ChatTemplate, ChatTemplateError
from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.model_files import read_model_folder
from kvasir_runtime.tokenizer import Tokenizer

MODEL = Path(__file__).resolve().parents[1] / "models" / "tiny-llama"
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(MODEL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the tiny model's small files, and weights that are never read."""
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL / name, tmp_path)
    (tmp_path / "model.safetensors").touch()
    return tmp_path


def test_encodes_as_the_library_does(tokenizer):
    """The same ids as tokenizers itself gives, with and without special tokens."""
    fast = FastTokenizer.from_file(str(MODEL / "tokenizer.json"))
    for text in ("def foo(a):", "größe 日本 🙂", ""):
        for special in (True, False):
            ids = fast.encode(text, add_special_tokens=special).ids
            assert tokenizer.encode(text, add_special_tokens=special) == ids


def test_the_digest_stands_for_the_vocabulary(tokenizer, folder):
    """Equal for a copy; another when one byte of tokenizer.json differs."""
    assert Tokenizer.from_folder(folder).digest == tokenizer.digest != ""
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + " ")
    assert Tokenizer.from_folder(folder).digest != tokenizer.digest


def test_token_bytes_join_to_the_text(tokenizer):
    """Every token knows its bytes, parts of characters included."""
    text = "größe 日本 🙂 <x>\n\t"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
    assert tokenizer.token_bytes(10**6) == b""


def test_chat_template_equals_transformers(tokenizer):
    """The model's own template renders as transformers renders it."""
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(MODEL)
    messages = [{"role": "system", "content": " s "}, *MESSAGES, {"role": "assistant", "content": "a"}, *MESSAGES]
    for generate in (True, False):
        expected = reference.apply_chat_template(messages, add_generation_prompt=generate, tokenize=False)
        assert tokenizer.render_chat(messages, add_generation_prompt=generate) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ messages[0]['content'] | tojson }}", '"hi"'),
        ("{{ {'a': '<ü>'} | tojson(indent=1) }}", '{\n "a": "<ü>"\n}'),
        ("{% for m in messages %}{% if m.role == 'user' %}{% break %}{% endif %}{% endfor %}done", "done"),
        ("{% generation %}{{ bos_token }}{% endgeneration %}", "<s>"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{%- if tools is defined and tools %}T{% else %}no tools{% endif %}", "no tools"),
        ("{% set ns = namespace(n=1) %}{% set ns.n = 2 %}{{ ns.n }}", "2"),
    ],
)
def test_helpers_of_real_templates(source, expected):
    """What published templates use is there."""
    assert ChatTemplate(source, {"bos_token": "<s>"}).render(MESSAGES) == expected


def test_variables_reach_the_template():
    """What a client hands over by name is there; what the server sets stays."""
    template = ChatTemplate("{{ mood }} {{ messages | length }} {{ add_generation_prompt }}", {})
    variables = {"mood": "calm", "messages": [], "add_generation_prompt": False}
    assert template.render(MESSAGES, variables=variables) == "calm 1 True"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('only user roles') }}", "only user roles"),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ messages[5].content.x }}", "failed on these messages"),
        ("{% for i in range(1000000) %}{% endfor %}", "failed on these messages"),
        ("{{ open('/etc/passwd') }}", "'open' is undefined"),
    ],
)
def test_templates_are_caged(source, message):
    """A template reaches neither Python nor the caller's data, and its errors are the client's to read."""
    with pytest.raises(ChatTemplateError, match=message):
        ChatTemplate(source, {}).render(MESSAGES)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("chat_template.jinja", "jinja"),
        ("chat_template.json", "json"),
        ("named", "default"),
        ("inline", "inline"),
        ("none", None),
    ],
)
def test_where_templates_are_found(folder, place, expected):
    """In their own file, in JSON, or in the tokenizer's settings, alone or by name."""
    config = json.loads((folder / "tokenizer_config.json").read_text())
    if place == "named":
        config["chat_template"] = [{"name": "tool_use", "template": "tool"}, {"name": "default", "template": "default"}]
    elif place == "inline":
        config["chat_template"] = "inline"
    elif place.endswith("jinja"):
        (folder / place).write_text("jinja")
    elif place.endswith("json"):
        (folder / place).write_text(json.dumps({"chat_template": "json"}))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.from_folder(folder)
    if expected is not None:
        assert tokenizer.render_chat(MESSAGES) == expected
    else:
        with pytest.raises(ChatTemplateError, match="this model has no chat template"):
            tokenizer.render_chat(MESSAGES)


def test_flag_wins_over_the_models_template(folder, tmp_path):
    """--chat-template replaces the model's own; a missing file is refused."""
    (tmp_path / "mine").write_text("mine {{ eos_token }}")
    assert Tokenizer.from_folder(folder, str(tmp_path / "mine")).render_chat(MESSAGES) == "mine <|endoftext|>"
    with pytest.raises(KvasirError, match="cannot read the chat template"):
        Tokenizer.from_folder(folder, str(tmp_path / "none"))


def test_model_folder(folder):
    """Defaults and the ends of sequences come from generation_config.json before config.json."""
    generation = {"temperature": 0.6, "top_k": 20, "max_new_tokens": 9, "eos_token_id": [7, 2], "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    model = read_model_folder(str(folder))
    assert (model.generation.temperature, model.generation.top_k, model.generation.max_new_tokens) == (0.6, 20, 9)
    assert model.generation.top_p is None
    assert model.eos_token_ids == (7, 2)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "[]", "must hold a JSON object, holds list"),
        ("config.json", "{", "is not valid JSON"),
        ("generation_config.json", '{"top_p": "high"}', "top_p must be a number, got 'high'"),
    ],
)
def test_broken_settings(folder, name, content, message):
    """Each names the file and what is wrong in it."""
    (folder / name).write_text(content)
    with pytest.raises(KvasirError, match=message) as caught:
        read_model_folder(str(folder))
    assert caught.value.report.cause is Cause.MODEL_INVALID
