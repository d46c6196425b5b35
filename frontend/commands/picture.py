"""A run while it decodes: its branches as a live tree.

In: the events of a run, a console. Out: a tree that grows (lines per call where the console is no terminal).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text
from rich.tree import Tree

from ramet.frontend.commands.screen import plain
from ramet.frontend.ir import Event, Failed, Finished, Forked, Started, Token

FRAME = 0.1  # seconds between two drawings of the tree


@dataclass
class Branch:
    """What the picture shows of one sequence."""

    title: str
    calls: dict[str, str] = field(default_factory=dict)  # op → "name: text so far"
    state: str = "done"  # "working", "failed"
    children: list[Branch] = field(default_factory=list)


_MARKS = {"working": ("●", "cyan"), "done": ("✓", "green"), "failed": ("✗", "red")}


class Picture:
    """The branches of a run, from its events. `title` names the run."""

    def __init__(self, title: str) -> None:
        self.root = Branch("root")
        self._title = title
        self._branches = {"0": self.root}

    def take(self, event: Event) -> None:
        """Bring the picture up to date."""
        if isinstance(event, Forked):
            parent = self._branches[event.seq]
            for index, name in enumerate(event.into):
                self._branches[name] = Branch(f"branch {index + 1}")
                parent.children.append(self._branches[name])
        elif isinstance(event, Started | Token | Finished):
            branch = self._branches[event.seq]
            branch.state = "done" if isinstance(event, Finished) else "working"
            known = branch.calls.setdefault(event.op, f"{event.var}: ")
            added = event.text if isinstance(event, Token) else ""
            if isinstance(event, Finished) and known == f"{event.var}: ":  # a choice: it came without tokens
                added = event.value
            branch.calls[event.op] = known + added
        elif isinstance(event, Failed) and event.seq in self._branches:
            branch = self._branches[event.seq]
            branch.state = "failed"
            branch.calls[event.op] = f"failed: {event.message}"

    def draw(self, width: int) -> RenderableType:
        """The picture as a tree whose lines fit `width` columns: the newest words of every call."""
        tree = Tree(Text(self._title, style="bold"), guide_style="dim")
        self._grow(tree, self.root, max(20, width - 12))
        return tree

    def _grow(self, tree: Tree, branch: Branch, width: int) -> None:
        mark, style = _MARKS[branch.state]
        node = tree.add(Text(f"{mark} {branch.title}", style=style))
        for text in branch.calls.values():
            node.add(Text(_newest(text, width)))
        for child in branch.children:
            self._grow(node, child, width - 4)


def _newest(text: str, width: int) -> str:
    """`text` on one line; of a long one its name and its end."""
    line = plain(" ".join(text.split()))
    if len(line) <= width:
        return line
    name, _, rest = line.partition(": ")
    return f"{name}: …{rest[-max(1, width - len(name) - 3) :]}"


def follow(events: Iterable[Event], console: Console, title: str) -> None:
    """Draw a run until it ends. Raises what `events` raises."""
    if not console.is_terminal:
        for event in events:
            if isinstance(event, Finished):
                made, cached = event.meta.completion_tokens, event.meta.cached_tokens
                line = f"{made} tokens, {cached} of {event.meta.prompt_tokens} prompt tokens cached"
                console.print(f"  {event.seq} {event.var}: {line}", highlight=False, soft_wrap=True)
        return
    picture, drawn = Picture(title), 0.0
    # What the program prints goes above the tree, but only where it would have gone to this terminal anyway.
    with Live(console=console, auto_refresh=False, redirect_stdout=sys.stdout.isatty()) as live:
        try:
            for event in events:
                picture.take(event)
                if time.monotonic() - drawn >= FRAME:
                    live.update(picture.draw(console.width), refresh=True)
                    drawn = time.monotonic()
        finally:
            live.update(picture.draw(console.width), refresh=True)
