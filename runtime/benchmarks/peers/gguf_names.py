"""How llama.cpp's GGUF names and lays out a Llama's weights. Pure: sizes and names only."""

import re
from typing import Final

_GLOBAL: Final = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_IN_LAYER: Final = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_LAYER: Final = re.compile(r"model\.layers\.(\d+)\.(.+)\.weight")


def gguf_name(name: str) -> str:
    """The GGUF name of a Hugging Face Llama weight; raises ValueError for a weight this layout does not know."""
    if name in _GLOBAL:
        return _GLOBAL[name]
    match = _LAYER.fullmatch(name)
    if match is None or match[2] not in _IN_LAYER:
        msg = f"no GGUF name for the weight {name}; known are Llama's own, without biases"
        raise ValueError(msg)
    return f"blk.{match[1]}.{_IN_LAYER[match[2]]}.weight"


def rotary_row_order(rows: int, heads: int) -> list[int]:
    """Row order that turns Hugging Face's query or key projection into GGUF's.

    Hugging Face rotates dimension i with i + head_dim/2, GGUF's Llama rotates neighbours 2i and 2i + 1, so the two
    halves of each head are interleaved: with one head of 4 rows, 0 1 2 3 becomes 0 2 1 3.
    Raises ValueError when the rows do not make up heads of even size.
    """
    head_dim, rest = divmod(rows, heads)
    if rest or head_dim % 2:
        msg = f"{rows} rows do not make up {heads} heads of even size"
        raise ValueError(msg)
    half = head_dim // 2
    return [head * head_dim + part * half + i for head in range(heads) for i in range(half) for part in range(2)]


def rotary_heads(name: str, heads: int, kv_heads: int) -> int | None:
    """How many heads a weight's rows hold if they must be reordered, None if they stay as they are."""
    if name.endswith("q_proj.weight"):
        return heads
    return kv_heads if name.endswith("k_proj.weight") else None
