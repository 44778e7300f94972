"""What a fresh API server needs before the cluster is usable: rights for our own helpers, and the DNS Service."""

from e2e.cluster.api import Api, Object, wait_until
from e2e.cluster.flags import Spec

API_ONLY_LABEL = "kvasir.dev/api-only"
RBAC = "/apis/rbac.authorization.k8s.io/v1"


def apply_bootstrap(api: Api, spec: Spec) -> None:
    """Creates the objects; those that exist already are left as they are."""
    for path, body in bootstrap_objects(spec.addresses.dns_service, spec.addresses.node):
        api.create(path, body)


def bootstrap_objects(dns_service: str, dns_server: str) -> list[tuple[str, Object]]:
    """Pairs of collection path and object."""
    read = ["get", "list", "watch"]
    dns_rules = [_rule("", ["services", "endpoints"], read)]
    heartbeat_rules = [
        _rule("", ["nodes"], read),
        _rule("", ["nodes/status"], ["patch", "update"]),
        _rule("coordination.k8s.io", ["leases"], ["get", "create", "update", "patch"]),
    ]
    return [
        *_role("kvasir:dns", dns_rules),
        *_role("kvasir:heartbeat", heartbeat_rules),
        ("/api/v1/namespaces/kube-system/services", _dns_service(dns_service)),
        ("/api/v1/namespaces/kube-system/endpoints", _dns_endpoints(dns_server)),
    ]


def _rule(group: str, resources: list[str], verbs: list[str]) -> Object:
    return {"apiGroups": [group], "resources": resources, "verbs": verbs}


def _role(name: str, rules: list[Object]) -> list[tuple[str, Object]]:
    """A cluster role and its binding to the user of the same name."""
    group = "rbac.authorization.k8s.io"
    reference = {"apiGroup": group, "kind": "ClusterRole", "name": name}
    subject = {"apiGroup": group, "kind": "User", "name": name}
    return [
        (f"{RBAC}/clusterroles", {"metadata": {"name": name}, "rules": rules}),
        (f"{RBAC}/clusterrolebindings", {"metadata": {"name": name}, "roleRef": reference, "subjects": [subject]}),
    ]


def _dns_service(address: str) -> Object:
    ports = [{"name": f"dns{s}", "port": 53, "protocol": p} for s, p in (("", "UDP"), ("-tcp", "TCP"))]
    metadata = {"name": "kube-dns", "labels": {"k8s-app": "kube-dns", "kubernetes.io/name": "DNS"}}
    return {"metadata": metadata, "spec": {"clusterIP": address, "ports": ports}}


def _dns_endpoints(address: str) -> Object:
    ports = [{"name": f"dns{s}", "port": 53, "protocol": p} for s, p in (("", "UDP"), ("-tcp", "TCP"))]
    return {"metadata": {"name": "kube-dns"}, "subsets": [{"addresses": [{"ip": address}], "ports": ports}]}


def wait_for_api(api: Api, timeout: float = 90) -> None:
    wait_until("the API server's /readyz", lambda: api.text("/readyz") == "ok", timeout)


def wait_for_node(api: Api, spec: Spec, timeout: float = 60) -> None:
    """Gives the node its pod network and waits until it is Ready and takes pods."""
    path = f"/api/v1/nodes/{spec.layout.node_name}"
    network = spec.addresses.node_pod_cidr
    wait_until("the kubelet to register the node", lambda: api.find(path), timeout)
    api.merge(path, {"spec": {"podCIDR": network, "podCIDRs": [network]}})
    wait_until("the node's Ready condition", lambda: node_usable(api.find(path)), timeout)


def node_usable(node: Object | None) -> bool:
    """Ready, and without the taint that keeps pods away until the node controller has seen it."""
    if node is None:
        return False
    conditions = {condition["type"]: condition["status"] for condition in node["status"].get("conditions", [])}
    taints = {taint["key"] for taint in node["spec"].get("taints", [])}
    return conditions.get("Ready") == "True" and "node.kubernetes.io/not-ready" not in taints


def wait_for_service_accounts(api: Api, timeout: float = 30) -> None:
    """Until the default namespace can run pods, they are refused for want of a service account."""
    namespace = "/api/v1/namespaces/default"
    paths = [f"{namespace}/serviceaccounts/default", f"{namespace}/configmaps/kube-root-ca.crt"]
    wait_until("the default service account", lambda: all(api.find(path) for path in paths), timeout)
