"""What placement says, applied: who gives devices, who waits, and where new pods go."""

from typing import Any

from kvasir_operator.placement.outlook import Outlook
from kvasir_operator.placement.rooms import Room
from kvasir_operator.planning.actions import CreatePod, DeletePod, SetGates, Why
from kvasir_operator.planning.plan import make_plan
from kvasir_operator.planning.state import PodCondition, Snapshot, Stage
from kvasir_operator.resources import names
from tests.kvasir_operator.planning.builders import NOW, pod, snapshot

NO_ROOM = PodCondition("False", message="Insufficient nvidia.com/gpu")
UNSCHEDULED: dict[str, Any] = {"conditions": {"PodScheduled": NO_ROOM}}


def gpu(*pods: Any, **fields: Any) -> Snapshot:
    return snapshot(pods, accelerator={"count": 1}, **fields)


def actions(observed: Snapshot, kind: type) -> list[Any]:
    return [action for action in make_plan(observed, NOW).actions if isinstance(action, kind)]


def test_a_replica_that_gives_its_devices_is_drained() -> None:
    """Out of the endpoints first, as with every other reason."""
    observed = gpu(pod("a"), pod("b"), replicas=2, outlook=Outlook(yields=frozenset({"b-uid"}), kept_for="team/chat"))
    [action] = make_plan(observed, NOW).actions
    assert isinstance(action, SetGates)
    assert (action.pod, action.why) == ("b", Why.PREEMPTED)
    assert "higher priority" in action.gates[names.SERVING_GATE].message


def test_one_that_never_served_goes_at_once() -> None:
    observed = gpu(pod("a", Stage.STARTING), outlook=Outlook(yields=frozenset({"a-uid"}), kept_for="team/chat"))
    assert actions(observed, DeletePod) == [DeletePod("a", "a-uid", Why.PREEMPTED)]


def test_it_is_neither_called_back_nor_replaced_while_the_other_waits() -> None:
    draining = pod("b", Stage.DRAINING)
    kept = Outlook(yields=frozenset({"b-uid"}), kept_for="team/chat")
    assert make_plan(gpu(pod("a"), draining, replicas=2, outlook=kept), NOW).actions == ()


def test_it_is_called_back_when_nobody_waits_any_more() -> None:
    observed = gpu(pod("a"), pod("b", Stage.DRAINING), replicas=2)
    assert [action.kind for action in make_plan(observed, NOW).actions] == ["Undrain"]


def test_pods_that_wait_make_way_for_one_of_a_higher_priority() -> None:
    """They hold nothing, and the scheduler does not know who comes first."""
    waiting = pod("b", Stage.STARTING, node="", **UNSCHEDULED)
    observed = gpu(pod("a"), waiting, replicas=3, outlook=Outlook(kept_for="team/chat"))
    assert make_plan(observed, NOW).actions == (DeletePod("b", "b-uid", Why.HELD_BACK),)


def test_a_rollout_in_place_drains_nobody_while_its_successor_may_not_come() -> None:
    observed = gpu(pod("a", revision="old"), rollout={"strategy": "InPlace"}, outlook=Outlook(kept_for="team/chat"))
    assert actions(observed, SetGates) == []


def test_new_pods_go_to_the_cheapest_product_with_room() -> None:
    rooms = (Room("L4", 1), Room("A100", 1))
    made = actions(gpu(replicas=3, outlook=Outlook(rooms=rooms)), CreatePod)
    assert [each.products for each in made] == [("L4",), ("A100",), ("L4", "A100")]
    assert [each.products for each in actions(gpu(replicas=1), CreatePod)] == [()]


def test_a_pod_whose_product_was_taken_is_made_anew_where_there_is_room() -> None:
    waiting = pod("a", Stage.STARTING, node="", products=("L4",), **UNSCHEDULED)
    taken = Outlook(rooms=(Room("L4", 0), Room("A100", 1)))
    assert actions(gpu(waiting, outlook=taken), DeletePod) == [DeletePod("a", "a-uid", Why.MISPLACED)]
    full = Outlook(rooms=(Room("L4", 0), Room("A100", 0)))
    assert make_plan(gpu(waiting, outlook=full), NOW).actions == ()
