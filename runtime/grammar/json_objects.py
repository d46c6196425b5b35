"""Objects of JSON schemas as rules.

In: the declared properties of an object in their order, and terminals of all other keys. Out: rules. A declared key
occurs at most once by construction; other keys are told apart by no grammar, so at most one of them counts towards
`minProperties`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from ramet.runtime.grammar.json_arrays import Writer, times
from ramet.runtime.grammar.json_shapes import Obj, State, Unenforced

MOST_NODES: Final = 20_000
MOST_FREE_ORDER: Final = 32
MOST_FREE: Final = 10_000


@dataclass(frozen=True)
class Free:
    """Keys that are not declared: their terminal, the state of their values, a short one."""

    key: str
    state: State
    example: str | None


@dataclass(frozen=True)
class Fields:
    """The declared properties of an object in their order, and all others."""

    named: tuple[tuple[str, State], ...]
    free: tuple[Free, ...] = ()


def object_text(shape: Obj, fields: Fields, writer: Writer) -> tuple[bool, str | None]:
    """Whether an object has texts, and a short one."""
    states = dict(fields.named)
    if not all(writer.alive(states[name]) for name in shape.required):
        return False, None
    spare = [name for name in states if name not in shape.required and writer.alive(states[name])]
    spare.sort(key=lambda name: len(name) + len(writer.text(states[name]) or ""))
    chosen = {*shape.required, *spare[: max(0, shape.low - len(shape.required))]}
    members: list[str | None] = [_member(name, writer.text(states[name])) for name in states if name in chosen]
    if len(chosen) < shape.low:
        free = [one for one in fields.free if writer.alive(one.state)]
        if not free or len(chosen) + 1 < shape.low:
            return False, None
        text = writer.text(free[0].state)
        members.append(f"{free[0].example}: {text}" if free[0].example is not None and text is not None else None)
    known = [member for member in members if member is not None]
    return True, "{" + ", ".join(known) + "}" if len(known) == len(members) else None


def _member(name: str, text: str | None) -> str | None:
    return None if text is None else f"{json.dumps(name, ensure_ascii=False)}: {text}"


def object_rules(writer: Writer, shape: Obj, fields: Fields) -> list[str]:
    """What a rule offers for an object."""
    free_order = (
        not shape.required
        and shape.low <= 1
        and shape.high is None
        and 2 <= sum(writer.alive(state) for _, state in fields.named) <= MOST_FREE_ORDER
    )
    inside = _any_order(writer, shape, fields) if free_order else _Chain(writer, shape, fields).start()
    return [f"{writer.layout.open_object} {inside} {writer.layout.close_object}"]


def _any_order(writer: Writer, shape: Obj, fields: Fields) -> str:
    """A rule for properties none of which is required: nothing of such an object is known in advance, so an order would
    only keep a model from what it forgot. Its parameter has a bit for each property that is there already, and the
    last bit for any."""
    layout, name = writer.layout, writer.rules.fresh()
    alive = [(one, state) for one, state in fields.named if writer.alive(state)]
    members = [f"{layout.key(one)} {writer.value(state)}" for one, state in alive]
    some, free = len(members), _free_member(writer, fields)
    first, later = f"bit_clear({some})", f"bit_set({some})"
    options = [f'"" %if {later}' if shape.low else '""']
    for bit, member in enumerate(members):
        after = f"{name}::bit_or({hex(1 << bit | 1 << some)})"
        options.append(f"{member} {after} %if {first}")
        options.append(f"{layout.separator} {member} {after} %if and({later}, bit_clear({bit}))")
    if free:
        options.append(f"{free} {name}::set_bit({some}) %if {first}")
        options.append(f"{layout.separator} {free} {name}::set_bit({some}) %if {later}")
    writer.rules.define(f"{name}::_", options)
    return f"{name}::0x0"


def _free_member(writer: Writer, fields: Fields) -> str | None:
    """A member whose key is not declared, as a rule's piece."""
    members = [
        f"{one.key} {writer.layout.colon} {writer.value(one.state)}" for one in fields.free if writer.alive(one.state)
    ]
    return (members[0] if len(members) == 1 else f"({' | '.join(members)})") if members else None


class _Chain:
    """Rules `(i, n)`: the segments from the i-th on, when n members stand before (no further than it matters). A
    segment is a run of required properties, or an optional one."""

    def __init__(self, writer: Writer, shape: Obj, fields: Fields) -> None:
        self._writer = writer
        self._shape = shape
        self._fields = fields
        self._free = any(writer.alive(one.state) for one in fields.free)
        self._segments: list[tuple[bool, list[str]]] = []
        required = set(shape.required)
        for name, state in fields.named:
            if not writer.alive(state):
                continue
            member = f"{writer.layout.key(name)} {writer.value(state)}"
            if name in required and self._segments and self._segments[-1][0]:
                self._segments[-1][1].append(member)
            else:
                self._segments.append((name in required, [member]))
        sizes = [len(members) for _, members in self._segments]
        needs = [len(members) if must else 0 for must, members in self._segments]
        self._left = [sum(sizes[i:]) for i in range(len(sizes) + 1)]
        self._due = [sum(needs[i:]) for i in range(len(needs) + 1)]
        self._cap = max(1, shape.low, min(shape.high, self._left[0] + 1) if shape.high is not None else 0)
        self._bounded = shape.high is not None and (self._free or shape.high < self._left[0])
        if self._bounded and shape.high is not None:
            self._cap = max(1, shape.low, shape.high)
        if (len(sizes) + 1) * (min(self._cap, self._left[0]) + 1) > MOST_NODES:
            keyword = "maxProperties" if self._bounded else "minProperties"
            raise Unenforced(keyword, "is too high for this many properties (limit: combinations)")
        self._names: dict[tuple[int, int], str] = {}
        self._todo: list[tuple[int, int]] = []

    def start(self) -> str:
        """Write all rules; returns the first one's name."""
        name = self._name(0, 0)
        while self._todo:
            i, count = self._todo.pop()
            options = self._last(count) if i == len(self._segments) else self._segment(i, count)
            self._writer.rules.define(self._names[i, count], options)
        return name

    def _name(self, i: int, count: int) -> str:
        node = (i, min(count, self._cap))
        if node not in self._names:
            self._names[node] = self._writer.rules.fresh()
            self._todo.append(node)
        return self._names[node]

    def _joined(self, count: int, members: list[str]) -> str:
        comma = self._writer.layout.separator
        return (f"{comma} " if count else "") + f" {comma} ".join(members)

    def _segment(self, i: int, count: int) -> list[str]:
        must, members = self._segments[i]
        after = count + len(members)
        options = []
        if must or not self._bounded or after + self._due[i + 1] <= (self._shape.high or 0):
            options.append(f"{self._joined(count, members)} {self._name(i + 1, after)}")
        if not must and count + self._left[i + 1] + self._free >= self._shape.low:
            options.append(self._name(i + 1, count))
        return options

    def _last(self, count: int) -> list[str]:
        """Members that are not declared, any number of them that the bounds allow."""
        layout, low, high = self._writer.layout, self._shape.low, self._shape.high
        options = ['""'] if count >= low else []
        member = _free_member(self._writer, self._fields)
        if member is None or (self._bounded and count >= (high or 0)):
            return options
        first = f"{layout.separator} {member}" if count else member
        most = min(high - count - 1, MOST_FREE) if self._bounded and high is not None else None
        return [*options, f"{first} {times(f'({layout.separator} {member})', 0, most)}"]
