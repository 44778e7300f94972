"""The flows of the README on a cluster in memory, with the real loop: apply, scale, replace, roll, fail."""

from kvasir_operator.cluster import EVENTS, PODS, SECRETS, SERVICES
from kvasir_operator.planning.state import Stage
from kvasir_operator.resources import names
from kvasir_runtime.contract.failures import Cause, FailureReport
from tests.kvasir_operator.loop.fake_cluster import address_of, service_address
from tests.kvasir_operator.loop.harness import KEY, Loop


async def settled(**spec) -> Loop:
    loop = Loop(**spec)
    await loop.start()
    await loop.settle()
    return loop


async def test_apply() -> None:
    """A Secret, a Service, pods that are owned by the service and named by revision; gates, status, Events."""
    loop = await settled(replicas=2)
    assert len(loop.cluster.all(SECRETS)) == len(loop.cluster.all(SERVICES)) == 1
    revision = loop.service()["status"]["updateRevision"]
    for pod in loop.cluster.pods():
        owner = pod["metadata"]["ownerReferences"][0]
        assert (owner["uid"], owner["controller"]) == ("tiny-uid", True)
        assert pod["metadata"]["name"].startswith(f"tiny-{revision}-")
        assert "finalizers" not in pod["metadata"]
    await loop.turn()
    assert loop.condition("Ready")["status"] == "True"
    assert loop.service()["status"]["readyReplicas"] == 2
    assert {event["reason"] for event in loop.cluster.all(EVENTS)} >= {"ScaledUp", "Ready"}


async def test_nothing_is_written_at_rest() -> None:
    """A settled service costs no write, however often it is looked at."""
    loop = await settled()
    await loop.turn()
    before = len(loop.cluster.writes)
    for _ in range(20):
        loop.clock.move(60)
        await loop.turn()
    assert len(loop.cluster.writes) == before


async def test_scale_down_drains_first() -> None:
    """Gate, settle, drain, wait for the last request, delete; in that order."""
    loop = await settled(replicas=2)
    loop.change(replicas=1)
    await loop.turn()
    victim = next(pod for pod in loop.pods() if pod.stage is Stage.DRAINING)
    engine = loop.cluster.engines[victim.uid]
    engine.inflight = 3
    drained = []
    for _ in range(3):
        drained.append(engine.draining)
        loop.clock.move(2)
        await loop.turn()
    assert drained == [False, False, True]
    loop.clock.move(30)
    await loop.turn()
    assert any(pod.name == victim.name and not pod.deleting for pod in loop.pods())
    engine.inflight = 0
    loop.clock.move(1)
    await loop.turn()
    assert any(pod.name == victim.name and pod.deleting for pod in loop.pods())
    await loop.settle()


async def test_a_drain_is_cancelled_when_demand_returns() -> None:
    """The pod serves again; no other is made."""
    loop = await settled(replicas=2)
    before = {pod.uid for pod in loop.pods()}
    loop.change(replicas=1)
    await loop.turn()
    victim = next(pod for pod in loop.pods() if pod.stage is Stage.DRAINING)
    loop.cluster.engines[victim.uid].inflight = 1
    loop.clock.move(5)
    await loop.turn()
    assert loop.cluster.engines[victim.uid].draining
    loop.change(replicas=2)
    await loop.settle()
    assert {pod.uid for pod in loop.pods()} == before
    assert not loop.cluster.engines[victim.uid].draining


async def test_a_pod_that_vanishes_is_replaced() -> None:
    """At once: nothing is known against it."""
    loop = await settled(replicas=2)
    loop.cluster.vanish(address_of(loop.cluster.pods()[0]))
    await loop.turn()
    assert len(loop.pods()) == 2
    await loop.settle()


async def test_a_restarted_engine_leaves_and_joins_again() -> None:
    """Its gates are closed for the process that is gone, and opened for the new one."""
    loop = await settled()
    boot = next(iter(loop.cluster.engines.values())).boot_id
    loop.cluster.crash(loop.cluster.pods()[0])
    await loop.turn()
    assert not any(loop.pods()[0].condition(gate).holds for gate in names.GATES)
    await loop.settle()
    assert loop.pods()[0].condition(names.SERVING_GATE).message != f"boot {boot}"


async def test_failed_pods_are_replaced_with_backoff() -> None:
    """The second failure in a row waits ten seconds; no more pods exist than are wanted, and one that ended."""
    loop = await settled()
    for expected_wait in (0, 10, 20):
        loop.cluster.fail(loop.cluster.pods()[-1])
        waited = 0.0
        while not any(pod.stays for pod in loop.pods()):
            await loop.turn()
            if not any(pod.stays for pod in loop.pods()):
                loop.clock.move(1)
                waited += 1
        assert abs(waited - expected_wait) <= 1
        assert sum(pod.stays for pod in loop.pods()) == 1
        await loop.turn()
        assert len(loop.pods()) == 1
    await loop.settle()


async def test_a_rollout_keeps_replicas_serving() -> None:
    """At every moment as many serve as are wanted, and never more than one more exists."""
    loop = await settled(replicas=3)
    loop.change(engine={"maxNumSeqs": 8})
    for _ in range(200):
        loop.kubelet()
        await loop.turn()
        loop.clock.move(1)
        pods = loop.pods()
        assert sum(pod.stage is Stage.SERVING for pod in pods) >= 3
        assert sum(not pod.deleting for pod in pods) <= 4
        if await loop.converged():
            break
    assert await loop.converged()
    assert len({pod.revision for pod in loop.pods()}) == 1


async def test_a_broken_revision_leaves_the_old_one_alone() -> None:
    """The new pod says why; the old ones go on; going back removes the new one."""
    loop = await settled(replicas=2)
    old = {pod.uid for pod in loop.pods()}
    loop.change(model={"source": {"uri": "pvc://models/absent"}})
    await loop.turn()
    broken = next(pod for pod in loop.cluster.pods() if pod["metadata"]["uid"] not in old)
    report = FailureReport(Cause.MODEL_NOT_FOUND, "no folder /models/absent", "correct it").to_json()
    state = {"waiting": {"reason": "CrashLoopBackOff"}}
    last = {"terminated": {"exitCode": 1, "message": report}}
    broken["spec"]["nodeName"] = "node"
    broken["status"]["containerStatuses"] = [
        {"name": "runtime", "ready": False, "restartCount": 2, "state": state, "lastState": last}
    ]
    loop.cluster.update(broken)
    for _ in range(5):
        loop.clock.move(10)
        await loop.turn()
    assert {pod.uid for pod in loop.pods()} > old
    assert loop.condition("Ready")["status"] == "True"
    assert (loop.condition("ModelAvailable")["status"], loop.condition("ModelAvailable")["reason"]) == (
        "False",
        "ModelNotFound",
    )
    assert loop.service()["status"]["lastFailure"]["remedy"] == "correct it"
    loop.change(model={"source": {"uri": "pvc://models/m"}})
    await loop.settle()
    assert {pod.uid for pod in loop.pods()} == old


async def test_an_invalid_spec_changes_nothing() -> None:
    """Field, bound and value are told; pods go on serving, and are neither made nor removed."""
    loop = await settled(replicas=1)
    loop.change(scaling={"minReplicas": 4, "maxReplicas": 2})
    writes = len(loop.cluster.writes)
    for _ in range(5):
        loop.clock.move(10)
        await loop.turn()
    assert [write for write in loop.cluster.writes[writes:] if "pods" in write] == []
    ready = loop.condition("Ready")
    assert (ready["status"], ready["reason"]) == ("False", "InvalidSpec")
    assert "spec.scaling.maxReplicas" in ready["message"]


async def test_a_source_that_the_settings_refuse() -> None:
    """Nothing is made; the condition names the setting."""
    loop = Loop(model={"source": {"uri": "file:///models/x"}})
    await loop.start()
    for _ in range(3):
        await loop.turn()
    assert loop.pods() == []
    assert loop.condition("Ready")["reason"] == loop.condition("ModelAvailable")["reason"] == "SourceNotAllowed"
    assert "KVASIR_OPERATOR_ALLOW_FILE_SOURCES" in loop.condition("Ready")["message"]


async def test_an_object_in_the_way_is_shown_and_left_alone() -> None:
    """A Service of that name that belongs to somebody else is neither taken nor changed."""
    loop = Loop()
    foreign = {
        "kind": "Service",
        "metadata": {"name": "tiny", "namespace": "team", "uid": "x"},
        "spec": {"selector": {}},
    }
    loop.cluster.store((SERVICES, "team", "tiny"), foreign, "ADDED")
    await loop.start()
    for _ in range(3):
        await loop.turn()
        loop.clock.move(5)
    assert loop.cluster.objects[(SERVICES, "team", "tiny")]["spec"] == {"selector": {}}
    assert "does not belong to InferenceService tiny" in loop.condition("Degraded")["message"]


async def test_a_service_that_is_being_deleted_is_left_alone() -> None:
    """Owner references collect what it owns; what they have collected is not made again."""
    loop = await settled()
    service = loop.service()
    service["metadata"]["deletionTimestamp"] = "2026-03-01T12:00:00Z"
    loop.cluster.store(service_address(), service, "MODIFIED")
    loop.cluster.vanish(address_of(loop.cluster.pods()[0]))
    await loop.turn()
    assert loop.pods() == []
    loop.cluster.vanish(service_address())
    assert await loop.turn() is None


async def test_a_drifted_service_is_mended() -> None:
    """Somebody edits the Service's selector: it is brought back."""
    loop = await settled()
    drifted = loop.cluster.all(SERVICES)[0]
    drifted["spec"]["selector"] = {"app": "other"}
    loop.cluster.store((SERVICES, "team", "tiny"), drifted, "MODIFIED")
    await loop.turn()
    assert loop.cluster.all(SERVICES)[0]["spec"]["selector"] == names.replica_selector("tiny")


async def test_pods_of_another_owner_are_neither_counted_nor_touched() -> None:
    """A pod left by an earlier service of that name keeps its name; ours gets another."""
    loop = await settled()
    own = loop.cluster.pods()[0]
    own["metadata"]["ownerReferences"][0]["uid"] = "somebody else"
    loop.cluster.store(address_of(own), own, "MODIFIED")
    await loop.start()
    await loop.turn()
    await loop.turn()
    assert len(loop.cluster.all(PODS)) == 2
    assert KEY in set(loop.store.services())
