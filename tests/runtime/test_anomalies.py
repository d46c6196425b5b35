"""The k-th allocation, grammar advance, compilation, forward, detokenising, ... fails, for k = 1, 2, ... until none is
left: one program at most is hurt (of a batch that failed: those in it), all others answer as if nothing had been, and
nothing leaks. Then the same for programs that are stopped at the k-th step. Seeded faults show that these checks fail.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest

from ramet.runtime import collect, joins, programs
from ramet.runtime import messages as m
from ramet.runtime.batch import Batch
from ramet.runtime.collect import Collector
from ramet.runtime.engine import EngineCore
from ramet.runtime.grammar.automaton import GrammarCache, LLAutomaton
from ramet.runtime.grammar.base import GrammarError
from ramet.runtime.runner import TorchRunner
from ramet.runtime.slots import Rows, Slots
from ramet.runtime.text import Detokenizer, StopMatcher

from .anomalous import TIGHT, LateRunner, Stage, check_answers, check_clean, check_ends, hurt
from .failpoints import REFUSES, PanicError, Point, sweep

STRIDE = 7  # of the daily runs; the nightly ones fail every call

REFUSED = {  # nothing is to be had just now: nobody may notice
    "slots": Point(Slots, "alloc", REFUSES),
    "rows": Point(Rows, "alloc", REFUSES),
}
OWN = {  # the work of one op: it fails, with its program
    "grammar advance": Point(LLAutomaton, "advance", GrammarError("a limit")),
    "panic in a grammar": Point(LLAutomaton, "advance", PanicError("index out of range")),
    "mask": Point(LLAutomaton, "mask", GrammarError("a limit")),
    "panic in a mask": Point(LLAutomaton, "mask", PanicError("index out of range")),
    "forced text": Point(LLAutomaton, "forced"),
    "grammar": Point(GrammarCache, "automaton", GrammarError("it cannot be built")),
    "panic of a grammar": Point(GrammarCache, "automaton", PanicError("index out of range")),
    "grammar is asked for": Point(GrammarCache, "prepare"),
    "detokenise": Point(Detokenizer, "push"),
    "stop strings": Point(StopMatcher, "push"),
    "begin": Point(programs, "begin"),
    "decide": Point(collect, "decide", MemoryError()),
    "join": Point(joins, "tokens_of"),
    "score": Point(Collector, "_tell_scores"),
}
SPECULATIVE = ("grammar advance", "panic in a grammar", "mask", "panic in a mask")
DEVICE = ("forward", "sample", "read")  # a batch's work: who is in it fails


def play_and_look(stage: Stage | None = None, before: Callable[[int], None] = lambda n: None) -> Stage:
    """A run, whose end is clean."""
    stage = (stage or Stage()).play(before)
    check_ends(stage)
    check_answers(stage)
    check_clean(stage)
    return stage


def play_tightly() -> Stage:
    """A run with too little memory for all."""
    return play_and_look(Stage(TIGHT))


def unhurt(stage: Stage, reached: bool) -> None:
    assert hurt(stage) == set(), "somebody noticed"


def one_hurt(stage: Stage, reached: bool) -> None:
    assert len(hurt(stage)) == reached, f"hurt: {hurt(stage)}"


def one_hurt_at_most(stage: Stage, reached: bool) -> None:
    """Masks are also made for draws behind guesses that are wrong: those were for nothing."""
    assert len(hurt(stage)) <= reached, f"hurt: {hurt(stage)}"


def judge_of(name: str) -> Callable[[Stage, bool], None]:
    """What the failure of a call may do."""
    if name in REFUSED:
        return unhurt
    return one_hurt_at_most if name in SPECULATIVE else one_hurt


class Blamed:
    """While it lasts, `programs` are those that were in a batch that failed."""

    def __init__(self) -> None:
        self.programs: set[str] = set()
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> Blamed:
        plain = EngineCore._crash

        def crash(core: EngineCore, batch: Batch, error: Exception) -> None:
            members = batch.owner.members
            self.programs |= {seq.program.id for seq in members if seq.failed is None and not seq.closed}
            plain(core, batch, error)

        self._patch.setattr(EngineCore, "_crash", crash)
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    def judge(self, stage: Stage, reached: bool) -> None:
        """Who is hurt was in the batch, and is told what happened."""
        assert bool(self.programs) == reached, "the fault was not noticed"
        assert hurt(stage) <= self.programs, f"{hurt(stage) - self.programs} were not in the batch that failed"
        for (program, op), result in stage.results.items():
            if result.failure is not None:
                assert result.failure.kind == "generation", f"{program} {op}: {result.failure}"
                assert "the forward pass failed" in result.failure.message, f"{program} {op}: {result.failure}"
        self.programs.clear()


def device_fails(name: str, stride: int) -> int:
    """Sweep the calls of the runner."""
    with Blamed() as blamed:
        return sweep(Point(TorchRunner, name), play_and_look, blamed.judge, stride=stride)


def device_fails_late(stride: int) -> int:
    """The k-th batch leaves garbage, and the error shows when the next one has been launched."""
    with Blamed() as blamed:
        for runs, k in enumerate(count(1, stride)):
            stage = Stage(bad=k)
            play_and_look(stage)
            reached = isinstance(stage.core.runner, LateRunner) and stage.core.runner.launched >= k
            blamed.judge(stage, reached)
            if not reached:
                return runs
    raise AssertionError("unreachable")


def ordered_at_each_step(orders: Callable[[Stage], list[m.Order]], judge: Callable[[Stage], None], stride: int) -> int:
    """Hand orders over before the k-th step, for k = 0, `stride`, ... until a run is over before; how many were."""
    for runs, k in enumerate(count(0, stride)):
        stage, reached = Stage(), []

        def before(n: int, stage: Stage = stage, k: int = k, reached: list[int] = reached) -> None:
            if n == k:
                reached.append(n)
                stage.order(*orders(stage))

        play_and_look(stage, before)
        judge(stage)
        if not reached:
            return runs
    raise AssertionError("unreachable")


def cancelled(victim: int, stride: int) -> int:
    """One program is cancelled, as when its client vanishes, at each step."""

    def orders(stage: Stage) -> list[m.Order]:
        return [m.OrderAbort(name) for name in stage.names[victim : victim + 1]] * 2

    def judge(stage: Stage) -> None:
        assert hurt(stage) <= {stage.names[victim]}, "another program was hurt"
        assert stage.over[stage.names[victim]].kind in ("", "aborted")

    return ordered_at_each_step(orders, judge, stride)


def engine_stopped(stride: int) -> int:
    """The engine is told to stop, at each step: who had not ended is told."""

    def judge(stage: Stage) -> None:
        assert all(over.kind in ("", "transport") for over in stage.over.values()), stage.over

    return ordered_at_each_step(lambda stage: [m.OrderStop()], judge, stride)


# -- the tests


@pytest.mark.parametrize("name", REFUSED)
def test_memory_and_rows_that_cannot_be_had(name: str) -> None:
    assert sweep(REFUSED[name], play_tightly, unhurt, stride=STRIDE) > 0


@pytest.mark.parametrize("name", OWN)
def test_the_work_of_one_operation(name: str) -> None:
    assert sweep(OWN[name], play_and_look, judge_of(name), stride=STRIDE) > 0


@pytest.mark.parametrize("name", DEVICE)
def test_the_device(name: str) -> None:
    assert device_fails(name, STRIDE) > 2


def test_a_device_that_fails_late() -> None:
    assert device_fails_late(STRIDE) > 2


@pytest.mark.parametrize("victim", range(4))
def test_a_program_that_is_cancelled(victim: int) -> None:
    assert cancelled(victim, 2 * STRIDE) > 1


def test_the_engine_is_stopped() -> None:
    assert engine_stopped(STRIDE) > 2


@pytest.mark.nightly
@pytest.mark.parametrize("name", [*REFUSED, *OWN, *DEVICE])
def test_every_call(name: str) -> None:
    if name in DEVICE:
        assert device_fails(name, 1) > 10
    else:
        run = play_tightly if name in REFUSED else play_and_look
        assert sweep({**REFUSED, **OWN}[name], run, judge_of(name)) > 0


@pytest.mark.nightly
def test_every_step() -> None:
    assert all(cancelled(victim, 1) > 10 for victim in range(4))
    assert engine_stopped(1) > 10
    assert device_fails_late(1) > 10
