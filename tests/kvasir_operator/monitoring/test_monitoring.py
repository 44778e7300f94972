"""Dashboard and alerts: of series that exist, valid for Prometheus, and saying what they should of given series."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
import yaml

from e2e.cluster import packages
from e2e.cluster.layout import cache_root
from kvasir_operator import metrics
from kvasir_operator.api.crd import ROOT
from kvasir_operator.planning.state import Stage
from kvasir_runtime.contract import metric_names

COMPONENT = ROOT / "manifests" / "components" / "monitoring"
ALERTS = Path(__file__).parent / "alerts.yaml"
SUFFIXES = ("_total", "_bucket", "_count", "_sum", "_info")
SERIES = re.compile(r"\b(?:vllm|kvasir):[a-z0-9_:]+|\bkvasir_operator_[a-z_]+")


def groups() -> list[dict[str, Any]]:
    manifest = yaml.safe_load((COMPONENT / "prometheus-rules.yaml").read_text(encoding="utf-8"))
    return list(manifest["spec"]["groups"])


def rules() -> Iterator[dict[str, Any]]:
    for group in groups():
        yield from group["rules"]


def dashboard() -> dict[str, Any]:
    return dict(json.loads((COMPONENT / "grafana-dashboard.json").read_text(encoding="utf-8")))


def dashboard_expressions() -> Iterator[str]:
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            yield target["expr"]
    for variable in dashboard()["templating"]["list"]:
        yield variable.get("definition", "")


def operator_series() -> set[str]:
    """Every name that the operator's exposition may hold."""
    names: set[str] = set()
    for collector in (getattr(metrics, name) for name in metrics.__all__ if name != "REGISTRY"):
        for family in collector.describe():
            names |= {family.name, *(family.name + suffix for suffix in suffixes_of(family.type))}
    return names


def suffixes_of(kind: str) -> tuple[str, ...]:
    return {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "info": ("_info",)}.get(kind, ())


def runtime_series() -> set[str]:
    """Every name of the contract, as gauge, counter and histogram; the runtime's own tests hold it to the names."""
    plain = {value for name, value in vars(metric_names).items() if name.isupper() and ":" in str(value)}
    return plain | {name + suffix for name in plain for suffix in SUFFIXES}


def named_in(expressions: Iterable[str]) -> set[str]:
    return {name for expression in expressions for name in SERIES.findall(expression)}


def test_dashboard_and_alerts_ask_for_series_that_are_exported() -> None:
    """A series that was renamed leaves an empty panel, or an alert that never fires."""
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    asked = named_in([*dashboard_expressions(), *(rule["expr"] for rule in rules())])
    assert len(asked) > 25
    assert asked - operator_series() - runtime_series() - recorded == set()


def test_everything_that_the_operator_counts_is_shown_or_watched() -> None:
    """But for the version and what is only there for queries by hand."""
    asked = named_in([*dashboard_expressions(), *(rule["expr"] for rule in rules())])
    families = {re.sub(r"_(total|bucket|count|sum)$", "", name) for name in operator_series()}
    assert {name for name in families if not any(each.startswith(name) for each in asked)} == {
        "kvasir_operator_build",
        "kvasir_operator_build_info",
    }


def test_labels_are_those_of_the_series() -> None:
    """Values of labels in expressions are ones that the operator gives."""
    text = " ".join([*dashboard_expressions(), *(rule["expr"] for rule in rules())])
    assert set(re.findall(r'stage="(\w+)"', text)) <= set(Stage)
    assert set(re.findall(r'result="(\w+)"', text)) <= {"done", "error", "gone"}


def test_every_alert_says_what_it_is_and_what_to_do() -> None:
    """Words for a person who is woken by it."""
    for rule in (each for each in rules() if "alert" in each):
        assert re.fullmatch(r"Kvasir[A-Za-z]+", rule["alert"])
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert len(rule["annotations"]["description"]) > 40, rule["alert"]
        assert rule["for"]


def test_every_panel_has_its_place_and_its_number() -> None:
    """No two panels overlap."""
    taken: set[tuple[int, int]] = set()
    panels = dashboard()["panels"]
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl, which holds kustomize, is absent")
def test_the_component_brings_dashboard_and_alerts(tmp_path: Path) -> None:
    """As an overlay takes it; Grafana's sidecar finds the dashboard by its label."""
    below = Path(*[".."] * (len(tmp_path.resolve().parts) - 1)) / str(COMPONENT).lstrip("/")
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({"components": [str(below)]}))
    done = subprocess.run(["kubectl", "kustomize", str(tmp_path)], check=True, capture_output=True, text=True)
    found = {each["kind"]: each for each in yaml.safe_load_all(done.stdout)}
    assert found.keys() == {"ConfigMap", "PodMonitor", "ServiceMonitor", "PrometheusRule"}
    assert found["ConfigMap"]["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(found["ConfigMap"]["data"]["kvasir.json"])["title"] == "Kvasir"


def promtool() -> str | None:
    """The program on PATH, or of Debian's package where the cluster tests have unpacked it."""
    folder = packages.unpacked(cache_root(), ("prometheus",))
    return shutil.which("promtool") or (str(folder / "usr/bin/promtool") if folder else None)


@pytest.mark.skipif(promtool() is None, reason="promtool is absent: e2e/test_monitoring.py unpacks Debian's")
def test_promtool_takes_the_rules_and_the_alerts_fire_as_written(tmp_path: Path) -> None:
    check_rules(str(promtool()), tmp_path)


def check_rules(program: str, folder: Path) -> None:
    """`promtool check rules`, and its tests of alerts.yaml."""
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": groups()}))
    shutil.copy(ALERTS, folder / "alerts.yaml")
    for words in (["check", "rules", "rules.yaml"], ["test", "rules", "alerts.yaml"]):
        done = subprocess.run([program, *words], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_expositions_are_of_the_default_registry() -> None:
    """What `describe` tells is what a scrape gets."""
    assert metrics.REGISTRY is prometheus_client.REGISTRY
