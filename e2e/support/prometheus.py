"""A real Prometheus from Debian's package, on this machine, that scrapes the cluster's pods."""

import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from e2e.cluster import packages
from e2e.support.environment import ROOT
from e2e.support.kubectl import Kubectl, Object
from e2e.support.waiting import wait_for

CACHE = Path.home() / ".cache" / "kvasir"
PACKAGES = ("prometheus",)
PROGRAM = "usr/bin/prometheus"
POD_MONITOR = ROOT / "manifests" / "components" / "monitoring" / "runtime-pod-monitor.yaml"


@dataclass(frozen=True)
class Prometheus:
    """A running one. Its HTTP API is what dashboards and autoscalers ask."""

    address: str
    log: Path

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The instant vector of an expression; AssertionError with Prometheus' own words when it is refused."""
        reply = self._get("query", query=expression)
        return list(reply["result"])

    def value(self, expression: str) -> float | None:
        """The only sample of an expression; None when there is none, or not one alone."""
        found = self.query(expression)
        return float(found[0]["value"][1]) if len(found) == 1 else None

    def targets(self) -> list[dict[str, Any]]:
        return list(self._get("targets")["activeTargets"])

    def metadata(self) -> dict[str, list[dict[str, str]]]:
        """Type and help of each series, as scraped."""
        return dict(self._get("metadata"))

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.address}/-/ready").is_success
        except httpx.TransportError:
            return False

    def _get(self, what: str, **parameters: str) -> Any:
        reply = httpx.get(f"{self.address}/api/v1/{what}", params=parameters).json()
        assert reply["status"] == "success", reply
        return reply["data"]


@contextmanager
def prometheus(kubectl: Kubectl, scratch: Path) -> Iterator[Prometheus]:
    """Run one that scrapes the runtimes of kubectl's namespace every second, as the PodMonitor of manifests/ says."""
    root = packages.unpacked(CACHE, PACKAGES) or packages.unpack(CACHE, PACKAGES, (PROGRAM,))
    config, log = scratch / "prometheus.json", scratch / "prometheus.log"
    config.write_text(json.dumps(scrape_config(kubectl)))  # JSON is YAML
    address = f"127.0.0.1:{_free_port()}"
    flags = [f"--config.file={config}", f"--storage.tsdb.path={scratch / 'data'}", f"--web.listen-address={address}"]
    with log.open("wb") as stream:
        process = subprocess.Popen([root / PROGRAM, *flags], stdout=stream, stderr=stream)
    server = Prometheus(f"http://{address}", log)
    try:
        wait_for("Prometheus to be ready", server.is_ready, timeout=60)
        yield server
    except BaseException:
        print(log.read_text()[-4000:])
        raise
    finally:
        process.terminate()
        process.wait(timeout=20)


def scrape_config(kubectl: Kubectl) -> dict[str, Any]:
    """Targets are what runtime-pod-monitor.yaml selects: Debian's build cannot ask Kubernetes by itself."""
    spec = yaml.safe_load(POD_MONITOR.read_text())["spec"]
    selector = ",".join(f"{name}={value}" for name, value in spec["selector"]["matchLabels"].items())
    [endpoint] = spec["podMetricsEndpoints"]
    targets = [
        {"targets": [f"{pod['status']['podIP']}:{port}"], "labels": {"pod": pod["metadata"]["name"]}}
        for pod in kubectl.list("pods", selector)
        for port in _ports(pod, endpoint["port"])
    ]
    job = {"job_name": "kvasir-runtime", "metrics_path": endpoint["path"], "static_configs": targets}
    return {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": [job]}


def _ports(pod: Object, name: str) -> list[int]:
    """Numbers of the container ports of that name."""
    ports = [port for container in pod["spec"]["containers"] for port in container.get("ports", [])]
    return [int(port["containerPort"]) for port in ports if port.get("name") == name]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
