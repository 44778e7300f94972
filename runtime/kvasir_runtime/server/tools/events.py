"""What a reader of tool calls tells of a text, in order."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Said:
    """Text that is no part of a call."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """The `index`th call, of the function `name`; its arguments follow."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """More of a call's arguments, which are JSON."""

    index: int
    text: str


Event = Said | CallBegun | Arguments
