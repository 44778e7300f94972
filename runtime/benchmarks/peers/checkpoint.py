"""The benchmark's checkpoint: seeded random weights in Hugging Face layout, made once and cached.

Matrices keep the scale of their inputs (standard deviation 1/sqrt(inputs)), so that attention and logits vary with the
whole context. Embeddings are small beside what the layers add: tied embeddings as large would favour the token just
read, and greedy outputs would repeat it for ever.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file

from benchmarks.peers.shape import LlamaShape
from benchmarks.peers.tokenizer import BOS, EOS, train_tokenizer

SEED: Final = 20_240_601
EMBEDDING_STD: Final = 0.02
RECIPE_VERSION: Final = 1
"""Counts changes of this file that change the weights."""


def ensure_checkpoint(cache: Path, shape: LlamaShape) -> Path:
    """The checkpoint's folder, made if it is not there. What is interrupted is begun anew, never half used."""
    folder = cache / f"llama-{recipe_digest(shape)[:12]}"
    if not folder.exists():
        draft = folder.with_name(f"{folder.name}.draft-{os.getpid()}")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        write_checkpoint(draft, shape)
        draft.rename(folder)
    return folder


def recipe_digest(shape: LlamaShape) -> str:
    recipe = {"shape": asdict(shape), "seed": SEED, "embedding_std": EMBEDDING_STD, "version": RECIPE_VERSION}
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def write_checkpoint(folder: Path, shape: LlamaShape) -> None:
    """Write weights, configuration and a tokenizer trained on the standard library's docstrings."""
    generator = torch.Generator().manual_seed(SEED)
    tensors = {name: weight(name, size, generator) for name, size in weight_sizes(shape)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer = train_tokenizer(shape.vocabulary)
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS}
    _write_json(folder / "tokenizer_config.json", {**described, "model_max_length": shape.max_positions})
    _write_json(folder / "config.json", shape.hugging_face_config())
    _write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 1})


def weight_sizes(shape: LlamaShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and sizes of all weights, in the order in which they are drawn."""
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield "model.embed_tokens.weight", (shape.vocabulary, shape.hidden)
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (shape.hidden,)
        yield f"{prefix}.self_attn.q_proj.weight", (query, shape.hidden)
        yield f"{prefix}.self_attn.k_proj.weight", (key, shape.hidden)
        yield f"{prefix}.self_attn.v_proj.weight", (key, shape.hidden)
        yield f"{prefix}.self_attn.o_proj.weight", (shape.hidden, query)
        yield f"{prefix}.post_attention_layernorm.weight", (shape.hidden,)
        yield f"{prefix}.mlp.gate_proj.weight", (shape.ffn, shape.hidden)
        yield f"{prefix}.mlp.up_proj.weight", (shape.ffn, shape.hidden)
        yield f"{prefix}.mlp.down_proj.weight", (shape.hidden, shape.ffn)
    yield "model.norm.weight", (shape.hidden,)


def weight(name: str, size: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Draw one weight in float32 and round it to bfloat16; scales of norms are one."""
    if len(size) == 1:
        return torch.ones(size, dtype=torch.bfloat16)
    std = EMBEDDING_STD if name.endswith("embed_tokens.weight") else 1 / math.sqrt(size[1])
    return torch.empty(size).normal_(std=std, generator=generator).to(torch.bfloat16)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, so that results name the weights they were measured with."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
