"""Only a model's own files, only below their folder."""

import doctest

import pytest

from kvasir_runtime.fetch import archive, names


@pytest.mark.parametrize("module", [names, archive], ids=lambda module: module.__name__)
def test_examples_in_docstrings_hold(module) -> None:
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
    "name",
    [
        *("", "/", "/etc/passwd", "../config.json", "a/../../b.json", "a//b.json", "./config.json", "..", "a/.."),
        *("a\\b.json", "a\nb.json", "a\x00b.json", ".hidden.json", "a/.git/config.json", "x" * 513),
    ],
)
def test_names_that_could_leave_the_folder_are_unsafe(name: str) -> None:
    assert not names.is_safe(name)
    assert not names.is_wanted(name)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("config.json", True),
        ("model-00001-of-00009.safetensors", True),
        ("tokenizer.model", True),
        ("merges.txt", True),
        ("chat_template.jinja", True),
        ("adapter/adapter_config.json", True),
        ("pytorch_model.bin", False),
        ("consolidated.00.pth", False),
        ("modeling_custom.py", False),
        ("tokenizer.pkl", False),
        ("tokenizer_fix.py", False),
        ("original/params.json", False),
        ("onnx/config.json", False),
        ("README.md", False),
    ],
)
def test_what_a_model_consists_of(name: str, wanted: bool) -> None:
    assert names.is_wanted(name) is wanted


def test_checksums_in_every_form_that_sha256sum_prints() -> None:
    digest = "ab" * 32
    text = f"{digest}  a.json\n{digest} *b.bin\n{digest.upper()}  ./c d.txt\n<html>\nshort  x\n"
    assert names.parse_checksums(text) == {"a.json": digest, "b.bin": digest, "c d.txt": digest}
