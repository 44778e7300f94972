"""Why a process of the data plane ended: the causes that the operator shows to people, and how they travel.

On a fatal error the process writes one JSON object to its termination message; the kubelet copies it into the
pod's status (at most 4096 bytes), where the operator reads it back. Nothing here needs more than the standard
library, so that even a process that failed to import its dependencies can say why it ended.

Source: https://kubernetes.io/docs/tasks/debug/debug-application/determine-reason-pod-failure/
"""

import json
import os
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

TERMINATION_MESSAGE_LIMIT: Final = 4096
"""Bytes of the termination message that the kubelet keeps."""

DEFAULT_TERMINATION_LOG: Final = "/dev/termination-log"


class Cause(StrEnum):
    """The closed set of reasons for which a process gives up."""

    INVALID_ARGUMENTS = "InvalidArguments"
    MODEL_NOT_FOUND = "ModelNotFound"
    MODEL_INVALID = "ModelInvalid"
    MODEL_UNSUPPORTED = "ModelUnsupported"
    WEIGHTS_CORRUPT = "WeightsCorrupt"
    SOURCE_UNREACHABLE = "SourceUnreachable"
    SOURCE_FORBIDDEN = "SourceForbidden"
    DISK_FULL = "DiskFull"
    OUT_OF_MEMORY_WEIGHTS = "OutOfMemoryWeights"
    OUT_OF_MEMORY_KV_CACHE = "OutOfMemoryKVCache"
    ACCELERATOR_ERROR = "AcceleratorError"
    ADAPTER_INVALID = "AdapterInvalid"
    PORT_IN_USE = "PortInUse"
    ENGINE_DIED = "EngineDied"
    INTERNAL_ERROR = "InternalError"


@dataclass(frozen=True)
class FailureReport:
    """What went wrong, in words that a person can act on.

    `message` names the field, the bound and the value; `remedy` says what to change; `detail` holds what a
    program may want (sizes, paths, a traceback's last lines).
    """

    cause: Cause
    message: str
    remedy: str = ""
    detail: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Encode within the kubelet's limit: the detail goes first, then message and remedy are cut."""
        text = _encode(asdict(self))
        length = TERMINATION_MESSAGE_LIMIT
        while len(text.encode()) > TERMINATION_MESSAGE_LIMIT:
            short = {"detail": {}, "message": self.message[:length], "remedy": self.remedy[: length // 4]}
            text = _encode(asdict(self) | short)
            length //= 2
        return text

    @classmethod
    def from_json(cls, text: str) -> "FailureReport | None":
        """Read a termination message back; None when it is not one of ours (another program's last words)."""
        try:
            data = json.loads(text)
            return cls(
                Cause(data["cause"]), str(data["message"]), str(data.get("remedy", "")), data.get("detail") or {}
            )
        except (ValueError, KeyError, TypeError):
            return None


def _encode(report: dict[str, Any]) -> str:
    return json.dumps(report, ensure_ascii=False, default=str)


class KvasirError(Exception):
    """An error whose cause, message and remedy are meant for the user. Raised anywhere, reported once at the top."""

    def __init__(self, cause: Cause, message: str, remedy: str = "", **detail: Any) -> None:
        super().__init__(message)
        self.report = FailureReport(cause, message, remedy, detail)


def write_termination_message(report: FailureReport, path: str | None = None) -> bool:
    """Leave `report` where the kubelet looks; see `write_termination_text`."""
    return write_termination_text(report.to_json(), path)


def write_termination_text(text: str, path: str | None = None) -> bool:
    """Leave `text` where the kubelet looks (`path`, `$KVASIR_TERMINATION_LOG` or /dev/termination-log).

    Outside a pod that file does not exist, and is not made: returns whether anything was written.
    """
    target = Path(path or os.environ.get("KVASIR_TERMINATION_LOG") or DEFAULT_TERMINATION_LOG)
    try:
        if path is None and "KVASIR_TERMINATION_LOG" not in os.environ and not target.exists():
            return False
        target.write_text(text, encoding="utf-8")
    except OSError:
        return False
    return True
