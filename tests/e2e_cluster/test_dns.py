"""What the cluster's name server answers."""

import ipaddress
from typing import Any

import dns.message
import dns.rcode
import dns.rdatatype
import pytest

from e2e.cluster.dns import Answerer
from e2e.cluster.dns_records import NOTHING, Answer, Record, Store, resolve

DOMAIN = "cluster.local"
PORT = {"name": "http", "port": 80, "protocol": "TCP"}


def endpoints(*addresses: dict[str, Any]) -> dict[str, Any]:
    return {"subsets": [{"addresses": list(addresses), "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]}]}


@pytest.fixture
def store() -> Store:
    """A plain, a headless and an external Service."""
    return Store(
        services={
            ("shop", "web"): {"spec": {"clusterIP": "10.96.7.1", "ports": [PORT]}},
            ("shop", "db"): {"spec": {"clusterIP": "None", "ports": [PORT]}},
            ("shop", "bank"): {"spec": {"type": "ExternalName", "externalName": "bank.example.org"}},
        },
        endpoints={
            ("shop", "web"): endpoints({"ip": "10.244.0.9"}),
            ("shop", "db"): endpoints({"ip": "10.244.0.5", "hostname": "db-0"}, {"ip": "10.244.0.6"}),
        },
    )


def found(name: str, kind: str, *data: str) -> Answer:
    return Answer(exists=True, records=tuple(Record(name, kind, each) for each in data))


@pytest.mark.parametrize(
    ("name", "kind", "data"),
    [
        ("web.shop.svc.cluster.local", "A", ["10.96.7.1"]),
        ("db.shop.svc.cluster.local", "A", ["10.244.0.5", "10.244.0.6"]),
        ("db-0.db.shop.svc.cluster.local", "A", ["10.244.0.5"]),
        ("10-244-0-6.db.shop.svc.cluster.local", "A", ["10.244.0.6"]),
        ("_http._tcp.web.shop.svc.cluster.local", "SRV", ["0 100 80 web.shop.svc.cluster.local."]),
        (
            "_http._tcp.db.shop.svc.cluster.local",
            "SRV",
            [
                "0 100 8080 db-0.db.shop.svc.cluster.local.",
                "0 100 8080 10-244-0-6.db.shop.svc.cluster.local.",
            ],
        ),
        ("10-244-0-9.shop.pod.cluster.local", "A", ["10.244.0.9"]),
        ("1.7.96.10.in-addr.arpa", "PTR", ["web.shop.svc.cluster.local."]),
        ("5.0.244.10.in-addr.arpa", "PTR", ["db-0.db.shop.svc.cluster.local."]),
        ("dns-version.cluster.local", "TXT", ['"1.1.0"']),
    ],
)
def test_names_of_the_specification(store: Store, name: str, kind: str, data: list[str]) -> None:
    """The records of the Kubernetes DNS specification."""
    assert resolve(store, DOMAIN, name, kind) == found(name, kind, *data)


def test_an_external_name_is_an_alias_whatever_is_asked(store: Store) -> None:
    """Resolvers ask for A and follow the CNAME."""
    name = "bank.shop.svc.cluster.local"
    assert resolve(store, DOMAIN, name, "A") == found(name, "CNAME", "bank.example.org.")


@pytest.mark.parametrize(
    "name",
    [
        "nope.shop.svc.cluster.local",
        "web.nowhere.svc.cluster.local",
        "www.web.shop.svc.cluster.local",
        "_smtp._tcp.web.shop.svc.cluster.local",
        "not-an-address.shop.pod.cluster.local",
        "web.shop.svc.cluster.local.svc.cluster.local",
        "1.1.1.10.in-addr.arpa",
    ],
)
def test_unknown_names_do_not_exist(store: Store, name: str) -> None:
    """NXDOMAIN, so that a resolver goes on with its next search domain."""
    assert resolve(store, DOMAIN, name, "A") == NOTHING


@pytest.mark.parametrize("name", ["web.shop.svc.cluster.local", "shop.svc.cluster.local", "svc.cluster.local"])
def test_names_without_records_of_a_kind_exist(store: Store, name: str) -> None:
    """NODATA for AAAA: NXDOMAIN would make some resolvers forget the A record too."""
    assert resolve(store, DOMAIN, name, "AAAA") == Answer(exists=True)


async def test_wire_form_and_letter_case(store: Store) -> None:
    """The answer repeats the question as it was asked and is authoritative."""
    query = dns.message.make_query("WEB.shop.svc.cluster.LOCAL", "A")
    wire = await Answerer(store, []).answer(query.to_wire())
    assert wire is not None
    reply = dns.message.from_wire(wire)
    assert reply.id == query.id
    assert [item.to_text() for item in reply.answer[0]] == ["10.96.7.1"]
    assert reply.rcode() == dns.rcode.NOERROR


async def test_own_addresses_are_never_asked_upstream(store: Store) -> None:
    """A reverse look-up inside the cluster's networks is answered here: NXDOMAIN when it is unknown."""
    query = dns.message.make_query("9.9.96.10.in-addr.arpa", "PTR")
    wire = await Answerer(store, [ipaddress.IPv4Network("10.96.0.0/16")]).answer(query.to_wire())
    assert wire is not None
    assert dns.message.from_wire(wire).rcode() == dns.rcode.NXDOMAIN


async def test_garbage_is_not_answered(store: Store) -> None:
    """What is no DNS message gets no reply."""
    assert await Answerer(store, []).answer(b"\x00\x01garbage") is None
