"""Whether an object in the cluster still is what it should be."""

from typing import Any


def covers(found: Any, wanted: Any) -> bool:
    """Whether `found` holds everything of `wanted`; what the API server or others added does not matter.

    Lists must agree item by item, since their order means something. The API server leaves out what is false or empty.

    >>> covers({"a": 1, "b": [{"c": 2, "d": 3}]}, {"b": [{"c": 2}], "e": False}), covers({"a": 1}, {"a": 2})
    (True, False)
    """
    if found is None:
        return not wanted
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(covers(found.get(key), wanted[key]) for key in wanted)
    if isinstance(wanted, list):
        same_length = isinstance(found, list) and len(found) == len(wanted)
        return same_length and all(map(covers, found, wanted))
    return bool(found == wanted)
