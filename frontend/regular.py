"""Regular languages over characters as trees: what regular expressions, choices and grammars' terminals become.

In: nothing. Out: the node types, and what can be said of a tree without an automaton: whether it is empty, its shortest
text, its longest, the characters that it may begin and end with.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ramet.frontend import charsets
from ramet.frontend.charsets import Ranges


@dataclass(frozen=True)
class Node:
    """A set of texts."""


@dataclass(frozen=True)
class Chars(Node):
    """One character of a set (of none: no text at all)."""

    ranges: Ranges


@dataclass(frozen=True)
class Text(Node):
    """Exactly this text, which is not empty."""

    text: str


@dataclass(frozen=True)
class Cat(Node):
    """One text of each item, joined; of no items: the empty text."""

    items: tuple[Node, ...]


@dataclass(frozen=True)
class Union(Node):
    """A text of any item."""

    items: tuple[Node, ...]


@dataclass(frozen=True)
class Times(Node):
    """`low` to `high` texts of `item`, joined (`high` None: as many as you like)."""

    item: Node
    low: int
    high: int | None


EMPTY = Cat(())


def literal(text: str) -> Node:
    """Exactly this text. It holds no surrogates: callers have checked that."""
    return Text(text) if text else EMPTY


def single(char: str) -> Chars:
    """Exactly this character."""
    return Chars(((ord(char), ord(char)),))


def prune(node: Node) -> Node | None:
    """The same texts without a part that has none; None where there is no text at all."""
    if isinstance(node, Chars):
        return node if node.ranges else None
    if isinstance(node, Times):
        inner = prune(node.item)
        if inner is None or node.high == 0:
            return None if node.low else EMPTY
        return Times(inner, node.low, node.high)
    if isinstance(node, Union):
        kept = _flat(item for item in map(prune, node.items) if item is not None)
        return (kept[0] if len(kept) == 1 else Union(kept)) if kept else None
    if isinstance(node, Cat):
        parts = [prune(item) for item in node.items]
        present = tuple(part for part in parts if part is not None)
        return Cat(present) if len(present) == len(parts) else None
    return node


def _flat(items: Iterable[Node]) -> tuple[Node, ...]:
    """Alternatives without alternatives among them, each once, and at most one set of characters: grammar engines have
    been seen to fail on unions of unions of overlapping sets."""
    kept: dict[Node, None] = {}
    chars: Ranges = ()
    for item in items:
        for one in item.items if isinstance(item, Union) else (item,):
            if isinstance(one, Chars):
                chars = charsets.union(chars, one.ranges)
            else:
                kept[one] = None
    return (*((Chars(chars),) if chars else ()), *kept)


def nullable(node: Node) -> bool:
    """Whether the empty text is one of its texts. Anchors count as empty."""
    if isinstance(node, (Chars, Text)):
        return False
    if isinstance(node, Union):
        return any(map(nullable, node.items))
    if isinstance(node, Times):
        return node.low == 0 or nullable(node.item)
    return all(map(nullable, node.items)) if isinstance(node, Cat) else True


def first(node: Node) -> Ranges:
    """The characters that its texts may begin with."""
    return _edge(node, forward=True)


def last(node: Node) -> Ranges:
    """The characters that its texts may end with."""
    return _edge(node, forward=False)


def _edge(node: Node, forward: bool) -> Ranges:
    if isinstance(node, Chars):
        return node.ranges
    if isinstance(node, Text):
        return single(node.text[0 if forward else -1]).ranges
    if isinstance(node, Union):
        return charsets.union(*(_edge(item, forward) for item in node.items))
    if isinstance(node, Times):
        return _edge(node.item, forward)
    found: list[Ranges] = []
    for item in _in_order(node, forward):
        found.append(_edge(item, forward))
        if not nullable(item):
            break
    return charsets.union(*found)


def _in_order(node: Node, forward: bool) -> tuple[Node, ...]:
    items = node.items if isinstance(node, Cat) else ()
    return items if forward else items[::-1]


def shortest(node: Node, limit: int) -> bytes | None:
    """A shortest text in bytes of UTF-8 (None: all are longer than `limit` bytes). The tree is pruned."""
    if isinstance(node, (Chars, Text)):
        text = (node.text if isinstance(node, Text) else chr(node.ranges[0][0])).encode()
        return text if len(text) <= limit else None
    if isinstance(node, Union):
        known = [text for text in (shortest(item, limit) for item in node.items) if text is not None]
        return min(known, key=len, default=None)
    if isinstance(node, Times):
        if node.low == 0:
            return b""
        once = shortest(node.item, limit // node.low)
        return None if once is None else once * node.low
    return _shortest_sequence(node.items if isinstance(node, Cat) else (), limit)


def _shortest_sequence(items: tuple[Node, ...], limit: int) -> bytes | None:
    parts: list[bytes] = []
    for item in items:
        text = shortest(item, limit)
        if text is None:
            return None
        parts.append(text)
        limit -= len(text)
    return b"".join(parts)


def longest(node: Node) -> int | None:
    """The number of bytes that no text exceeds, None where there is no such number. The tree is pruned."""
    if isinstance(node, (Chars, Text)):
        return len((node.text if isinstance(node, Text) else chr(node.ranges[-1][1])).encode())
    if isinstance(node, Times):
        once = longest(node.item)
        if once == 0:
            return 0
        return None if once is None or node.high is None else once * node.high
    sizes = [longest(item) for item in node.items] if isinstance(node, (Cat, Union)) else [0]
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        return None
    return max(known, default=0) if isinstance(node, Union) else sum(known)
