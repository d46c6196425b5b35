"""Texts made of symbols, which are plain texts, where Python compares them or looks them up.

In: the bytecode of the user's functions, and the frames that run it. Out: which instruction takes a value that another
one made; whether it compares that value, looks for it or looks it up, where no symbol is told.
"""

from __future__ import annotations

import dis
import functools
from collections.abc import Iterator, Mapping, Sequence
from types import CodeType, FrameType
from typing import Any, NamedTuple

from ramet.frontend.probes import marked

_LOOKS = {"COMPARE_OP": "compares", "CONTAINS_OP": "looks for", "BINARY_SUBSCR": "looks up"}
_MADE = ("BUILD_STRING", "FORMAT_VALUE", "FORMAT_SIMPLE", "FORMAT_WITH_SPEC", "CONVERT_VALUE", "BINARY_OP")
_NOTHING = ("PRECALL", "KW_NAMES", "NOP", "CACHE", "EXTENDED_ARG", "RESUME", "NOT_TAKEN")
_TAKES_ALL = ("STORE_", "POP_TOP", "RETURN_VALUE", "DELETE_")  # and leaves nothing
_HARD = ("JUMP", "SWAP", "COPY", "SEND", "YIELD", "FOR_ITER", "UNPACK")  # here this stops following
SEARCHES: Mapping[type, frozenset[str]] = {  # methods that look for their first argument
    str: frozenset(
        (
            *("startswith", "endswith", "find", "rfind", "index", "rindex", "count", "split", "rsplit", "partition"),
            *("rpartition", "replace", "strip", "lstrip", "rstrip", "removeprefix", "removesuffix", "__contains__"),
        )
    ),
    dict: frozenset(("get", "pop", "__contains__", "__getitem__")),
    list: frozenset(("index", "count", "remove", "__contains__")),
    tuple: frozenset(("index", "count", "__contains__")),
    set: frozenset(("remove", "discard", "__contains__")),
    frozenset: frozenset(("__contains__",)),
}


class Taker(NamedTuple):
    """The instruction that takes a value. `doing`: what it does with it, "calls" for a call, of which the value is the
    argument at `position`."""

    offset: int
    doing: str
    position: int


class Table(NamedTuple):
    """Of a code: the names whose values an instruction takes as they are, or as a part of a text, by instructions; of
    those that look at values also by lines."""

    names: dict[int, list[tuple[str, Taker]]]
    lines: dict[int, list[tuple[str, Taker]]]


@functools.lru_cache(maxsize=1024)
def _instructions(code: CodeType) -> tuple[list[dis.Instruction], dict[int, int]]:
    found = [each for each in dis.get_instructions(code) if each.opname not in _NOTHING]
    return found, {each.offset: index for index, each in enumerate(found)}


@functools.lru_cache(maxsize=8192)
def taker(code: CodeType, offset: int) -> Taker | None:
    """Which instruction takes the value that is made at `offset`, or the text that is made of it; None where it is not
    one of those that look or call, or cannot be told."""
    found, indices = _instructions(code)
    return _taker(found, indices[offset], 0) if offset in indices else None


def _taker(found: Sequence[dis.Instruction], index: int, above: int) -> Taker | None:
    """`above`: how many values lie on top of it."""
    for at in range(index + 1, len(found)):
        each = found[at]
        if any(name in each.opname for name in _HARD):
            return None
        takes, leaves = _moves(each)
        if takes <= above:
            above += leaves - takes
        elif _doing(each):
            return Taker(each.offset, _doing(each), takes - 3 - above)
        elif each.opname in _MADE:
            return _taker(found, at, 0)
        else:
            return None
    return None


def _doing(each: dis.Instruction) -> str:
    if each.opname == "BINARY_OP" and each.argrepr == "[]":  # Python 3.14
        return "looks up"
    return "calls" if each.opname == "CALL" else _LOOKS.get(each.opname, "")


def _moves(each: dis.Instruction) -> tuple[int, int]:
    """How many values an instruction takes from the stack, and how many it leaves there."""
    if each.opname == "CALL":
        return (each.arg or 0) + 2, 1
    if each.opname == "STORE_FAST_LOAD_FAST":
        return 1, 1
    effect = dis.stack_effect(each.opcode, each.arg, jump=False)
    if any(each.opname.startswith(name) for name in _TAKES_ALL):
        return -effect, 0
    if each.opname in ("LOAD_METHOD", "LOAD_ATTR"):
        return 1, 1 + effect
    if each.opname.startswith(("LOAD_", "PUSH_")):
        return 0, effect
    return (1 - effect, 1) if effect < 1 else (0, effect)


@functools.lru_cache(maxsize=1024)
def table(code: CodeType) -> Table:
    """See `Table`."""
    found, _ = _instructions(code)
    names: dict[int, list[tuple[str, Taker]]] = {}
    lines: dict[int, list[tuple[str, Taker]]] = {}
    for index, each in enumerate(found):
        for above, name in enumerate(reversed(_loaded(each))):
            taken = _taker(found, index, above)
            if taken is not None:
                names.setdefault(taken.offset, []).append((name, taken))
        line = each.positions.lineno if each.positions is not None else None
        if line is not None and each.offset in names and _doing(each) != "calls":
            lines.setdefault(line, []).extend(names[each.offset])
    return Table(names, lines)


def _loaded(each: dis.Instruction) -> Sequence[str]:
    """The variables whose values an instruction leaves on the stack."""
    if each.opname == "STORE_FAST_LOAD_FAST":
        return [str(each.argval[1])]
    if not each.opname.startswith(("LOAD_FAST", "LOAD_DEREF", "LOAD_NAME", "LOAD_GLOBAL")):
        return ()
    return [str(name) for name in each.argval] if isinstance(each.argval, tuple) else [str(each.argval)]


def _values(frame: FrameType, offset: int) -> Iterator[tuple[str, Any, Taker]]:
    for name, taken in table(frame.f_code).names.get(offset, ()):
        yield name, frame.f_locals.get(name, frame.f_globals.get(name)), taken


def seen(frame: FrameType, looks: Sequence[tuple[str, Taker]]) -> str:
    """What of texts that only a run knows is looked at by the line at which a frame is, in words; "" where none is.
    `looks` are that line's in `Table.lines`."""
    variables = frame.f_locals
    for name, taken in looks:
        value = variables.get(name)
        if type(value) is str and marked(value) and not among_alike(frame, taken.offset):
            return f"{taken.doing} {name}, a text that only a run knows"
    return ""


def among_alike(frame: FrameType, offset: int) -> bool:
    """An instruction looks a text up among texts of which each is known to a run alone: then only whether they are the
    same counts, which other traces show."""
    containers = (value for _, value, _ in _values(frame, offset) if isinstance(value, dict | list | set | tuple))
    return any(alike(container) for container in containers)


def alike(container: Any) -> bool:
    """All texts in it are known to a run alone."""
    return all(marked(each) for each in container if isinstance(each, str))


def searched(frame: FrameType, owner: object, name: str) -> str:
    """Which variable a method's call looks for, when that holds a text that only a run knows; else ""."""
    if name not in SEARCHES.get(type(owner), ()) or (not isinstance(owner, str) and alike(owner)):
        return ""
    for variable, value, taken in _values(frame, frame.f_lasti):
        if taken.position == 0 and isinstance(value, str) and marked(value):
            return variable
    return ""
