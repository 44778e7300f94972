"""The benchmark's checkpoint and its GGUF names."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.peers import checkpoint
from benchmarks.peers.checkpoint import ensure_checkpoint, file_digest, weight, weight_sizes
from benchmarks.peers.gguf_names import gguf_name, rotary_heads, rotary_row_order
from benchmarks.peers.shape import LLAMA_300M, LlamaShape
from benchmarks.peers.tokenizer import docstrings

TINY = LlamaShape(hidden=8, layers=2, heads=2, kv_heads=1, head_dim=4, ffn=16, vocabulary=300)


@pytest.fixture(autouse=True)
def small_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training on the whole standard library takes seconds; a few sentences do here."""
    monkeypatch.setattr("benchmarks.peers.tokenizer.docstrings", lambda _root: iter(["read the weights once"] * 4))


def test_the_checkpoint_is_made_once_and_the_same_every_time(tmp_path: Path) -> None:
    """A second call finds the first one's folder; another cache gets the same bytes."""
    first = ensure_checkpoint(tmp_path / "one", TINY)
    before = (first / "model.safetensors").stat().st_mtime_ns
    assert ensure_checkpoint(tmp_path / "one", TINY) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == before
    second = ensure_checkpoint(tmp_path / "two", TINY)
    assert file_digest(second / "model.safetensors") == file_digest(first / "model.safetensors")
    assert [path.name for path in first.parent.iterdir()] == [first.name]


def test_an_interrupted_checkpoint_is_not_taken_for_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails half-way leaves nothing under the final name."""

    def stop(_vocabulary: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "train_tokenizer", stop)
        with pytest.raises(KeyboardInterrupt):
            ensure_checkpoint(tmp_path, TINY)
    assert all("draft" in path.name for path in tmp_path.iterdir())
    assert (ensure_checkpoint(tmp_path, TINY) / "tokenizer.json").exists()


def test_the_checkpoint_holds_the_shape_it_describes(tmp_path: Path) -> None:
    """Weights, their sizes and the configuration agree; the embeddings are tied."""
    folder = ensure_checkpoint(tmp_path, TINY)
    tensors = load_file(folder / "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == dict(weight_sizes(TINY))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert sum(tensor.numel() for tensor in tensors.values()) == TINY.parameters
    config = json.loads((folder / "config.json").read_text())
    assert LlamaShape.from_hugging_face(config) == TINY
    assert config["tie_word_embeddings"] is True


@pytest.mark.parametrize(
    ("name", "size", "std"),
    [
        ("model.embed_tokens.weight", (4000, 64), 0.02),
        ("model.layers.0.mlp.down_proj.weight", (64, 4096), 1 / 64),
        ("model.layers.0.self_attn.q_proj.weight", (4096, 64), 1 / 8),
    ],
)
def test_weights_keep_the_scale_of_their_inputs(name: str, size: tuple[int, int], std: float) -> None:
    """A matrix has the deviation 1/sqrt(inputs), the embedding its own."""
    drawn = weight(name, size, torch.Generator().manual_seed(1)).float()
    assert drawn.std().item() == pytest.approx(std, rel=0.02)


@pytest.mark.parametrize(
    ("hugging_face", "gguf"),
    [
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.norm.weight", "output_norm.weight"),
        ("model.layers.0.input_layernorm.weight", "blk.0.attn_norm.weight"),
        ("model.layers.23.self_attn.q_proj.weight", "blk.23.attn_q.weight"),
        ("model.layers.7.self_attn.o_proj.weight", "blk.7.attn_output.weight"),
        ("model.layers.7.post_attention_layernorm.weight", "blk.7.ffn_norm.weight"),
        ("model.layers.10.mlp.gate_proj.weight", "blk.10.ffn_gate.weight"),
        ("model.layers.10.mlp.down_proj.weight", "blk.10.ffn_down.weight"),
    ],
)
def test_weights_get_the_names_that_llamacpp_knows(hugging_face: str, gguf: str) -> None:
    """Names of the GGUF specification for the architecture `llama`."""
    assert gguf_name(hugging_face) == gguf


def test_every_weight_of_the_checkpoint_has_a_gguf_name_of_its_own() -> None:
    """No weight is lost under another's name."""
    names = [gguf_name(name) for name, _ in weight_sizes(LLAMA_300M)]
    assert len(set(names)) == len(names)


def test_an_unknown_weight_is_refused_by_name() -> None:
    """A bias would be lost silently otherwise."""
    with pytest.raises(ValueError, match=r"q_proj\.bias"):
        gguf_name("model.layers.0.self_attn.q_proj.bias")


def test_rotary_rows_interleave_the_halves_of_each_head() -> None:
    """Row i of a head goes beside row i + head_dim / 2, head by head."""
    assert rotary_row_order(4, heads=1) == [0, 2, 1, 3]
    assert rotary_row_order(16, heads=2) == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]
    with pytest.raises(ValueError, match="6 rows do not make up 4 heads"):
        rotary_row_order(6, heads=4)


def test_reordered_rows_give_the_same_attention_scores() -> None:
    """Rotating neighbours of the reordered rows equals rotating halves of the original ones."""
    torch.manual_seed(0)
    query_D, key_D = torch.randn(2, 8)
    order = rotary_row_order(8, heads=1)
    halves = _rotate_halves(query_D, 5) @ _rotate_halves(key_D, 2)
    neighbours = _rotate_neighbours(query_D[order], 5) @ _rotate_neighbours(key_D[order], 2)
    torch.testing.assert_close(halves, neighbours)


def _angles(position: int) -> torch.Tensor:
    return position * 10_000.0 ** (-torch.arange(4) / 4)


def _rotate_halves(x_D: torch.Tensor, position: int) -> torch.Tensor:
    cos, sin = _angles(position).cos(), _angles(position).sin()
    low, high = x_D[:4], x_D[4:]
    return torch.cat([low * cos - high * sin, high * cos + low * sin])


def _rotate_neighbours(x_D: torch.Tensor, position: int) -> torch.Tensor:
    cos, sin = _angles(position).cos(), _angles(position).sin()
    even, odd = x_D[0::2], x_D[1::2]
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten()


def test_only_queries_and_keys_are_reordered() -> None:
    """Keys have fewer heads under grouped-query attention."""
    heads = {name: rotary_heads(f"model.layers.0.self_attn.{name}.weight", 16, 4) for name in ("q_proj", "k_proj")}
    assert heads == {"q_proj": 16, "k_proj": 4}
    assert rotary_heads("model.layers.0.self_attn.v_proj.weight", 16, 4) is None


def test_docstrings_come_in_a_fixed_order_without_tests(tmp_path: Path) -> None:
    """The corpus is what the modules document, not what their tests do."""
    (tmp_path / "b.py").write_text('"""Second."""\ndef f():\n    """Inner."""\n')
    (tmp_path / "a.py").write_text('"""First."""\n')
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "c.py").write_text('"""A test."""\n')
    assert list(docstrings(tmp_path)) == ["First.", "Second.", "Inner."]
