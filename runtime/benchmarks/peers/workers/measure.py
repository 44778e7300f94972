"""The scenarios, timed in the same way for every engine that is a library."""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from benchmarks.peers.workers.protocol import Load, Result, TokenIds, Workload


class Engine(Protocol):
    """A loaded model. Outputs come in the order of the prompts, `output_len` tokens each."""

    versions: dict[str, str]
    configuration: str

    def generate(self, prompts: list[TokenIds], output_len: int) -> list[TokenIds]: ...


Clock = Callable[[], float]


def throughput(engine: Engine, load: Load, clock: Clock) -> tuple[dict[str, float], list[TokenIds]]:
    """All prompts at once; one wall-clock time from the first call to the last token."""
    elapsed_s, outputs = _timed(engine, load, clock)
    return {"elapsed_s": elapsed_s}, outputs


def latency(engine: Engine, load: Load, clock: Clock) -> tuple[dict[str, float], list[TokenIds]]:
    """One request alone. The first prompt asks for one token, the second for all: prefill and decode come apart."""
    first, whole = load.prompts
    first_token_s, _ = _timed(engine, Load([first], 1), clock)
    elapsed_s, outputs = _timed(engine, Load([whole], load.output_len), clock)
    return {"first_token_s": first_token_s, "elapsed_s": elapsed_s}, outputs


def prefix(engine: Engine, load: Load, clock: Clock) -> tuple[dict[str, float], list[TokenIds]]:
    """The first tokens of all prompts, then of the same prompts again."""
    first_pass_s, outputs = _timed(engine, load, clock)
    second_pass_s, _ = _timed(engine, load, clock)
    return {"first_pass_s": first_pass_s, "second_pass_s": second_pass_s}, outputs


MEASUREMENTS: dict[str, Callable[[Engine, Load, Clock], tuple[dict[str, float], list[TokenIds]]]] = {
    "throughput": throughput,
    "latency": latency,
    "prefix": prefix,
}


def measure(name: str, load_engine: Callable[[Workload], Engine], workload: Workload, clock: Clock) -> Result:
    """Load the engine, then warm up and measure each scenario."""
    start = clock()
    engine = load_engine(workload)
    result = Result(name, engine.versions, engine.configuration, load_s=clock() - start)
    for scenario in workload.scenarios:
        warmup = workload.warmups[scenario]
        say(f"{name}: {scenario}: warming up")
        engine.generate(warmup.prompts, warmup.output_len)
        say(f"{name}: {scenario}: measuring")
        seconds, outputs = MEASUREMENTS[scenario](engine, workload.loads[scenario], clock)
        result.seconds[scenario], result.outputs[scenario] = seconds, outputs
    return result


def main(name: str, load_engine: Callable[[Workload], Engine]) -> None:
    """Entry point of every worker: `python -m benchmarks.peers.workers.NAME WORKLOAD RESULT`."""
    parser = argparse.ArgumentParser(description=f"Measure {name} as a benchmark of Kvasir's peers asks.")
    parser.add_argument("workload", type=Path, help="JSON file that says what to run")
    parser.add_argument("result", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    measure(name, load_engine, Workload.read(arguments.workload), time.perf_counter).write(arguments.result)


def _timed(engine: Engine, load: Load, clock: Clock) -> tuple[float, list[TokenIds]]:
    start = clock()
    outputs = engine.generate(load.prompts, load.output_len)
    elapsed_s = clock() - start
    lengths = {len(output) for output in outputs}
    if len(outputs) != len(load.prompts) or lengths != {load.output_len}:
        msg = f"asked for {len(load.prompts)} outputs of {load.output_len} tokens, got {len(outputs)} of {lengths}"
        raise RuntimeError(msg)
    return elapsed_s, outputs


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
