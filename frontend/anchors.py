r"""Anchors of regular expressions (`^ $ \A \Z \b \B`), replaced by what they amount to.

In: a tree with anchors in it, and what stands before and after its text. Out: the same texts without anchors: each one
either always holds where it stands (and is dropped), never does (and empties its branch), or is refused (`ValueError`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from ramet.frontend import charsets
from ramet.frontend.charsets import NEWLINE, NOTHING, Ranges
from ramet.frontend.regular import EMPTY, Cat, Chars, Node, Text, Times, Union, first, last, literal, nullable

_EMPTY_HAS_NO_BOUNDARY = re.fullmatch(r"\B", "") is not None  # newer versions of Python answer True
_SHOWN = {
    "begin": "^",
    "line begin": "^",
    "end": r"\Z",
    "end or final newline": "$",
    "line end": "$",
    "boundary": r"\b",
    "no boundary": r"\B",
}


@dataclass(frozen=True)
class Anchor(Node):
    """A condition on the place between two characters; it matches no character itself."""

    kind: str
    ascii_only: bool = False


@dataclass(frozen=True)
class Edge:
    """What may stand on one side of a place: the edge of the whole text, or one of `chars`."""

    outside: bool
    chars: Ranges


def resolve(node: Node, before: Edge, after: Edge) -> Node:
    """The tree without anchors. Raises `ValueError` for an anchor that holds for some texts and not for others."""
    if isinstance(node, Anchor):
        return _decide(node, before, after)
    if isinstance(node, Union):
        return Union(tuple(resolve(one, before, after) for one in node.items))
    if isinstance(node, Times):
        if node.high != 1:
            before = Edge(before.outside, charsets.union(before.chars, last(node.item)))
            after = Edge(after.outside, charsets.union(after.chars, first(node.item)))
        return Times(resolve(node.item, before, after), node.low, node.high)
    if isinstance(node, Cat) and any(not isinstance(one, (Chars, Text)) for one in node.items):
        return _sequence(node.items, before, after)
    return node


def _sequence(items: tuple[Node, ...], before: Edge, after: Edge) -> Node:
    behind = _along(items, before, last)
    ahead = _along(items[::-1], after, first)[::-1]
    done: list[Node] = []
    for at, one in enumerate(items):
        if _may_precede_a_final_newline(one, after, ahead[at]):
            rest = resolve(Cat(items[at + 1 :]), behind[at], after)
            done.append(Union(tuple(literal(text) for text in sorted(_up_to_newline(rest)))))
            break
        done.append(one if isinstance(one, Chars) else resolve(one, behind[at], ahead[at]))
    return Cat(tuple(done))


def _along(items: tuple[Node, ...], edge: Edge, facing: Callable[[Node], Ranges]) -> list[Edge]:
    """What may stand before each of the items, which are walked from `edge` on."""
    found: list[Edge] = []
    for one in items:
        found.append(edge)
        empty = nullable(one)
        edge = Edge(empty and edge.outside, charsets.union(facing(one), edge.chars if empty else NOTHING))
    return found


def _may_precede_a_final_newline(node: Node, after: Edge, ahead: Edge) -> bool:
    final = isinstance(node, Anchor) and node.kind == "end or final newline"
    return final and after == Edge(True, NOTHING) and charsets.contains(ahead.chars, 10)


def _up_to_newline(node: Node) -> frozenset[str]:
    r"""Which of "" and "\n" are texts of the tree."""
    if isinstance(node, (Chars, Text)):
        matched = node.text == "\n" if isinstance(node, Text) else charsets.contains(node.ranges, 10)
        return frozenset("\n" if matched else ())
    if isinstance(node, Union):
        return frozenset().union(*map(_up_to_newline, node.items))
    found = frozenset(("",))
    if isinstance(node, Times):
        once = _up_to_newline(node.item)
        by_count = [found, once, _join(once, once)]  # more than two repetitions give what two give
        most = 2 if node.high is None else min(node.high, 2)
        return frozenset().union(*by_count[min(node.low, 2) : most + 1])
    for one in node.items if isinstance(node, Cat) else ():
        found = _join(found, _up_to_newline(one))
    return found


def _join(left: frozenset[str], right: frozenset[str]) -> frozenset[str]:
    return frozenset(a + b for a in left for b in right if len(a + b) <= 1)


def _decide(anchor: Anchor, before: Edge, after: Edge) -> Node:
    held = {
        _holds(anchor, left, right)
        for left in _kinds(before, anchor.ascii_only)
        for right in _kinds(after, anchor.ascii_only)
    }
    if held == {True}:
        return EMPTY
    if held == {False} or not held:
        return Chars(NOTHING)
    raise ValueError(f"whether {_SHOWN[anchor.kind]} holds depends on the text around it, which is not supported")


def _kinds(edge: Edge, ascii_only: bool) -> list[str]:
    """What may stand there, as far as anchors tell it apart."""
    word = charsets.category(r"\w", ascii_only)
    found = ["outside"] if edge.outside else []
    found += ["newline"] if charsets.contains(edge.chars, 10) else []
    found += ["word"] if charsets.intersection(edge.chars, word) else []
    return found + (["other"] if charsets.difference(edge.chars, charsets.union(word, NEWLINE)) else [])


def _holds(anchor: Anchor, left: str, right: str) -> bool | None:
    """Whether an anchor holds between these two; None where it depends on what follows further on."""
    if anchor.kind == "begin":
        return left == "outside"
    if anchor.kind == "line begin":
        return left in ("outside", "newline")
    if anchor.kind == "end":
        return right == "outside"
    if anchor.kind == "line end":
        return right in ("outside", "newline")
    if anchor.kind == "end or final newline":
        return None if right == "newline" else right == "outside"
    if left == right == "outside":
        return _EMPTY_HAS_NO_BOUNDARY and anchor.kind == "no boundary"
    return ((left == "word") != (right == "word")) == (anchor.kind == "boundary")
