"""Byte counts and durations the way Kubernetes writes them: `512Mi`, `8G`, `90s`, `1h30m`.

Source: https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
"""

import math
import re
from decimal import Decimal
from typing import Final

_SUFFIXES: Final[dict[str, int]] = {
    "": 1,
    **{unit: 1000**power for power, unit in enumerate(("k", "M", "G", "T", "P", "E"), start=1)},
    **{unit: 1024**power for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), start=1)},
}
_BYTES: Final = re.compile(r"(?P<number>\d+(?:\.\d*)?|\.\d+)(?P<suffix>[kMGTPE]|[KMGTPE]i|)")
_DURATION_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def parse_bytes(text: str | int) -> int:
    """Read a byte count, rounded up to whole bytes; raises ValueError that quotes what it could not read.

    >>> parse_bytes("512Mi"), parse_bytes("1.5k"), parse_bytes(7)
    (536870912, 1500, 7)
    """
    if isinstance(text, int):
        return text
    match = _BYTES.fullmatch(text.strip())
    if match is None:
        msg = f"{text!r} is no byte count: write a number with an optional suffix, such as 512Mi, 8Gi or 2G"
        raise ValueError(msg)
    return math.ceil(Decimal(match["number"]) * _SUFFIXES[match["suffix"]])


def format_bytes(count: float) -> str:
    """Write a byte count for people, in binary units with three significant digits: `1.21Gi`."""
    for unit in ("", "Ki", "Mi", "Gi", "Ti"):
        if abs(count) < 1024 or unit == "Ti":
            return f"{count:.0f}{unit}" if not unit or abs(count) >= 100 else f"{count:.3g}{unit}"
        count /= 1024
    raise AssertionError


def parse_duration(text: str | float) -> float:
    """Read a duration in seconds from `90s`, `1h30m`, `250ms` or a plain number of seconds; raises ValueError.

    >>> parse_duration("1h30m"), parse_duration("250ms"), parse_duration(5)
    (5400.0, 0.25, 5.0)
    """
    if isinstance(text, int | float):
        return float(text)
    parts = _DURATION_PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text.strip():
        msg = f"{text!r} is no duration: write numbers with units, such as 90s, 5m or 1h30m"
        raise ValueError(msg)
    return sum(float(number) * _DURATION_UNITS[unit] for number, unit in parts)
