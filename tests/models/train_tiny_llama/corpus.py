"""Text: the standard library's docstrings, in one fixed order.

What varies: another Python version has other docstrings, so it gives another corpus and another model. The same
version gives the same corpus on every machine: files are read in sorted order, nothing is imported to find them, and
the docstrings of C types come from a fixed list of built-in modules.
"""

import ast
import functools
import hashlib
import importlib
import inspect
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

EXCLUDED_FOLDERS = frozenset(
    (
        *("site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"),
        *("lib2to3", "turtledemo", "distutils", "encodings"),
    )
)
C_MODULES = (
    *("builtins", "math", "cmath", "itertools", "functools", "collections", "operator", "time", "datetime", "sys"),
    *("_io", "_struct", "_random", "_bisect", "_heapq", "_json", "_csv", "array", "zlib", "binascii", "select"),
    *("_socket", "_thread", "gc", "marshal", "atexit", "errno", "signal", "posix", "unicodedata"),
)
PUBLIC_NAMES = {"_struct": "struct", "_random": "random", "_bisect": "bisect", "_heapq": "heapq", "_json": "json"} | {
    "_csv": "csv", "_socket": "socket", "_io": "io", "_thread": "threading", "posix": "os", "posixpath": "os.path"
}  # fmt: skip
HELD_OUT_EVERY = 50
SHORTEST_DOCUMENT = 24  # characters


@dataclass(frozen=True)
class Entry:
    """A documented name: `os.path.join` and its whole docstring."""

    name: str
    doc: str

    @property
    def held_out(self) -> bool:
        """Whether training never sees this text; decided by the text's own hash, so it survives reordering."""
        return int.from_bytes(hashlib.sha256(self.doc.encode()).digest()[:4]) % HELD_OUT_EVERY == 0


def standard_library() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


@functools.cache
def docstrings() -> tuple[Entry, ...]:
    """Every documented name of the standard library, sources first, then C types; each text once."""
    unique: dict[str, Entry] = {}
    for entry in (*source_entries(standard_library()), *c_entries()):
        if len(entry.doc) >= SHORTEST_DOCUMENT:
            unique.setdefault(entry.doc, entry)
    return tuple(unique.values())


def source_entries(root: Path) -> Iterator[Entry]:
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if EXCLUDED_FOLDERS.isdisjoint(parts):
            module = ".".join(part for part in parts if part != "__init__")
            yield from module_entries(ast.parse(path.read_bytes()), PUBLIC_NAMES.get(module, module))


def module_entries(node: ast.AST, name: str) -> Iterator[Entry]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        doc = ast.get_docstring(node)
        if doc:
            yield Entry(name, clean(doc))
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from module_entries(child, f"{name}.{child.name}")


def c_entries() -> Iterator[Entry]:
    """Docstrings of the built-in modules, their functions, types and the types' methods."""
    for module_name in C_MODULES:
        module = importlib.import_module(module_name)
        prefix = "" if module_name == "builtins" else PUBLIC_NAMES.get(module_name, module_name) + "."
        for name, member in sorted(vars(module).items()):
            if name.startswith("_") or not (callable(member) or inspect.isclass(member)):
                continue
            yield from described(prefix + name, member)
            if inspect.isclass(member):
                for attribute, method in sorted(vars(member).items()):
                    yield from described(f"{prefix}{name}.{attribute}", method)


def described(name: str, member: object) -> Iterator[Entry]:
    doc = getattr(member, "__doc__", None)
    if isinstance(doc, str) and doc and not name.rpartition(".")[2].startswith("_"):
        yield Entry(name, clean(inspect.cleandoc(doc)))


def topics() -> list[str]:
    """The language reference that `help()` shows, as plain text."""
    texts: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    return [clean(texts[key]) for key in sorted(texts)]


def licence() -> str:
    """The licence text that `license()` prints.

    Raises FileNotFoundError on an installation that ships without it (Debian keeps it in its own documentation).
    """
    return clean((standard_library() / "LICENSE.txt").read_text(encoding="utf-8"))


def clean(text: str) -> str:
    """Trailing blanks and runs of empty lines carry nothing; rulers and tables cost tokens."""
    lines = (line.rstrip() for line in text.expandtabs().splitlines())
    kept = (line for line in lines if not re.fullmatch(r"\s*[-=*~#+|.]{3,}[-=*~#+|.\s]*", line))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()


def first_paragraph(doc: str, longest: int = 320) -> str | None:
    """The summary of a docstring as one line of prose, or None when it holds code, a signature or too much."""
    paragraphs = [" ".join(part.split()) for part in doc.split("\n\n")]
    if paragraphs and re.match(r"[\w.]+\(.*\)( ->.*)?$", paragraphs[0]):
        paragraphs = paragraphs[1:]
    summary = re.sub(r"^[\w.]+\([^)]*\) (->|--) [\w.]*\s*", "", paragraphs[0]) if paragraphs else ""
    plain = 20 <= len(summary) <= longest and ">>>" not in summary and summary[-1] in ".!"
    return summary if plain and summary[0].isupper() else None
