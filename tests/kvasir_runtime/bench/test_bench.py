"""`kvasir-runtime bench`: what it prints, that it measures the engine it is told to, and its errors."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from kvasir_runtime.__main__ import main
from kvasir_runtime.bench import cli
from kvasir_runtime.bench.scenarios import random_prompts
from kvasir_runtime.contract.failures import KvasirError

TINY_LLAMA = Path(__file__).parents[2] / "models" / "tiny-llama"
SMALL = [
    "--max-model-len",
    "128",
    "--kv-cache-memory",
    "8Mi",
    "--num-threads",
    "1",
    "--num-prompts",
    "3",
    "--output-len",
    "4",
]


def bench(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["bench", *arguments, "--model", str(TINY_LLAMA), *SMALL, "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def test_throughput(capsys: pytest.CaptureFixture[str]) -> None:
    """Rates follow from the counts and the time."""
    report = bench(capsys, "throughput", "--input-len", "20")
    assert [len(tokens) for tokens in report["outputs"]] == [4, 4, 4]
    assert report["output_tokens_per_s"] == pytest.approx(12 / report["elapsed_s"])
    assert report["total_tokens_per_s"] == pytest.approx(72 / report["elapsed_s"])


def test_latency_takes_a_file_of_prompts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Given prompts are used as they are, one after the other."""
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps([[5, 6, 7], [8, 9]]))
    report = bench(capsys, "latency", "--prompts", str(file))
    assert len(report["outputs"]) == 2
    assert 0 < report["first_token_s"] <= report["elapsed_s"]


def test_the_second_pass_hits_the_cache(capsys: pytest.CaptureFixture[str]) -> None:
    """Three prompts of 50 tokens: three full blocks of each are found again."""
    report = bench(capsys, "prefix", "--input-len", "50")
    assert report["hit_tokens"] == 3 * 48
    assert report["speedup"] == pytest.approx(report["first_pass_s"] / report["second_pass_s"])


def test_the_table_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    """Without --json a few labelled lines are printed, and no tokens."""
    assert main(["bench", "throughput", "--model", str(TINY_LLAMA), *SMALL, "--input-len", "9"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("throughput: 3 prompts of 9 tokens, 4 tokens out\n")
    assert "output tokens/s" in text
    assert "outputs" not in text


@pytest.mark.parametrize("content", ["{}", "[]", "[[]]", '[["a"]]', "nonsense"])
def test_a_bad_file_of_prompts_is_refused(tmp_path: Path, content: str) -> None:
    """The file and what it must hold are named."""
    file = tmp_path / "prompts.json"
    file.write_text(content)
    with pytest.raises(KvasirError, match=r"prompts\.json"):
        cli.read_prompts(file)


def test_bad_sizes_are_refused() -> None:
    """The flag, its bound and the value are named."""
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    with pytest.raises(KvasirError, match="--num-prompts must be at least 1, got 0"):
        cli.run(parser.parse_args(["throughput", "--model", "x", "--num-prompts", "0"]))


def test_random_prompts_repeat() -> None:
    """Equal seeds give equal prompts within the vocabulary, other seeds other ones."""
    prompts = random_prompts(4, 30, 100, seed=1)
    assert prompts == random_prompts(4, 30, 100, seed=1) != random_prompts(4, 30, 100, seed=2)
    assert all(2 <= token < 100 for prompt in prompts for token in prompt)
