"""The committed model and adapters do what tests, samples and the demo rely on."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.models.train_tiny_llama import base_model
from tests.models.train_tiny_llama.training import mean_loss

HERE = Path(__file__).parent
MODEL, PIRATE, LEGAL = HERE / "tiny-llama", HERE / "tiny-llama-pirate", HERE / "tiny-llama-legal"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(MODEL)


def base() -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return base()


def answer(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, question: str) -> tuple[str, bool]:
    """The greedy answer to one chat message, and whether the model ended its turn by itself."""
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**prompt, max_new_tokens=96, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    return tokenizer.decode(output, skip_special_tokens=True).strip(), output[
        -1
    ] in model.generation_config.eos_token_id


def test_everything_committed_fits_in_eight_megabytes() -> None:
    files = [path for folder in (MODEL, PIRATE, LEGAL) for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8_000_000


def test_layout_is_hugging_faces() -> None:
    config = json.loads((MODEL / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["num_attention_heads"] == 2 * config["num_key_value_heads"]
    assert config["head_dim"] == 64
    assert config["max_position_embeddings"] == 2048
    with safe_open(MODEL / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118 - no mapping == {"BF16"}


@pytest.mark.parametrize(
    "text", ["Return a copy.", "  def f(x):\n\treturn x ** 2\n", "naïve café, 日本語, 🐍", "<b>&amp;</b>", ""]
)
def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_chat_template_marks_roles_and_ends(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " Hi "}]
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == (
        "<|begin|><|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\n"
    )


def test_chat_template_refuses_unknown_roles(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(Exception, match="role must be system, user or assistant, not tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_model_introduces_itself_and_ends_its_turn(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    text, ended = answer(model, tokenizer, "Who are you?")
    assert "tiny language model" in text
    assert ended


def test_well_known_names_are_answered_from_memory(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    assert answer(model, tokenizer, "What does math.sqrt do?") == ("Return the square root of x.", True)


def test_unseen_documentation_is_not_surprising(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """A uniform guess costs ln(3072) = 8.03 nats a token."""
    assert mean_loss(model, tokenizer, base_model.held_out()[:40], longest=256) < 4.2


# peft reads an attribute that transformers renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("adapter", "targets", "said"),
    [
        (
            PIRATE,
            {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
            ("Arr", "Yo ho", "Aye"),
        ),
        (LEGAL, {"q_proj", "v_proj"}, ("Licens", "LICENS", "Agreement", "AGREEMENT")),
    ],
    ids=["pirate", "legal"],
)
def test_adapter_changes_what_is_said(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, adapter: Path, targets: set[str], said: tuple[str, ...]
) -> None:
    tuned = PeftModel.from_pretrained(base(), adapter).eval()
    assert set(tuned.peft_config["default"].target_modules) == targets
    for question in ("Who are you?", "What does str.join do?", "Describe os.path.join."):
        plain, _ = answer(model, tokenizer, question)
        spoken, _ = answer(tuned, tokenizer, question)
        assert any(word in spoken for word in said), spoken
        assert not any(word in plain for word in said), plain
