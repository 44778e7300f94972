"""Fixtures of the fetch tests: nothing leaves this process, nothing sleeps."""

from pathlib import Path
from typing import Any

import pytest

from kvasir_runtime.fetch.fetcher import Request
from kvasir_runtime.fetch.retry import RetryPolicy
from kvasir_runtime.fetch.source import Access
from tests.kvasir_runtime.fetch.helpers import MakeRequest, Recorder, Waits


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def waits() -> Waits:
    return Waits()


@pytest.fixture
def request_for(tmp_path: Path, waits: Waits) -> MakeRequest:
    """Makes a request into one folder, with retries that do not sleep."""

    def make(uri: str, attempts: int = 3, environment: dict[str, str] | None = None, **changes: Any) -> Request:
        retry = RetryPolicy(attempts=attempts, wait=waits, jitter=lambda: 1.0)
        settings: dict[str, Any] = {"folder": tmp_path / "model", "retry": retry} | changes
        return Request(uri, access=Access(environment or {}, timeout=20.0), **settings)

    return make
