"""The replicas as a router knows them."""

import pytest

from kvasir_router.fleet import REPORT_VALID_S, Fleet
from kvasir_router.prompts import Ask
from kvasir_runtime.contract.router_api import RouterConfig, RouterEndpoint


def endpoint(name: str, **fields) -> RouterEndpoint:
    return RouterEndpoint(**{"name": name, "address": f"10.0.0.{ord(name[0])}:8000", **fields})


def fleet(*endpoints: RouterEndpoint, **fields) -> Fleet:
    made = Fleet()
    made.apply(RouterConfig(endpoints=list(endpoints), **fields), 0.0)
    return made


def chosen_by(made: Fleet, ask: Ask, now: float, tried: frozenset[str] = frozenset()) -> str:
    choice = made.choose(ask, now, tried)
    assert choice is not None
    return choice.name


def names(made: Fleet, ask: Ask, count: int = 100, now: float = 0.0) -> list[str]:
    """Where `count` requests go, each of which ends at once."""
    chosen = []
    for _ in range(count):
        chosen.append(chosen_by(made, ask, now))
        made.done(ask, made.sent(ask, chosen[-1], now))
    return chosen


def test_a_draining_replica_gets_nothing():
    made = fleet(endpoint("a", draining=True), endpoint("b"), policy="RoundRobin")
    assert set(names(made, Ask())) == {"b"}
    assert fleet(endpoint("a", draining=True)).choose(Ask(), 0.0) is None


def test_tried_ones_are_passed_over():
    made = fleet(endpoint("a"), endpoint("b"), policy="RoundRobin")
    assert chosen_by(made, Ask(), 0.0, frozenset("a")) == "b"
    assert made.choose(Ask(), 0.0, {"a", "b"}) is None


def test_when_checks_find_nobody_they_count_for_nothing():
    """The checks may be what is broken."""
    made = fleet(endpoint("a"), endpoint("b"), policy="RoundRobin")
    for name in ("a", "b"):
        for _ in range(2):
            made.endpoints[name].health.checked(found=False)
        assert made.available(0.0)
    assert set(names(made, Ask())) == {"a", "b"}


def test_an_adapter_goes_where_it_is_served_and_resident():
    served = {"a": (["sql"], []), "b": (["sql"], ["sql"]), "c": ([], []), "d": (None, [])}
    made = fleet(*(endpoint(name, adapters=a, resident=r) for name, (a, r) in served.items()), policy="RoundRobin")
    assert set(names(made, Ask(model="sql"))) == {"b"}
    assert set(names(made, Ask(model="base"))) == {"a", "b", "c", "d"}
    for _ in range(3):
        made.sent(Ask(cost=10_000), "b", 0.0)
    assert "a" in names(made, Ask(model="sql"))


def test_canary_weights_hold_for_any_traffic():
    """10 % of the same request over and over, by each policy."""
    for policy in ("PrefixAffinity", "LeastLoad", "RoundRobin"):
        made = fleet(
            *(endpoint(name, revision="new" if name == "a" else "old") for name in "abcd"),
            policy=policy,
            weights={"new": 10},
        )
        count = names(made, Ask(blocks=(1, 2, 3)), 1000).count("a")
        assert count == pytest.approx(100, abs=3), policy


def test_a_session_keeps_to_one_revision():
    made = fleet(endpoint("a", revision="new"), endpoint("b", revision="old"), weights={"new": 50})
    for key in range(20):
        assert len(set(names(made, Ask(blocks=(key << 60,), session=True), 5))) == 1


def test_a_weight_without_a_replica_stops_nothing():
    made = fleet(endpoint("a", revision="new"), endpoint("b", revision="old"), weights={"new": 100})
    made.endpoints["a"].health.refused(0.0)
    assert set(names(made, Ask(), 5)) == {"b"}


def test_another_configuration_keeps_what_is_known():
    """In-flight requests and circuits of those that stay; another address is another process."""
    made = fleet(endpoint("a"), endpoint("b"))
    held = made.sent(Ask(cost=10), "a", 0.0)
    for name in ("a", "b"):
        made.endpoints[name].health.failed(0.0)
    made.apply(RouterConfig(endpoints=[endpoint("a"), endpoint("b", address="10.9.9.9:8000")]), 1.0)
    assert (made.endpoints["a"].inflight, made.endpoints["a"].health.failures) == (1, 1)
    assert made.endpoints["b"].health.failures == 0
    made.apply(RouterConfig(endpoints=[]), 2.0)
    made.done(Ask(cost=10), held)
    assert held.inflight == 0


def test_loads_of_other_routers_count_while_they_are_fresh():
    """The report says 1,000 tokens, 400 of them are our own."""
    made = fleet(endpoint("a"), endpoint("b"), policy="LeastLoad")
    made.sent(Ask(cost=400), "a", 0.0)
    made.apply(RouterConfig(endpoints=[endpoint("a", load_tokens=1000), endpoint("b")], policy="LeastLoad"), 1.0)
    known = made.endpoints["a"]
    assert (known.load(1.0), known.load(1.0 + REPORT_VALID_S)) == (1000, 400)
    made.sent(Ask(cost=700), "b", 1.0)
    assert chosen_by(made, Ask(), 1.0) == "b"
    assert chosen_by(made, Ask(), 1.0 + REPORT_VALID_S) == "a"


def test_room_is_what_a_replica_is_warmed_for():
    made = fleet(endpoint("a", max_concurrency=1))
    assert made.has_room(0.0)
    made.sent(Ask(), "a", 0.0)
    assert (made.has_room(0.0), made.available(0.0)) == (False, True)
