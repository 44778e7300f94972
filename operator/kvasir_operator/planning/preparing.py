"""What each pod still has to have before it takes traffic: its adapters, then a warm cache."""

from collections.abc import Mapping
from datetime import datetime

from kvasir_operator.planning.adapters import adapters_step, wanted_sets
from kvasir_operator.planning.gates import Preparation
from kvasir_operator.planning.state import Snapshot
from kvasir_operator.planning.warming import warm_step
from kvasir_runtime.contract.admin_api import AdminState


def prepare(snapshot: Snapshot, now: datetime) -> Mapping[str, Preparation]:
    """By uid, of pods whose engine serves."""
    wanted = wanted_sets(snapshot, now)
    timings, warmup = snapshot.timings, snapshot.spec.warmup if snapshot.spec is not None else None
    return {
        pod.uid: Preparation(
            adapters_step(pod, wanted.get(pod.uid), pod.runtime.boot_id, timings.adapters_patience, now),
            warm_step(pod, warmup, pod.runtime.boot_id, timings.warmup_grace, now),
        )
        for pod in snapshot.pods
        if pod.serves_now and isinstance(pod.runtime, AdminState)
    }
