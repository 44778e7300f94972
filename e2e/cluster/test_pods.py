"""What manifests may count on: pods of the cluster live as on any other Kubernetes."""

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from e2e.cluster.conftest import program
from e2e.cluster.layout import Layout
from e2e.support.kubectl import Kubectl, KubectlError
from e2e.support.waiting import wait_for

Object = dict[str, Any]
SERVE = "echo $HOSTNAME > /www/index.html; exec /bin/busybox httpd -f -p 8080 -h /www"
IMAGE = "kvasir-test-box:1"


def box(name: str, **spec: Any) -> Object:
    """A pod that answers on port 8080 with its own name."""
    container = {
        "name": "box",
        "image": IMAGE,
        "command": ["/bin/busybox", "sh", "-c", SERVE],
        "securityContext": {"readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "www", "mountPath": "/www"}],
        "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
    }
    pod: Object = {
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        "terminationGracePeriodSeconds": 0,
        "containers": [container],
        "volumes": [{"name": "www", "emptyDir": {"medium": "Memory"}}],
    }
    metadata = {"name": name, "labels": {"app": name}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod | spec}


def service(name: str, **spec: Any) -> Object:
    ports = [{"name": "http", "port": 80, "targetPort": 8080}]
    spec = {"selector": {"app": name}, "ports": ports} | spec
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def ready(space: Kubectl, *names: str) -> None:
    space.run("wait", "--for=condition=Ready", "--timeout=60s", *(f"pod/{name}" for name in names))


def inside(space: Kubectl, pod: str, *command: str) -> str:
    return space.run("exec", pod, "--", "/bin/busybox", *command)


def test_names_resolve_in_pods(space: Kubectl) -> None:
    """Services by short and full name, headless Services by their pods, and the API server."""
    headless = service("members", clusterIP="None", selector={"app": "server"})
    space.apply(box("server"), service("server"), headless, box("client"))
    ready(space, "server", "client")
    address = str(space.get("service", "server")["spec"]["clusterIP"])  # type: ignore[index]
    pod = str(space.get("pod", "server")["status"]["podIP"])  # type: ignore[index]
    domain = f"{space.namespace}.svc.cluster.local"
    wait_for("the name", lambda: address in inside(space, "client", "nslookup", f"server.{domain}"), timeout=10)
    assert pod in inside(space, "client", "nslookup", f"members.{domain}")
    assert f"search {domain}" in inside(space, "client", "cat", "/etc/resolv.conf")
    assert "10." in inside(space, "client", "nslookup", "kubernetes.default.svc.cluster.local")


def test_services_reach_pods_and_pods_themselves(space: Kubectl) -> None:
    """A ClusterIP works from another pod, from the very pod behind it (hairpin) and from the machine."""
    space.apply(box("server"), service("server"), box("client"))
    ready(space, "server", "client")
    address = str(space.get("service", "server")["spec"]["clusterIP"])  # type: ignore[index]
    wait_for("the endpoint", lambda: fetched(space, "client", address), timeout=15)
    assert fetched(space, "client", address).endswith("\n\nserver\n")
    assert fetched(space, "server", address).endswith("\n\nserver\n")
    assert urllib.request.urlopen(f"http://{address}/", timeout=5).read() == b"server\n"


def fetched(space: Kubectl, pod: str, address: str) -> str:
    """What port 80 answers a pod; busybox's own wget needs libraries that the image does not have."""
    request = f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | /bin/busybox nc -w 5 {address} 80"
    try:
        return inside(space, pod, "sh", "-c", request)
    except KubectlError:  # not connected
        return ""


def test_pods_reach_the_api_server_with_their_service_account(space: Kubectl) -> None:
    """A pod has a token, and the API server answers at the address that the environment names."""
    space.apply(box("client"))
    ready(space, "client")
    assert "namespace" in inside(space, "client", "ls", "/var/run/secrets/kubernetes.io/serviceaccount")
    plain = "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | /bin/busybox nc -w 5 $KUBERNETES_SERVICE_HOST 443"
    assert "Client sent an HTTP request to an HTTPS server" in inside(space, "client", "sh", "-c", plain)


def test_logs_exec_and_port_forward(space: Kubectl) -> None:
    """The kubelet's streaming end points work for kubectl."""
    pod = box("server")
    pod["spec"]["containers"][0]["command"][-1] = f"echo started; {SERVE}"
    space.apply(pod)
    ready(space, "server")
    assert space.run("logs", "server") == "started\n"
    assert inside(space, "server", "id", "-u") == "1000\n"
    with space.background("port-forward", "pod/server", ":8080") as forward:
        assert forward.stdout is not None
        port = forward.stdout.readline().split("127.0.0.1:")[1].split(" ")[0]
        assert urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).read() == b"server\n"


def test_readiness_gates_decide_about_endpoints(space: Kubectl) -> None:
    """A pod whose containers are ready joins the endpoints only once its gate is true."""
    space.apply(box("gated", readinessGates=[{"conditionType": "kvasir.dev/warm"}]), service("gated"))
    space.run("wait", "--for=condition=ContainersReady", "--timeout=60s", "pod/gated")
    assert not addresses(space, "gated")
    patch = {"status": {"conditions": [{"type": "kvasir.dev/warm", "status": "True"}]}}
    space.run("patch", "pod", "gated", "--subresource=status", "--type=strategic", "-p", json.dumps(patch))
    wait_for("the endpoint", lambda: addresses(space, "gated"), timeout=15)


def addresses(space: Kubectl, name: str) -> list[str]:
    subsets = (space.get("endpoints", name) or {}).get("subsets") or []
    return [address["ip"] for subset in subsets for address in subset.get("addresses") or []]


def test_the_api_server_reaches_pods(space: Kubectl) -> None:
    """Its proxy connects to pod addresses, as it does for aggregated APIs."""
    space.apply(box("server"))
    ready(space, "server")
    path = f"/api/v1/namespaces/{space.namespace}/pods/server:8080/proxy/"
    assert space.run("get", "--raw", path) == "server\n"


def test_volumes_from_folders_of_the_machine(space: Kubectl, tmp_path: Path) -> None:
    """The `volume` verb makes a volume and its claim; a pod reads the folder through it."""
    tmp_path.chmod(0o755)
    (tmp_path / "index.html").write_text("from the machine\n")
    program("volume", "selftest", str(tmp_path), "--capacity", "1Gi", "--claim", f"{space.namespace}/data")
    pod = box("reader", volumes=[{"name": "www", "persistentVolumeClaim": {"claimName": "data"}}])
    pod["spec"]["containers"][0]["command"][-1] = "exec /bin/busybox httpd -f -p 8080 -h /www"
    space.apply(pod)
    ready(space, "reader")
    assert inside(space, "reader", "cat", "/www/index.html") == "from the machine\n"
    space.run("delete", "pod", "reader", "--now")
    space.run("delete", "pvc", "data")
    space.run("delete", "pv", "selftest")


def test_requests_that_exceed_memory_end_in_oom_killed(space: Kubectl) -> None:
    """Memory limits are the kernel's, and the reason reaches the pod's status."""
    pod = box("hungry", restartPolicy="Never")
    container = pod["spec"]["containers"][0]
    del container["readinessProbe"]
    container["command"][-1] = "exec /bin/busybox dd if=/dev/zero of=/www/big bs=1M count=64"
    container["resources"] = {"limits": {"memory": "16Mi"}}
    space.apply(pod)

    def reason() -> str:
        statuses = (space.get("pod", "hungry") or {})["status"].get("containerStatuses", [])
        return str(statuses[0]["state"].get("terminated", {}).get("reason")) if statuses else ""

    assert wait_for("the end", lambda: reason() not in ("", "None") and reason(), timeout=30) == "OOMKilled"


def test_nodes_may_touch_only_what_is_theirs(cluster: Kubectl, layout: Layout) -> None:
    """A kubelet's identity reads no foreign secrets (Node authorizer) and sets no reserved labels (NodeRestriction)."""
    node = [f"--as=system:node:{layout.node_name}", "--as-group=system:nodes"]
    with pytest.raises(KubectlError, match="no"):
        cluster.run("auth", "can-i", "list", "secrets", "--namespace=kube-system", *node)
    with pytest.raises(KubectlError, match="is not allowed to modify labels"):
        cluster.run("label", "node", layout.node_name, "node-restriction.kubernetes.io/mine=true", *node)
