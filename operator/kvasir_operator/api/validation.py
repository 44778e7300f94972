"""Everything that can be wrong with an InferenceService, found at once, for the webhook and for the operator.

First the shape (types, enums, bounds, patterns: what the schema says too), then, when the shape is sound, what fields
say against each other. Pure: nothing is looked up, so the answer depends on the object alone.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from kvasir_operator.api import checks
from kvasir_operator.api.field_errors import FieldError, from_validation_error
from kvasir_operator.api.v1alpha1 import InferenceService


def validate(manifest: Mapping[str, Any]) -> list[FieldError]:
    """Every problem of the object, in the order of its fields; empty when it can be accepted."""
    try:
        service = InferenceService.from_manifest(manifest)
    except ValidationError as error:
        return from_validation_error(error)
    return check(service)


def check(service: InferenceService) -> list[FieldError]:
    """Problems between the fields of an object whose shape is sound."""
    return [error for each in checks.ALL for error in each(service)]
