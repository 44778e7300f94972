"""Which revision pods are to have, and what is read of ControllerRevisions."""

from typing import Any

import pytest

from kvasir_operator.api.conditions import Reason
from kvasir_operator.planning.revisions import (
    Heading,
    RevisionFailure,
    check_pin,
    choose_target,
    fallback,
    read_revision,
)
from kvasir_operator.resources import names
from kvasir_operator.resources.revision import build_revision
from kvasir_operator.resources.template_hash import RevisionTemplate
from kvasir_operator.settings import Settings
from tests.kvasir_operator.planning.builders import NOW, ago, revision, service

FAILED = RevisionFailure(time=NOW, cause=Reason.CRASH_LOOP, message="it crashed", back_to="old")
OLD = revision("old", 1, served_at=ago(600))
ODD = revision("odd", 2, failure=FAILED)
NEW = revision("new", 3, progress_since=ago(60))
GIVEN_UP = revision("new", 3, progress_since=ago(60), failure=FAILED)
NOT_ASKED = revision("new", 3, failure=FAILED)
NOWHERE = revision("new", 3, progress_since=ago(60), failure=FAILED.model_copy(update={"back_to": ""}))


def target(history: list[Any], pin: str | None = None, **spec: Any) -> tuple[str, Heading]:
    typed = service(**spec)
    meta = typed.metadata.model_copy(update={"annotations": {names.ROLLBACK_ANNOTATION: pin} if pin else {}})
    found = choose_target(meta, typed.spec, "new", history)
    return found.name, found.heading


@pytest.mark.parametrize(
    ("history", "pin", "spec", "expected"),
    [
        ([OLD, NEW], "1", {}, ("old", Heading.PINNED)),
        ([OLD, NEW], "old", {}, ("old", Heading.PINNED)),
        ([OLD, NEW], "previous", {}, ("old", Heading.PINNED)),
        ([OLD, GIVEN_UP], "3", {}, ("new", Heading.PINNED)),
        ([OLD, NEW], "9", {}, ("new", Heading.SPEC)),
        ([OLD, GIVEN_UP], None, {}, ("old", Heading.ROLLED_BACK)),
        ([OLD, GIVEN_UP], None, {"rollout": {"autoRollback": {"enabled": False}}}, ("new", Heading.SPEC)),
        ([OLD, NOWHERE], None, {}, ("new", Heading.SPEC)),
        ([GIVEN_UP], None, {}, ("new", Heading.SPEC)),
        ([OLD, NOT_ASKED], None, {}, ("new", Heading.SPEC)),
        ([OLD, NEW], None, {}, ("new", Heading.SPEC)),
        ([], None, {}, ("new", Heading.SPEC)),
    ],
)
def test_target(history: list[Any], pin: str | None, spec: dict[str, Any], expected: tuple[str, Heading]) -> None:
    """The table above `choose_target`, line by line."""
    assert target(history, pin, **spec) == expected


def test_what_to_go_back_to() -> None:
    """The latest that served and was not given up; one whose pods serve now counts as well."""
    later = revision("later", 4)
    assert fallback("new", [OLD, ODD, NEW]) == OLD
    assert fallback("new", [OLD, later]) == OLD
    assert fallback("new", [OLD, later], live=["later"]) == later
    assert fallback("old", [OLD, ODD, NEW]) is None
    assert fallback("new", [revision("old", 1, served_at=ago(5), template=None)]) is None


def test_a_pin_that_names_nothing_is_told_with_what_there_is() -> None:
    """Field, choice and value."""
    meta = service().metadata.model_copy(update={"annotations": {names.ROLLBACK_ANNOTATION: "9"}})
    [error] = check_pin(meta, "new", [NEW, OLD])
    assert str(error) == (
        "metadata.annotations[kvasir.dev/rollback-to]: must be previous, or the number or name of a revision that is "
        'kept (1 (old), 3 (new)), got "9"'
    )
    assert check_pin(meta.model_copy(update={"annotations": {}}), "new", []) == ()


def test_a_revision_is_read_back_as_it_was_written() -> None:
    """Template, number and marks."""
    typed = service(engine={"maxNumSeqs": 7})
    template = RevisionTemplate.of(typed, Settings())
    marks = {
        names.PROGRESS_ANNOTATION: "2026-03-01T12:00:00Z",
        names.STEP_ANNOTATION: "2",
        names.FAILURE_ANNOTATION: FAILED.model_dump_json(),
        names.PAUSED_ANNOTATION: "true",
    }
    manifest = build_revision(typed.metadata, template, template.digest(), 5, marks)
    manifest["metadata"] |= {"uid": "u", "creationTimestamp": "2026-03-01T11:00:00Z"}
    found = read_revision(manifest)
    assert (found.name, found.number, found.template) == (template.digest(), 5, template)
    assert (found.progress_since, found.steps_done, found.failure, found.paused) == (NOW, 2, FAILED, True)
    assert manifest["metadata"]["ownerReferences"][0]["uid"] == "service-uid"


def test_marks_that_somebody_broke_count_as_absent() -> None:
    """As does a template that cannot be read."""
    marks = {
        names.PROGRESS_ANNOTATION: "soon",
        names.STEP_ANNOTATION: "-1",
        names.FAILURE_ANNOTATION: "{",
    }
    found = read_revision({"metadata": {"uid": "u", "annotations": marks}, "data": {"odd": 1}, "revision": 1})
    assert (found.progress_since, found.steps_done, found.failure, found.template) == (None, 0, None, None)
