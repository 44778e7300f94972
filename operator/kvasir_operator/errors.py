"""What can go wrong between the operator and the world. Raised at the network's edge, shown by whoever called."""

from typing import Final

CONFLICT: Final = 409
NOT_FOUND: Final = 404
GONE: Final = 410
PRECONDITION_FAILED: Final = 412
"""Also given to objects that are in the way: no repetition helps until somebody acts."""
TOO_MANY_REQUESTS: Final = 429
NAMESPACE_ENDS: Final = "NamespaceTerminating"
"""The reason given to whatever would be made in a namespace that is being deleted."""

_PASSING: Final = frozenset({0, 408, CONFLICT, TOO_MANY_REQUESTS, 500, 502, 503, 504})


class ApiError(Exception):
    """The API server refused a request, or did not answer it (`status` 0).

    `reason` is the machine-readable one of its Status object, such as AlreadyExists; `retry_after` is in seconds.
    """

    def __init__(self, status: int, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(message or reason)
        self.status = status
        self.reason = reason
        self.retry_after = retry_after

    @property
    def passing(self) -> bool:
        """Whether the same request may well succeed later, without anybody changing anything."""
        return self.status in _PASSING

    @property
    def not_found(self) -> bool:
        return self.status == NOT_FOUND

    @property
    def already_exists(self) -> bool:
        return self.status == CONFLICT and self.reason == "AlreadyExists"

    @property
    def namespace_ends(self) -> bool:
        """Whether the namespace is being deleted: nothing can be made in it, and nothing needs to be."""
        return self.reason == NAMESPACE_ENDS


class PodError(Exception):
    """A pod did not answer on its operator port, or refused; `status` is 0 where no answer came."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class LeadershipLostError(Exception):
    """This process is not, or no longer, the one that may act."""
