"""The tour behind `ramet demo`: skeleton-of-thought on a real model, drawn while it decodes, and what sharing saved.

In: an engine and a console. Out: a live tree of branches (plain lines where the output is no terminal), the answer, and
a table that sets the program beside the same calls sent one by one, without sharing and batching, on the same engine.
It stands among the examples because it is what they are: a user of ramet, and nothing that ramet needs.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

import ramet as rt
from ramet.examples.skeleton_of_thought import skeleton_of_thought
from ramet.frontend.backends.base import Backend
from ramet.frontend.ir import Event, Finished, Forked, Started, Token, Usage
from ramet.frontend.replay import Recorder, one_by_one

QUESTION = "How can a small team keep its software simple?"
FRAME = 0.1  # seconds between two drawings of the tree
COLUMNS = ("calls", "prompt", "cached", "computed", "generated", "steps", "seconds")


@dataclass
class Branch:
    """What the picture shows of one sequence."""

    title: str
    calls: dict[str, str] = field(default_factory=dict)  # op → "name: text so far"
    working: bool = False
    children: list[Branch] = field(default_factory=list)


class Picture:
    """The branches of a run, from its events."""

    def __init__(self) -> None:
        self.root = Branch("root")
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
            branch.working = not isinstance(event, Finished)
            known = branch.calls.setdefault(event.op, f"{event.var}: ")
            branch.calls[event.op] = known + (event.text if isinstance(event, Token) else "")

    def draw(self, width: int) -> RenderableType:
        """The picture as a tree whose lines fit `width` columns: the newest words of every call."""
        tree = Tree(Text("skeleton of thought", style="bold"), guide_style="dim")
        self._grow(tree, self.root, max(20, width - 12))
        return tree

    def _grow(self, tree: Tree, branch: Branch, width: int) -> None:
        mark = "●" if branch.working else "✓"
        node = tree.add(Text(f"{mark} {branch.title}", style="cyan" if branch.working else "green"))
        for text in branch.calls.values():
            node.add(Text(_newest(text, width)))
        for child in branch.children:
            self._grow(node, child, width - 4)


def _newest(text: str, width: int) -> str:
    """`text` on one line; of a long one its name and its end."""
    line = " ".join(text.split())
    if len(line) <= width:
        return line
    name, _, rest = line.partition(": ")
    return f"{name}: …{rest[-max(1, width - len(name) - 3) :]}"


def tour(
    backend: Backend, console: Console, question: str = QUESTION, points: int = 4, max_tokens: int = 64
) -> tuple[Usage, Usage]:
    """Run, draw, compare. Returns the usage of the program and of its calls one by one; `seconds` are wall time."""
    recorder = Recorder(backend)
    skeleton_of_thought.using(backend=backend)(question, points=2, outline_tokens=1, max_tokens=1).result()  # warm-up
    backend.flush_cache()

    console.print(f"question: {question}", highlight=False)
    start = time.perf_counter()
    run = skeleton_of_thought.using(backend=recorder)(question, points=points, max_tokens=max_tokens)
    _follow(run.events(), console)
    answer = run.result()
    seconds = time.perf_counter() - start
    console.print(f"\n{answer}\n", highlight=False, markup=False, soft_wrap=not console.is_terminal)

    [recording] = recorder.programs
    program = _with_seconds(recording.usage, seconds)
    console.print("the same calls, one by one, without sharing and batching ...", highlight=False)
    apart = one_by_one(backend, recording)
    report(console, program, apart)
    return program, apart


def _with_seconds(usage: Usage, seconds: float) -> Usage:
    fields = {name: getattr(usage, name) for name in Usage.__struct_fields__}
    return Usage(**{**fields, "seconds": seconds})


def _follow(events: Iterable[Event], console: Console) -> None:
    if not console.is_terminal:
        for event in events:
            if isinstance(event, Finished):
                made, cached = event.meta.completion_tokens, event.meta.cached_tokens
                line = f"{made} tokens, {cached} of {event.meta.prompt_tokens} prompt tokens cached"
                console.print(f"  {event.seq} {event.var}: {line}", highlight=False, soft_wrap=True)
        return
    picture, drawn = Picture(), 0.0
    with Live(console=console, auto_refresh=False) as live:
        for event in events:
            picture.take(event)
            if time.monotonic() - drawn >= FRAME:
                live.update(picture.draw(console.width), refresh=True)
                drawn = time.monotonic()
        live.update(picture.draw(console.width), refresh=True)


def report(console: Console, program: Usage, apart: Usage) -> None:
    """The table, and the ratio of the two."""
    rows = [("one program", _row(program)), ("call by call", _row(apart))]
    if console.is_terminal:
        console.print(_table(rows))
    else:
        console.print(_lines(rows), soft_wrap=True)
    if program.seconds > 0 and program.computed_tokens > 0:
        steps = f"{apart.steps} steps for {program.steps}"
        computed = apart.computed_tokens / program.computed_tokens
        ratio = f"call by call takes {apart.seconds / program.seconds:.2f} x the time, {steps}"
        console.print(f"{ratio}, and computes {computed:.2f} x the tokens", highlight=False, soft_wrap=True)


def _row(usage: Usage) -> list[str]:
    counts = (usage.calls, usage.prompt_tokens, usage.cached_tokens, usage.computed_tokens, usage.generated_tokens)
    return [*(str(count) for count in counts), str(usage.steps), f"{usage.seconds:.2f}"]


def _table(rows: list[tuple[str, list[str]]]) -> Table:
    table = Table(title="tokens, steps, wall time")
    table.add_column("")
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for name, cells in rows:
        table.add_row(name, *cells)
    return table


def _lines(rows: list[tuple[str, list[str]]]) -> Text:
    head = f"{'':14}" + "".join(f"{name:>11}" for name in COLUMNS)
    body = [f"{name:14}" + "".join(f"{cell:>11}" for cell in cells) for name, cells in rows]
    return Text("\n".join([head, *body]))


def main() -> None:
    """The tour on the default model."""
    with rt.Engine() as engine:
        tour(engine, Console())


if __name__ == "__main__":
    main()
