"""Where newcomers may go and whether they may come now: what placement says, applied to what the service wants.

| placement says                                  | then                                               |
|-------------------------------------------------|----------------------------------------------------|
| the model is looked at, or fits on nothing here | no replica of the newest revision is made          |
| likewise, or devices are kept for others        | no old replica gives way to a new one              |
| devices are kept for a higher priority          | no replica is made, those without a node go        |
| a replica gives its devices to such a service   | it is drained, and not called back                 |
| a pod's product is taken, another is free       | it is made anew on that one                        |
| the model fits on some products                 | new pods go to the cheapest with room, else to any |
| its group starts, or the service is what lacks  | one replica is made, and takes no traffic yet      |
| its group waits for another service             | no replica is made, those that do not serve go     |
"""

from collections.abc import Iterable
from dataclasses import replace

from kvasir_operator.placement.groups import Role
from kvasir_operator.placement.rooms import choose_products, is_misplaced
from kvasir_operator.planning.actions import Why
from kvasir_operator.planning.replicas import Decision, Newcomer
from kvasir_operator.planning.state import Pod, Snapshot, Stage


def place(decision: Decision, snapshot: Snapshot, *, looking: bool) -> Decision:
    """Apply the table above. `looking`: the model is being looked at."""
    outlook = snapshot.outlook
    refused = looking or outlook.misfit is not None
    going = {pod.uid for pod, _ in decision.remove}
    sent_away = [(pod, why) for pod, why in _sent_away(snapshot) if pod.uid not in going]
    keeps_old = refused or bool(outlook.kept_for)
    remove = [(pod, why) for pod, why in decision.remove if not (keeps_old and why is Why.ROLLOUT)]
    newcomers = [each for each in decision.create if not (refused and each.revision == snapshot.revision)]
    return replace(
        decision,
        create=tuple(_with_products(newcomers[: _most(snapshot)], snapshot)),
        remove=(*remove, *sent_away),
        recall=tuple(pod for pod in decision.recall if pod.uid not in outlook.yields),
    )


def _most(snapshot: Snapshot) -> int | None:
    """Most pods that may be made now; None: any number."""
    role = snapshot.outlook.turn.role
    if snapshot.outlook.kept_for or role is Role.WAITS:
        return 0
    return None if role is Role.FREE else max(0, 1 - sum(pod.stays for pod in snapshot.pods))


def waits_for_group(pod: Pod, snapshot: Snapshot) -> bool:
    """Whether a pod that never served must not begin to, because others of its group have no place yet."""
    return snapshot.outlook.turn.role is not Role.FREE and pod.serving_gate is None


def _sent_away(snapshot: Snapshot) -> Iterable[tuple[Pod, Why]]:
    """Pods that go because of others: nothing that serves, except what is given to a higher priority."""
    outlook = snapshot.outlook
    for pod in snapshot.pods:
        if not pod.stays:
            continue
        waits = pod.stage is Stage.STARTING and not pod.node
        if pod.uid in outlook.yields:
            yield pod, Why.PREEMPTED
        elif outlook.turn.role is Role.WAITS and pod.stage is Stage.STARTING:
            yield pod, Why.GROUP_WAITS
        elif waits and outlook.kept_for:
            yield pod, Why.HELD_BACK
        elif waits and pod.condition("PodScheduled").status == "False" and is_misplaced(pod.products, outlook.rooms):
            yield pod, Why.MISPLACED


def _with_products(newcomers: list[Newcomer], snapshot: Snapshot) -> Iterable[Newcomer]:
    """Choose for those of the newest revision; what an older one fits on is not known."""
    mine = [each for each in newcomers if each.revision == snapshot.revision]
    chosen = iter(choose_products(snapshot.outlook.rooms, len(mine)))
    for newcomer in newcomers:
        yield replace(newcomer, products=next(chosen)) if newcomer.revision == snapshot.revision else newcomer
