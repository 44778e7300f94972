"""Mixtral: Llama whose MLP is a choice of a few experts a token."""

from kvasir_runtime.layers.linear import LoadContext
from kvasir_runtime.layers.mlp import FeedForward
from kvasir_runtime.layers.moe import MixtureOfExperts
from kvasir_runtime.models.config import DecoderConfig, HFConfig, MoeConfig, decoder_config
from kvasir_runtime.models.decoder import DecoderLayer, DecoderModel


def config(hf: HFConfig) -> DecoderConfig:
    return decoder_config(
        hf,
        windows=(hf.optional("sliding_window", int),) * hf.positive("num_hidden_layers"),
        moe=MoeConfig(hf.positive("num_local_experts", 8), hf.positive("num_experts_per_tok", 2)),
    )


class MixtralLayer(DecoderLayer):
    def make_mlp(self, config: DecoderConfig, load: LoadContext, prefix: str) -> FeedForward:
        return MixtureOfExperts(config, load, f"{prefix}.block_sparse_moe")


class MixtralModel(DecoderModel):
    layer_class = MixtralLayer
