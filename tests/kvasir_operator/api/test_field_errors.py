"""Values that have the wrong shape: what is said about them."""

from typing import Any

import pytest

from kvasir_operator.api.field_errors import path_of, show
from kvasir_operator.api.validation import validate

GOOD: dict[str, Any] = {"model": {"source": {"uri": "s3://bucket/tiny"}}}


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ({}, "spec.model: is required"),
        ({"model": {}}, "spec.model.source: is required"),
        ({**GOOD, "replicas": -1}, "spec.replicas: must be at least 0, got -1"),
        ({**GOOD, "replicas": 5000}, "spec.replicas: must be at most 1000, got 5000"),
        ({**GOOD, "replicas": "two"}, 'spec.replicas: must be a whole number, got "two"'),
        ({**GOOD, "replicas": 1.5}, "spec.replicas: must be a whole number, got 1.5"),
        (
            {**GOOD, "engine": {"gpuMemoryUtilization": 0}},
            "spec.engine.gpuMemoryUtilization: must be greater than 0, got 0",
        ),
        ({**GOOD, "engine": {"blockSize": 12}}, "spec.engine.blockSize: must be one of 8, 16, 32, 64 or 128, got 12"),
        ({**GOOD, "engine": []}, "spec.engine: must be an object, got []"),
        ({**GOOD, "engine": {"env": {}}}, "spec.engine.env: must be a list, got {}"),
        (
            {**GOOD, "accelerator": {"vendor": "abacus"}},
            "spec.accelerator.vendor: must be one of 'nvidia' or 'cpu', got \"abacus\"",
        ),
        (
            {**GOOD, "drain": {"timeout": "soon"}},
            'spec.drain.timeout: must be a duration such as 90s, 5m or 1h30m, got "soon"',
        ),
        (
            {**GOOD, "engine": {"kvCacheMemory": "5MB"}},
            'spec.engine.kvCacheMemory: must be a byte count such as 512Mi, 8Gi or 2G, got "5MB"',
        ),
        (
            {"model": {"source": {"uri": "ftp://x/y"}}},
            (
                "spec.model.source.uri: must be an address that begins with s3://, hf://, pvc://, https:// or "
                'file:///, got "ftp://x/y"'
            ),
        ),
        ({**GOOD, "scaling": {"tolerance": 1, "maxReplicas": 1}}, "spec.scaling.tolerance: must be less than 1, got 1"),
        (
            {**GOOD, "rollout": {"canary": {"steps": []}}},
            "spec.rollout.canary.steps: must be a list of at least 1 items, got []",
        ),
        ({**GOOD, "adapters": [{"name": "a"}]}, "spec.adapters[0].source: is required"),
        ({**GOOD, "router": {"enabled": "perhaps"}}, 'spec.router.enabled: must be true or false, got "perhaps"'),
        ({**GOOD, "nodeSelector": {"a": 1}}, "spec.nodeSelector.a: must be text, got 1"),
    ],
)
def test_a_bad_value_is_told_by_path_bound_and_value(spec: dict[str, Any], complaint: str) -> None:
    assert [str(error) for error in validate({"metadata": {"name": "tiny"}, "spec": spec})] == [complaint]


def test_all_problems_are_told_at_once() -> None:
    errors = validate({"metadata": {"name": "tiny"}, "spec": {"replicas": -1, "drain": {"timeout": "soon"}}})
    assert [error.path for error in errors] == ["spec.model", "spec.replicas", "spec.drain.timeout"]


@pytest.mark.parametrize(
    ("location", "path"),
    [((), ""), (("spec",), "spec"), (("spec", "adapters", 1, "name"), "spec.adapters[1].name"), ((0, 1), "[0][1]")],
)
def test_paths_are_written_as_kubernetes_does(location: tuple[int | str, ...], path: str) -> None:
    assert path_of(location) == path


def test_long_values_are_cut() -> None:
    assert len(show("x" * 5000)) == 120
    assert show("ä") == '"ä"'
