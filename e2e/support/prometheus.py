"""A real Prometheus from Debian's package, on this machine, that finds the cluster's pods by itself."""

import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from e2e.cluster import packages
from e2e.support.kubectl import Kubectl
from e2e.support.waiting import wait_for

CACHE = Path.home() / ".cache" / "kvasir"
PACKAGES = ("prometheus",)
PROGRAM = "usr/bin/prometheus"


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
def prometheus(kubectl: Kubectl, scratch: Path, namespace: str) -> Iterator[Prometheus]:
    """Run one that scrapes the runtimes of a namespace every second, as the PodMonitor of manifests/ says."""
    root = packages.unpacked(CACHE, PACKAGES) or packages.unpack(CACHE, PACKAGES, (PROGRAM,))
    config, log = scratch / "prometheus.json", scratch / "prometheus.log"
    config.write_text(json.dumps(scrape_config(kubectl, namespace)))  # JSON is YAML
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


def scrape_config(kubectl: Kubectl, namespace: str) -> dict[str, Any]:
    """What the Prometheus operator makes of manifests/components/monitoring/runtime-pod-monitor.yaml."""
    labels = "__meta_kubernetes_pod_label_app_kubernetes_io"
    keep = [
        {"source_labels": [f"{labels}_name"], "regex": "kvasir-runtime", "action": "keep"},
        {"source_labels": [f"{labels}_component"], "regex": "runtime", "action": "keep"},
        {"source_labels": ["__meta_kubernetes_pod_container_port_name"], "regex": "http", "action": "keep"},
    ]
    name = [{"source_labels": ["__meta_kubernetes_pod_name"], "target_label": "pod"}]
    discovery = {"role": "pod", "kubeconfig_file": str(kubectl.kubeconfig), "namespaces": {"names": [namespace]}}
    job = {"job_name": "kvasir-runtime", "kubernetes_sd_configs": [discovery], "relabel_configs": keep + name}
    return {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": [job]}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
