"""The engine's client, in one process: what one program's trouble does to others, gauges, priorities, namespaces."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

import ramet as rt
from ramet.frontend import ir
from ramet.frontend.backends.engine import Engine
from ramet.runtime import process
from ramet.runtime.batch import Batch
from ramet.runtime.engine import EngineCore

from .engines import TINY, WAIT, Tenant, assert_clean, checked_engine, core_of, long_program, short_program, words

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with checked_engine() as started:
        yield started


class Inbox:
    """The events of a program that is driven without the language."""

    def __init__(self, fails_at: type[object] | None = None) -> None:
        self.events: list[ir.Event] = []
        self.begun, self.over = threading.Event(), threading.Event()
        self._fails_at = fails_at

    def __call__(self, event: ir.Event) -> None:
        self.events.append(event)
        if isinstance(event, ir.Token):
            self.begun.set()
        if isinstance(event, ir.Ended):
            self.over.set()
        if self._fails_at is not None and isinstance(event, self._fails_at):
            raise RuntimeError("this reader is broken")

    def meta(self) -> ir.Meta:
        return next(event.meta for event in self.events if isinstance(event, ir.Finished))


COMPLETION = (
    ir.Text(id="0.0", seq="0", parts=("Once",)),
    ir.Gen(id="0.1", seq="0", var="x", sampling=ir.Sampling(max_tokens=4, ignore_eos=True)),
)


def test_events_of_the_two_op_program(engine: Engine) -> None:
    inbox = Inbox()
    session = engine.open(ir.Header(), inbox)
    session.send(COMPLETION)
    session.end()
    assert inbox.over.wait(WAIT)
    started, *tokens, finished, ended = inbox.events
    assert isinstance(started, ir.Started)
    assert isinstance(finished, ir.Finished)
    assert "".join(token.text for token in tokens if isinstance(token, ir.Token)) == finished.value
    assert isinstance(ended, ir.Ended)
    assert (ended.kind, ended.usage.calls, ended.usage.generated_tokens) == ("", 1, 4)
    session.cancel()  # changes nothing any more
    session.end()
    assert inbox.events[-1] is ended


def test_a_reader_that_raises_ends_its_program_alone(engine: Engine) -> None:
    inbox = Inbox(fails_at=ir.Token)
    session = engine.open(ir.Header(), inbox)
    other = long_program.using(backend=engine)(tokens=30)
    session.send(COMPLETION)
    assert inbox.over.wait(WAIT)
    ended = inbox.events[-1]
    assert isinstance(ended, ir.Ended)
    assert ended.kind == "generation"
    assert "this reader is broken" in ended.message
    assert len(other.result(WAIT)) == 3
    short_program.using(backend=engine)().result(WAIT)
    assert_clean(engine)


def test_refused_operations_leave_the_session_as_it_was(engine: Engine) -> None:
    inbox = Inbox()
    session = engine.open(ir.Header(), inbox)
    session.send(COMPLETION[:1])
    with pytest.raises(rt.ConstraintError, match="choices"):
        session.send([ir.Select(id="0.1", seq="0", var="x", choices=())])
    session.send([ir.Select(id="0.1", seq="0", var="x", choices=(" upon", " more"))])
    session.end()
    assert inbox.over.wait(WAIT)
    assert [type(event) for event in inbox.events] == [ir.Started, ir.Finished, ir.Ended]


def test_cancelled_twice(engine: Engine) -> None:
    inbox = Inbox()
    session = engine.open(ir.Header(), inbox)
    session.send(COMPLETION)
    session.cancel()
    session.cancel()
    assert inbox.over.wait(WAIT)
    assert [event.kind for event in inbox.events if isinstance(event, ir.Failed | ir.Ended)] == ["aborted", "aborted"]
    assert_clean(engine)


def test_flush_forgets_what_nobody_uses(engine: Engine) -> None:
    text = words(60)

    @rt.function
    def reads(s: rt.State) -> int:
        s += text
        return s.gen(max_tokens=1).meta.cached_tokens

    first = reads.using(backend=engine)().result(WAIT)
    assert reads.using(backend=engine)().result(WAIT) > 50 > first
    assert engine.flush_cache()
    kv = engine.info()["kv"]
    assert isinstance(kv, dict)
    assert (kv["cached"], kv["free"]) == (0, kv["total"])
    assert reads.using(backend=engine)().result(WAIT) == first


def test_a_question_that_nobody_waits_for_any_more(engine: Engine) -> None:
    client, gate = engine._client, threading.Event()
    client.post(lambda: gate.wait(WAIT) and None)  # the answer comes after the question was given up
    question = client.ask()
    question.cancel()
    gate.set()
    assert client.stats(WAIT).kv_total == TINY["kv_tokens"]


def test_namespaces_share_nothing(engine: Engine) -> None:
    text = "A secret: " + words(50)

    @rt.function
    def reads(s: rt.State) -> int:
        s += text
        return s.gen(max_tokens=1).meta.cached_tokens

    ours, theirs = Tenant(engine, namespace="ours"), Tenant(engine, namespace="theirs")
    assert reads.using(backend=ours)().result(WAIT) == 0
    assert reads.using(backend=theirs)().result(WAIT) == 0
    assert reads.using(backend=ours)().result(WAIT) > 40
    runs = [reads.using(backend=Tenant(engine, namespace=f"n{i}"))() for i in range(4)]
    assert [run.result(WAIT) for run in runs] == [0, 0, 0, 0]


def test_a_higher_priority_goes_first() -> None:
    gen = ir.Gen(id="0.1", seq="0", var="x", sampling=ir.Sampling(max_tokens=800, ignore_eos=True))
    with checked_engine(max_running=1) as engine:

        def begin(priority: int) -> tuple[Inbox, Any]:
            inbox = Inbox()
            session = engine.open(ir.Header(priority=priority), inbox)
            session.send([COMPLETION[0], gen if priority == 9 else COMPLETION[1]])
            session.end()
            return inbox, session

        first, session = begin(9)
        assert first.begun.wait(WAIT)  # it has the only row, and keeps it until all others wait
        low, high = [begin(0)[0] for _ in range(3)], begin(5)[0]
        session.cancel()
        for inbox in (*low, high):
            assert inbox.over.wait(WAIT)
        assert high.meta().last_step < min(inbox.meta().first_step for inbox in low)


class BreaksOnce(EngineCore):
    """An engine whose loop, or whose device, fails at one point."""

    broken = threading.Event()
    where = "plan"

    def step(self) -> None:
        if not self.broken.is_set() and self.where == "plan" and self.scheduler.running:
            self.broken.set()
            raise RuntimeError("a bug in the loop")
        super().step()
        self.check()

    def _forward(self, batch: Batch):  # type: ignore[no-untyped-def]
        if not self.broken.is_set() and self.where == "device":
            self.broken.set()
            self.runner.forward = _raises  # type: ignore[method-assign]
            try:
                return super()._forward(batch)
            finally:
                del self.runner.forward
        return super()._forward(batch)


def _raises(batch: Batch) -> object:
    raise RuntimeError("the device failed")


def test_a_loop_that_ends_by_an_error_fails_its_programs_and_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "EngineCore", BreaksOnce)
    monkeypatch.setattr(BreaksOnce, "broken", threading.Event())
    with Engine("random:tiny", in_process=True, **TINY) as engine:
        runs = [long_program.using(backend=engine)(tokens=50) for _ in range(2)]
        for run in runs:
            with pytest.raises(rt.TransportError, match="the engine was lost: RuntimeError: a bug in the loop"):
                run.result(WAIT)
        assert short_program.using(backend=engine)().result(WAIT)
        assert_clean(engine)


def test_a_device_that_fails_ends_the_batch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "EngineCore", BreaksOnce)
    monkeypatch.setattr(BreaksOnce, "broken", threading.Event())
    monkeypatch.setattr(BreaksOnce, "where", "device")
    with Engine("random:tiny", in_process=True, **TINY) as engine:
        with pytest.raises(rt.GenerationError, match="the forward pass failed: RuntimeError: the device failed"):
            short_program.using(backend=engine)().result(WAIT)
        assert short_program.using(backend=engine)().result(WAIT)
        assert_clean(engine)


def test_an_engine_in_a_thread_is_closed_like_any_other() -> None:
    engine = Engine("random:tiny", in_process=True, **TINY)
    run = long_program.using(backend=engine)()
    next(event for event in run.events() if isinstance(event, rt.Token))
    engine.close()
    with pytest.raises(rt.TransportError, match=r"closed|stopped"):
        run.result(WAIT)
    engine.close()
    with pytest.raises(rt.TransportError, match="closed"):
        short_program.using(backend=engine)()
    assert engine.process_id is None


def test_programs_from_many_threads_at_once(engine: Engine) -> None:
    results: list[str] = []

    def user() -> None:
        results.extend(short_program.using(backend=engine)(3).result(WAIT) for _ in range(5))

    threads = [threading.Thread(target=user) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert len(results) == 40
    assert len(set(results)) == 1  # greedy, and the same bits in any company
    assert_clean(engine)
    assert core_of(engine).programs.live == {}
