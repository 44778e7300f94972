"""Logging of every process of the data plane: one JSON object a line, or lines for people on a terminal.

Fields passed as `extra` become fields of the JSON object. The id of the request at hand is added by itself. Prompts and
completions are never logged.
"""

import json
import logging
import sys
import time
from contextvars import ContextVar
from typing import Final

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The request that the running task works for."""

_STANDARD_FIELDS: Final = {*vars(logging.makeLogRecord({})), "message", "asctime", "color_message", "taskName"}
_LEVEL_COLOURS: Final = {"DEBUG": "2", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}


class _CurrentStderr(logging.Handler):
    """Writes to whatever `sys.stderr` is now, so that a progress bar can lift lines above itself."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(f"{self.format(record)}\n")
            sys.stderr.flush()
        except Exception:  # noqa: BLE001 - as every handler: a broken log must not break the server
            self.handleError(record)


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {"time": _timestamp(record), "level": record.levelname.lower()}
        entry |= {"logger": record.name, "message": record.getMessage()} | _extra_fields(record)
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


class PrettyFormatter(logging.Formatter):
    def __init__(self, *, coloured: bool) -> None:
        super().__init__()
        self._coloured = coloured

    def format(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname:<7}"
        if self._coloured:
            level = f"\x1b[{_LEVEL_COLOURS.get(record.levelname, '0')}m{level}\x1b[0m"
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        extra = "".join(f"  {name}={value}" for name, value in _extra_fields(record).items())
        line = f"{clock} {level} {record.getMessage()}{extra}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def configure(level: str, style: str) -> None:
    """Send the log to standard error; `style` is json, pretty, or auto (pretty on a terminal)."""
    coloured = sys.stderr.isatty()
    pretty = style == "pretty" or (style == "auto" and coloured)
    handler = _CurrentStderr()
    handler.setFormatter(PrettyFormatter(coloured=coloured) if pretty else JsonFormatter())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    logging.captureWarnings(capture=True)
    for chatty in ("uvicorn.error", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _timestamp(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


def _extra_fields(record: logging.LogRecord) -> dict[str, object]:
    fields = {name: value for name, value in vars(record).items() if name not in _STANDARD_FIELDS}
    current = request_id.get()
    return {"request_id": current, **fields} if current else fields
