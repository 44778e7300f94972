"""`spec.accelerator`, `spec.parallelism` and `spec.group`: what one replica runs on, and with whom it starts."""

from typing import Literal

from pydantic import Field

from kvasir_operator.api.base import ApiModel, DnsLabel, Quantity

DEFAULT_GPU_RESOURCE = "nvidia.com/gpu"


class AcceleratorSpec(ApiModel):
    """The devices of one replica."""

    vendor: Literal["nvidia", "cpu"] = Field(
        default="nvidia", description="Kind of device. cpu: none, the model runs on the processor."
    )
    count: int = Field(
        default=1,
        ge=1,
        le=16,
        description="Devices for one replica. This version's runtime refuses more than 1.",
    )
    products: list[str] = Field(
        default=[],
        max_length=32,
        description="Products that will do, as the node label nvidia.com/gpu.product has them, such as "
        "NVIDIA-A100-SXM4-80GB; a leading NVIDIA- may be left out. Empty: any.",
    )
    min_memory: Quantity | None = Field(
        default=None,
        description="Least memory of one device, such as 40Gi, compared with the node label nvidia.com/gpu.memory. "
        "Unset: any.",
    )
    mig: str | None = Field(
        default=None,
        pattern=r"^[0-9]+g\.[0-9]+gb(\+[a-z]+(\.[a-z]+)?)?$",
        description="MIG profile to run on instead of a whole device, such as 1g.10gb.",
    )
    resource_name: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
        max_length=317,
        description="Resource that the device plugin offers. Unset: nvidia.com/gpu, or that of the MIG profile.",
    )

    def resource(self) -> str | None:
        """The extended resource that pods ask for; None on CPUs."""
        if self.vendor == "cpu":
            return None
        if self.mig is not None:
            return f"nvidia.com/mig-{self.mig.replace('+', '.')}"
        return self.resource_name or DEFAULT_GPU_RESOURCE


class ParallelismSpec(ApiModel):
    """How one replica divides the model among its devices."""

    tensor: int | None = Field(
        default=None,
        ge=1,
        le=16,
        description="Devices that share each layer. Unset: accelerator.count / pipeline. This version's runtime "
        "refuses more than 1.",
    )
    pipeline: int = Field(
        default=1,
        ge=1,
        le=16,
        description="Stages of consecutive layers, one after the other. This version's runtime refuses more than 1.",
    )


class GroupSpec(ApiModel):
    """Services of the namespace that are of use only together."""

    name: DnsLabel = Field(description="Name of the group: that of all services which start together.")
    services: int = Field(
        ge=2,
        le=64,
        description="Services that the group has. Before there are so many, and devices for one replica of each at "
        "once, none of them gets any.",
    )
