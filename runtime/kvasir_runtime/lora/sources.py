"""Where adapters may come from: folders below allowed roots, and downloads of allowed schemes. Torch-free.

A local folder is used where it lies; each download goes to a folder of its own below the cache, so that a new version
never overwrites one in use.
"""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Final

from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.fetch.cli import read_secrets
from kvasir_runtime.fetch.fetcher import Request, fetch
from kvasir_runtime.fetch.progress import Reporter
from kvasir_runtime.fetch.retry import RetryPolicy, Stopped
from kvasir_runtime.fetch.source import Access
from kvasir_runtime.fetch.uri import FileAddress, parse_uri, without_credentials
from kvasir_runtime.lora.checkpoint import CONFIG, WEIGHTS
from kvasir_runtime.lora.config import invalid

LARGEST_DOWNLOAD: Final = 64 << 30
"""Bytes; rank 256 on a model of 400 billion parameters takes less."""

ATTEMPTS: Final = 4
"""Tries in a row without a byte: about ten seconds, after which whoever asked may ask again."""


@dataclass(frozen=True)
class AdapterSources:
    """`roots` may hold local adapters; from `schemes` (s3, hf, https) others come; keys are in `environment`.

    An adapter may name a folder below `secrets` instead, whose files take precedence.
    """

    roots: tuple[Path, ...] = ()
    schemes: frozenset[str] = frozenset()
    cache: Path | None = None
    secrets: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    def obtain(self, uri: str, stop: Event, secret: str = "") -> Path:
        """The adapter's folder, downloaded if need be; blocks. Raises KvasirError (SourceForbidden and fetch's own).

        `stop` ends a download from another thread.
        """
        address = parse_uri(f"file://{uri}" if uri.startswith("/") else uri)
        if isinstance(address, FileAddress):
            return self._local(address.path)
        scheme = uri.partition("://")[0]
        if scheme not in self.schemes:
            raise _forbidden(
                f"adapters may not be loaded from {scheme}:// ({without_credentials(uri)})",
                f"start with --lora-schemes {','.join(sorted({*self.schemes, scheme}))}",
            )
        return self._download(uri, stop, self._credentials(secret))

    def discard(self, folder: Path) -> None:
        """Remove a downloaded adapter; local ones stay."""
        if self.cache is not None and folder.parent == self.cache:
            shutil.rmtree(folder, ignore_errors=True)

    def _local(self, path: Path) -> Path:
        """Every link is followed before the roots are compared, so that neither `..` nor a link leads out of them."""
        folder = self._resolved(path)
        for name in (CONFIG, WEIGHTS):
            if (folder / name).exists():
                self._resolved(folder / name)
        return folder

    def _resolved(self, path: Path) -> Path:
        real = path.resolve()
        roots = [root.resolve() for root in self.roots]
        if not any(real.is_relative_to(root) for root in roots):
            allowed = ", ".join(map(str, self.roots)) or "none is set"
            raise _forbidden(
                f"{path} is outside of the folders that adapters may be loaded from ({allowed})",
                "put it there, or start with --lora-roots",
            )
        if not real.exists():
            raise invalid(f"No adapter found for {path}", "check the path and the volume's mount")
        return real

    def _credentials(self, secret: str) -> dict[str, str]:
        if not secret:
            return dict(self.environment)
        folder = self.secrets / secret if self.secrets is not None else None
        if folder is None or not folder.is_dir():
            problem = f"there are no credentials {secret!r} below --lora-secrets ({self.secrets or 'not set'})"
            raise _forbidden(problem, "create the Secret, or correct its name")
        return read_secrets(folder, self.environment)

    def _download(self, uri: str, stop: Event, credentials: Mapping[str, str]) -> Path:
        assert self.cache is not None
        self.cache.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=self.cache))
        request = Request(
            uri=uri,
            folder=folder,
            max_size=LARGEST_DOWNLOAD,
            access=Access(credentials),
            retry=RetryPolicy(attempts=ATTEMPTS, wait=stop.wait),
            stop=stop,
        )
        try:
            fetch(request, _Silent())
        except Stopped:
            self.discard(folder)
            raise invalid(f"the download of {without_credentials(uri)} was given up", "ask for it again") from None
        except KvasirError:
            self.discard(folder)
            raise
        return folder


def temporary_cache() -> Path:
    """A cache for as long as the process lives."""
    return Path(tempfile.mkdtemp(prefix="kvasir-adapters-"))


def _forbidden(message: str, remedy: str) -> KvasirError:
    return KvasirError(Cause.SOURCE_FORBIDDEN, message, remedy)


class _Silent(Reporter):
    """Downloads of adapters are reported by state, not by lines."""

    def start(self, files: int, total: int | None) -> None: ...
    def advance(self, count: int) -> None: ...
    def note(self, message: str) -> None: ...
    def finish(self) -> None: ...
