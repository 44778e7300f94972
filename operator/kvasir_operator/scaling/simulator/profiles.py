"""Replicas to simulate. Their numbers come from data sheets, not from measurements: each says how."""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Final

from kvasir_operator.scaling.simulator.replica import Profile

PROFILES: Final = {
    # 8 billion bfloat16 parameters with grouped-query attention on a device of 80 GB and 2 TB/s: 16 GB of weights take
    # 11 ms a step (at 70 % of the bandwidth), 128 KiB a token, 160 TFLOP/s of prompts, 50 GB of KV cache.
    "8b-80g": Profile(
        step_s=0.011, prefill_s=1e-4, decode_s=5e-5, kv_s=8e-8, kv_tokens=400_000, max_batched_tokens=8192
    ),
    # 13 billion bfloat16 parameters without it on a device of 48 GB and 0.86 TB/s: 26 GB of weights take 30 ms a step,
    # 800 KiB a token, 90 TFLOP/s of prompts, 16 GB of KV cache. Its cache is full long before its compute.
    "13b-48g": Profile(step_s=0.030, prefill_s=1 / 3500, decode_s=1e-4, kv_s=9.5e-7, kv_tokens=20_000),
}


class ProfileError(ValueError):
    """A profile that is neither known nor a file that holds one."""


def read_profile(name: str) -> Profile:
    """A known profile, or one from a JSON file with the fields of `Profile`."""
    if name in PROFILES:
        return PROFILES[name]
    path = Path(name)
    if not path.is_file():
        raise ProfileError(f"--profile must be one of {', '.join(PROFILES)} or a JSON file, got {name!r}")
    try:
        return Profile(**json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        known = ", ".join(field.name for field in fields(Profile))
        raise ProfileError(f"{path}: {error}; the fields are {known}") from error


def write_profile(profile: Profile, path: Path) -> None:
    """Write a profile as `read_profile` reads it."""
    path.write_text(json.dumps(asdict(profile), indent=2) + "\n", encoding="utf-8")
