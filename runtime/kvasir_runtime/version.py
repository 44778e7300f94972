"""The version of the installed distribution."""

from functools import cache
from importlib import metadata


@cache
def version() -> str:
    """`0.1.0`; `unknown` when run from sources that were never installed."""
    try:
        return metadata.version("kvasir")
    except metadata.PackageNotFoundError:
        return "unknown"
