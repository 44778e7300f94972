"""Rollouts on a cluster in memory, with the real loop: history, going back, pauses, canaries, golden prompts, room."""

import asyncio
from typing import Any

import pytest

from kvasir_operator.cluster import BUDGETS, EVENTS, REVISIONS
from kvasir_operator.planning.state import Pod, Stage
from kvasir_operator.resources import names
from kvasir_runtime.contract.admin_api import AnswerState
from kvasir_runtime.contract.failures import Cause, FailureReport
from tests.kvasir_operator.loop.fake_cluster import Manifest, address_of
from tests.kvasir_operator.loop.harness import Loop

OTHER = {"source": {"uri": "pvc://models/other"}}
FIRST = {"source": {"uri": "pvc://models/m"}}


async def settled(**spec: Any) -> Loop:
    loop = Loop(**spec)
    await loop.start()
    await loop.settle()
    await loop.turn()
    return loop


def revision(loop: Loop) -> str:
    """What the spec asks for, as far as the status says."""
    return str(loop.service()["status"]["updateRevision"])


def kept(loop: Loop) -> dict[int, Manifest]:
    """The ControllerRevisions by number."""
    return {each["revision"]: each for each in loop.cluster.all(REVISIONS)}


def pods_of(loop: Loop, name: str) -> list[Pod]:
    return [pod for pod in loop.pods() if pod.revision == name and pod.stays]


def progressing(loop: Loop) -> tuple[str, str]:
    found = loop.condition("Progressing")
    return found["status"], found["reason"]


async def break_new(loop: Loop, old: str, *, restarts: int, cause: Cause | None = None, looks: int = 50) -> None:
    """Whatever pod of another revision than `old` appears ends with that report, again and again."""
    report = FailureReport(cause, "it failed", "mend it").to_json() if cause is not None else ""
    for _ in range(looks):
        loop.cluster.finish_deletions()
        for pod in loop.cluster.pods():
            if pod["metadata"]["labels"][names.REVISION_LABEL] != old:
                loop.cluster.break_pod(pod, restarts=restarts, message=report)
            else:
                loop.cluster.start_pod(pod)
        await loop.turn()
        loop.clock.move(1)


# --- History


async def test_every_revision_is_kept_with_its_template() -> None:
    """Numbers rise; the data are what the pods were made from; the owner is the service."""
    loop = await settled(replicas=1)
    loop.change(model=OTHER)
    await loop.settle()
    await loop.turn()
    found = kept(loop)
    assert [found[number]["data"]["model"]["source"]["uri"] for number in (1, 2)] == [
        "pvc://models/m",
        "pvc://models/other",
    ]
    assert all(each["metadata"]["ownerReferences"][0]["uid"] == "tiny-uid" for each in found.values())
    assert names.SERVED_ANNOTATION in found[2]["metadata"]["annotations"]
    status = loop.service()["status"]["revisions"]
    assert [(each["number"], each.get("readyReplicas")) for each in status] == [(1, 0), (2, 1)]


async def test_history_is_bounded() -> None:
    """The oldest revisions go; those in use stay."""
    loop = await settled(replicas=1, rollout={"revisionHistoryLimit": 2})
    for number in range(5):
        loop.change(model={"source": {"uri": f"pvc://models/{number}"}})
        await loop.settle()
        await loop.turn()
    assert sorted(kept(loop)) == [4, 5, 6]


async def test_a_revision_that_is_asked_for_again_gets_a_new_number() -> None:
    """As with Deployments: the number tells the order in which they were asked for."""
    loop = await settled(replicas=1)
    loop.change(model=OTHER)
    await loop.settle()
    loop.change(model=FIRST)
    await loop.settle()
    await loop.turn()
    assert sorted(kept(loop)) == [2, 3]
    assert kept(loop)[3]["data"]["model"]["source"]["uri"] == "pvc://models/m"


# --- Rolling back


async def test_a_broken_revision_is_rolled_back_and_says_why() -> None:
    """The old pods are never touched; conditions, lastFailure, revisions and Events tell cause and remedy."""
    loop = await settled(replicas=2)
    old, before = revision(loop), {pod.uid for pod in loop.pods()}
    loop.change(model=OTHER)
    await break_new(loop, old, restarts=1, cause=Cause.MODEL_UNSUPPORTED)
    assert {pod.uid for pod in loop.pods()} == before
    assert progressing(loop) == ("False", "RolledBack")
    assert loop.condition("Ready")["status"] == "True"
    degraded = loop.condition("Degraded")
    assert (degraded["status"], degraded["reason"]) == ("True", "ModelUnsupported")
    assert "replicas are of revision 1" in degraded["message"]
    failure = loop.service()["status"]["lastFailure"]
    assert (failure["cause"], failure["remedy"]) == ("ModelUnsupported", "mend it")
    assert "it failed" in loop.service()["status"]["revisions"][1]["message"]
    assert {"RollingOut", "RolledBack"} <= {event["reason"] for event in loop.cluster.all(EVENTS)}
    writes = len(loop.cluster.writes)
    await loop.run(600, step=30)
    assert len(loop.cluster.writes) == writes


async def test_crashes_without_words_are_rolled_back_after_the_third() -> None:
    """Two ends may be bad luck."""
    loop = await settled(replicas=1)
    old = revision(loop)
    loop.change(model=OTHER)
    await break_new(loop, old, restarts=2)
    assert progressing(loop) == ("False", "CrashLoop")
    await break_new(loop, old, restarts=3, looks=10)
    assert progressing(loop) == ("False", "RolledBack")


async def fail_requests(loop: Loop, old: str, seconds: int) -> None:
    """Pods of other revisions than `old` answer every request with an error."""
    for _ in range(seconds):
        loop.kubelet()
        for pod in loop.pods():
            engine = loop.cluster.engines.get(pod.uid)
            if engine is not None:
                engine.answers = AnswerState(failed=50) if pod.revision != old else AnswerState(answered=50)
        await loop.turn()
        loop.clock.move(1)


async def test_a_revision_that_fails_requests_is_given_up_though_it_serves() -> None:
    """Its only replica has replaced the old one already; a replica of the old revision takes its place again."""
    loop = await settled(replicas=1, rollout={"autoRollback": {"errorRate": 0.02}})
    old = revision(loop)
    loop.change(model=OTHER)
    await fail_requests(loop, old, seconds=90)
    assert [pod.revision for pod in loop.pods()] == [old]
    assert progressing(loop) == ("False", "RolledBack")
    failure = loop.service()["status"]["lastFailure"]
    assert failure["cause"] == "MoreErrorsThanBefore"
    assert "50 of 50 requests of the last minute failed, " in failure["message"]
    assert any("MoreErrorsThanBefore" in each["message"] + each["reason"] for each in loop.cluster.all(EVENTS))


async def test_a_revision_that_answers_is_watched_for_a_minute() -> None:
    """Then its trial is over; errors that begin later are no reason to go back."""
    loop = await settled(replicas=1, rollout={"autoRollback": {"errorRate": 0.02}})
    loop.change(model=OTHER)
    await loop.run(30)
    new = revision(loop)
    assert names.SERVED_ANNOTATION not in kept(loop)[2]["metadata"]["annotations"]
    await loop.run(60)
    assert names.SERVED_ANNOTATION in kept(loop)[2]["metadata"]["annotations"]
    await fail_requests(loop, "none", seconds=30)
    assert [pod.revision for pod in loop.pods()] == [new]


async def test_circumstances_wait_for_the_deadline() -> None:
    """A source that does not answer may come back; after the deadline the revision is given up all the same."""
    loop = await settled(replicas=1, rollout={"progressDeadline": "2m"})
    old = revision(loop)
    loop.change(model=OTHER)
    await break_new(loop, old, restarts=9, cause=Cause.SOURCE_UNREACHABLE, looks=100)
    assert progressing(loop)[1] == "SourceUnreachable"
    await break_new(loop, old, restarts=9, cause=Cause.SOURCE_UNREACHABLE, looks=30)
    assert progressing(loop) == ("False", "RolledBack")
    assert loop.service()["status"]["lastFailure"]["cause"] == "ProgressDeadlineExceeded"


async def test_without_automatic_rollback_the_deadline_is_told() -> None:
    """Nothing is rolled back; when the revision serves after all, all is well."""
    loop = await settled(replicas=1, rollout={"progressDeadline": "1m", "autoRollback": {"enabled": False}})
    old = revision(loop)
    loop.change(model=OTHER)
    await break_new(loop, old, restarts=9, looks=80)
    assert len(pods_of(loop, old)) == 1
    assert loop.condition("Degraded")["reason"] in ("CrashLoop", "ProgressDeadlineExceeded")
    for pod in loop.cluster.pods():
        if pod["metadata"]["labels"][names.REVISION_LABEL] != old:
            loop.cluster.vanish(address_of(pod))
    await loop.settle()
    await loop.turn()
    assert progressing(loop) == ("False", "Converged")
    assert loop.condition("Degraded")["status"] == "False"


async def test_a_revision_that_was_given_up_is_tried_again_when_asked_for_anew() -> None:
    """By another spec in between, or by `kvasir.dev/restarted-at`."""
    loop = await settled(replicas=1)
    old = revision(loop)
    loop.change(model=OTHER)
    await break_new(loop, old, restarts=1, cause=Cause.MODEL_NOT_FOUND)
    loop.annotate(restarted_at="now")
    await loop.settle()
    await loop.turn()
    assert progressing(loop) == ("False", "Converged")
    assert revision(loop) != old


async def test_what_served_once_is_not_rolled_back() -> None:
    """A crash after the rollout is a failure of pods."""
    loop = await settled(replicas=1)
    old = revision(loop)
    loop.change(model=OTHER)
    await loop.settle()
    await loop.turn()
    for _ in range(5):
        loop.cluster.break_pod(loop.cluster.pods()[0], restarts=9)
        loop.clock.move(20)
        await loop.turn()
    assert pods_of(loop, old) == []
    assert progressing(loop) == ("False", "CrashLoop")


async def test_capacity_is_kept_up_while_a_new_revision_fails() -> None:
    """A pod of the old revision that vanishes is made anew of the old revision."""
    loop = await settled(replicas=2, rollout={"autoRollback": {"enabled": False}})
    old = revision(loop)
    loop.change(model=OTHER)
    await break_new(loop, old, restarts=9, looks=10)
    victim = next(pod for pod in loop.cluster.pods() if pod["metadata"]["labels"][names.REVISION_LABEL] == old)
    loop.cluster.vanish(address_of(victim))
    await break_new(loop, old, restarts=9, looks=10)
    assert [pod.stage for pod in pods_of(loop, old)] == [Stage.SERVING] * 2
    assert sum(pod.stays for pod in loop.pods()) == 3


# --- By hand


@pytest.mark.parametrize("pin", ["1", "previous"])
async def test_an_annotation_goes_back_for_as_long_as_it_is_there(pin: str) -> None:
    """By number or `previous`; taking it away goes on to what the spec asks for."""
    loop = await settled(replicas=2)
    old = revision(loop)
    loop.change(model=OTHER)
    await loop.settle()
    await loop.turn()
    loop.annotate(rollback_to=pin)
    await loop.settle()
    await loop.turn()
    assert len(pods_of(loop, old)) == 2
    assert progressing(loop) == ("False", "RolledBack")
    assert loop.condition("Degraded")["status"] == "False"
    loop.annotate(rollback_to=None)
    await loop.settle()
    assert pods_of(loop, old) == []


async def test_an_annotation_that_names_nothing_is_told_and_changes_nothing() -> None:
    """With the revisions that there are."""
    loop = await settled(replicas=1)
    before = {pod.uid for pod in loop.pods()}
    loop.annotate(rollback_to="9")
    await loop.run(5)
    assert loop.condition("Ready")["reason"] == "InvalidSpec"
    assert "kvasir.dev/rollback-to" in loop.condition("Ready")["message"]
    assert {pod.uid for pod in loop.pods()} == before


async def test_pause_and_resume() -> None:
    """Paused, replicas stay of what they are, and scaling goes on with what served; resumed, the rollout goes on."""
    loop = await settled(replicas=2)
    old = revision(loop)
    loop.change(model=OTHER, rollout={"paused": True})
    await loop.run(30)
    assert len(pods_of(loop, old)) == 2
    assert progressing(loop) == ("Unknown", "RolloutPaused")
    loop.change(replicas=3)
    await loop.run(30)
    assert len(pods_of(loop, old)) == 3
    await loop.run(3600, step=30)
    loop.change(rollout={"paused": False})
    await loop.settle()
    await loop.turn()
    assert progressing(loop) == ("False", "Converged")
    assert pods_of(loop, old) == []


async def test_a_revision_that_waits_at_zero_replicas_has_its_whole_deadline() -> None:
    """Counted from when replicas are wanted."""
    loop = await settled(replicas=1, rollout={"progressDeadline": "2m"})
    loop.change(replicas=0)
    await loop.settle()
    loop.change(model=OTHER)
    await loop.run(600, step=10)
    loop.change(replicas=1)
    await loop.settle()
    await loop.turn()
    assert progressing(loop) == ("False", "Converged")
    assert loop.condition("Degraded")["status"] == "False"


async def test_a_pause_in_the_middle() -> None:
    """The mixture stays as it is."""
    loop = await settled(replicas=3)
    old = revision(loop)
    loop.change(model=OTHER)
    while sum(pod.stage is Stage.SERVING and pod.revision != old for pod in loop.pods()) < 1:
        await loop.run(1)
    loop.change(rollout={"paused": True})
    await loop.run(60)
    before = {pod.uid for pod in loop.pods()}
    await loop.run(120)
    assert {pod.uid for pod in loop.pods()} == before
    assert sum(pod.stage is Stage.SERVING for pod in loop.pods()) >= 3
    loop.change(rollout={"paused": False})
    await loop.settle()


# --- Canary


async def test_canary_steps() -> None:
    """The new revision gets its share of the replicas for as long as each step lasts, then all of them."""
    steps = [{"traffic": 25, "pause": "5m"}, {"traffic": 50, "pause": "5m"}]
    loop = await settled(replicas=4, rollout={"canary": {"steps": steps}, "progressDeadline": "2m"})
    old = revision(loop)
    loop.change(model=OTHER)
    shares = []
    for _ in range(4):
        await loop.run(200)
        canary = loop.service()["status"].get("canary")
        shares.append((len(pods_of(loop, old)), canary["traffic"] if canary else None))
    assert shares[0] == (3, 25)
    assert (2, 50) in shares
    await loop.settle()
    await loop.turn()
    assert "canary" not in loop.service()["status"]
    assert progressing(loop) == ("False", "Converged")


async def test_a_canary_of_one_replica_stands_beside_it() -> None:
    """The old one stays until the step is over."""
    loop = await settled(replicas=1, rollout={"canary": {"steps": [{"traffic": 10, "pause": "3m"}]}})
    old = revision(loop)
    loop.change(model=OTHER)
    await loop.run(120)
    assert [len(pods_of(loop, old)), sum(pod.stays for pod in loop.pods())] == [1, 2]
    await loop.settle()
    assert pods_of(loop, old) == []


# --- Golden prompts


@pytest.mark.parametrize(("score", "kept_back"), [(-1.05, False), (-1.2, True), (float("nan"), True)])
async def test_golden_prompts(score: float, kept_back: bool) -> None:
    """Compared before the first new pod takes traffic: within the bound it rolls on, else back."""
    rollout = {"autoRollback": {"goldenPrompts": ["one two three"], "goldenTolerance": 0.1}}
    loop = await settled(replicas=1, rollout=rollout)
    old = revision(loop)
    loop.change(model=OTHER)
    await loop.turn()
    loop.scraper.scores = {revision(loop): score}
    opened = False
    for _ in range(60):
        await loop.run(1)
        opened |= any(pod.revision != old and pod.serving_gate is not None for pod in loop.pods())
    assert opened != kept_back
    assert bool(pods_of(loop, old)) == kept_back
    assert progressing(loop) == ("False", "RolledBack" if kept_back else "Converged")
    if kept_back:
        assert loop.condition("Degraded")["reason"] == "GoldenPromptsDiffer"


async def test_golden_prompts_that_are_not_answered_hold_the_rollout_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The new pod takes no traffic; why is shown; it goes on when they are answered."""
    rollout = {"autoRollback": {"goldenPrompts": ["one two three"]}}
    loop = await settled(replicas=1, rollout=rollout)
    old = revision(loop)

    async def hang(*_: str) -> None:
        await asyncio.Event().wait()

    with monkeypatch.context() as patch:
        patch.setattr(loop.scraper, "score", hang)
        patch.setattr("kvasir_operator.revision_keeper.GOLDENS_SECONDS", 0.01)
        loop.change(model=OTHER)
        await loop.run(30)
    assert all(pod.serving_gate is None for pod in loop.pods() if pod.revision != old)
    assert "golden prompts were not answered within" in loop.condition("Degraded")["message"]
    await loop.settle()
    assert pods_of(loop, old) == []


# --- Room, nodes, evictions


async def test_auto_goes_in_place_where_there_is_no_room() -> None:
    """After half a minute, one at a time; never more than one is missing."""
    loop = await settled(replicas=3)
    loop.cluster.nodes = {"node": 3}
    loop.change(model=OTHER)
    fewest = 3
    for _ in range(400):
        await loop.run(1)
        fewest = min(fewest, sum(pod.stage is Stage.SERVING for pod in loop.pods()))
        if await loop.converged():
            break
    assert await loop.converged()
    assert fewest == 2


async def test_auto_in_a_cluster_that_is_too_small_anyway() -> None:
    """Two of three replicas fit: the rollout comes to its end all the same."""
    loop = await settled(replicas=2)
    loop.cluster.nodes = {"node": 2}
    loop.change(replicas=3)
    await loop.run(60)
    old = revision(loop)
    loop.change(model=OTHER)
    await loop.run(600)
    assert pods_of(loop, old) == []
    assert sum(pod.stage is Stage.SERVING for pod in loop.pods()) == 2
    await loop.run(1800, step=10)
    assert pods_of(loop, old) == [], "what lacks room is no failure of the revision"


async def test_surge_waits_for_room() -> None:
    """No replica is given up; after the deadline the old revision stays."""
    loop = await settled(replicas=2, rollout={"strategy": "Surge", "progressDeadline": "5m"})
    loop.cluster.nodes = {"node": 2}
    before = {pod.uid for pod in loop.pods()}
    loop.change(model=OTHER)
    await loop.run(400)
    assert {pod.uid for pod in loop.pods()} == before
    assert loop.service()["status"]["lastFailure"]["cause"] == "ProgressDeadlineExceeded"
    assert "Insufficient cpu" in loop.service()["status"]["lastFailure"]["message"]


async def test_replicas_move_off_a_cordoned_node() -> None:
    """Another one serves elsewhere before one goes."""
    loop = await settled(replicas=2)
    loop.cluster.nodes = {"node": 10, "second": 10}
    loop.cluster.cordon("node")
    fewest = 2
    for _ in range(120):
        await loop.run(1)
        fewest = min(fewest, sum(pod.stage is Stage.SERVING for pod in loop.pods()))
    assert fewest == 2
    assert [pod.node for pod in loop.pods()] == ["second", "second"]
    loop.cluster.cordon("node", on=False)
    await loop.settle()


async def test_replicas_that_cannot_move_stay() -> None:
    """With no other node the replacement waits; uncordoned, nothing was lost."""
    loop = await settled(replicas=2)
    before = {pod.uid for pod in loop.pods()}
    loop.cluster.cordon("node")
    await loop.run(300)
    assert {pod.uid for pod in loop.pods() if pod.stage is Stage.SERVING} == before
    loop.cluster.cordon("node", on=False)
    await loop.settle()
    assert {pod.uid for pod in loop.pods()} == before


async def test_the_budget_follows_the_replicas() -> None:
    """Wanted replicas less maxUnavailable; mended when somebody changes or removes it."""
    loop = await settled(replicas=3, rollout={"maxUnavailable": 1})
    [budget] = loop.cluster.all(BUDGETS)
    assert budget["spec"]["minAvailable"] == 2
    assert budget["spec"]["selector"]["matchLabels"] == names.replica_selector("tiny")
    loop.change(replicas=1)
    await loop.settle()
    assert loop.cluster.all(BUDGETS)[0]["spec"]["minAvailable"] == 0
    loop.cluster.vanish((BUDGETS, "team", "tiny"))
    await loop.settle()
    assert len(loop.cluster.all(BUDGETS)) == 1
