"""How JSON is laid out in rules: separators, whitespace, names of rules.

In: "fixed" or "flexible". Out: the pieces that rules of arrays and objects are put together from, and the rules so far.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from ramet.runtime.grammar.json_scalars import Terms
from ramet.runtime.grammar.json_shapes import State

Whitespace = Literal["fixed", "flexible"]
# A space, or a line end and an indent: 64 spaces, or 16 tabs.
_SPACE = r"(?:\x20|\r?\n(?:\x20{0,64}|\t{1,16}))?"


@dataclass(frozen=True)
class Layout:
    """Pieces of rules: what opens and closes an array and an object, what separates members, what follows a key."""

    open_array: str
    close_array: str
    open_object: str
    close_object: str
    separator: str
    colon: str
    fixed: bool

    @classmethod
    def of(cls, whitespace: Whitespace, terms: Terms) -> Layout:
        """As `json.dumps` writes by default, or with a bounded choice wherever JSON allows whitespace."""
        if whitespace == "fixed":
            return cls('"["', '"]"', '"{"', '"}"', '", "', '": "', True)
        return cls(
            terms.regex(r"\[" + _SPACE),
            terms.regex(_SPACE + r"\]"),
            terms.regex(r"\{" + _SPACE),
            terms.regex(_SPACE + r"\}"),
            terms.regex(f"{_SPACE},{_SPACE}"),
            terms.regex(f"{_SPACE}:{_SPACE}"),
            False,
        )

    def key(self, name: str) -> str:
        """A declared key with what follows it: two terminals, as a key that is declared in one alternative and not in
        another must end at the same place for a lexer that takes the longest match."""
        return f"{json.dumps(json.dumps(name, ensure_ascii=False), ensure_ascii=False)} {self.colon}"


class Rules:
    """Rules by name, in the order of their making; `names` and `pending` are those of states."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix.lower()
        self._count = 0
        self._lines: list[str] = []
        self.names: dict[State, str] = {}
        self.pending: list[State] = []

    def fresh(self) -> str:
        """A new name."""
        self._count += 1
        return f"{self._prefix}_{self._count - 1}"

    def define(self, name: str, options: list[str]) -> str:
        """Write a rule; returns its name."""
        self._lines.append(f"{name}: " + "\n    | ".join(option or '""' for option in options))
        return name

    def lines(self) -> list[str]:
        """All rules."""
        return list(self._lines)
