"""What each pod still has to have before it takes traffic: its adapters, then a warm cache."""

from collections.abc import Mapping
from datetime import datetime

from kvasir_operator.planning.adapters import adapters_step, wanted_sets
from kvasir_operator.planning.gates import Preparation
from kvasir_operator.planning.state import Snapshot
from kvasir_runtime.contract.admin_api import AdminState


def prepare(snapshot: Snapshot, now: datetime) -> Mapping[str, Preparation]:
    """By uid, of pods whose engine serves."""
    wanted = wanted_sets(snapshot, now)
    patience = snapshot.timings.adapters_patience
    return {
        pod.uid: Preparation(adapters_step(pod, wanted.get(pod.uid), pod.runtime.boot_id, patience, now))
        for pod in snapshot.pods
        if pod.serves_now and isinstance(pod.runtime, AdminState)
    }
