"""The one error that the command line shows without a traceback."""


class ClusterError(Exception):
    """Something a person can act on: the message says what is wrong and what to do.

    Attributes:
        exit_code: the exit status of the command that fails with this error.
    """

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class UsageError(ClusterError):
    """The machine or the command line does not allow what was asked (exit status 2)."""

    def __init__(self, message: str) -> None:
        super().__init__(message, exit_code=2)
