"""What a model folder holds, counted without loading it."""

import json

import pytest

from kvasir_runtime.__main__ import main
from kvasir_runtime.contract.engine_args import EngineArgs
from kvasir_runtime.contract.failures import KvasirError
from kvasir_runtime.inspect_model import count_parameters, inspect
from tests.kvasir_runtime.server.harness import MODEL


def test_counts_what_torch_counts():
    """The headers give as many parameters as the tensors have."""
    from safetensors import safe_open

    with safe_open(MODEL / "model.safetensors", "pt") as weights:
        expected = sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118 - no mapping
    assert count_parameters(MODEL) == expected


def test_fits_or_says_what_would(capsys):
    """Exit status 0 with the plan, or 1 with the reason and the remedy."""
    assert main(["inspect", "--model", str(MODEL), "--memory-limit", "4Gi", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["architecture"], found["layers"], found["max_model_len"], found["fits"]) == (
        "LlamaForCausalLM",
        4,
        2048,
        True,
    )
    assert found["kv_tokens"] >= 2048
    assert main(["inspect", "--model", str(MODEL), "--memory-limit", "500Mi"]) == 1
    assert "raise the memory limit to at least" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"\x05\0\0\0\0\0\0\0{", b"\xff" * 20, b"\x02\0\0\0\0\0\0\0[]"])
def test_corrupt_weights(tmp_path, content):
    """A file that is no safetensors file is named."""
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(KvasirError, match=r"model\.safetensors is no safetensors file"):
        count_parameters(tmp_path)


def test_bad_shape(tmp_path):
    """A config without the numbers that matter is refused by key."""
    for name in ("tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_bytes((MODEL / name).read_bytes())
    (tmp_path / "config.json").write_text('{"hidden_size": 5}')
    with pytest.raises(KvasirError, match="num_attention_heads must be an integer"):
        inspect(EngineArgs(model=str(tmp_path)), 2**32)
