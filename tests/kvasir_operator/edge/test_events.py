"""Kubernetes Events: counted, limited, and never in the way."""

from typing import cast

from kvasir_operator.api.v1alpha1 import ObjectMeta
from kvasir_operator.cluster import EVENTS, Cluster
from kvasir_operator.events import BURST, EventRecorder
from kvasir_operator.planning.actions import Note
from tests.kvasir_operator.loop.fake_cluster import Clock, FakeCluster

META = ObjectMeta(name="tiny", namespace="team", uid="s-1")


def make(cluster: FakeCluster) -> EventRecorder:
    return EventRecorder(cast("Cluster", cluster), cluster.clock, "host")


async def test_the_same_words_are_one_event_with_a_count() -> None:
    """Also across a restart of the operator."""
    cluster = FakeCluster(Clock())
    first = make(cluster)
    await first.record(META, Note("Ready", "all well"))
    await first.record(META, Note("Ready", "all well"))
    cluster.clock.move(60)
    await make(cluster).record(META, Note("Ready", "all well"))
    (event,) = cluster.all(EVENTS)
    assert (event["count"], event["reason"], event["type"]) == (3, "Ready", "Normal")
    assert (event["firstTimestamp"], event["lastTimestamp"]) == ("2026-03-01T12:00:00Z", "2026-03-01T12:01:00Z")
    assert event["involvedObject"]["uid"] == "s-1"


async def test_an_event_that_expired_is_made_anew() -> None:
    """With the count that it had."""
    cluster = FakeCluster(Clock())
    recorder = make(cluster)
    await recorder.record(META, Note("Ready", "all well"))
    cluster.objects.clear()
    await recorder.record(META, Note("Ready", "all well"))
    assert cluster.all(EVENTS)[0]["count"] == 2


async def test_a_babbling_service_is_cut_short() -> None:
    """It gets one Event a minute then; other services are not affected."""
    cluster = FakeCluster(Clock())
    recorder = make(cluster)
    for number in range(100):
        await recorder.record(META, Note("Noise", f"number {number}"))
    assert len(cluster.all(EVENTS)) == BURST
    cluster.clock.move(121)
    for number in range(100, 110):
        await recorder.record(META, Note("Noise", f"number {number}"))
    assert len(cluster.all(EVENTS)) == BURST + 2
    await recorder.record(META.model_copy(update={"uid": "other", "name": "other"}), Note("Noise", "x"))
    assert len(cluster.all(EVENTS)) == BURST + 3


async def test_an_api_server_that_refuses_does_not_stop_the_loop() -> None:
    """The Event is lost, and that is logged."""
    cluster = FakeCluster(Clock())
    cluster.faults.error_rate = 1.0
    await make(cluster).record(META, Note("Ready", "all well"))
    assert cluster.all(EVENTS) == []
