"""What fields must not say against each other: a table of specs and complaints, in words and in CEL."""

import functools
from typing import Any

import celpy
import pytest
from celpy.adapter import json_to_cel

from kvasir_operator.api.cel import RULES
from kvasir_operator.api.structural import structural_schema
from kvasir_operator.api.v1alpha1 import InferenceServiceSpec
from kvasir_operator.api.validation import validate

Spec = dict[str, Any]
MODEL = {"source": {"uri": "s3://bucket/tiny"}}

REFUSED: dict[str, tuple[Spec, list[str]]] = {
    "bounds of scaling crossed": (
        {"scaling": {"minReplicas": 4, "maxReplicas": 2}},
        ["spec.scaling.maxReplicas: must be at least minReplicas (4), got 2"],
    ),
    "zero replicas and nobody to wake them": (
        {"scaling": {"minReplicas": 0, "maxReplicas": 2}},
        ["spec.scaling.minReplicas: must be at least 1 unless scaleToZero is set, got 0"],
    ),
    "to zero without a router": (
        {"scaling": {"maxReplicas": 2, "scaleToZero": {}}, "router": {"enabled": False}},
        ["spec.router.enabled: must be true when spec.scaling.scaleToZero is set, got false"],
    ),
    "KV memory said twice": (
        {"engine": {"kvCacheMemory": "1Gi", "gpuMemoryUtilization": 0.5}},
        ["spec.engine.gpuMemoryUtilization: must be unset when kvCacheMemory is set (1Gi), got 0.5"],
    ),
    "files without host memory": (
        {"engine": {"kvOffload": {"disk": {"size": "50Gi"}}}},
        ["spec.engine.kvOffload.disk: must be unset without kvOffload.host, got size 50Gi"],
    ),
    "host memory without a prefix cache": (
        {"engine": {"kvOffload": {"host": "8Gi"}, "prefixCaching": {"enabled": False}}},
        ["spec.engine.kvOffload.host: must be unset when prefixCaching.enabled is false, got 8Gi"],
    ),
    "a variable with value and source": (
        {"engine": {"env": [{"name": "A", "value": "1", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}},
        ['spec.engine.env[0].valueFrom: must be unset when value is set, got value "1"'],
    ),
    "devices on the processor": (
        {"accelerator": {"vendor": "cpu", "count": 2, "mig": "1g.5gb", "products": ["T4"], "minMemory": "8Gi"}},
        [
            "spec.accelerator.count: must be 1 or unset with vendor cpu, got 2",
            'spec.accelerator.products: must be unset with vendor cpu, got ["T4"]',
            'spec.accelerator.minMemory: must be unset with vendor cpu, got "8Gi"',
            'spec.accelerator.mig: must be unset with vendor cpu, got "1g.5gb"',
        ],
    ),
    "many slices": (
        {"accelerator": {"count": 2, "mig": "1g.5gb", "resourceName": "nvidia.com/gpu"}},
        [
            "spec.accelerator.count: must be 1 with mig (1g.5gb), whose slices cannot share a layer, got 2",
            'spec.accelerator.resourceName: must be unset when mig is set (1g.5gb), got "nvidia.com/gpu"',
        ],
    ),
    "devices left idle": (
        {"accelerator": {"count": 4}, "parallelism": {"tensor": 2}},
        ["spec.parallelism.tensor: times pipeline (1) must be accelerator.count (4), got 2"],
    ),
    "stages that do not divide the devices": (
        {"accelerator": {"count": 4}, "parallelism": {"pipeline": 3}},
        ["spec.parallelism.pipeline: must divide accelerator.count (4), got 3"],
    ),
    "parallel on the processor": (
        {"parallelism": {"tensor": 2}},
        ["spec.parallelism.tensor: times pipeline (1) must be accelerator.count (1), got 2"],
    ),
    "surge without surge": (
        {"rollout": {"strategy": "Surge", "maxSurge": 0, "maxUnavailable": 1}},
        ["spec.rollout.maxSurge: must be at least 1 with strategy Surge, got 0"],
    ),
    "a rollout that cannot move": (
        {"rollout": {"maxSurge": 0, "maxUnavailable": 0}},
        ["spec.rollout.maxUnavailable: must be at least 1 when maxSurge is 0, got 0"],
    ),
    "a canary that steps back": (
        {"rollout": {"canary": {"steps": [{"traffic": share, "pause": "1m"} for share in (10, 50, 20)]}}},
        ["spec.rollout.canary.steps[2].traffic: must be greater than that of the step before (50), got 20"],
    ),
    "a canary that stands still": (
        {"rollout": {"canary": {"steps": [{"traffic": 10, "pause": "1m"}] * 2}}},
        ["spec.rollout.canary.steps[1].traffic: must be greater than that of the step before (10), got 10"],
    ),
    "an adapter named as the model": (
        {"model": {**MODEL, "servedName": "x"}, "adapters": [{"name": "x", "source": MODEL["source"]}]},
        ['spec.adapters[0].name: must differ from the name under which the model itself is served, got "x"'],
    ),
    "credentials for a volume": (
        {"model": {"source": {"uri": "pvc://models/tiny", "secretName": "keys"}}},
        ['spec.model.source.secretName: must be unset with pvc://, got "keys"'],
    ),
    "a way out of the volume": (
        {"model": {"source": {"uri": "pvc://models/a/../../b"}}},
        ["spec.model.source.uri: must not contain '..', got \"pvc://models/a/../../b\""],
    ),
}
"""Specs that both the checks and the CEL rules refuse, and the complaints of the checks."""

REFUSED_BY_CHECKS_ALONE: dict[str, tuple[Spec, list[str]]] = {
    "variables of the same name": (
        {"engine": {"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}},
        ['spec.engine.env[1].name: must differ from that of spec.engine.env[0], got "A"'],
    ),
    "a variable from nowhere": (
        {"engine": {"env": [{"name": "A", "valueFrom": {}}]}},
        ["spec.engine.env[0].valueFrom: must name exactly one source, got 0"],
    ),
    "the operator's own variable": (
        {"engine": {"env": [{"name": "KVASIR_ADMIN_PORT", "value": "1"}]}},
        ['spec.engine.env[0].name: must not set --admin-port, which the operator sets itself, got "KVASIR_ADMIN_PORT"'],
    ),
    "flags that fields set": (
        {"engine": {"extraArgs": ["--seed", "7", "--max-num-seqs=4", "--no-enable-prefix-caching"]}},
        [
            (
                "spec.engine.extraArgs[2]: must not set --max-num-seqs, which spec.engine.maxNumSeqs sets, "
                'got "--max-num-seqs=4"'
            ),
            (
                "spec.engine.extraArgs[3]: must not set --enable-prefix-caching, which "
                'spec.engine.prefixCaching.enabled sets, got "--no-enable-prefix-caching"'
            ),
        ],
    ),
    "amounts of resources": (
        {"resources": {"requests": {"cpu": "2", "memory": "lots"}, "limits": {"cpu": "1500m", "nvidia.com/gpu": 1}}},
        [
            'spec.resources.requests.memory: must be a quantity such as 2, 500m or 8Gi, got "lots"',
            "spec.resources.limits.nvidia.com/gpu: must be asked for by spec.accelerator, got 1",
            "spec.resources.requests.cpu: must be at most the limit (1500m), got 2",
        ],
    ),
    "adapters of the same name": (
        {"adapters": [{"name": name, "source": MODEL["source"]} for name in ("a", "b", "a")]},
        ['spec.adapters[2].name: must differ from that of spec.adapters[0], got "a"'],
    ),
    "an adapter named as the service": (
        {"adapters": [{"name": "tiny", "source": MODEL["source"]}]},
        ['spec.adapters[0].name: must differ from the name under which the model itself is served, got "tiny"'],
    ),
    "more pinned adapters than slots": (
        {
            "engine": {"lora": {"maxLoras": 2, "maxCpuLoras": 1}},
            "adapters": [{"name": name, "source": MODEL["source"], "pinned": name != "c"} for name in ("a", "b", "c")],
        },
        [
            (
                "spec.adapters[1].pinned: must be false for all but 1 of the adapters, "
                "with spec.engine.lora.maxLoras 2, got true"
            ),
            "spec.engine.lora.maxCpuLoras: must be at least maxLoras (2), got 1",
        ],
    ),
    "an interval without length": (
        {"adapters": [{"name": "a", "source": MODEL["source"], "refreshInterval": "0s"}]},
        ["spec.adapters[0].refreshInterval: must be longer than 0s, got 0s"],
    ),
    "warm without a cache": (
        {"warmup": {"prompts": ["a"]}, "engine": {"prefixCaching": {"enabled": False}}},
        ["spec.warmup: must be unset when engine.prefixCaching.enabled is false"],
    ),
    "waits without length": (
        {
            "rollout": {"progressDeadline": "0s"},
            "warmup": {"timeout": "0m"},
            "scaling": {"maxReplicas": 1, "targets": {"ttftP95": "0ms"}, "scaleToZero": {"idleAfter": "0s"}},
        },
        [
            "spec.rollout.progressDeadline: must be longer than 0s, got 0s",
            "spec.warmup.timeout: must be longer than 0s, got 0m",
            "spec.scaling.targets.ttftP95: must be longer than 0s, got 0ms",
            "spec.scaling.scaleToZero.idleAfter: must be longer than 0s, got 0s",
        ],
    ),
    "a drain without end": ({"drain": {"timeout": "25h"}}, ["spec.drain.timeout: must be at most 24h, got 25h"]),
}

ACCEPTED: dict[str, Spec] = {
    "nothing but a model": {},
    "equal bounds": {"scaling": {"minReplicas": 2, "maxReplicas": 2}},
    "to zero and back": {"scaling": {"minReplicas": 0, "maxReplicas": 2, "scaleToZero": {}}},
    "a router without zero": {"scaling": {"maxReplicas": 2}, "router": {"enabled": False}},
    "KV memory said once": {"engine": {"gpuMemoryUtilization": 0.5}},
    "the processor": {"accelerator": {"vendor": "cpu"}, "parallelism": {"tensor": 1, "pipeline": 1}},
    "a slice": {"accelerator": {"mig": "1g.10gb"}},
    "all devices share each layer": {"accelerator": {"count": 4}},
    "two stages of two devices": {"accelerator": {"count": 4}, "parallelism": {"pipeline": 2}},
    "both said": {"accelerator": {"count": 4}, "parallelism": {"tensor": 2, "pipeline": 2}},
    "in place": {"rollout": {"strategy": "InPlace", "maxSurge": 0}},
    "a canary": {"rollout": {"canary": {"steps": [{"traffic": share, "pause": "1m"} for share in (10, 50, 100)]}}},
    "adapters": {"adapters": [{"name": name, "source": MODEL["source"]} for name in ("a", "b")]},
    "a digest of an adapter in a claim": {
        "adapters": [{"name": "a", "source": {"uri": "pvc://c/a", "sha256": "0" * 64}, "pinned": True}]
    },
    "credentials for a bucket": {"model": {"source": {"uri": "s3://b/p", "secretName": "k", "sha256": "0" * 64}}},
    "dots in a name": {"model": {"source": {"uri": "hf://org/model-1..2@v1.0"}}},
    "flags of the engine's own": {"engine": {"extraArgs": ["--seed", "7", "--no-such-flag"]}},
    "a request without limit": {"resources": {"requests": {"cpu": 2, "memory": "1e9"}}},
}


def complaints(spec: Spec) -> list[str]:
    return [str(error) for error in validate({"metadata": {"name": "tiny"}, "spec": {"model": MODEL, **spec}})]


@pytest.mark.parametrize("case", REFUSED | REFUSED_BY_CHECKS_ALONE)
def test_contradictions_are_refused_with_field_bound_and_value(case: str) -> None:
    spec, expected = (REFUSED | REFUSED_BY_CHECKS_ALONE)[case]
    assert complaints(spec) == expected


@pytest.mark.parametrize("case", ACCEPTED)
def test_sound_specs_are_accepted(case: str) -> None:
    assert complaints(ACCEPTED[case]) == []


@pytest.mark.parametrize("name", ["tiny", "a", "a" * 45, "llama-3-8b"])
def test_names_that_services_and_pods_can_bear_are_accepted(name: str) -> None:
    assert validate({"metadata": {"name": name}, "spec": {"model": MODEL}}) == []


@pytest.mark.parametrize("name", ["7b", "Tiny", "a.b", "a-", "a" * 46])
def test_names_that_they_cannot_bear_are_refused(name: str) -> None:
    [error] = validate({"metadata": {"name": name}, "spec": {"model": MODEL}})
    assert str(error) == (
        "metadata.name: must be at most 45 lower-case letters, digits and dashes, beginning with a letter, "
        f'got "{name}"'
    )


def broken_rules(spec: Spec) -> list[str]:
    """Messages of the CEL rules that a spec breaks, evaluated as the API server does: with defaults filled in."""
    filled = with_defaults({"model": MODEL, **spec}, structural_schema(InferenceServiceSpec))
    return [
        rule.message
        for rule in RULES
        for place in places({"spec": filled}, rule.path.split("."))
        if not evaluate(rule.expression, place)
    ]


def with_defaults(value: Any, schema: Spec) -> Any:
    """Fill defaults into the objects that are there, as structural defaulting does."""
    if isinstance(value, dict):
        known = schema.get("properties", {})
        defaults = {name: each["default"] for name, each in known.items() if "default" in each}
        return {**defaults, **{name: with_defaults(each, known.get(name, {})) for name, each in value.items()}}
    if isinstance(value, list):
        return [with_defaults(each, schema.get("items", {})) for each in value]
    return value


def places(value: Any, path: list[str]) -> list[Any]:
    """What `self` stands for, everywhere in the object; [] after a name means each item."""
    if not path:
        return [value]
    name = path[0].removesuffix("[]")
    if name not in value:
        return []
    inner = value[name] if path[0].endswith("[]") else [value[name]]
    return [found for each in inner for found in places(each, path[1:])]


@functools.cache
def compiled(expression: str) -> celpy.Runner:
    environment = celpy.Environment()
    return environment.program(environment.compile(expression), functions={"isSorted": is_sorted})


def evaluate(expression: str, value: Any) -> bool:
    return bool(compiled(expression).evaluate({"self": json_to_cel(value)}))


def is_sorted(values: Any) -> Any:
    """Kubernetes' own addition to CEL."""
    return celpy.celtypes.BoolType(list(values) == sorted(values))


@pytest.mark.parametrize("case", REFUSED)
def test_cel_refuses_what_the_checks_refuse(case: str) -> None:
    assert broken_rules(REFUSED[case][0]) != []


@pytest.mark.parametrize("case", [*ACCEPTED, *REFUSED_BY_CHECKS_ALONE])
def test_cel_refuses_nothing_else(case: str) -> None:
    spec = ACCEPTED.get(case) or REFUSED_BY_CHECKS_ALONE.get(case, ({}, []))[0]
    assert broken_rules(spec) == []


def test_every_cel_rule_is_broken_by_some_case() -> None:
    """A rule that nothing breaks could be wrong without anyone knowing."""
    broken = {message for spec, _ in REFUSED.values() for message in broken_rules(spec)}
    assert broken == {rule.message for rule in RULES}
