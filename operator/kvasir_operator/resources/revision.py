"""The ControllerRevision that keeps what the pods of a revision were made from, and what became of its rollout."""

from collections.abc import Mapping
from typing import Any

from kvasir_operator.api.v1alpha1 import ObjectMeta
from kvasir_operator.resources import names
from kvasir_operator.resources.owner import owned_metadata
from kvasir_operator.resources.template_hash import RevisionTemplate


def build_revision(
    owner: ObjectMeta, template: RevisionTemplate, revision: str, number: int, marks: Mapping[str, str]
) -> dict[str, Any]:
    """The manifest; `data` never changes afterwards, the number rises when the revision is asked for again."""
    labels = names.owned_labels(owner.name) | {names.REVISION_LABEL: revision}
    metadata = owned_metadata(owner, names.revision_name(owner.name, revision), labels)
    return {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": metadata | {"annotations": dict(marks)},
        "revision": number,
        "data": template.to_data(),
    }
