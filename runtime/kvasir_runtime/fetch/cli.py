"""`kvasir-runtime fetch`: flags, secrets, signals, exit codes."""

import argparse
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import TypeVar, get_args

from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.contract.quantities import format_bytes, parse_bytes, parse_duration
from kvasir_runtime.fetch.fetcher import Request, fetch
from kvasir_runtime.fetch.progress import Style, reporter
from kvasir_runtime.fetch.retry import RetryPolicy, Stopped
from kvasir_runtime.fetch.source import Access
from kvasir_runtime.fetch.uri import without_credentials

T = TypeVar("T")
ENV_PREFIX = "KVASIR_FETCH_"
SECRET_NAMES = re.compile(r"AWS_[A-Z0-9_]+|HF_TOKEN|HF_ENDPOINT|KVASIR_FETCH_TOKEN|SSL_CERT_FILE")
SECONDS_TO_STOP = 5.0
"""After a signal, how long a transfer that hangs in the network may hold up the end."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags; each that is not a place can be set as KVASIR_FETCH_… too."""
    parser.add_argument(
        "uri", metavar="URI", help="s3://bucket/prefix, hf://org/name@revision, https://… or file:///path"
    )
    parser.add_argument("dest", metavar="DEST", type=Path, help="folder that receives the files")
    parser.add_argument(
        "--sha256",
        type=_digest,
        metavar="HEX",
        help="expected digest: of the archive, or of the sorted `sha256sum` listing of the files",
    )
    parser.add_argument("--secret-dir", type=Path, metavar="DIR", help="mounted Secret with the source's credentials")
    parser.add_argument("--max-size", type=_bytes, default=_default("MAX_SIZE", "2Ti"), help="most bytes in all (2Ti)")
    parser.add_argument("--workers", type=_count, default=_default("WORKERS", "4"), help="files at the same time (4)")
    parser.add_argument(
        "--retries", type=_count, default=_default("RETRIES", "8"), help="attempts in a row without a byte (8)"
    )
    parser.add_argument(
        "--timeout", type=_seconds, default=_default("TIMEOUT", "30s"), help="longest silence of the source (30s)"
    )
    parser.add_argument(
        "--progress",
        choices=get_args(Style),
        default=_default("PROGRESS", "auto"),
        help="how progress is shown; auto: bars on a terminal, lines in a log",
    )


def run(args: argparse.Namespace) -> int:
    """Fetch; returns the exit status. Raises KvasirError, which the entry point reports."""
    stop = threading.Event()
    _end_on_signals(stop)
    report = reporter(args.progress)
    started = time.monotonic()
    try:
        complete = fetch(_request(args, stop), report)
    except Stopped:
        report.note("told to stop; the next start continues here")
        return 128 + signal.SIGTERM
    finally:
        report.finish()
    report.note(
        f"{args.dest} holds {without_credentials(args.uri)}: {len(complete.files)} files, "
        f"{format_bytes(complete.size)}, digest {complete.digest}, {time.monotonic() - started:.1f} s"
    )
    return 0


def read_secrets(folder: Path | None, environ: Mapping[str, str]) -> dict[str, str]:
    """Credentials by name: the environment's, overridden by the Secret's files; raises KvasirError.

    Other files of the Secret are ignored, so that it may serve several purposes.
    """
    known = {name: value for name, value in environ.items() if SECRET_NAMES.fullmatch(name)}
    if folder is None:
        return known
    if not folder.is_dir():
        raise KvasirError(
            Cause.INVALID_ARGUMENTS,
            f"--secret-dir {folder} is no folder",
            "mount the Secret of source.secretName there",
        )
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and SECRET_NAMES.fullmatch(path.name))
    return known | {path.name: path.read_text(encoding="utf-8").strip() for path in files}


def _request(args: argparse.Namespace, stop: threading.Event) -> Request:
    return Request(
        uri=args.uri,
        folder=args.dest,
        sha256=args.sha256,
        max_size=args.max_size,
        workers=args.workers,
        access=Access(read_secrets(args.secret_dir, os.environ), args.timeout),
        retry=RetryPolicy(attempts=args.retries, wait=stop.wait),
        stop=stop,
    )


def _end_on_signals(stop: threading.Event) -> None:
    """SIGTERM has no default action for process 1 of a container, so it is always handled."""

    def handle(_signal: int, _frame: FrameType | None) -> None:
        stop.set()
        last = threading.Timer(SECONDS_TO_STOP, os._exit, (128 + signal.SIGTERM,))
        last.daemon = True
        last.start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)


def _default(name: str, value: str) -> str:
    return os.environ.get(ENV_PREFIX + name) or value  # argparse converts strings as it does flags


def _digest(text: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no SHA-256: write 64 hexadecimal digits")
    return text.lower()


def _bytes(text: str) -> int:
    return _parsed(parse_bytes, text)


def _seconds(text: str) -> float:
    value = float(_parsed(parse_duration, text))
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be more than 0 s")
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 64:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1 to 64")
    return int(text)


def _parsed(parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
