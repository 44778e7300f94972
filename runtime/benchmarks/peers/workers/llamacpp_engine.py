"""llama.cpp through llama-cpp-python's low-level interface: one context, a slot (sequence id) for each prompt.

All slots prefill and decode in shared batches, as llama.cpp's own server does with continuous batching; a slot keeps
its KV cells between calls, and a prompt that begins like what the slot holds is computed from where they part (the
server's `cache_prompt`).
"""

import ctypes
import importlib.metadata
from itertools import islice
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from benchmarks.peers.workers import measure
from benchmarks.peers.workers.protocol import TokenIds, Workload

CONTEXT_STEP = 256
BATCH = 2048


class LlamaCppEngine:
    def __init__(self, workload: Workload) -> None:
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            workload.model.encode(), llama_cpp.llama_model_default_params()
        )
        if not self._model:
            msg = f"llama.cpp could not load {workload.model}"
            raise RuntimeError(msg)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        slots = workload.most_sequences
        options: dict[str, Any] = {
            "n_ctx": slots * -(-workload.longest // CONTEXT_STEP) * CONTEXT_STEP,
            "n_batch": BATCH,
            "n_seq_max": slots,
            "n_threads": workload.threads,
            "n_threads_batch": workload.threads,
            **workload.options,
        }
        self._context = llama_cpp.llama_init_from_model(self._model, _context_parameters(options))
        if not self._context:
            msg = f"llama.cpp could not make a context with {options}"
            raise RuntimeError(msg)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(options["n_batch"], 0, 1)
        self._capacity = int(options["n_batch"])
        self._held: list[TokenIds] = [[] for _ in range(slots)]
        self.versions = {"llama-cpp-python": importlib.metadata.version("llama-cpp-python")}
        shown = {**options, "weights": _description(self._model).split()[-1]}
        self.configuration = ", ".join(f"{key}={value}" for key, value in shown.items()) + f"; {_cpu_features()}"

    def generate(self, prompts: list[TokenIds], output_len: int) -> list[TokenIds]:
        outputs = [[token] for token in self._prefill(prompts)]
        for _ in range(output_len - 1):
            steps = [(slot, len(self._held[slot]), output[-1], True) for slot, output in enumerate(outputs)]
            for output, token in zip(outputs, self._decode(steps), strict=True):
                output.append(token)
        return outputs

    def _prefill(self, prompts: list[TokenIds]) -> list[int]:
        entries = []
        for slot, prompt in enumerate(prompts):
            kept = self._keep(slot, prompt)
            last = len(prompt) - 1
            entries += [(slot, position, prompt[position], position == last) for position in range(kept, len(prompt))]
        remaining = iter(entries)
        tokens: list[int] = []
        while part := list(islice(remaining, self._capacity)):
            tokens += self._decode(part)
        return tokens

    def _keep(self, slot: int, prompt: TokenIds) -> int:
        """Drop from the slot what the prompt does not begin with; the last prompt token is always computed."""
        held = self._held[slot]
        pairs = zip(held, prompt[:-1], strict=False)
        kept = next((index for index, (old, new) in enumerate(pairs) if old != new), min(len(held), len(prompt) - 1))
        llama_cpp.llama_memory_seq_rm(self._memory, slot, kept, -1)
        self._held[slot] = held[:kept]
        return kept

    def _decode(self, entries: list[tuple[int, int, int, bool]]) -> list[int]:
        """Compute (slot, position, token, wants logits) entries; the greedy token of each that wants logits."""
        batch = self._batch
        batch.n_tokens = len(entries)
        for index, (slot, position, token, wants_logits) in enumerate(entries):
            batch.token[index] = token
            batch.pos[index] = position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = slot
            batch.logits[index] = wants_logits
            self._held[slot].append(token)
        status = llama_cpp.llama_decode(self._context, batch)
        if status != 0:
            msg = f"llama_decode failed with status {status} on {len(entries)} tokens"
            raise RuntimeError(msg)
        wanted = sum(entry[3] for entry in entries)
        return self._greedy(wanted) if wanted else []

    def _greedy(self, rows: int) -> list[int]:
        logits: npt.NDArray[np.float32] = np.ctypeslib.as_array(
            llama_cpp.llama_get_logits(self._context), shape=(rows, self._vocabulary)
        )
        tokens: list[int] = logits.argmax(axis=-1).tolist()
        return tokens


def _context_parameters(options: dict[str, Any]) -> Any:
    parameters = llama_cpp.llama_context_default_params()
    for name, value in options.items():
        setattr(parameters, name, value)
    return parameters


def _description(model: Any) -> str:
    buffer = ctypes.create_string_buffer(256)
    llama_cpp.llama_model_desc(model, buffer, len(buffer))
    return buffer.value.decode()


def _cpu_features() -> str:
    """Which instruction sets the build uses, as llama.cpp says itself."""
    info = llama_cpp.llama_print_system_info().decode()
    return " ".join(part.split("=")[0].strip() for part in info.split("|") if part.strip().endswith("= 1"))


if __name__ == "__main__":
    measure.main("llamacpp", LlamaCppEngine)
