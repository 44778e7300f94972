"""The cable between the machine and the node, and the way out for pods.

The node lives in its own network namespace, so that the bridge, kube-proxy's and CNI's rules vanish with it. On the
machine there are: one veth interface with routes to pods and Services, three iptables rules whose comment names the
cluster, and forwarding switched on (restored when the last cluster goes).
"""

import fcntl
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from e2e.cluster import shell
from e2e.cluster.errors import ClusterError, UsageError
from e2e.cluster.layout import SLOTS, Addresses, Layout

FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
FORWARDING_BEFORE = Path("/run/kvasir-cluster.ip_forward")  # the machine's own setting, while clusters need another
BRIDGE_FILTER = Path("/proc/sys/net/bridge")
NODE_INTERFACE = "eth0"


def free_slot() -> Addresses:
    """The first slot whose interface and networks nobody on this machine uses.

    Raises:
        UsageError: all are taken; names the routes in the way of the first.
    """
    routes = machine_routes(shell.run(["ip", "-json", "route", "show", "table", "main"]))
    for slot in range(SLOTS):
        addresses = Addresses(slot)
        if not addresses.overlaps(routes) and not interface_exists(addresses):
            return addresses
    taken = ", ".join(Addresses(0).overlaps(routes)) or "interfaces kvasir0 to kvasir7 exist"
    raise UsageError(f"no free network for a cluster: in the way of the first choice: {taken}")


def machine_routes(listing: str) -> list[str]:
    """The destinations in `ip -json route`, but for the default route."""
    return [route["dst"] for route in json.loads(listing) if re.match(r"\d", route["dst"])]


def any_cluster() -> bool:
    """Whether any cluster is connected to this machine."""
    return any(interface_exists(Addresses(slot)) for slot in range(SLOTS))


def interface_exists(addresses: Addresses) -> bool:
    return Path("/sys/class/net", addresses.interface).exists()


@contextmanager
def choosing() -> Iterator[None]:
    """Held from the choice of a slot until its interface exists: two clusters that start at once choose in turn."""
    with Path("/run/kvasir-cluster.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def connect(addresses: Addresses, layout: Layout, init: int) -> None:
    """Lays the cable into the namespace of process `init`, with addresses, routes and the way out."""
    if not BRIDGE_FILTER.exists():
        shell.run(["modprobe", "br_netfilter"])
    shell.run(["ip", "link", "add", addresses.interface, "type", "veth", "peer", NODE_INTERFACE, "netns", str(init)])
    host = f"addr add {addresses.host}/30 dev {addresses.interface}\nlink set {addresses.interface} up\n"
    routes = "".join(
        f"route add {cidr} via {addresses.node}\n" for cidr in (addresses.pod_cidr, addresses.service_cidr)
    )
    shell.run(["ip", "-batch", "-"], text_input=host + routes)
    node = (
        f"link set lo up\naddr add {addresses.node}/30 dev {NODE_INTERFACE}\nlink set {NODE_INTERFACE} up\n"
        f"route add default via {addresses.host}\n"
        # On a cloud's machine, the metadata service with its credentials is none of a pod's business.
        "route add unreachable 169.254.0.0/16\n"
    )
    inside = ["nsenter", "--target", str(init), "--net"]
    shell.run([*inside, "ip", "-batch", "-"], text_input=node)
    settings = ["net.ipv4.ip_forward=1", "net.bridge.bridge-nf-call-iptables=1"]
    shell.run([*inside, "--mount", "sysctl", "-q", "-w", *settings])
    for rule in _rules(addresses, layout):
        shell.run(["iptables", "-w", "10", *rule])
    _switch_forwarding_on()


def _rules(addresses: Addresses, layout: Layout) -> list[list[str]]:
    comment = ["-m", "comment", "--comment", rule_comment(layout)]
    interface = addresses.interface
    way_out = f"-t nat -A POSTROUTING -s {addresses.link_cidr} ! -o {interface}".split()
    return [
        [*way_out, *comment, "-j", "MASQUERADE"],
        ["-t", "filter", "-I", "FORWARD", "-i", interface, *comment, "-j", "ACCEPT"],
        ["-t", "filter", "-I", "FORWARD", "-o", interface, *comment, "-j", "ACCEPT"],
    ]


def rule_comment(layout: Layout) -> str:
    return f"kvasir-cluster/{layout.name}"


def _switch_forwarding_on() -> None:
    before = FORWARDING.read_text().strip()
    if before == "0":
        FORWARDING_BEFORE.write_text(before)
        FORWARDING.write_text("1")


def disconnect(layout: Layout, addresses: Addresses | None) -> None:
    """Removes what `connect` made on the machine; harmless when nothing is there."""
    if addresses and interface_exists(addresses):
        _delete_interface(addresses)
    for table, rule in machine_rules(layout):
        shell.run(["iptables", "-w", "10", "-t", table, *rule])
    if FORWARDING_BEFORE.exists() and not any_cluster():
        FORWARDING.write_text(FORWARDING_BEFORE.read_text())
        FORWARDING_BEFORE.unlink()


def _delete_interface(addresses: Addresses) -> None:
    """The kernel takes the interface away too, when it buries the node's network: whoever comes first."""
    try:
        shell.run(["ip", "link", "delete", addresses.interface])
    except ClusterError:
        if interface_exists(addresses):
            raise


def machine_rules(layout: Layout) -> list[tuple[str, list[str]]]:
    """The machine's rules that carry the cluster's comment, as (table, arguments that delete the rule)."""
    found = []
    for table in ("nat", "filter"):
        try:
            listing = shell.run(["iptables", "-w", "10", "-t", table, "-S"])
        except ClusterError:  # no iptables on the machine: then none of our rules either
            continue
        found += [(table, rule) for rule in deletions(listing, rule_comment(layout))]
    return found


def deletions(listing: str, comment: str) -> list[list[str]]:
    """From `iptables -S`: the arguments that delete each rule with exactly this comment."""
    words = [line.split() for line in listing.splitlines()]
    ours = [rule for rule in words if rule[:1] == ["-A"] and _comment(rule) == comment]
    return [["-D", *(word.strip('"') for word in rule[1:])] for rule in ours]


def _comment(rule: list[str]) -> str | None:
    return rule[rule.index("--comment") + 1].strip('"') if "--comment" in rule else None
