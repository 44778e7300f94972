"""Models that are looked at before replicas are made, in the simulated cluster."""

import copy
from typing import Any

import pytest

from kvasir_operator.api.base import format_time
from kvasir_operator.cluster import NODES, PODS
from kvasir_operator.store import ServiceKey
from kvasir_runtime.contract.failures import Cause, FailureReport
from kvasir_runtime.contract.memory import ModelShape
from kvasir_runtime.contract.model_report import ModelReport
from tests.kvasir_operator.loop import harness
from tests.kvasir_operator.loop.fake_cluster import Manifest, inference_service, service_address
from tests.kvasir_operator.loop.harness import Loop
from tests.kvasir_operator.placement.models import BY_NAME
from tests.kvasir_operator.placement.nodes import gpu_node

L4, A100 = "NVIDIA-L4", "NVIDIA-A100-SXM4-80GB"


@pytest.fixture(autouse=True)
def _looking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "SETTINGS", harness.SETTINGS.model_copy(update={"inspect_models": True}))


def report(name: str) -> str:
    return ModelReport(ModelShape.from_hf_config(BY_NAME[name].config)).to_json()


def inspections(loop: Loop) -> list[Manifest]:
    return [pod for pod in loop.cluster.all(PODS) if "-inspect-" in pod["metadata"]["name"]]


def replicas(loop: Loop) -> list[Manifest]:
    return [pod for pod in loop.cluster.all(PODS) if "-inspect-" not in pod["metadata"]["name"]]


async def turns(loop: Loop, count: int = 4) -> None:
    for _ in range(count):
        loop.clock.move(1)
        loop.cluster.finish_deletions()
        await loop.turn()


def says(loop: Loop, message: str, code: int = 0) -> None:
    """The kubelet ends the inspection with these last words."""
    [pod] = inspections(loop)
    changed = copy.deepcopy(pod)
    ended = {"exitCode": code, "message": message, "finishedAt": format_time(loop.clock())}
    changed["spec"]["nodeName"] = "node"
    changed["status"] = {
        "phase": "Failed" if code else "Succeeded",
        "containerStatuses": [{"name": "inspect", "ready": False, "state": {"terminated": ended}}],
    }
    loop.cluster.update(changed)


async def started(**spec: Any) -> Loop:
    loop = Loop(**spec)
    loop.cluster.store((NODES, "", "l4"), gpu_node("l4", L4, 4, memory_mib=23034), "ADDED")
    loop.cluster.store((NODES, "", "a100"), gpu_node("a100", A100, 4, memory_mib=81920), "ADDED")
    await loop.start()
    await loop.observer.devices.fill(loop.cluster)  # type: ignore[arg-type]
    await turns(loop, 2)
    return loop


def products(pod: Manifest) -> Any:
    terms = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    return [each["values"] for each in terms["nodeSelectorTerms"][0]["matchExpressions"]]


async def test_replicas_wait_for_the_look_and_go_where_the_model_fits() -> None:
    """Mixtral 8x7B does not; Gemma 2 27B fits on 80 GB and not on 24: the cheapest product that holds it."""
    loop = await started(accelerator={"count": 1}, replicas=2)
    assert (len(inspections(loop)), replicas(loop)) == (1, [])
    assert loop.condition("CapacityFits")["reason"] == "Inspecting"
    says(loop, report("Gemma-2-27B"))
    await turns(loop)
    assert [products(pod) for pod in replicas(loop)] == [[[A100]], [[A100]]]
    assert inspections(loop) == []
    status = loop.service()["status"]
    assert status["capacity"]["source"] == "planned"
    assert status["inspection"]["model"]["shape"]["num_layers"] == 46
    assert loop.condition("CapacityFits")["message"].startswith(f"planned on {A100}: weights 5")


async def test_what_fits_nowhere_gets_no_replica_until_something_changes() -> None:
    """A smaller length helps at once, without another look; so does a larger node."""
    loop = await started(accelerator={"count": 1})
    says(loop, report("Mixtral-8x7B-v0.1"))
    await turns(loop)
    assert (replicas(loop), inspections(loop)) == ([], [])
    told = loop.condition("CapacityFits")
    assert (told["status"], told["reason"]) == ("False", "OutOfMemoryWeights")
    assert "spec.model.quantization int8" in told["message"]
    loop.cluster.store((NODES, "", "h200"), gpu_node("h200", "NVIDIA-H200", 8, memory_mib=143771), "ADDED")
    loop.clock.move(30)
    await turns(loop)
    assert [products(pod) for pod in replicas(loop)] == [[["NVIDIA-H200"]]]
    assert loop.condition("CapacityFits")["status"] == "True"


async def test_a_new_operator_asks_nobody_again() -> None:
    """What was found is in the status."""
    loop = await started(accelerator={"count": 1})
    says(loop, report("Gemma-2-27B"))
    await turns(loop)
    for pod in loop.cluster.pods():
        loop.cluster.vanish((PODS, "team", pod["metadata"]["name"]))
    await loop.start()
    await loop.observer.devices.fill(loop.cluster)  # type: ignore[arg-type]
    await turns(loop, 2)
    assert (len(replicas(loop)), inspections(loop)) == (1, [])


async def test_services_that_read_the_same_model_look_once() -> None:
    """The second waits for the first one's pod, and then knows as much."""
    loop = await started()
    loop.cluster.store(service_address("twin"), inference_service("twin"), "ADDED")
    twin, state = ServiceKey("team", "twin"), loop.reconciler._make_service(ServiceKey("team", "twin"))
    await loop.reconciler._guarded_turn(twin, state)
    assert [pod["metadata"]["name"][:12] for pod in inspections(loop)] == ["tiny-inspect"]
    assert replicas(loop) == []
    says(loop, report("Qwen2.5-0.5B"))
    await turns(loop)
    await loop.reconciler._guarded_turn(twin, state)
    loop.cluster.finish_deletions()
    assert sorted(pod["metadata"]["name"][:4] for pod in replicas(loop)) == ["tiny", "twin"]
    assert inspections(loop) == []


async def test_a_look_in_vain_is_not_repeated_by_others() -> None:
    """A thousand services of a source that is away do not ask for it a thousand times."""
    loop = await started()
    says(loop, FailureReport(Cause.SOURCE_UNREACHABLE, "no route").to_json(), code=1)
    await turns(loop)
    loop.cluster.store(service_address("twin"), inference_service("twin"), "ADDED")
    twin = ServiceKey("team", "twin")
    await loop.reconciler._guarded_turn(twin, loop.reconciler._make_service(twin))
    assert inspections(loop) == []
    assert sorted(pod["metadata"]["name"][:4] for pod in replicas(loop)) == ["tiny", "twin"]


async def test_another_address_is_another_model() -> None:
    loop = await started(replicas=0)
    assert inspections(loop) == []
    loop.change(replicas=1)
    await turns(loop, 1)
    first = inspections(loop)[0]["metadata"]["name"]
    loop.change(model={"source": {"uri": "pvc://models/other"}})
    await turns(loop, 2)
    loop.cluster.finish_deletions()
    await turns(loop, 2)
    assert [pod["metadata"]["name"] != first for pod in inspections(loop)] == [True]


async def test_a_look_in_vain_keeps_nobody_waiting() -> None:
    loop = await started()
    says(loop, FailureReport(Cause.SOURCE_UNREACHABLE, "no route").to_json(), code=1)
    await turns(loop)
    assert (len(replicas(loop)), inspections(loop)) == (1, [])
    told = loop.condition("CapacityFits")
    assert (told["status"], told["reason"]) == ("Unknown", "InspectionFailed")
    assert told["message"] == "SourceUnreachable: no route"


async def test_a_model_that_its_own_files_contradict_is_not_refused() -> None:
    """A new architecture may take less than the formula says."""
    loop = await started(accelerator={"count": 1})
    shape = ModelShape.from_hf_config(BY_NAME["Mixtral-8x7B-v0.1"].config)
    says(loop, ModelReport(shape, stored_bytes=5_000_000_000).to_json())
    await turns(loop)
    assert len(replicas(loop)) == 1
    assert "its files hold 5000000000 bytes" in loop.condition("CapacityFits")["message"]


async def test_a_look_that_takes_too_long_is_not_waited_for() -> None:
    loop = await started()
    await turns(loop, 40)
    assert replicas(loop) == []
    await turns(loop, 8)
    assert len(replicas(loop)) == 1


@pytest.mark.parametrize("seed", range(8))
async def test_it_gets_there_whatever_fails(seed: int) -> None:
    """Refused and unanswered requests, and an operator that dies between any two writes: one plan, and no leftovers."""
    loop = await started(accelerator={"count": 1}, replicas=2)
    faults = loop.cluster.faults
    faults.random.seed(seed)
    faults.error_rate = faults.silent_rate = 0.2
    for turn in range(80):
        faults.die_after_writes = 1 if turn % 9 == seed % 9 else faults.die_after_writes
        running = [pod for pod in inspections(loop) if pod["status"]["phase"] == "Pending"]
        if running and turn % 3 == 0:
            says(loop, report("Gemma-2-27B"))
        loop.clock.move(2)
        loop.cluster.finish_deletions()
        await loop.turn()
        assert len(inspections(loop)) <= 1
    faults.error_rate = faults.silent_rate = 0
    faults.die_after_writes = None
    await loop.observer.devices.fill(loop.cluster)  # type: ignore[arg-type]
    for _ in range(20):
        await turns(loop, 5)
    assert [products(pod) for pod in replicas(loop)] == [[[A100]], [[A100]]]
    assert inspections(loop) == []
