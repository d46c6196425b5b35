"""Operations that cannot be carried out, or come when nothing is left to do: what each of them says, and that its
program ends.
"""

from __future__ import annotations

import pytest

from ramet.frontend.errors import EngineError
from ramet.frontend.ir import Sampling
from ramet.runtime import messages as m
from ramet.runtime.birth import Birth, rebuilt
from ramet.runtime.grammar.automaton import HEADER, GrammarCache
from ramet.runtime.leases import Leases
from ramet.runtime.program import Program
from ramet.runtime.runner import TorchRunner
from ramet.runtime.sequence import Sequence

from .anomalous import model
from .driving import Drive
from .small import generate, text

CONTEXT = 64


def drive(rows: int = 4, **limits: object) -> Drive:
    made = model()
    runner = TorchRunner(made.decoder, capacity=256, rows=rows, context=CONTEXT, threads=1)
    return Drive(runner, tokenizer=made.tokenizer, grammars=made.grammars, **limits)


def constrained(op: str, pattern: str) -> m.Generate:
    seq = op.rpartition(".")[0]
    return m.Generate(op, seq, Sampling(temperature=0.0, max_tokens=9), 0, f"{HEADER}start: /{pattern}/\n")


NEVER = m.Append("0.1", "0", ("0.9",))  # refers to a value that nobody makes
CLOSED = (text("0.0", 3), m.Close("0.1", "0"))
POISONED = (generate("0.0", 2),)  # an empty prompt
FAILS = (m.Score("a.0", "a"), text("a.1", 90), m.Close("a.2", "a"))
LONG = (text("a.0", 40), text("b.0", 40), m.Close("a.1", "a"), m.Close("b.1", "b"))
FAILURES: dict[str, tuple[tuple[m.AnyOp, ...], dict[str, str]]] = {
    "after the end of its sequence": ((*CLOSED, text("0.2", 2)), {"0.2": "sequence 0 is closed"}),
    "a close without a name": ((text("0.0", 3), m.Close("", "0")), {}),
    "a close after the end": ((*CLOSED, m.Close("0.2", "0")), {}),
    "longer than the context": ((text("0.0", CONTEXT + 1),), {"0.0": "do not fit the context"}),
    "a value that failed": (
        (
            text("0.0", 3),
            m.Fork("0.1", "0", ("a", "b")),
            m.Score("a.0", "a"),
            text("a.1", 90),
            m.Close("a.2", "a"),
            m.Append("b.0", "b", ("a.1",)),
        ),
        {"a.1": "do not fit", "b.0": "needs the value of a.1, which failed", "a.2": ""},
    ),
    "a fork of a poisoned sequence": (
        (*POISONED, m.Fork("0.1", "0", ("a",)), text("a.0", 2), m.Close("a.1", "a")),
        {"0.0": "the prompt is empty", "0.1": "an earlier operation", "a.0": "an earlier operation"},
    ),
    "two texts of one operation": ((*POISONED, text("0.1", 2), text("0.1", 2)), {"0.0": "empty", "0.1": "an earlier"}),
    "a value that never comes": ((text("0.0", 2), NEVER), {"0.1": "waits for a value or a branch that never comes"}),
    "a sequence that never comes": ((text("a.0", 2), text("a.1", 2)), {"a.0": "does not exist", "a.1": "not exist"}),
    "a join of a branch that is not there": ((text("0.0", 2), m.Join("0.1", "0", ("a",))), {"0.1": "does not exist"}),
    "a join of a branch that failed": (
        (text("0.0", 2), m.Fork("0.1", "0", ("a",)), text("a.0", 99), m.Join("0.2", "0", ("a",))),
        {"a.0": "do not fit", "0.2": "branch a failed"},
    ),
    "a join that is too long": (
        (
            text("0.0", 9),
            m.Fork("0.1", "0", ("a", "b")),
            text("a.0", 40),
            text("b.0", 40),
            m.Close("a.1", "a"),
            m.Close("b.1", "b"),
            m.Join("0.2", "0", ("a", "b")),
        ),
        {"0.2": "do not fit"},
    ),
    "a branch that is cut": (
        (text("0.0", 3), m.Fork("0.1", "0", ("a",)), m.Append("a.0", "a", ("0.9",)), m.Close("0.3", "a", True)),
        {"a.0": "the branch was cancelled"},
    ),
    "a branch that is cut before it is there": (
        (text("a.0", 3), m.Close("0.3", "a", True)),
        {"a.0": "the branch was cancelled"},
    ),
    "no grammar of that kind": ((text("0.0", 3), constrained("0.1", "(")), {"0.1": ""}),
}


@pytest.mark.parametrize("name", FAILURES)
def test_what_cannot_be_carried_out(name: str) -> None:
    ops, expected = FAILURES[name]
    d = drive()
    program = d.program(*ops)
    d.run(program)
    failed = {op: r.failure.message for (_, op), r in d.results.items() if r.failure is not None}
    for op, words in expected.items():
        assert words in failed.pop(op, "" if not words else "(nothing)"), op
    assert not failed
    assert d.over[program].kind == ""
    assert not d.core.programs.live


def test_a_text_that_is_forced_whole_ends_at_once() -> None:
    d = drive()
    program = d.program(text("0.0", 3), constrained("0.1", "abc"), m.Append("0.2", "0", ("0.1",)), generate("0.3", 2))
    d.run(program)
    assert model().tokenizer.decode(d[program, "0.1"].tokens) == "abc"
    assert len(d[program, "0.3"].tokens) == 2


def test_orders_that_change_nothing() -> None:
    """Of programs that are over, or are open already."""
    d = drive()
    program = d.program(text("0.0", 3), generate("0.1", 2))
    d.order(m.OrderOpen(program, "another"), m.OrderEnd("nobody"), m.OrderAbort("nobody"))
    d.run(program)
    d.order(m.OrderAbort(program), m.OrderOps(program, (text("0.2", 2),)), m.OrderEnd(program))
    d.step()
    assert d.over[program].kind == "" and not d.core.programs.live


def test_an_order_that_cannot_be_carried_out_ends_its_program(monkeypatch: pytest.MonkeyPatch) -> None:
    d = drive()
    other, broken = d.program(text("0.0", 3), generate("0.1", 3)), d.program(text("0.0", 3), generate("0.1", 3))
    accept = d.core.programs._accept

    def faulty(program: object, op: m.AnyOp) -> None:
        if getattr(program, "id", "") == broken:
            raise MemoryError("no room")
        accept(program, op)  # type: ignore[arg-type]

    monkeypatch.setattr(d.core.programs, "_accept", faulty)
    d.run()
    assert (d.over[broken].kind, d.over[broken].message) == ("generation", "MemoryError: no room")
    assert d.over[other].kind == "" and len(d[other, "0.1"].tokens) == 3


def test_an_order_that_ends_its_program_and_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    d = drive()
    program = d.program(text("0.0", 3), generate("0.1", 3))
    core = d.core.programs

    def faulty(found: Program, op: m.AnyOp) -> None:
        core.end(found, "aborted", "in the middle")
        raise RuntimeError("too late")

    monkeypatch.setattr(core, "_accept", faulty)
    d.run(program)
    assert d.over[program].message == "in the middle"


def test_a_grammar_that_cannot_even_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    d = drive()

    def broken(cache: GrammarCache, program: str, owner: str) -> bool:
        raise MemoryError("no room")

    monkeypatch.setattr(GrammarCache, "prepare", broken)
    program, other = d.program(text("0.0", 3), constrained("0.1", "abc")), d.program(text("0.0", 3), generate("0.1", 2))
    d.run()
    failure = d[program, "0.1"].failure
    assert failure is not None and failure.message == "MemoryError: no room"
    assert len(d[other, "0.1"].tokens) == 2


def test_grammars_that_were_built_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    d = drive()
    monkeypatch.setattr(GrammarCache, "built", lambda cache: ["somebody who has left"])
    program = d.program(text("0.0", 3), constrained("0.1", "abc"))
    d.run(program)
    assert d[program, "0.1"].failure is None


def waiting(d: Drive) -> Sequence:
    """A sequence that waits for a row: there is one only."""
    names = [d.program(text("0.0", 30), generate("0.1", count)) for count in (20, 2)]
    d.step()
    found = [d.core.programs.live[name].sequences["0"] for name in names]
    (sequence,) = [each for each in found if each in d.core.scheduler.waiting]
    return sequence


def test_who_waits_and_wants_nothing_any_more_rests_without_a_lease() -> None:
    d = drive(rows=1)
    scheduler, sequence = d.core.scheduler, waiting(d)
    d.core.cache.park(sequence)
    task, sequence.task, known, sequence.known = sequence.task, None, sequence.known, 1
    scheduler.wake(sequence)
    scheduler.plan()
    assert sequence not in scheduler.waiting and sequence not in scheduler.resting
    sequence.task, sequence.known = task, known
    scheduler.wake(sequence)
    assert sequence in scheduler.waiting


def test_who_wants_nothing_and_leaves_before_the_next_plan() -> None:
    d = drive(rows=1)
    scheduler, sequence = d.core.scheduler, waiting(d)
    sequence.task, sequence.known = None, 1
    scheduler.wake(sequence)
    scheduler.leave(sequence)
    scheduler.plan()
    assert sequence not in scheduler.waiting and sequence not in scheduler.resting


def test_a_lease_is_as_old_as_its_first_day() -> None:
    d = drive(rows=1)
    now = [1.0]
    leases, sequence = Leases(9.0, lambda: now[0]), waiting(d)
    leases.add(sequence)
    now[0] = 5.0
    leases.add(sequence)
    assert sequence.since == 1.0


# -- an engine on its way


class End:
    """A `Link` of which only the end is asked."""

    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        """Count."""
        self.closed += 1

    def is_current_thread(self) -> bool:
        """Another thread's."""
        return False


def test_an_engine_that_nobody_wants_any_more_is_closed_when_it_comes() -> None:
    birth, link = Birth(lambda birth: None), End()
    birth.begun.set()
    birth.thread.start()
    birth.drop()
    birth.linked(link)  # type: ignore[arg-type]
    assert link.closed == 1
    birth.drop()
    assert link.closed == 2


def test_an_engine_is_dropped_in_its_own_thread() -> None:
    link = End()

    def listen(birth: Birth) -> None:
        birth.begun.set()
        birth.linked(link)  # type: ignore[arg-type]
        birth.drop()
        birth.hello.set_result(None)

    birth = Birth(listen)
    birth.thread.start()
    birth.hello.result(30)
    assert link.closed == 1


def test_errors_of_an_engine_that_did_not_start() -> None:
    assert isinstance(rebuilt(m.Broken("EngineError", "no room")), EngineError)
    other = rebuilt(m.Broken("KeyError", "'x'"))
    assert isinstance(other, EngineError) and "could not start: KeyError" in str(other)
    assert isinstance(rebuilt(m.Broken("annotations", "")), EngineError)  # a name of the module that is no error
