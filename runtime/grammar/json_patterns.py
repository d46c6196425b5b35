"""Patterns inside JSON schemas, as regexes over the text of a JSON string.

In: a `pattern` (searched for, not anchored) or the name of a `format`. Out: a regex in llguidance's dialect for what
stands between the quotes, where every character is written in one way only: itself, or its shortest escape.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from re import _constants as ops
from re import _parser
from typing import Any, Final

from ramet.frontend import charsets
from ramet.frontend.charsets import Ranges
from ramet.frontend.errors import ConstraintError

MOST_REPEATS: Final = 10_000
MOST_BYTES: Final = 256 * 1024
MOST_NESTING: Final = 60
_SHORT: Final = {0x22: '"', 0x5C: "\\\\", 0x08: "b", 0x0C: "f", 0x0A: "n", 0x0D: "r", 0x09: "t"}
_SPECIAL: Final = ((0, 0x1F), (0x22, 0x22), (0x5C, 0x5C))
_LINE_ENDS: Final = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))
_EDGES_LEFT = (ops.AT_BEGINNING, ops.AT_BEGINNING_STRING)
_EDGES_RIGHT = (ops.AT_END, ops.AT_END_STRING)
_REFUSED: Final = {
    ops.ASSERT: "look-around",
    ops.ASSERT_NOT: "look-around",
    ops.GROUPREF: "a back-reference",
    ops.GROUPREF_EXISTS: "a conditional group",
    ops.ATOMIC_GROUP: "an atomic group",
    ops.POSSESSIVE_REPEAT: "a possessive quantifier",
}


class PatternRefused(ConstraintError):
    """A pattern that cannot be enforced; the message says why."""


_ASCII: Final[dict[str, Ranges]] = {
    r"\d": ((0x30, 0x39),),
    r"\w": ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)),
    r"\s": charsets.of(
        (ord(one), ord(one))
        for one in "\t\n\v\f\r \xa0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff"
        + "".join(map(chr, range(0x2000, 0x200B)))
    ),
}
_CATEGORIES: Final = {
    ops.CATEGORY_DIGIT: (r"\d", True),
    ops.CATEGORY_NOT_DIGIT: (r"\d", False),
    ops.CATEGORY_WORD: (r"\w", True),
    ops.CATEGORY_NOT_WORD: (r"\w", False),
    ops.CATEGORY_SPACE: (r"\s", True),
    ops.CATEGORY_NOT_SPACE: (r"\s", False),
}


def _category(name: Any, wide: bool) -> Ranges:
    """A category as ECMA 262 and Python both read it; `wide`: as one of them does."""
    text, positive = _CATEGORIES[name]
    ecma, python = _ASCII[text], charsets.category(text, False)
    if positive == wide:
        either = charsets.union(ecma, python)
        return either if positive else charsets.complement(either)
    both = charsets.intersection(ecma, python)
    return both if positive else charsets.complement(both)


def _text(code: int) -> str:
    return chr(code) if chr(code).isalnum() and code < 128 else f"\\x{{{code:x}}}"


def characters(ranges: Ranges) -> str:
    """A regex for one character of these, as it stands in a JSON string."""
    plain = charsets.difference(ranges, _SPECIAL)
    short = "".join(_SHORT[code] for code in _SHORT if any(low <= code <= high for low, high in ranges))
    rare = [code for code in range(32) if code not in _SHORT and any(low <= code <= high for low, high in ranges)]
    options = []
    if plain:
        options.append("[" + "".join(_text(a) if a == b else f"{_text(a)}-{_text(b)}" for a, b in plain) + "]")
    if short:
        options.append(rf"\\[{short}]")
    if len(rare) == 32 - 5:
        options.append(r"\\u00(?:0[0-7be-f]|1[0-9a-f])")
    elif rare:
        options.append(r"\\u00(?:" + "|".join(f"{code:02x}" for code in rare) + ")")
    if not options:
        return "[^\\x{0}-\\x{10ffff}]"  # nothing: a set without members
    return options[0] if len(options) == 1 else "(?:" + "|".join(options) + ")"


ANY: Final = characters(((0, 0x10FFFF),))
# Any character in any spelling that JSON has; a surrogate pair is one character, a lone surrogate none.
ANY_SPELLING: Final = (
    r'(?:[^"\\\x00-\x1f]|\\["\\\/bfnrt]|\\u(?:[0-9a-cA-Ce-fE-F][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2}'
    r"|[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}))"
)


def literal(text: str) -> str:
    """A regex for exactly this text inside a JSON string."""
    return "".join(characters(((ord(c), ord(c)),)) if ord(c) < 32 or c in '"\\' else _text(ord(c)) for c in text)


def search(pattern: str, *, wide: bool = False) -> str:
    """A regex for the strings in which `pattern` is found. Where ECMA 262 and Python's `re` read it differently
    (`\\d` and its like beyond ASCII, `.` and `$` at line ends), for those that both find it in; with `wide` for those
    that one of them does, which is what may be complemented. Raises `PatternRefused`."""
    try:
        tree = _parser.parse(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise PatternRefused(f"{pattern[:200]!r} is not a regex: {error or 'nested too deeply'}") from None
    if tree.state.flags & (re.IGNORECASE | re.MULTILINE | re.DOTALL | re.VERBOSE | re.ASCII | re.LOCALE):
        raise PatternRefused("flags are not supported in the patterns of a schema; spell out what they mean")
    found = _Writer(wide).edges(list(tree))
    if len(found) > MOST_BYTES:
        raise PatternRefused(f"becomes a regex of {len(found)} bytes; at most {MOST_BYTES} (limit: generated regex)")
    return found


class _Writer:
    """Walks one parsed pattern; counts what it writes."""

    def __init__(self, wide: bool) -> None:
        self._wide = wide
        self._size = 0

    def edges(self, nodes: list[Any], left: bool = True, right: bool = True, depth: int = 0) -> str:
        """A sequence that other text may precede (`left`) and follow (`right`), with its anchors resolved."""
        if depth > MOST_NESTING:
            raise PatternRefused(f"nested deeper than {MOST_NESTING} groups (limit: depth)")
        after = ""
        while nodes and nodes[0][0] is ops.AT and nodes[0][1] in _EDGES_LEFT:
            nodes, left = nodes[1:], False
        while nodes and nodes[-1][0] is ops.AT and nodes[-1][1] in _EDGES_RIGHT:
            # Python's `$` also matches before a line end that ends the text.
            after = r"(?:\\n)?" if self._wide and nodes[-1][1] is ops.AT_END else after
            nodes, right = nodes[:-1], False
        for place in {0, len(nodes) - 1} if nodes else ():
            if _anchored([nodes[place]]):
                options = [nodes[:place] + option + nodes[place + 1 :] for option in _options(nodes[place])]
                return self._either([self.edges(option, left, right, depth + 1) + after for option in options])
        if _anchored(nodes):
            raise PatternRefused("^, $ and their like are supported at the edges of a pattern or group only")
        body = self.sequence(nodes, depth, 1)
        return (f"{ANY}*" if left else "") + body + after + (f"{ANY}*" if right else "")

    def sequence(self, nodes: Iterable[Any], depth: int, product: int) -> str:
        return "".join(self._node(op, argument, depth, product) for op, argument in nodes)

    def _node(self, op: Any, argument: Any, depth: int, product: int) -> str:
        if op in _REFUSED:
            raise PatternRefused(f"{_REFUSED[op]} is not supported")
        if op in (ops.MAX_REPEAT, ops.MIN_REPEAT):
            return self._repeat(argument, depth, product)
        if op is ops.SUBPATTERN:
            if argument[1] or argument[2]:
                raise PatternRefused("flags are not supported in the patterns of a schema; spell out what they mean")
            return "(?:" + self._deeper(argument[3], depth, product) + ")"
        if op is ops.BRANCH:
            return self._either([self._deeper(option, depth, product) for option in argument[1]])
        text = characters(self.set(op, argument))
        self._size += len(text)
        if self._size > MOST_BYTES:
            raise PatternRefused(f"becomes a regex of more than {MOST_BYTES} bytes (limit: generated regex)")
        return text

    def _deeper(self, nodes: Iterable[Any], depth: int, product: int) -> str:
        if depth >= MOST_NESTING:
            raise PatternRefused(f"nested deeper than {MOST_NESTING} groups (limit: depth)")
        return self.sequence(nodes, depth + 1, product)

    def _repeat(self, argument: Any, depth: int, product: int) -> str:
        low, high, nodes = argument
        unbounded = high is ops.MAXREPEAT
        product *= max(1, low if unbounded else high)
        if product > MOST_REPEATS:
            raise PatternRefused(f"repeats something more than {MOST_REPEATS} times (limit: repetition product)")
        return f"(?:{self._deeper(nodes, depth, product)}){{{low},{'' if unbounded else high}}}"

    def _either(self, options: Sequence[str]) -> str:
        return "(?:" + "|".join(options) + ")"

    def set(self, op: Any, argument: Any) -> Ranges:
        if op is ops.LITERAL:
            return ((argument, argument),)
        if op is ops.NOT_LITERAL:
            return charsets.complement(((argument, argument),))
        if op is ops.ANY:
            return charsets.complement(_LINE_ENDS[:1] if self._wide else _LINE_ENDS)
        if op is ops.IN:
            negated = argument[0][0] is ops.NEGATE
            members = self._members(argument[negated:], self._wide != negated)
            return charsets.complement(members) if negated else members
        raise PatternRefused(f"{str(op).lower()} is not supported")

    def _members(self, items: Iterable[Any], wide: bool) -> Ranges:
        found: list[tuple[int, int]] = []
        for op, argument in items:
            if op is ops.CATEGORY:
                found.extend(_category(argument, wide))
            else:
                found.append((argument, argument) if op is ops.LITERAL else argument)
        return charsets.of(found)


def _anchored(nodes: Iterable[Any]) -> bool:
    """Whether an anchor (or a word boundary) is anywhere in these nodes."""
    todo = list(nodes)
    while todo:
        op, argument = todo.pop()
        if op is ops.AT:
            return True
        if op is ops.SUBPATTERN:
            todo.extend(argument[3])
        elif op is ops.BRANCH:
            todo.extend(node for option in argument[1] for node in option)
        elif op in (ops.MAX_REPEAT, ops.MIN_REPEAT):
            todo.extend(argument[2])
    return False


def _options(node: Any) -> list[list[Any]]:
    """The alternatives of a group that stands at an edge."""
    op, argument = node
    if op is ops.SUBPATTERN and not argument[1] and not argument[2]:
        return [list(argument[3])]
    if op is ops.BRANCH:
        return [list(option) for option in argument[1]]
    raise PatternRefused("^, $ and their like are supported at the edges of a pattern or group only")


def _formats() -> dict[str, str]:
    year = "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
    leap = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
    days = "(?:0[1-9]|1[0-9]|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31"
    date = f"(?:{year}-(?:(?:0[1-9]|1[0-2])-{days})|{leap}-02-29)"
    time = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?(?:Z|[+\-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
    label = "[A-Za-z0-9](?:[A-Za-z0-9\\-]{0,61}[A-Za-z0-9])?"
    host = rf"{label}(?:\.{label}){{0,3}}"
    byte = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
    group = "[0-9a-fA-F]{1,4}"
    atom = r"[A-Za-z0-9!#$%&'*+\-\/=?\^_`{|}~]+"
    pchar = r"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@]|%[0-9A-Fa-f]{2})"
    query = rf"(?:\?(?:{pchar}|[\/?])*)?(?:\#(?:{pchar}|[\/?])*)?"
    authority = rf"(?:(?:[A-Za-z0-9\-._~]|%[0-9A-Fa-f]{{2}})+@)?{host}(?::[0-9]{{1,5}})?"
    path = rf"(?:\/{pchar}*)*"
    short = [
        (rf"{group}(?::{group}){{{i - 1}}}" if i else "")
        + "::"
        + (rf"(?:{group}(?::{group}){{0,{6 - i}}})?" if i < 7 else "")
        for i in range(8)
    ]
    number = "[0-9]{1,9}"
    clock = f"T(?:{number}H(?:{number}M(?:{number}S)?)?|{number}M(?:{number}S)?|{number}S)"
    calendar = f"(?:{number}Y(?:{number}M(?:{number}D)?)?|{number}M(?:{number}D)?|{number}D)(?:{clock})?"
    token = r"(?:\/(?:[^\/~\"\\\x00-\x1f]|~[01])*)*"
    return {
        "date": date,
        "time": time,
        "date-time": f"{date}T{time}",
        "duration": f"P(?:{calendar}|{clock}|{number}W)",
        "email": rf"{atom}(?:\.{atom})*@{host}",
        "hostname": host,
        "ipv4": rf"{byte}(?:\.{byte}){{3}}",
        "ipv6": f"(?:{group}(?::{group}){{7}}|{'|'.join(short)})",
        "uuid": "[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
        "uri": rf"[A-Za-z][A-Za-z0-9+\-.]*:(?:\/\/{authority}{path}|\/(?:{pchar}+{path})?|{pchar}+{path}){query}",
        "json-pointer": token,
    }


FORMATS: Final[dict[str, str]] = _formats()

SHORT_TEXTS: Final[dict[str, str]] = {
    "date": "2000-01-01",
    "time": "00:00:00Z",
    "date-time": "2000-01-01T00:00:00Z",
    "duration": "P1D",
    "email": "a@b",
    "hostname": "a",
    "ipv4": "0.0.0.0",
    "ipv6": "::",
    "uuid": "00000000-0000-0000-0000-000000000000",
    "uri": "a:b",
    "json-pointer": "",
}


def example(pattern: str) -> str:
    """A shortest text that a pattern matches, as far as anchors do not matter."""
    writer = _Writer(False)

    def shortest(nodes: Iterable[Any]) -> str:
        return "".join(of(op, argument) for op, argument in nodes)

    def of(op: Any, argument: Any) -> str:
        if op in (ops.MAX_REPEAT, ops.MIN_REPEAT):
            return shortest(argument[2]) * int(argument[0])
        if op is ops.SUBPATTERN:
            return shortest(argument[3])
        if op is ops.BRANCH:
            return min((shortest(option) for option in argument[1]), key=len)
        if op is ops.AT:
            return ""
        members = writer.set(op, argument)
        plain = [r for r in members if r[1] >= 0x30] or list(members)
        return chr(max(plain[0][0], 0x30 if plain[0][1] >= 0x30 else 0)) if plain else ""

    return shortest(_parser.parse(pattern))
