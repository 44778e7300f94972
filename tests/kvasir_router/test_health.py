"""Circuits, health checks and the retry budget."""

import asyncio

import pytest

from kvasir_router.checker import check
from kvasir_router.health import FAILURES, Health, RetryBudget
from kvasir_runtime.contract.router_api import CircuitState
from tests.kvasir_router.backends import WHOLE
from tests.kvasir_router.test_proxy import script


def opened(now: float = 0.0) -> Health:
    health = Health()
    for _ in range(FAILURES):
        health.failed(now)
    return health


def test_failures_in_a_row_open_the_circuit():
    health = Health()
    for _ in range(FAILURES - 1):
        health.failed(0.0)
    assert health.available(0.0)
    health.succeeded()
    for _ in range(FAILURES - 1):
        health.failed(0.0)
    assert health.available(0.0)
    health.failed(0.0)
    assert (health.available(0.0), health.circuit(0.9)) == (False, CircuitState.OPEN)


def test_one_tries_when_the_time_is_over():
    health = opened()
    assert (health.circuit(1.0), health.available(1.0)) == (CircuitState.HALF_OPEN, True)
    health.asked(1.0)
    assert not health.available(1.0)
    health.succeeded()
    assert (health.available(1.0), health.circuit(1.0)) == (True, CircuitState.CLOSED)


def test_who_fails_again_is_left_alone_for_longer():
    """1, 2, 4 … at most 30 s."""
    health, now, waits = opened(), 0.0, []
    for _ in range(7):
        assert health.open_until is not None
        waits.append(health.open_until - now)
        now = health.open_until
        health.asked(now)
        health.failed(now)
    assert waits == [1, 2, 4, 8, 16, 30, 30]


def test_a_try_that_tells_nothing_lets_another_try():
    health = opened()
    health.asked(1.0)
    health.gave_up()
    assert health.available(1.0)


def test_a_refusal_is_no_failure():
    health = Health()
    for now in range(10):
        health.refused(float(now))
        assert not health.available(now + 0.5)
    assert (health.available(11.0), health.failures) == (True, 0)


def test_missed_checks():
    health = Health()
    health.checked(found=False)
    assert health.available(0.0)
    health.checked(found=False)
    assert not health.available(0.0)
    health.checked(found=True)
    assert health.available(0.0)


def test_the_budget_is_a_share_of_the_requests():
    """Once the reserve is spent: one in five."""
    budget = RetryBudget(left=0.0)
    retried = 0
    for _ in range(100):
        budget.request()
        retried += budget.spend()
    assert retried in {19, 20}
    for _ in range(10_000):
        budget.request()
    assert budget.left == budget.reserve


@pytest.mark.parametrize(
    ("answer", "found"),
    [(WHOLE, True), (b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n", False), (b"nonsense\r\n\r\n", False)],
)
async def test_a_check_over_the_wire(start, replicas, answer, found):
    replica, router = await replicas(script=script(answer, close=not found)), await start()
    router.use(replica.endpoint())
    endpoint = router.router.fleet.endpoints["a"]
    for _ in range(2):
        await check(router.router, endpoint)
    assert endpoint.health.answers is found
    assert replica.seen[0].line == "GET /health HTTP/1.1"


async def test_a_check_closes_a_circuit(start, replicas):
    """A replica that came back needs no request to try it."""
    replica, router = await replicas(), await start()
    router.use(replica.endpoint())
    endpoint = router.router.fleet.endpoints["a"]
    now = 0.0
    router.router.clock = lambda: now
    endpoint.health = opened()
    await check(router.router, endpoint)
    assert endpoint.health.circuit(now) is CircuitState.OPEN
    now = 1.0
    await check(router.router, endpoint)
    assert endpoint.health.circuit(now) is CircuitState.CLOSED


async def test_a_replica_without_anybody_is_not_found(start, replicas):
    replica, router = await replicas(), await start()
    router.use(replica.endpoint())
    await replica.stop()
    endpoint = router.router.fleet.endpoints["a"]
    await asyncio.gather(*(check(router.router, endpoint) for _ in range(2)))
    assert not endpoint.health.answers
