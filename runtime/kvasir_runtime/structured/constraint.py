"""What a request's output must look like: plain values, so that front end and engine can say it to each other."""

from dataclasses import dataclass, field
from typing import Final, Literal

Kind = Literal["json_schema", "regex", "choice", "grammar"]

MAX_CONSTRAINT_BYTES: Final = 128 * 1024
"""Longest text of a constraint. The worst schema found of this length compiles for 4 s, a sane one for 0.1 s."""


@dataclass(frozen=True)
class Constraint:
    """`text` is a JSON schema, a regular expression (syntax of Rust's `regex`), a JSON list of strings, or a grammar.

    Grammars are in Lark's notation, with llguidance's additions, or in GBNF.
    `whitespace` is a regular expression for what may stand between the tokens of JSON. `lenient` lets keywords of a
    schema pass that the compiler does not know. `field` is the path of the request's field that asked for it: it
    appears in errors and makes no difference otherwise.
    """

    kind: Kind
    text: str
    whitespace: str = r"\n[ ]{0,16}|[ ]?"
    lenient: bool = False
    field: str = field(default="", compare=False)
