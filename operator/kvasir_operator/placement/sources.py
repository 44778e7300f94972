"""What makes two models the same before they are read: the address, and who may read it."""

import hashlib
import json
from collections.abc import Sequence
from typing import Final

from kvasir_operator.api.kubernetes import EnvVar
from kvasir_operator.api.model import Source

ARCHIVES: Final = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
"""Endings of addresses behind which a config.json can only be read by fetching everything."""
KEY_LENGTH: Final = 16
"""Hexadecimal digits of a key: 64 bits."""


def is_inspectable(source: Source) -> bool:
    """Whether the model can be looked at without fetching it."""
    path = source.uri.partition("?")[0]
    return not (path.startswith("https://") and path.rstrip("/").endswith(ARCHIVES))


def source_key(source: Source, namespace: str, image: str | None = None, env: Sequence[EnvVar] = ()) -> str:
    """The same for services that read the same model with the same rights, the same program and the same environment.

    Volume claims and Secrets are of a namespace; folders of nodes and public addresses are the same for all. What an
    `image` or environment of one's own says counts in its namespace alone: nobody is to tell others how large their
    models are, or that they cannot be read.
    """
    own = image is not None or len(env) > 0
    private = own or source.uri.startswith("pvc://") or source.secret_name is not None
    variables = [variable.to_manifest() for variable in env]
    parts = [source.uri, source.sha256, source.secret_name, namespace if private else None, image, *variables]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:KEY_LENGTH]
