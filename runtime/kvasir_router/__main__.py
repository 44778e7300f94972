"""`kvasir-router`: the entry point of a service."""

import logging
import os
import sys
from collections.abc import Sequence

from kvasir_router.settings import add_arguments, read_settings
from kvasir_runtime import logs
from kvasir_runtime.cli import ArgumentParser
from kvasir_runtime.contract.failures import Cause, KvasirError, write_termination_message
from kvasir_runtime.edge.ports import listen


def main(argv: Sequence[str] | None = None) -> int:
    """Run the router and return its exit status; a failure is told once, in one line with its remedy."""
    parser = ArgumentParser(
        prog="kvasir-router",
        description="Kvasir's router: sends each request to the replica that holds its prefix.",
    )
    add_arguments(parser)
    try:
        settings = read_settings(parser.parse_args(argv), os.environ)
        logs.configure(settings.log_level, settings.log_format)
        user = listen(settings.host, settings.port, "--port")
        operator = listen(settings.host, settings.admin_port, "--admin-port")
        from kvasir_router.runner import serve_forever  # noqa: PLC0415 - bad arguments are told before it loads

        return serve_forever(settings, (user, operator))
    except KvasirError as error:
        report = error.report
    logging.getLogger("kvasir").error("%s. Remedy: %s.", report.message, report.remedy, extra={"cause": report.cause})
    write_termination_message(report)
    return 2 if report.cause is Cause.INVALID_ARGUMENTS else 1


if __name__ == "__main__":
    sys.exit(main())
