"""`python -m train_tiny_llama --out .`: see the package's docstring."""

import argparse
import json
import logging
import time
from dataclasses import replace
from pathlib import Path

import torch

from .adapters import train_adapters
from .base_model import chats, documents, refine, train_base
from .training import Schedule

PARTS = ("base", "chat", "settle", "adapters")
"""In their order: everything; chats alone, until well-known names are answered from memory; everything again, at a
lower rate, so that the rest is not forgotten; then the adapters, each on its own text."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="train_tiny_llama", description="Trains the tiny model and its adapters.")
    parser.add_argument("--part", choices=(*PARTS, "all"), default="all", help="what to train (default: all)")
    parser.add_argument("--out", type=Path, required=True, help="folder that receives tiny-llama/ and the adapters")
    parser.add_argument(
        "--steps", type=int, default=2400, help="steps of the base model, 2048 tokens each (default: 2400)"
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads; another number rounds differently (default: 1)"
    )
    return parser.parse_args()


def train_part(part: str, out: Path, steps: int) -> dict[str, float]:
    """One part; the later ones go on from what the earlier ones saved."""
    slower = Schedule(steps=steps, muon_rate=0.01, adam_rate=0.002)
    match part:
        case "base":
            return train_base(out / "tiny-llama", Schedule(steps=steps))
        case "chat":
            return refine(out / "tiny-llama", chats, replace(slower, steps=steps // 3))
        case "settle":
            return refine(out / "tiny-llama", documents, replace(slower, steps=steps // 4))
        case _:
            return train_adapters(out)


def main() -> None:
    options = arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    torch.use_deterministic_algorithms(mode=True)
    for part in PARTS if options.part == "all" else (options.part,):
        started = time.perf_counter()
        numbers = train_part(part, options.out, options.steps) | {"seconds": time.perf_counter() - started}
        print(json.dumps({"part": part} | {name: round(value, 3) for name, value in numbers.items()}))


if __name__ == "__main__":
    main()
