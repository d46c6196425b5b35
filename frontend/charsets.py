"""Sets of characters as sorted ranges, and which characters Python's `re` means by its classes and by ignoring case.

In: code points, items of parsed patterns. Out: tuples of inclusive ranges of Unicode scalar values (no surrogates:
text cannot hold them). What a class contains is never looked up in a table of our own: Python's `re` is asked.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

Ranges = tuple[tuple[int, int], ...]
NOTHING: Ranges = ()
ALL: Ranges = ((0, 0xD7FF), (0xE000, 0x10FFFF))
NEWLINE: Ranges = ((10, 10),)
_CASED_LIMIT = 0x20000  # no script above the supplementary multilingual plane has case (a test looks at all)


def of(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """The set that these inclusive ranges cover together, less surrogates."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        elif low <= high:
            merged.append((low, high))
    return intersection(tuple(merged), ALL)


def union(*sets: Ranges) -> Ranges:
    """What is in any of the sets."""
    filled = {one for one in sets if one}
    return filled.pop() if len(filled) == 1 else of(part for one in filled for part in one)


def intersection(first: Ranges, second: Ranges) -> Ranges:
    """What is in both sets."""
    found: list[tuple[int, int]] = []
    i = j = 0
    while i < len(first) and j < len(second):
        low, high = max(first[i][0], second[j][0]), min(first[i][1], second[j][1])
        if low <= high:
            found.append((low, high))
        if first[i][1] < second[j][1]:
            i += 1
        else:
            j += 1
    return tuple(found)


def complement(ranges: Ranges) -> Ranges:
    """All characters that are not in the set."""
    gaps: list[tuple[int, int]] = []
    start = 0
    for low, high in ranges:
        gaps.append((start, low - 1))
        start = high + 1
    gaps.append((start, 0x10FFFF))
    return intersection(tuple(gap for gap in gaps if gap[0] <= gap[1]), ALL)


def difference(first: Ranges, second: Ranges) -> Ranges:
    """What is in the first set and not in the second."""
    return intersection(first, complement(second))


def contains(ranges: Ranges, code: int) -> bool:
    """Whether a code point is in the set."""
    return any(low <= code <= high for low, high in ranges)


def characters(text: str) -> Ranges:
    """The characters of a text."""
    return of((ord(char), ord(char)) for char in text)


@functools.lru_cache(maxsize=16)
def category(source: str, ascii_only: bool) -> Ranges:
    r"""The characters that `\d`, `\w` or `\s` matches (`source`), in Python's `re`."""
    pattern = re.compile(source + "+", re.ASCII if ascii_only else re.UNICODE)
    text = _all_text()
    return of((ord(text[found.start()]), ord(text[found.end() - 1])) for found in pattern.finditer(text))


def _all_text() -> str:
    """Every Unicode scalar value, in order: written as UTF-32, byte by byte of all of them at once."""
    coded = bytearray(4 * 0x110000)
    coded[0::4] = bytes(range(256)) * (0x110000 >> 8)
    coded[1::4] = b"".join(bytes((byte,)) * 256 for byte in range(256)) * 17
    coded[2::4] = b"".join(bytes((plane,)) * 0x10000 for plane in range(17))
    return (coded[: 4 * 0xD800] + coded[4 * 0xE000 :]).decode("utf-32-le")


@functools.lru_cache(maxsize=1)
def cased() -> tuple[str, Ranges]:
    """All characters that have another case, as a text and as a set: only on these can IGNORECASE have an effect."""
    found = [char for char in map(chr, range(_CASED_LIMIT)) if char.lower() != char or char.upper() != char]
    return "".join(found), of((ord(char), ord(char)) for char in found)


def ignoring_case(base: Ranges, pattern: re.Pattern[str]) -> Ranges:
    """The set of a class under IGNORECASE: `base` is the class as written, `pattern` the compiled class with the flag,
    which decides about every character that has case."""
    text, affected = cased()
    return union(difference(base, affected), characters("".join(pattern.findall(text))))
