"""From pydantic's JSON schema to the structural OpenAPI v3 schema that a CustomResourceDefinition may hold.

Structural means: no references, one type a node, nothing under anyOf. Source:
https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema
"""

from typing import Any, Final

from kvasir_operator.api.base import ApiModel

Schema = dict[str, Any]

NOT_YET: Final = "Not acted on yet."

_KEPT: Final = (
    "type",
    "format",
    "enum",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "pattern",
    "minItems",
    "maxItems",
    "required",
)
"""Keywords that mean the same in both."""


def structural_schema(model: type[ApiModel], *, defaults: bool = True) -> Schema:
    """The schema of a model and all that it holds, with default values or without, as a status must be.

    Raises ValueError for a type that has no structural form.
    """
    schema = model.model_json_schema(mode="validation", by_alias=True)
    return _convert(schema, schema.get("$defs", {}), defaults)


def _convert(node: Schema, definitions: Schema, defaults: bool) -> Schema:
    node = _resolved(node, definitions)
    default = _default(node) if defaults else {}
    found: Schema = {"description": text} if (text := _description(node, default)) else {}
    found |= {key: node[key] for key in _KEPT if key in node}
    found |= {key: value for key, value in node.items() if key.startswith("x-kubernetes-")}
    found |= _bounds(node) | _format(node) | default
    if "properties" in node:
        found["properties"] = {name: _convert(each, definitions, defaults) for name, each in node["properties"].items()}
    for key in ("additionalProperties", "items"):
        if isinstance(node.get(key), dict):
            found[key] = _convert(node[key], definitions, defaults)
    if "type" not in found and "x-kubernetes-int-or-string" not in found:
        message = f"no structural form for {node}"
        raise ValueError(message)
    return found


def _resolved(node: Schema, definitions: Schema) -> Schema:
    """The node with references followed and `| None` taken off: in Kubernetes, unset fields are left out."""
    if "$ref" in node:
        target = definitions[node["$ref"].rpartition("/")[2]]
        return _resolved({**target, **{key: value for key, value in node.items() if key != "$ref"}}, definitions)
    if "anyOf" in node:
        [alternative] = [each for each in node["anyOf"] if each.get("type") != "null"]
        siblings = {key: value for key, value in node.items() if key != "anyOf"}
        return _resolved({**alternative, **siblings}, definitions)
    return node


def _bounds(node: Schema) -> Schema:
    """OpenAPI 3.0 has exclusive bounds as flags beside the inclusive ones."""
    found: Schema = {}
    for ours, theirs in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if ours in node:
            found |= {theirs: node[ours], ours: True}
    return found


def _format(node: Schema) -> Schema:
    match node.get("type"):
        case "integer":
            return {"format": "int64" if node.get("maximum", 2**31) >= 2**31 else "int32"}
        case "number":
            return {"format": "double"}
        case _:
            return {}


def _default(node: Schema) -> Schema:
    """Only plain values: an object that is left out stays out, its fields have their defaults when it is there."""
    value = node.get("default")
    return {} if value is None or isinstance(value, dict | list) else {"default": value}


def _description(node: Schema, default: Schema) -> str:
    """The field's own words, then what it may be and what it is by default, for clients that show nothing else."""
    text = " ".join(node.get("description", "").split())
    body = text.removesuffix(NOT_YET).rstrip()
    values = [str(value) for value in node.get("enum", [])]
    if any(value not in body for value in values):
        body += f" One of {', '.join(values)}."
    for value in default.values():
        body += f" Default: {str(value).lower() if isinstance(value, bool) else value}."
    return f"{body} {NOT_YET}".strip() if text.endswith(NOT_YET) else body.strip()
