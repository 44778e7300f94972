"""The command line."""

import logging
from collections.abc import Iterator

import pytest

from kvasir_operator import __main__ as program
from kvasir_operator.settings import Settings


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """Whatever a command does to logging is undone."""
    root = logging.getLogger()
    before = root.level, root.handlers[:]
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """The installed one."""
    assert program.main(["version"]) == 0
    assert capsys.readouterr().out.strip()[0].isdigit()


def test_settings_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """Every variable, with default and meaning."""
    assert program.main(["settings"]) == 0
    shown = capsys.readouterr().out
    assert "KVASIR_OPERATOR_SCRAPE_SECONDS\n    default 5.0\n    Time between" in shown
    assert shown.count("KVASIR_OPERATOR_") >= len(Settings.model_fields)


def test_bad_settings_end_the_program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With the variable, the bound and the value; exit status 2."""
    monkeypatch.setenv("KVASIR_OPERATOR_HEALTH_PORT", "99999")
    assert program.main([]) == 2
    assert "KVASIR_OPERATOR_HEALTH_PORT: must be at most 65535, got" in capsys.readouterr().err


def test_no_cluster_ends_the_program(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """With where it was looked for; exit status 1."""
    monkeypatch.setenv("KUBECONFIG", "/nowhere/kubeconfig")
    with caplog.at_level(logging.ERROR):
        assert program.main(["run"]) == 1
    assert "/nowhere/kubeconfig" in caplog.text


@pytest.mark.parametrize(
    ("log_format", "terminal", "json"),
    [("auto", True, False), ("auto", False, True), ("json", True, True), ("pretty", False, False)],
)
def test_log_format(log_format: str, terminal: bool, json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON for collectors, text for people; the service is named in both."""
    program.configure_logs(Settings(log_format=log_format), terminal=terminal)
    reference = {"kind": "InferenceService", "namespace": "team", "name": "tiny"}
    logging.getLogger("kvasir_operator").info("hello", extra={"k8s_ref": reference})
    logging.getLogger("kopf").info("chatter")
    line = capsys.readouterr().err
    assert line.startswith("{") is json
    assert "tiny" in line
    assert "chatter" not in line
