"""What the readers of grammar notations share: a position in a text, literals with escapes, errors that name the place.

In: the text of a grammar. Out: its pieces, one after the other.
"""

from __future__ import annotations

import re
from typing import NoReturn

from ramet.frontend.errors import ConstraintError

MAX_BYTES, MAX_DEPTH = 64 * 1024, 64
ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f", "a": "\a", "v": "\v", "0": "\0", "e": "\x1b"}
_COUNT = re.compile(r"\{\s*([0-9]{1,9})?\s*(,)?\s*([0-9]{1,9})?\s*\}")


class Scanner:
    """A place in a text. `blank` is what is skipped between pieces, comments included."""

    def __init__(self, text: str, blank: re.Pattern[str]) -> None:
        self.text = text
        self.at = 0
        self.blank = blank
        size = len(text.encode("utf-8", "surrogatepass"))
        if size > MAX_BYTES:
            raise ConstraintError(f"has {size} bytes (limit: {MAX_BYTES}); simplify it")

    def fail(self, problem: str, at: int | None = None) -> NoReturn:
        """Raise `ConstraintError` that says where, in lines and columns from 1."""
        at = self.at if at is None else at
        line, column = self.text.count("\n", 0, at) + 1, at - self.text.rfind("\n", 0, at)
        raise ConstraintError(f"line {line}, column {column}: {problem}")

    def skip(self) -> None:
        """Go to the next piece."""
        found = self.blank.match(self.text, self.at)
        self.at = found.end() if found else self.at

    def done(self) -> bool:
        """Whether nothing follows."""
        self.skip()
        return self.at >= len(self.text)

    def peek(self, text: str) -> bool:
        """Whether this follows."""
        self.skip()
        return self.text.startswith(text, self.at)

    def take(self, text: str) -> bool:
        """Whether this follows; it is passed if so."""
        found = self.peek(text)
        self.at += len(text) * found
        return found

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """What matches here, passed."""
        self.skip()
        found = pattern.match(self.text, self.at)
        self.at = found.end() if found else self.at
        return found

    def count(self) -> tuple[int, int | None] | None:
        """A repetition operator: `*`, `+`, `?`, `{m}`, `{m,}`, `{,n}` or `{m,n}`."""
        for operator, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self.take(operator):
                return bounds
        if not self.peek("{"):
            return None
        at, found = self.at, self.match(_COUNT)
        if found is None or not (found[1] or found[3]):
            self.fail("expected {m}, {m,}, {,n} or {m,n}", at)
        low = int(found[1] or 0)
        high = low if not found[2] else int(found[3]) if found[3] else None
        if high is not None and high < low:
            self.fail(f"{{{low},{high}}}: the second number is smaller than the first", at)
        return low, high

    def literal(self, quote: str) -> str:
        """A quoted text, from behind its opening quote on."""
        start, parts = self.at - 1, list[str]()
        while self.at < len(self.text) and self.text[self.at] not in (quote, "\n"):
            parts.append(self.character(quote + "\\/'?[]"))
        if not self.text.startswith(quote, self.at):
            self.fail("this text has no closing quote", start)
        self.at += 1
        return "".join(parts)

    def character(self, punctuation: str) -> str:
        r"""One character, or an escape: of `punctuation`, a control character, `\xHH`, `\uHHHH` or `\UHHHHHHHH`."""
        char, start = self.text[self.at], self.at
        self.at += 1
        if char == "\\":
            following = self.text[self.at : self.at + 1]
            self.at += 1
            size = {"x": 2, "u": 4, "U": 8}.get(following)
            if size is not None:
                char = self._code(following, size, start)
            elif following in ESCAPES:
                char = ESCAPES[following]
            elif following and following in punctuation:
                char = following
            else:
                self.fail(f"unknown escape \\{following}", start)
        if "\ud800" <= char <= "\udfff":
            self.fail(r"a lone surrogate is no text; write characters beyond U+FFFF as \UHHHHHHHH", start)
        return char

    def _code(self, kind: str, size: int, start: int) -> str:
        digits = self.text[self.at : self.at + size]
        if not re.fullmatch(rf"[0-9A-Fa-f]{{{size}}}", digits) or int(digits, 16) > 0x10FFFF:
            self.fail(f"\\{kind} needs {size} hexadecimal digits of a Unicode character", start)
        self.at += size
        if kind == "x" and re.match(r"[0-9A-Fa-f]", self.text[self.at : self.at + 1]):
            self.fail(
                r"\x is followed by more than two hexadecimal digits, which dialects read differently; use \u", start
            )
        return chr(int(digits, 16))
