"""The `status` and `logs` verbs: what runs, since when, how it feels, and what it said."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from e2e.cluster import processes
from e2e.cluster.api import Api, Object
from e2e.cluster.errors import ClusterError, UsageError
from e2e.cluster.layout import Layout
from e2e.cluster.record import Report, read_record, reports

COMPONENTS = (
    "supervisor",
    "containerd",
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "dns",
    "heartbeat",
)


UNREPORTED = Report(running=False, ends=0, last_status=0)


@dataclass(frozen=True)
class ComponentState:
    """One line of the table; `ends` is how often it has ended and was started again."""

    name: str
    pid: int | None
    up_seconds: float
    rss: int
    ends: int
    last_status: int

    @property
    def health(self) -> str:
        if self.pid is None and not self.ends:
            return "not started"
        if self.pid is None:
            return f"down (ended {self.ends} times, last status {self.last_status})"
        return "ok" if not self.ends else f"ok (started again {self.ends} times, last status {self.last_status})"


def component_states(layout: Layout) -> list[ComponentState]:
    running = processes.components(processes.cluster_processes(layout.state))
    reported = reports(layout)
    now = processes.uptime()
    return [_state(name, running.get(name), reported.get(name, UNREPORTED), now) for name in COMPONENTS]


def _state(name: str, process: processes.Process | None, report: Report, now: float) -> ComponentState:
    if process is None:
        return ComponentState(name, None, 0, 0, report.ends, report.last_status)
    return ComponentState(name, process.pid, now - process.started, process.rss, report.ends, report.last_status)


def show(layout: Layout) -> bool:
    """Prints the tables; True when everything is well.

    Raises:
        ClusterError: there is no cluster.
    """
    record = read_record(layout)
    if record is None:
        raise ClusterError("no cluster here; `up` makes one", exit_code=3)
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 140
    states = component_states(layout)
    console.print(f"Kubernetes {record.version} from {record.binaries}; state in {layout.state}")
    console.print(_component_table(states))
    well = all(state.pid for state in states) and layout.kubeconfig.exists()
    if well:
        with Api.from_kubeconfig(layout.kubeconfig) as api:
            console.print(_node_table(api.get("/api/v1/nodes")["items"]))
    console.print(f"kubeconfig: {layout.kubeconfig}" if well else "[red]not usable[/red]: `up` makes it anew")
    return well


def _component_table(states: list[ComponentState]) -> Table:
    table = Table("component", "pid", "up", "memory", "health")
    for state in states:
        size = f"{state.rss / 2**20:.0f} MiB" if state.pid else ""
        table.add_row(state.name, str(state.pid or "-"), duration(state.up_seconds), size, state.health)
    return table


def _node_table(nodes: list[Object]) -> Table:
    table = Table("node", "ready", "kubelet", "address", "cpu", "memory", "devices")
    for node in nodes:
        status = node["status"]
        ready = next((c["status"] for c in status.get("conditions", []) if c["type"] == "Ready"), "Unknown")
        address = next((a["address"] for a in status.get("addresses", []) if a["type"] == "InternalIP"), "-")
        allocatable = status["allocatable"]
        devices = ", ".join(f"{key}: {value}" for key, value in allocatable.items() if key.startswith("nvidia.com/"))
        version = status["nodeInfo"]["kubeletVersion"]
        table.add_row(
            node["metadata"]["name"], ready, version, address, allocatable["cpu"], allocatable["memory"], devices
        )
    return table


def duration(value: float) -> str:
    """`42s`, `5m10s`, `3h5m`."""
    whole = int(value)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60}s"
    return f"{whole // 3600}h{whole % 3600 // 60}m"


def print_logs(layout: Layout, component: str | None, lines: int, *, follow: bool) -> None:
    """Prints the end of one log or of all, then what is added.

    Raises:
        UsageError: there is no such log; names those that there are.
    """
    logs = {path.stem: path for path in sorted(layout.logs.glob("*.log"))} if layout.logs.exists() else {}
    if component and component not in logs:
        raise UsageError(f"no log of {component!r}; there are: {', '.join(logs) or 'none, as there is no cluster'}")
    chosen = {component: logs[component]} if component else logs
    for name, path in chosen.items():
        prefix = "" if component else f"{name}: "
        for line in path.read_text(errors="replace").splitlines()[-lines:]:
            print(prefix + line)
    if follow:
        for name, line in _added(chosen):
            print(line if component else f"{name}: {line}", flush=True)


def _added(logs: dict[str, Path]) -> Iterator[tuple[str, str]]:
    files = {name: path.open(errors="replace") for name, path in logs.items()}
    for file in files.values():
        file.seek(0, os.SEEK_END)
    while True:
        for name, file in files.items():
            for line in file:
                yield name, line.rstrip("\n")
        time.sleep(0.25)
