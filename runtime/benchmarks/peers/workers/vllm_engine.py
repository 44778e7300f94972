"""vLLM's CPU build, used through its offline `LLM` class."""

import importlib.metadata
from typing import Any

from vllm import LLM, SamplingParams, TokensPrompt

from benchmarks.peers.workers import measure
from benchmarks.peers.workers.protocol import TokenIds, Workload

CONTEXT_STEP = 256


class VllmEngine:
    def __init__(self, workload: Workload) -> None:
        options: dict[str, Any] = {
            "dtype": "bfloat16",
            "max_model_len": -(-workload.longest // CONTEXT_STEP) * CONTEXT_STEP,
            "max_num_seqs": workload.most_sequences,
            "enable_prefix_caching": True,
            "seed": 0,
            **workload.options,
        }
        self._llm = LLM(workload.model, **options)
        self.versions = {name: importlib.metadata.version(name) for name in ("vllm", "torch")}
        self.configuration = ", ".join(f"{key}={value}" for key, value in options.items())

    def generate(self, prompts: list[TokenIds], output_len: int) -> list[TokenIds]:
        sampling = SamplingParams(temperature=0, max_tokens=output_len, ignore_eos=True, detokenize=False)
        inputs = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
        outputs = self._llm.generate(inputs, sampling, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]


if __name__ == "__main__":
    measure.main("vllm", VllmEngine)
