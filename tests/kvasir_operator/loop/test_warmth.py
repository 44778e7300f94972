"""Warm caches in the loop: before the first request, through faults, and from a replica that goes."""

import base64
from typing import Any

import pytest

from kvasir_operator import warmer
from kvasir_operator.cluster import CONFIG_MAPS, SECRETS
from kvasir_operator.planning.state import Pod, Stage
from kvasir_runtime.contract.admin_api import Prefix
from tests.kvasir_operator.loop.fake_cluster import Engine, Manifest, address_of
from tests.kvasir_operator.loop.harness import Loop

SECRET = (SECRETS, "team", "tiny-prefixes")
TRAFFIC: Manifest = {"fromTraffic": {}}


def hot(first: int, length: int = 32, **fields: Any) -> Prefix:
    tokens = [first * 100 + position for position in range(length)]
    made: dict[str, Any] = {"hits": 5.0, "bytes": 1, "cached_tokens": length} | fields
    return Prefix(token_ids=tokens, **made)


async def started(replicas: int = 1, **warmup: Any) -> Loop:
    loop = Loop(replicas=replicas, warmup=warmup or TRAFFIC)
    await loop.start()
    await loop.settle()
    return loop


async def busy(loop: Loop, *prefixes: Prefix, seconds: float = 65) -> None:
    """Requests come to every replica; prefixes are collected."""
    for engine in engines(loop):
        engine.hot, engine.query_tokens = list(prefixes), engine.query_tokens + 1000
    await loop.run(seconds, step=5)


def engines(loop: Loop) -> list[Engine]:
    return list(loop.cluster.engines.values())


def gate(pod: Pod) -> tuple[str, str]:
    condition = pod.condition("kvasir.dev/warm")
    return condition.reason, condition.message.partition("; ")[2]


def warmed_with(engine: Engine) -> list[int]:
    """First token ids of the prompts of its last warmup."""
    return [(each.token_ids or [-1])[0] for each in engine.warmed[-1].prompts]


async def test_prompts_of_the_spec_come_before_the_first_request() -> None:
    """Those of a ConfigMap as well; then the gate opens and says how it went."""
    loop = Loop(replicas=1, warmup={"prompts": ["a"], "promptsFrom": {"configMap": "more", "key": "k"}})
    loop.cluster.store(
        (CONFIG_MAPS, "team", "more"),
        {"metadata": {"name": "more", "namespace": "team"}, "data": {"k": "b\n\nc\n"}},
        "",
    )
    await loop.start()
    await loop.settle()
    await loop.turn()
    [engine], [pod] = engines(loop), loop.pods()
    assert [each.text for each in engine.warmed[0].prompts] == ["a", "b", "c"]
    assert gate(pod) == ("Warmed", "3 tokens computed, 0 cached in 1.5 s")
    assert loop.service()["status"]["warmup"] | {"pod": ""} == {
        "pod": "",
        "tokens": 3,
        "cachedTokens": 0,
        "lastDuration": "1.5s",
        "message": "3 tokens computed, 0 cached in 1.5 s",
    }


async def test_a_config_map_that_is_not_there_keeps_nobody_out() -> None:
    loop = await started(promptsFrom={"configMap": "more", "key": "k"})
    assert gate(loop.pods()[0])[0] == "Warmed"
    assert "ConfigMap more cannot be read" in gate(loop.pods()[0])[1]


@pytest.mark.parametrize("event", ["scale-up", "crash", "rollout", "lost pod"])
async def test_every_new_process_is_warmed_from_traffic(event: str) -> None:
    """With what the fleet was asked for, also by an operator that was not there then."""
    loop = await started()
    assert gate(loop.pods()[0]) == ("Warmed", "nothing is known to warm it with")
    await busy(loop, hot(1), hot(2))
    old = loop.cluster.pods()[0]
    await loop.start()
    match event:
        case "scale-up":
            loop.change(replicas=2)
        case "crash":
            loop.cluster.crash(old)
        case "rollout":
            loop.change(model={"source": {"uri": "pvc://models/other"}})
        case "lost pod":
            loop.cluster.vanish(address_of(old))
    await loop.settle()
    newest = engines(loop)[-1]
    assert warmed_with(newest) == [100, 200]
    assert all(gate(pod)[0] == "Warmed" for pod in loop.pods())


async def test_another_tokenizer_gets_none_of_the_token_ids() -> None:
    """And says why."""
    loop = await started()
    await busy(loop, hot(1))
    before = loop.pods()[0].revision
    loop.scraper.tokenizers[before] = "old"
    loop.cluster.objects.pop(SECRET)
    await busy(loop, hot(1))
    loop.change(model={"source": {"uri": "pvc://models/other"}})
    await loop.settle()
    assert engines(loop)[-1].warmed == []
    assert gate(loop.pods()[0]) == ("Warmed", "nothing is known to warm it with; 1 prefixes are of another tokenizer")


async def test_prefixes_are_kept_by_revision_in_a_secret_that_goes_with_the_service() -> None:
    """Written once a minute while there is traffic, and not without."""
    loop = await started()
    await busy(loop, hot(1), seconds=200)
    secret = loop.cluster.objects[SECRET]
    assert list(secret["data"]) == [loop.pods()[0].revision]
    assert [owner["uid"] for owner in secret["metadata"]["ownerReferences"]] == ["tiny-uid"]
    writes = [write for write in loop.cluster.writes if "secrets tiny-prefixes" in write]
    assert len(writes) == 1
    await busy(loop, hot(2), seconds=100)
    assert len([write for write in loop.cluster.writes if "secrets tiny-prefixes" in write]) == 2


async def test_a_secret_that_was_edited_by_hand_is_written_anew() -> None:
    """Until then replicas start with what else there is."""
    loop = await started()
    await busy(loop, hot(1))
    revision = loop.pods()[0].revision
    loop.cluster.objects[SECRET]["data"] = {revision: base64.b64encode(b"by hand").decode(), "x": "%%%"}
    loop.change(replicas=2)
    await loop.settle()
    assert engines(loop)[-1].warmed == []
    await busy(loop, hot(3))
    loop.change(replicas=3)
    await loop.settle()
    assert warmed_with(engines(loop)[-1]) == [300]


async def test_errors_are_tried_again() -> None:
    """After 2 s, 4 s …; well in the end."""
    loop = Loop(replicas=1, warmup={"prompts": ["a"]})
    loop.scraper.warmups = ["error", "error", "lies", "well"]
    await loop.start()
    await loop.settle()
    [engine], [pod] = engines(loop), loop.pods()
    assert len(engine.warmed) == 4
    assert gate(pod)[0] == "Warmed"


@pytest.mark.parametrize(
    ("how", "reason", "words"),
    [
        (["hangs"], "WarmupTimedOut", "the engine has not answered"),
        (["error"] * 20, "WarmupFailed", "HTTP 500"),
        (["slow"], "WarmupTimedOut", "the time is over"),
    ],
)
async def test_a_warmup_that_is_not_required_opens_the_gate_when_its_time_is_over(
    how: list[str], reason: str, words: str
) -> None:
    """With the reason in gate and status."""
    loop = Loop(replicas=1, warmup={"prompts": ["a"], "timeout": "30s"})
    loop.scraper.warmups = how
    await loop.start()
    await loop.run(50)
    [pod] = loop.pods()
    assert pod.stage is Stage.SERVING
    found = gate(pod)
    assert found[0] == reason
    assert words in found[1]
    await loop.reconciler._executor.warmer.stop()


async def test_a_required_one_keeps_the_replica_out_until_it_is_well() -> None:
    """And an operator that was started anew goes on with that."""
    loop = Loop(replicas=1, warmup={"prompts": ["a"], "timeout": "10s", "required": True})
    loop.scraper.warmups = ["error"] * 6
    await loop.start()
    await loop.run(40)
    assert loop.condition("Ready")["status"] == "False"
    assert "failed" in loop.service()["status"]["warmup"]["message"]
    assert loop.condition("Progressing")["reason"] == "Warming"
    await loop.start()
    loop.scraper.warmups = []
    await loop.settle()
    assert loop.condition("Ready")["status"] == "True"


@pytest.mark.parametrize("writes", range(10))
async def test_killed_at_each_write(writes: int) -> None:
    """Whenever the operator ends, the next warms the replica and opens its gates."""
    loop = Loop(replicas=2, warmup=TRAFFIC | {"prompts": ["a"]})
    await loop.start()
    loop.cluster.faults.die_after_writes = writes
    await loop.settle()
    assert all(engine.warmed for engine in engines(loop))
    loop.cluster.faults.die_after_writes = writes % 3
    await busy(loop, hot(1), seconds=130)
    assert SECRET in loop.cluster.objects


# --- Handing over


async def test_the_coldest_goes_and_hands_over_what_nobody_else_holds() -> None:
    """Before it leaves the endpoints, within half a minute."""
    loop = await started(2)
    first, second = engines(loop)
    first.value, second.value = 5.0, 900.0
    first.hot, second.hot = [hot(1), hot(2)], [hot(2)]
    uid = next(uid for uid, engine in loop.cluster.engines.items() if engine is first)
    await loop.run(6)
    loop.change(replicas=1)
    gone = False
    for _ in range(8):
        await loop.run(1)
        gone = not any(pod.uid == uid and pod.stage is Stage.SERVING for pod in loop.pods())
        assert second.warmed or not gone
    assert gone
    assert warmed_with(second) == [100]
    await loop.settle()
    assert [pod.uid != uid for pod in loop.pods()] == [True]


async def test_a_survivor_that_hangs_delays_the_drain_by_half_a_minute_at_most() -> None:
    loop = await started(2)
    first, second = engines(loop)
    first.hot, second.value = [hot(1)], 900.0
    await loop.run(6)
    loop.scraper.warmups = ["hangs"]
    loop.change(replicas=1)
    await loop.run(25)
    assert len([pod for pod in loop.pods() if pod.stage is Stage.SERVING]) == 2
    await loop.run(15)
    assert len([pod for pod in loop.pods() if pod.stage is Stage.SERVING]) == 1
    await loop.reconciler._executor.warmer.stop()


async def test_demand_that_returns_keeps_the_replica() -> None:
    """It never left the endpoints."""
    loop = await started(2)
    first, second = engines(loop)
    first.hot, second.value = [hot(1)], 900.0
    await loop.run(6)
    loop.scraper.warmups = ["hangs"]
    loop.change(replicas=1)
    await loop.run(5)
    loop.change(replicas=2)
    await loop.run(60)
    assert len([pod for pod in loop.pods() if pod.stage is Stage.SERVING]) == 2
    await loop.reconciler._executor.warmer.stop()


async def test_a_survivor_that_is_busy_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when several replicas leave at once; what it is given then counts."""
    monkeypatch.setattr(warmer, "BUSY_SECONDS", 0.0)
    loop = await started(2)
    first, second = engines(loop)
    first.hot, second.value = [hot(1)], 900.0
    await loop.run(6)
    loop.scraper.warmups = ["busy", "busy"]
    loop.change(replicas=1)
    await loop.settle()
    assert [len(request.prompts) for request in second.warmed] == [1, 1, 1]
