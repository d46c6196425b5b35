"""One path of a plan, by sequence: what was forked from where, whose values are used, how it ends.

In: a document and one of its paths. Out: a `Lineage` that checks can walk, and diagnostics that know their path.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import msgspec

from ramet.frontend.diagnostics import Diagnostic, Severity
from ramet.frontend.ir import ROOT, Close, Fork, Gen, Join, Ref, Select
from ramet.frontend.planned import (
    Decision,
    Document,
    Fields,
    Given,
    Many,
    Param,
    Part,
    Return,
    Returned,
    Said,
    Step,
    Whole,
)
from ramet.frontend.planned import Use as UseOf

T = TypeVar("T")
_MARKS = re.compile(r"(?:\\U0010[0-9a-f]{4}|[\U00100000-\U0010fdff])+")
_VALUE = re.compile(r"the value of (0(?:\.b?\d+)+)")


class Lineage:
    """A path.

    `steps`: all of them, in order. `own`: each sequence's. `used`: operations whose values are read, said, decided on
    or returned; `params`: parameters that are. `closed`: sequences that the program has ended on purpose (joined, left
    for another branch); `joined`: those whose text goes on in another.
    """

    def __init__(self, document: Document, path: tuple[int, ...]) -> None:
        self.document = document
        self.path = path
        self.end = document.nodes[path[-1]].end
        self.steps: list[Step] = []
        self.own: dict[str, list[Step]] = {ROOT: []}
        self.calls: dict[str, Step] = {}
        self.used: set[str] = set()
        self.params: set[str] = set()
        self.closed: set[str] = set()
        self.joined: set[str] = set()
        self._node: dict[str, int] = {ROOT: 0}  # of an operation or a sequence: place in the path
        for place, index in enumerate(path):
            node = document.nodes[index]
            for step in node.steps:
                self._take(step, place)
            self.used.update(read.op for read in node.reads)
            if isinstance(node.end, Decision):
                self._part(node.end.on)
            elif isinstance(node.end, Return):
                for value in _inside(node.end.value):
                    self._returned(value)

    @property
    def returns(self) -> bool:
        """The path is known to its end."""
        return isinstance(self.end, Return)

    def _take(self, step: Step, place: int) -> None:
        op = step.op
        self.steps.append(step)
        self._node[op.id] = place
        self.own.setdefault(op.seq, []).append(step)
        for part in step.needs():
            self._part(part)
        if isinstance(op, Gen | Select):
            self.calls[op.id] = step
        elif isinstance(op, Fork):
            self.own.update({path: [] for path in op.into})
            self._node.update(dict.fromkeys(op.into, place))
        elif isinstance(op, Close):
            self.closed.add(op.seq)
        elif isinstance(op, Join):
            self.joined.update(op.branches)

    def _part(self, part: Part) -> None:
        if isinstance(part, Param):
            self.params.add(part.name)
        elif isinstance(part, UseOf | Ref):
            self.used.add(part.op)

    def _returned(self, value: Returned) -> None:
        if isinstance(value, Said):
            for part in value.parts:
                self._part(part)
        elif isinstance(value, Whole):
            self.used.add(value.op)
        elif isinstance(value, Given):
            self.params.add(value.name)

    def made(self, name: str) -> tuple[int, str]:
        """An operation or a sequence, with the node that makes it: ids are counted along each path, so another path has
        others by the same."""
        return self.path[self._node[name]], name

    def found(self, code: str, severity: Severity, step: Step, message: str, remedy: str) -> Diagnostic:
        """A diagnostic about a step."""
        place = self._node[step.op.id]
        return Diagnostic(code, severity, message, step.where, remedy, self.path[: place + 1], self.when(place))

    def when(self, place: int) -> str:
        """The decisions on the way to a node, in words."""
        said: list[str] = []
        for index, child in zip(self.path[:place], self.path[1 : place + 1], strict=True):
            end = self.document.nodes[index].end
            assert isinstance(end, Decision), "only decisions lead on"
            on = end.on.name if isinstance(end.on, Param) else self.name(end.on.op)
            said.append(f"{on} is {end.outcomes[end.nodes.index(child)]!r}")
        return " and ".join(said)

    def name(self, op: str) -> str:
        """What a value is called: its variable, or the line that it comes from."""
        step = self.calls.get(op)
        return (variable(step) if step is not None else "") or (f"the call at {step.where}" if step is not None else op)


class Reached:
    """What some path uses: what is left over on one of them may have been computed ahead for another. Of a path that
    goes on in Python, anything may be used. Operations and sequences are those of `Lineage.made`."""

    def __init__(self, lines: Sequence[Lineage]) -> None:
        self.used: set[tuple[int, str]] = set()
        self.closed: set[tuple[int, str]] = set()
        self.joined: set[tuple[int, str]] = set()
        for line in lines:
            self.used.update(map(line.made, line.used if line.returns else line.calls))
            self.closed.update(map(line.made, line.closed if line.returns else line.own))
            self.joined.update(map(line.made, line.joined))


def named_values(reason: str, name: Callable[[str], str]) -> str:
    """The reason of a graph break, with names in place of operations."""
    return _VALUE.sub(lambda found: f"the value of {name(found[1])}", unmarked(reason))


def unmarked(text: str) -> str:
    """What an error said, without the sentinels of a trace in it."""
    return _MARKS.sub("{...}", text)


def variable(step: Step) -> str:
    """The name of the variable that a step defines, "" where it has none of its own."""
    var = str(getattr(step.op, "var", ""))
    return "" if var == f"_{step.op.id}" else var


def inherit(table: dict[str, T], step: Step) -> None:
    """Branches begin with what is known of the sequence that they were forked from."""
    if isinstance(step.op, Fork):
        known = table.get(step.op.seq)
        if known is not None:
            table.update(dict.fromkeys(step.op.into, known))


def alike(step: Step) -> tuple[bytes, tuple[object, ...]]:
    """What a step does, whichever branch of a fork it stands on."""
    op = step.op
    changes: dict[str, object] = {"id": "", "seq": ""}
    if hasattr(op, "var") and not variable(step):
        changes["var"] = ""
    if isinstance(op, Fork):
        changes["into"] = tuple(str(len(op.into)))
    parts = tuple(_relative(part, op.seq) for text in (step.parts, *step.choices) for part in (*text, None))
    return msgspec.json.encode(msgspec.structs.replace(op, **changes)), parts


def _relative(part: Part | None, seq: str) -> object:
    if isinstance(part, UseOf | Ref) and part.op.startswith(f"{seq}."):
        return type(part), part.op.removeprefix(seq)
    return part


def _inside(value: Returned) -> Iterator[Returned]:
    stack = [value]
    while stack:
        each = stack.pop()
        yield each
        if isinstance(each, Many):
            stack.extend(each.items)
        elif isinstance(each, Fields):
            stack.extend(each.items.values())
