"""How a request wants its output to look, by `response_format` or vLLM's fields, as one constraint. Pure."""

import json
from collections.abc import Iterator
from typing import Any, Final

from kvasir_runtime.server.errors import bad_request
from kvasir_runtime.server.protocol import GenerationRequest, ResponseFormat, StructuredOutputs
from kvasir_runtime.structured.constraint import MAX_CONSTRAINT_BYTES, Constraint, Kind

ANY_OBJECT: Final = '{"type": "object"}'
NO_WHITESPACE: Final = ""


def constraint_of(body: GenerationRequest) -> Constraint | None:
    """The request's constraint, if it has one; raises ApiError (400) for two, and for what is too long."""
    found = [*_of_response_format(body.response_format), *_of_guided(body), *_of_structured(body.structured_outputs)]
    if len(found) > 1:
        first, second = found[0].field, found[1].field
        raise bad_request(f"{second} cannot be combined with {first}: give one of them", second, "invalid_value")
    for constraint in found:
        check_length(constraint)
    return found[0] if found else None


def check_length(constraint: Constraint) -> None:
    """Raise ApiError (400) for a constraint beyond the bound that the engine has."""
    size = len(constraint.text)
    if size > MAX_CONSTRAINT_BYTES:
        msg = f"{constraint.field} must be at most {MAX_CONSTRAINT_BYTES} bytes long, got {size}"
        raise bad_request(msg, constraint.field, "invalid_value")


def schema_text(schema: Any, field: str) -> str:
    """A schema that came as JSON, or as a text of JSON."""
    if isinstance(schema, str):
        return schema
    try:
        return json.dumps(schema)
    except RecursionError:
        raise bad_request(f"{field} is nested too deeply", field, "invalid_value") from None


def _of_response_format(wanted: ResponseFormat | None) -> Iterator[Constraint]:
    if wanted is None or wanted.type == "text":
        return
    if wanted.type == "json_object":
        yield Constraint("json_schema", ANY_OBJECT, field="response_format")
        return
    field = "response_format.json_schema.schema"
    if wanted.json_schema is None or wanted.json_schema.definition is None:
        raise bad_request(f"{field} is required with the type 'json_schema'", field, "invalid_value")
    text = schema_text(wanted.json_schema.definition, field)
    yield Constraint("json_schema", text, lenient=not wanted.json_schema.strict, field=field)


def _of_guided(body: GenerationRequest) -> Iterator[Constraint]:
    whitespace = _whitespace(body.guided_whitespace_pattern)
    if body.guided_json is not None:
        yield Constraint("json_schema", schema_text(body.guided_json, "guided_json"), whitespace, field="guided_json")
    for kind, value in (("regex", body.guided_regex), ("grammar", body.guided_grammar)):
        if value is not None:
            yield _plain(kind, value, f"guided_{kind}")
    if body.guided_choice is not None:
        yield _plain("choice", json.dumps(body.guided_choice), "guided_choice")


def _of_structured(wanted: StructuredOutputs | None) -> Iterator[Constraint]:
    if wanted is None:
        return
    path = "structured_outputs"
    whitespace = NO_WHITESPACE if wanted.disable_any_whitespace else _whitespace(wanted.whitespace_pattern)
    if wanted.definition is not None:
        text = schema_text(wanted.definition, f"{path}.json")
        yield Constraint("json_schema", text, whitespace, field=f"{path}.json")
    if wanted.json_object:
        yield Constraint("json_schema", ANY_OBJECT, whitespace, field=f"{path}.json_object")
    for kind, value in (("regex", wanted.regex), ("grammar", wanted.grammar)):
        if value is not None:
            yield _plain(kind, value, f"{path}.{kind}")
    if wanted.choice is not None:
        yield _plain("choice", json.dumps(wanted.choice), f"{path}.choice")


def _plain(kind: str, text: str, field: str) -> Constraint:
    kinds: dict[str, Kind] = {"regex": "regex", "grammar": "grammar", "choice": "choice"}
    return Constraint(kinds[kind], text, field=field)


def _whitespace(pattern: str | None) -> str:
    return Constraint.whitespace if pattern is None else pattern
