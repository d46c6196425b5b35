"""Values that the host still computes are announced: what stands around them, and comes after them, is sent at once.

Each count is taken twice: with the operations as the language sends them, and (the control) through a backend that
keeps what follows an announcement until the value is there, which is what a language without announcements would do.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

import ramet as rt
from ramet.frontend.backends.base import Deliver, Session
from ramet.frontend.backends.engine import Engine
from ramet.frontend.ir import AnyOp, Gen, Header, Put, Ref, Text

from ..runtime.engines import GREEDY, WAIT, assert_clean, checked_engine, words

ASKS = 40  # of the engine, each answered between two of its steps: more than the steps that a test's texts take


@dataclass
class Watched:
    """A backend that notes the generations that come. `withhold`: it keeps back what comes after an announcement until
    all that was announced is there. `last` came when `arrived` is set."""

    backend: Any
    last: str
    withhold: bool = False
    gens: list[str] = field(default_factory=list)
    arrived: threading.Event = field(default_factory=threading.Event)

    def open(self, header: Header, deliver: Deliver) -> Session:
        return _Kept(self, self.backend.open(header, deliver))


class _Kept:
    def __init__(self, watched: Watched, session: Session) -> None:
        self._watched, self._session = watched, session
        self._due: set[str] = set()
        self._kept: list[AnyOp] = []

    def send(self, ops: Sequence[AnyOp]) -> None:
        for op in ops:
            if isinstance(op, Put):
                (self._due.add if op.due else self._due.discard)(op.id)
                if not (self._watched.withhold and op.due):
                    self._session.send([op])
            else:
                self._kept.append(op)
            if isinstance(op, Gen) and op.var == self._watched.last:
                self._watched.arrived.set()
        while self._kept and not (self._watched.withhold and self._waits(self._kept[0])):
            op = self._kept.pop(0)
            self._session.send([op])
            if isinstance(op, Gen):
                self._watched.gens.append(op.var)

    def _waits(self, op: AnyOp) -> bool:
        return isinstance(op, Text) and any(isinstance(part, Ref) and part.op in self._due for part in op.parts)

    def end(self) -> None:
        self._session.end()

    def cancel(self) -> None:
        self._session.cancel()


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with checked_engine(context=512, kv_tokens=1024) as started:
        yield started


def while_a_tool_runs(engine: Engine, withhold: bool) -> tuple[int, int, str]:
    """Tokens that were computed when the tool returned, in all, and what the program made."""
    engine.flush_cache()
    watched = Watched(engine, "answer", withhold)
    seen: list[int] = []

    def tool(act: str) -> str:
        assert watched.arrived.wait(WAIT)
        seen.extend(int(str(engine.info()["computed_tokens"])) for _ in range(ASKS))
        return "forty two"

    def body(s: rt.State) -> str:
        s += words(30)
        value = s.call(tool, s.gen(name="act", max_tokens=4, **GREEDY))
        s += words(25)
        s += value
        s += words(8)
        return s.gen(name="answer", max_tokens=4, **GREEDY).get()

    before = int(str(engine.info()["computed_tokens"]))
    run = rt.function(body).using(backend=watched, seed=1)()
    text = run.result(WAIT)
    return seen[-1] - before, run.usage.computed_tokens, text


def test_the_text_before_a_tools_result_is_computed_while_the_tool_runs(engine: Engine) -> None:
    ahead, total, text = while_a_tool_runs(engine, withhold=False)
    late, same, again = while_a_tool_runs(engine, withhold=True)
    assert ahead - late >= 25, "all of it, but for the token whose logits the next call wants"
    assert (total, text) == (same, again), "nothing is computed twice, and nothing else"


def known_when_the_first_tool_returns(engine: Engine, withhold: bool) -> list[str]:
    """The generations that had come to the engine by then, of an agent whose body reads nothing before its end."""
    watched = Watched(engine, "act3", withhold)
    seen: list[str] = []

    def tool(turn: int, act: str) -> str:
        if turn == 0:
            assert watched.arrived.wait(WAIT)
            assert engine.info()["programs"] == 1
            seen.extend(watched.gens)
        return words(turn + 2)

    def body(s: rt.State) -> str:
        s += words(20)
        for turn in range(4):
            act = s.gen(name=f"act{turn}", max_tokens=3, **GREEDY)
            s += "\nResult: " + s.call(tool, turn, act) + "\n"
        return s.text()

    assert rt.function(body).using(backend=watched, seed=1)().result(WAIT)
    return seen


def test_an_agent_that_reads_nothing_is_known_whole_before_its_first_tool_returns(engine: Engine) -> None:
    assert known_when_the_first_tool_returns(engine, withhold=False) == ["act0", "act1", "act2", "act3"]
    assert known_when_the_first_tool_returns(engine, withhold=True) == ["act0"]


# -- values that never come


def failing(act: str) -> str:
    raise LookupError("no such page")


def surrogate(act: str) -> str:
    return "\ud800"


def endless(act: str) -> str:
    return "a" * 9000


def dependents(backend: Any, tool: Callable[[str], str]) -> dict[str, BaseException | str]:
    """What each value gives of a program in which a tool's result stands before some of them."""
    gone = threading.Event()

    def late(act: str) -> str:
        assert gone.wait(WAIT)
        return tool(act)

    def body(s: rt.State) -> dict[str, BaseException | str]:
        s += "Once"
        free, hit = s.fork(2)
        value = s.call(late, s.gen(name="act", max_tokens=2))
        free += " upon"
        hit += " got " + value
        values = {"free": free.gen(max_tokens=2), "hit": hit.gen(max_tokens=2)}
        values["below"] = hit.fork(1)[0].gen(max_tokens=2)
        free += values["hit"]
        values["follows"] = free.gen(max_tokens=2)
        values["free"].get()
        gone.set()
        found: dict[str, BaseException | str] = {}
        for name, each in values.items():
            try:
                found[name] = each.get()
            except rt.RametError as error:
                found[name] = error
        return found

    return rt.function(body).using(backend=backend, seed=1)().result(WAIT)


@pytest.mark.parametrize(
    ("where", "tool"), [("engine", failing), ("engine", surrogate), ("engine", endless), ("mock", failing)]
)
def test_what_waits_for_a_value_that_fails_fails_with_it(
    engine: Engine, where: str, tool: Callable[[str], str]
) -> None:
    found = dependents(engine if where == "engine" else rt.Mock("word"), tool)
    assert isinstance(found["free"], str)
    for name in ("hit", "below", "follows"):
        error = found[name]
        assert isinstance(error, rt.ProgramError), (name, error)
        assert error.where.startswith("test_announced.py:")
        root = error.__cause__
        assert isinstance(root, rt.ToolError if tool is failing else rt.ProgramError), root
        assert "no such page" in str(error) or tool is not failing
    assert_clean(engine)


def test_the_mock_begins_a_branch_after_the_text_before_its_fork() -> None:
    go = threading.Event()
    mock = rt.Mock("word")

    def body(s: rt.State) -> str:
        s += "Once " + s.call(lambda: "a tool" if go.wait(WAIT) else "")
        [branch] = s.fork(1)
        branch += "said"
        value = branch.gen(name="x")
        s._core.execution.outbox.flush()
        go.set()
        return value.get()

    assert rt.function(body).using(backend=mock)().result(WAIT) == "word"
    assert mock.prompts == ["Once a toolsaid"]
