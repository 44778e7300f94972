"""What an inspection found out about a model, and how it travels.

`kvasir-runtime inspect URI --report` leaves one JSON object in its termination message, the kubelet copies it into
the pod's status, the operator reads it back. Only numbers on which memory depends are in it, so that it always fits
into the 4096 bytes that the kubelet keeps.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from kvasir_runtime.contract.memory import DTYPE_BYTES, ModelShape, weight_bytes

MAY_BE_NONE: Final = frozenset({"norms_per_layer", "rotary_tables"})
"""Numbers of a shape that may be 0; by the others something is divided."""
LARGEST: Final = 1 << 53
"""No number of a model is larger, and JSON keeps no larger one exactly."""
DEVIATION: Final = 0.1
"""Share by which the files may differ from the formula before a plan made with it is believed no longer."""


@dataclass(frozen=True)
class ModelReport:
    """A model's shape, and the bytes of its weight files as the index or the listing says; None: not said."""

    shape: ModelShape
    architecture: str = ""
    stored_bytes: int | None = None

    @property
    def doubt(self) -> str:
        """Why the formula does not describe this model, by the size of its files; empty where it does.

        A checkpoint holds one output projection more or less than the formula counts, and its norms in two bytes.
        """
        if self.stored_bytes is None or self.shape.dtype not in DTYPE_BYTES:
            return ""
        counted = weight_bytes(self.shape, self.shape.dtype, device="cuda")
        table = self.shape.embedding_parameters * DTYPE_BYTES[self.shape.dtype]
        low, high = (counted - table) * (1 - DEVIATION), (counted + table) * (1 + DEVIATION)
        if low <= self.stored_bytes <= high:
            return ""
        return f"its files hold {self.stored_bytes} bytes of weights, config.json describes {counted}"

    def to_data(self) -> dict[str, Any]:
        return {"shape": asdict(self.shape), "architecture": self.architecture, "stored_bytes": self.stored_bytes}

    def to_json(self) -> str:
        return json.dumps(self.to_data())

    @classmethod
    def from_data(cls, data: Any) -> "ModelReport | None":
        """Read `to_data` back; None for anything else. Fields that a newer runtime added are left out."""
        try:
            given = data["shape"]
            known = {each.name: given[each.name] for each in fields(ModelShape) if each.name in given}
            stored = data.get("stored_bytes")
            report = cls(ModelShape(**known), str(data.get("architecture") or ""), stored)
        except (KeyError, TypeError, AttributeError):
            return None
        return report if _is_sound(known) and (stored is None or _is_count(stored)) else None

    @classmethod
    def from_json(cls, text: str) -> "ModelReport | None":
        try:
            return cls.from_data(json.loads(text))
        except ValueError:
            return None


def _is_sound(shape: Mapping[str, Any]) -> bool:
    """Whether every field is what its name says: what comes out of a pod is not to be trusted."""
    kinds = {each.name: each.type for each in fields(ModelShape)}
    return all(
        isinstance(value, str) if kinds[name] in (str, "str")
        else isinstance(value, bool) if kinds[name] in (bool, "bool")
        else _is_count(value) and (value > 0 or name in MAY_BE_NONE)
        for name, value in shape.items()
    )  # fmt: skip


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST


def architecture_of(config: Mapping[str, Any]) -> str:
    """The class names that a config.json gives."""
    names = config.get("architectures")
    return ", ".join(map(str, names)) if isinstance(names, list) else ""
