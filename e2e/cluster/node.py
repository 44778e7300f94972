"""Writes a node's files and starts it: the supervisor in its own namespaces, and below it every component."""

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from e2e.cluster import cgroups, configs, flags, network, pki, processes
from e2e.cluster.api import wait_until
from e2e.cluster.errors import ClusterError
from e2e.cluster.flags import Spec
from e2e.cluster.layout import NODE_FOLDERS

# File in config/ -> identity in pki/ (see pki.cluster_identities).
KUBECONFIGS = {"controller-manager": "controller-manager", "scheduler": "scheduler", "proxy": "proxy", "dns": "dns"}
REPOSITORY = Path(__file__).resolve().parents[2]


def write_files(spec: Spec) -> None:
    """Certificates, kubeconfigs and configuration, into the state folder."""
    layout = spec.layout
    for folder in (layout.config / "cni", layout.config / "registries", layout.logs, layout.run):
        folder.mkdir(parents=True, exist_ok=True)
    pki.write_pki(layout.pki, spec.addresses, layout.node_name)
    node = {"kubelet": f"node-{layout.node_name}", "heartbeat": "heartbeat", "admin": "admin"}
    for file, identity in (KUBECONFIGS | node).items():
        _write_private(layout.config / f"{file}.kubeconfig", yaml.safe_dump(_kubeconfig(spec, identity)))
    _write_yaml(layout.config / "kubelet.yaml", configs.kubelet_config(spec))
    _write_yaml(layout.config / "audit-policy.yaml", configs.audit_policy())
    _write_yaml(layout.config / "kube-proxy.yaml", configs.kube_proxy_config(spec))
    (layout.config / "containerd.toml").write_text(configs.containerd_config(spec))
    (layout.config / "cni" / "10-kvasir.conflist").write_text(json.dumps(configs.cni_config(spec), indent=2))
    (layout.config / "resolv.conf").write_text(f"nameserver {spec.addresses.node}\n")


def _kubeconfig(spec: Spec, identity: str) -> dict[str, Any]:
    def encoded(file: str) -> str:
        return base64.b64encode((spec.layout.pki / file).read_bytes()).decode()

    return configs.kubeconfig(
        spec.addresses.api_url,
        spec.layout.context,
        identity,
        encoded("ca.crt"),
        encoded(f"{identity}.crt"),
        encoded(f"{identity}.key"),
    )


def _write_private(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)


def _write_yaml(path: Path, content: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def write_plan(spec: Spec) -> Path:
    """The supervisor's plan: what runs in the node, in which order, and what it may see."""
    layout = spec.layout
    folders = [(layout.node_root / name.strip("/").replace("/", "-"), Path(name)) for name in NODE_FOLDERS]
    scratch = layout.state / "kernel"
    for folder in [scratch, *(path for pair in folders for path in pair)]:
        folder.mkdir(parents=True, exist_ok=True)
    plan = {
        "authority": str(layout.pki / "ca.crt"),
        "report": str(layout.state / "components.json"),
        "scratch": str(scratch),
        "run": str(layout.run),
        "folders": [(str(source), str(target)) for source, target in folders],
        "components": list(_components(spec)),
    }
    path = layout.state / "plan.json"
    path.write_text(json.dumps(plan, indent=2))
    return path


def _components(spec: Spec) -> Iterable[dict[str, Any]]:
    tools, binaries = spec.tools, spec.binaries
    ready = f"https://{spec.addresses.node}:6443/readyz"
    yield _component(spec, "containerd", [tools.containerd, "--config", spec.layout.config / "containerd.toml"])
    yield _component(spec, "etcd", [tools.etcd, *flags.etcd_flags(spec)])
    yield _component(spec, "kube-apiserver", [binaries / "kube-apiserver", *flags.api_server_flags(spec)])
    kubelet = [binaries / "kubelet", *flags.kubelet_flags(spec)]
    if spec.version.at_least(1, 24):
        yield _component(spec, "kubelet", kubelet, gate=ready)
    else:  # it first looks 5 s for a Docker that is not there: meanwhile the API server starts
        yield _component(spec, "kubelet", kubelet)
    for name, arguments in (
        ("kube-controller-manager", flags.controller_manager_flags(spec)),
        ("kube-scheduler", flags.scheduler_flags(spec)),
        ("kube-proxy", flags.kube_proxy_flags(spec)),
    ):
        yield _component(spec, name, [binaries / name, *arguments], gate=ready)
    python = [sys.executable, "-m"]
    own = [f"--network={cidr}" for cidr in (spec.addresses.service_cidr, spec.addresses.pod_cidr)]
    dns = [*python, "e2e.cluster.dns", *own, "--listen", spec.addresses.node, "--upstream-network", "HOST_NETWORK"]
    heartbeat = [*python, "e2e.cluster.heartbeat", "--kubeconfig"]
    config = spec.layout.config
    yield _component(spec, "dns", [*dns, "--kubeconfig", config / "dns.kubeconfig"], gate=ready)
    yield _component(spec, "heartbeat", [*heartbeat, config / "heartbeat.kubeconfig"], gate=ready, network="host")


def _component(spec: Spec, name: str, argv: list[Any], **more: str) -> dict[str, Any]:
    path = f"{spec.tools.containerd.parent}:{spec.tools.runc.parent}:/usr/sbin:/usr/bin:/sbin:/bin"
    environment = processes.clean_environment(spec.layout.state, name, path) | {"PYTHONPATH": str(REPOSITORY)}
    log = str(spec.layout.logs / f"{name}.log")
    return {"name": name, "argv": [str(part) for part in argv], "env": environment, "log": log, **more}


def start(spec: Spec, plan: Path) -> None:
    """Starts the supervisor in new namespaces and connects it to the machine's network."""
    layout = spec.layout
    cgroups.create(layout.cgroup)
    host_network = os.open("/proc/self/ns/net", os.O_RDONLY)
    namespaces = ["--mount", "--net", "--ipc", "--uts", "--pid", "--fork", "--kill-child", "--propagation", "slave"]
    supervisor = [sys.executable, "-I", Path(__file__).with_name("supervisor.py"), plan, str(host_network)]
    ready, told = os.pipe()
    with (layout.logs / "supervisor.log").open("ab") as log:
        wrapper = subprocess.Popen(
            ["unshare", *namespaces, "--", *map(str, supervisor)],
            stdin=ready,
            stdout=log,
            stderr=log,
            env=processes.clean_environment(layout.state, "supervisor", os.environ["PATH"]),
            start_new_session=True,
            pass_fds=[host_network],
        )
    os.close(host_network)
    os.close(ready)
    init = _first_process(wrapper)
    for pid in (wrapper.pid, init):
        cgroups.join(layout.cgroup, pid)
    network.connect(spec.addresses, layout, init)
    os.write(told, b"\n")  # the supervisor starts the components
    os.close(told)


def _first_process(wrapper: "subprocess.Popen[bytes]", timeout: float = 10.0) -> int:
    children = Path(f"/proc/{wrapper.pid}/task/{wrapper.pid}/children")
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline and wrapper.poll() is None:
        if found := children.read_text().split():
            return int(found[0])
        time.sleep(0.01)
    raise ClusterError("unshare did not start the node: does this machine allow new namespaces?")


def wait_for_containerd(spec: Spec) -> None:
    wait_until("containerd", spec.layout.containerd_socket.exists, 30)
