"""What is wrong with a value, in one line: the field's path, the bound, the value."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from kvasir_operator.api.base import DURATION_PATTERN, QUANTITY_PATTERN
from kvasir_operator.api.model import SOURCE_PATTERN

_SHOWN_LENGTH: Final = 120


@dataclass(frozen=True)
class FieldError:
    """A field that cannot be accepted: `spec.scaling.maxReplicas: must be at least minReplicas (4), got 2`."""

    path: str
    problem: str

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


def from_validation_error(error: ValidationError) -> list[FieldError]:
    """One FieldError for each thing that pydantic found, in the order of the fields."""
    return [FieldError(path_of(each["loc"]), problem_of(each)) for each in error.errors()]


def path_of(location: Iterable[int | str]) -> str:
    """Write a path as Kubernetes does.

    >>> path_of(("spec", "adapters", 1, "name"))
    'spec.adapters[1].name'
    """
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path


def problem_of(error: Mapping[str, Any]) -> str:
    """Say what one error of pydantic's means, with the bound and the value that was given."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "missing":
        return "is required"
    wanted = _MEANT.get(context.get("pattern", "")) or _WANTED.get(kind)
    if wanted is None:
        return _own_words(error)
    bounds = {name: f"{bound:g}" if isinstance(bound, float) else bound for name, bound in context.items()}
    return f"must be {wanted.format(**bounds)}, got {show(error['input'])}"


def show(value: Any) -> str:
    """The value as JSON, cut where it is long."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= _SHOWN_LENGTH else text[: _SHOWN_LENGTH - 1] + "…"


def _own_words(error: Mapping[str, Any]) -> str:
    """The words of our own validators, which hold the value already; else pydantic's, with the value."""
    cause = error.get("ctx", {}).get("error")
    return str(cause) if cause is not None else f"{error['msg']}, got {show(error['input'])}"


_MEANT: Final = {
    DURATION_PATTERN: "a duration such as 90s, 5m or 1h30m",
    QUANTITY_PATTERN: "a byte count such as 512Mi, 8Gi or 2G",
    SOURCE_PATTERN: "an address that begins with s3://, hf://, pvc://, https:// or file:///",
}
"""What patterns stand for, where an expression helps nobody."""

_WANTED: Final = {
    "greater_than_equal": "at least {ge}",
    "greater_than": "greater than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "literal_error": "one of {expected}",
    "enum": "one of {expected}",
    "string_pattern_mismatch": "text that matches {pattern}",
    "string_too_short": "at least {min_length} characters long",
    "string_too_long": "at most {max_length} characters long",
    "too_short": "a list of at least {min_length} items",
    "too_long": "a list of at most {max_length} items",
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
"""What pydantic's error types ask for, to follow "must be"."""
