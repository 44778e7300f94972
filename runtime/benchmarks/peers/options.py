"""The command line."""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.peers.workload import SCENARIOS, Sizes

PEERS: Final = ("kvasir", "vllm", "transformers", "llamacpp")
DEFAULT_OUT: Final = Path(__file__).parent.parent / "results"
DEFAULT_CACHE: Final = Path.home() / ".cache" / "kvasir" / "bench"

DESCRIPTION: Final = """
Measure Kvasir beside vLLM's CPU build, transformers and llama.cpp on this machine, with the same weights and the same
prompts, each in its best configuration, in turn. The first run installs the peers under the cache folder and takes
about half an hour; later ones begin at once. Nothing else should run on the machine meanwhile.
"""
EPILOG: Final = """
scenarios:
  throughput   all prompts at once, greedy, past any end token: output tokens per second
  latency      one request alone: milliseconds per token after the first
  prefix       first tokens of all prompts, then of the same prompts again
  int8         `latency` with 8-bit weights: Kvasir's int8 and llama.cpp's Q8_0
"""


@dataclass(frozen=True)
class Options:
    peers: tuple[str, ...]
    scenarios: tuple[str, ...]
    rounds: int
    threads: int
    sizes: Sizes
    seed: int
    cache: Path
    out: Path
    json: bool
    install_only: bool
    timeout_s: float


def parse(argv: Sequence[str]) -> Options:
    """Read the command line; a bad value ends the program with what would be good."""
    parsed = _parser().parse_args(argv)
    sizes = Sizes(
        parsed.num_prompts, parsed.input_len, parsed.output_len, parsed.latency_input_len, parsed.latency_output_len
    )
    return Options(
        peers=parsed.peers,
        scenarios=parsed.scenarios,
        rounds=parsed.rounds,
        threads=parsed.threads,
        sizes=sizes,
        seed=parsed.seed,
        cache=parsed.cache,
        out=parsed.out,
        json=parsed.json,
        install_only=parsed.install_only,
        timeout_s=parsed.timeout,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    cores, sizes = len(os.sched_getaffinity(0)), Sizes()
    what = parser.add_argument_group("what is measured")
    _add(what, "--peers", _names(PEERS), PEERS, "NAMES", "engines")
    _add(what, "--scenarios", _names(SCENARIOS), SCENARIOS, "NAMES", "see below")
    _add(what, "--rounds", _at_least(1), 3, "N", "how often everything is repeated")
    _add(what, "--threads", _at_least(1, cores), cores, "N", "compute threads of every engine")
    _add(what, "--seed", int, 0, "N", "of the prompts")
    size = parser.add_argument_group("sizes (goals are stated for the defaults)")
    _add(size, "--num-prompts", _at_least(1), sizes.num_prompts, "N", "requests of throughput and prefix")
    _add(size, "--input-len", _at_least(1), sizes.input_len, "N", "tokens in each of their prompts")
    _add(size, "--output-len", _at_least(2), sizes.output_len, "N", "tokens generated for each of them")
    _add(size, "--latency-input-len", _at_least(1), sizes.latency_input_len, "N", "tokens in latency's prompt")
    _add(size, "--latency-output-len", _at_least(2), sizes.latency_output_len, "N", "tokens generated for it")
    output = parser.add_argument_group("output and caches")
    _add(output, "--out", Path, DEFAULT_OUT, "DIR", "folder of the written results")
    _add(output, "--cache", Path, DEFAULT_CACHE, "DIR", "folder of checkpoint, peers and logs")
    _add(output, "--timeout", float, 1800.0, "SECONDS", "for one process")
    output.add_argument("--json", action="store_true", help="print the results as JSON instead of tables")
    output.add_argument("--install-only", action="store_true", help="prepare checkpoint and peers, measure nothing")
    return parser


def _add(
    group: argparse._ArgumentGroup, flag: str, kind: Callable[[str], object], default: object, metavar: str, text: str
) -> None:
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
    group.add_argument(
        flag, type=kind, default=default, metavar=metavar, help=f"{text} (default: {_short(shown)})".replace("%", "%%")
    )


def _short(path: str) -> str:
    return path.replace(str(DEFAULT_OUT), "runtime/benchmarks/results").replace(str(Path.home()), "~")


def _names(known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    def read(text: str) -> tuple[str, ...]:
        names = tuple(part for part in text.split(",") if part)
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            msg = f"{', '.join(unknown) or 'nothing'} given; choose from {', '.join(known)}, separated by commas"
            raise argparse.ArgumentTypeError(msg)
        return names

    return read


def _at_least(least: int, most: int | None = None) -> Callable[[str], int]:
    wanted = f"a whole number of at least {least}" + (f" and at most {most}" if most is not None else "")

    def read(text: str) -> int:
        value = int(text) if text.lstrip("-").isdigit() else None
        if value is None or value < least or (most is not None and value > most):
            msg = f"{text!r} given, {wanted} wanted"
            raise argparse.ArgumentTypeError(msg)
        return value

    return read
