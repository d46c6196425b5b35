"""Total parsers: in: any text that a model may write. Out: always a value of the asked shape.

A small model answers anything, and a program must go on: a numbered list or else equal chunks, an integer or else a
hash. Everything here is a pure function, the same on every machine.
"""

from __future__ import annotations

import re
import zlib
from itertools import pairwise

_ITEM = re.compile(r"^\s*(?:\d+[.):]|[-*•])\s*(.+?)\s*$", re.MULTILINE)
_INTEGER = re.compile(r"-?\d+")


def numbered_list(text: str, count: int) -> list[str]:
    """The first `count` items of a numbered or bulleted list; of a text with fewer, `count` chunks of equal length."""
    items = [item for item in _ITEM.findall(text) if item.strip("*_ ")]
    return items[:count] if len(items) >= count else chunks(text, count)


def chunks(text: str, count: int) -> list[str]:
    """The words of `text` in `count` runs of nearly equal length; a run without words is "(nothing)"."""
    words = text.split()
    edges = [len(words) * index // count for index in range(count + 1)]
    return [" ".join(words[low:high]) or "(nothing)" for low, high in pairwise(edges)]


def integer(text: str, low: int, high: int) -> int:
    """The last integer in `text` that lies in [low, high]; of a text without one, a hash of the text in that range."""
    for match in reversed(_INTEGER.findall(text[-4096:])):
        if len(match) < 19 and low <= int(match) <= high:
            return int(match)
    return low + zlib.crc32(text.encode("utf-8", "replace")) % (high - low + 1)
