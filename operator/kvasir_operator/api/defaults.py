"""Defaults that the schema cannot have, because they follow from other fields: what the mutating webhook writes down.

Only what the operator derives from the object alone, so that a service is the same with the webhook and without it.
Nothing of the operator's settings is written: what is stored would keep yesterday's.

| field                     | when                                                  | becomes                      |
|---------------------------|-------------------------------------------------------|------------------------------|
| `spec.model.servedName`   | unset                                                 | `metadata.name`              |
| `spec.parallelism.tensor` | unset, and a replica has devices                      | accelerator.count / pipeline |
| `spec.parallelism.tensor` | left as it followed from a count or pipeline that was | accelerator.count / pipeline |
"""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from kvasir_operator.api.v1alpha1 import InferenceService, InferenceServiceSpec

Operation = dict[str, Any]
"""One step of a JSON patch (RFC 6902)."""


def complete(manifest: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> list[Operation]:
    """The JSON patch that writes the table above into an object; `before` is what is stored of it, if anything.

    Empty for an object that cannot be read: the schema and the checks have the word there.
    """
    service, old = _read(manifest), _read(before)
    if service is None:
        return []
    return [*_served_name(service), *_tensor(service.spec, old.spec if old is not None else None, manifest)]


def _read(manifest: Mapping[str, Any] | None) -> InferenceService | None:
    try:
        return InferenceService.from_manifest(manifest) if manifest is not None else None
    except ValidationError:
        return None


def _served_name(service: InferenceService) -> Iterator[Operation]:
    if service.spec.model.served_name is None:
        yield _add("/spec/model/servedName", service.metadata.name)


def _tensor(
    spec: InferenceServiceSpec, old: InferenceServiceSpec | None, manifest: Mapping[str, Any]
) -> Iterator[Operation]:
    said, follows = spec.parallelism.tensor, derived_tensor(spec)
    if follows is None or said == follows:
        return
    has_devices = spec.accelerator is not None and spec.accelerator.resource() is not None
    left = old is not None and said == old.parallelism.tensor == derived_tensor(old)
    if not (has_devices if said is None else left):
        return
    if "parallelism" in manifest["spec"]:
        yield _add("/spec/parallelism/tensor", follows)
    else:
        yield _add("/spec/parallelism", {"tensor": follows})


def derived_tensor(spec: InferenceServiceSpec) -> int | None:
    """Devices that share each layer, by count and pipeline; None where the stages cannot be equal."""
    accelerator, pipeline = spec.accelerator, spec.parallelism.pipeline
    count = accelerator.count if accelerator is not None and accelerator.resource() is not None else 1
    return count // pipeline if count % pipeline == 0 else None


def _add(path: str, value: Any) -> Operation:
    """Sets a member whether it is there or not."""
    return {"op": "add", "path": path, "value": value}
