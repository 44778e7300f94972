import json
from pathlib import Path

import pytest

from kvasir_runtime.contract.failures import (
    TERMINATION_MESSAGE_LIMIT,
    Cause,
    FailureReport,
    KvasirError,
    write_termination_message,
)

REPORT = FailureReport(
    Cause.MODEL_NOT_FOUND, "model: /models/x does not exist", "check spec.model.source.uri", {"path": "/models/x"}
)


def test_a_report_survives_the_way_through_the_termination_message(tmp_path: Path) -> None:
    target = tmp_path / "termination-log"
    assert write_termination_message(REPORT, str(target))
    assert FailureReport.from_json(target.read_text()) == REPORT


@pytest.mark.parametrize("character", ["x", "é", "\n", "𝄞"])
def test_a_report_of_any_length_fits_what_the_kubelet_keeps(character: str) -> None:
    report = FailureReport(Cause.INTERNAL_ERROR, character * 9000, character * 9000, {"trace": character * 9000})
    text = report.to_json()
    assert len(text.encode()) <= TERMINATION_MESSAGE_LIMIT
    read = FailureReport.from_json(text)
    assert read is not None
    assert read.cause is Cause.INTERNAL_ERROR
    assert read.message.startswith(character * 50)


@pytest.mark.parametrize("text", ["", "Killed", "{}", '{"cause": "Nonsense", "message": "m"}', "[1]", "null"])
def test_the_last_words_of_another_program_are_no_report(text: str) -> None:
    assert FailureReport.from_json(text) is None


def test_outside_a_pod_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KVASIR_TERMINATION_LOG", raising=False)
    monkeypatch.setattr("kvasir_runtime.contract.failures.DEFAULT_TERMINATION_LOG", "/nonexistent/termination-log")
    assert not write_termination_message(REPORT)


def test_an_error_carries_its_report() -> None:
    error = KvasirError(Cause.PORT_IN_USE, "port 8000 is taken", "stop the other process", port=8000)
    assert str(error) == "port 8000 is taken"
    assert json.loads(error.report.to_json()) == {
        "cause": "PortInUse",
        "message": "port 8000 is taken",
        "remedy": "stop the other process",
        "detail": {"port": 8000},
    }
