"""Which device an engine computes on, and whose kernels do it."""

from dataclasses import dataclass
from typing import Final, Literal

import torch

from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.worker.host import HostMemory, memory_limit

INTERPRETER: Final = "interpreter"
"""A device for tests, which no flag offers: the GPU's kernels in Triton's interpreter, on tensors in host memory."""


@dataclass(frozen=True)
class Device:
    """`memory` is whose memory is planned with. `triton`: the GPU kernels compute, otherwise those for CPUs."""

    torch: torch.device
    triton: bool

    @property
    def memory(self) -> Literal["cpu", "cuda"]:
        return "cuda" if self.torch.type == "cuda" else "cpu"

    def memory_limit(self) -> HostMemory:
        """What may be used of its memory, in bytes."""
        if self.memory == "cpu":
            return memory_limit()
        _, total = torch.cuda.mem_get_info(self.torch)
        return HostMemory(total, limited=True)


def find_device(asked: str) -> Device:
    """`auto` takes a GPU where there is one. Raises KvasirError when there is none, or none that the kernels know."""
    match asked:
        case "auto":
            return find_device("cuda" if torch.cuda.is_available() else "cpu")
        case "cpu":
            return Device(torch.device("cpu"), triton=False)
        case "cuda":
            return _gpu()
        case "interpreter":
            return _interpreter()
    raise KvasirError(Cause.INVALID_ARGUMENTS, f"device must be one of auto, cpu, cuda, got {asked}")


def _gpu() -> Device:
    if not torch.cuda.is_available():
        raise KvasirError(
            Cause.ACCELERATOR_ERROR,
            "device is cuda, and torch finds no GPU",
            "check the node's driver and the pod's GPU resource, or set device to cpu",
        )
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        name = torch.cuda.get_device_name()
        raise KvasirError(
            Cause.ACCELERATOR_ERROR,
            f"{name} has compute capability {major}.{minor}; at least 8.0 is needed",
            "choose an A100 or a later GPU, or set device to cpu",
        )
    return Device(torch.device("cuda", torch.cuda.current_device()), triton=True)


def _interpreter() -> Device:
    from kvasir_runtime.kernels.gpu.numerics import INTERPRETED  # noqa: PLC0415 - Triton is imported where it is used

    if not INTERPRETED.value:
        raise KvasirError(
            Cause.INVALID_ARGUMENTS, "device interpreter needs TRITON_INTERPRET=1", "set it before the process starts"
        )
    return Device(torch.device("cpu"), triton=True)
