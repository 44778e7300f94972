"""Libraries for structured output side by side: `python -m benchmarks.structured_output`.

Run from `runtime/`, with the libraries installed that are to be compared. Each runs in a process of its own, on one
thread. The vocabulary is made from Python's own library: the 256 bytes, then its most frequent pieces of words.
A document is cut into the longest tokens there are; a step is one mask and one token. Prints Markdown.
"""

import argparse
import json
import re
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from itertools import islice
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final, Protocol

STOP: Final = 256
"""Id of the token that ends a text, behind the bytes."""

MAX_BYTES: Final = 64
"""Longest token: 16 characters."""

PERSON: Final = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "mail": {"type": "string", "pattern": "^[a-z.]+@[a-z]+\\.[a-z]{2,3}$"},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}},
        "friends": {"type": "array", "items": {"$ref": "#/$defs/friend"}},
    },
    "required": ["name", "age", "mail", "tags", "friends"],
    "additionalProperties": False,
    "$defs": {
        "friend": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "since": {"type": "number"}},
            "required": ["name", "since"],
            "additionalProperties": False,
        }
    },
}
PERSON_TEXT: Final = json.dumps(
    {
        "name": "Ada of the \u00dcberland, countess",
        "age": 36,
        "mail": "ada@engine.org",
        "tags": ["red", "blue"],
        "friends": [{"name": f"Friend number {number}", "since": 1800.5 + number} for number in range(8)],
    },
    ensure_ascii=False,
)
WIDE: Final = {
    "type": "object",
    "properties": {
        f"field_{number}": {"type": ["string", "null"], "maxLength": 40} if number % 2 else {"type": "boolean"}
        for number in range(200)
    },
    "required": [f"field_{number}" for number in range(200)],
    "additionalProperties": False,
}
WIDE_TEXT: Final = json.dumps({f"field_{n}": f"some value {n}" if n % 2 else n % 4 == 0 for n in range(200)})
DATE_REGEX: Final = r"([12][0-9]{3}-[01][0-9]-[0-3][0-9](T[0-2][0-9]:[0-5][0-9]Z)?, ){4}[a-zA-Z ]{10,80}"
DATE_TEXT: Final = "2024-01-31T10:20Z, " * 3 + "1999-12-01, some words at the end of it all"


@dataclass(frozen=True)
class Case:
    name: str
    kind: str
    source: str
    text: str


CASES: Final = (
    Case("schema with references", "json", json.dumps(PERSON), PERSON_TEXT),
    Case("schema of 200 fields", "json", json.dumps(WIDE), WIDE_TEXT),
    Case("any object", "json", '{"type": "object"}', PERSON_TEXT),
    Case("regular expression", "regex", DATE_REGEX, DATE_TEXT),
)


class Matcher(Protocol):
    def mask(self) -> None: ...
    def accept(self, token_id: int) -> bool: ...


@dataclass(frozen=True)
class Library:
    """How one library is used: `load` imports it; `make` builds its tokenizer and returns what compiles a case."""

    load: Callable[[], object]
    make: Callable[[list[bytes]], Callable[[Case], Matcher]]


def llguidance_compiler(vocabulary: list[bytes]) -> Callable[[Case], Matcher]:
    import llguidance  # noqa: PLC0415 - each library is loaded in its own process
    import numpy as np  # noqa: PLC0415
    from llguidance.numpy import fill_next_token_bitmask  # noqa: PLC0415

    ids = ids_of(vocabulary)

    class Source:
        eos_token_id, bos_token_id, special_token_ids, tokens = STOP, None, (STOP,), vocabulary

        def __call__(self, text: str | bytes) -> list[int]:
            return cut(text.encode() if isinstance(text, str) else text, ids)

    tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Source()), n_vocab=len(vocabulary))
    bits = np.zeros((1, -(-len(vocabulary) // 32)), dtype=np.int32)

    @dataclass
    class Follower:
        inner: llguidance.LLMatcher

        def mask(self) -> None:
            fill_next_token_bitmask(self.inner, bits)

        def accept(self, token_id: int) -> bool:
            return self.inner.consume_token(token_id)

    def compile_case(case: Case) -> Matcher:
        of_json, of_regex = llguidance.LLMatcher.grammar_from_json_schema, llguidance.LLMatcher.grammar_from_regex
        grammar = of_json(case.source) if case.kind == "json" else of_regex(case.source)
        return Follower(llguidance.LLMatcher(tokenizer, grammar))

    return compile_case


def xgrammar_compiler(vocabulary: list[bytes]) -> Callable[[Case], Matcher]:
    import xgrammar  # noqa: PLC0415

    info = xgrammar.TokenizerInfo(vocabulary, xgrammar.VocabType.RAW, stop_token_ids=[STOP])
    compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
    bits = xgrammar.allocate_token_bitmask(1, info.vocab_size)

    @dataclass
    class Follower:
        inner: Any

        def mask(self) -> None:
            self.inner.fill_next_token_bitmask(bits)

        def accept(self, token_id: int) -> bool:
            return bool(self.inner.accept_token(token_id))

    def compile_case(case: Case) -> Matcher:
        make = compiler.compile_json_schema if case.kind == "json" else compiler.compile_regex
        return Follower(xgrammar.GrammarMatcher(make(case.source)))

    return compile_case


def _load(name: str) -> Callable[[], object]:
    return lambda: __import__(name)


LIBRARIES: Final = {
    "llguidance": Library(_load("llguidance"), llguidance_compiler),
    "xgrammar": Library(_load("xgrammar"), xgrammar_compiler),
}


def make_vocabulary(size: int) -> list[bytes]:
    """Bytes, the end, then pieces of words by how often they stand in Python's library; always the same."""
    pieces: Counter[str] = Counter()
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" not in path.parts:
            words = re.findall(r" ?[^\W\d_]+| ?\d{1,3}| ?[^\w\s]{1,4}|\s+", path.read_text(errors="ignore"))
            for word, count in Counter(words).items():
                for length in range(2, min(len(word), 16) + 1):
                    pieces[word[:length]] += count
    frequent = (piece.encode() for piece, _ in sorted(pieces.items(), key=lambda item: (-item[1], item[0])))
    return [
        *(bytes([byte]) for byte in range(256)),
        b"<|end|>",
        *islice((p for p in frequent if len(p) > 1), size - 257),
    ]


def cut(data: bytes, ids: dict[bytes, int]) -> list[int]:
    """Greedy tokens: the longest that fits, always."""
    tokens, start = [], 0
    while start < len(data):
        end = next(end for end in range(min(len(data), start + MAX_BYTES), start, -1) if data[start:end] in ids)
        tokens.append(ids[data[start:end]])
        start = end
    return tokens


def ids_of(vocabulary: Sequence[bytes]) -> dict[bytes, int]:
    """Where in the vocabulary each token but the end stands."""
    return {token: number for number, token in enumerate(vocabulary) if number != STOP}


@dataclass(frozen=True)
class Figures:
    """Milliseconds to compile, microseconds a mask and a token."""

    case: str
    compile_ms: float
    steps: int
    mask_median_us: float
    mask_p99_us: float
    mask_max_us: float
    accept_median_us: float


def measure(case: Case, compile_case: Callable[[Case], Matcher], ids: dict[bytes, int], rounds: int) -> Figures:
    """Compile and follow a document anew each round, as requests with a new grammar do."""
    compiles, masks, accepts = [], [], []
    tokens = cut(case.text.encode(), ids)
    for _ in range(rounds):
        start = time.perf_counter()
        matcher = compile_case(case)
        compiles.append(time.perf_counter() - start)
        for token in tokens:
            begun = time.perf_counter()
            matcher.mask()
            masked = time.perf_counter()
            if not matcher.accept(token):
                sys.exit(f"{case.name}: token {token} was not accepted")
            accepts.append(time.perf_counter() - masked)
            masks.append(masked - begun)
    return Figures(
        case=case.name,
        compile_ms=median(compiles) * 1e3,
        steps=len(tokens),
        mask_median_us=median(masks) * 1e6,
        mask_p99_us=quantiles(masks, n=100)[98] * 1e6,
        mask_max_us=max(masks) * 1e6,
        accept_median_us=median(accepts) * 1e6,
    )


def run_one(name: str, vocabulary_size: int, rounds: int) -> dict[str, Any]:
    """All figures of one library; the runtime has torch loaded before it needs one."""
    import torch  # noqa: F401, PLC0415

    start = time.perf_counter()
    LIBRARIES[name].load()
    import_s = time.perf_counter() - start
    vocabulary = make_vocabulary(vocabulary_size)
    ids = ids_of(vocabulary)
    start = time.perf_counter()
    compile_case = LIBRARIES[name].make(vocabulary)
    tokenizer_s = time.perf_counter() - start
    figures = [asdict(measure(case, compile_case, ids, rounds)) for case in CASES]
    return {
        "version": metadata.version(name),
        "import_s": import_s,
        "tokenizer_s": tokenizer_s,
        "megabytes": sum(map(size_of, closure(name))) / 1e6,
        "brings": sorted(set(closure(name)) - {name}),
        "figures": figures,
    }


def closure(name: str) -> set[str]:
    """The distribution and those that it needs and the runtime does not."""
    wanted, todo = set(), [name]
    present = set(_requirements("kvasir", "runtime"))
    while todo:
        current = todo.pop()
        if current not in wanted and (current == name or current not in present):
            wanted.add(current)
            todo += _requirements(current)
    return wanted


def _requirements(name: str, extra: str | None = None) -> Iterator[str]:
    todo = [name]
    seen: set[str] = set()
    while todo:
        current = todo.pop()
        try:
            lines = metadata.requires(current) or []
        except metadata.PackageNotFoundError:
            continue
        for line in lines:
            needed = re.match(r"[\w.-]+", line)
            wanted = "extra ==" not in line or (
                current == name and extra is not None and f'"{extra}"' in line.replace("'", '"')
            )
            if needed and wanted and (found := needed[0].lower().replace("_", "-")) not in seen | set(LIBRARIES):
                seen.add(found)
                todo.append(found)
                yield found


def size_of(name: str) -> int:
    """Bytes on disk of a distribution, without compiled Python."""
    try:
        files = metadata.files(name) or []
    except metadata.PackageNotFoundError:
        return 0
    paths = [Path(str(file.locate())) for file in files if file.suffix != ".pyc"]
    return sum(path.stat().st_size for path in paths if path.is_file())


def render(results: dict[str, dict[str, Any]], vocabulary_size: int) -> str:
    """Two tables in Markdown."""
    lines = [f"Vocabulary of {vocabulary_size:,} tokens, one thread.", ""]
    lines += ["| library | import after torch, s | tokenizer, s | on disk, MB | brings |", "|---|---|---|---|---|"]
    for name, result in results.items():
        brings = ", ".join(result["brings"]) or "nothing"
        figures = f"{result['import_s']:.2f} | {result['tokenizer_s']:.2f} | {result['megabytes']:.0f}"
        lines.append(f"| {name} {result['version']} | {figures} | {brings} |")
    head = "constraint | library | compile, ms | steps | mask, µs: median | 99 % | max | token, µs"
    lines += ["", f"| {head} |", "|---|---|---|---|---|---|---|---|"]
    for number, case in enumerate(CASES):
        for name, result in results.items():
            f = Figures(**result["figures"][number])
            lines.append(
                f"| {case.name} | {name} | {f.compile_ms:.1f} | {f.steps} | {f.mask_median_us:.0f} "
                f"| {f.mask_p99_us:.0f} | {f.mask_max_us:.0f} | {f.accept_median_us:.1f} |"
            )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--libraries", default=",".join(LIBRARIES), help="separated by commas (default: %(default)s)")
    parser.add_argument("--vocabulary", type=int, default=128_000, help="tokens (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each case is compiled and followed")
    parser.add_argument("--one", choices=LIBRARIES, help="measure this library in this process and print JSON")
    options = parser.parse_args(argv)
    if options.one:
        print(json.dumps(run_one(options.one, options.vocabulary, options.rounds)))
        return
    results = {}
    for name in options.libraries.split(","):
        command = [sys.executable, "-m", "benchmarks.structured_output", "--one", name]
        command += ["--vocabulary", str(options.vocabulary), "--rounds", str(options.rounds)]
        results[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(render(results, options.vocabulary))


if __name__ == "__main__":
    main()
