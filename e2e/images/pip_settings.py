"""The machine's pip configuration, carried into a build by mounts alone, so that no image remembers it.

Everything is mounted below /mnt, which is an empty folder of every base image: no mount point has to be made there.
"""

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

MOUNT = "/mnt"
CONFIG = f"{MOUNT}/pip.conf"
AUTHORITIES = f"{MOUNT}/ca.pem"
SINGLE = ("index-url", "cert", "trusted-host", "timeout", "proxy")
SEVERAL = ("find-links", "extra-index-url")


@dataclass(frozen=True)
class PipSettings:
    """What pip inside the build must know: the text of its configuration, and folders of this machine it reads."""

    config: str
    authorities: Path | None
    folders: tuple[Path, ...]  # folder i is mounted at /mnt/i


def effective(listing: str) -> dict[str, list[str]]:
    r"""Read what `pip config list` prints: `global.find-links='/wheels'`, and `:env:.find-links=…`, which wins.

    >>> effective("global.timeout='5'\n:env:.timeout='9'\nglobal.find-links='/a /b'")
    {'timeout': ['9'], 'find-links': ['/a', '/b']}
    """
    found: dict[str, list[str]] = {}
    lines = [line.partition("=") for line in listing.splitlines() if "=" in line]
    for key, _, value in sorted(lines, key=lambda line: line[0].startswith(":env:")):
        option = key.rpartition(".")[2]
        if option in SINGLE or option in SEVERAL:
            found[option] = str(ast.literal_eval(value)).split()
    return found


def settings_for_build(options: Mapping[str, list[str]]) -> PipSettings:
    """Rewrite every place on this machine's disk to where the build sees it."""
    folders: list[Path] = []
    lines = ["[global]"]
    authorities = Path(options["cert"][0]) if "cert" in options else None
    for option, values in options.items():
        seen = [AUTHORITIES] if option == "cert" else [_inside(value, folders) for value in values]
        lines.append(f"{option} = {' '.join(seen)}")
    return PipSettings("\n".join(lines) + "\n", authorities, tuple(folders))


def _inside(place: str, folders: list[Path]) -> str:
    path = place.removeprefix("file://")
    if not path.startswith("/"):
        return place
    folder, rest = _mounted(Path(path))
    if folder not in folders:
        folders.append(folder)
    return f"{'file://' if place.startswith('file://') else ''}{MOUNT}/{folders.index(folder)}{rest}"


def _mounted(path: Path) -> tuple[Path, str]:
    """A package index refers to files beside it (`../../files/…`), so its parent is what has to be seen."""
    return (path.parent, f"/{path.name}") if path.name == "simple" else (path, "")


def machine_settings() -> PipSettings:
    """The settings of the pip that belongs to this interpreter."""
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    )
    return settings_for_build(effective(listing.stdout))


@contextmanager
def mounts(settings: PipSettings) -> Iterator[list[str]]:
    """`SOURCE:TARGET:ro` volumes for a build, in the order in which they have to be mounted."""
    with TemporaryDirectory(prefix="kvasir-pip-") as made:
        root = Path(made)
        (root / "pip.conf").write_text(settings.config)
        if settings.authorities is not None:
            shutil.copyfile(settings.authorities, root / "ca.pem")
        for number in range(len(settings.folders)):
            (root / str(number)).mkdir()
        root.chmod(0o755)
        yield [f"{root}:{MOUNT}:ro", *(f"{folder}:{MOUNT}/{i}:ro" for i, folder in enumerate(settings.folders))]
