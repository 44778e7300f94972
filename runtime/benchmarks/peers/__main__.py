"""`python -m benchmarks.peers`: prepare, run the rounds, judge the outputs, report."""

import datetime as dt
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.peers import agreement, processes, render
from benchmarks.peers.checkpoint import file_digest
from benchmarks.peers.environments import TRANSFORMERS
from benchmarks.peers.errors import BenchmarkError
from benchmarks.peers.hardware import Hardware, commit, read_hardware
from benchmarks.peers.options import Options, parse
from benchmarks.peers.preparation import prepare
from benchmarks.peers.report import Origin, Report, build_report
from benchmarks.peers.session import Plan, Session, run_rounds, scenarios_of
from benchmarks.peers.shape import LLAMA_300M
from benchmarks.peers.subjects import KVASIR, Subject, base_variables, subjects

RUNTIME = Path(__file__).parent.parent.parent
FILE_WIDTH = 120
"""Characters of a line where there is no terminal to ask."""
JUDGED_PROMPTS = 4
"""Prompts whose outputs are computed again in float32: enough to tell a wrong model, seconds each."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 when every engine was measured, 1 when one failed, 2 for a bad command line."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parse(arguments)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    processes.adopt_orphans()
    try:
        report = run(options, arguments, console)
    except BenchmarkError as error:
        console.print(f"[red]benchmarks.peers:[/red] {error}", markup=True)
        return 1
    if report is None:
        return 0
    if options.json:
        print(render.as_json(report))
    else:
        render.show(report, Console() if sys.stdout.isatty() else Console(width=FILE_WIDTH))
    return 1 if report.session.failures else 0


def run(options: Options, arguments: Sequence[str], console: Console) -> Report | None:
    """Everything; None when only the installation was asked for."""

    def say(text: str) -> None:
        console.print(f"{dt.datetime.now().astimezone():%H:%M:%S} {text}", markup=False)

    hardware = read_hardware()
    chosen = choose(subjects(options.threads, options.cache, zen=hardware.zen), options)
    prepared = prepare(chosen, LLAMA_300M, options.cache, RUNTIME, say)
    if options.install_only:
        say(f"prepared: {', '.join(map(str, prepared.pythons.values()))}")
        return None
    plan = Plan(
        subjects=chosen,
        scenarios=options.scenarios,
        rounds=options.rounds,
        sizes=options.sizes,
        threads=options.threads,
        seed=options.seed,
        vocabulary=LLAMA_300M.vocabulary,
        prepared=prepared,
        runtime=RUNTIME,
        scratch=options.cache / "runs" / "latest",
        timeout_s=options.timeout_s,
    )
    session = run_rounds(plan, say)
    say("judging the outputs in float32")
    agreements = judge_outputs(plan, session)
    origin = _origin(arguments, hardware, prepared.model)
    report = build_report(origin, session, chosen, agreements, LLAMA_300M, options.sizes)
    for path in render.write(report, options.out, f"peers_{hardware.slug}_{dt.datetime.now().astimezone():%Y%m}"):
        say(f"wrote {path}")
    return report


def choose(known: Sequence[Subject], options: Options) -> tuple[Subject, ...]:
    """The subjects of the chosen peers that take part in a chosen scenario."""
    return tuple(
        subject for subject in known if subject.peer in options.peers and scenarios_of(subject, options.scenarios)
    )


def judge_outputs(plan: Plan, session: Session) -> list[agreement.Agreement]:
    """Feed the first outputs of every engine to transformers in float32."""
    if not session.outputs:
        return []
    outputs = {name: rows[:JUDGED_PROMPTS] for name, rows in session.outputs.items()}
    request, answer = plan.scratch / "judge.request.json", plan.scratch / "judge.result.json"
    content = {"model": str(plan.prepared.model), "threads": plan.threads, "prompts": session.prompts}
    request.write_text(json.dumps({**content, "outputs": outputs}), encoding="utf-8")
    python = plan.prepared.pythons[TRANSFORMERS.name]
    command = [str(python), "-m", "benchmarks.peers.workers.judge", str(request), str(answer)]
    processes.run(command, base_variables(plan.runtime), plan.scratch / "judge.log", plan.timeout_s)
    regrets = json.loads(answer.read_text(encoding="utf-8"))
    reference = session.outputs.get(KVASIR)
    return [agreement.judge(name, regrets[name], rows, reference) for name, rows in session.outputs.items()]


def _origin(arguments: Sequence[str], hardware: Hardware, model: Path) -> Origin:
    return Origin(
        hardware=hardware.describe(),
        commit=commit(RUNTIME.parent),
        command=shlex.join(["python", "-m", "benchmarks.peers", *arguments]),
        date=f"{dt.datetime.now().astimezone():%Y-%m-%d}",
        model=f"{model.name}, weights sha256 {file_digest(model / 'model.safetensors')[:16]}",
    )


if __name__ == "__main__":
    sys.exit(main())
