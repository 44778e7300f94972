"""Anything may happen: the real loop against a cluster in memory whose users, kubelet, network and operator misbehave.

Whatever happened, once the cluster is well the service comes to exactly what its spec asks for, and then nothing more
is planned. On the way, what the operator does keeps its promises, each checked at the moment of the act:

- A pod with requests in flight is not deleted before its drain timeout is over, unless its process is gone.
- A pod that serves leaves the endpoints only when, as far as the operator can know, enough others serve.
- Never more pods than the wanted ones and the surge.
- A rollout that is paused takes nothing away, and a revision that was given up gets no pods.
- No pod, revision or budget without an owner, no two processes of one name.
"""

import asyncio
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvasir_operator.cluster import BUDGETS, PODS, REVISIONS
from kvasir_operator.planning import plan as planning
from kvasir_operator.planning.actions import CreatePod, DeletePod, SetGates, Why
from kvasir_operator.planning.reading import read_pod
from kvasir_operator.planning.replicas import wanted_replicas
from kvasir_operator.planning.rollout import Bounds
from kvasir_operator.planning.state import Snapshot, Stage
from kvasir_operator.planning.times import read_time
from kvasir_operator.resources import names
from kvasir_runtime.contract.admin_api import Prefix
from kvasir_runtime.contract.failures import Cause, FailureReport
from tests.kvasir_operator.loop.fake_cluster import Engine, Manifest, address_of
from tests.kvasir_operator.loop.harness import Loop

DRAIN_SECONDS = 30.0
MODELS = ["pvc://models/a", "pvc://models/b", "pvc://models/c"]
STRATEGIES: list[dict[str, Any]] = [
    {"strategy": "Surge"},
    {"strategy": "InPlace"},
    {"maxSurge": 2},
    {"maxSurge": 1, "maxUnavailable": 1},
    {"progressDeadline": "90s", "revisionHistoryLimit": 1},
    {"canary": {"steps": [{"traffic": 30, "pause": "20s"}, {"traffic": 60, "pause": "20s"}]}},
    {"autoRollback": {"goldenPrompts": ["one two three"]}},
    {"strategy": "InPlace", "canary": {"steps": [{"traffic": 50, "pause": "20s"}]}},
]
FLEETS: list[dict[str, Any]] = [
    {},
    {},
    {"adapters": [{"name": "a", "source": {"uri": "s3://bucket/a"}}]},
    {"warmup": {"prompts": ["a"], "fromTraffic": {}, "timeout": "20s"}},
    {
        "adapters": [{"name": "a", "source": {"uri": "s3://bucket/a"}}],
        "warmup": {"fromTraffic": {}, "required": True},
    },
]
"""What replicas have in common: nothing, adapters, warm caches."""
REPORTS = ["", FailureReport(Cause.MODEL_UNSUPPORTED, "it failed", "mend it").to_json()]


def some(pods: list[Manifest], draw: int) -> Manifest:
    return sorted(pods, key=lambda pod: str(pod["metadata"]["name"]))[draw % len(pods)]


class Simulation(RuleBasedStateMachine):
    """One service in a cluster where anything may happen."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.broken: list[str] = []

    def run(self, work: Any) -> Any:
        return self.runner.run(work)

    @initialize(replicas=st.integers(0, 4), rollout=st.sampled_from(STRATEGIES), fleet=st.sampled_from(FLEETS))
    def begin(self, replicas: int, rollout: dict[str, Any], fleet: dict[str, Any]) -> None:
        self.loop = Loop(replicas=replicas, rollout=rollout, drain={"timeout": f"{DRAIN_SECONDS:.0f}s"}, **fleet)
        self.loop.scraper.sources = {"s3://bucket/a": "a-1"}
        self.loop.cluster.on_delete = self.check_deletion
        self.loop.cluster.nodes = {"node": 1000, "second": 1000}
        self.run(self.loop.start())
        self.run(self.loop.settle())

    # --- The operator

    @rule(turns=st.integers(1, 12), seconds=st.sampled_from([0.0, 1.0, 4.0]), well=st.booleans())
    def look(self, turns: int, seconds: float, well: bool) -> None:
        """The operator at work for a while, in a cluster that gets on, or in one where nothing moves."""
        for _ in range(turns):
            self.checked_turn()
            self.loop.clock.move(seconds)
            if well:
                self.pods_get_on()

    @rule()
    def operator_is_started_anew(self) -> None:
        self.run(self.loop.start())

    @rule(writes=st.integers(0, 3))
    def operator_dies_between_two_writes(self, writes: int) -> None:
        self.loop.cluster.faults.die_after_writes = writes
        self.checked_turn()
        self.loop.cluster.faults.die_after_writes = None

    @rule(rate=st.sampled_from([0.0, 0.2, 0.6]), silent=st.sampled_from([0.0, 0.3]))
    def api_server_misbehaves(self, rate: float, silent: float) -> None:
        self.loop.cluster.faults.error_rate = rate
        self.loop.cluster.faults.silent_rate = silent

    @rule(count=st.integers(1, 5))
    def events_are_lost(self, count: int) -> None:
        self.loop.lost_events = count

    @rule()
    def events_are_repeated_in_another_order(self) -> None:
        for kind, change, manifest in reversed(self.loop.repeated):
            self.loop.reconciler.notice(kind, change, manifest)

    # --- Users

    @rule(replicas=st.integers(0, 4))
    def scale(self, replicas: int) -> None:
        self.loop.change(replicas=replicas)

    @rule(uri=st.sampled_from(MODELS))
    def change_model(self, uri: str) -> None:
        self.loop.change(model={"source": {"uri": uri}})

    @rule(paused=st.booleans())
    def pause_or_resume(self, paused: bool) -> None:
        self.loop.change(rollout=self.loop.service()["spec"]["rollout"] | {"paused": paused})

    @rule(pin=st.sampled_from([None, "previous", "1", "2"]))
    def go_back(self, pin: str | None) -> None:
        self.loop.annotate(rollback_to=pin)

    @rule(number=st.integers(1, 3))
    def ask_for_a_restart(self, number: int) -> None:
        self.loop.annotate(restarted_at=str(number))

    @rule(uri=st.sampled_from(MODELS), turns=st.integers(3, 10), report=st.sampled_from(REPORTS))
    def change_to_a_model_that_crashes(self, uri: str, turns: int, report: str) -> None:
        """All pods that do not serve yet end, again and again."""
        self.change_model(uri)
        for _ in range(turns):
            for pod in self.loop.cluster.pods():
                if read_pod(pod).stage is Stage.STARTING:
                    self.loop.cluster.break_pod(pod, restarts=3, message=report)
            self.checked_turn()
            self.loop.clock.move(8.0)

    @rule(requests=st.integers(1, 3))
    def requests_come(self, requests: int) -> None:
        """Requests reach pods that are among the endpoints, and only those."""
        for pod in self.loop.cluster.pods():
            engine = self.loop.cluster.engines.get(pod["metadata"]["uid"])
            if engine is not None and read_pod(pod).ready and not engine.draining:
                engine.inflight += requests

    @rule(by=st.integers(1, 3), turns=st.integers(3, 8))
    def scale_down_under_load(self, by: int, turns: int) -> None:
        """What loses requests where it is done wrong."""
        self.requests_come(2)
        self.scale(max(0, self.loop.service()["spec"]["replicas"] - by))
        self.look(turns, 2.0, well=True)

    @rule(how=st.lists(st.sampled_from(["error", "hangs", "lies", "slow", "well"]), max_size=3))
    def warmups_go_wrong(self, how: list[str]) -> None:
        self.loop.scraper.warmups = how

    @rule(first=st.integers(0, 9))
    def prompts_begin_alike(self, first: int) -> None:
        for engine in self.loop.cluster.engines.values():
            engine.query_tokens += 100
            engine.hot = [Prefix(token_ids=[first] * 32, hits=3, bytes=1, cached_tokens=32)]

    @rule()
    def requests_finish(self) -> None:
        for engine in self.loop.cluster.engines.values():
            engine.inflight = 0

    # --- The cluster

    @rule(seconds=st.sampled_from([0.5, 2.0, 5.0, 20.0, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.loop.clock.move(seconds)

    @precondition(lambda self: self.loop.cluster.pods())
    @rule(draw=st.integers(0, 9))
    def a_pod_gets_on(self, draw: int) -> None:
        pod = some(self.loop.cluster.pods(), draw)
        if pod["status"]["phase"] != "Failed":
            self.loop.cluster.start_pod(pod)

    @rule()
    def pods_get_on(self) -> None:
        for pod in self.loop.cluster.pods():
            if pod["status"]["phase"] != "Failed":
                self.loop.cluster.start_pod(pod)

    @rule()
    def deletions_finish(self) -> None:
        self.loop.cluster.finish_deletions()

    @rule(node=st.sampled_from(["node", "second"]), on=st.booleans())
    def a_node_is_cordoned_or_not(self, node: str, on: bool) -> None:
        self.loop.cluster.cordon(node, on=on)

    @rule(room=st.sampled_from([0, 1, 2, 3, 1000]))
    def nodes_have_room_or_not(self, room: int) -> None:
        self.loop.cluster.nodes["node"], self.loop.cluster.nodes["second"] = room, 0 if room < 1000 else room

    @rule(score=st.sampled_from([-1.0, -1.05, -3.0]), draw=st.integers(0, 9))
    def a_revision_scores_otherwise(self, score: float, draw: int) -> None:
        known = sorted({pod.revision for pod in self.loop.pods()})
        if known:
            self.loop.scraper.scores[known[draw % len(known)]] = score

    @precondition(lambda self: self.loop.cluster.pods())
    @rule(draw=st.integers(0, 9))
    def a_process_ends(self, draw: int) -> None:
        self.loop.cluster.crash(some(self.loop.cluster.pods(), draw))

    @precondition(lambda self: self.loop.cluster.pods())
    @rule(draw=st.integers(0, 9))
    def a_pod_fails(self, draw: int) -> None:
        self.loop.cluster.fail(some(self.loop.cluster.pods(), draw))

    @precondition(lambda self: self.loop.cluster.pods())
    @rule(draw=st.integers(0, 9))
    def a_pod_vanishes(self, draw: int) -> None:
        self.loop.cluster.vanish(address_of(some(self.loop.cluster.pods(), draw)))

    @precondition(lambda self: self.loop.cluster.engines)
    @rule(draw=st.integers(0, 9))
    def an_operator_port_goes_deaf(self, draw: int) -> None:
        self.loop.scraper.deaf ^= {sorted(self.loop.cluster.engines)[draw % len(self.loop.cluster.engines)]}

    # --- Promises

    def checked_turn(self) -> None:
        original = planning.make_plan

        def checked(snapshot: Snapshot, now: Any) -> Any:
            found = original(snapshot, now)
            self.broken += broken_promises(snapshot, found.actions, now)
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("kvasir_operator.reconciler.make_plan", checked)
            self.run(self.loop.turn())

    def check_deletion(self, pod: Manifest, engine: Engine | None) -> None:
        gate = next((each for each in pod["status"]["conditions"] if each["type"] == names.SERVING_GATE), None)
        if engine is None or engine.inflight == 0:
            return
        since = read_time(gate["lastTransitionTime"]) if gate is not None and gate["status"] == "False" else None
        if since is None or self.loop.clock() - since < timedelta(seconds=DRAIN_SECONDS):
            self.broken.append(f"{pod['metadata']['name']} deleted with requests before its deadline, gate {gate}")

    @invariant()
    def promises_are_kept(self) -> None:
        """Noted where they are broken, since the loop survives every error; looked at here."""
        assert self.broken == []

    @invariant()
    def everything_has_its_owner(self) -> None:
        for kind in (PODS, REVISIONS, BUDGETS):
            for each in self.loop.cluster.all(kind):
                assert [owner["uid"] for owner in each["metadata"]["ownerReferences"]] == ["tiny-uid"]

    def teardown(self) -> None:
        """The cluster gets well: the service comes to what its spec asks for."""
        if not hasattr(self, "loop"):
            self.runner.close()
            return
        loop = self.loop
        loop.cluster.faults.error_rate = loop.cluster.faults.silent_rate = 0.0
        loop.lost_events = 0
        loop.scraper.deaf.clear()
        loop.scraper.warmups.clear()
        loop.scraper.scores.clear()
        loop.cluster.nodes = {"node": 1000, "second": 1000}
        for node in loop.cluster.nodes:
            loop.cluster.cordon(node, on=False)
        loop.annotate(rollback_to=None)
        self.pause_or_resume(paused=False)
        self.run(loop.resync())
        self.run(loop.settle(turns=600))
        self.run(loop.turn())
        if loop.condition("Progressing")["reason"] == "RolledBack":
            loop.annotate(restarted_at="once more")
            self.run(loop.settle(turns=600))
            self.run(loop.turn())
        assert {pod.revision for pod in loop.pods()} <= {loop.service()["status"]["updateRevision"]}
        if loop.service()["spec"].get("adapters"):
            assert all(engine.serves == {"a": "a-1"} for engine in loop.cluster.engines.values())
        wanted = loop.service()["spec"]["replicas"]
        ready = loop.condition("Ready")
        assert (ready["status"], loop.service()["status"]["readyReplicas"]) == ("True" if wanted else "False", wanted)
        limit = loop.service()["spec"]["rollout"].get("revisionHistoryLimit", 5)
        assert len(loop.cluster.all(REVISIONS)) <= limit + 2
        writes = len(loop.cluster.writes)
        self.run(loop.turn())
        assert len(loop.cluster.writes) == writes, "something is written at rest"
        self.runner.close()


LEAVING = (Why.SCALE_DOWN, Why.ROLLOUT, Why.ROLLBACK, Why.NODE_DRAIN)


def may_miss(snapshot: Snapshot, bounds: Bounds, now: datetime) -> int:
    """How many replicas may be missing: one, where a pod has waited for room for half a minute, as things are."""
    spec = snapshot.spec
    assert spec is not None
    waiting = [pod.condition("PodScheduled") for pod in snapshot.pods if pod.stage is Stage.STARTING and not pod.node]
    since = [each.since for each in waiting if each.status == "False" and each.since is not None]
    stuck = sum(now - each >= timedelta(seconds=30) for each in since)
    if not stuck or spec.rollout.strategy == "Surge":
        return bounds.max_unavailable
    return max(1, bounds.max_unavailable) + max(0, stuck - bounds.max_surge)


def broken_promises(snapshot: Snapshot, actions: Any, now: datetime) -> list[str]:
    """What a plan does that it may not do, given what the operator could know."""
    created = [action for action in actions if isinstance(action, CreatePod)]
    deleted = {action.uid for action in actions if isinstance(action, DeletePod)}
    if snapshot.spec is None or not snapshot.acceptable:
        return ["pods made or removed for an invalid spec"] if created or deleted else []
    broken = []
    spec, target = snapshot.spec, snapshot.target.name
    wanted, bounds = wanted_replicas(spec), Bounds.of(spec.rollout)
    old = [pod for pod in snapshot.pods if pod.stays and pod.revision != target]
    if spec.rollout.paused or not old:  # pods merely move off their nodes
        bounds = Bounds(max(1, bounds.max_surge), 0)
    serving = {pod.uid for pod in snapshot.pods if pod.stage is Stage.SERVING}
    rolling = any(pod.stays and (pod.revision != target or pod.node in snapshot.cordoned) for pod in snapshot.pods)
    gone = {
        action.uid: action.why
        for action in actions
        if isinstance(action, SetGates) and not action.gates[names.SERVING_GATE].open and action.why in LEAVING
    }
    least = wanted - (may_miss(snapshot, bounds, now) if rolling else 0)
    if len(serving - gone.keys() - deleted) < min(len(serving), least):
        broken.append(f"{len(serving - gone.keys())} would serve, {least} must")
    holding = [pod for pod in snapshot.pods if (pod.stays or pod.stage is Stage.DRAINING) and pod.uid not in deleted]
    if created and rolling and len(holding) + len(created) > wanted + bounds.max_surge:
        broken.append(f"{len(holding)} + {len(created)} pods, at most {wanted} + {bounds.max_surge} may exist")
    if spec.rollout.paused and {Why.ROLLOUT, Why.ROLLBACK} & {*gone.values(), *(action.why for action in created)}:
        broken.append("a paused rollout goes on")
    current = snapshot.current
    given_up = current is not None and current.asked and target != current.name
    if current is not None and given_up and not spec.rollout.paused:
        broken += [f"{each.pod} of a revision that is given up" for each in created if each.revision == current.name]
    taken = {action.pod for action in created} | {pod.name for pod in snapshot.pods}
    if len(taken) < len(created) + len(snapshot.pods):
        broken.append("two pods of one name")
    return broken


SETTINGS = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestSimulation = Simulation.TestCase
TestSimulation.settings = SETTINGS


class ThoroughSimulation(Simulation):
    """The same, for longer."""


TestThoroughSimulation = pytest.mark.slow(pytest.mark.timeout(900)(ThoroughSimulation.TestCase))
TestThoroughSimulation.settings = settings(SETTINGS, max_examples=120, stateful_step_count=60)
