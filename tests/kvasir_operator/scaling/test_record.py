"""Decisions that were recorded: read from logs and objects, made again, and told to people."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from kvasir_operator import __main__ as program
from kvasir_operator.api.v1alpha1 import ScalingStatus
from kvasir_operator.errors import ApiError
from kvasir_operator.inspection_commands import CommandError, explain_manifest, replay_file, split_address
from kvasir_operator.planning.autoscaling import autoscale
from kvasir_operator.scaling.record import KEPT, RecordError, read_decisions, with_decision
from kvasir_operator.scaling.windows import Memory
from tests.kvasir_operator.planning.builders import NOW, engine, pod, snapshot


def decided(replicas: int = 2, seconds: float = 0) -> Any:
    """A decision to add a replica to so many full ones."""
    pods = [pod(f"p{number}", runtime=engine(active=95)) for number in range(replicas)]
    found = autoscale(
        snapshot(pods, replicas=replicas, scaling={"maxReplicas": 30}), Memory(), NOW + timedelta(seconds=seconds)
    )
    assert found.decision is not None
    return found.decision


def manifest(*decisions: Any) -> dict[str, Any]:
    scaling = ScalingStatus(replicas=3, last_decision=decisions[0] if decisions else None, history=list(decisions))
    return {
        "kind": "InferenceService",
        "metadata": {"name": "tiny", "namespace": "team", "uid": "u"},
        "spec": {"model": {"source": {"uri": "pvc://models/m"}}, "replicas": 3, "scaling": {"maxReplicas": 30}},
        "status": {"replicas": 3, "readyReplicas": 2, "scaling": scaling.to_manifest()},
    }


@pytest.mark.parametrize("form", ["log", "plain", "object", "list"])
def test_decisions_are_found_in_logs_and_objects(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Among other lines; each is made again and is the same."""
    old, new = decided(2), decided(3, 60)
    lines = {
        "log": [
            "Starting up",
            json.dumps({"message": "something else", "severity": "info"}),
            *(json.dumps({"message": "Scaling", "scaling": each.to_manifest()}) for each in (old, new)),
        ],
        "plain": [json.dumps(each.to_manifest()) for each in (old, new)],
        "object": json.dumps(manifest(new, old), indent=2).splitlines(),
        "list": json.dumps({"kind": "List", "items": [manifest(new, old)]}, indent=2).splitlines(),
    }[form]
    file = tmp_path / "decisions"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert program.main(["replay", str(file)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "2026-03-01 12:00:00 2 → 3: same",
        "2026-03-01 12:01:00 3 → 4: same",
        "2 decisions, 0 differ",
    ]


def test_a_decision_that_would_be_another_one_today_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 1."""
    wrong = decided().to_manifest() | {"to": 7}
    file = tmp_path / "decisions"
    file.write_text(json.dumps(wrong), encoding="utf-8")
    assert replay_file(file) == 1
    assert "2 → 7: DIFFERS: now 3 (Up)" in capsys.readouterr().out


def test_what_holds_no_decisions_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty file, one that is not there, and one whose decision lacks what it was made of."""
    file = tmp_path / "decisions"
    file.write_text("nothing\n", encoding="utf-8")
    assert program.main(["replay", str(file)]) == 2
    assert program.main(["replay", str(tmp_path / "none")]) == 2
    file.write_text(json.dumps(decided().to_manifest() | {"inputs": {"replicas": 2}}), encoding="utf-8")
    assert program.main(["replay", str(file)]) == 1
    assert "policy" in capsys.readouterr().err


def test_a_broken_decision_is_told_by_its_line() -> None:
    """Here the second, without a time."""
    broken = {key: value for key, value in decided().to_manifest().items() if key != "time"}
    with pytest.raises(RecordError, match="line 2"):
        list(read_decisions(["text\n", json.dumps(broken) + "\n"]))


def test_the_latest_twenty_are_kept() -> None:
    """Newest first."""
    status = ScalingStatus()
    for number in range(KEPT + 5):
        status = with_decision(status, decided(2 + number % 9, 60 * number))
    assert len(status.history) == KEPT
    assert status.history[0] == status.last_decision


def test_explanation() -> None:
    """Who decides, the last change with its numbers, and what was before it."""
    text = explain_manifest(manifest(decided(3, 60), decided(2)))
    assert "team/tiny: 3 replicas are set, 3 exist, 2 serve" in text
    assert "3 → 4: Up: KVCache asks for 3.8 (4,560 KV tokens, 1,600 x 75% a replica)" in text
    assert "KVCache     asks for  3.80: 4,560 KV tokens" in text
    assert "before that:" in text
    plain = manifest() | {"spec": {"model": {"source": {"uri": "pvc://models/m"}}, "replicas": 3}}
    assert "spec.replicas decides alone" in explain_manifest(plain)
    assert "nothing was changed yet" in explain_manifest(manifest())
    with pytest.raises(CommandError, match=r"spec\.model"):
        explain_manifest({"metadata": {"name": "x"}, "spec": {}})


def test_address_of_a_service() -> None:
    """Namespace and name, both."""
    assert split_address("team/tiny") == ("team", "tiny")
    for wrong in ("tiny", "team/", "/tiny", "a/b/c"):
        with pytest.raises(CommandError, match="NAMESPACE/NAME"):
            split_address(wrong)


def test_a_service_that_is_not_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What the API server said, and exit status 1."""

    async def missing(address: str) -> str:
        raise ApiError(404, "NotFound", "no such service")

    monkeypatch.setattr(program, "explain_service", missing)
    assert program.main(["explain", "team/none"]) == 1
    assert "no such service" in capsys.readouterr().err
