"""Why a service has as many replicas as it has, as text for people."""

from collections.abc import Iterable
from datetime import datetime

from pydantic import ValidationError

from kvasir_operator.api.conditions import ConditionType, find_condition
from kvasir_operator.api.v1alpha1 import InferenceService, InferenceServiceStatus, ScalingDecision
from kvasir_operator.scaling.recommender import Inputs, loads
from kvasir_operator.scaling.words import demand_text


def explain(service: InferenceService, status: InferenceServiceStatus, now: datetime) -> str:
    """A few lines: what there is, who decides, and the latest decisions with their numbers."""
    spec, scaling = service.spec, status.scaling
    name = f"{service.metadata.namespace}/{service.metadata.name}"
    present, serving = status.replicas or 0, status.ready_replicas or 0
    lines = [f"{name}: {spec.replicas} replicas are set, {present} exist, {serving} serve"]
    if spec.scaling is None:
        return "\n".join([*lines, "spec.scaling is absent: spec.replicas decides alone, whoever sets it"])
    lines.append(f"bounds: {spec.scaling.min_replicas} to {spec.scaling.max_replicas}")
    active = find_condition(status.conditions, ConditionType.SCALING_ACTIVE)
    if active is not None:
        lines.append(f"ScalingActive {active.status}, {active.reason}: {active.message}")
    if scaling is None or scaling.last_decision is None:
        return "\n".join([*lines, "nothing was changed yet"])
    lines += ["", *_decision(scaling.last_decision, now), "", "before that:" if scaling.history[1:] else ""]
    lines += [f"  {_line(each, now)}" for each in scaling.history[1:]]
    return "\n".join(lines).rstrip()


def _decision(decision: ScalingDecision, now: datetime) -> Iterable[str]:
    yield f"last change: {_line(decision, now)}"
    try:
        inputs = Inputs.model_validate(decision.inputs)
    except ValidationError:
        yield "  its inputs are of another version of the operator"
        return
    for signal, asked in loads(inputs).items():
        yield f"  {signal:<11} asks for {asked:5.2f}: {demand_text(inputs, signal) if asked else '-'}"
    silent = f", {inputs.silent} of them silent" if inputs.silent else ""
    yield f"  {inputs.serving} served{silent}; growth was looked at {inputs.horizon_s:.0f} s ahead"


def _line(decision: ScalingDecision, now: datetime) -> str:
    return f"{_age((now - decision.time).total_seconds())} ago {decision.from_} → {decision.to}: {decision.reason}"


def _age(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"
