"""Decisions over time: what is remembered of replicas, and what holds over any course of events."""

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from kvasir_operator.scaling.bounds import Verdict
from kvasir_operator.scaling.evaluate import Evaluation, evaluate
from kvasir_operator.scaling.policy import Policy
from kvasir_operator.scaling.recommender import Changes, Demand
from kvasir_operator.scaling.samples import Sample, read_sample
from kvasir_operator.scaling.windows import STALE_AFTER_S, Memory
from kvasir_runtime.contract.admin_api import AdminState, KVState, StartupState

WINDOW_S = 60.0
POLICY = Policy(min_replicas=1, max_replicas=12, down_window_s=WINDOW_S)


def sample(active: int = 0, *, boot: str = "a", **fields: float | None) -> Sample:
    return Sample(boot=boot, kv_capacity=10_000, kv_active=active, **fields)  # type: ignore[arg-type]


def fleet(count: int, each: Sample | None) -> dict[str, Sample | None]:
    return {f"pod-{number}": each for number in range(count)}


def after(memory: Memory, samples: Mapping[str, Sample | None], now: float, replicas: int | None = None) -> Evaluation:
    return evaluate(memory, samples, POLICY, len(samples) if replicas is None else replicas, Changes(), now)


def test_a_replica_that_is_silent_for_a_moment_is_remembered() -> None:
    """One failed reading changes nothing; after 30 s the replica counts as silent."""
    memory = Memory()
    after(memory, fleet(2, sample(7_000)), 0.0)
    mixed: dict[str, Sample | None] = {"pod-0": sample(7_000), "pod-1": None}
    assert after(memory, mixed, 5.0).inputs.demand.kv_tokens_now == 14_000
    late = after(memory, mixed, STALE_AFTER_S + 1).inputs
    assert (late.silent, late.demand.kv_tokens_now) == (1, 7_000)


def test_another_process_is_another_replica() -> None:
    """Counters of the process before are not compared with those of the new one."""
    memory = Memory()
    before = sample(boot="a", prompt_per_s=100.0, prompt_busy=0.5, hits=0, queries=1_000)
    after(memory, {"pod": before}, 0.0)
    restarted = sample(boot="b", prompt_per_s=100.0, prompt_busy=0.5, hits=90, queries=100)
    assert after(memory, {"pod": restarted}, 5.0).inputs.demand.prompt_per_s_now == 10.0


def test_a_pod_that_is_gone_is_forgotten() -> None:
    """Its demand goes with it."""
    memory = Memory()
    after(memory, fleet(3, sample(5_000)), 0.0)
    assert after(memory, fleet(1, sample(5_000)), 1.0).inputs.demand.kv_tokens_now == 5_000


def test_speed_is_learned_from_busy_time() -> None:
    """300 tokens a second in a quarter of the time are 1,200 in all of it."""
    memory = Memory()
    for turn in range(3):
        busy = sample(prompt_per_s=300.0 + turn, prompt_busy=0.25 + turn / 1200)
        after(memory, {"pod": busy}, 5.0 * turn)
    assert memory.prompt_capacity is not None
    assert abs(memory.prompt_capacity - 1_200) < 1e-6


def test_an_engine_that_does_not_tell_is_learned_from_while_requests_wait() -> None:
    """Not before they have waited for all of the engine's own window."""
    memory = Memory()
    for turn in range(5):
        after(memory, {"pod": sample(prompt_per_s=500.0 + turn, waiting=3)}, 5.0 * turn)
        assert (memory.prompt_capacity is not None) == (turn >= 2)


def test_hits_cost_nothing() -> None:
    """Of 100 tokens a second 80 % come from the cache."""
    memory = Memory()
    after(memory, {"pod": sample(hits=0, queries=0, prompt_per_s=100.0)}, 0.0)
    found = after(memory, {"pod": sample(hits=800, queries=1_000, prompt_per_s=100.0)}, 5.0)
    assert round(found.inputs.demand.prompt_per_s_now) == 20


def test_growth_of_the_queue_is_demand() -> None:
    """A full replica computes 100 tokens a second and falls behind by 400."""
    memory = Memory()
    after(memory, {"pod": sample(prompt_per_s=100.0, queued_tokens=0)}, 0.0)
    found = after(memory, {"pod": sample(prompt_per_s=100.0, queued_tokens=4_000)}, 10.0)
    assert found.inputs.demand.prompt_per_s_now == 500


def test_noise_is_no_growth() -> None:
    """Readings that jump by half of their mean tell no trend; those that climb steadily do."""
    for jump, climb, believed in ((2_000, 0, False), (0, 30, True)):
        memory, demand = Memory(), Demand()
        for turn in range(40):
            active = 4_000 + (jump if turn % 2 else -jump) + climb * turn + (600 if turn > 28 and jump else 0)
            demand = after(memory, fleet(2, sample(active, cold_start_s=90.0)), 5.0 * turn).inputs.demand
        assert (demand.kv_tokens_ahead > demand.kv_tokens) is believed


def test_what_was_added_stays_for_the_window() -> None:
    """Demand that ends at once takes nothing back before all of the window has passed."""
    memory, replicas, up, down = Memory(), 2, 0.0, 0.0
    for turn in range(60):
        now = 5.0 * turn
        to = after(memory, fleet(replicas, sample(9_500 if turn < 14 else 100)), now).decision.to
        up = now if to > replicas else up
        down = down or (now if to < replicas else 0.0)
        replicas = to
    assert down - up >= WINDOW_S


def test_nothing_is_taken_away_before_the_window_is_full() -> None:
    """An operator that was started anew first watches for as long as the window."""
    memory = Memory()
    for turn in range(13):
        found = after(memory, fleet(4, sample(100)), 5.0 * turn)
        assert (found.decision.verdict is Verdict.DOWN) == (5.0 * turn >= WINDOW_S), 5.0 * turn


def test_reading_what_an_engine_says() -> None:
    """Blocks become tokens; an engine without a cache says nothing yet."""
    state = AdminState(boot_id="b", model_digest="", revision="", draining=False, inflight=1, waiting=2, running=1)
    assert read_sample(state) is None
    kv = KVState(block_size=16, blocks_total=100, blocks_active=10, blocks_cached=0, hit_tokens=5, query_tokens=9)
    full = state.model_copy(update={"kv": kv, "startup": StartupState(seconds={"total": 20.0})})
    found = read_sample(full, prepared_s=4.0)
    assert found is not None
    assert (found.kv_capacity, found.kv_active, found.waiting, found.cold_start_s) == (1_600, 160, 2, 24.0)


@given(st.lists(st.tuples(st.integers(0, 9_000), st.integers(0, 3)), min_size=20, max_size=120))
def test_changes_of_direction_are_bounded(course: list[tuple[int, int]]) -> None:
    """Replicas that were added are taken away a window later at the earliest: in T at most T / W + 1 such turns."""
    memory, replicas, added_at, turns, added = Memory(), 3, None, 0, False
    for step, (active, silent) in enumerate(course):
        now = 5.0 * step
        samples: dict[str, Sample | None] = fleet(replicas, sample(active))
        samples |= dict.fromkeys(sorted(samples)[: min(silent, replicas - 1)])
        to = after(memory, samples, now).decision.to
        if to > replicas:
            added_at, added = now, True
        elif to < replicas:
            assert added_at is None or now - added_at >= WINDOW_S
            turns, added = turns + added, False
        replicas = to
    assert turns <= 5.0 * len(course) / WINDOW_S + 1


@given(st.integers(2, 10), st.integers(0, 9_000))
def test_a_dead_replica_does_not_freeze_the_others(count: int, active: int) -> None:
    """With one that never answers, load still adds replicas, and its end still takes them away."""
    memory, replicas = Memory(), count
    for step in range(200):
        load = 9_500 if step < 20 else active // 100
        samples: dict[str, Sample | None] = fleet(replicas, sample(load)) | {"pod-0": None}
        before, replicas = replicas, after(memory, samples, 5.0 * step).decision.to
        if step < 20 and count < 10:
            assert replicas >= before
    assert replicas == 2
