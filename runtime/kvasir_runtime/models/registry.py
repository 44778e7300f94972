"""Which architectures can be served: one line a family."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.models import gemma2, gemma3, llama, mistral, mixtral, qwen2, qwen3
from kvasir_runtime.models.config import DecoderConfig, HFConfig
from kvasir_runtime.models.decoder import DecoderModel


@dataclass(frozen=True)
class Family:
    """How to read a family's config.json and which modules it is built of."""

    config: Callable[[HFConfig], DecoderConfig]
    model: type[DecoderModel] = DecoderModel


FAMILIES: Final[dict[str, Family]] = {
    "LlamaForCausalLM": Family(llama.config),
    "MistralForCausalLM": Family(mistral.config),
    "MixtralForCausalLM": Family(mixtral.config, mixtral.MixtralModel),
    "Qwen2ForCausalLM": Family(qwen2.config),
    "Qwen3ForCausalLM": Family(qwen3.config),
    "Gemma2ForCausalLM": Family(gemma2.config, gemma2.Gemma2Model),
    "Gemma3ForCausalLM": Family(gemma3.config, gemma2.Gemma2Model),
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
