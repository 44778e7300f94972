"""Probes and metrics of the operator itself."""

from aiohttp.test_utils import TestClient, TestServer

from kvasir_operator.health import STALL_LIMIT, Health, make_app


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_probes() -> None:
    """Alive while the loop beats; ready once it is said; a word for people in each answer."""
    clock = Clock()
    health = Health(clock)
    async with TestClient(TestServer(make_app(health))) as client:

        async def answer(path: str) -> tuple[int, str]:
            async with client.get(path) as response:
                return response.status, await response.text()

        assert await answer("/livez") == await answer("/healthz") == (200, "alive")
        assert await answer("/readyz") == (503, "starting")
        health.ready, health.role = True, "leads"
        assert await answer("/readyz") == (200, "leads")
        clock.now = STALL_LIMIT + 1
        assert (await answer("/livez"))[0] == (await answer("/readyz"))[0] == 503
        health.beat()
        assert (await answer("/livez"))[0] == 200
        status, text = await answer("/metrics")
        assert status == 200
        assert "kvasir_operator_reconcile_seconds_bucket" in text
