"""`python -m kvasir_operator.scaling.simulator`: compare policies on a trace."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kvasir_operator.scaling.simulator.plots import PlotError, plot
from kvasir_operator.scaling.simulator.profiles import PROFILES, ProfileError, read_profile
from kvasir_operator.scaling.simulator.report import Result, best, comparison, summary, table
from kvasir_operator.scaling.simulator.scenario import KVASIR, QUICK, Scenario, run_all
from kvasir_operator.scaling.simulator.traces import TraceError, read_trace, rescale
from kvasir_runtime.contract.quantities import parse_duration

USAGE_ERROR = 2

EPILOG = """\
Public traces: AzureLLMInferenceTrace_conv.csv (Azure/AzurePublicDataset on GitHub, folder data) and
conversation_trace.jsonl (kvcache-ai/Mooncake on GitHub, folder FAST25-release/traces).

Replicas begin at the number of `Fixed` at peak; the time of --warm is played and not counted."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; 0, or 2 for arguments or files that make no sense."""
    arguments = _parser().parse_args(argv)
    try:
        trace, profile = read_trace(arguments.trace), read_profile(arguments.profile)
        runs: list[tuple[str, list[Result]]] = []
        for stretch in arguments.stretch:
            for seed in arguments.seeds:
                scaled = rescale(trace, stretch, arguments.load, seed)
                scenario = Scenario(scaled, profile, arguments.objective, arguments.most, arguments.warm, seed)
                runs.append((f"x{stretch:g}, seed {seed}", _compare(arguments, scenario, stretch)))
        if len(runs) > 1:
            print(summary(runs, (KVASIR, QUICK)))
    except (TraceError, ProfileError, PlotError, OSError) as error:
        print(error, file=sys.stderr)
        return USAGE_ERROR
    return 0


def _compare(arguments: argparse.Namespace, scenario: Scenario, stretch: float) -> list[Result]:
    name = f"{arguments.name or arguments.trace.stem}-{Path(arguments.profile).stem}-x{stretch:g}-seed{scenario.seed}"
    if scenario.end <= 2 * scenario.warm_s:
        raise TraceError(
            f"--warm must be less than half of the trace ({scenario.end:.0f} s), got {scenario.warm_s:g} s"
        )
    results = run_all(scenario, _tell, sweep=arguments.sweep)
    title = f"{name}: {len(scenario.trace)} requests in {scenario.end / 60:.0f} min, TTFT {scenario.objective:g} s"
    text = f"### {title}\n\n{table(results)}\n\n{comparison(results, KVASIR)}\n\n{comparison(results, QUICK)}\n"
    print(text, flush=True)
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / f"{name}.md").write_text(text, encoding="utf-8")
        plot(_shown(results), scenario.objective, title, arguments.out / f"{name}.png")
    return results


def _shown(results: Sequence[Result]) -> list[Result]:
    """Kvasir, and each other policy at its best."""
    names = dict.fromkeys([KVASIR, *(result.policy for result in results)])
    return [best(result for result in results if result.policy == name) for name in names]


def _tell(result: Result) -> None:
    print(f"{result.label}: {result.in_time:.2%} in time, {result.mean_replicas:.2f} replicas", file=sys.stderr)


def _seconds(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m kvasir_operator.scaling.simulator",
        description="Replay a request trace against a model of replicas, and compare Kvasir's scaling with others.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--trace", type=Path, required=True, help="CSV or JSON lines, see below")
    parser.add_argument("--name", help="name of the trace in results; by default that of the file")
    parser.add_argument(
        "--profile", default="8b-80g", help=f"{', '.join(PROFILES)} or a JSON file (default: %(default)s)"
    )
    parser.add_argument("--objective", type=_seconds, default="2s", help="TTFT to keep (default: %(default)s)")
    parser.add_argument("--load", type=float, default=1.0, help="requests a second, times those of the trace")
    parser.add_argument("--stretch", type=float, nargs="+", default=[1.0], help="time scales (default: 1)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="draws of the requests (default: 0)")
    parser.add_argument("--most", type=int, default=24, help="most replicas (default: %(default)s)")
    parser.add_argument("--warm", type=_seconds, default="10m", help="time that does not count (default: %(default)s)")
    parser.add_argument("--sweep", action="store_true", help="try all settings of the others, in hindsight")
    parser.add_argument("--out", type=Path, help="folder for tables and plots")
    return parser


if __name__ == "__main__":
    sys.exit(main())
