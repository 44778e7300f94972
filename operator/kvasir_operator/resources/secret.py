"""The Secret with the bearer token of the operator port; one for all pods of a service."""

import base64
from typing import Any

from kvasir_operator.api.v1alpha1 import ObjectMeta
from kvasir_operator.resources import names
from kvasir_operator.resources.owner import owned_metadata


def build_admin_secret(owner: ObjectMeta, token: str) -> dict[str, Any]:
    """The manifest of the Secret; the caller draws the token, 32 random bytes or more."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": owned_metadata(owner, names.admin_secret_name(owner.name)),
        "data": {names.ADMIN_TOKEN_KEY: base64.b64encode(token.encode()).decode()},
    }
