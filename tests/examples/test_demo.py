"""The tour of `ramet demo`: what it prints, on a terminal and elsewhere; the picture; the table."""

from __future__ import annotations

import io

from rich.console import Console

import ramet as rt
from ramet.examples.demo import report, tour
from ramet.frontend.commands.picture import Picture
from ramet.frontend.ir import Finished, Forked, Meta, Started, Token, Usage

ANSWERS = {"outline": "1. Write less\n2. Test more", "body": "Some words about it."}


def shown(draw, *, terminal: bool, width: int = 100) -> str:
    out = io.StringIO()
    draw(Console(file=out, force_terminal=terminal, width=width, color_system=None))
    return out.getvalue()


def test_plain_lines_where_there_is_no_terminal():
    mock = rt.Mock(ANSWERS)
    text = shown(lambda console: tour(mock, console, "How?", points=2), terminal=False)
    assert "\x1b" not in text
    assert "0 outline: 6 tokens, 0 of" in text
    assert text.count(" body: 4 tokens") == 2
    assert "Write less\nSome words about it.\n\nTest more\nSome words about it." in text
    rows = [line.split() for line in text.splitlines() if line.startswith(("one program", "call by call  "))]
    assert [row[3 - (row[0] == "one")] for row in rows] == ["3", "3"], "both rows have three calls"


def test_a_live_tree_on_a_terminal():
    text = shown(lambda console: tour(rt.Mock(ANSWERS), console, "How?", points=2), terminal=True)
    assert "✓ branch 1" in text
    assert "✓ branch 2" in text
    assert "body: Some words about it." in text


def test_the_comparison_replays_all_calls_cold():
    mock = rt.Mock(ANSWERS)
    results = []
    shown(lambda console: results.append(tour(mock, console, "How?", points=2)), terminal=False)
    [(program, apart)] = results
    assert program.calls == apart.calls == 3
    assert program.generated_tokens == apart.generated_tokens == 6 + 4 + 4
    assert mock.info()["flushes"] == 1 + 3


def test_the_picture_follows_events():
    picture = Picture("skeleton of thought")
    for event in (
        Started("0.1", "0", "outline"),
        Token("0.1", "0", "1. Write\n2. Test", "outline"),
        Finished("0.1", "0", "1. Write\n2. Test", Meta(), "outline"),
        Forked("0.2", "0", ("0.2.b0", "0.2.b1")),
        Started("0.2.b1.0", "0.2.b1", "body"),
        Token("0.2.b1.0", "0.2.b1", "x" * 300 + " newest", "body"),
    ):
        picture.take(event)
    text = shown(lambda console: console.print(picture.draw(60)), terminal=False, width=60)
    assert "outline: 1. Write 2. Test" in text
    assert "✓ branch 1" in text
    assert "● branch 2" in text
    assert "newest" in text
    assert max(len(line) for line in text.splitlines()) <= 60


def test_the_report_states_ratios():
    program = Usage(
        calls=3, prompt_tokens=90, cached_tokens=50, computed_tokens=50, generated_tokens=30, steps=20, seconds=1.0
    )
    apart = Usage(calls=3, prompt_tokens=90, computed_tokens=120, generated_tokens=30, steps=33, seconds=2.5)
    for terminal in (False, True):
        text = shown(lambda console: report(console, program, apart), terminal=terminal)
        assert "2.50 x the time, 33 steps for 20, and computes 2.40 x the tokens" in " ".join(text.split())
        assert "cached" in text
