"""A plan as a plain text tree.

In: a document, what runs of it have shown. Out: lines of text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ramet.frontend.outline import Item, grouped, named, outlined, title
from ramet.frontend.planned import Break, Document
from ramet.frontend.trace import short
from ramet.frontend.walk import Lengths


def tree(document: Document, lengths: Lengths) -> str:
    """The tree."""
    return "\n".join([f"{title(document)}: {summary(document)}", *_lines(outlined(document, lengths))])


def summary(document: Document) -> str:
    """How many paths and graph breaks it has."""
    paths = sum(1 for _ in document.paths())
    breaks = sum(isinstance(node.end, Break) for node in document.nodes)
    said = [f"{paths} path{'' if paths == 1 else 's'}"]
    said += [f"{breaks} graph break{'' if breaks == 1 else 's'}"] if breaks else []
    said += ["more paths than were followed"] if document.truncated else []
    return ", ".join(said)


def printable(text: str) -> str:
    """A text in which line ends and control characters are escaped."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _lines(items: Sequence[Item]) -> Iterator[str]:
    """Those of items and what is inside them, however deep."""
    todo = _indented(items, "")
    while todo:
        item, label, indent, last = todo.pop()
        yield f"{indent}{'└─ ' if last else '├─ '}{label}"
        todo += _indented(item.inside, indent + ("   " if last else "│  "))


def _indented(items: Sequence[Item], indent: str) -> list[tuple[Item, str, str, bool]]:
    """(item, label, indent, whether it is the last), the last first."""
    firsts = [(group[0], named(group) if group[0].kind == "branch" else _line(group[0])) for group in grouped(items)]
    return [(item, printable(label), indent, index == 0) for index, (item, label) in enumerate(reversed(firsts))]


def _line(item: Item) -> str:
    if item.kind == "outcome":
        return item.label
    if item.kind == "return":
        return f"return {short(item.text)}"
    if item.kind == "break":
        return f"graph break at {item.where}: {item.text}"
    head = f"{item.role}: {item.label}" if item.role and item.kind != "text" else item.role or item.label
    text = f" {short(item.text)!r}" if item.kind in ("text", "put") else f" {short(item.text)}" if item.text else ""
    return f"{head}{text}{f' [{item.tokens}]' if item.tokens else ''}"
