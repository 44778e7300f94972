"""Revisions of a service: what is kept of each, and which one the pods are to have.

What has to be remembered of a rollout is in annotations of its ControllerRevision, its *marks*: a mark is written
first, and acted on when it is seen.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from kvasir_operator.api.base import Time
from kvasir_operator.api.conditions import Reason
from kvasir_operator.api.field_errors import FieldError, show
from kvasir_operator.api.v1alpha1 import InferenceServiceSpec, ObjectMeta
from kvasir_operator.planning.times import read_time
from kvasir_operator.resources import names
from kvasir_operator.resources.template_hash import RevisionTemplate

PREVIOUS: Final = "previous"
"""What `kvasir.dev/rollback-to` may say instead of a number or a name."""


_EPOCH: Final = datetime.fromtimestamp(0, UTC)


class RevisionFailure(BaseModel):
    """Why a revision was given up; `back_to` is the one that took its place, empty where there was none."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    time: Time
    cause: Reason
    message: str
    remedy: str = ""
    pod: str = ""
    back_to: str = ""


@dataclass(frozen=True, slots=True)
class Revision:
    """One ControllerRevision. `template` is None where it cannot be read: nothing can be made from it."""

    name: str
    uid: str
    number: int
    template: RevisionTemplate | None
    created_at: datetime
    progress_since: datetime | None = None
    paused: bool = False
    served_at: datetime | None = None
    steps_done: int = 0
    step_since: datetime | None = None
    goldens: str = ""
    failure: RevisionFailure | None = None

    @property
    def asked(self) -> bool:
        """Whether the spec asks for it, as far as was noted."""
        return self.progress_since is not None

    def __str__(self) -> str:
        return f"revision {self.number} ({self.name})"


class Heading(StrEnum):
    """Why pods are to have a certain revision."""

    SPEC = "Spec"
    ROLLED_BACK = "RolledBack"
    PINNED = "Pinned"


@dataclass(frozen=True, slots=True)
class Target:
    """The revision that pods are to have, and why; `revision` is None before it is kept."""

    name: str
    heading: Heading
    revision: Revision | None = None


def read_revision(manifest: Mapping[str, Any]) -> Revision:
    """Read one ControllerRevision of a service; marks that somebody broke by hand count as absent."""
    metadata = manifest["metadata"]
    marks = metadata.get("annotations") or {}
    steps = marks.get(names.STEP_ANNOTATION, "")
    return Revision(
        name=(metadata.get("labels") or {}).get(names.REVISION_LABEL, ""),
        uid=metadata["uid"],
        number=int(manifest.get("revision") or 0),
        template=_template(manifest.get("data")),
        created_at=_time(metadata.get("creationTimestamp")) or _EPOCH,
        progress_since=_time(marks.get(names.PROGRESS_ANNOTATION)),
        paused=names.PAUSED_ANNOTATION in marks,
        served_at=_time(marks.get(names.SERVED_ANNOTATION)),
        steps_done=int(steps) if steps.isdecimal() else 0,
        step_since=_time(marks.get(names.STEP_SINCE_ANNOTATION)),
        goldens=marks.get(names.GOLDEN_ANNOTATION, ""),
        failure=_failure(marks.get(names.FAILURE_ANNOTATION)),
    )


def _template(data: Any) -> RevisionTemplate | None:
    try:
        return RevisionTemplate.model_validate(data)
    except ValidationError:
        return None


def _time(text: str | None) -> datetime | None:
    try:
        return read_time(text)
    except ValueError:
        return None


def _failure(text: str | None) -> RevisionFailure | None:
    try:
        return RevisionFailure.model_validate_json(text) if text else None
    except ValidationError:
        return None


# | kvasir.dev/rollback-to | the spec's revision | another one to go back to | pods are to be of       | because    |
# |------------------------|---------------------|---------------------------|-------------------------|------------|
# | names one that is kept | any                 | any                       | that one                | Pinned     |
# | absent                 | failed              | yes, autoRollback enabled | the one that was chosen | RolledBack |
# | absent                 | failed              | no, or not enabled        | the spec's              | Spec       |
# | absent                 | anything else       | any                       | the spec's              | Spec       |
def choose_target(
    meta: ObjectMeta, spec: InferenceServiceSpec, asked: str, history: Iterable[Revision], live: Iterable[str] = ()
) -> Target:
    """The first line of the table above that holds. `asked` is the revision of the spec, `live` those that serve."""
    kept = {each.name: each for each in history}
    pin = meta.annotations.get(names.ROLLBACK_ANNOTATION)
    pinned = find_pinned(pin, asked, kept.values(), live) if pin is not None else None
    if pinned is not None:
        return Target(pinned.name, Heading.PINNED, pinned)
    current = kept.get(asked)
    if current is not None and current.asked and current.failure is not None and spec.rollout.auto_rollback.enabled:
        back = kept.get(current.failure.back_to)
        if back is not None and back.template is not None:
            return Target(back.name, Heading.ROLLED_BACK, back)
    return Target(asked, Heading.SPEC, current)


def find_pinned(pin: str, asked: str, history: Iterable[Revision], live: Iterable[str] = ()) -> Revision | None:
    """The revision that `kvasir.dev/rollback-to` names: by number, by name, or the one before."""
    usable = [each for each in history if each.template is not None]
    if pin == PREVIOUS:
        return fallback(asked, usable, live)
    return next((each for each in usable if pin in (str(each.number), each.name)), None)


def check_pin(
    meta: ObjectMeta, asked: str, history: Iterable[Revision], live: Iterable[str] = ()
) -> tuple[FieldError, ...]:
    """What is wrong with the annotation `kvasir.dev/rollback-to`, if anything."""
    pin, kept = meta.annotations.get(names.ROLLBACK_ANNOTATION), sorted(history, key=lambda each: each.number)
    if pin is None or find_pinned(pin, asked, kept, live) is not None:
        return ()
    choice = ", ".join(f"{each.number} ({each.name})" for each in kept) or "none"
    problem = f"must be {PREVIOUS}, or the number or name of a revision that is kept ({choice}), got {show(pin)}"
    return (FieldError(f"metadata.annotations[{names.ROLLBACK_ANNOTATION}]", problem),)


def fallback(name: str, history: Iterable[Revision], live: Iterable[str] = ()) -> Revision | None:
    """What to go back to from revision `name`: the latest other one that has served and was not given up."""
    serving = set(live)
    good = [
        each
        for each in history
        if each.name != name
        and each.template is not None
        and each.failure is None
        and (each.served_at is not None or each.name in serving)
    ]
    return max(good, key=lambda each: (each.number, each.name), default=None)
