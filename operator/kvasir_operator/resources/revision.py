"""ControllerRevisions: the templates that a service's pods are or were made from, kept in the cluster."""

from collections.abc import Mapping
from typing import Any

from kvasir_operator.api.v1alpha1 import ObjectMeta
from kvasir_operator.resources import names
from kvasir_operator.resources.owner import owned_metadata
from kvasir_operator.resources.template_hash import RevisionTemplate


def build_revision(owner: ObjectMeta, template: RevisionTemplate, number: int) -> dict[str, Any]:
    """The manifest that keeps `template`; `number` rises with each new revision of the service."""
    digest = template.digest()
    labels = names.owned_labels(owner.name) | {names.REVISION_LABEL: digest}
    return {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": owned_metadata(owner, names.revision_name(owner.name, digest), labels),
        "revision": number,
        "data": template.to_data(),
    }


def template_of(revision: Mapping[str, Any]) -> RevisionTemplate:
    """The template that a ControllerRevision keeps; raises pydantic.ValidationError when it was tampered with."""
    return RevisionTemplate.model_validate(revision["data"])
