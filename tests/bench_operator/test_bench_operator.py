"""The benchmark of the operator: its figures, its record, and what its kubelet writes."""

import dataclasses
import doctest
import json
import math

import pytest

from e2e.bench_operator import __main__ as program
from e2e.bench_operator import figures, kubelet, load, report
from kvasir_operator.api.v1alpha1 import InferenceService
from kvasir_operator.api.validation import validate
from kvasir_operator.resources import names
from kvasir_runtime.contract.admin_api import AdminState, Phase
from kvasir_runtime.contract.model_report import ModelReport

EXPOSITION = """\
# TYPE kvasir_operator_reconcile_seconds histogram
kvasir_operator_reconcile_seconds_bucket{le="0.01"} 90.0
kvasir_operator_reconcile_seconds_bucket{le="0.1"} 100.0
kvasir_operator_reconcile_seconds_bucket{le="+Inf"} 100.0
kvasir_operator_reconcile_seconds_count 100.0
kvasir_operator_reconcile_seconds_sum 1.0
# TYPE kvasir_operator_api_requests_total counter
kvasir_operator_api_requests_total{code="200",kind="pods",verb="POST"} 7.0
kvasir_operator_api_requests_total{code="409",kind="pods",verb="POST"} 2.0
kvasir_operator_api_requests_total{code="0",kind="pods",verb="GET"} 1.0
# TYPE kvasir_operator_scrapes_total counter
kvasir_operator_scrapes_total{result="ok"} 5.0
kvasir_operator_scrapes_total{result="unknown"} 1.0
"""


def pod(**status: object) -> dict[str, object]:
    container = {"name": "runtime", "image": "i"}
    gates = [{"conditionType": gate} for gate in names.GATES]
    return {
        "metadata": {"uid": "u", "labels": {names.COMPONENT_LABEL: names.RUNTIME_COMPONENT}},
        "spec": {"nodeName": "bench-node-1", "containers": [container], "readinessGates": gates},
        "status": status,
    }


@pytest.mark.parametrize("module", [figures, kubelet])
def test_examples(module: object) -> None:
    """What docstrings say is so."""
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


def test_counters_are_read_and_subtracted() -> None:
    """Answers from 400 on, and requests without an answer, are failures."""
    reading = figures.read_exposition(EXPOSITION)
    assert reading.requests == {"POST pods": 9, "GET pods": 1}
    assert reading.failed == {"POST pods 409": 2, "GET pods 0": 1}
    assert (reading.turns, reading.scrapes) == (100, 6)
    assert reading.since(reading).turns == 0
    assert figures.bucket_quantile(reading.reconciles, 0.5) == pytest.approx(0.005556, abs=1e-6)
    assert math.isnan(figures.bucket_quantile(reading.since(reading).reconciles, 0.5))


def test_a_pod_becomes_ready_in_two_writes() -> None:
    """Containers first; Ready when the gates are open; then nothing more."""
    first = kubelet.next_write(pod(), "10.250.0.7")
    assert first is not None
    assert first["podIP"] == "10.250.0.7"
    conditions = {each["type"]: each["status"] for each in first["conditions"]}
    assert conditions == {"Initialized": "True", "ContainersReady": "True", "Ready": "False"}
    assert kubelet.next_write(pod(**first), "") is None
    opened = [*first["conditions"], *({"type": gate, "status": "True"} for gate in names.GATES)]
    second = kubelet.next_write(pod(**(first | {"conditions": opened})), "")
    assert second is not None
    assert [(each["type"], each["status"]) for each in second["conditions"]] == [("Ready", "True")]


def test_an_inspection_ends_with_a_report() -> None:
    """As the operator reads it."""
    looking = pod(phase="Pending")
    looking["metadata"] = {"uid": "u", "labels": {names.COMPONENT_LABEL: names.INSPECTION_COMPONENT}}
    ended = kubelet.next_write(looking, "")
    assert ended is not None
    assert ended["phase"] == "Succeeded"
    message = ended["containerStatuses"][0]["state"]["terminated"]["message"]
    assert ModelReport.from_json(message) is not None


def test_engines_serve_and_services_are_sound() -> None:
    """What is applied is valid, and what engines say is the contract's."""
    state = AdminState.model_validate_json(kubelet.engine_state("10.250.0.7"))
    assert (state.startup.phase, state.inflight) == (Phase.SERVING, 0)
    manifest = load.service("service-00001")
    assert validate(manifest) == []
    assert InferenceService.from_manifest(manifest | {"metadata": {"name": "x", "namespace": "n"}}).spec.replicas == 1


def test_the_record_has_a_row_for_each_size() -> None:
    """Markdown for people, JSON for programs, of the same figures."""
    result = report.Result(
        services=10, ready=10, created_s=0.1, all_ready_s=2.0, ready_p50_s=1.0, ready_p99_s=1.9,
        api_calls={"POST pods": 10, "PATCH pods": 30}, failed_calls={}, turns=40,
        reconcile_p50_s=0.01, reconcile_p99_s=0.2, operator_cpu_s=0.5, cluster_cpu_s={"etcd": 0.4},
        resident_before=80 << 20, resident_after=90 << 20, idle_window_s=60.0, idle_cpu=0.01,
        idle_scrapes_per_s=0.3, idle_api_calls_per_s=1.0,
    )  # fmt: skip
    setting = report.Setting("CPU", 2, "v1.20.2", "3.11", "abc", "command", "2026-01-01", 0.1)
    text = report.to_markdown(setting, [result])
    assert "| 10 | 2.0 | 1.0 | 1.9 | 10.0 | 200 | 4.0 | 1024 | 50.0 | 1.0 |" in text
    assert "| 9 of 10 | 2.0 |" in report.to_markdown(setting, [dataclasses.replace(result, ready=9)])
    assert json.loads(report.to_json(setting, [result]))["results"][0]["api_calls"]["PATCH pods"] == 30


def test_sizes_are_bounded(capsys: pytest.CaptureFixture[str]) -> None:
    """With the bound and the value."""
    with pytest.raises(SystemExit) as end:
        program.main(["--services", "0"])
    assert end.value.code == 2
    assert "must be 1 to 10000, got 0" in capsys.readouterr().err
