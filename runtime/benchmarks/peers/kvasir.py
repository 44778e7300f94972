"""Kvasir, measured through its own command line like any user would: one process a scenario."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.peers.errors import BenchmarkError
from benchmarks.peers.workers.protocol import Load, TokenIds

SECONDS = {
    "throughput": ("elapsed_s",),
    "latency": ("first_token_s", "elapsed_s"),
    "prefix": ("first_pass_s", "second_pass_s"),
}
"""What the figures are computed from, by scenario: the command's own keys."""


@dataclass(frozen=True)
class Report:
    """What one `kvasir-runtime bench … --json` said."""

    seconds: dict[str, float]
    outputs: list[TokenIds]


def bench_command(
    program: Sequence[str], scenario: str, model: str, load: Load, prompts_file: str, weights: str, threads: int
) -> list[str]:
    """The command line of one measurement; the file holds the same token ids that the other engines get."""
    sizes = {
        "--model": model,
        "--prompts": prompts_file,
        "--output-len": str(load.output_len),
        "--num-threads": str(threads),
        "--quantization": "none" if weights == "bf16" else weights,
    }
    return [*program, "bench", scenario, *(part for pair in sizes.items() for part in pair), "--json"]


def bench_prompts(scenario: str, load: Load) -> list[TokenIds]:
    """Latency is one request; the other engines' second prompt, the one that is decoded to the end."""
    return load.prompts[1:] if scenario == "latency" else load.prompts


def parse_report(scenario: str, stdout: str) -> Report:
    """Read the report; raises BenchmarkError that names what is missing."""
    report = _json_object(stdout)
    if report is None:
        msg = f"kvasir-runtime bench {scenario} --json printed no JSON object: {stdout[:200]!r}"
        raise BenchmarkError(msg)
    missing = [key for key in (*SECONDS[scenario], "outputs") if key not in report]
    if missing:
        msg = f"kvasir-runtime bench {scenario} --json does not say {', '.join(missing)}; it says {sorted(report)}"
        raise BenchmarkError(msg)
    return Report({key: float(report[key]) for key in SECONDS[scenario]}, report["outputs"])


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        content = json.loads(text)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None
