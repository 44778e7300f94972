"""What a run needs around it: a fresh cluster, nodes without machines, the operator as a process, and their ends."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import yaml

from e2e.bench_operator.kubelet import NETWORK
from e2e.cluster import lifecycle, nodes, processes
from e2e.cluster.api import Api, wait_until
from e2e.cluster.layout import Layout, layout_for
from e2e.cluster.progress import Progress
from e2e.cluster.shell import run as shell_run

ROOT: Final = Path(__file__).parent.parent.parent
CLUSTER: Final = "bench-operator"
"""Name of the cluster: one of its own, made anew for each run, so that none inherits what another left."""
PODS_A_NODE: Final = 110
METRICS_PORT, HEALTH_PORT = 18080, 18081
PATIENCE: Final = 30.0


@dataclass(frozen=True)
class Stage:
    """A cluster with room for the pods, the kubelet's double at work and an operator that leads."""

    layout: Layout
    operator: int
    """Pid of the operator."""
    double: int
    """Pid of the kubelet's double."""
    version: str
    """Of Kubernetes."""

    @property
    def metrics(self) -> str:
        """The operator's exposition."""
        return httpx.get(f"http://127.0.0.1:{METRICS_PORT}/metrics", trust_env=False).text

    @property
    def components(self) -> dict[str, int]:
        """Pids of the cluster's own programs."""
        found = processes.components(processes.cluster_processes(self.layout.state))
        return {name: process.pid for name, process in found.items()}


@contextmanager
def staged(pods: int, folder: Path, progress: Progress) -> Iterator[Stage]:
    """Make all of it, and remove it again; logs go to `folder`. Raises ClusterError when something does not start."""
    layout = layout_for(CLUSTER)
    with ExitStack() as stack:
        stack.callback(lifecycle.down, layout, progress)
        lifecycle.down(layout, progress)
        lifecycle.up(layout, None, progress)
        stack.enter_context(answering_network())
        with Api.from_kubeconfig(layout.kubeconfig) as api, progress.step("nodes, CRD and rights"):
            version = api.get("/version")["gitVersion"]
            nodes.add(api, -(-pods // PODS_A_NODE), "bench-node", None, "1000", "4Ti")
            install(layout)
            account = write_kubeconfig(layout, folder / "operator.kubeconfig")
        log = folder / "kubelet.log"
        double = [sys.executable, "-m", "e2e.bench_operator.kubelet", "--kubeconfig", str(layout.kubeconfig)]
        played = stack.enter_context(program(double, log, {}))
        wait_until(f"the kubelet's double ({log})", lambda: "ready" in log.read_text(), PATIENCE)
        log = folder / "operator.log"
        operator = [sys.executable, "-m", "kvasir_operator", "run"]
        pid = stack.enter_context(program(operator, log, operator_environment(account)))
        wait_until(f"the operator ({log})", leads, PATIENCE)
        yield Stage(layout, pid, played, version)


@contextmanager
def answering_network() -> Iterator[None]:
    """Have this machine answer on every address that a pod may get."""
    shell_run(["ip", "route", "replace", "local", NETWORK, "dev", "lo"])
    try:
        yield
    finally:
        shell_run(["ip", "route", "del", "local", NETWORK, "dev", "lo"])


def install(layout: Layout) -> None:
    """What a user applies, but for the Deployment: the operator is a process here."""
    kubectl = ["kubectl", f"--kubeconfig={layout.kubeconfig}"]
    shell_run([*kubectl, "apply", "-k", str(ROOT / "crds")])
    base = ROOT / "manifests" / "base"
    for name in ("namespace.yaml", "service-account.yaml", "rbac.yaml"):
        shell_run([*kubectl, "apply", "-f", str(base / name)])
    crd = "crd/inferenceservices.kvasir.dev"
    shell_run([*kubectl, "wait", "--for=condition=Established", crd, "--timeout=30s"])


def write_kubeconfig(layout: Layout, path: Path) -> Path:
    """A kubeconfig of the operator's own service account: it gets the rights and the priority that it has in a pod."""
    wanted = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 36_000}}
    address = "/api/v1/namespaces/kvasir-system/serviceaccounts/kvasir-operator/token"
    create = ["kubectl", f"--kubeconfig={layout.kubeconfig}", "create", "--raw", address, "-f", "-"]
    token = json.loads(shell_run(create, text_input=json.dumps(wanted)))["status"]["token"]
    config = yaml.safe_load(layout.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": token}
    path.write_text(yaml.safe_dump(config))
    path.chmod(0o600)
    return path


def operator_environment(kubeconfig: Path) -> dict[str, str]:
    return {
        "KUBECONFIG": str(kubeconfig),
        "KVASIR_OPERATOR_METRICS_PORT": str(METRICS_PORT),
        "KVASIR_OPERATOR_HEALTH_PORT": str(HEALTH_PORT),
        "KVASIR_OPERATOR_LOG_FORMAT": "json",
        "KVASIR_OPERATOR_CPU_RESOURCES": json.dumps({"requests": {"cpu": "1m", "memory": "1Mi"}}),
    }


def leads() -> bool:
    """Whether the operator has the Lease and a full cache."""
    try:
        return httpx.get(f"http://127.0.0.1:{HEALTH_PORT}/readyz", trust_env=False).text == "leads"
    except httpx.TransportError:
        return False


@contextmanager
def program(argv: list[str], log: Path, environment: dict[str, str]) -> Iterator[int]:
    """Run a program with its output in `log`; yields its pid, ends it at the end of the block."""
    given = {key: value for key, value in os.environ.items() if key.lower() not in ("http_proxy", "https_proxy")}
    paths = os.pathsep.join(str(ROOT / part) for part in ("operator", "runtime", "."))
    with log.open("w") as output:
        process = subprocess.Popen(
            argv, cwd=ROOT, env=given | {"PYTHONPATH": paths} | environment, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
