"""Renders the CustomResourceDefinition from the typed API: `python -m kvasir_operator.api.crd`.

Two files: the definition itself, which API servers from 1.20 on accept, and a JSON patch with the CEL rules, which
those from 1.25 on know; a kustomize component applies it. Both are committed, and a test compares them.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from kvasir_operator.api.base import NAME_MAX_LENGTH, NAME_PATTERN
from kvasir_operator.api.cel import RULES, Rule
from kvasir_operator.api.structural import structural_schema
from kvasir_operator.api.v1alpha1 import (
    GROUP,
    KIND,
    PLURAL,
    SHORT_NAME,
    VERSION,
    InferenceService,
    InferenceServiceSpec,
    InferenceServiceStatus,
)

Manifest = dict[str, Any]

ROOT: Final = Path(__file__).resolve().parents[3]
CRD_FILE: Final = Path("crds") / f"{GROUP}_{PLURAL}.yaml"
CEL_FILE: Final = Path("manifests") / "components" / "cel" / "rules.yaml"
HEADER: Final = (
    "# Rendered by `python -m kvasir_operator.api.crd`; change the models in operator/kvasir_operator/api instead.\n"
)

COLUMNS: Final = (
    ("Model", "string", ".status.summary.model", "The model, by the last part of its address", 0),
    ("Ready", "string", ".status.summary.replicas", "Replicas that serve, of those that should", 0),
    ("Updated", "integer", ".status.updatedReplicas", "Replicas that are of the newest revision", 0),
    ("KV use", "string", ".status.summary.kvCache", "Mean use of the replicas' KV caches", 0),
    ("Status", "string", '.status.conditions[?(@.type=="Ready")].reason', "Why it is ready or not", 0),
    ("Age", "date", ".metadata.creationTimestamp", "Time since it was made", 0),
    ("URL", "string", ".status.url", "Address of the OpenAI API within the cluster", 1),
    ("Source", "string", ".spec.model.source.uri", "Address of the model's files", 1),
    ("Revision", "string", ".status.currentRevision", "Revision that serves", 1),
    ("Progress", "string", '.status.conditions[?(@.type=="Progressing")].message', "How a change gets on", 1),
    ("Message", "string", '.status.conditions[?(@.type=="Ready")].message', "What a person should know", 1),
)
"""Name, type, JSONPath, description and priority (1: only with `-o wide`) of what `kubectl get` shows."""


def render_crd() -> Manifest:
    """The definition, without CEL: servers before 1.25 refuse a schema that has it."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}", "labels": {"app.kubernetes.io/name": "kvasir"}},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": [SHORT_NAME],
                "categories": ["kvasir"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": [_column(*each) for each in COLUMNS],
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.replicas",
                            "statusReplicasPath": ".status.replicas",
                            "labelSelectorPath": ".status.selector",
                        },
                    },
                    "schema": {"openAPIV3Schema": _object_schema()},
                }
            ],
        },
    }


def render_cel() -> list[Manifest]:
    """JSON patch (RFC 6902) that adds the CEL rules to the rendered definition."""
    places: dict[str, list[Rule]] = {}
    for rule in RULES:
        places.setdefault(rule.path, []).append(rule)
    return [
        {
            "op": "add",
            "path": _pointer(path),
            "value": [{"rule": rule.expression, "message": rule.message} for rule in rules],
        }
        for path, rules in places.items()
    ]


def rendered_files() -> Mapping[Path, str]:
    """Each generated file, relative to the repository's root, and its text."""
    return {CRD_FILE: HEADER + _yaml(render_crd()), CEL_FILE: HEADER + _yaml(render_cel())}


def main(arguments: list[str] | None = None) -> int:
    """Write the files, or with `--check` say which of them are not what they should be."""
    parser = argparse.ArgumentParser(prog="python -m kvasir_operator.api.crd", description=__doc__)
    parser.add_argument("--root", type=Path, default=ROOT, help="folder to write below (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="write nothing, exit with 1 when a file has drifted")
    args = parser.parse_args(arguments)
    drifted = [path for path, text in rendered_files().items() if not _holds(args.root / path, text)]
    for path in drifted:
        print(f"{path}: {'not up to date' if args.check else 'written'}")
        if not args.check:
            (args.root / path).parent.mkdir(parents=True, exist_ok=True)
            (args.root / path).write_text(rendered_files()[path], encoding="utf-8")
    return 1 if args.check and drifted else 0


def _object_schema() -> Manifest:
    description = " ".join((InferenceService.__doc__ or "").split())
    return {
        "description": description,
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": "Version of the API that the object is written in."},
            "kind": {"type": "string", "description": f"Kind of the object: {KIND}."},
            "metadata": {
                "type": "object",
                "properties": {"name": {"type": "string", "maxLength": NAME_MAX_LENGTH, "pattern": NAME_PATTERN}},
            },
            "spec": structural_schema(InferenceServiceSpec),
            "status": structural_schema(InferenceServiceStatus, defaults=False),
        },
    }


def _column(name: str, kind: str, path: str, description: str, priority: int) -> Manifest:
    column = {"name": name, "type": kind, "jsonPath": path, "description": description}
    return column | ({"priority": priority} if priority else {})


def _pointer(path: str) -> str:
    """`spec.engine.env[]` → the place of the rules for each item of that list in the definition."""
    pointer = "/spec/versions/0/schema/openAPIV3Schema"
    for part in path.split("."):
        pointer += f"/properties/{part.removesuffix('[]')}"
        pointer += "/items" if part.endswith("[]") else ""
    return f"{pointer}/x-kubernetes-validations"


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def _yaml(value: Any) -> str:
    plain = json.loads(json.dumps(value))  # no anchors: equal parts must not become aliases
    return yaml.safe_dump(plain, sort_keys=False, width=120, allow_unicode=True)


if __name__ == "__main__":
    sys.exit(main())
