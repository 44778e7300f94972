"""Hugging Face transformers: batched `generate` in bfloat16."""

import importlib.metadata
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.peers.workers import measure
from benchmarks.peers.workers.protocol import TokenIds, Workload


class TransformersEngine:
    def __init__(self, workload: Workload) -> None:
        torch.set_num_threads(workload.threads)
        options: dict[str, Any] = {"attn_implementation": "sdpa", **workload.options}
        self._generate_options = {key: options.pop(key) for key in ("cache_implementation",) if key in options}
        self._model = AutoModelForCausalLM.from_pretrained(workload.model, dtype=torch.bfloat16, **options).eval()
        self._model.generation_config.eos_token_id = None
        self.versions = {name: importlib.metadata.version(name) for name in ("transformers", "torch")}
        shown = {"dtype": "bfloat16", **options, **self._generate_options, "threads": workload.threads}
        self.configuration = ", ".join(f"{key}={value}" for key, value in shown.items())

    def generate(self, prompts: list[TokenIds], output_len: int) -> list[TokenIds]:
        ids_BT = torch.tensor(prompts)
        with torch.inference_mode():
            outputs_BT = self._model.generate(
                ids_BT,
                attention_mask=torch.ones_like(ids_BT),
                max_new_tokens=output_len,
                min_new_tokens=output_len,
                do_sample=False,
                pad_token_id=0,
                **self._generate_options,
            )
        outputs: list[TokenIds] = outputs_BT[:, ids_BT.shape[1] :].tolist()
        return outputs


if __name__ == "__main__":
    measure.main("transformers", TransformersEngine)
