"""Faults seeded into the engine, each of which the anomaly tests must find: a check that cannot fail proves nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ramet.runtime import draft as drafts
from ramet.runtime.bank import Bank
from ramet.runtime.batch import Batch
from ramet.runtime.cache import Cache
from ramet.runtime.collect import Collector
from ramet.runtime.draft import Draft
from ramet.runtime.engine import EngineCore
from ramet.runtime.programs import Program, Programs
from ramet.runtime.scheduler import Scheduler
from ramet.runtime.sequence import Choosing, Generating, Sequence, Task
from ramet.runtime.slots import Rows

from .anomalous import calm
from .failpoints import PanicError, sweep
from .test_anomalies import (
    OWN,
    REFUSED,
    cancelled,
    device_fails,
    device_fails_late,
    engine_stopped,
    judge_of,
    play_and_look,
    play_tightly,
)

END, DROP, FAIL, DISCARD, PARK = Programs.end, Cache.drop, Programs.fail, Cache.discard, Cache.park
RESERVE, VOID = Scheduler._reserve, Sequence.void


def keep_guesses(cache: Cache, seq: Sequence) -> None:
    if isinstance(seq.task, Choosing):
        DROP(cache, seq)


def keep_the_row(cache: Cache, seq: Sequence) -> None:
    row, release = seq.row, cache.rows.release
    if row is not None:
        cache.rows.release = lambda row: None  # type: ignore[method-assign]
    DISCARD(cache, seq)
    cache.rows.release = release  # type: ignore[method-assign]


def keep_the_lock(cache: Cache, seq: Sequence, *, cold: bool = False) -> None:
    if seq.failed is None:
        PARK(cache, seq, cold=cold)


def end_twice(programs: Programs, program: Program, kind: str = "", message: str = "") -> None:
    END(programs, program, kind, message)
    if kind or program.broken:
        programs.news.append(programs.news[-1])


def end_in_silence(programs: Programs, program: Program, kind: str = "", message: str = "") -> None:
    END(programs, program, kind, message)
    if kind:
        programs.news.pop()


def fail_a_neighbour(programs: Programs, seq: Sequence, op: str, kind: str, message: str) -> None:
    FAIL(programs, seq, op, kind, message)
    for other in [p for p in programs.live.values() if p is not seq.program][:1]:
        programs.end(other, kind, message)


def fail_without_a_reason(programs: Programs, seq: Sequence, op: str, kind: str, message: str) -> None:
    FAIL(programs, seq, op, kind, "")


def raise_it(collector: Collector, seq: Sequence, task: Task, error: BaseException) -> bool:
    raise error


def trust_it(core: EngineCore, batch: Batch, error: Exception) -> None:
    """Who was in it fails; what it computed stays."""
    for seq in [seq for seq in batch.owner.members if seq.failed is None and not seq.closed]:
        if seq.program.id in core.programs.live:
            op = seq.task.op.op if seq.task is not None else ""
            core.programs.fail(seq, op, "generation", f"the forward pass failed: {error}")
            core.programs.conclude(seq.program)


def trust_choices(seq: Sequence) -> None:
    if isinstance(seq.task, Choosing):
        seq.task.launched = False


def trust_draws(seq: Sequence) -> None:
    if not isinstance(seq.task, Generating):
        VOID(seq)


def give_up_at_once(scheduler: Scheduler, count: int, seq: Sequence, draft: Draft) -> Any:
    slots = RESERVE(scheduler, count, seq, draft)
    if slots is None:
        raise MemoryError("no slots")
    return slots


def stay_behind_the_guess(task: Generating, ahead: int, out: Any, eos: Any) -> None:
    """The mask of a guessed draw whose automaton stays where it was for it."""
    assert task.automaton is not None
    try:
        task.automaton.advance(task.guess[:ahead])
        task.automaton.mask(out)
        task.automaton.rollback(ahead)
    except BaseException as error:  # noqa: BLE001
        out[:] = 0
        task.trouble = str(error)


def point(name: str, stride: int = 3) -> Callable[[], int]:
    """A sweep of one call."""
    run = play_tightly if name in REFUSED else play_and_look
    return lambda: sweep({**REFUSED, **OWN}[name], run, judge_of(name), stride=stride)


Mutation = tuple[Any, str, Any, Callable[[], int], str]  # a function, what takes its place, a check, what it finds
MUTATIONS: dict[str, Mutation] = {
    "guessed slots leak": (Cache, "drop", keep_guesses, lambda: cancelled(3, 1), r"free \d+ \+ tree"),
    "rows leak": (Cache, "discard", keep_the_row, lambda: device_fails("read", 4), "a row leaked"),
    "locks leak": (Cache, "park", keep_the_lock, point("stop strings"), r"refs 2, held 1|tree \d+ \+ private"),
    "admissions leak": (Bank, "forget", lambda bank, program: None, point("slots"), "an admission leaked"),
    "rows are not given back": (Rows, "release", lambda rows, row: None, point("rows"), "not over after"),
    "two ends": (Programs, "end", end_twice, point("detokenise"), "after the end of its program"),
    "no end": (Programs, "end", end_in_silence, lambda: cancelled(1, 3), "not over after"),
    "a stop that is not heard": (Programs, "end", end_in_silence, lambda: engine_stopped(4), "not over after"),
    "a neighbour fails too": (Programs, "fail", fail_a_neighbour, point("begin"), "hurt: {'p.', 'p.'}"),
    "no reason": (Programs, "fail", fail_without_a_reason, point("grammar"), "no reason"),
    "no boundary": (Collector, "_refused", raise_it, point("panic in a grammar"), "index out of range"),
    "a failed batch is trusted": (EngineCore, "_crash", trust_it, lambda: device_fails("forward", 1), "another answer"),
    "draws in the air are trusted": (Sequence, "void", trust_draws, lambda: device_fails_late(1), "another answer"),
    "choices in the air": (Sequence, "void", trust_choices, lambda: device_fails("forward", 1), "sequence is seated"),
    "lack of memory is an error": (Scheduler, "_reserve", give_up_at_once, point("slots"), "no slots"),
    "a mask moves the automaton": (drafts, "allow", stay_behind_the_guess, point("mask", 1), "another answer"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_seeded_fault_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, attribute, fault, check, finding = MUTATIONS[name]
    calm()  # of the sound engine
    monkeypatch.setattr(owner, attribute, fault)
    with pytest.raises((AssertionError, MemoryError, PanicError), match=finding):
        check()
