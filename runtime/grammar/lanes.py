"""Lanes: texts that no token may spell, added to a program so that masks inside its strings cost what they cost in
unbounded ones.

In: a program, with marks on terminals of JSON strings. Out: the same program with lanes. A mask costs a walk over all
tokens that are not in a slice (tokens.py) which the lexer's state holds whole; of strings with few characters left, and
of keys beside declared ones, no large slice does (up to 0.6 ms). Lanes are terminals beside them that do. Their texts
need control characters (`SIGNALS`), which stand raw in no JSON text, and which no mask of such a program allows.

- A free key is any but the declared ones. Whatever stands in it unescaped can go on to another key, so a lane of any
  plain characters and `WIDE` has no beginning without a signal that the key has not. So it is with some patterns.
- A string of at most n characters counts `COUNT` as one, which is how many are left: as many as can be followed. After
  a `GATE`, it goes on as before, and any number of plain characters may stand: a slice. Tokens that are too long are
  taken out by a table of their lengths (`Lexicon.longer`). This is exact only where no other terminal shares the
  beginning: the mark is for such places (json_alone.py).
"""

from __future__ import annotations

import re
from typing import Final

from ramet.runtime.grammar.json_patterns import ANY, ANY_SPELLING

GATE, COUNT, WIDE = "\x01", "\x02", "\x03"
SIGNALS: Final = (GATE + COUNT + WIDE).encode()
# Characters that stand for themselves in any JSON string. U+2028 and U+2029 are left out because the dot of a schema's
# pattern leaves them out.
PLAIN: Final = r'[^"\\\x00-\x1F\x7F\u{2028}\u{2029}]'
RARE: Final = "\U0010fffd"  # a private character, with which no name ends that anybody declares
_COUNTED: Final = '"(?P<counted>'
_FREE: Final = f'"(?P<free>{ANY}*)"'
_COUNT = re.compile(r"(\w+): /" + re.escape(_COUNTED + ANY_SPELLING) + r'\{(\d+),(\d+)\}\)"/')
_ANY_KEY = re.compile(r"(\w+): /" + re.escape(_FREE) + "/")
_KEY = re.compile(r"(\w+): (\w+)(?: & ~?\w+)+")
# In a rule: what is no name of a terminal (strings, regexes), or one.
_PIECE = re.compile(r'"(?:[^"\\]|\\.)*"|/(?:[^/\\]|\\.)*/|\b[A-Z]\w*\b')
_NESTED, _END = "%lark {", "}"


def counted(low: int, high: int) -> str:
    """The marked regex of a string of `low` to `high` (> 0) characters, where no other terminal begins like it."""
    return f'{_COUNTED}{ANY_SPELLING}{{{low},{high}}})"'


def free() -> str:
    """The marked regex of any string, each in one spelling, for a terminal of the form `free & these & ~those` to
    which any plain characters can be completed: by `RARE`, say."""
    return _FREE


def marked(program: str) -> bool:
    """Whether a program has terminals that may get lanes."""
    return _COUNTED in program or _FREE in program


def widened(program: str) -> str:
    """The program with its lanes. Names of terminals are a block's own."""
    if not marked(program):
        return program
    blocks: list[list[str]] = [[]]
    for line in program.split("\n"):
        if line == _END and len(blocks) > 1:
            inner = _block(blocks.pop())
            blocks[-1] += [*inner, line]
        else:
            blocks[-1].append(line)
            if line.endswith(_NESTED):
                blocks.append([])
    assert len(blocks) == 1, "a nested grammar ends in the program that it is nested in"
    return "\n".join(_block(blocks[0]))


def _block(lines: list[str]) -> list[str]:
    """A block's lines with its lanes."""
    lanes: dict[str, list[str]] = {}  # terminal: the regexes of its lanes
    rewritten: dict[str, str] = {}
    anything: set[str] = set()
    for line in lines:
        if found := _COUNT.fullmatch(line):
            name, low, high = found.group(1), int(found.group(2)), int(found.group(3))
            one = f"(?:{ANY_SPELLING}|{_escape(COUNT)})"
            rewritten[line] = f'{name}: /"(?:{_escape(GATE)}?{one}){{{low},{high}}}"/'
            lanes[name] = _gated(low, high)
        elif found := _ANY_KEY.fullmatch(line):
            anything.add(found.group(1))
    for line in lines:
        if (found := _KEY.fullmatch(line)) and found.group(2) in anything:
            lanes[found.group(1)] = [f'"{PLAIN}*{_escape(WIDE)}']
    if not lanes:
        return lines
    rules = [rewritten.get(line, line) if line[:1].isupper() else _with(line, lanes) for line in lines]
    terminals = [
        f"{lane}: /{regex}/" for name in lanes for lane, regex in zip(_names(name, lanes), lanes[name], strict=True)
    ]
    return [*rules, *terminals]


def _gated(low: int, high: int) -> list[str]:
    """Lanes of a counted string. Once a gate is there: any number of plain characters; and the end, where it may end.
    There is no gate where the string is full, as its end is forced there. In one terminal, they would be too much for
    llguidance to find a slice in."""
    gate = _escape(GATE)
    some = f'"{ANY_SPELLING}{{0,{high - 1}}}{gate}{PLAIN}+{gate}'
    return [some, f'"{ANY_SPELLING}{{{low},{high - 1}}}{gate}"'] if low < high else [some]


def _with(line: str, lanes: dict[str, list[str]]) -> str:
    """A line of a rule, with the lanes beside each terminal that has any."""

    def piece(found: re.Match[str]) -> str:
        name = found.group()
        return f"({' | '.join((name, *_names(name, lanes)))})" if name in lanes else name

    return _PIECE.sub(piece, line)


def _names(name: str, lanes: dict[str, list[str]]) -> list[str]:
    return [f"{name}_LANE_{i}" for i in range(len(lanes[name]))]


def _escape(signal: str) -> str:
    return f"\\x{ord(signal):02x}"
