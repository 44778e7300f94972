"""What the mutating webhook writes down, and that it changes nothing of what is run."""

from typing import Any

import pytest

from kvasir_operator.api.defaults import complete
from kvasir_operator.api.v1alpha1 import InferenceService
from kvasir_operator.api.validation import validate
from kvasir_operator.resources.template_hash import RevisionTemplate
from kvasir_operator.settings import Settings

Manifest = dict[str, Any]

NAMED = {"source": {"uri": "pvc://models/m"}, "servedName": "chat"}


def manifest(**spec: Any) -> Manifest:
    return {"metadata": {"name": "tiny", "namespace": "team"}, "spec": {"model": NAMED} | spec}


def gpus(count: int, **parallelism: int) -> Manifest:
    spec: Manifest = {"accelerator": {"count": count}}
    return manifest(**spec, **({"parallelism": parallelism} if parallelism else {}))


def patched(found: Manifest, before: Manifest | None = None) -> Manifest:
    """The object with its patch; every path has its parent."""
    result = {
        **found,
        "spec": {key: dict(value) if isinstance(value, dict) else value for key, value in found["spec"].items()},
    }
    for step in complete(found, before):
        *parents, name = step["path"].removeprefix("/").split("/")
        target: Any = result
        for parent in parents:
            target = target[parent]
        assert step["op"] == "add"
        target[name] = step["value"]
    return result


def tensor(found: Manifest, before: Manifest | None = None) -> Any:
    return patched(found, before)["spec"].get("parallelism", {}).get("tensor")


@pytest.mark.parametrize(
    ("found", "before", "expected"),
    [
        (gpus(4), None, 4),
        (gpus(4, pipeline=2), None, 2),
        (gpus(4, tensor=2, pipeline=2), None, 2),
        (gpus(4, tensor=2), None, 2),
        (gpus(4, pipeline=3), None, None),
        (manifest(), None, None),
        (manifest(accelerator={"vendor": "cpu"}), None, None),
        (manifest(accelerator={"mig": "1g.10gb"}), None, 1),
        (gpus(4, tensor=2), gpus(2, tensor=2), 4),
        (gpus(4, tensor=4, pipeline=2), gpus(4, tensor=4), 2),
        (gpus(4, tensor=3), gpus(2, tensor=2), 3),
        (gpus(4, tensor=2), gpus(2, tensor=1), 2),
        (manifest(parallelism={"tensor": 2}), gpus(2, tensor=2), 1),
        (gpus(3, tensor=2, pipeline=2), gpus(4, tensor=2, pipeline=2), 2),
    ],
    ids=[
        "of the devices",
        "of a stage's devices",
        "said",
        "said, and wrong: the check's to tell",
        "no whole number",
        "without accelerator",
        "on the processor",
        "a slice",
        "follows the count",
        "follows the pipeline",
        "said in this change",
        "did not follow before",
        "follows to the processor",
        "cannot follow",
    ],
)
def test_tensor(found: Manifest, before: Manifest | None, expected: int | None) -> None:
    """Count / pipeline, unless somebody says something else."""
    assert tensor(found, before) == expected


@pytest.mark.parametrize(("said", "expected"), [(None, "tiny"), ("chat", "chat")])
def test_served_name(said: str | None, expected: str) -> None:
    """The name of the object, unless another is said; null counts as unset."""
    found = manifest(model={"source": NAMED["source"], "servedName": said})
    assert patched(found)["spec"]["model"]["servedName"] == expected


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"metadata": {"name": "tiny"}},
        {"metadata": {"generateName": "tiny-"}, "spec": {"model": NAMED}},
        {"metadata": {"name": "tiny"}, "spec": "x"},
        {"metadata": {"name": "tiny"}, "spec": {"model": NAMED, "parallelism": None}},
        {"metadata": {"name": "tiny"}, "spec": {"model": NAMED, "accelerator": {"count": "two"}}},
    ],
)
def test_what_cannot_be_read_is_left_alone(broken: Manifest) -> None:
    """The API server's schema comes after the webhook, and refuses it."""
    assert complete(broken) == []


@pytest.mark.parametrize(
    "found",
    [
        manifest(model={"source": NAMED["source"]}),
        gpus(4),
        gpus(4, pipeline=2),
        manifest(accelerator={"mig": "1g.10gb"}),
        manifest(accelerator={"vendor": "cpu"}),
    ],
)
def test_what_is_written_rolls_nothing_and_is_written_once(found: Manifest) -> None:
    """The revision is the same with the webhook and without it, the result is sound, and asking again adds nothing."""
    result = patched(found)
    assert validate(result) == []
    assert complete(result, found) == complete(result) == []
    digests = {
        RevisionTemplate.of(InferenceService.from_manifest(each), Settings()).digest() for each in (found, result)
    }
    assert len(digests) == 1
