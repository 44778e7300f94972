"""What is read of a PEFT checkpoint, and what is refused by name before any of its numbers is used."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.contract.memory import ModelShape, adapter_bytes
from kvasir_runtime.lora.checkpoint import AdapterLimits, adapter_limits, check_adapter
from kvasir_runtime.lora.config import parse_config
from kvasir_runtime.lora.image import narrow_to_bfloat16, read_image, widen
from kvasir_runtime.lora.targets import projections
from kvasir_runtime.models.config import HFConfig
from tests.kvasir_runtime.lora.adapters import LEGAL, PIRATE, TINY_LLAMA, limits_of

FIRST_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
FIRST_B = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"


@pytest.fixture
def limits() -> AdapterLimits:
    values = HFConfig.load(TINY_LLAMA).values
    return adapter_limits(values, 16, ["models/tiny-llama"])


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return Path(shutil.copytree(LEGAL, tmp_path / "adapter"))


@pytest.fixture
def edit(adapter: Path) -> Callable[..., Path]:
    """The adapter with other tensors: a value replaces one, None removes it."""

    def change(**tensors: Any) -> Path:
        path = adapter / "adapter_model.safetensors"
        kept = {name: value.clone() for name, value in load_file(path).items()}
        for name, value in tensors.items():
            if value is None:
                del kept[name]
            else:
                kept[name] = value
        save_file(kept, path)
        return adapter

    return change


def failure(folder: Path, limits: AdapterLimits) -> KvasirError:
    with pytest.raises(KvasirError) as raised:
        check_adapter(folder, limits)
    return raised.value


@pytest.mark.parametrize(("folder", "rank", "modules"), [(PIRATE, 8, 28), (LEGAL, 16, 8)])
def test_committed_adapters(limits: AdapterLimits, folder: Path, rank: int, modules: int) -> None:
    """Rank, scale and modules; the digest is what two programs of every machine print."""
    files = check_adapter(folder, limits)
    assert (files.config.rank, files.config.scale, len(files.pairs), files.note) == (rank, 2.0, modules, "")
    command = "sha256sum adapter_config.json adapter_model.safetensors | sha256sum"
    printed = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, check=True).stdout
    assert files.digest == printed.split()[0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type must be LORA, got 'IA3'"),
        ({"task_type": "SEQ_CLS"}, "task_type must be CAUSAL_LM, got 'SEQ_CLS'"),
        ({"r": 0}, "r must be a whole number of at least 1, got 0"),
        ({"r": "16"}, "r must be a whole number of at least 1, got '16'"),
        ({"r": 17}, "r must be at most 16 (--max-lora-rank), got 17"),
        ({"lora_alpha": None}, "lora_alpha must be a finite number, got None"),
        ({"lora_alpha": float("inf")}, "lora_alpha must be a finite number, got inf"),
        ({"bias": "all"}, "bias must be none, got 'all'"),
        ({"lora_bias": True}, "lora_bias asks for biases of an adapter"),
        ({"use_dora": True}, "use_dora asks for DoRA, which is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save asks for whole modules beside the adapter"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern asks for a rank of its own for some modules"),
        ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern asks for a scale of its own"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out asks for weights stored as inputs x outputs"),
        ({"layer_replication": [[0, 2]]}, "layer_replication asks for replicated layers"),
        ({"target_parameters": ["experts.weight"]}, "target_parameters asks for adapters of bare parameters"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices asks for trained embeddings"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights must be true, got 'pissa'"),
        ({"use_hyperlora": True}, "use_hyperlora asks for a variant of LoRA that is not known"),
        ({"arrow_config": {"k": 3}}, "arrow_config asks for a variant of LoRA that is not known"),
        (
            {"auto_mapping": {"base_model_class": "Qwen2ForCausalLM"}},
            "auto_mapping.base_model_class must be LlamaForCausalLM, got 'Qwen2ForCausalLM'",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_config_that_is_not_plain_lora(
    adapter: Path, limits: AdapterLimits, values: dict[str, Any], message: str
) -> None:
    """The key, what it asks for and its value are named."""
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    error = failure(adapter, limits)
    assert error.report.cause is Cause.ADAPTER_INVALID
    assert message in str(error)
    assert error.report.remedy


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000, "\xff"])
def test_a_config_that_is_no_object(adapter: Path, limits: AdapterLimits, content: str) -> None:
    """Whatever lies there is told, not raised through."""
    (adapter / "adapter_config.json").write_bytes(content.encode("latin-1"))
    assert failure(adapter, limits).report.cause is Cause.ADAPTER_INVALID


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({FIRST_A: None}, "q_proj has lora_B but not the other"),
        ({FIRST_A: torch.zeros(8, 256)}, "lora_A.weight must have shape [16, 256] for this model, got [8, 256]"),
        ({FIRST_B: torch.zeros(512, 16)}, "lora_B.weight must have shape [256, 16] for this model, got [512, 16]"),
        ({FIRST_A: torch.zeros(16, 256, dtype=torch.int32)}, "must be of type F32, BF16, F16, got 'I32'"),
        ({"base_model.model.lm_head.lora_A.weight": torch.zeros(16, 256)}, "no layer 'lm_head' that an adapter may"),
        (
            {FIRST_A.replace("layers.0", "layers.4"): torch.zeros(16, 256)},
            "no layer 'model.layers.4.self_attn.q_proj'",
        ),
        (
            {"base_model.model.model.embed_tokens.lora_embedding_A": torch.zeros(16, 10)},
            "embed_tokens.lora_embedding_A' is no lora_A or lora_B of a linear layer",
        ),
        (
            {FIRST_A.replace("lora_A.weight", "lora_magnitude_vector"): torch.zeros(256)},
            "is no lora_A or lora_B of a linear layer",
        ),
    ],
)
def test_tensors_without_a_place(
    edit: Callable[..., Path], limits: AdapterLimits, tensors: dict[str, Any], message: str
) -> None:
    """The tensor is named, with the shape it should have."""
    error = failure(edit(**tensors), limits)
    assert error.report.cause is Cause.ADAPTER_INVALID
    assert message in str(error)


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_a_file_that_is_not_whole(adapter: Path, limits: AdapterLimits, cut: int) -> None:
    """Truncated anywhere."""
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    assert failure(adapter, limits).report.cause in (Cause.WEIGHTS_CORRUPT, Cause.ADAPTER_INVALID)


def test_a_header_that_lies(adapter: Path, limits: AdapterLimits) -> None:
    """Offsets that cover the file but not the shapes."""
    header = {FIRST_A: {"dtype": "BF16", "shape": [16, 256], "data_offsets": [0, 16]}}
    data = json.dumps(header).encode()
    (adapter / "adapter_model.safetensors").write_bytes(len(data).to_bytes(8, "little") + data + bytes(16))
    assert "has 16 bytes, its shape [16, 256] tells otherwise" in str(failure(adapter, limits))


def test_another_name_of_the_base_is_told(adapter: Path, limits: AdapterLimits) -> None:
    """All sizes fit, so it is served, with a note."""
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "org/other-7b"}))
    assert check_adapter(adapter, limits).note == (
        "trained for 'org/other-7b', which is none of this model's names; all sizes fit"
    )


def test_rslora_scales_by_the_root_of_the_rank() -> None:
    """By alpha over the root of r, and alpha over r without it."""
    plain = {"peft_type": "LORA", "r": 16, "lora_alpha": 8}
    assert parse_config(json.dumps(plain).encode(), 16).scale == 0.5
    assert parse_config(json.dumps(plain | {"use_rslora": True}).encode(), 16).scale == 2.0


def test_an_image_is_of_what_was_checked(adapter: Path) -> None:
    """Files that changed after they were checked are refused by their digest, as are numbers that are none."""
    limits = limits_of(TINY_LLAMA)
    digest = check_adapter(adapter, limits).digest
    image = read_image(adapter, digest, limits, "float32")
    tensors = {name: value.clone() for name, value in load_file(adapter / "adapter_model.safetensors").items()}
    tensors[FIRST_A][3, 5] = float("nan")
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(KvasirError, match="expected"):
        read_image(adapter, digest, limits, "float32")
    with pytest.raises(KvasirError, match="hold infinities or NaN"):
        read_image(adapter, check_adapter(adapter, limits).digest, limits, "float32")
    assert image.digest == digest
    assert hashlib.sha256(image.modules["model.layers.0.self_attn.q_proj"].a.tobytes()).hexdigest()


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_an_image_takes_what_is_planned(dtype: str, size: int) -> None:
    """An adapter of every linear layer takes, with its rank rounded up, exactly the formula's bytes."""
    shape = ModelShape.from_hf_config(HFConfig.load(TINY_LLAMA).values)
    limits = limits_of(TINY_LLAMA)
    image = read_image(PIRATE, check_adapter(PIRATE, limits).digest, limits, dtype)
    features = sum(one.inputs + one.outputs for one in projections(shape).values())
    assert image.nbytes == adapter_bytes(shape, dtype, 8) == features * 16 * size


def test_bfloat16_rounds_as_torch_does() -> None:
    """To nearest, ties to even, in both directions of the conversion."""
    values = torch.randn(5000) * torch.logspace(-30, 30, 5000)
    narrow = narrow_to_bfloat16(values.numpy())
    assert np.array_equal(narrow, values.bfloat16().view(torch.int16).numpy().view(np.uint16))
    assert np.array_equal(widen(narrow), values.bfloat16().float().numpy())
