"""The one error that the program shows without a traceback."""


class BenchmarkError(Exception):
    """Something a person can act on: a failed installation, a peer that did not run, a bad option."""
