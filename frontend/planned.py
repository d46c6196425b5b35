"""A compiled program as data: what a trace found, what a driver runs, what a file holds.

In: nothing. Out: frozen, tagged structs. A plan is a list of nodes; node 0 is where the program begins. A node is a
straight line of steps and ends in a decision (which node comes next is known once a value is), in what the program
returns, or in a graph break, where only Python knows how it goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from ramet.frontend.ir import AnyOp, Ref

Scalar = None | bool | int | float | str
ReadAs = Literal["text", "int", "float", "json"]
BreakKind = Literal["look", "host", "wait", "program", "raises", "returns", "differs", "limit", "feature"]


class Param(msgspec.Struct, frozen=True, tag="param", forbid_unknown_fields=True):
    """The text of an argument."""

    name: str


class Use(msgspec.Struct, frozen=True, tag="use", forbid_unknown_fields=True, omit_defaults=True):
    """The value of an earlier operation that Python has read and says again: its text (of a number: as Python writes
    the number), tokenised with what stands around it. A `Ref` in its place appends the value's own tokens."""

    op: str
    read: ReadAs = "text"


Part = str | Param | Use | Ref


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An operation of the program, and the user's line ("file.py:12") that asked for it.

    Ids are those of the trace: a run counts anew, since a text that turns out empty is no operation. A `Text` or `Put`
    has its text in `parts`, and nothing in `op` itself; a `Select` whose choices depend on arguments or values has
    them in `choices`. Every other operation is complete in `op`.
    """

    op: AnyOp
    where: str = ""
    parts: tuple[Part, ...] = ()
    choices: tuple[tuple[Part, ...], ...] = ()

    def needs(self) -> Iterator[Param | Use | Ref]:
        """What must be known before it can be sent (a `Ref`: what must have been sent)."""
        for text in (self.parts, *self.choices):
            yield from (part for part in text if not isinstance(part, str))


class Read(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Python reads the value of an operation here for the first time, after `after` steps of its node."""

    op: str
    after: int
    where: str


class Decision(msgspec.Struct, frozen=True, tag="decision", forbid_unknown_fields=True):
    """The program goes on at `nodes[k]` when the text of `on` is `outcomes[k]`."""

    on: Use | Param
    outcomes: tuple[str, ...]
    nodes: tuple[int, ...]
    where: str = ""


class Break(msgspec.Struct, frozen=True, tag="break", forbid_unknown_fields=True):
    """Here Python must go on. `kind`: it looks at free text ("look"), calls a host function ("host"), waits for
    something outside ("wait"), starts another program ("program"), raises ("raises"), returns what no plan can express
    ("returns"), does different things for different texts, or by chance ("differs"), has more paths or steps than were
    asked for ("limit"), or uses what plans do not have ("feature")."""

    kind: BreakKind
    reason: str
    where: str = ""


class Const(msgspec.Struct, frozen=True, tag="const", forbid_unknown_fields=True):
    """A constant."""

    value: Scalar


class Said(msgspec.Struct, frozen=True, tag="said", forbid_unknown_fields=True):
    """A text made of constants, arguments and values."""

    parts: tuple[Part, ...]


class Whole(msgspec.Struct, frozen=True, tag="whole", forbid_unknown_fields=True):
    """The value of an operation, read as its type: a plan in memory makes the type's own value, one from a file the
    JSON data, int, float or str that it is written as."""

    op: str
    read: ReadAs = "text"


class Given(msgspec.Struct, frozen=True, tag="given", forbid_unknown_fields=True):
    """An argument as it was given."""

    name: str


class Many(msgspec.Struct, frozen=True, tag="many", forbid_unknown_fields=True):
    """A list or a tuple."""

    items: tuple[Returned, ...]
    kind: Literal["list", "tuple"] = "list"


class Fields(msgspec.Struct, frozen=True, tag="fields", forbid_unknown_fields=True):
    """A dict (`of` is empty), or an object of the dataclass `of` made from its fields (from a file: a dict)."""

    items: dict[str, Returned]
    of: str = ""


Returned = Const | Said | Whole | Given | Many | Fields


class Return(msgspec.Struct, frozen=True, tag="return", forbid_unknown_fields=True):
    """The program ends, with this result."""

    value: Returned
    where: str = ""


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A straight line of steps in the order of recording, what Python reads along it, and how it ends."""

    steps: tuple[Step, ...]
    end: Decision | Break | Return
    reads: tuple[Read, ...] = ()


class Parameter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A parameter that is left open. `kind` "text": a str; "value": anything, of which the text alone is used;
    "finite": one of the values whose texts are `domain` (bool, Enum, Literal)."""

    name: str
    kind: Literal["text", "value", "finite"]
    domain: tuple[str, ...] = ()


class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole plan. `where` is the line that defines the program; `static` shows the arguments that are compiled in;
    `truncated`: there are more paths than were explored."""

    name: str
    where: str
    params: tuple[Parameter, ...]
    static: dict[str, str]
    nodes: tuple[Node, ...]
    truncated: bool = False

    def paths(self) -> Iterator[tuple[int, ...]]:
        """Every way through it, as the indices of its nodes."""
        stack: list[tuple[int, ...]] = [(0,)]
        while stack:
            path = stack.pop()
            end = self.nodes[path[-1]].end
            if isinstance(end, Decision):
                stack.extend((*path, child) for child in reversed(end.nodes))
            else:
                yield path

    def steps(self, path: tuple[int, ...]) -> Iterator[Step]:
        """The steps along a path."""
        for index in path:
            yield from self.nodes[index].steps

    def breaks(self) -> list[Break]:
        """Every graph break."""
        return [node.end for node in self.nodes if isinstance(node.end, Break)]
