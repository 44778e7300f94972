"""`kvasir-runtime serve`: check what can be checked, take the ports, start the engine, then load the web stack."""

import argparse
import logging
import os
import signal
from pathlib import Path
from socket import socket
from typing import Final, NoReturn

from kvasir_runtime import cli, logs
from kvasir_runtime.contract.engine_args import EngineArgs
from kvasir_runtime.edge.ports import listen
from kvasir_runtime.engine.engine_process import EngineSpec
from kvasir_runtime.engine.launcher import EngineProcess, launch_engine
from kvasir_runtime.engine.transport import make_socket_folder
from kvasir_runtime.model_files import read_model_folder

CORE_VARIABLE: Final = "KVASIR_ENGINE_CORE"
"""MODULE:CLASS of another engine core, for tests of this process without a model."""

logger = logging.getLogger("kvasir.server")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Every flag is also an environment variable: --max-num-seqs is KVASIR_MAX_NUM_SEQS. Flags win."
    cli.add_engine_arguments(parser)


def run(namespace: argparse.Namespace) -> int:
    """Serve until told to stop; returns the exit status. Raises KvasirError for every start that cannot work."""
    logs.configure("info", "auto")
    # The first process of a container ignores signals it has no handler for; until the event loop has its own:
    signal.signal(signal.SIGTERM, _leave)
    args = cli.engine_args(namespace, os.environ)
    logs.configure(args.log_level, args.log_format)
    for warning in cli.misspelt_variables(os.environ):
        logger.warning(warning)
    model = read_model_folder(args.model)
    ports = open_ports(args)
    engine = start_engine(args)
    try:
        from kvasir_runtime.server.runner import serve_forever  # noqa: PLC0415 - loads while the engine does

        return serve_forever(args, model, ports, engine)
    finally:
        engine.stop()
        engine.link.close()


def _leave(number: int, frame: object) -> NoReturn:
    del number, frame
    raise SystemExit(0)


def open_ports(args: EngineArgs) -> tuple[socket, socket]:
    """Both listening sockets; raises KvasirError naming the flag, and who holds a port that is taken."""
    user = listen(args.host, args.port, "--port")
    try:
        return user, listen(args.host, args.admin_port, "--admin-port")
    except BaseException:
        user.close()
        raise


def start_engine(args: EngineArgs) -> EngineProcess:
    """The engine's process, already loading."""
    folder = make_socket_folder()
    core = os.environ.get(CORE_VARIABLE) or EngineSpec.core
    return launch_engine(EngineSpec(cli.engine_config(args), Path(folder), args.log_level, args.log_format, core))
