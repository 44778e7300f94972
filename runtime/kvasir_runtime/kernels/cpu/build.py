"""Compiles the sources in `cpp`: `python -m kvasir_runtime.kernels.cpu.build [FOLDER]`.

An image runs this once, so that no compiler is needed in it later. Outside images the first start compiles into the
user's cache. A library's name holds a digest of its source and flags: a stale one is never loaded.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

SOURCES: Final = Path(__file__).with_name("cpp")
INSTALL_FOLDER: Final = Path(sys.prefix) / "lib" / "kvasir"
"""Where an image has them: beside the interpreter's own libraries."""

_FLAGS: Final = ("-O3", "-std=c++20", "-fopenmp", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi")

VARIANTS: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "x86_64": {
        "avx512bf16": ("-march=x86-64-v4", "-mprefer-vector-width=512", "-mavx512bf16", "-mavx512vnni"),
        "avx512": ("-march=x86-64-v4", "-mprefer-vector-width=512"),
        "avx2": ("-march=x86-64-v3",),
    },
    "aarch64": {"neon": ()},
}
"""Compiler flags by machine and instruction set, best first."""


def library_name(variant: str, flags: tuple[str, ...]) -> str:
    digest = hashlib.blake2b(" ".join((*_FLAGS, *flags)).encode(), digest_size=6)
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.read_bytes())
    return f"kvasir_cpu-{variant}-{digest.hexdigest()}.so"


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvasir" / "kernels"


def compiler() -> str | None:
    """The C++ compiler: `$CXX`, g++ or clang++; None when there is none."""
    return next(
        (path for name in (os.environ.get("CXX"), "g++", "clang++") if name and (path := shutil.which(name))), None
    )


def build(variant: str, folder: Path) -> Path:
    """Compile one variant into `folder`; raises OSError or CalledProcessError (with the compiler's words) on failure.

    The library is linked to no OpenMP runtime: it takes the one that torch has loaded, so that both share threads.
    """
    flags = VARIANTS[platform.machine()][variant]
    found = compiler()
    if found is None:
        msg = "no C++ compiler: install g++ or set CXX"
        raise FileNotFoundError(msg)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / library_name(variant, flags)
    with tempfile.TemporaryDirectory(dir=folder, prefix="building-") as unfinished:
        objects = _compile(found, flags, Path(unfinished))
        _run(found, "-shared", *objects, "-o", f"{unfinished}/library.so")
        Path(unfinished, "library.so").replace(target)  # in one step: another process may be loading it
    return target


def _compile(compiler_path: str, flags: tuple[str, ...], folder: Path) -> list[str]:
    """All sources at the same time, each into an object file in `folder`."""
    sources = sorted(SOURCES.glob("*.cpp"))
    objects = [str(folder / f"{source.stem}.o") for source in sources]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        runs = [
            pool.submit(_run, compiler_path, *_FLAGS, *flags, "-c", str(source), "-o", target)
            for source, target in zip(sources, objects, strict=True)
        ]
        for run in runs:
            run.result()
    return objects


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)


def main(argv: list[str]) -> int:
    """Compile all variants for this kind of machine into the given folder, or beside the interpreter's libraries."""
    folder = Path(argv[0]) if argv else INSTALL_FOLDER
    for variant in VARIANTS.get(platform.machine(), {}):
        try:
            print(build(variant, folder))
        except (OSError, subprocess.SubprocessError) as error:
            print(f"{variant}: {getattr(error, 'stderr', None) or error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
