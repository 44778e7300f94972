"""Judges greedy outputs against the model in float32: `python -m … REQUEST RESULT`.

Engines round differently, so that two right ones part at the first near-tie, and comparing their tokens afterwards
says nothing. Here each engine's own output is fed back to transformers in float32: every token it chose has a *regret*,
the distance of its logit from the highest one at that place, in standard deviations of the logits there. A greedy
engine that computes the right model has regrets near zero; a wrong one has regrets near 4.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.peers.workers.protocol import TokenIds


def regrets(model: PreTrainedModel, prompts: list[TokenIds], outputs: list[TokenIds]) -> torch.Tensor:
    """Regret of each output token, shape (prompts, output tokens); all prompts and all outputs are equally long."""
    ids_BT = torch.tensor([[*prompt, *output] for prompt, output in zip(prompts, outputs, strict=True)])
    generated = len(outputs[0])
    with torch.inference_mode():
        logits_BTV = model(ids_BT[:, :-1], logits_to_keep=generated).logits
    chosen_BT = logits_BTV.gather(-1, ids_BT[:, -generated:, None]).squeeze(-1)
    regrets_BT: torch.Tensor = (logits_BTV.amax(-1) - chosen_BT) / logits_BTV.std(-1)
    return regrets_BT


def main() -> None:
    parser = argparse.ArgumentParser(description="Judge greedy outputs against the model in float32.")
    parser.add_argument("request", type=Path, help="JSON: model, threads, prompts, outputs by engine")
    parser.add_argument("result", type=Path, help="JSON file to write: regrets by engine")
    arguments = parser.parse_args()
    request = json.loads(arguments.request.read_text(encoding="utf-8"))
    torch.set_num_threads(request["threads"])
    model = AutoModelForCausalLM.from_pretrained(request["model"], dtype=torch.float32).eval()
    judged = {
        engine: regrets(model, request["prompts"][: len(outputs)], outputs).tolist()
        for engine, outputs in request["outputs"].items()
    }
    arguments.result.write_text(json.dumps(judged), encoding="utf-8")


if __name__ == "__main__":
    main()
