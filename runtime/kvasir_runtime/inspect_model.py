"""`kvasir-runtime inspect`: what a model holds, and whether it fits, before anything is loaded.

`--model DIR` looks into a folder, with the headers of its weights; `URI` at a source, of which only config.json and the
index are read. `--report` is for pods: what was found, or why nothing was, is left as the termination message.
"""

import argparse
import json
import os
import struct
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

from kvasir_runtime import cli
from kvasir_runtime.contract.engine_args import EngineArgs
from kvasir_runtime.contract.engine_memory import memory_question
from kvasir_runtime.contract.failures import (
    Cause,
    KvasirError,
    write_termination_message,
    write_termination_text,
)
from kvasir_runtime.contract.memory import MemoryPlan, MemoryQuestion, ModelShape, plan_memory
from kvasir_runtime.contract.model_report import ModelReport, architecture_of
from kvasir_runtime.contract.quantities import format_bytes, parse_bytes
from kvasir_runtime.fetch.retry import RetryPolicy
from kvasir_runtime.fetch.source import Access
from kvasir_runtime.fetch.uri import without_credentials
from kvasir_runtime.model_files import read_model_folder

ENGINE_FLAGS: Final = (
    *("model", "dtype", "quantization", "max_model_len", "max_num_seqs", "max_num_batched_tokens", "block_size"),
    *("kv_cache_dtype", "kv_cache_memory", "gpu_memory_utilization", "kv_offload_host"),
    *("enable_lora", "max_loras", "max_cpu_loras", "max_lora_rank"),
)
REPORT_ATTEMPTS: Final = 4
"""Tries in a row at a source that does not answer: some seconds, since a pod, or a person, waits."""
_LARGEST_HEADER: Final = 100_000_000
"""Bytes of a safetensors header that the format allows."""


@dataclass(frozen=True)
class Inspection:
    """Bytes and tokens as named; None: not known. `fits` is False with the reason in `problem`."""

    path: str
    architecture: str
    parameters: int | None
    files_bytes: int | None
    dtype: str
    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    vocab_size: int
    max_position: int
    max_model_len: int
    memory_limit: int
    fits: bool
    problem: str = ""
    remedy: str = ""
    weights_bytes: int = 0
    kv_bytes_per_token: int = 0
    kv_tokens: int = 0
    concurrent_sequences: int = 0


@dataclass(frozen=True)
class _Facts:
    """What was read of a model: its shape and, where that is known, how many numbers and bytes its weights are."""

    place: str
    report: ModelReport
    parameters: int | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "uri", metavar="URI", nargs="?", help="s3://…, hf://…, https://… or file:///path, in place of --model DIR"
    )
    parser.add_argument("--secret-dir", type=Path, metavar="DIR", help="mounted Secret with the source's credentials")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--report", action="store_true", help="only tell what the model is, also in the pod's termination message"
    )
    parser.add_argument(
        "--memory-limit",
        metavar="BYTES",
        help="plan for this much memory, such as 16Gi (default: what this process may use)",
    )
    cli.add_engine_arguments(parser, only=ENGINE_FLAGS)


def run(namespace: argparse.Namespace) -> int:
    """Print what was found; returns 1 when the model does not fit."""
    if namespace.report:
        return _report(namespace)
    if namespace.uri is not None:
        namespace.model = namespace.uri
    args = cli.engine_args(namespace, os.environ)
    limit = _memory_limit(namespace.memory_limit)
    found = inspect(args, limit) if namespace.uri is None else _inspection(_read_source(namespace), args, limit)
    print(json.dumps(asdict(found)) if namespace.json else describe(found))
    return 0 if found.fits else 1


def inspect(args: EngineArgs, limit: int) -> Inspection:
    """Read the folder and plan its memory within `limit` bytes; raises KvasirError for a folder that is no model."""
    return _inspection(_read_folder(args.model), args, limit)


def _report(namespace: argparse.Namespace) -> int:
    """Leave what was found, or why nothing was, where the kubelet looks."""
    try:
        facts = _read_source(namespace) if namespace.uri is not None else _read_folder(vars(namespace).get("model", ""))
    except KvasirError as error:
        write_termination_message(error.report)
        raise
    text = facts.report.to_json()
    write_termination_text(text)
    print(text)
    return 0


def _read_source(namespace: argparse.Namespace) -> _Facts:
    from kvasir_runtime.fetch.cli import read_secrets  # noqa: PLC0415 - its libraries are not needed for a folder
    from kvasir_runtime.inspect_source import inspect_source  # noqa: PLC0415 - likewise

    access = Access(read_secrets(namespace.secret_dir, os.environ))
    report = inspect_source(namespace.uri, access, RetryPolicy(attempts=REPORT_ATTEMPTS))
    return _Facts(without_credentials(namespace.uri), report)


def _read_folder(folder: str) -> _Facts:
    model = read_model_folder(folder)
    try:
        shape = ModelShape.from_hf_config(model.config)
    except ValueError as error:
        raise KvasirError(Cause.MODEL_INVALID, f"{model.path}: {error}", "download the model again") from None
    stored = sum(file.stat().st_size for file in model.path.glob("*.safetensors"))
    report = ModelReport(shape, architecture_of(model.config), stored)
    return _Facts(str(model.path), report, count_parameters(model.path))


def _inspection(facts: _Facts, args: EngineArgs, limit: int) -> Inspection:
    question = _question(args, facts.report.shape, limit)
    known = _known(facts, question)
    try:
        return Inspection(**known, **_planned(plan_memory(question), question), fits=True)
    except KvasirError as error:
        return Inspection(**known, fits=False, problem=error.report.message, remedy=error.report.remedy)


def describe(found: Inspection) -> str:
    """The same for people."""
    rows = {
        "model": found.path,
        "architecture": found.architecture,
        "parameters": f"{found.parameters:,}" if found.parameters is not None else "not counted",
        "files": format_bytes(found.files_bytes) if found.files_bytes is not None else "not known",
        "layers": f"{found.layers} x {found.hidden_size}, {found.heads} heads, {found.kv_heads} KV heads",
        "vocabulary": f"{found.vocab_size:,}",
        "context": f"{found.max_model_len:,} of {found.max_position:,} tokens",
        "memory limit": format_bytes(found.memory_limit),
    }
    if found.fits:
        rows |= {
            "weights": f"{format_bytes(found.weights_bytes)} as {found.dtype}",
            "KV per token": format_bytes(found.kv_bytes_per_token),
            "KV cache": f"{found.kv_tokens:,} tokens = {found.concurrent_sequences} sequences of full length",
        }
    else:
        rows |= {"does not fit": found.problem, "remedy": found.remedy}
    return "\n".join(f"{label:<14}{value}" for label, value in rows.items())


def count_parameters(folder: Path) -> int:
    """Numbers in all *.safetensors of a folder, from their headers alone; raises KvasirError(WeightsCorrupt).

    Source: https://huggingface.co/docs/safetensors/index#format
    """
    return sum(_count_in(file) for file in sorted(folder.glob("*.safetensors")))


def _count_in(file: Path) -> int:
    try:
        header = _read_header(file)
        return sum(prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise KvasirError(
            Cause.WEIGHTS_CORRUPT, f"{file} is no safetensors file: {error}", "download it again"
        ) from None


def _read_header(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > _LARGEST_HEADER:
            msg = f"its header claims {length} bytes, the format allows {_LARGEST_HEADER}"
            raise ValueError(msg)
        header = json.loads(stream.read(length))
    if not isinstance(header, dict):
        msg = f"its header holds {type(header).__name__}, not an object"
        raise TypeError(msg)
    return header


def _known(facts: _Facts, question: MemoryQuestion) -> dict[str, Any]:
    shape = facts.report.shape
    return {
        "path": facts.place,
        "architecture": facts.report.architecture or "not given",
        "parameters": facts.parameters,
        "files_bytes": facts.report.stored_bytes,
        "dtype": question.dtype if question.quantization == "none" else question.quantization,
        "layers": shape.num_layers,
        "hidden_size": shape.hidden_size,
        "heads": shape.num_heads,
        "kv_heads": shape.num_kv_heads,
        "vocab_size": shape.vocab_size,
        "max_position": shape.max_position,
        "max_model_len": question.max_model_len,
        "memory_limit": question.limit,
    }


def _planned(plan: MemoryPlan, question: MemoryQuestion) -> dict[str, Any]:
    return {
        "weights_bytes": plan.weights_bytes,
        "kv_bytes_per_token": plan.kv_bytes_per_token,
        "kv_tokens": plan.kv_tokens,
        "concurrent_sequences": plan.concurrent_sequences(question.max_model_len),
    }


def _question(args: EngineArgs, shape: ModelShape, limit: int) -> MemoryQuestion:
    try:
        return memory_question(args, shape, limit)
    except ValueError as error:
        raise KvasirError(Cause.MODEL_UNSUPPORTED, str(error), "give --dtype") from None


def _memory_limit(given: str | None) -> int:
    if given is None:
        from kvasir_runtime.worker.host import memory_limit  # noqa: PLC0415 - reads the machine, not needed otherwise

        return memory_limit().limit
    try:
        return parse_bytes(given)
    except ValueError as error:
        raise KvasirError(Cause.INVALID_ARGUMENTS, f"--memory-limit: {error}", "write it as 16Gi") from None
