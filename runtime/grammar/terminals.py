r"""Regular languages as terminals of llguidance's Lark dialect, written so that no rule of its own dialect applies.

In: trees of character sets (`ramet.frontend.regular`). Out: definitions of terminals. Every character that is not a
letter or digit is escaped, classes are explicit ranges; large classes get a name of their own and are written once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ramet.frontend.charsets import ALL, Ranges
from ramet.frontend.errors import ConstraintError
from ramet.frontend.regular import Cat, Chars, Node, Text, Times, Union

MAX_EMITTED = 256 * 1024
_LARGE_CLASS, _MOST_INLINE = 120, 4000
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_ <>=,:;'\"!@%`")


def character(code: int) -> str:
    """One character in a regular expression of llguidance."""
    char = chr(code)
    return char if char in _PLAIN else f"\\x{{{code:X}}}"


def character_class(ranges: Ranges) -> str:
    """A set of characters in a regular expression of llguidance."""
    if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
        return character(ranges[0][0])
    if ranges == ALL:
        return "(?s:.)"
    return "[" + "".join(_range(low, high) for low, high in ranges) + "]"


def _range(low: int, high: int) -> str:
    ends = [
        f"\\x{{{code:X}}}" if not (chr(code).isascii() and chr(code).isalnum()) else chr(code) for code in (low, high)
    ]
    return ends[0] if low == high else "-".join(ends)


def source(node: Node) -> str:
    """A whole tree as one regular expression of llguidance, e.g. for `pattern` in a JSON schema. The tree is pruned."""
    if isinstance(node, Chars):
        return character_class(node.ranges)
    if isinstance(node, Text):
        return "".join(map(character, map(ord, node.text)))
    if isinstance(node, Times):
        return _grouped(source(node.item), node.item) + count(node.low, node.high)
    if isinstance(node, Union):
        return "(?:" + "|".join(map(source, node.items)) + ")"
    return "".join(map(source, node.items)) if isinstance(node, Cat) else ""


def _grouped(text: str, node: Node) -> str:
    return text if isinstance(node, (Chars, Union)) else f"(?:{text})"


def count(low: int, high: int | None) -> str:
    """The operator of a repetition, for regular expressions and for rules."""
    if high is None:
        return {0: "*", 1: "+"}.get(low, f"{{{low},}}")
    return "?" if (low, high) == (0, 1) else f"{{{low},{high}}}"


@dataclass(frozen=True)
class _Piece:
    """Part of a terminal: regular expression source, or the names and operators of a terminal's right-hand side."""

    text: str
    plain: bool

    @property
    def quoted(self) -> str:
        """The piece as it stands in the right-hand side of a terminal."""
        if not self.plain:
            return self.text
        return f"/{self.text}/" if self.text else '""'


@dataclass
class Terminals:
    """Collects definitions of terminals; equal parts share one. Names begin with `prefix`, an upper-case
    letter; `others` names a terminal for nodes that are not of `ramet.frontend.regular`. Raises `ConstraintError`
    beyond 256 kB of definitions."""

    prefix: str = "T"
    others: Callable[[Node], str] | None = None
    lines: list[str] = field(default_factory=list)
    size: int = 0
    _names: dict[str, str] = field(default_factory=dict)
    _pieces: dict[Node, _Piece] = field(default_factory=dict)

    def add(self, node: Node) -> str:
        """The name of a terminal that matches the texts of a pruned tree."""
        return self.define(self._piece(node).quoted)

    def define(self, body: str) -> str:
        """The name of a terminal with this right-hand side."""
        name = self._names.get(body)
        if name is None:
            name = self._names[body] = f"{self.prefix}{len(self._names)}"
            line = f"{name}: {body}\n"
            self.size += len(line)
            if self.size > MAX_EMITTED:
                raise ConstraintError(
                    f"has more than {MAX_EMITTED} bytes once its classes are written out; simplify it"
                )
            self.lines.append(line)
        return name

    def _piece(self, node: Node) -> _Piece:
        if isinstance(node, Chars):
            return self._class(node)
        if isinstance(node, Text):
            return _Piece(source(node), True)
        if isinstance(node, Times):
            return self._repetition(node)
        if isinstance(node, Union):
            return self._union(node)
        if isinstance(node, Cat):
            return self._sequence(node.items)
        assert self.others is not None, f"no terminal for {type(node).__name__}"
        return _Piece(self.others(node), False)

    def _class(self, node: Chars) -> _Piece:
        if node.ranges[0][0] == node.ranges[-1][1]:
            return _Piece(character(node.ranges[0][0]), True)
        known = self._pieces.get(node)
        if known is None:
            known = _Piece(character_class(node.ranges), True)
            if len(known.text) > _LARGE_CLASS:
                known = _Piece(self.define(known.quoted), False)
            self._pieces[node] = known
        return known

    def _repetition(self, node: Times) -> _Piece:
        inner, times = self._piece(node.item), count(node.low, node.high)
        if inner.plain and len(inner.text) <= _MOST_INLINE:
            return _Piece(_grouped(inner.text, node.item) + times, True)
        return _Piece(self.define(inner.quoted) + times, False)

    def _union(self, node: Union) -> _Piece:
        pieces = [self._piece(one) for one in node.items]
        if all(piece.plain for piece in pieces) and sum(len(piece.text) for piece in pieces) <= _MOST_INLINE:
            return _Piece("(?:" + "|".join(piece.text for piece in pieces) + ")", True)
        return _Piece(self.define(" | ".join(piece.quoted for piece in pieces)), False)

    def _sequence(self, items: tuple[Node, ...]) -> _Piece:
        parts: list[_Piece] = []
        for piece in map(self._piece, items):
            if parts and parts[-1].plain and piece.plain and len(parts[-1].text) <= _MOST_INLINE:
                parts[-1] = _Piece(parts[-1].text + piece.text, True)
            else:
                parts.append(piece)
        if len(parts) <= 1:
            return parts[0] if parts else _Piece("", True)
        return _Piece(self.define(" ".join(part.quoted for part in parts)), False)
