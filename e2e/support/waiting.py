"""Wait for what a cluster is going to show, and say what it showed instead when time is up."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(what: str, probe: Callable[[], T | None], *, timeout: float, every: float = 0.25) -> T:
    """Call `probe` until it returns something true; TimeoutError names `what` and the last falsy answer.

    Exceptions of the probe are not waited out: a probe returns None or False for "not yet".
    """
    deadline = time.monotonic() + timeout
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() >= deadline:
            raise TimeoutError(f"{what}: not within {timeout:g} s, last seen: {found!r}")
        time.sleep(every)
