"""`python -m train_tiny_llama --out .`: see the package's docstring."""

import argparse
import json
import logging
import math
import time
from pathlib import Path

import torch

from .adapters import train_adapters
from .base_model import train_base
from .training import Schedule


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="train_tiny_llama", description="Trains the tiny model and its adapters.")
    parser.add_argument(
        "--part", choices=("base", "adapters", "all"), default="all", help="what to train (default: all)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder that receives tiny-llama/ and the adapters")
    parser.add_argument(
        "--steps", type=int, default=2400, help="steps of the base model, 2048 tokens each (default: 2400)"
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads; another number rounds differently (default: 1)"
    )
    return parser.parse_args()


def main() -> None:
    options = arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)  # noqa: FBT003 - takes no keyword
    torch.use_deterministic_algorithms(mode=True)
    started = time.perf_counter()
    numbers: dict[str, float] = {}
    if options.part in ("base", "all"):
        numbers |= train_base(options.out / "tiny-llama", Schedule(steps=options.steps))
        numbers["held-out perplexity"] = math.exp(numbers["held-out loss"])
    if options.part in ("adapters", "all"):
        numbers |= train_adapters(options.out)
    numbers["seconds"] = time.perf_counter() - started
    print(json.dumps({name: round(value, 3) for name, value in numbers.items()}))


if __name__ == "__main__":
    main()
