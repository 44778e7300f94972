"""What makes a revision: the parts of a spec that a running pod cannot change, and their digest.

The digest is taken over what was decided (spec, and the operator's defaults where the spec is silent), not over the
pod's manifest: a newer operator that builds the same pod in another way rolls nothing. Fields at their defaults are
left out, so that a field added to the API changes no digest either.
"""

import hashlib
import json
from typing import Any, Final, Self

from pydantic import Field

from kvasir_operator.api.base import ApiModel
from kvasir_operator.api.kubernetes import Affinity, ResourceRequirements, Toleration, TopologySpreadConstraint
from kvasir_operator.api.v1alpha1 import (
    AcceleratorSpec,
    DrainSpec,
    EngineSpec,
    InferenceService,
    ModelSpec,
    ParallelismSpec,
)
from kvasir_operator.resources import names
from kvasir_operator.resources.adapter_files import AdapterAccess
from kvasir_operator.resources.quantities import container_resources
from kvasir_operator.settings import Settings

DIGEST_LENGTH: Final = 10
"""Hexadecimal digits of a revision's name: 40 bits, of which a service keeps some ten at a time."""


class RevisionTemplate(ApiModel):
    """Everything that two pods of the same revision have in common; can be stored as JSON and read back."""

    served_name: str
    image: str
    model: ModelSpec
    engine: EngineSpec = Field(default=EngineSpec())
    accelerator: AcceleratorSpec | None = None
    parallelism: ParallelismSpec = Field(default=ParallelismSpec())
    resources: ResourceRequirements = Field(default=ResourceRequirements())
    node_selector: dict[str, str] = Field(default={})
    tolerations: list[Toleration] = Field(default=[])
    affinity: Affinity | None = None
    topology_spread_constraints: list[TopologySpreadConstraint] = Field(default=[])
    service_account_name: str | None = None
    drain: DrainSpec = Field(default=DrainSpec())
    api_keys_secret: str | None = None
    restarted_at: str | None = None
    adapters: AdapterAccess | None = None

    @classmethod
    def of(cls, service: InferenceService, settings: Settings) -> Self:
        """Resolve what the spec asks for and, where it is silent, the operator's defaults."""
        spec = service.spec
        return cls(
            served_name=service.served_name,
            image=spec.engine.image or settings.runtime_image,
            model=spec.model.model_copy(update={"served_name": None}),
            engine=spec.engine.model_copy(update={"image": None}),
            accelerator=spec.accelerator,
            parallelism=spec.parallelism.model_copy(update={"tensor": None}),  # follows from the two others
            resources=container_resources(spec.resources, spec.accelerator, settings, spec.engine),
            node_selector=spec.node_selector,
            tolerations=spec.tolerations,
            affinity=spec.affinity,
            topology_spread_constraints=spec.topology_spread_constraints,
            service_account_name=spec.service_account_name,
            drain=spec.drain,
            api_keys_secret=spec.router.api_keys_secret,
            adapters=AdapterAccess.of(spec.adapters, settings),
            restarted_at=service.metadata.annotations.get(names.RESTART_ANNOTATION),
        )

    @property
    def has_lora(self) -> bool:
        """Whether the engine serves adapters."""
        return self.adapters is not None or self.engine.lora is not None

    def digest(self) -> str:
        """Ten hexadecimal digits, the same for the same decisions in every process and version."""
        canonical = json.dumps(self.to_data(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:DIGEST_LENGTH]

    def to_data(self) -> dict[str, Any]:
        """JSON-ready content without defaults; `model_validate` reads it back."""
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude_none=True)
