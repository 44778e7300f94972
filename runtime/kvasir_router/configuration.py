"""Where the picture of the replicas comes from: the operator's push, a file that is kept, or the last push again."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.contract.router_api import RouterConfig
from kvasir_runtime.edge.errors import ApiError

logger = logging.getLogger("kvasir.router")

Parse = Callable[[bytes], RouterConfig]


class Configuration:
    """Applies whichever came last. What is pushed is kept in `state_file`, for the time after a crash."""

    def __init__(
        self, apply: Callable[[RouterConfig], None], parse: Parse, file: str | None, state: str | None
    ) -> None:
        """`parse` raises ApiError for what is no configuration."""
        self._apply = apply
        self._parse = parse
        self._file = Path(file) if file else None
        self._state = Path(state) if state else None
        self._version: tuple[int, int, int] | None = None

    def start(self) -> None:
        """Read what there is; raises KvasirError when the given file cannot be used, not for the kept one."""
        if self._state is not None and self._state.exists():
            self._restore(self._state)
        if self._file is not None:
            try:
                self._load(self._file)
            except (OSError, ApiError) as error:
                msg = f"cannot use {self._file} (--endpoints-file): {error}"
                raise KvasirError(Cause.INVALID_ARGUMENTS, msg, "see PUT /admin/config for what it holds") from None

    def push(self, config: RouterConfig) -> None:
        """The operator's."""
        self._apply(config)
        if self._state is None:
            return
        try:
            draft = self._state.with_suffix(".new")
            draft.write_text(config.model_dump_json(), encoding="utf-8")
            draft.replace(self._state)
        except OSError as error:
            logger.warning("cannot keep the configuration: %s", error, extra={"file": str(self._state)})

    def look(self) -> None:
        """Read the file again if it has changed; one that cannot be used leaves all as it is."""
        if self._file is None:
            return
        try:
            if _version(self._file) != self._version:
                self._load(self._file)
                logger.info("read the configuration again", extra={"file": str(self._file)})
        except (OSError, ApiError) as error:
            logger.warning("kept the old configuration: %s", error, extra={"file": str(self._file)})

    def _load(self, file: Path) -> None:
        self._version = _version(file)  # first: what changes while it is read is read again
        self._apply(self._parse(file.read_bytes()))

    def _restore(self, file: Path) -> None:
        try:
            self._apply(self._parse(file.read_bytes()))
        except (OSError, ApiError) as error:
            logger.warning("the kept configuration cannot be used: %s", error, extra={"file": str(file)})


def _version(file: Path) -> tuple[int, int, int]:
    stat: os.stat_result = file.stat()
    return stat.st_mtime_ns, stat.st_ino, stat.st_size
