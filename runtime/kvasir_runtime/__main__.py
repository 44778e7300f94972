"""`kvasir-runtime`: the data plane's command line. Each command's module is imported when it is used."""

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence
from typing import Final, NamedTuple

from kvasir_runtime.contract.failures import Cause, FailureReport, KvasirError, write_termination_message


class Command(NamedTuple):
    """A subcommand: `module` has `add_arguments(parser)` and `run(namespace) -> exit status`."""

    module: str
    help: str
    owns_pod: bool = False
    """Whether a failure goes to the termination message; not for what people run by `kubectl exec` beside it."""


COMMANDS: Final = {
    "serve": Command("kvasir_runtime.server.serve", "serve a model over the OpenAI API", owns_pod=True),
    "chat": Command("kvasir_runtime.chat.cli", "talk to a model, or to a running server, in the terminal"),
    "bench": Command("kvasir_runtime.bench.cli", "measure throughput and latency of a model on this machine"),
    "inspect": Command("kvasir_runtime.inspect_model", "say what a model folder holds and what memory it takes"),
    "fetch": Command("kvasir_runtime.fetch.cli", "download a model from its source, checked", owns_pod=True),
}

EXIT_STATUS: Final = {Cause.INVALID_ARGUMENTS: 2}
"""Exit status by cause; every other cause ends with 1."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; a failure is told once, in one line with its remedy."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--version"]:
        print(importlib.import_module("importlib.metadata").version("kvasir"))
        return 0
    command = COMMANDS.get(next((word for word in arguments if not word.startswith("-")), ""))
    try:
        namespace = _parser(command).parse_args(arguments)
        return int(namespace.run(namespace))
    except KvasirError as error:
        report = error.report
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        logging.getLogger("kvasir").exception("unexpected error")
        report = FailureReport(
            Cause.INTERNAL_ERROR,
            f"{type(error).__name__}: {error}",
            "this is a defect of Kvasir: please report the log",
        )
    return fail(report, owns_pod=command is not None and command.owns_pod)


def fail(report: FailureReport, *, owns_pod: bool) -> int:
    """Tell people and the kubelet why the process ends; returns the exit status."""
    logger = logging.getLogger("kvasir")
    if logger.hasHandlers():
        remedy = f". Remedy: {report.remedy}." if report.remedy else ""
        logger.error("%s%s", report.message, remedy, extra={"cause": report.cause})
    else:
        print(f"kvasir-runtime: {report.cause}: {report.message}", file=sys.stderr)
        if report.remedy:
            print(f"  remedy: {report.remedy}", file=sys.stderr)
    if owns_pod:
        write_termination_message(report)
    return EXIT_STATUS.get(report.cause, 1)


def _parser(chosen: Command | None) -> argparse.ArgumentParser:
    # Only the chosen command's flags are needed; the overview must not wait for the imports behind them.
    parser_class: type[argparse.ArgumentParser] = argparse.ArgumentParser
    if chosen is not None:
        parser_class = importlib.import_module("kvasir_runtime.cli").ArgumentParser
    parser = parser_class(prog="kvasir-runtime", description="Kvasir's LLM runtime: paged attention, OpenAI API.")
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        subparser = subparsers.add_parser(
            name, help=command.help, description=f"{command.help[0].upper()}{command.help[1:]}."
        )
        if command is chosen:
            module = importlib.import_module(command.module)
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
