"""The tour behind `ramet demo`: skeleton-of-thought on a real model, drawn while it decodes, and what sharing saved.

In: an engine and a console. Out: a live tree of branches (plain lines where the output is no terminal), the answer, and
a table that sets the program beside the same calls sent one by one, without sharing and batching, on the same engine.
It stands among the examples because it is what they are: a user of ramet, and nothing that ramet needs.
"""

from __future__ import annotations

import time

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

import ramet as rt
from ramet.examples.skeleton_of_thought import skeleton_of_thought
from ramet.frontend.backends.base import Backend
from ramet.frontend.commands.picture import follow
from ramet.frontend.commands.screen import plain
from ramet.frontend.ir import Usage
from ramet.frontend.replay import Recorder, one_by_one

QUESTION = "How can a small team keep its software simple?"
COLUMNS = ("calls", "prompt", "cached", "computed", "generated", "steps", "seconds")


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
    follow(run.events(), console, "skeleton of thought")
    answer = run.result()
    seconds = time.perf_counter() - start
    console.print(f"\n{plain(answer)}\n", highlight=False, markup=False, soft_wrap=not console.is_terminal)

    [recording] = recorder.programs
    program = _with_seconds(recording.usage, seconds)
    console.print("the same calls, one by one, without sharing and batching ...", highlight=False)
    apart = one_by_one(backend, recording)
    report(console, program, apart)
    return program, apart


def _with_seconds(usage: Usage, seconds: float) -> Usage:
    fields = {name: getattr(usage, name) for name in Usage.__struct_fields__}
    return Usage(**{**fields, "seconds": seconds})


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
    table = Table(title="tokens, steps, wall time", box=SIMPLE_HEAD, show_edge=False, pad_edge=False)  # 79 columns
    table.add_column("", no_wrap=True)
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
