"""The live tree of a run: what each branch shows, also where a value comes without tokens."""

from __future__ import annotations

import io

from rich.console import Console

import ramet as rt
from ramet.frontend.commands.picture import Picture


@rt.function
def judged(s: rt.State) -> list[str]:
    s += "root"
    branches = s.fork(["cats", "dogs"])
    for branch in branches:
        branch += branch.item + rt.gen("why") + rt.select("grade", ["good", "bad"])
    return branches.gather("grade")


def drawn(width: int) -> list[str]:
    picture, console = Picture("judged"), Console(file=io.StringIO(), width=width)
    for event in judged.using(backend=rt.Mock({"why": "They purr. " * 20, "grade": "bad"}))().events():
        picture.take(event)
    with console.capture() as capture:
        console.print(picture.draw(width))
    return capture.get().splitlines()


def test_calls_and_choices_are_shown_by_branch() -> None:
    lines = [line.lstrip("│├└─ ") for line in drawn(200)]
    assert lines[:2] == ["judged", "✓ root"]
    assert [line for line in lines if line.startswith("✓ branch")] == ["✓ branch 1", "✓ branch 2"]
    assert lines.count("grade: bad") == 2


def test_long_texts_show_their_end_within_the_width() -> None:
    lines = drawn(60)
    assert max(map(len, lines)) <= 60
    assert sum("why: …" in line and line.endswith("They purr.") for line in lines) == 2
