"""Wait for what a cluster is going to show, and say what it showed instead when time is up."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 2.0
"""Bounds are told for a machine of two cores that does nothing else; a slower or busier one may take twice as long."""


def wait_for(what: str, probe: Callable[[], T | None], *, timeout: float, every: float = 0.25) -> T:
    """Call `probe` until it returns something true; TimeoutError names `what` and the last falsy answer.

    `timeout` is in seconds of an idle machine; `PATIENCE` times as many are waited.

    Exceptions of the probe are not waited out: a probe returns None or False for "not yet".
    """
    patience = PATIENCE * timeout
    deadline = time.monotonic() + patience
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() >= deadline:
            raise TimeoutError(f"{what}: not within {patience:g} s, last seen: {found!r}")
        time.sleep(every)
