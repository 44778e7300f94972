"""`python -m kvasir_operator`, also installed as `kvasir-operator`."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version as installed_version
from pathlib import Path

import kopf
import uvloop

from kvasir_operator import metrics
from kvasir_operator.errors import ApiError, LeadershipLostError
from kvasir_operator.handlers import watch
from kvasir_operator.inspection_commands import CommandError, explain_service, replay_file
from kvasir_operator.process import run
from kvasir_operator.settings import Settings, SettingsError, env_name, unknown_variables

log = logging.getLogger("kvasir_operator")

USAGE_ERROR = 2
FAILURE = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 1 after a failure, 2 for settings or arguments that make no sense."""
    arguments = _parser().parse_args(argv)
    match arguments.command:
        case "version":
            print(installed_version("kvasir"))
            return 0
        case "settings":
            print(describe_settings())
            return 0
        case "explain":
            return _explain(arguments.service)
        case "replay":
            return _replay(arguments.file)
        case _:
            return _run()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kvasir-operator",
        description="Kvasir's control plane: looks after the InferenceServices of a Kubernetes cluster.",
        epilog="Settings are environment variables: `kvasir-operator settings` lists them. The cluster is the one of "
        "KUBECONFIG, else that of the pod it runs in, else the one of ~/.kube/config.",
    )
    commands = parser.add_subparsers(dest="command", metavar="run|explain|replay|settings|version")
    commands.add_parser("run", help="look after InferenceServices until stopped (the default)")
    explain = commands.add_parser("explain", help="say why a service has as many replicas as it has")
    explain.add_argument("service", metavar="NAMESPACE/NAME")
    replay = commands.add_parser("replay", help="make recorded scaling decisions again, and compare")
    replay.add_argument(
        "file", type=Path, help="the operator's log as JSON lines, or InferenceServices as JSON; -: standard input"
    )
    commands.add_parser("settings", help="list the environment variables, their defaults and meaning")
    commands.add_parser("version", help="print the version")
    return parser


def _explain(service: str) -> int:
    try:
        print(uvloop.run(explain_service(service)))
    except CommandError as error:
        print(error, file=sys.stderr)
        return USAGE_ERROR
    except (ApiError, OSError) as error:
        print(f"{service}: {error}", file=sys.stderr)
        return FAILURE
    return 0


def _replay(file: Path) -> int:
    try:
        return replay_file(file)
    except (OSError, UnicodeDecodeError) as error:
        print(f"{file}: {error}", file=sys.stderr)
        return USAGE_ERROR


def describe_settings() -> str:
    """Every setting with its default and its meaning."""
    lines = []
    for name, field in Settings.model_fields.items():
        default = getattr(Settings(), name)
        shown = default.model_dump_json(exclude_unset=True) if hasattr(default, "model_dump_json") else repr(default)
        lines.append(f"{env_name(name)}\n    default {shown}\n    {field.description}")
    return "\n".join(lines)


def configure_logs(settings: Settings, *, terminal: bool) -> None:
    """JSON lines for collectors, text for people; the service that a line is about is shown in both."""
    pretty = settings.log_format == "pretty" or (settings.log_format == "auto" and terminal)
    debug = settings.log_level == "debug"
    kopf.configure(debug=debug, log_format=kopf.LogFormat.FULL if pretty else kopf.LogFormat.JSON, log_prefix=pretty)
    logging.getLogger().setLevel(settings.log_level.upper())
    for name in ("kopf", "asyncio", "aiohttp", "kubernetes"):  # their everyday lines say nothing about services
        logging.getLogger(name).setLevel(logging.DEBUG if debug else logging.WARNING)


def _run() -> int:
    try:
        settings = Settings.from_environment(os.environ)
    except SettingsError as error:
        print("\n".join(error.problems), file=sys.stderr)
        return USAGE_ERROR
    configure_logs(settings, terminal=sys.stderr.isatty())
    for name in unknown_variables(os.environ):
        log.warning("%s is no setting of this version and has no effect", name)
    metrics.BUILD.info({"version": installed_version("kvasir")})
    try:
        uvloop.run(run(settings, watch))
    except (LeadershipLostError, ApiError, OSError) as error:
        log.error("cannot go on: %s", error)  # noqa: TRY400 - for people; these say all there is
        return FAILURE
    except Exception:
        log.exception("cannot go on: a part of the operator ended")  # a watch whose CRD was removed, or a bug
        return FAILURE
    return 0


if __name__ == "__main__":
    sys.exit(main())
