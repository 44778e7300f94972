"""Writes a GGUF file of a Llama checkpoint in Hugging Face layout: `python -m … MODEL_FOLDER FILE --type Q8_0`."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import safetensors

from benchmarks.peers.gguf_names import gguf_name, rotary_heads, rotary_row_order
from benchmarks.peers.shape import LlamaShape

TYPES = {"BF16": gguf.GGMLQuantizationType.BF16, "Q8_0": gguf.GGMLQuantizationType.Q8_0}
FILE_TYPES = {"BF16": gguf.LlamaFileType.MOSTLY_BF16, "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}


def export(model: Path, target: Path, type_name: str) -> None:
    """Write `target` whole or not at all. Vectors stay float32, as llama.cpp's own converter leaves them."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    shape = LlamaShape.from_hugging_face(config)
    draft = target.with_suffix(".draft")
    writer = gguf.GGUFWriter(draft, "llama")
    _add_shape(writer, shape, FILE_TYPES[type_name])
    _add_tokenizer(writer, model, shape.vocabulary)
    for name, values in read_bfloat16(model / "model.safetensors"):
        _add_weight(writer, name, values, shape, TYPES[type_name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    draft.rename(target)


def read_bfloat16(path: Path) -> list[tuple[str, npt.NDArray[np.float32]]]:
    """Every tensor as float32, exactly: a bfloat16 is the upper half of a float32. Raises ValueError on other types."""
    tensors = []
    for name, entry in safetensors.deserialize(path.read_bytes()):  # type: ignore[no-untyped-call]
        if entry["dtype"] != "BF16":
            msg = f"{path}: {name} is {entry['dtype']}, only BF16 is converted"
            raise ValueError(msg)
        halves = np.frombuffer(entry["data"], dtype=np.uint16).astype(np.uint32) << 16
        tensors.append((name, halves.view(np.float32).reshape(entry["shape"])))
    return tensors


def _add_weight(writer: Any, name: str, values: npt.NDArray[np.float32], shape: LlamaShape, kind: Any) -> None:
    heads = rotary_heads(name, shape.heads, shape.kv_heads)
    ordered = values if heads is None else values[rotary_row_order(len(values), heads)]
    if ordered.ndim == 1:
        writer.add_tensor(gguf_name(name), ordered)
    else:
        writer.add_tensor(gguf_name(name), gguf.quants.quantize(ordered, kind), raw_dtype=kind)


def _add_shape(writer: Any, shape: LlamaShape, file_type: Any) -> None:
    writer.add_name("Kvasir benchmark Llama")
    writer.add_file_type(file_type)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_context_length(shape.max_positions)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)


def _add_tokenizer(writer: Any, model: Path, vocabulary: int) -> None:
    """The checkpoint's byte-level BPE; ids that it does not use are filled up to the model's vocabulary."""
    data = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    special = {token["id"] for token in data["added_tokens"]}
    by_id = {index: token for token, index in data["model"]["vocab"].items()}
    control, normal, unused = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL, gguf.TokenType.UNUSED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([by_id.get(index, f"<unused{index}>") for index in range(vocabulary)])
    writer.add_token_types(
        [control if index in special else normal if index in by_id else unused for index in range(vocabulary)]
    )
    writer.add_token_merges([" ".join(merge) for merge in data["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(value=False)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a GGUF file of a Llama checkpoint in Hugging Face layout.")
    parser.add_argument("model", type=Path, help="folder with config.json, tokenizer.json and model.safetensors")
    parser.add_argument("target", type=Path, help="file to write")
    parser.add_argument("--type", choices=sorted(TYPES), default="BF16", help="of the matrices (default: BF16)")
    arguments = parser.parse_args()
    export(arguments.model, arguments.target, arguments.type)
    print(f"{arguments.target}: {arguments.target.stat().st_size / 1e6:.0f} MB", file=sys.stderr)


if __name__ == "__main__":
    main()
