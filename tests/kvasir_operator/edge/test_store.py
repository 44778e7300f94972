"""The cache: whatever order versions arrive in, the newest is kept."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvasir_operator.cluster import BUDGETS, PODS, SERVICES_OF_OURS
from kvasir_operator.resources import names
from kvasir_operator.store import ServiceKey, Store

KEY = ServiceKey("team", "tiny")


def pod(version: int, uid: str = "u", name: str = "p", **fields: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "team", "uid": uid, "resourceVersion": str(version)}
    return {"metadata": metadata | {"labels": {names.SERVICE_LABEL: "tiny"}}, **fields}


def service(version: int, uid: str = "s") -> dict[str, Any]:
    return {"metadata": {"name": "tiny", "namespace": "team", "uid": uid, "resourceVersion": str(version)}}


def test_news_name_their_service() -> None:
    """A new version wakes its service, one that is known does not."""
    store = Store()
    assert store.put(PODS, pod(2)) == KEY
    assert store.put(PODS, pod(2)) is None
    assert store.put(PODS, pod(1)) is None
    assert store.put(PODS, pod(3)) == KEY
    assert store.remove(PODS, "u") == KEY
    assert store.remove(PODS, "u") is None


def test_an_object_without_our_label_is_not_ours() -> None:
    """Nor does it wake anybody."""
    stranger = pod(1)
    stranger["metadata"]["labels"] = {}
    assert Store().put(PODS, stranger) is None


@given(st.permutations([("put", 1), ("put", 2), ("put", 3), ("remove", 4), ("put", 2), ("remove", 4)]))
def test_a_deletion_is_final_in_every_order(events: list[tuple[str, int]]) -> None:
    """A late version of a deleted object does not bring it back."""
    store = Store()
    for what, version in events:
        if what == "put":
            store.put(PODS, pod(version))
        else:
            store.remove(PODS, "u", version)
    assert store.of_service(KEY, PODS) == []


def test_an_object_whose_label_came_back_is_ours_again() -> None:
    """Leaving the watch looks like a deletion; a newer version proves that it was none."""
    store = Store()
    store.put(PODS, pod(1))
    store.remove(PODS, "u", 2)
    assert store.put(PODS, pod(3)) == KEY


def test_of_two_namesakes_the_older_has_gone() -> None:
    """A name belongs to one object at a time: a deletion that was missed shows in its successor."""
    store = Store()
    store.put(PODS, pod(1, "old"))
    store.put(PODS, pod(5, "new"))
    assert [each["metadata"]["uid"] for each in store.of_service(KEY, PODS)] == ["new"]
    assert store.put(PODS, pod(3, "between")) is None


def test_compare_forgets_what_a_list_does_not_hold() -> None:
    """But nothing that is younger than the list, and nothing of other namespaces."""
    store = Store()
    store.put(PODS, pod(1, "ghost", "a"))
    store.put(PODS, pod(2, "listed", "b"))
    store.put(PODS, pod(9, "younger", "c"))
    assert store.compare(PODS, ["listed"], "5", "elsewhere") == set()
    assert store.compare(PODS, ["listed"], "5", None) == {KEY}
    assert sorted(each["metadata"]["uid"] for each in store.of_service(KEY, PODS)) == ["listed", "younger"]


def test_services_are_those_whose_object_is_there() -> None:
    """Pods alone make no service."""
    store = Store()
    store.put(PODS, pod(1))
    assert (list(store.services()), store.service(KEY)) == ([], None)
    store.put(SERVICES_OF_OURS, service(2))
    assert list(store.services()) == [KEY]
    store.remove(SERVICES_OF_OURS, "s")
    assert list(store.services()) == []


def test_what_is_never_read_is_not_kept() -> None:
    """Managed fields and the pod's spec take most of the memory."""
    store = Store()
    big = pod(
        1,
        spec={"nodeName": "n", "containers": [{"name": "runtime", "args": ["x"] * 1000}]},
        status={"phase": "Running"},
    )
    big["metadata"] |= {"managedFields": [1] * 1000, "annotations": {names.ATTEMPT_ANNOTATION: "1"}}
    store.put(PODS, big)
    (kept,) = store.of_service(KEY, PODS)
    assert kept["spec"] == {"nodeName": "n"}
    assert "managedFields" not in kept["metadata"]
    assert kept["metadata"]["annotations"] == {names.ATTEMPT_ANNOTATION: "1"}


@pytest.mark.parametrize("version", ["", "abc"])
def test_versions_that_are_no_numbers_count_as_the_oldest(version: str) -> None:
    """An object is kept all the same."""
    strange = pod(1)
    strange["metadata"]["resourceVersion"] = version
    assert Store().put(PODS, strange) == KEY


def test_a_budget_whose_status_alone_changes_is_no_news() -> None:
    """It changes with every pod, and nobody reads it."""
    labels = {names.SERVICE_LABEL: "tiny"}
    budget: dict[str, Any] = {
        "metadata": {"name": "tiny", "namespace": "team", "uid": "b", "resourceVersion": "5", "labels": labels},
        "spec": {"minAvailable": 1},
        "status": {"currentHealthy": 0},
    }
    store = Store()
    assert store.put(BUDGETS, budget) is not None
    healthy = budget | {"metadata": budget["metadata"] | {"resourceVersion": "6"}, "status": {"currentHealthy": 1}}
    assert store.put(BUDGETS, healthy) is None
    mended = healthy | {"metadata": budget["metadata"] | {"resourceVersion": "7"}, "spec": {"minAvailable": 2}}
    assert store.put(BUDGETS, mended) is not None
