"""Replicas and routers that end with the test."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from kvasir_router.settings import RouterSettings
from tests.kvasir_router.backends import FakeReplica, Running, Script, answer_whole, running


@pytest.fixture
async def replicas() -> AsyncIterator[Callable[..., Awaitable[FakeReplica]]]:
    """Makes replicas that end with the test."""
    made: list[FakeReplica] = []

    async def make(name: str = "a", script: Script = answer_whole) -> FakeReplica:
        replica = FakeReplica(name, script)
        await replica.start()
        made.append(replica)
        return replica

    yield make
    for replica in made:
        await replica.stop()


@pytest.fixture
async def start(tmp_path) -> AsyncIterator[Callable[..., Awaitable[Running]]]:
    """Makes routers that end with the test."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(**fields: Any) -> Running:
            return await stack.enter_async_context(running(RouterSettings(**fields), tmp_path))

        yield make
