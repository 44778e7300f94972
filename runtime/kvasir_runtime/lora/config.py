"""`adapter_config.json` of a PEFT checkpoint, read into a type. What would change the result unknown to us is refused.

Source: https://huggingface.co/docs/peft/package_reference/lora
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.validation import shorten

LARGEST_RANK: Final = 256

_PLAIN_INITS: Final = ("gaussian", "eva", "orthogonal")
"""Initialisations that leave the base model as it is; others (PiSSA, OLoRA, LoftQ, CorDA) change its weights."""

_HARMLESS: Final = frozenset(
    {
        *("use_rslora", "eva_config", "corda_config", "loftq_config", "lora_ga_config"),
        *("megatron_config", "runtime_config"),
    }
)
"""Keys that look like switches of a variant and matter only while an adapter is trained, or are read below."""

_UNSUPPORTED: Final[dict[str, str]] = {
    "use_dora": "DoRA",
    "modules_to_save": "whole modules beside the adapter",
    "lora_bias": "biases of an adapter",
    "rank_pattern": "a rank of its own for some modules",
    "alpha_pattern": "a scale of its own for some modules",
    "fan_in_fan_out": "weights stored as inputs x outputs",
    "layer_replication": "replicated layers",
    "target_parameters": "adapters of bare parameters, such as those of experts",
    "trainable_token_indices": "trained embeddings",
    "alora_invocation_tokens": "activated LoRA",
}
"""Keys that must be unset, and what they would ask for."""


@dataclass(frozen=True)
class LoraConfig:
    """`scale` is what B(A x) is multiplied with. `base_model` and `base_class` are "" where the file does not say."""

    rank: int
    scale: float
    base_model: str = ""
    base_class: str = ""


def parse_config(data: bytes, max_rank: int) -> LoraConfig:
    """Raises KvasirError(AdapterInvalid) that names the key, the bound and the value."""
    values = _object(data)
    _refuse_variants(values)
    rank = values.get("r")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise invalid(f"r must be a whole number of at least 1, got {shorten(rank)}")
    if rank > max_rank:
        remedy = f"start with --max-lora-rank {rank}" if rank <= LARGEST_RANK else "train it with a smaller rank"
        raise invalid(f"r must be at most {max_rank} (--max-lora-rank), got {rank}", remedy)
    alpha = values.get("lora_alpha")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise invalid(f"lora_alpha must be a finite number, got {shorten(alpha)}")
    divisor = math.sqrt(rank) if values.get("use_rslora") else rank  # rsLoRA: arXiv 2312.03732
    mapping = values.get("auto_mapping")
    base_class = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    return LoraConfig(rank, alpha / divisor, str(values.get("base_model_name_or_path") or ""), str(base_class or ""))


def invalid(message: str, remedy: str = "correct the adapter and load it again") -> KvasirError:
    return KvasirError(Cause.ADAPTER_INVALID, message, remedy)


def _object(data: bytes) -> dict[str, Any]:
    try:
        values = json.loads(data)
    except ValueError as error:
        raise invalid(f"adapter_config.json is no JSON: {error}") from None
    except RecursionError:
        raise invalid("adapter_config.json is nested too deeply") from None
    if not isinstance(values, dict):
        raise invalid(f"adapter_config.json must hold an object, holds {type(values).__name__}")
    return values


def _refuse_variants(values: Mapping[str, Any]) -> None:
    """Every switch that is on and not known by name is refused, so that no later variant is taken for plain LoRA."""
    checks: dict[str, Callable[[Any], bool]] = {
        "peft_type": lambda value: value == "LORA",
        "task_type": lambda value: value in (None, "CAUSAL_LM"),
        "bias": lambda value: value in (None, "none"),
        "init_lora_weights": lambda value: not isinstance(value, str) or value.lower() in _PLAIN_INITS,
    }
    expected = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "init_lora_weights": "true"}
    for key, accepts in checks.items():
        if not accepts(values.get(key)):
            raise invalid(
                f"{key} must be {expected[key]}, got {shorten(values.get(key))}", "only plain LoRA is supported"
            )
    for key, value in values.items():
        what = _UNSUPPORTED.get(key)
        if what is None and key not in _HARMLESS and (key.startswith("use_") or key.endswith("_config")):
            what = "a variant of LoRA that is not known"
        if what is not None and value not in (None, False, [], {}, ""):
            raise invalid(
                f"{key} asks for {what}, which is not supported, got {shorten(value)}", "only plain LoRA is supported"
            )
