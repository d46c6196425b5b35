"""What the user's functions do with values where no symbol is told: by their bytecode.

In: code. Out: which instruction takes a value that another one made, or a text or a container that it is put in;
whether it compares that, looks for it, looks it up or calls a function with it.
"""

from __future__ import annotations

import dis
import functools
from collections.abc import Iterator, Sequence
from types import CodeType
from typing import NamedTuple

IS = "asks what is"
KEEPS = "keeps something under"
ITERATES = "iterates over"
_LOOKS = {
    "COMPARE_OP": "compares",
    "CONTAINS_OP": "looks for",
    "BINARY_SUBSCR": "looks up",
    "STORE_SUBSCR": KEEPS,
    "IS_OP": IS,
    "MATCH_CLASS": "matches",
    "GET_ITER": ITERATES,
}
_PEEKS = {  # that leave the value where it is, or as many parts as they are told
    "MATCH_SEQUENCE": "matches",
    "MATCH_MAPPING": "matches",
    "UNPACK_SEQUENCE": ITERATES,
    "UNPACK_EX": ITERATES,
}
ASKS = {  # functions that look at an argument of theirs, and where that stands
    **dict.fromkeys(("type", "hash", "int", "float", "complex", "bytes", "bytearray"), 0),
    **dict.fromkeys(("list", "tuple", "set", "frozenset", "iter", "reversed", "enumerate"), 0),
    **dict.fromkeys(("getattr", "setattr", "hasattr", "delattr"), 1),
}
COLLECTS = frozenset(("set", "frozenset", "Counter", "fromkeys", "groupby", "update"))  # of what is equal one alone
_MADE = ("BUILD_STRING", "FORMAT_VALUE", "FORMAT_SIMPLE", "FORMAT_WITH_SPEC", "CONVERT_VALUE", "BINARY_OP")
_HELD = ("BUILD_LIST", "BUILD_TUPLE", "BUILD_SET", "BUILD_MAP", "BUILD_CONST_KEY_MAP")
_NOTHING = ("PRECALL", "KW_NAMES", "NOP", "CACHE", "EXTENDED_ARG", "RESUME", "NOT_TAKEN")
_AWAITS = ("YIELD_VALUE", "JUMP_BACKWARD_NO_INTERRUPT", "END_SEND")
_TAKES_ALL = ("STORE_", "POP_TOP", "RETURN_VALUE", "DELETE_")  # and leaves nothing
_HARD = ("JUMP", "SWAP", "COPY", "SEND", "YIELD", "FOR_ITER", "UNPACK")  # here this stops following
_Found = Sequence[dis.Instruction]


class Index(NamedTuple):
    """An index of a way: a constant, or a variable's value."""

    value: object
    variable: bool = False


Way = tuple[str | Index, ...]  # a variable's name, then names of attributes (".name") and indices


class Taker(NamedTuple):
    """The instruction that takes a value. `doing`: what it does with it, "calls" for a call of `callee`, of which it is
    the argument at `position`; else `position` counts operands from the top. `held`: it is the "item" of a container
    there ("mixed": beside constants), the "key" of a dict or a "field" of one; "" by itself. `beside`: the other
    operand is a text that the program makes, too."""

    offset: int
    doing: str
    position: int
    held: str = ""
    callee: str = ""
    beside: bool = False

    @property
    def container(self) -> bool:
        """Something else is looked for or looked up in it."""
        return self.position == {"looks for": 0, "looks up": 1, KEEPS: 1}.get(self.doing)


class Table(NamedTuple):
    """Of a code: the ways to values that an instruction takes as they are, or as a part of something, by instructions;
    of those that look at values also by lines."""

    ways: dict[int, list[tuple[Way, Taker]]]
    lines: dict[int, list[tuple[Way, Taker]]]
    late: frozenset[int]  # lines that look at variables that they assign


@functools.lru_cache(maxsize=1024)
def _instructions(code: CodeType) -> tuple[list[dis.Instruction], dict[int, int]]:
    found = [part for each in dis.get_instructions(code) if each.opname not in _NOTHING for part in _parts(each)]
    return found, {each.offset: index for index, each in enumerate(found)}


def _parts(each: dis.Instruction) -> Iterator[dis.Instruction]:
    """Python 3.13 makes one instruction of two that load or store variables."""
    names = each.argval if isinstance(each.argval, tuple) else ()
    doings = [doing for doing in each.opname.split("_") if doing in ("LOAD", "STORE")]
    if "_FAST" not in each.opname or len(names) != 2 or len(doings) != 2:
        yield each
        return
    for doing, name in zip(doings, names, strict=True):
        opname = f"{doing}_FAST"
        yield each._replace(opname=opname, opcode=dis.opmap[opname], arg=0, argval=name, argrepr=name)


@functools.lru_cache(maxsize=8192)
def taker(code: CodeType, offset: int) -> Taker | None:
    """Which instruction takes the value that is made at `offset`, or what is made of it; None where it is not one of
    those that look or call, or cannot be told."""
    found, indices = _instructions(code)
    while offset >= 0 and offset not in indices:  # a caller's frame stands behind the instruction, in its cache
        offset -= 2
    if offset < 0:
        return None
    index = indices[offset]
    if found[index].opname == "SEND":  # of an `await`: the value comes behind its loop
        while index + 1 < len(found) and found[index + 1].opname in _AWAITS:
            index += 1
    return _taker(found, index, 0)


def _taker(found: _Found, index: int, above: int, held: str = "") -> Taker | None:
    """`above`: how many values lie on top of it."""
    at = index + 1
    while at < len(found):
        each = found[at]
        if above == 0 and each.opname.startswith("POP_JUMP") and each.opname.endswith("_NONE"):
            return Taker(each.offset, IS, 0, held)
        if above == 0 and each.opname in _PEEKS:
            return Taker(each.offset, _PEEKS[each.opname], 0, held)
        copies = _copies(found, at, above)
        if copies:
            at += copies
            continue
        if any(name in each.opname for name in _HARD):
            return None
        takes, leaves = _moves(each)
        if takes > above:
            return _taken(found, at, above, held)
        above += leaves - takes
        at += 1
    return None


def _copies(found: _Found, at: int, above: int) -> int:
    """How many instructions from `at` on only copy operands, for what comes next."""
    names = [(each.opname, each.arg) for each in found[at : at + 3]]
    if above == 0 and names[:1] == [("COPY", 1)]:  # x := ..., the subject of a match
        return 2 if len(names) > 1 and names[1][0].startswith("STORE_") else 1
    if above == 0 and names[:2] == [("SWAP", 2), ("COPY", 2)] and names[2][0] == "COMPARE_OP":  # a < x < b
        return 2
    return 2 if above < 2 and names[:2] == [("COPY", 2), ("COPY", 2)] else 0  # d[x] += ...


def _taken(found: _Found, at: int, above: int, held: str) -> Taker | None:
    """The taker of a value that the instruction at `at` takes."""
    each = found[at]
    doing = _doing(each)
    if doing == "calls":
        count = each.arg or 0
        _, before = _operands(found, at, count)
        before -= before >= 0 and found[before].opname == "PUSH_NULL"  # Python 3.13 puts it behind the function
        known = before >= 0 and found[before].opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_METHOD", "LOAD_ATTR")
        name = str(found[before].argval) if known else ""
        asks = name in COLLECTS or (name in ASKS and not (name == "type" and count > 1))
        return Taker(each.offset, doing, count - 1 - above, held, name if asks else "")
    if doing in ("compares", "matches", IS, ITERATES):
        return Taker(each.offset, doing, above, held)
    if doing:
        operands, _ = _operands(found, at, 2)
        beside = len(operands) == 2 and above < 2 and found[operands[1 - above]].opname in _MADE
        taken = Taker(each.offset, doing, above, held, beside=beside)
        if doing == KEEPS and above == 2:
            return None
        inside = ("item", "mixed", "key") if doing == "looks for" else ("", "key") if doing == "looks up" else ("key",)
        if taken.container and held not in inside and not (doing == "looks for" and not held):
            return None
        return taken
    if each.opname in _MADE:
        if held and each.argrepr in ("&", "|", "-", "^"):
            return Taker(each.offset, "compares", above, held)
        return _taker(found, at, 0, held if each.argrepr == "+" else "")
    return _holder(found, at, above, held) if each.opname in _HELD else None


def _holder(found: _Found, at: int, above: int, held: str) -> Taker | None:
    each = found[at]
    operands, _ = _operands(found, at, _moves(each)[0])
    keys = {"BUILD_SET": operands, "BUILD_MAP": operands[1::2]}.get(each.opname, [])
    is_key = each.opname == "BUILD_SET" or (each.opname == "BUILD_MAP" and above % 2 == 1)
    if is_key and any(found[key].opname == "LOAD_CONST" and isinstance(found[key].argval, str) for key in keys):
        return Taker(each.offset, "compares", 0, held)
    if each.opname in ("BUILD_MAP", "BUILD_CONST_KEY_MAP"):
        return _taker(found, at, 0, "key" if is_key else "field")
    mixed = any(found[item].opname == "LOAD_CONST" and isinstance(found[item].argval, str) for item in operands)
    return _taker(found, at, 0, held or ("mixed" if mixed else "item"))


def _operands(found: _Found, at: int, count: int) -> tuple[list[int], int]:
    """The instructions that make the `count` topmost values that the one at `at` finds, the topmost first, and the one
    before all these; fewer where this cannot be told."""
    made: list[int] = []
    at -= 1
    while len(made) < count and at >= 0:
        made.append(at)
        need = 1
        while need > 0 and at >= 0:
            if any(name in found[at].opname for name in _HARD):
                return made, -1
            takes, leaves = _moves(found[at])
            need += takes - leaves
            at -= 1
    return made, at


def _doing(each: dis.Instruction) -> str:
    if each.opname == "BINARY_OP" and each.argrepr == "[]":  # Python 3.14
        return "looks up"
    return "calls" if each.opname == "CALL" else _LOOKS.get(each.opname, "")


def _moves(each: dis.Instruction) -> tuple[int, int]:
    """How many values an instruction takes from the stack, and how many it leaves there."""
    if each.opname == "CALL":
        return (each.arg or 0) + 2, 1
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
    ways: dict[int, list[tuple[Way, Taker]]] = {}
    lines: dict[int, list[tuple[Way, Taker]]] = {}
    stored: set[tuple[int, str]] = set()
    for index, each in enumerate(found):
        name = loaded(each)
        taken = _taker(found, index, 0) if name else None
        if taken is not None:
            ways.setdefault(taken.offset, []).append(((name,), taken))
        if name:
            _further(found, index, (name,), ways)
        line = each.positions.lineno if each.positions is not None else None
        looks = [(way, taken) for way, taken in ways.get(each.offset, ()) if taken.doing != "calls" or taken.callee]
        if line is not None and looks:
            lines.setdefault(line, []).extend(looks)
        if line is not None and each.opname.startswith("STORE_"):
            stored.add((line, str(each.argval)))
    late = (line for line, looks in lines.items() if any((line, way[0]) in stored for way, _ in looks))
    return Table(ways, lines, frozenset(late))


def _further(found: _Found, index: int, way: Way, ways: dict[int, list[tuple[Way, Taker]]]) -> None:
    """What takes the attributes and items of a variable that is loaded at `index`."""
    at = index + 1
    while at < len(found):
        step, count = _step(found, at)
        if step is None:
            return
        way, at = (*way, step), at + count - 1
        taken = _taker(found, at, 0)
        if taken is not None:
            ways.setdefault(taken.offset, []).append((way, taken))
        at += 1


def _step(found: _Found, at: int) -> tuple[str | Index | None, int]:
    """A step of a way that begins at an instruction, and of how many it is: .name, [index], .get(index)."""
    names = [_doing(each) or each.opname for each in found[at : at + 4]]
    if names[0] in ("LOAD_ATTR", "LOAD_METHOD") and found[at].argval == "get" and names[2:3] == ["calls"]:
        index = _index(found[at + 1])
        return (index, 3) if found[at + 2].arg == 1 else (None, 0)
    if names[0] == "LOAD_ATTR" and _moves(found[at])[1] == 1:
        return f".{found[at].argval}", 1
    return (_index(found[at]), 2) if names[1:2] == ["looks up"] else (None, 0)


def _index(each: dis.Instruction) -> Index | None:
    if each.opname in ("LOAD_CONST", "LOAD_SMALL_INT"):
        return Index(each.argval)
    name = loaded(each)
    return Index(name, variable=True) if name else None


@functools.lru_cache(maxsize=8192)
def arguments(code: CodeType, offset: int) -> tuple[str, ...]:
    """The variables that the call at `offset` makes its arguments of."""
    found, indices = _instructions(code)
    at = indices.get(offset)
    if at is None:
        return ()
    _, before = _operands(found, at, _moves(found[at])[0])
    return tuple(filter(None, map(loaded, found[max(before, 0) : at])))


def loaded(each: dis.Instruction) -> str:
    """The variable whose value an instruction leaves on the stack."""
    loads = ("LOAD_FAST", "LOAD_DEREF", "LOAD_NAME", "LOAD_GLOBAL", "LOAD_CLOSURE")
    return str(each.argval) if each.opname.startswith(loads) else ""
