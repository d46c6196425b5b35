"""A plan as a Mermaid flowchart.

In: a document, what runs of it have shown. Out: text in Mermaid's language; everything that programs say is escaped.
Solid arrows are what follows what, dotted ones values that are said elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from ramet.frontend.outline import Item, grouped, named, outlined
from ramet.frontend.pictures import printable
from ramet.frontend.planned import Document
from ramet.frontend.trace import short
from ramet.frontend.walk import Lengths

_SHAPES = {
    "gen": ('(["', '"])'),
    "select": ('(["', '"])'),
    "decision": ('{"', '"}'),
    "return": ('[["', '"]]'),
    "break": ('{{"', '"}}'),
    "fork": ('(("', '"))'),
    "join": ('(("', '"))'),
}
_CLASSES = {
    "said": "fill:#eef2f6,stroke:#8c959f,color:#1f2328",
    "user": "fill:#ddf0ff,stroke:#4a8fd0,color:#1f2328",
    "made": "fill:#d5f2de,stroke:#3b8f5a,color:#1f2328",
    "turn": "fill:#fff3cc,stroke:#b08800,color:#1f2328",
    "stop": "fill:#ffe1dd,stroke:#c0503f,color:#1f2328",
}
_KIND_CLASS = {"gen": "made", "select": "made", "decision": "turn", "fork": "turn", "join": "turn", "break": "stop"}
_ESCAPES = {ord(char): f"#{ord(char)};" for char in '"#<>&`{}[]()|;\\%*_~$'}


def flowchart(document: Document, lengths: Lengths) -> str:
    """The flowchart."""
    chart = _Chart()
    start = chart.node("start", escaped(document.name), ('(["', '"])'), "turn")
    chart.draw(outlined(document, lengths), start)
    classes = [f"  classDef {name} {style}" for name, style in _CLASSES.items()]
    return "\n".join(["flowchart TD", *chart.lines, *chart.links, *classes]) + "\n"


def escaped(text: str) -> str:
    """A text as it stands in a quoted label: characters that mean something there by their numbers."""
    return "<br>".join(printable(line).translate(_ESCAPES) for line in short(text).split("\n"))


_Ends = dict[str, list[tuple[str, str]]]


class _Chart:
    """Nodes and arrows as they are found."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.links: list[str] = []
        self._count = 0
        self._made: dict[str, str] = {}  # operation → node
        self._ends: _Ends = {}  # branch → where it ends so far
        self._said: list[tuple[str, Sequence[str], list[str]]] = []  # node, values said in it, nodes that lead to it
        self._todo: list[tuple[Item, str, _Ends, dict[str, str]]] = []  # outcomes, and what stands before them

    def node(self, name: str, text: str, shape: tuple[str, str], kind: str) -> str:
        """A node; returns its name."""
        self.lines.append(f"  {name}{shape[0]}{text or ' '}{shape[1]}:::{kind}")
        return name

    def draw(self, items: Sequence[Item], start: str) -> None:
        """Draw a whole plan behind the node `start`."""
        self._follow(items, [(start, "")])
        self.say()
        while self._todo:
            outcome, name, ends, made = self._todo.pop()
            self._ends, self._made = dict(ends), dict(made)  # another outcome has others by the same ids
            self._follow(outcome.inside, [(name, escaped(outcome.label))])
            self.say()

    def _follow(self, items: Sequence[Item], before: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Draw items one after the other; `before` and the result are (node, label of the arrow from it)."""
        for group in grouped(items):
            if group[0].kind == "branch":
                last = self._follow(group[0].inside, self._ends.get(group[0].seq, before))
                self._ends.update({item.seq: last for item in group})
            else:
                before = self._item(group[0], before)
        return before

    def _item(self, item: Item, before: list[tuple[str, str]]) -> list[tuple[str, str]]:
        self._count += 1
        kind = _KIND_CLASS.get(item.kind, "user" if item.role == "user" else "said")
        name = self.node(f"n{self._count}", _text(item), _SHAPES.get(item.kind, ('["', '"]')), kind)
        self._made.update(dict.fromkeys(item.ops, name))
        joined = item.uses if item.kind == "join" else ()
        arrive = dict.fromkeys([*before, *(end for seq in joined for end in self._ends.get(seq, ()))])
        for source, label in arrive:
            self.links.append(f'  {source} -->|"{label}"| {name}' if label else f"  {source} --> {name}")
        if not joined and item.uses:
            self._said.append((name, item.uses, [known for known, _ in before]))
        if item.kind == "fork":
            for group in grouped(item.inside):
                last = self._follow(group[0].inside, [(name, escaped(named(group)))])
                self._ends.update({branch.seq: last for branch in group})
                self._twins(group)
        elif item.kind == "decision":
            ends, made = self._ends, self._made
            self._todo += [(outcome, name, ends, made) for outcome in reversed(item.inside)]
        return [(name, "")]

    def say(self) -> None:
        """Dotted arrows, from values to where they are said. A branch is drawn before what its parent goes on with, and
        may say a value of that."""
        for name, uses, before in self._said:
            for source in dict.fromkeys(self._made[op] for op in uses if op in self._made):
                if source not in before:
                    self.links.append(f"  {source} -.-> {name}")
        self._said.clear()

    def _twins(self, group: Sequence[Item]) -> None:
        """Operations of branches that are drawn once have the node of the one that is drawn."""
        for other in group[1:]:
            for drawn, same in zip(_flat(group[0].inside), _flat(other.inside), strict=True):
                for op, twin in zip(drawn.ops, same.ops, strict=True):
                    self._made[twin] = self._made[op]


def _flat(items: Sequence[Item]) -> list[Item]:
    return [each for item in items for each in (item, *_flat(item.inside))]


def _text(item: Item) -> str:
    head = {"text": item.role, "return": "return", "break": "graph break"}.get(item.kind)
    if head is None:
        head = f"{item.role}: {item.label}" if item.role else item.label
    lines = [escaped(line) for line in (head, item.text, item.tokens) if line]
    return "<br>".join(lines)
