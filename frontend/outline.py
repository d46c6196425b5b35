"""A plan as nested items: what all its pictures draw.

In: a document, what runs of it have shown. Out: items: messages folded into one, branches below their forks, outcomes
below their decisions; each with its text, where arguments and values stand as {name}, and its expected tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ramet.frontend.ir import (
    ROOT,
    Choices,
    Close,
    Fork,
    Gen,
    Grammar,
    Join,
    JsonSchema,
    Put,
    Ref,
    Regex,
    Role,
    Select,
    Structure,
    Tools,
)
from ramet.frontend.lineage import named_values, variable
from ramet.frontend.planned import (
    Break,
    Const,
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
    Use,
    Whole,
)
from ramet.frontend.walk import Lengths, site_of

Kind = Literal["text", "gen", "select", "role", "tools", "fork", "branch", "join", "put", "op", "decision", "outcome"]
Kinds = Kind | Literal["return", "break"]


@dataclass
class Item:
    """Something to draw. `ops`: the operations that it stands for; `seq`: their sequence; `uses`: operations whose
    values are said in it; `role`: of the whole message that it is; `tokens`: what it adds, in words ("~12 tokens")."""

    kind: Kinds
    label: str
    text: str = ""
    role: str = ""
    tokens: str = ""
    where: str = ""
    ops: tuple[str, ...] = ()
    seq: str = ROOT
    uses: tuple[str, ...] = ()
    inside: list[Item] = field(default_factory=list)


def outlined(document: Document, lengths: Lengths) -> list[Item]:
    """The items of a whole plan, from its first node on."""
    return _Drawn(document, lengths).all()


def title(document: Document) -> str:
    """The program and its open parameters."""
    return f"{document.name}({', '.join(parameter.name for parameter in document.params)})"


class _Drawn:
    """Makes items, node by node."""

    def __init__(self, document: Document, lengths: Lengths) -> None:
        self._document = document
        self._lengths = lengths
        self._names: dict[str, str] = {}  # of the values on the path that is drawn: another has others by the same ids

    def all(self) -> list[Item]:
        """The first node and all that follows it, without recursion: a path may have more decisions than a stack
        has frames."""
        items: list[Item] = []
        todo: list[tuple[int, list[Item]]] = [(0, items)]
        while todo:
            index, into = todo.pop()
            into += self._node(index)
            end = self._document.nodes[index].end
            if isinstance(end, Decision):
                outcomes = [Item("outcome", repr(outcome)) for outcome in end.outcomes]
                into[-1].inside += outcomes
                todo += reversed([(child, item.inside) for child, item in zip(end.nodes, outcomes, strict=True)])
        return items

    def _node(self, index: int) -> list[Item]:
        """A node alone: of a decision without its outcomes."""
        node = self._document.nodes[index]
        own: dict[str, list[Step]] = {}
        for step in node.steps:
            own.setdefault(step.op.seq, []).append(step)
            if isinstance(step.op, Gen | Select | Put):
                self._names[step.op.id] = _name(step)
        born = {seq for step in node.steps if isinstance(step.op, Fork) for seq in step.op.into}
        items: list[Item] = []
        drawn: set[str] = set()
        for seq in own:
            if seq not in born and seq not in drawn:
                drawn.add(seq)
                inside = self._sequence(seq, own)
                items += inside if seq == ROOT else _branch_of(seq, inside)
        return [*items, *self._end(node.end)]

    def _sequence(self, seq: str, own: Mapping[str, Sequence[Step]]) -> list[Item]:
        items: list[Item] = []
        for role, step in _folded(own.get(seq, ())):
            item = self._item(step, role)
            if isinstance(step.op, Fork):
                item.inside = [
                    Item("branch", child.rsplit(".", 1)[-1], seq=child, inside=self._sequence(child, own))
                    for child in step.op.into
                ]
            items.append(item)
        return items

    def _item(self, step: Step, role: str) -> Item:
        op, texts = step.op, (step.parts, *step.choices)
        uses = tuple(part.op for text in texts for part in text if isinstance(part, Use | Ref))
        item = Item("op", _what(step), role=role, where=step.where, ops=(op.id,), seq=op.seq, uses=uses)
        if isinstance(op, Gen):
            item.kind, item.label = "gen", f"gen {variable(step)}".strip()
            item.text, item.tokens = _constrained(op), self._length(step, op)
        elif isinstance(op, Select):
            choices = [self.said(choice) for choice in step.choices] or list(op.choices)
            item.kind, item.label = "select", f"select {variable(step)}".strip()
            item.text = " | ".join(repr(choice) for choice in choices)
        elif isinstance(op, Role):
            item.kind, item.label = "role", f"{op.role} {op.edge}"
        elif isinstance(op, Tools):
            item.kind, item.text = "tools", ", ".join(tool.name for tool in op.tools)
        elif isinstance(op, Fork):
            item.kind, item.label = "fork", f"fork into {len(op.into)}"
        elif isinstance(op, Join):
            item.kind, item.label = "join", f"join of {len(op.branches)}"
            item.uses = op.branches
        elif step.parts:
            item.kind = "put" if isinstance(op, Put) else "text"
            item.text = self.said(step.parts)
            constant = sum(len(part) for part in step.parts if isinstance(part, str))
            item.tokens = _about(constant * self._lengths.ratio())
        return item

    def _length(self, step: Step, op: Gen) -> str:
        most, site = op.sampling.max_tokens, site_of(step)
        limit = f"at most {most} tokens" if most is not None else "no limit"
        if not self._lengths.generated.get(site):
            return limit
        return f"{_about(self._lengths.expected(site, most))}, {limit}"

    def said(self, parts: Sequence[Part]) -> str:
        """A text, with names in braces for what only a run knows."""
        return "".join(part if isinstance(part, str) else f"{{{self.name(part)}}}" for part in parts)

    def name(self, part: Param | Use | Ref) -> str:
        """What an argument or a value is called."""
        return part.name if isinstance(part, Param) else self._called(part.op)

    def _called(self, op: str) -> str:
        return self._names.get(op, op)

    def _end(self, end: Decision | Break | Return) -> list[Item]:
        if isinstance(end, Return):
            uses = tuple(_values(end.value))
            return [Item("return", "return", self.returned(end.value), where=end.where, uses=uses)]
        if isinstance(end, Break):
            return [Item("break", "graph break", named_values(end.reason, self._called), where=end.where)]
        uses = (end.on.op,) if isinstance(end.on, Use) else ()
        return [Item("decision", f"{self.name(end.on)}?", where=end.where, uses=uses)]

    def returned(self, value: Returned) -> str:
        """A result, as Python would write it."""
        if isinstance(value, Const):
            return repr(value.value)
        if isinstance(value, Said):
            return self.said(value.parts) if len(value.parts) == 1 else repr(self.said(value.parts))
        if isinstance(value, Whole):
            return f"{{{self._called(value.op)}}}"
        if isinstance(value, Given):
            return f"{{{value.name}}}"
        if isinstance(value, Many):
            items = ", ".join(self.returned(item) for item in value.items)
            return f"[{items}]" if value.kind == "list" else f"({items}{',' * (len(value.items) == 1)})"
        if value.of:
            fields = ", ".join(f"{name}={self.returned(item)}" for name, item in value.items.items())
            return f"{value.of.rsplit('.', 1)[-1]}({fields})"
        return f"{{{', '.join(f'{name!r}: {self.returned(item)}' for name, item in value.items.items())}}}"


def _name(step: Step) -> str:
    """What a value is called: its variable, with the branch that it is of, or its line."""
    name = variable(step) or f"{_what(step)} of {step.where or step.op.id}"
    branches = [part for part in step.op.seq.split(".") if part.startswith("b")]
    return ".".join((*branches, name))


def _branch_of(seq: str, inside: list[Item]) -> list[Item]:
    """What a branch that was made earlier goes on with."""
    return [Item("branch", seq.rsplit(".", 1)[-1], seq=seq, inside=inside)] if inside else []


def _folded(steps: Sequence[Step]) -> Iterator[tuple[str, Step]]:
    """(role, step): a message of one operation is one item; all others stand by themselves, with role ""."""
    kept = [step for step in steps if not isinstance(step.op, Close)]
    index = 0
    while index < len(kept):
        begin, *rest = kept[index : index + 3]
        if len(rest) == 2 and _is_message(begin, rest[0], rest[1]):
            assert isinstance(begin.op, Role)
            yield begin.op.role, rest[0]
            index += 3
        else:
            yield "", begin
            index += 1


def _is_message(begin: Step, content: Step, end: Step) -> bool:
    if not (isinstance(begin.op, Role) and begin.op.edge == "begin" and isinstance(end.op, Role)):
        return False
    return not isinstance(content.op, Role | Fork | Join)


def _what(step: Step) -> str:
    return "call" if isinstance(step.op, Put) else str(step.op.__struct_config__.tag)


def _about(tokens: float) -> str:
    count = round(tokens)
    return f"~{count} token{'' if count == 1 else 's'}" if count else ""


def _constrained(op: Gen) -> str:
    """What its text must be, in short."""
    constraint = op.constraint
    if constraint is None:
        return ""
    if isinstance(constraint, Choices):
        return " | ".join(repr(choice) for choice in constraint.choices)
    if isinstance(constraint, Regex):
        return f"regex {constraint.pattern}"
    if isinstance(constraint, JsonSchema):
        return f"JSON {constraint.schema}"
    if isinstance(constraint, Grammar):
        return f"{constraint.syntax} grammar"
    if isinstance(constraint, Structure):
        return "structural tags"
    return f"calls {constraint.choice}: {', '.join(tool.name for tool in constraint.tools)}"


def _values(value: Returned) -> Iterator[str]:
    if isinstance(value, Whole):
        yield value.op
    elif isinstance(value, Said):
        yield from (part.op for part in value.parts if isinstance(part, Use | Ref))
    elif isinstance(value, Many | Fields):
        items = value.items if isinstance(value, Many) else tuple(value.items.values())
        for item in items:
            yield from _values(item)


def plain(items: Sequence[Item], seq: str) -> list[tuple[object, ...]]:
    """Items of the branch `seq` without places: equal for branches that say the same, each of its own."""
    return [
        (
            *(item.kind, item.label, item.text, item.role, item.tokens),
            *(use.removeprefix(f"{seq}.") for use in item.uses),
            *plain(item.inside, seq),
        )
        for item in items
    ]


def grouped(branches: Sequence[Item]) -> list[list[Item]]:
    """Branches in order, neighbours that say the same together."""
    groups: list[list[Item]] = []
    for item in branches:
        first = groups[-1][0] if groups else None
        if first and item.kind == "branch" and plain(first.inside, first.seq) == plain(item.inside, item.seq):
            groups[-1].append(item)
        else:
            groups.append([item])
    return groups


def named(group: Sequence[Item]) -> str:
    """What a group of branches is called."""
    first, last = group[0].label, group[-1].label
    return f"branch {first}" if len(group) == 1 else f"branches {first} to {last}, {len(group)} alike"
