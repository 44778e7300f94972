"""The plan: from what was observed to what is to be done. Pure; planning again on its outcome gives an empty plan."""

import base64
import hashlib
import itertools
from collections.abc import Iterable, Mapping
from datetime import datetime

from kvasir_operator.api.v1alpha1 import InferenceServiceSpec
from kvasir_operator.planning.actions import (
    Action,
    ApplyBudget,
    ApplyNetworkPolicy,
    ApplySecret,
    ApplyService,
    CreatePod,
    DeletePod,
    Plan,
    Why,
)
from kvasir_operator.planning.adapters import tell_adapters
from kvasir_operator.planning.drain import dismiss, drain
from kvasir_operator.planning.gates import NOTHING_TO_PREPARE, Preparation, admit
from kvasir_operator.planning.history import keep_history
from kvasir_operator.planning.inspecting import look_at_model
from kvasir_operator.planning.placing import place, waits_for_group
from kvasir_operator.planning.preparing import prepare
from kvasir_operator.planning.replicas import Decision, decide, wanted_replicas
from kvasir_operator.planning.revisions import Heading
from kvasir_operator.planning.state import ObjectState, Pod, Snapshot, Stage
from kvasir_operator.planning.trial import waits_for_goldens
from kvasir_operator.planning.warming import hand_over_first, keep_warm
from kvasir_operator.resources import names


def make_plan(snapshot: Snapshot, now: datetime) -> Plan:
    """Decide everything that is to be done for one service at `now`.

    - A service that is being deleted is left alone: owner references collect what it owns.
    - With a spec that is not valid nothing is made or torn down; pods that exist go on serving.
    - Else: what pods need, what is noted on revisions, then gates that open, then pods that leave, then ended pods,
      then new pods.
    """
    if snapshot.meta.deletion_timestamp is not None:
        return Plan()
    if snapshot.spec is None or not snapshot.acceptable:
        return Plan(tuple(_admissions((pod for pod in snapshot.pods if pod.stays), {})))
    return _plan_valid(snapshot, snapshot.spec, now)


def _plan_valid(snapshot: Snapshot, spec: InferenceServiceSpec, now: datetime) -> Plan:
    # Nobody looks at the model of a revision that was given up, or that is not to have pods now.
    look = look_at_model(snapshot, wanted_replicas(spec) if snapshot.target.heading is Heading.SPEC else 0, now)
    decision = place(decide(snapshot, spec, now), snapshot, looking=look.waits)
    noted, noted_due = keep_history(snapshot, spec, wanted_replicas(spec), now)
    going = {pod.uid for pod, _ in decision.remove}
    recalled = {pod.uid for pod in decision.recall}
    staying = [pod for pod in snapshot.pods if (pod.stays and pod.uid not in going) or pod.uid in recalled]
    leaving = [pod for pod in snapshot.pods if pod.stage is Stage.DRAINING and pod.uid not in recalled]
    adapters, preparations = tell_adapters(snapshot, now), prepare(snapshot, now)
    delays = {
        pod.uid: delay for pod, why in decision.remove if (delay := hand_over_first(pod, why, staying, snapshot, now))
    }
    warmth = keep_warm(snapshot, now)
    departures = [
        *(dismiss(pod, why) for pod, why in decision.remove if pod.uid not in delays),
        *(drain(pod, spec.drain.timeout.seconds, snapshot.timings, now) for pod in leaving),
    ]
    actions: list[Action] = [
        *_needs(snapshot),
        *look.actions,
        *noted,
        *adapters.actions,
        *_admissions((pod for pod in staying if not _is_held(pod, snapshot, spec)), preparations),
        *warmth.actions,
        *(delay.action for delay in delays.values() if delay.action is not None),
        *(departure.action for departure in departures if departure.action is not None),
        *(DeletePod(pod.name, pod.uid, Why.REPLACE) for pod in decision.clear),
        *_creations(snapshot, decision),
    ]
    return Plan(
        tuple(actions),
        _earliest(
            decision.due,
            look.due,
            noted_due,
            adapters.due,
            warmth.due,
            *(delay.due for delay in delays.values()),
            *(departure.due for departure in departures),
            *(step.due for each in preparations.values() for step in (each.adapters, each.warm)),
        ),
    )


def _is_held(pod: Pod, snapshot: Snapshot, spec: InferenceServiceSpec) -> bool:
    """Whether a pod that could serve must not begin to yet."""
    return waits_for_goldens(pod, snapshot, spec) or waits_for_group(pod, snapshot)


def _needs(snapshot: Snapshot) -> Iterable[Action]:
    if snapshot.secret in (ObjectState.MISSING, ObjectState.OUTDATED):
        yield ApplySecret(Why.MISSING if snapshot.secret is ObjectState.MISSING else Why.OUTDATED)
    if snapshot.service is not ObjectState.CURRENT:
        yield ApplyService(Why.MISSING if snapshot.service is ObjectState.MISSING else Why.OUTDATED)
    if snapshot.budget is not ObjectState.CURRENT:
        yield ApplyBudget(Why.MISSING if snapshot.budget is ObjectState.MISSING else Why.OUTDATED)
    if snapshot.network_policy is not ObjectState.CURRENT:
        missing = snapshot.network_policy is ObjectState.MISSING
        yield ApplyNetworkPolicy(Why.MISSING if missing else Why.OUTDATED)


def _admissions(pods: Iterable[Pod], preparations: Mapping[str, Preparation]) -> Iterable[Action]:
    found = (admit(pod, preparations.get(pod.uid, NOTHING_TO_PREPARE)) for pod in pods)
    return (action for action in found if action is not None)


def _creations(snapshot: Snapshot, decision: Decision) -> Iterable[CreatePod]:
    """Give each newcomer the first name that is free, so that a create that is tried again hits the same name."""
    taken = set(snapshot.pod_names)
    for newcomer in decision.create:
        name = next(each for each in _pod_names(snapshot, newcomer.revision) if each not in taken)
        taken.add(name)
        yield CreatePod(name, newcomer.revision, newcomer.why, newcomer.attempt, newcomer.replaces, newcomer.products)


def _pod_names(snapshot: Snapshot, revision: str) -> Iterable[str]:
    """The names of a revision's replicas, endless, always in the same order."""
    for ordinal in itertools.count():
        digest = hashlib.sha256(f"{snapshot.meta.uid}/{revision}/{ordinal}".encode()).digest()
        suffix = base64.b32encode(digest).decode().lower()[: names.SUFFIX_LENGTH]
        yield names.pod_name(snapshot.meta.name, revision, suffix)


def _earliest(*dues: datetime | None) -> datetime | None:
    return min((due for due in dues if due is not None), default=None)
