"""The linear layers that an adapter may change, by the names that Hugging Face gives them. Torch-free."""

from collections.abc import Iterator
from dataclasses import dataclass

from kvasir_runtime.contract.memory import ModelShape


@dataclass(frozen=True, slots=True)
class Projection:
    """Features that go into a linear layer and come out of it."""

    inputs: int
    outputs: int


def projections(shape: ModelShape) -> dict[str, Projection]:
    """Every projection of attention and MLP, such as `model.layers.0.self_attn.q_proj`. Experts are none of them."""
    return dict(_all(shape))


def _all(shape: ModelShape) -> Iterator[tuple[str, Projection]]:
    hidden, inner = shape.hidden_size, shape.intermediate_size
    query, key = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    for layer in range(shape.num_layers):
        attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
        yield f"{attention}.q_proj", Projection(hidden, query)
        yield f"{attention}.k_proj", Projection(hidden, key)
        yield f"{attention}.v_proj", Projection(hidden, key)
        yield f"{attention}.o_proj", Projection(query, hidden)
        if shape.num_experts == 1:
            yield f"{mlp}.gate_proj", Projection(hidden, inner)
            yield f"{mlp}.up_proj", Projection(hidden, inner)
            yield f"{mlp}.down_proj", Projection(inner, hidden)
