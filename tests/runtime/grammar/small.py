"""A vocabulary of 300 tokens, and languages whose viable prefixes are known without any automaton of ramet's.

`Lang` is a regular language over bytes, followed by Brzozowski's derivatives (1964).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, reduce

import numpy as np

MERGES = (
    "ab", "abc", "bc", "ba", "aa", "aaa", "aaaa", "b1", "12", "123", "01", '"', '{"', '": ', '", "', ", ", ": ", '"}',
    "true", "false", "null", "é", "éa", "aé", "日", "日本", "本", "€", "€a", " ", "  ", "\n", "[1", "1]", "tr", "ue",
)  # fmt: skip
EOS, END2, CONTROL, EMPTY = 292, 293, 294, 295
TOKENS: list[bytes] = [bytes([b]) for b in range(256)]
TOKENS += [m.encode() for m in MERGES]
TOKENS += [b""] * (296 - len(TOKENS)) + [b"ab", b"\xff\xfe", b"\xe6\x97", b"\x97\xa5"]  # a duplicate, halves of 日
TOKENS[CONTROL] = b""
EOS_IDS = (EOS, END2)
VOCAB = 330  # padded logits


def bits(row: np.ndarray) -> set[int]:
    """The ids that are set in a packed mask."""
    return set(np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist())


def row() -> np.ndarray:
    """A mask that is wider than the vocabulary, and dirty."""
    return np.full(-(-VOCAB // 32) + 2, 0xFFFFFFFF, np.uint32)


@dataclass(frozen=True, eq=False)
class Lang:
    """`kind` is "none" (no text), "empty" (the empty text), "byte", "cat" (`left`, then `right`), "star" (of `left`) or
    "alt" (any of `parts`). Equal ones are the same object, so that the derivatives of a language are few."""

    kind: str
    byte: int = 0
    left: Lang | None = None
    right: Lang | None = None
    parts: frozenset[Lang] = frozenset()


@cache
def only(
    kind: str, byte: int = 0, left: Lang | None = None, right: Lang | None = None, parts: frozenset[Lang] = frozenset()
) -> Lang:
    return Lang(kind, byte, left, right, parts)


NONE, NOTHING = only("none"), only("empty")


def cat(left: Lang, right: Lang) -> Lang:
    if NONE in (left, right):
        return NONE
    if left is NOTHING or right is NOTHING:
        return right if left is NOTHING else left
    if left.kind == "cat":
        return cat(left.left, cat(left.right, right))
    return only("cat", 0, left, right)


def alt(left: Lang, right: Lang) -> Lang:
    parts = frozenset(p for each in (left, right) for p in (each.parts or {each})) - {NONE}
    if len(parts) > 1:
        return only("alt", 0, None, None, parts)
    return next(iter(parts), NONE)


def star(inner: Lang) -> Lang:
    return NOTHING if inner in (NONE, NOTHING) else only("star", 0, inner)


def text(value: str) -> Lang:
    found = NOTHING
    for b in reversed(value.encode()):
        found = cat(only("byte", b), found)
    return found


def any_of(values: Iterable[str]) -> Lang:
    found = NONE
    for value in values:
        found = alt(found, text(value))
    return found


@cache
def nullable(lang: Lang) -> bool:
    """Whether the empty text is in the language."""
    if lang.kind == "cat":
        return nullable(lang.left) and nullable(lang.right)
    if lang.kind == "alt":
        return any(map(nullable, lang.parts))
    return lang.kind in ("empty", "star")


@cache
def after(lang: Lang, byte: int) -> Lang:
    """What may follow `byte`."""
    if lang.kind == "byte":
        return NOTHING if lang.byte == byte else NONE
    if lang.kind == "alt":
        return reduce(alt, (after(part, byte) for part in lang.parts))
    if lang.kind == "star":
        return cat(after(lang.left, byte), lang)
    if lang.kind == "cat":
        first = cat(after(lang.left, byte), lang.right)
        return alt(first, after(lang.right, byte)) if nullable(lang.left) else first
    return NONE


def follow(lang: Lang, data: bytes) -> Lang:
    for b in data:
        if lang == NONE:
            break
        lang = after(lang, b)
    return lang


@cache
def nexts(lang: Lang) -> tuple[int, ...]:
    """The bytes that may follow."""
    return tuple(b for b in range(256) if after(lang, b) != NONE)


def allowed(lang: Lang) -> set[int]:
    """By trying each token: those that may follow, and the ends where the text may end."""
    found = {i for i, t in enumerate(TOKENS) if t and b"\xff" not in t and follow(lang, t) != NONE}
    return found | (set(EOS_IDS) if nullable(lang) else set())


def forced(lang: Lang, most: int = 64) -> bytes:
    """What must follow."""
    data = bytearray()
    while len(data) < most and not nullable(lang) and len(nexts(lang)) == 1:
        data.append(nexts(lang)[0])
        lang = after(lang, data[-1])
    return bytes(data)
