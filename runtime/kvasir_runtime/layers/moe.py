"""A feed-forward network made of experts, of which a router chooses a few for each token.

Shape suffixes: T tokens, E experts, A experts a token, D hidden size.
Source: arXiv 2401.04088 (softmax over the chosen experts).
"""

import torch
from torch import Tensor

from kvasir_runtime.layers.linear import LoadContext
from kvasir_runtime.layers.mlp import GatedMLP
from kvasir_runtime.models.config import DecoderConfig


class MixtureOfExperts:
    """Each expert computes the tokens that chose it, in one matrix multiplication."""

    def __init__(self, config: DecoderConfig, load: LoadContext, prefix: str) -> None:
        assert config.moe is not None
        self.experts_per_token = config.moe.experts_per_token
        self.router_ED = load.load(f"{prefix}.gate.weight", config.moe.num_experts, config.hidden_size)
        self.experts = [
            GatedMLP(config, load, f"{prefix}.experts.{expert}", gate="w1", up="w3", down="w2")
            for expert in range(config.moe.num_experts)
        ]

    def __call__(self, x_TD: Tensor) -> Tensor:
        chances_TE = torch.nn.functional.linear(x_TD, self.router_ED).softmax(dim=-1, dtype=torch.float32)
        weights_TA, chosen_TA = chances_TE.topk(self.experts_per_token, dim=-1)
        weights_TA = (weights_TA / weights_TA.sum(-1, keepdim=True)).to(x_TD.dtype)
        out_TD = torch.zeros_like(x_TD)
        for number in torch.unique(chosen_TA).tolist():
            rows, places = torch.where(chosen_TA == number)
            out_TD.index_add_(0, rows, self.experts[number](x_TD[rows]) * weights_TA[rows, places, None])
        return out_TD
