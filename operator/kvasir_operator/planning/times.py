"""Times as Kubernetes writes them."""

from datetime import datetime


def read_time(text: str | None) -> datetime | None:
    """Read `2026-03-01T12:00:00Z`, with or without fractions; raises ValueError for what is no time."""
    return datetime.fromisoformat(text) if text else None
