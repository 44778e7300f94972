"""A service to build objects for."""

from collections.abc import Callable
from typing import Any

import pytest

from kvasir_operator.api.v1alpha1 import InferenceService

MakeService = Callable[..., InferenceService]


@pytest.fixture
def make_service() -> MakeService:
    """Build a service `tiny` in `team`; keywords are fields of the spec, in camelCase."""

    def make(uri: str = "pvc://models/tiny", **spec: Any) -> InferenceService:
        return InferenceService.from_manifest(
            {
                "metadata": {"name": "tiny", "namespace": "team", "uid": "u-1"},
                "spec": {"model": {"source": {"uri": uri}}, **spec},
            }
        )

    return make
