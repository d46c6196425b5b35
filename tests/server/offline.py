"""What the engine says to a program that no server carried: the measure of every protocol."""

from __future__ import annotations

import threading
from typing import Any

from ramet.frontend import ir

from .serving import WAIT, Served


def finished(served: Served, *ops: ir.AnyOp) -> list[ir.Finished]:
    """The results of a program, in order of their names."""
    found: list[ir.Finished] = []
    over = threading.Event()

    def deliver(event: ir.Event) -> None:
        if isinstance(event, ir.Finished):
            found.append(event)
        elif isinstance(event, ir.Ended):
            over.set()

    session = served.client.open(ir.Header(), deliver)
    session.send(ops)
    session.end()
    assert over.wait(WAIT), "the program did not end"
    return sorted(found, key=lambda event: event.op)


def text(words: str) -> ir.Text:
    return ir.Text(id="0.0", seq="0", parts=(words,))


def tokens(*ids: int) -> ir.Tokens:
    return ir.Tokens(id="0.0", seq="0", ids=ids)


def gen(at: str = "0.1", seq: str = "0", **sampling: Any) -> ir.Gen:
    return ir.Gen(id=at, seq=seq, var="x", sampling=ir.Sampling(**sampling))


def score(start: int = 0, top: int = 0) -> ir.Score:
    return ir.Score(id="0.1", seq="0", var="x", start=start, top=top)


def choices(n: int, **sampling: Any) -> list[ir.AnyOp]:
    """A fork into n branches with a Gen on each."""
    branches = tuple(f"0.1.b{i}" for i in range(n))
    gens = [gen(f"{branch}.0", branch, **sampling) for branch in branches]
    return [ir.Fork(id="0.1", seq="0", into=branches), *gens]


def said(served: Served, *messages: tuple[str, str], left_open: bool = False, **sampling: Any) -> ir.Finished:
    """What the engine answers to a conversation without a server; `left_open` continues the last message."""
    ops: list[ir.AnyOp] = []

    def add(kind: Any, **fields: Any) -> None:
        ops.append(kind(id=f"0.{len(ops)}", seq="0", **fields))

    for n, (role, content) in enumerate(messages, 1):
        add(ir.Role, role=role, edge="begin")
        add(ir.Text, parts=(content,))
        if n < len(messages) or not left_open:
            add(ir.Role, role=role, edge="end")
    if not left_open:
        add(ir.Role, role="assistant", edge="begin")
    add(ir.Gen, var="x", sampling=ir.Sampling(**{"temperature": 0, "max_tokens": 8, **sampling}))
    (event,) = finished(served, *ops)
    return event
