"""What the benchmark tells a worker and what the worker answers: two JSON files, no third-party types."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

TokenIds = list[int]


@dataclass(frozen=True)
class Load:
    """Prompts as token ids and how many tokens to generate for each, greedily and past any end token."""

    prompts: list[TokenIds]
    output_len: int

    @property
    def output_tokens(self) -> int:
        return len(self.prompts) * self.output_len


@dataclass(frozen=True)
class Workload:
    """One process's work. A warm-up has the shape of its load but other prompts, so no cache can serve the load."""

    model: str
    """Folder in Hugging Face layout, or a GGUF file."""
    threads: int
    scenarios: list[str]
    loads: dict[str, Load]
    warmups: dict[str, Load]
    options: dict[str, Any] = field(default_factory=dict)
    """Settings that only one engine knows, such as vLLM's maximum of batched tokens."""

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence, prompt and output."""
        loads = [*self.loads.values(), *self.warmups.values()]
        return max(len(prompt) + load.output_len for load in loads for prompt in load.prompts)

    @property
    def most_sequences(self) -> int:
        return max(len(load.prompts) for load in self.loads.values())

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Workload":
        data = json.loads(path.read_text(encoding="utf-8"))
        for name in ("loads", "warmups"):
            data[name] = {scenario: Load(**load) for scenario, load in data[name].items()}
        return cls(**data)


@dataclass
class Result:
    """What one process measured. `seconds` holds wall-clock times by scenario and part."""

    engine: str
    versions: dict[str, str]
    configuration: str
    load_s: float
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    outputs: dict[str, list[TokenIds]] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Result":
        return cls(**json.loads(path.read_text(encoding="utf-8")))
