"""Bearer tokens of both ports: several, from a file that is read again when it changes, compared in constant time."""

import hashlib
import hmac
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from kvasir_runtime.contract.failures import Cause, KvasirError

RECHECK_INTERVAL_S: Final = 1.0
"""How often a file is looked at; a Secret's mounted file changes by a swapped link, which shows in its inode."""

logger = logging.getLogger("kvasir.server")


class BearerTokens:
    """The tokens that open a door. Without any (`required` False) the door stands open."""

    def __init__(
        self,
        fixed: Iterable[str] = (),
        file: str | None = None,
        flag: str = "--api-key-file",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the file; raises KvasirError(InvalidArguments) when it cannot be read or holds no token."""
        self._fixed = {_digest(token) for token in fixed}
        self._file = Path(file) if file else None
        self._clock = clock
        self._checked_at = clock()
        self._version: tuple[int, int, int] | None = None
        self._from_file: set[bytes] = set()
        if self._file is not None:
            try:
                self._load(self._file)
            except (OSError, ValueError) as error:
                msg = f"cannot use {self._file} ({flag}): {error}"
                raise KvasirError(Cause.INVALID_ARGUMENTS, msg, "put one token on each line of the file") from None

    @property
    def required(self) -> bool:
        return bool(self._fixed) or self._file is not None

    def accepts(self, authorization: str | None) -> bool:
        """Whether the value of an Authorization header opens the door."""
        return self.identify(authorization) is not None

    def identify(self, authorization: str | None) -> bytes | None:
        """The digest of the token in an Authorization header, which tells keys apart; None: it opens no door."""
        scheme, _, token = (authorization or "").partition(" ")
        self._reload_if_changed()
        presented = _digest(token.strip())
        # All are compared, and by digest, so that the time tells neither which matched nor how far.
        matches = [hmac.compare_digest(presented, known) for known in self._fixed | self._from_file]
        return presented if scheme.lower() == "bearer" and any(matches) else None

    def _reload_if_changed(self) -> None:
        now = self._clock()
        if self._file is None or now - self._checked_at < RECHECK_INTERVAL_S:
            return
        self._checked_at = now
        try:
            if _version(self._file) != self._version:
                self._load(self._file)
                logger.info("read tokens again", extra={"file": str(self._file), "tokens": len(self._from_file)})
        except (OSError, ValueError) as error:
            logger.warning("kept the old tokens: %s", error, extra={"file": str(self._file)})

    def _load(self, file: Path) -> None:
        version = _version(file)
        tokens = {line.strip() for line in file.read_text(encoding="utf-8").splitlines()} - {""}
        if not tokens:
            raise ValueError("it holds no token")
        self._from_file, self._version = {_digest(token) for token in tokens}, version


def _version(file: Path) -> tuple[int, int, int]:
    stat = file.stat()
    return stat.st_mtime_ns, stat.st_ino, stat.st_size


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
