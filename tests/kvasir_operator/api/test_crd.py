"""The rendered CustomResourceDefinition: committed, structural, and readable with `kubectl explain`."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import Field

from kvasir_operator.api import crd
from kvasir_operator.api.base import ApiModel
from kvasir_operator.api.structural import NOT_YET, structural_schema

Schema = dict[str, Any]

ALLOWED_KEYS = {
    *("additionalProperties", "default", "description", "enum", "exclusiveMaximum", "exclusiveMinimum", "format"),
    *("items", "maximum", "maxItems", "maxLength", "minimum", "minItems", "minLength", "pattern", "properties"),
    *("required", "type", "x-kubernetes-int-or-string", "x-kubernetes-list-map-keys", "x-kubernetes-list-type"),
    "x-kubernetes-preserve-unknown-fields",
}


@pytest.fixture(scope="module")
def version() -> Schema:
    [version] = crd.render_crd()["spec"]["versions"]
    return dict(version)


@pytest.fixture(scope="module")
def schema(version: Schema) -> Schema:
    return dict(version["schema"]["openAPIV3Schema"])


def nodes(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    yield path, schema
    for name, each in schema.get("properties", {}).items():
        yield from nodes(each, f"{path}.{name}".lstrip("."))
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from nodes(schema[key], f"{path}[]")


def test_the_committed_files_are_what_the_models_say() -> None:
    """Run `make crds` after a change of the models."""
    for path, text in crd.rendered_files().items():
        assert (crd.ROOT / path).read_text(encoding="utf-8") == text, f"{path} has drifted: run `make crds`"


def test_drift_is_told_and_mended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(path) for path in crd.rendered_files()]
    assert crd.main(["--root", str(tmp_path), "--check"]) == 1
    assert capsys.readouterr().out.splitlines() == [f"{path}: not up to date" for path in paths]
    assert crd.main(["--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{path}: written" for path in paths]
    assert crd.main(["--root", str(tmp_path), "--check"]) == 0
    assert capsys.readouterr().out == ""


def test_the_schema_is_structural_and_old_servers_know_every_word(schema: Schema) -> None:
    """No $ref, no anyOf, no null, and no CEL, which servers before 1.25 refuse."""
    for path, node in nodes(schema):
        assert node.keys() <= ALLOWED_KEYS, path
        assert ("type" in node) != ("x-kubernetes-int-or-string" in node), path
        assert node.get("type") in (None, "object", "array", "string", "integer", "number", "boolean"), path


def test_every_field_says_what_it_is(schema: Schema) -> None:
    """`kubectl explain` shows nothing else."""
    for path, node in nodes(schema["properties"]["spec"], "spec"):
        if not path.endswith("[]"):
            assert node.get("description", "").rstrip().endswith("."), path


def test_what_lies_in_a_part_that_is_not_acted_on_is_not_acted_on_either(schema: Schema) -> None:
    """Whoever reads of a field alone learns it too."""
    parts = [(path, node) for path, node in nodes(schema) if node.get("description", "").endswith(NOT_YET)]
    for path, part in parts:
        for below, each in nodes(part, path):
            assert below.endswith("[]") or NOT_YET in each.get("description", NOT_YET), below


def test_defaults_are_plain_values_of_fields_and_are_told(schema: Schema) -> None:
    """Objects that are left out stay out: the operator never adds to a spec."""
    defaults = {path: node["default"] for path, node in nodes(schema) if "default" in node}
    assert defaults["spec.replicas"] == 1
    assert defaults["spec.scaling.targets.kvCacheUtilization"] == 0.75
    assert defaults["spec.drain.timeout"] == "5m"
    for path, node in nodes(schema):
        if "default" in node:
            assert isinstance(node["default"], str | int | float | bool), path
            assert f"default: {node['default']}".lower() in node["description"].lower(), path
            assert path.startswith("spec."), path


def test_names_and_subresources(version: Schema) -> None:
    spec = crd.render_crd()["spec"]
    assert spec["names"]["shortNames"] == ["isvc"]
    assert spec["names"]["categories"] == ["kvasir"]
    assert version["subresources"] == {
        "status": {},
        "scale": {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        },
    }


def test_columns_show_fields_that_exist(version: Schema, schema: Schema) -> None:
    narrow = [column["name"] for column in version["additionalPrinterColumns"] if not column.get("priority")]
    assert narrow == ["Model", "Ready", "Updated", "KV use", "Status", "Age"]
    known = {path for path, _ in nodes(schema)}
    for column in version["additionalPrinterColumns"]:
        path = re.sub(r"\[\?\(@\.type==\"(Ready|Progressing)\"\)\]", "[]", column["jsonPath"].lstrip("."))
        assert path in known | {"metadata.creationTimestamp"}, column["name"]


def test_the_patch_puts_each_rule_where_its_object_is(schema: Schema) -> None:
    root = {"spec": {"versions": [{"schema": {"openAPIV3Schema": schema}}]}}
    for operation in crd.render_cel():
        *parents, last = operation["path"].lstrip("/").split("/")
        place: Any = root
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place[part]
        assert place["type"] == "object", operation["path"]
        assert last == "x-kubernetes-validations"
        assert last not in place
        for rule in operation["value"]:
            assert rule.keys() == {"rule", "message"}
            assert "\n" not in rule["message"]


def test_the_files_hold_no_aliases() -> None:
    """Equal parts are written out: some readers of YAML know no anchors."""
    for text in crd.rendered_files().values():
        assert [event for event in yaml.parse(text) if isinstance(event, yaml.AliasEvent)] == []


def test_a_type_without_a_structural_form_is_refused() -> None:
    class Odd(ApiModel):
        anything: object = Field(default=None)

    with pytest.raises(ValueError, match="no structural form"):
        structural_schema(Odd)
