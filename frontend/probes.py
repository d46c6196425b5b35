"""Sentinels: unique texts that stand for what only a run knows, and are cut out of recorded text again.

In: an argument or the value of an operation. Out: a text that survives f-strings and concatenation; of a recorded
text, its constants and what stands between them. Three probes make different texts for the same things: a program that
records the same under all of them has not looked at them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from ramet.frontend.planned import Param, Part, Use

_FIRST, _LAST = 0x100000, 0x10FDDF  # private use, plane 16: one character per thing
OPEN, MIDDLE, CLOSE, PAD = "\U0010fdf0", "\U0010fdf1", "\U0010fdf2", "\U0010fdf3"
_DIGITS = "".join(chr(0x10FDE0 + digit) for digit in range(10))
_MARKS = re.compile("[\U00100000-\U0010fdff]")
_ESCAPED = re.compile(r"\\U(0010[0-9a-f]{4})")  # as repr() and JSON-like texts write one of them
_LONG = re.compile(f"{OPEN}([{_DIGITS}]+{PAD}*){MIDDLE}.*?{CLOSE}", re.DOTALL)
_TORN = re.compile(f"\\A[^{OPEN}]*?{CLOSE}|{OPEN}[^{CLOSE}]*\\Z")  # how much was cut away is not known
_LEFT = re.compile("[\U00100000-\U0010fdff]+")
_TO_MARK = str.maketrans("0123456789", _DIGITS)
_FROM_MARK = str.maketrans(_DIGITS, "0123456789")
_RICH = '  Yes, no. 42 -7.5\n1. First\n- second * "q" \'x\' {"a": [true, null]} <b>(c)</b> \u00c4\u00df 3/4; A|B=C\n\n'
_MOST = 4000  # characters of a program's own constants in a rich sentinel
_LAST_NUMBER, _LENGTHS = 10**6 - 1, 16
_BEFORE, _AFTER = " \n", "\n "  # around a rich sentinel: what strips a text tears it


class Altered(ValueError):
    """A sentinel was cut or changed: the program has worked on the text."""


def marked(text: str) -> bool:
    """Some part of it stands for what only a run knows."""
    return _MARKS.search(str.__str__(text)) is not None


class Probe:
    """Sentinels of one trace. `constants`: with them the sentinels are long and contain letters, digits, lines, and
    what the program's code mentions; without, each is a character that no text contains. Where those are greater and
    longer the later they were made, these are smaller and shorter: what sorts or measures them finds other orders."""

    def __init__(self, constants: Iterable[str] | None = None) -> None:
        self._body = None if constants is None else _RICH + _joined(constants)
        self._parts: list[Param | Use] = []
        self._numbers: dict[Param | Use, int] = {}
        long = f"{_BEFORE}{OPEN}([{_DIGITS}]+{PAD}*){MIDDLE}{re.escape(self._body or '')}{CLOSE}{_AFTER}"
        self._pattern = re.compile(long if self._body is not None else f"([{chr(_FIRST)}-{chr(_LAST)}]{PAD}*)")

    @property
    def others(self) -> bool:
        """There is another trace, whose sentinels are of the first kind."""
        return self._body is not None

    @property
    def used(self) -> bool:
        """It has made a sentinel."""
        return bool(self._parts)

    def text(self, part: Param | Use) -> str:
        """The sentinel of an argument or a value."""
        number = self._numbers.get(part)
        if number is None:
            number = self._numbers[part] = len(self._parts)
            self._parts.append(part)
        key = self._key(number)
        return key if self._body is None else f"{_BEFORE}{OPEN}{key}{MIDDLE}{self._body}{CLOSE}{_AFTER}"

    def _key(self, number: int) -> str:
        """What of a sentinel tells it from others."""
        length = number % _LENGTHS
        if self._body is None:
            return chr(_FIRST + number) + PAD * length
        return str(_LAST_NUMBER - number).translate(_TO_MARK) + PAD * (_LENGTHS - length)

    def _part(self, found: str) -> Param | Use:
        key = found.rstrip(PAD)
        number = ord(key) - _FIRST if self._body is None else _LAST_NUMBER - int(key.translate(_FROM_MARK))
        if not 0 <= number < len(self._parts) or self._key(number) != found:
            raise Altered("a part of it was cut or changed")
        return self._parts[number]

    def cut(self, text: str) -> tuple[Part, ...]:
        """Constants and parts in order; no empty and no adjacent constants. Raises `Altered`."""
        pieces = self._pattern.split(text)
        found: list[Part] = []
        for index, piece in enumerate(pieces):
            if index % 2:
                found.append(self._part(piece))
            elif _MARKS.search(piece):
                raise Altered("a part of it was cut or changed")
            elif piece:
                found.append(piece)
        return tuple(found)

    def readable(self, text: str, name: Callable[[Param | Use], str]) -> str:
        """A text that Python made of sentinels, for people: names in braces in place of arguments and values, also
        where it was quoted, cut or changed."""

        def named(found: re.Match[str]) -> str:
            try:
                return "{" + name(self._part(found[1])) + "}"
            except (Altered, ValueError):
                return "{...}"

        plain = _ESCAPED.sub(lambda found: chr(int(found[1], 16)), str.__str__(text))
        plain = self._pattern.sub(named, plain)
        if self._body is not None:
            plain = _TORN.sub("{...}", _LONG.sub(named, plain))
        return _LEFT.sub("{...}", plain)

    def names(self, text: str) -> str:
        """What a text stands for, as messages say it."""
        found = [self._part(each) for each in self._pattern.findall(text)]
        return " and ".join(dict.fromkeys(shown(part) for part in found)) or "a text that only a run knows"


class Blank(Probe):
    """The third probe: every sentinel is empty. What tests, compares, searches or counts texts finds them empty, equal
    and everywhere."""

    @property
    def others(self) -> bool:
        """See `Probe.others`."""
        return True

    def text(self, part: Param | Use) -> str:
        """The empty text."""
        return ""

    def cut(self, text: str) -> tuple[Part, ...]:
        """The text as it is."""
        return (text,) if text else ()


def shown(part: Param | Use) -> str:
    """How a message names it."""
    return f"the argument {part.name!r}" if isinstance(part, Param) else f"the value of {part.op}"


def _joined(constants: Iterable[str]) -> str:
    kept: list[str] = []
    left = _MOST
    for text in sorted(set(constants), key=lambda text: (len(text), text)):
        if 0 < len(text) <= left and not _MARKS.search(text):
            kept.append(text)
            left -= len(text) + 1
    return " ".join(kept)
