"""An ended program leaves nothing to the garbage collector: in an engine that serves for months its heap would creep,
and a full collection is a pause in which all streams stand still.
"""

from __future__ import annotations

import gc
import types
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from ramet.frontend.ir import Sampling
from ramet.runtime import messages as m
from ramet.runtime.program import Program
from ramet.runtime.programs import Programs

from .driving import Drive
from .small import generate, text
from .test_corners import constrained, drive

BRANCHES = ("0.2.b0", "0.2.b1")
FORKED: tuple[m.AnyOp, ...] = (
    text("0.0", 9),
    m.Fork("0.2", "0", BRANCHES),
    generate("0.2.b0.0", 4),
    generate("0.2.b1.0", 6),
    *(m.Close(f"{branch}.1", branch) for branch in BRANCHES),
    m.Join("0.3", "0", BRANCHES),
    generate("0.4", 3),
)
PROGRAMS: dict[str, tuple[m.AnyOp, ...]] = {
    "a generation": (text("0.0", 5), generate("0.1", 8)),
    "a fork and a join": FORKED,
    "a choice": (text("0.0", 5), m.Choose("0.1", "0", ((2, 3), (2, 4), (5,)), "token_length_normalized")),
    "a score": (text("0.0", 5), m.Score("0.1", "0")),
    "a constraint": (text("0.0", 5), constrained("0.1", "[a-c]{3}")),
    "logprobs": (text("0.0", 5), m.Generate("0.1", "0", Sampling(max_tokens=5, logprobs=2), 7)),
    "an empty prompt": (generate("0.0", 3),),
    "a value that never comes": (text("0.0", 5), m.Append("0.1", "0", ("0.9",)), generate("0.2", 2)),
}


def ours(thing: object) -> bool:
    """Whether it is ramet's. Libraries leave garbage of their own, also of tests that ran before this one."""
    made = thing if isinstance(thing, types.FunctionType) else type(thing)
    return (getattr(made, "__module__", None) or "").startswith("ramet.")


@contextmanager
def uncollected() -> Iterator[list[object]]:
    """What of ours a full collection finds behind the block, which runs without a collector."""
    found: list[object] = []
    for _ in range(3):  # what is finalised may leave more
        gc.collect()
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found += filter(ours, gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def ran(ops: tuple[m.AnyOp, ...]) -> Drive:
    d = drive()
    d.program(*ops)
    d.run()
    return d


def aborted(ops: tuple[m.AnyOp, ...]) -> Drive:
    d = drive()
    name = d.program(*ops)
    d.step()
    d.step()
    d.order(m.OrderAbort(name))
    d.run()
    return d


@pytest.mark.parametrize("end", [ran, aborted])
@pytest.mark.parametrize("ops", PROGRAMS.values(), ids=PROGRAMS)
def test_an_ended_program_is_no_garbage(ops: tuple[m.AnyOp, ...], end: Callable[[tuple[m.AnyOp, ...]], Drive]) -> None:
    end(ops)  # what is made once, such as the tables of constraints, is there
    with uncollected() as found:
        d = end(ops)
    assert len(d.over) == 1
    assert not Counter(type(thing).__name__ for thing in found)


def test_it_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a program that keeps its sequences is garbage."""
    end = Programs.end

    def forgetful(self: Programs, program: Program, kind: str = "", message: str = "") -> None:
        kept = dict(program.sequences)
        end(self, program, kind, message)
        program.sequences.update(kept)

    monkeypatch.setattr(Programs, "end", forgetful)
    with uncollected() as found:
        ran(FORKED)
    assert Counter(type(thing).__name__ for thing in found)["Sequence"] == 3
