"""The boundary around everything that is derived from a request: a fault there ends that request, and nothing else.

Faults are seeded where admission, grammars, sampling and detokenising touch one program, the victim; beside it run
bystanders of every kind of call. The controls take the boundary away, or spoil it, and the same check fails.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from ramet.frontend.ir import Sampling
from ramet.runtime import collect, jump, programs
from ramet.runtime import messages as m
from ramet.runtime.boundary import blame
from ramet.runtime.engine import EngineCore
from ramet.runtime.grammar.automaton import HEADER, GrammarCache, LLAutomaton
from ramet.runtime.models import hub
from ramet.runtime.models.decoder import Decoder
from ramet.runtime.models.load import random_weights
from ramet.runtime.models.tokenizer import load_tokenizer
from ramet.runtime.runner import TorchRunner
from ramet.runtime.scheduler import Scheduler
from ramet.runtime.sequence import Generating
from ramet.runtime.text import Detokenizer, StopMatcher, Tokenizer

from ..runtime.driving import Drive

SPEC = replace(hub.PRESETS["tiny"], layers=1)
STOP = "\x00victim"  # the victim's stop string, which never comes
GRAMMAR = (
    f"{HEADER}start: /v[0-9]{{2}}(abc|xyz)[a-z]{{3,4}}/\n"  # the victim's: text to choose, and text that is forced
)
ANOTHER = f"{HEADER}start: /w(orld|ide)[0-9]{{3}}/\n"


class Panic(BaseException):
    """As pyo3's PanicException: no Exception."""


def text(op: str, first: int = 300) -> m.Append:
    return m.Append(op, op.rpartition(".")[0], (tuple(range(first, first + 12)),))


def gen(op: str, grammar: str = "", **sampling: Any) -> m.Generate:
    chosen = Sampling(**{"temperature": 1.0, "max_tokens": 16 if grammar else 5, "ignore_eos": not grammar, **sampling})
    return m.Generate(op, op.rpartition(".")[0], chosen, 1, grammar)


CROWD: tuple[tuple[m.AnyOp, ...], ...] = (
    (text("0.0"), gen("0.1", logprobs=2)),
    (text("0.0"), gen("0.1", ANOTHER)),
    (text("0.0", 900), gen("0.1", stop=("zebra",), repetition_penalty=1.2)),
    (text("0.0"), m.Choose("0.1", "0", ((7, 8), (7, 9), (11,)), "token_length_normalized"), gen("0.2")),
    (text("0.0", 500), m.Score("0.1", "0", 2, 1)),
)
BRANCHES = tuple(f"0.1.b{i}" for i in range(4))
VICTIM: tuple[m.AnyOp, ...] = (
    text("0.0"),
    m.Fork("0.1", "0", BRANCHES),
    gen("0.1.b0.0", GRAMMAR),
    gen("0.1.b1.0", logprobs=1, stop=(STOP,)),
    m.Choose("0.1.b2.0", "0.1.b2", ((5, 6), (5, 7)), "token_length_normalized"),
    m.Score("0.1.b3.0", "0.1.b3", 1, 0),
    *(m.Close(f"{branch}.9", branch) for branch in BRANCHES),
    m.Join("0.2", "0", (BRANCHES[1],)),
    m.Append("0.3", "0", ("0.1.b2.0",)),
    gen("0.4"),
)
ANSWERED = {op.op for op in VICTIM if isinstance(op, m.Generate | m.Choose | m.Score | m.Fork | m.Join)}
Ours = Callable[[EngineCore, tuple[Any, ...]], bool]


def of_sequence(core: EngineCore, args: tuple[Any, ...]) -> bool:
    """Whether a method of ours was called for the victim: `seq`, or something that has one, is its first argument."""
    return bool(getattr(args[1], "seq", args[1]).program.id == "victim")


def of_automaton(core: EngineCore, args: tuple[Any, ...]) -> bool:
    return bool(args[0]._prototype.program == GRAMMAR)


def of_detokenizer(core: EngineCore, args: tuple[Any, ...]) -> bool:
    victim = core.programs.live.get("victim")
    tasks = [seq.task for seq in victim.sequences.values()] if victim is not None else []
    return any(isinstance(task, Generating) and task.detokenizer is args[0] for task in tasks)


POINTS: dict[str, tuple[object, str, Ours]] = {
    "admission: a call": (programs, "begin", lambda _, args: any(args[0] is op for op in VICTIM)),
    "admission: a text": (programs.Programs, "_append", of_sequence),
    "admission: a fork": (programs.Programs, "_fork", of_sequence),
    "admission: a join": (programs.Programs, "_join", of_sequence),
    "admission: waiting": (programs.Programs, "_blocked", of_sequence),
    "grammar: prepared": (GrammarCache, "prepare", lambda _, args: args[1] == GRAMMAR),
    "grammar: begun": (GrammarCache, "automaton", lambda _, args: args[1] == GRAMMAR),
    "grammar: forced": (LLAutomaton, "forced", of_automaton),
    "grammar: followed": (LLAutomaton, "advance", of_automaton),
    "grammar: taken back": (LLAutomaton, "rollback", of_automaton),
    "grammar: mask": (LLAutomaton, "mask", of_automaton),
    "grammar: jump": (collect, "run", lambda _, args: args[0].op.grammar == GRAMMAR),
    "sampling: a token": (collect.Collector, "_sampled", of_sequence),
    "sampling: logprobs": (collect.Collector, "_tell", of_sequence),
    "sampling: a choice": (collect.Collector, "_decided", of_sequence),
    "sampling: scores": (collect.Collector, "_scored", of_sequence),
    "detokenising": (Detokenizer, "push", of_detokenizer),
    "detokenising: stops": (StopMatcher, "push", lambda _, args: STOP in args[0]._hit),
}
ONCE = (  # points that the victim comes by once
    *("admission: a fork", "admission: a join", "grammar: begun", "grammar: prepared", "grammar: taken back"),
    *("sampling: a choice", "sampling: scores"),
)
CASES = [
    pytest.param(point, kind, at, marks=() if at == 1 else pytest.mark.nightly)
    for i, point in enumerate(POINTS)
    for kind, at in ((Panic, 1), ((ValueError, MemoryError, RecursionError)[i % 3], 2))
    if at == 1 or point not in ONCE
]


@dataclass
class Seeded:
    """How often the victim came by; the fault is raised the `at`-th time."""

    at: int
    kind: type[BaseException]
    met: int = 0


@contextmanager
def faulty(core: EngineCore, point: str, kind: type[BaseException], at: int) -> Iterator[Seeded]:
    """One of POINTS raises `kind` the `at`-th time that it is asked about the victim, and from then on never again."""
    owner, name, ours = POINTS[point]
    inner = getattr(owner, name)
    seeded = Seeded(at, kind)

    def raising(*args: Any, **kwargs: Any) -> Any:
        if ours(core, args):
            seeded.met += 1
            if seeded.met == at:
                raise kind("seeded")
        return inner(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, raising)
        yield seeded


class Bench:
    """Engines around one model."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self._tokenizer: Tokenizer = load_tokenizer(hub.resolve("random:tiny"))
        self._decoder = Decoder(SPEC, random_weights(SPEC, torch.bfloat16, seed=3), "cpu", torch.bfloat16)
        self._grammars = GrammarCache(self._tokenizer, SPEC.vocab, self._tokenizer.eos)
        self.calm = self.bits(self.begun())

    def begun(self) -> tuple[Drive, list[str]]:
        """An engine that is about to run the victim and the crowd."""
        runner = TorchRunner(self._decoder, capacity=2048, rows=16, context=512, threads=1)
        made = Drive(runner, tokenizer=self._tokenizer, eos=self._tokenizer.eos, grammars=self._grammars)
        first = [made.program(*ops) for ops in CROWD[:2]]
        made.order(m.OrderOpen("victim"), m.OrderOps("victim", VICTIM), m.OrderEnd("victim"))
        return made, first + [made.program(*ops) for ops in CROWD[2:]]

    def bits(self, begun: tuple[Drive, list[str]]) -> list[tuple[object, ...]]:
        """What became of the crowd, once everything is over."""
        drive, crowd = begun
        drive.run(limit=400)
        return [drive[name, op.op].bits for name, ops in zip(crowd, CROWD, strict=True) for op in ops[1:]]


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench()


def answers(drive: Drive) -> Counter[str]:
    """How often each of the victim's operations was answered."""
    kinds = (m.Done, m.Chosen, m.Branched, m.Merged, m.Failure)
    news = [n for step in drive.port.steps for n in step.news if n.program == "victim" and isinstance(n, kinds)]
    return Counter(n.op for n in news)


def contained(bench: Bench, point: str, kind: type[BaseException], at: int = 1) -> None:
    """The check: run victim and crowd with a fault. Drive checks all invariants after each step."""
    begun = drive, _ = bench.begun()
    with faulty(drive.core, point, kind, at) as seeded:
        bits = bench.bits(begun)
        assert seeded.met >= at, "the fault was never reached"
    assert bits == bench.calm, "a bystander's result is another one"
    failures = [n for step in drive.port.steps for n in step.news if isinstance(n, m.Failure)]
    assert failures and {n.program for n in failures} == {"victim"}, "who failed"
    assert any(kind.__name__ in n.message for n in failures), "nobody is told of the fault"
    counted = answers(drive)
    assert all(count == 1 for count in counted.values()), f"answered more than once: {counted}"
    assert set(counted) >= ANSWERED, f"never answered: {ANSWERED - set(counted)}"
    assert drive.over["victim"].kind == "", "a failed operation does not cut its program short"
    stats = drive.core.stats()
    assert (stats.programs, stats.running, stats.waiting, stats.kv_used) == (0, 0, 0, 0)
    after = drive.program(*CROWD[0])
    drive.run(after)
    assert drive[after, "0.1"].tokens == drive["p1", "0.1"].tokens, "the engine answers as before"


@pytest.mark.parametrize(("point", "kind", "at"), CASES)
def test_a_fault_ends_the_request_that_it_belongs_to(bench: Bench, point: str, kind: type[BaseException], at: int):
    contained(bench, point, kind, at)


# -- the controls


def passes_on(error: BaseException) -> str:
    raise error


def only_exceptions(error: BaseException) -> str:
    if not isinstance(error, Exception):
        raise error
    return blame(error)


def everyone(self: Any, seq: Any, task: Any, error: BaseException) -> bool:
    for program in list(self._programs.live.values()):
        self._programs.end(program, "generation", blame(error))
    return True


def nameless(fail: Callable[..., None]) -> Callable[..., None]:
    return lambda self, seq, op, kind, message: fail(self, seq, "", kind, message)


def twice(fail: Callable[..., None]) -> Callable[..., None]:
    def failing(self: Any, seq: Any, op: str, kind: str, message: str) -> None:
        fail(self, seq, op, kind, message)
        self.news.append(m.Failure(seq.program.id, op, kind, message))

    return failing


FAIL = programs.Programs.fail
MUTATIONS: dict[str, tuple[object, str, object, str, type[BaseException]]] = {
    "no boundary around admission": (programs, "blame", passes_on, "admission: a call", ValueError),
    "no boundary around waiting": (programs, "blame", passes_on, "admission: waiting", ValueError),
    "no boundary around sampling": (collect, "blame", passes_on, "sampling: a token", ValueError),
    "no boundary around choices": (collect, "blame", passes_on, "sampling: a choice", ValueError),
    "no boundary around detokenising": (collect, "blame", passes_on, "detokenising", ValueError),
    "no boundary around masks": (jump, "blame", passes_on, "grammar: mask", ValueError),
    "Exceptions only, in admission": (programs, "blame", only_exceptions, "grammar: begun", Panic),
    "Exceptions only, in sampling": (collect, "blame", only_exceptions, "detokenising: stops", Panic),
    "Exceptions only, in masks": (jump, "blame", only_exceptions, "grammar: mask", Panic),
    "everybody is blamed": (collect.Collector, "_refused", everyone, "sampling: logprobs", ValueError),
    "the operation is not named": (programs.Programs, "fail", nameless(FAIL), "admission: a call", ValueError),
    "two answers": (programs.Programs, "fail", twice(FAIL), "sampling: a token", ValueError),
    "its memory is kept": (Scheduler, "leave", lambda self, seq: None, "detokenising", ValueError),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_without_the_boundary_the_check_fails(bench: Bench, monkeypatch: pytest.MonkeyPatch, mutation: str):
    owner, name, other, point, kind = MUTATIONS[mutation]
    monkeypatch.setattr(owner, name, other)
    with pytest.raises((AssertionError, ValueError, Panic, KeyError)):
        contained(bench, point, kind)


def test_without_a_fault_the_check_fails(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(POINTS, "never", (programs, "begin", lambda *_: False))
    with pytest.raises(AssertionError, match="never reached"):
        contained(bench, "never", ValueError)


# -- faults that no call raises


@pytest.mark.parametrize("op", [m.Append("0.5", "0", ((1 << 40,),)), m.Put("0.5", "", (1 << 40,))])
def test_tokens_that_are_no_tokens_end_their_program_alone(bench: Bench, op: m.AnyOp):
    drive, crowd = bench.begun()
    drive.order(m.OrderOpen("bad"), m.OrderOps("bad", (text("0.0"), op, gen("0.6"))), m.OrderEnd("bad"))
    assert bench.bits((drive, crowd)) == bench.calm
    failed = [n for step in drive.port.steps for n in step.news if isinstance(n, m.Failure) and n.program == "bad"]
    assert failed or drive.over["bad"].kind == "generation"
    assert drive.core.stats().kv_used == 0


def test_what_is_said_to_the_process_is_no_request_s(bench: Bench):
    for kind in (KeyboardInterrupt, SystemExit):
        with pytest.raises(kind):
            contained(bench, "sampling: a token", kind)
