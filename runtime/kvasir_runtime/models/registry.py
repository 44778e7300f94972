"""Which architectures can be served: one line a family."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.models import llama
from kvasir_runtime.models.config import DecoderConfig, HFConfig
from kvasir_runtime.models.decoder import DecoderModel


@dataclass(frozen=True)
class Family:
    """How to read a family's config.json and which modules it is built of."""

    config: Callable[[HFConfig], DecoderConfig]
    model: type[DecoderModel] = DecoderModel


FAMILIES: Final[dict[str, Family]] = {
    "LlamaForCausalLM": Family(llama.config),
}
"""By the class name that config.json gives in `architectures`."""


def find_family(hf: HFConfig) -> Family:
    """The family of a model; an unknown one is refused by name, with what is supported."""
    family = FAMILIES.get(hf.architecture)
    if family is None:
        raise KvasirError(
            Cause.MODEL_UNSUPPORTED,
            f"{hf.source}: architecture {hf.architecture} is not supported",
            f"supported: {', '.join(sorted(FAMILIES))}",
            architecture=hf.architecture,
        )
    return family
