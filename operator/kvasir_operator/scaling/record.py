"""Recorded decisions: as they stand in status and in the log, and made again from their inputs."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from pydantic import ValidationError

from kvasir_operator.api.v1alpha1 import ScalingDecision, ScalingStatus
from kvasir_operator.scaling.bounds import Decision, decide
from kvasir_operator.scaling.evaluate import Evaluation
from kvasir_operator.scaling.recommender import Changes, Inputs
from kvasir_operator.scaling.words import reason_text

KEPT: Final = 20
"""Decisions that status keeps."""
LOG_KEY: Final = "scaling"
"""Key of a log record under which a decision stands."""
MINUTE_S: Final = 60.0


class RecordError(ValueError):
    """A line that looks like a decision and cannot be read; the text names the line and the field."""


def record(evaluation: Evaluation, now: datetime) -> ScalingDecision:
    """The decision as it is kept, with all that it was made of."""
    inputs = evaluation.inputs.model_dump(mode="json", by_alias=True, exclude_none=True)
    return ScalingDecision(
        time=now,
        from_=evaluation.inputs.replicas,
        to=evaluation.decision.to,
        reason=reason_text(evaluation),
        inputs=inputs,
    )


def with_decision(status: ScalingStatus, decision: ScalingDecision) -> ScalingStatus:
    """Status with that decision as its latest; one that is made again because it was not carried out replaces it."""
    history = status.history
    if history and status.replicas == history[0].from_ == decision.from_ and history[0].to != status.replicas:
        history = history[1:]
    return status.model_copy(update={"last_decision": decision, "history": [decision, *history][:KEPT]})


def changes_of(status: ScalingStatus | None, now: datetime) -> Changes:
    """What was added and removed in the last minute, and how long ago something was last added."""
    history = status.history if status is not None else []
    ages = [((now - each.time).total_seconds(), each.to - each.from_) for each in history]
    return Changes(
        added=sum(delta for age, delta in ages if age < MINUTE_S and delta > 0),
        removed=-sum(delta for age, delta in ages if age < MINUTE_S and delta < 0),
        added_ago_s=min((max(0.0, age) for age, delta in ages if delta > 0), default=None),
    )


@dataclass(frozen=True, slots=True)
class Replayed:
    """A recorded decision, and what its inputs give now."""

    recorded: ScalingDecision
    decision: Decision

    @property
    def same(self) -> bool:
        return self.recorded.to == self.decision.to


def replay(decision: ScalingDecision) -> Replayed:
    """Decide again. Raises pydantic's ValidationError where the inputs are not whole."""
    return Replayed(decision, decide(Inputs.model_validate(decision.inputs)))


def read_decisions(lines: Iterable[str]) -> Iterator[ScalingDecision]:
    """Decisions in text: an operator's log in JSON, lines of decisions, or InferenceServices as JSON, oldest first.

    Lines that hold none are passed over. Raises RecordError for one that is broken.
    """
    text = list(lines)
    for number, content in _objects(text):
        for found in _decisions_in(content):
            try:
                yield ScalingDecision.model_validate(found)
            except ValidationError as error:
                raise RecordError(f"line {number}: no decision: {error.errors()[0]['loc']} {error}") from error


def _objects(lines: list[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """JSON objects: one a line, or one in all."""
    whole = _parsed("".join(lines))
    if whole is not None:
        yield 1, whole
        return
    for number, line in enumerate(lines, start=1):
        content = _parsed(line)
        if content is not None:
            yield number, content


def _parsed(text: str) -> Mapping[str, Any] | None:
    if not text.lstrip().startswith("{"):
        return None
    try:
        content = json.loads(text)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def _decisions_in(content: Mapping[str, Any]) -> list[Any]:
    if "inputs" in content:
        return [content]
    if isinstance(content.get(LOG_KEY), dict):
        return [content[LOG_KEY]]
    if "items" in content:
        return [found for item in content["items"] for found in _decisions_in(item)]
    return list(reversed(((content.get("status") or {}).get("scaling") or {}).get("history") or []))
