"""Runs other programs, with errors that show what they printed."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from e2e.cluster.errors import ClusterError

TAIL = 2000  # characters of a failed program's output that are shown


def run(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 600,
    text_input: str | None = None,
) -> str:
    """Runs a program and returns its standard output.

    Raises:
        ClusterError: it is not there, failed or took longer than `timeout` seconds; shows the end of its output.
    """
    shown = " ".join(str(part) for part in argv)
    try:
        done = subprocess.run(
            argv, env=env, cwd=cwd, timeout=timeout, input=text_input, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise ClusterError(f"{argv[0]} is not on this machine (needed for: {shown})") from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"took longer than {timeout:.0f} s: {shown}") from error
    if done.returncode != 0:
        output = (done.stderr + done.stdout)[-TAIL:].strip()
        raise ClusterError(f"failed with status {done.returncode}: {shown}\n{output}")
    return done.stdout


def succeeds(argv: Sequence[str | Path]) -> bool:
    """Whether a program that changes nothing of interest says yes."""
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0
