"""Replicas that are found by name."""

from kvasir_router.discovery import Resolve, discover, resolve
from kvasir_router.router import Router
from kvasir_router.settings import RouterSettings
from kvasir_runtime.contract.router_api import RouterConfig


def answering(*answers: list[str] | None) -> Resolve:
    left = list(answers)

    async def ask(host: str, port: int) -> list[str] | None:
        return left.pop(0)

    return ask


def addresses(router: Router) -> list[str]:
    return [each.address for each in router.config.endpoints] if router.config else []


async def test_addresses_come_and_go():
    """No such name means no replica; a name server that does not answer means nothing."""
    router = Router(RouterSettings(policy="LeastLoad"))
    ask = answering(None, [], ["10.0.0.1:8000", "10.0.0.2:8000"], None, ["10.0.0.2:8000"])
    await discover(router, "replicas:8000", ask)
    assert not router.ready
    await discover(router, "replicas:8000", ask)
    assert (addresses(router), router.ready) == ([], True)
    await discover(router, "replicas:8000", ask)
    first = router.fleet.endpoints["10.0.0.2:8000"]
    await discover(router, "replicas:8000", ask)
    assert addresses(router) == ["10.0.0.1:8000", "10.0.0.2:8000"]
    await discover(router, "replicas:8000", ask)
    assert addresses(router) == ["10.0.0.2:8000"]
    assert router.fleet.endpoints["10.0.0.2:8000"] is first
    assert [each.policy for each in (router.config,) if each] == ["LeastLoad"]


async def test_what_is_pushed_takes_its_place():
    router = Router(RouterSettings())
    router.apply(RouterConfig(version="7", endpoints=[]))
    await discover(router, "replicas:8000", answering(["10.0.0.1:8000"]))
    assert addresses(router) == []


async def test_the_systems_resolver():
    assert await resolve("127.0.0.1", 8000) == ["127.0.0.1:8000"]
    assert await resolve("::1", 8000) == ["[::1]:8000"]
