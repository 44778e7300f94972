"""Which credentials a download gets."""

from pathlib import Path
from threading import Event

import pytest

from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.fetch.fetcher import Request
from kvasir_runtime.lora import sources
from kvasir_runtime.lora.sources import AdapterSources

URI = "s3://bucket/adapter"


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """Downloads as they were asked for; nothing is sent."""
    seen: list[Request] = []
    monkeypatch.setattr(sources, "fetch", lambda request, reporter: seen.append(request))
    return seen


def make(tmp_path: Path, secrets: Path | None) -> AdapterSources:
    return AdapterSources((), frozenset({"s3"}), tmp_path / "cache", secrets, {"AWS_ACCESS_KEY_ID": "everybody"})


def test_those_of_the_secret_that_is_named(tmp_path: Path, requests: list[Request]) -> None:
    """Its files take the place of the environment's; other adapters keep the environment's."""
    (tmp_path / "team").mkdir()
    (tmp_path / "team" / "AWS_ACCESS_KEY_ID").write_text("team\n")
    found = make(tmp_path, tmp_path)
    found.obtain(URI, Event(), "team")
    found.obtain(URI, Event())
    assert [each.access.get("AWS_ACCESS_KEY_ID") for each in requests] == ["team", "everybody"]


@pytest.mark.parametrize("mounted", [True, False])
def test_a_secret_that_is_not_there_is_named(tmp_path: Path, requests: list[Request], mounted: bool) -> None:
    """Nothing is fetched with somebody else's credentials."""
    with pytest.raises(KvasirError, match="credentials 'team'") as refused:
        make(tmp_path, tmp_path if mounted else None).obtain(URI, Event(), "team")
    assert refused.value.report.cause is Cause.SOURCE_FORBIDDEN
    assert requests == []
