"""`config.json` of a model folder, read into types. Families add what is theirs; what nobody knows is refused."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from kvasir_runtime.contract.failures import Cause, KvasirError

T = TypeVar("T")

ACTIVATIONS: Final = ("silu", "gelu_pytorch_tanh")
"""Those that `layers.ops` has in gated form."""


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding: base `theta` and, by `kind`, how frequencies are stretched for longer contexts."""

    theta: float
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192


@dataclass(frozen=True)
class MoeConfig:
    num_experts: int
    experts_per_token: int


@dataclass(frozen=True)
class DecoderConfig:
    """A decoder-only transformer. Lengths are tokens; `windows` has each layer's sliding window, None for none."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int
    norm_eps: float
    activation: str
    tie_embeddings: bool
    attention_scale: float
    rope: RopeConfig
    windows: tuple[int | None, ...]
    local_rope: RopeConfig | None = None
    """Rope of the layers with a window, where it differs (Gemma 3)."""
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    norm_offset: float = 0.0
    """Added to each norm's weight (1 in Gemma)."""
    attention_softcap: float | None = None
    final_softcap: float | None = None
    embedding_scale: float = 1.0
    moe: MoeConfig | None = None

    @property
    def widest_window(self) -> int | None:
        """So many tokens, itself included, a token sees at most in any layer; None where a layer has no window."""
        widths = [window for window in self.windows if window is not None]
        return max(widths) if len(widths) == len(self.windows) else None


class HFConfig:
    """The dictionary of a `config.json`, read key by key; a bad value is an error that names the key."""

    def __init__(self, values: dict[str, Any], source: Path | str = "config.json") -> None:
        self.values = values
        self.source = source

    @classmethod
    def load(cls, folder: Path) -> "HFConfig":
        path = folder / "config.json"
        if not folder.is_dir():
            raise KvasirError(
                Cause.MODEL_NOT_FOUND,
                f"{folder} is no folder",
                "give the path of a folder in Hugging Face layout (config.json, *.safetensors, tokenizer.json)",
                path=str(folder),
            )
        if not path.is_file():
            raise KvasirError(
                Cause.MODEL_NOT_FOUND, f"{folder} holds no config.json", "check that the download is complete"
            )
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise KvasirError(
                Cause.MODEL_INVALID, f"{path} cannot be read: {error}", "download the model again"
            ) from error
        if not isinstance(values, dict):
            raise KvasirError(Cause.MODEL_INVALID, f"{path} must hold a JSON object, got {type(values).__name__}")
        return cls(values, path)

    @property
    def architecture(self) -> str:
        names = self.values.get("architectures")
        if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
            raise KvasirError(Cause.MODEL_INVALID, f"{self.source}: architectures must name one class, got {names!r}")
        return names[0]

    def get(self, key: str, kind: type[T], default: T | None = None) -> T:
        """The value of `key`, or `default` where it is absent or null; without default the key must be there."""
        value = self.values.get(key)
        if value is None:
            if default is None:
                raise KvasirError(Cause.MODEL_INVALID, f"{self.source}: {key} is missing")
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise KvasirError(Cause.MODEL_INVALID, f"{self.source}: {key} must be {kind.__name__}, got {value!r}")
        return value

    def positive(self, key: str, default: int | None = None) -> int:
        value = self.get(key, int, default)
        if value < 1:
            raise KvasirError(Cause.MODEL_INVALID, f"{self.source}: {key} must be at least 1, got {value}")
        return value

    def optional(self, key: str, kind: type[T]) -> T | None:
        return None if self.values.get(key) is None else self.get(key, kind)

    def refuse(self, key: str, supported: object) -> KvasirError:
        """The error for an option that is understood but not supported."""
        return KvasirError(
            Cause.MODEL_UNSUPPORTED,
            f"{self.source}: {key} = {self.values.get(key)!r} is not supported by {self.architecture}",
            f"supported: {supported}",
            key=key,
        )


def rope_config(hf: HFConfig, settings: dict[str, Any] | None = None, theta: float | None = None) -> RopeConfig:
    """Read RoPE settings in today's form (`rope_parameters`) and the older one (`rope_theta`, `rope_scaling`)."""
    if settings is None:
        settings = hf.values.get("rope_parameters") or hf.values.get("rope_scaling") or {}
    section = HFConfig(settings, f"{hf.source} (rope)")
    kind = section.get("rope_type", str, section.get("type", str, "default"))
    base = section.get("rope_theta", float, theta if theta is not None else hf.get("rope_theta", float, 10000.0))
    if kind not in ("default", "linear", "llama3"):
        raise KvasirError(
            Cause.MODEL_UNSUPPORTED,
            f"{hf.source}: rope scaling of type {kind!r} is not supported",
            "supported: default, linear, llama3",
        )
    return RopeConfig(
        theta=base,
        kind=kind,
        factor=section.get("factor", float, 1.0),
        low_freq_factor=section.get("low_freq_factor", float, 1.0),
        high_freq_factor=section.get("high_freq_factor", float, 4.0),
        original_max_position=section.positive("original_max_position_embeddings", 8192),
    )


def decoder_config(hf: HFConfig, **overrides: Any) -> DecoderConfig:
    """What all families share, under Llama's key names; `overrides` are the family's own."""
    hidden, heads, layers = (
        hf.positive("hidden_size"),
        hf.positive("num_attention_heads"),
        hf.positive("num_hidden_layers"),
    )
    kv_heads = hf.positive("num_key_value_heads", heads)
    if heads % kv_heads:
        raise KvasirError(
            Cause.MODEL_INVALID,
            f"{hf.source}: num_attention_heads ({heads}) must be a multiple of num_key_value_heads ({kv_heads})",
        )
    head_dim = hf.positive("head_dim", max(1, hidden // heads))
    fields: dict[str, Any] = {
        "vocab_size": hf.positive("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": hf.positive("intermediate_size"),
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "max_position": hf.positive("max_position_embeddings", 2048),
        "norm_eps": hf.get("rms_norm_eps", float, 1e-6),
        "activation": hf.get("hidden_act", str, "silu"),
        "tie_embeddings": hf.get("tie_word_embeddings", bool, False),
        "attention_scale": head_dim**-0.5,
        "windows": (None,) * layers,
    }
    if "rope" not in overrides:
        fields["rope"] = rope_config(hf)
    config = DecoderConfig(**(fields | overrides))
    if config.activation not in ACTIVATIONS:
        raise hf.refuse("hidden_activation" if "activation" in overrides else "hidden_act", ", ".join(ACTIVATIONS))
    return config


def windows_by_layer(hf: HFConfig, window: int | None, default: Sequence[bool]) -> tuple[int | None, ...]:
    """Each layer's sliding window: by `layer_types` where config.json has them, else where `default` says so."""
    types = hf.values.get("layer_types")
    if types is None:
        sliding = list(default)
    else:
        known = {"sliding_attention": True, "full_attention": False}
        if not isinstance(types, list) or len(types) != len(default) or not set(types) <= set(known):
            raise hf.refuse("layer_types", f"{len(default)} of {', '.join(known)}")
        sliding = [known[kind] for kind in types]
    if any(sliding) and window is None:
        raise KvasirError(Cause.MODEL_INVALID, f"{hf.source}: sliding_window is missing")
    return tuple(window if slides else None for slides in sliding)


def eos_token_ids(folder: Path, hf: HFConfig) -> frozenset[int]:
    """Tokens that end a sequence: those of generation_config.json, else of config.json."""
    path = folder / "generation_config.json"
    value = hf.values.get("eos_token_id")
    if path.is_file():
        try:
            value = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id", value)
        except (OSError, ValueError, AttributeError) as error:
            raise KvasirError(Cause.MODEL_INVALID, f"{path} cannot be read: {error}") from error
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(token, int) for token in ids):
        raise KvasirError(Cause.MODEL_INVALID, f"{path}: eos_token_id must be an integer or a list, got {value!r}")
    return frozenset(ids)
