"""Host functions of runs with a journal: once, at least once, or nobody knows; and who may resume a run."""

from __future__ import annotations

import asyncio
import functools
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import ramet as rt
from ramet.frontend import journal
from ramet.frontend.host import HOST
from ramet.frontend.journal_run import is_idempotent

from . import journaled
from .journal_cases import WAIT, rows, state, told
from .journaled import Log, let_go


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs.db"


@pytest.fixture
def log(tmp_path):
    return Log(tmp_path / "log")


@dataclass
class Point:
    x: int
    y: float


def test_uncertain_calls_and_what_becomes_of_them(path, log):
    """A process dies inside a tool; nobody knows whether it did what it does."""
    assert journaled.die_elsewhere(log, path, "told", 6) == journaled.DIED
    [row] = journal.runs(str(path))
    program = journaled.program(Log(path.parent / "other")).using(backend=rt.Mock(journaled.answer), journal=path)
    with pytest.raises(rt.UncertainToolCall) as caught:
        program.using(resume=row.run)("the topic").result(WAIT)
    error = caught.value
    assert error.op in journal.uncertain(str(path), row.run)
    assert error.key in (path.parent / "log").read_text()
    assert "charge had begun" in str(error)
    assert f"--again {error.op}" in str(error)
    assert error.where.startswith("journaled.py:")
    for op, result, says in (("9.9", None, "no interrupted host call"), (error.op, "{", "is not JSON")):
        with pytest.raises(rt.JournalError, match=says):
            journal.settle(str(path), row.run, op, result)
    journal.settle(str(path), row.run, error.op, '{"charged": "by hand"}')
    result = program.using(resume=row.run)("the topic").result(WAIT)
    assert "by hand" in result["text"]
    assert error.key not in (path.parent / "other").read_text()
    with pytest.raises(rt.JournalError, match="no interrupted host call"):
        journal.settle(str(path), row.run, error.op, None)


def test_results_that_are_no_plain_data(path):
    calls: list[int] = []

    def point() -> Point:
        calls.append(1)
        return Point(1, 2.0)

    def body(s: rt.State, tool: Any) -> float:
        value = s.call(tool).get()
        s += str(value)
        s.gen(max_tokens=2).get()
        return float(value.y)

    named = functools.partial(rt.function(body).using, backend=rt.Mock("x"), journal=path)
    with pytest.raises(rt.ConstraintError, match=r"point returned what the journal cannot record \(.*Point\)"):
        named()(point).result(WAIT)
    assert [call[1] for call in rows(path).values()] == ["begun"]
    sure = rt.idempotent(point)
    run = named()(sure)
    assert run.result(WAIT) == 2.0
    assert named(resume=run.id)(sure).result(WAIT) == 2.0
    assert len(calls) == 3


def test_what_is_idempotent():
    @rt.idempotent
    def one(x: int) -> int:
        return x

    class Has:
        @rt.idempotent
        def method(self) -> int:
            return 1

    @functools.wraps(one)
    def wrapping(x: int) -> int:
        return one(x)

    assert one(2) == 2
    assert all(is_idempotent(fn) for fn in (one, wrapping, functools.partial(one, 1), Has().method))
    assert not any(is_idempotent(fn) for fn in (print, lambda: 1, functools.partial(print), Has()))
    with pytest.raises(rt.ConstraintError, match="decorate a function"):
        rt.idempotent(functools.partial(one, 1))
    with pytest.raises(rt.StateError, match="names a call of a host function"):
        rt.idempotency_key()


def test_keys_without_a_journal_are_new_each_time():
    @rt.function
    def body(s: rt.State) -> list[str]:
        return [s.call(rt.idempotency_key).get() for _ in range(2)]

    found = [key for _ in range(2) for key in body.using(backend=rt.Mock("x"))().result(WAIT)]
    assert len(set(found)) == 4
    assert {len(key) for key in found} == {32}


def test_a_host_function_finds_its_callers_context(log):
    """Also when what it waits for is completed by a thread of the backend: the programs that it calls run where the
    body runs."""

    @rt.function
    def inner(s: rt.State, text: str) -> str:
        s += text
        return s.gen(name="inner").get()

    @rt.function
    def outer(s: rt.State) -> str:
        s += "x"
        late = s.gen(name="late")
        value = s.call(lambda text: inner(text).result(), late)
        mocked.release("late", "word")
        return value.get()

    mocked = rt.Mock({"late": rt.Mock.PENDING, "inner": "found"})
    assert outer.using(backend=mocked)().result(WAIT) == "found"


def test_an_async_tool_that_raises_and_one_that_is_recorded(path):
    async def fails() -> None:
        raise ValueError("no")

    @rt.function
    async def body(s: rt.State) -> str:
        with s.copy() as aside:
            value = aside.call(fails)
            try:
                await value
            except rt.ToolError as error:
                return str(error.message)
        return ""

    run = body.using(backend=rt.Mock("x"), journal=path)()
    first = run.result(WAIT)
    assert first == "fails raised ValueError: no"
    assert body.using(backend=rt.Mock("x"), journal=path, resume=run.id)().result(WAIT) == first


def test_an_operation_that_the_backend_refuses(path):
    """It fails as it does without a journal, and is tried again by the run that is resumed."""
    from ramet.frontend.ir import Score

    @rt.function
    def body(s: rt.State) -> str:
        s += "x"
        with s.copy() as aside:
            core = aside._core
            entry = core.execution.add(core.seq, "select", "", lambda op: Score(id=op, seq=core.seq.path, var="s"))
            other = s.gen(name="word")
            core.execution.outbox.flush()
            error = entry.future.exception(WAIT)
            core.execution.record.saw(error)
        return f"{type(error).__name__} {other.get()}"

    run = body.using(backend=rt.Mock("x"), journal=path)()
    assert run.result(WAIT) == "ConstraintError x"
    assert body.using(backend=rt.Mock("x"), journal=path, resume=run.id)().result(WAIT) == "ConstraintError x"


def test_a_program_inside_on_a_backend_that_is_gone(path):
    """The run is its caller's: it goes on."""
    closed = rt.Mock("x")
    closed.close()

    @rt.function
    def inner(s: rt.State) -> None:
        s += "never"

    @rt.function
    def body(s: rt.State) -> str:
        try:
            inner.using(backend=closed)()
        except rt.TransportError:
            s += "x"
            return s.gen().get()
        return ""

    assert body.using(backend=rt.Mock("y"), journal=path)().result(WAIT) == "y"
    assert state(path) == ["finished"]


def test_a_loop_that_is_closed_fails_the_call(path):
    """What cannot be launched is a failure of the call, also with a journal."""

    def never() -> None:
        raise AssertionError("not reached")

    @rt.function
    def body(s: rt.State) -> None:
        s.call(never).get()

    closed = RuntimeError("cannot schedule new futures after shutdown")
    with (
        mock.patch.object(HOST, "submit", side_effect=closed),
        pytest.raises(rt.ToolError, match="after shutdown"),
    ):
        body.using(backend=rt.Mock("x"), journal=path)().result(WAIT)


def test_calls_after_the_end_are_not_begun(path, log):
    """A body that goes on after its run was cancelled begins nothing more."""
    first, go = threading.Event(), threading.Event()
    calls: list[str] = []

    @rt.function
    def body(s: rt.State) -> None:
        first.set()
        go.wait(WAIT)
        scope = s._core.execution.journal
        with mock.patch.object(s._core.execution.record, "cause", None), mock.patch.object(scope, "_execution", None):
            from concurrent.futures import Future

            from ramet.frontend.hostcalls import HostCall

            call = HostCall("0.9", "late", calls.append, "", "0", Future())
            scope.call(call, ((), {}), lambda: calls.append("late"))
            with pytest.raises(rt.Aborted, match="cut short"):
                call.future.result(WAIT)

    run = body.using(backend=rt.Mock("x"), journal=path)()
    first.wait(WAIT)
    run.cancel()
    let_go()
    go.set()
    assert isinstance(run.error(), rt.Aborted)
    assert calls == []
    assert rows(path) == {}


# --- who may resume ---


def test_one_process_at_a_time(path, tmp_path):
    mocked = rt.Mock(rt.Mock.PENDING)
    program = told.using(backend=mocked, journal=path)
    run = program("a")
    with pytest.raises(rt.JournalHeld, match=f"run {run.id} is under way.*it is this one"):
        program.using(resume=run.id)("a")
    with pytest.raises(rt.JournalHeld):
        journal.settle(str(path), run.id, "0.1", None)
    code = (
        "import sys, ramet as rt\nfrom ramet.frontend import journal\n"
        "try:\n    journal.settle(sys.argv[1], sys.argv[2], '0.1', None)\n"
        "except rt.JournalHeld as error:\n    print('held', error)\n"
    )
    command = [sys.executable, "-P", "-c", code, str(path), run.id]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=True)
    assert done.stdout.startswith(f"held run {run.id} is under way")
    other = program("b")  # another run of the same file is nobody's business
    mocked.release("_0.1", "x")
    mocked.release("_0.1", "y")
    assert {run.result(WAIT), other.result(WAIT)} == {"x", "y"}
    assert program.using(resume=run.id)("a").result(WAIT) in ("x", "y")


def test_a_host_call_under_way_keeps_the_run(path):
    """A run that was cancelled inside a tool is over, and nobody may resume it before the tool has ended: its result is
    recorded."""
    begun, go = threading.Event(), threading.Event()

    def slow() -> str:
        begun.set()
        go.wait(WAIT)
        return "result"

    @rt.function
    def body(s: rt.State) -> str:
        s += s.call(slow)
        return s.gen(max_tokens=1).get()

    program = body.using(backend=rt.Mock("x"), journal=path)
    run = program()
    begun.wait(WAIT)
    run.cancel()
    run.sync()
    with mock.patch("ramet.frontend.journal.PATIENCE", 0.01), pytest.raises(rt.JournalHeld):
        program.using(resume=run.id)()

    async def on_a_loop() -> None:
        with pytest.raises(rt.JournalHeld):  # at once: the call might need this very loop
            program.using(resume=run.id)()

    asyncio.run(on_a_loop())
    threading.Timer(0.05, go.set).start()
    assert program.using(resume=run.id)().result(WAIT) == "x"  # it has waited
    let_go()
    assert rows(path)["0.0"] == ("host", "done")


FORKED = """
import sys
from pathlib import Path
import pytest
import ramet as rt
from ramet.frontend import journal
from ramet.frontend.host import HOST
sys.path.insert(0, sys.argv[2])
import journaled

WAIT = journaled.WAIT

@rt.function
def told(s, topic):
    s += topic
    return s.gen(max_tokens=2).get()

path = Path(sys.argv[1])
mocked = rt.Mock(rt.Mock.PENDING)
run = told.using(backend=mocked, journal=path)("a")
before = HOST.shared[str(path)]

def child():
    with pytest.raises(rt.JournalError, match="the process that this one was forked from"):
        before.file.write([])
    before.file.close()
    with pytest.raises(rt.JournalHeld):
        journal.settle(str(path), run.id, "0.1", None)

assert journaled._forked(child) == 0
mocked.release("_0.1", "x")
assert run.result(WAIT) == "x"
"""


def test_a_forked_process_does_not_have_the_run(path):
    """Neither its lock nor its connection. In a process of its own: one with other threads must not fork."""
    script = path.parent / "forks.py"
    script.write_text(FORKED)
    command = [sys.executable, "-P", str(script), str(path), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=False)
    assert done.returncode == 0, done.stderr
