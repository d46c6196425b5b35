"""Runs with a journal: what is recorded, and what a resumed run does again."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

import ramet as rt
from ramet.frontend import journal
from ramet.frontend.ir import Ended, Finished, Score, Started, Token

from . import journaled
from .journal_cases import WAIT, Gate, backend, rows, state, two_steps
from .journaled import Log, Watched, let_go


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs.db"


@pytest.fixture
def log(tmp_path):
    return Log(tmp_path / "log")


def test_a_run_has_an_id_and_others_have_none(path, log):
    gate = Gate()
    gate.error = None
    two = two_steps(gate).using(backend=backend(log))
    assert two("a").id == ""
    run = two.using(journal=path)("a")
    assert len(run.id) == 16
    run.result(WAIT)
    assert [row.run for row in journal.runs(str(path))] == [run.id]
    assert state(path) == ["finished"]


def test_a_tool_that_fails_is_called_again_when_its_failure_ended_the_run(path, log):
    gate = Gate()
    two = two_steps(gate).using(backend=backend(log), journal=path)
    run = two("a")
    with pytest.raises(rt.ProgramError, match="no network"):
        run.result(WAIT)
    assert state(path) == ["failed"]
    with pytest.raises(rt.ProgramError):  # it may fail as often as it likes
        two.using(resume=run.id)("a").result(WAIT)
    gate.error = None
    text = two.using(resume=run.id)("a").result(WAIT)
    assert text == two_steps(str.upper).using(backend=rt.Mock(journaled.answer))("a").result(WAIT)
    assert len(set(gate.calls)) == 1
    assert len(gate.calls) == 3
    assert [call.split(":")[1] for call in log.all("call")].count("0.1") == 1
    assert state(path) == ["finished"]


def test_a_failure_that_the_body_survived_is_not_tried_again(path, log):
    calls: list[int] = []

    def broken() -> None:
        calls.append(1)
        raise ValueError("never")

    stop = [True]

    @rt.function
    def survives(s: rt.State) -> str:
        with s.copy() as aside:
            value = aside.call(broken)
            try:
                value.get()
            except rt.ToolError as error:
                said = str(error.message)
        if stop:
            raise KeyError("here")
        s += said
        return s.gen(max_tokens=3).get()

    survives = survives.using(backend=backend(log), journal=path)
    run = survives()
    with pytest.raises(KeyError):
        run.result(WAIT)
    stop.clear()
    survives.using(resume=run.id)().result(WAIT)
    assert calls == [1]


def test_a_cancelled_run_and_one_that_was_too_slow_go_on(path, log):
    mocked = rt.Mock({"first": "one", "second": rt.Mock.PENDING})
    two = two_steps(str.upper).using(backend=Watched(mocked, log), journal=path)
    run = two("a")
    run["first"]
    run.cancel()
    with pytest.raises(rt.Aborted):
        run.result(WAIT)
    let_go()
    slow = two.using(resume=run.id, timeout=0.05)("a")
    with pytest.raises(rt.ProgramTimeout):
        slow.result(WAIT)
    let_go()
    last = two.using(resume=run.id, timeout=WAIT)("a")
    mocked.release("second", "done")
    assert last.result(WAIT) == "done"
    assert [call.split(":")[1] for call in log.all("call")].count("0.1") == 1


def test_events_streams_and_meta_of_known_calls(path):
    @rt.function
    def body(s: rt.State) -> tuple[str, str]:
        s += "x"
        s.gen(name="word", max_tokens=4, logprobs=0)
        s.select(["a", "b"], name="side")
        s.gen(name="nothing", stop="1")
        return s["word"], s["side"]

    body = body.using(backend=rt.Mock({"word": "1 2 3 4", "side": "b", "nothing": "1"}), journal=path)
    first = body()
    first.result(WAIT)
    again = body.using(resume=first.id)()
    assert again.result(WAIT) == ("1 2 3 4", "b")
    assert "".join(again.text_iter("word")) == "1 2 3 4"
    assert again.value("word").meta == first.value("word").meta
    assert again.value("side").meta.scores == first.value("side").meta.scores
    kinds = [type(event) for event in again.events()]
    assert kinds == [Started, Token, Finished, Started, Finished, Started, Finished, Ended]
    assert again.text() == first.text()
    assert again.seed == first.seed


def test_async_bodies_async_tools_and_tools_of_agents(path, log):
    calls: list[str] = []

    async def fetch(what: str) -> list[str]:
        await asyncio.sleep(0)
        calls.append(f"{what} {rt.idempotency_key()}")
        return [what]

    @rt.function
    async def body(s: rt.State) -> str:
        s += "x"
        word = s.gen(name="word", max_tokens=2)
        found = await s.call(fetch, word)
        s += found[0]
        return await s.gen(name="end", max_tokens=2)

    body = body.using(backend=backend(log), journal=path)

    async def twice() -> tuple[str, str]:
        run = body()
        return await run, await body.using(resume=run.id)()

    first, again = asyncio.run(twice())
    assert first == again
    assert len(calls) == 1
    assert len(log.all("call")) == 2


def test_an_async_tool_that_is_cancelled_stays_uncertain(path):
    begun = threading.Event()

    async def forever() -> None:
        begun.set()
        raise asyncio.CancelledError

    @rt.function
    async def body(s: rt.State) -> None:
        await s.call(forever)

    run = body.using(backend=rt.Mock("x"), journal=path)()
    with pytest.raises(rt.ToolError):
        run.result(WAIT)
    assert begun.is_set()
    assert rows(path) == {"0.0": ("host", "begun")}
    with pytest.raises(rt.UncertainToolCall, match="forever had begun"):
        body.using(backend=rt.Mock("x"), journal=path, resume=run.id)().result(WAIT)


def test_programs_inside_are_parts_of_the_run(path, log):
    """Called by the body, by its tools and by rows of a batch; each as often as it is, whatever comes first."""

    @rt.function
    def inner(s: rt.State, k: int) -> str:
        s += f"row {k}"
        return s.gen(max_tokens=3).get()

    @rt.function
    def outer(s: rt.State) -> list[str]:
        s += "x"
        s.gen(max_tokens=2).get()
        batch = inner.batch(range(4)).result()
        seeded = inner.using(seed=5)(1)
        return [*batch, *(inner(1).result() for _ in range(2)), seeded.result(), str(seeded.id)]

    outer = outer.using(backend=backend(log), journal=path)
    run = outer()
    first = run.result(WAIT)
    assert first[-1] == run.id
    assert len(set(log.all("call"))) == 8  # each with a seed of its own
    before = log.all("call")
    assert outer.using(resume=run.id)().result(WAIT) == first
    assert log.all("call") == before


def test_a_score_is_recorded_and_appends_nothing(path):
    """Scores come from clients that make operations by themselves: here through the session."""
    from concurrent.futures import Future

    from ramet.frontend.backends.base import Deliver
    from ramet.frontend.ir import AnyOp, Header, Meta, Text, Usage

    class Scoring:
        def __init__(self) -> None:
            self.sent: list[AnyOp] = []

        def open(self, header: Header, deliver: Deliver) -> Any:
            backend = self

            class Session:
                def send(self, ops: Any) -> None:
                    for op in ops:
                        backend.sent.append(op)
                        if isinstance(op, Score):
                            deliver(Finished(op.id, op.seq, "", Meta(mean_logprob=-1.5), op.var))

                def end(self) -> None:
                    deliver(Ended(usage=Usage()))

                def cancel(self) -> None:
                    deliver(Ended(usage=Usage(), kind="aborted"))

            return Session()

        def info(self) -> dict[str, object]:
            return {}

        def flush_cache(self) -> bool:
            return False

        def close(self) -> None:
            pass

    done: Future[float] = Future()

    @rt.function
    def body(s: rt.State) -> float:
        s += "x"
        core = s._core
        entry = core.execution.add(core.seq, "select", "", lambda op: Score(id=op, seq="0", var="s"))
        core.execution.outbox.flush()
        entry.future.result(WAIT)
        done.set_result(0.0) if not done.done() else None
        return float(entry.meta.mean_logprob)

    scoring = Scoring()
    run = body.using(backend=scoring, journal=path)()
    assert run.result(WAIT) == -1.5
    assert body.using(backend=scoring, journal=path, resume=run.id)().result(WAIT) == -1.5
    assert [type(op) for op in scoring.sent] == [Text, Score, Text]
