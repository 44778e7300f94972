"""What the cluster's names mean: the Kubernetes DNS specification as a pure function of Services and Endpoints.

Source: https://github.com/kubernetes/dns/blob/master/docs/specification.md (version 1.1.0), IPv4 only.
"""

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

TTL = 5  # seconds, as CoreDNS answers by default
Key = tuple[str, str]  # namespace, name


@dataclass
class Store:
    """Services and Endpoints by namespace and name, as the API server last told."""

    services: dict[Key, dict[str, Any]] = field(default_factory=dict)
    endpoints: dict[Key, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """One resource record; `data` in zone file form."""

    name: str
    kind: str
    data: str


@dataclass(frozen=True)
class Answer:
    """`exists` is False for NXDOMAIN; a name that exists without records of the asked kind has none (NODATA)."""

    exists: bool
    records: tuple[Record, ...] = ()


@dataclass(frozen=True)
class Endpoint:
    address: str
    hostname: str | None
    ports: tuple[tuple[str, str, int], ...]  # name, protocol, number

    @property
    def label(self) -> str:
        """The endpoint's own label below a headless Service."""
        return self.hostname or self.address.replace(".", "-")


NOTHING = Answer(exists=False)


def resolve(store: Store, domain: str, name: str, kind: str) -> Answer:
    """Answers a question about `name` (no trailing dot, any case) for one kind of record (A, SRV, PTR, ANY, ...)."""
    name = name.lower()
    if name.endswith(".in-addr.arpa"):
        return _of_kind(_reverse(store, domain, name), kind)
    labels = name.removesuffix(domain).strip(".").split(".")
    match labels:
        case ["dns-version"]:
            return _of_kind([Record(name, "TXT", '"1.1.0"')], kind)
        case ["svc" | "pod" | ""]:
            return Answer(exists=True)
        case [address, _, "pod"]:
            return _pod(name, address, kind)
        case [*rest, namespace, "svc"] if len(rest) <= 3:
            return _service(store, domain, name, rest, namespace, kind)
    return NOTHING


def _of_kind(records: list[Record], kind: str) -> Answer:
    wanted = [record for record in records if kind in ("ANY", record.kind) or record.kind == "CNAME"]
    return Answer(exists=bool(records), records=tuple(wanted))


def _pod(name: str, label: str, kind: str) -> Answer:
    try:
        address = ipaddress.IPv4Address(label.replace("-", "."))
    except ValueError:
        return NOTHING
    return _of_kind([Record(name, "A", str(address))], kind)


def _service(store: Store, domain: str, name: str, rest: list[str], namespace: str, kind: str) -> Answer:
    if not rest:
        return Answer(exists=any(key[0] == namespace for key in list(store.services)))
    service = store.services.get((namespace, rest[-1]))
    if service is None:
        return NOTHING
    base = f"{rest[-1]}.{namespace}.svc.{domain}"
    endpoints = list(_endpoints(store.endpoints.get((namespace, rest[-1]))))
    match rest:
        case [_]:
            return Answer(exists=True, records=_of_kind(_addresses(service, name, endpoints), kind).records)
        case [label, _]:
            records = [Record(name, "A", e.address) for e in endpoints if _headless(service) and e.label == label]
            return _of_kind(records, kind)
        case [port, protocol, _]:
            return _of_kind(list(_ports(service, name, base, endpoints, port, protocol)), kind)
    return NOTHING


def _headless(service: dict[str, Any]) -> bool:
    return bool(service["spec"].get("clusterIP") == "None")


def _addresses(service: dict[str, Any], name: str, endpoints: list[Endpoint]) -> list[Record]:
    spec = service["spec"]
    if spec.get("type") == "ExternalName":
        return [Record(name, "CNAME", spec["externalName"].rstrip(".") + ".")]
    if _headless(service):
        return [Record(name, "A", address) for address in dict.fromkeys(e.address for e in endpoints)]
    return [Record(name, "A", spec["clusterIP"])] if spec.get("clusterIP") else []


def _ports(
    service: dict[str, Any], name: str, base: str, endpoints: list[Endpoint], port: str, protocol: str
) -> Iterator[Record]:
    wanted = (port.removeprefix("_"), protocol.removeprefix("_"))
    if _headless(service):
        for endpoint in endpoints:
            for label, kind, number in endpoint.ports:
                if (label, kind.lower()) == wanted:
                    yield Record(name, "SRV", f"0 100 {number} {endpoint.label}.{base}.")
        return
    for declared in service["spec"].get("ports", []):
        if (declared.get("name", ""), declared.get("protocol", "TCP").lower()) == wanted:
            yield Record(name, "SRV", f"0 100 {declared['port']} {base}.")


def _endpoints(endpoints: dict[str, Any] | None) -> Iterator[Endpoint]:
    for subset in (endpoints or {}).get("subsets") or []:
        ports = tuple((p.get("name", ""), p.get("protocol", "TCP"), p["port"]) for p in subset.get("ports") or [])
        for address in subset.get("addresses") or []:
            yield Endpoint(address["ip"], address.get("hostname"), ports)


def _reverse(store: Store, domain: str, name: str) -> list[Record]:
    address = ".".join(reversed(name.removesuffix(".in-addr.arpa").split(".")))
    for (namespace, service), content in list(store.services.items()):
        base = f"{service}.{namespace}.svc.{domain}"
        if content["spec"].get("clusterIP") == address:
            return [Record(name, "PTR", f"{base}.")]
        if _headless(content):
            for endpoint in _endpoints(store.endpoints.get((namespace, service))):
                if endpoint.address == address and endpoint.hostname:
                    return [Record(name, "PTR", f"{endpoint.label}.{base}.")]
    return []
