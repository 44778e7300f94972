"""Constraints compiled for one tokenizer by llguidance, and how far each sequence has come in its grammar.

Source: https://github.com/guidance-ai/llguidance: an Earley parser over a lexer of regular-expression derivatives, run
along a trie of the vocabulary. The library is imported with the first constraint, so that the engine starts, and runs
everything else, without it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kvasir_runtime.structured.constraint import MAX_CONSTRAINT_BYTES, Constraint

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer
    from llguidance._lib import JsonCompileOptions

_MAX_MESSAGE: Final = 400
_MAX_ITEMS: Final = 8000
"""States of the parser at a time: four for each optional property of an object. A mask of so many takes about 20 ms."""
_TOO_COMPLEX: Final = ("ParserTooComplex", "LexerTooComplex")


class GrammarError(ValueError):
    """A constraint that cannot be compiled; the message is meant for the client."""


class GrammarBusyError(GrammarError):
    """No fault of the constraint: too many others are being compiled."""


@dataclass(frozen=True)
class Matcher:
    """One sequence's place in its grammar. Not for several threads at once."""

    grammar: "Grammar"
    ll: "LLMatcher"

    def accept(self, token_ids: Sequence[int]) -> None:
        """Go on by these tokens; `error` tells when the grammar does not allow them."""
        self.ll.consume_tokens(list(token_ids))

    @property
    def complete(self) -> bool:
        """Whether the text may end here."""
        return self.ll.is_accepting()

    @property
    def error(self) -> str:
        """Why the grammar cannot go on: a token it does not allow, or a state beyond the library's limits."""
        return shorten(self.ll.get_error()) if self.ll.is_error() else ""


@dataclass(frozen=True)
class Grammar:
    """A compiled constraint; any number of sequences may follow it."""

    backend: "GrammarBackend"
    start: "LLMatcher"

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        return self.backend.eos_token_ids

    def matcher(self) -> Matcher:
        """A sequence's place before its first token."""
        return Matcher(self, self.start.deep_copy())


class GrammarBackend:
    """Compiles constraints for the tokenizer of one model. May be used by several threads."""

    def __init__(self, model: Path, vocab_size: int, eos_token_ids: Sequence[int], num_threads: int = 1) -> None:
        """Do nothing yet: what is needed is made with the first constraint."""
        self.eos_token_ids: Final = tuple(eos_token_ids)
        self._model = model
        self._vocab_size = vocab_size
        self._num_threads = num_threads

    def compile(self, constraint: Constraint) -> Grammar:
        """Raises GrammarError for what is malformed or not supported."""
        size = len(constraint.text.encode())
        if size > MAX_CONSTRAINT_BYTES:
            raise GrammarError(f"must be at most {MAX_CONSTRAINT_BYTES} bytes long, got {size}")
        if not self.eos_token_ids:
            raise GrammarError("cannot be honoured: this model names no token that ends a text")
        module = _library()
        source = _source(constraint)
        start = module.LLMatcher(self._tokenizer, source, log_level=0, limits=self._limits)
        if start.is_error():
            raise GrammarError(f"cannot be compiled: {shorten(start.get_error())}")
        probe = start.deep_copy()
        allowed = any(probe.compute_bitmask())  # this also does the lexer's first work
        if probe.stop_reason() in _TOO_COMPLEX:
            raise GrammarError(f"is too complex: {shorten(probe.get_error())}")
        if not allowed or probe.is_error():
            raise GrammarError("cannot be satisfied: no text matches it")
        return Grammar(self, start)

    def fill_masks(self, matchers: Sequence[Matcher], address: int) -> None:
        """Write a row for each matcher to memory: a bit for each token, set where it may come next, token 0 lowest.

        A row has `mask_bytes` of the vocabulary's size; matchers are of this backend's grammars.
        """
        width = mask_bytes(self._vocab_size)
        if len(matchers) == 1 or self._num_threads == 1:
            for row, matcher in enumerate(matchers):
                matcher.ll.unsafe_compute_mask_ptr(address + row * width, width)
            return
        work = [(matcher.ll, row) for row, matcher in enumerate(matchers)]
        self._executor.unsafe_compute_mask_ptr(work, address, width, len(matchers))

    @cached_property
    def _tokenizer(self) -> "LLTokenizer":
        text = (self._model / "tokenizer.json").read_text(encoding="utf-8")
        try:
            made: LLTokenizer = _library().LLTokenizer(
                text, n_vocab=self._vocab_size, eos_token=list(self.eos_token_ids)
            )
        except ValueError as error:
            raise GrammarError(f"cannot be honoured with this model's tokenizer: {shorten(str(error))}") from None
        return made

    @cached_property
    def _executor(self) -> "LLExecutor":
        made: LLExecutor = _library().LLExecutor(self._num_threads)
        return made

    @cached_property
    def _limits(self) -> "LLParserLimits":
        made: LLParserLimits = _library().LLParserLimits(max_items_in_row=_MAX_ITEMS, verbose_errors=False)
        return made


def mask_bytes(vocab_size: int) -> int:
    """Bytes of a row of `fill_masks`: whole words of 32 bits."""
    return -(-vocab_size // 32) * 4


def shorten(message: str) -> str:
    """A message of the library on one line, without its hints for developers."""
    text = " ".join(message.replace("<non-verbose/>", "").split())
    return text if len(text) <= _MAX_MESSAGE else f"{text[: _MAX_MESSAGE - 1]}…"


def _source(constraint: Constraint) -> str:
    """The constraint in the library's own notation."""
    matcher: type[LLMatcher] = _library().LLMatcher
    match constraint.kind:
        case "json_schema":
            return matcher.grammar_from_json_schema(_schema_text(constraint), overrides=_json_options(constraint))
        case "regex":
            return matcher.grammar_from_regex(constraint.text)
        case "choice":
            options = " | ".join(json.dumps(option) for option in json.loads(constraint.text))
            return matcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {options}")
        case "grammar":
            return matcher.grammar_from_lark(_lark(constraint.text))


def _schema_text(constraint: Constraint) -> str:
    try:
        schema = json.loads(constraint.text)
    except (ValueError, RecursionError) as error:
        raise GrammarError(f"must be a JSON schema: {error}") from None
    if not isinstance(schema, dict | bool):
        raise GrammarError(f"must be a JSON schema (an object), got {type(schema).__name__}")
    if schema is False:
        raise GrammarError("cannot be satisfied: the schema false allows nothing")
    return constraint.text if isinstance(schema, dict) else "{}"


def _json_options(constraint: Constraint) -> "JsonCompileOptions":
    return json_options(constraint.whitespace, lenient=constraint.lenient)


def json_options(whitespace: str, *, lenient: bool) -> "JsonCompileOptions":
    """The library's options for JSON; a schema may also carry them, as `x-guidance`."""
    options: JsonCompileOptions = {"lenient": lenient, "coerce_one_of": lenient}
    if whitespace:
        options["whitespace_pattern"] = whitespace
    else:
        options["whitespace_flexible"] = False
    return options


def _lark(text: str) -> str:
    from llguidance import gbnf_to_lark  # noqa: PLC0415 - see the module's docstring

    try:
        return gbnf_to_lark.any_to_lark(text)
    except Exception as error:  # noqa: BLE001 - the converter lets out whatever its parser trips over
        raise GrammarError(f"is neither Lark nor GBNF: {shorten(str(error))}") from None


def _library() -> Any:
    try:
        import llguidance  # noqa: PLC0415 - see the module's docstring
    except ImportError as error:
        raise GrammarError(f"cannot be honoured: structured output needs the package llguidance ({error})") from None
    return llguidance
