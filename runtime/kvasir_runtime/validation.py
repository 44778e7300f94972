"""Turn pydantic's errors into sentences that name the bound and the value."""

from typing import Any

_MAX_VALUE_LENGTH = 80


def explain(kind: str, message: str, value: Any) -> str:
    """Say what a value must be and what it was, from one pydantic error's `type`, `msg` and `input`.

    >>> explain("greater_than_equal", "Input should be greater than or equal to 1", 0)
    'must be greater than or equal to 1, got 0'
    """
    if kind == "missing":
        return "is required"
    if kind == "not_text":
        return message
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    if kind == "json_invalid":
        return f"is not valid JSON: {shorten(value)}"
    text = message.replace("Input should be", "must be", 1).replace("should have", "must have", 1)
    return f"{text[:1].lower()}{text[1:]}, got {shorten(value)}"


def shorten(value: Any) -> str:
    """Quote a value in an error, cut to a length that a log line bears."""
    text = repr(value)
    return text if len(text) <= _MAX_VALUE_LENGTH else f"{text[: _MAX_VALUE_LENGTH - 1]}…"
