"""Tables of cosines and sines for rotary position embedding."""

import math

import torch
from torch import Tensor

from kvasir_runtime.models.config import RopeConfig


def cos_sin_table(rope: RopeConfig, head_dim: int, length: int) -> Tensor:
    """`[length, head_dim]` float32: for each position the head_dim / 2 cosines, then as many sines."""
    angles_LF = torch.outer(torch.arange(length, dtype=torch.float32), inverse_frequencies(rope, head_dim))
    return torch.cat((angles_LF.cos(), angles_LF.sin()), dim=-1)


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """`[head_dim / 2]`: radians per position."""
    base = 1.0 / rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)
    match rope.kind:
        case "linear":
            return base / rope.factor
        case "llama3":
            return _stretch_low_frequencies(base, rope)
        case _:
            return base


def _stretch_low_frequencies(base_F: Tensor, rope: RopeConfig) -> Tensor:
    """Llama 3's scaling: long waves are stretched by `factor`, short ones kept, those between are blended.

    Source: https://github.com/meta-llama/llama-models, `apply_scaling`.
    """
    wavelength_F = 2 * math.pi / base_F
    turns_F = rope.original_max_position / wavelength_F
    blend_F = (turns_F - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    keep_F = blend_F.clamp(0, 1)
    return (1 - keep_F) * base_F / rope.factor + keep_F * base_F
