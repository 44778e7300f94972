"""The Secret with the prefixes of prompts that a service's replicas are asked for most.

A Secret, not a ConfigMap: prompts are users' data, and Kubernetes' role `view` may read ConfigMaps but no Secrets.
"""

import base64
from collections.abc import Mapping
from typing import Any

from kvasir_operator.api.v1alpha1 import ObjectMeta
from kvasir_operator.resources import names
from kvasir_operator.resources.owner import owned_metadata

SECRET_TYPE = "kvasir.dev/prefixes"  # noqa: S105 - a type


def build_prefixes_secret(owner: ObjectMeta, data: Mapping[str, bytes]) -> dict[str, Any]:
    """The manifest; `data` is by revision."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": SECRET_TYPE,
        "metadata": owned_metadata(owner, names.prefixes_secret_name(owner.name)),
        "data": encoded(data),
    }


def encoded(data: Mapping[str, bytes]) -> dict[str, str]:
    """As a Secret holds it."""
    return {name: base64.b64encode(content).decode() for name, content in data.items()}
