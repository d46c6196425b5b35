"""What a run with a journal cannot go on with, and what is refused before it begins."""

from __future__ import annotations

import functools
import importlib.util
import linecache
import os
import tempfile
from typing import Any

import pytest

import ramet as rt
from ramet.frontend import journal
from ramet.frontend.host import HOST
from ramet.frontend.journal_identity import source_hash

from .journal_cases import WAIT, backend, state, told
from .journaled import Log


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs.db"


@pytest.fixture
def log(tmp_path):
    return Log(tmp_path / "log")


def renamed(name: str) -> rt.Program[..., str]:
    def body(s: rt.State, topic: Any, /, *rest: Any, n: int = 2, **more: Any) -> str:
        s += f"{topic} {n}"
        return s.gen(max_tokens=2).get()

    body.__name__ = name
    return rt.function(body)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (lambda p: p.using(seed=8)("a"), "seed was 7, is 8"),
        (lambda p: p("b"), 'argument \'topic\' was "a", is "b"'),
        (lambda p: p("a", n=3), "argument 'n' was 2, is 3"),
        (lambda p: p("a", 1), "argument 'rest' was"),
        (lambda p: p("a", extra=1), "argument 'more' was"),
        (lambda p: p.using(temperature=0.5)("a"), "sampling 'temperature' was not given, is 0.5"),
        (lambda p: p.using(budget=100)("a"), "budget was None, is 100"),
        (lambda p: p.using(backend=_Other())("a"), "backend 'model' was mock, is other"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_run_goes_on_with_what_it_was_started_with(path, other, says):
    program = told.using(backend=rt.Mock("x y"), journal=path, seed=7)
    run = program("a")
    run.result(WAIT)
    with pytest.raises(rt.JournalMismatch) as caught:
        other(program.using(resume=run.id))
    assert says in str(caught.value)
    assert HOST.shared == {}
    assert program.using(resume=run.id)("a", n=2).result(WAIT) == "x y"  # what is the same may be said


class _Other(rt.Mock):
    def info(self) -> dict[str, object]:
        return {"model": "other", "dtype": "float32", "context_length": 9}


def test_another_name_and_another_source(path):
    program = renamed("one").using(backend=rt.Mock("x"), journal=path)
    run = program("a")
    run.result(WAIT)
    assert renamed("one").using(backend=rt.Mock("x"), journal=path, resume=run.id)("a").result(WAIT) == "x"
    with pytest.raises(rt.JournalMismatch, match=r"the program's name was 'one', is 'two'"):
        renamed("two").using(backend=rt.Mock("x"), journal=path, resume=run.id)("a")
    with pytest.raises(rt.JournalMismatch, match="the program's source has changed"):
        told.using(backend=rt.Mock("x"), journal=path, resume=run.id)("a")


def test_sources_without_a_text():
    """A function that was made while the program ran is known by its bytecode, anything else by its type."""
    made = [made_function(f"def f(s):\n    return {k}") for k in (1, 1, "s")]
    assert source_hash(made[0]) == source_hash(made[1]) != source_hash(made[2])
    assert source_hash(functools.partial(print)) == source_hash(functools.partial(len))


def made_function(text: str) -> Any:
    """A function of a module that has no file any more."""
    with tempfile.NamedTemporaryFile("w", suffix=".py", delete=False) as file:
        file.write(text)
    spec = importlib.util.spec_from_file_location("made_here", file.name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    os.unlink(file.name)
    linecache.checkcache(file.name)
    return module.f


def test_docstrings_comments_and_layout_are_no_source():
    assert source_hash(with_words._fn) == source_hash(without._fn)


def _pair():
    def body(s, x):
        """Words."""

        # and more
        return x

    first = body

    def body(s, x):
        return x

    return rt.function(first), rt.function(body)


with_words, without = _pair()


def test_a_body_that_does_something_else(path, log):
    """The source is the same, and what it reads from the world is not."""
    word, tool = ["one"], ["a"]

    @rt.function
    def body(s: rt.State) -> str:
        s += word[0]
        first = s.gen(name="first", max_tokens=2).get()
        s += s.call(str.upper, tool[0])
        return first + s.gen(name="second", max_tokens=2).get()

    body = body.using(backend=backend(log), journal=path)
    run = body()
    first = run.result(WAIT)
    word[0] = "two"
    with pytest.raises(rt.JournalMismatch, match=r"operation 0\.1 \(at .*:\d+\) generates something else"):
        body.using(resume=run.id)().result(WAIT)
    word[0], tool[0] = "one", "b"
    with pytest.raises(rt.JournalMismatch, match=r"operation 0\.2 .*calls upper with other arguments"):
        body.using(resume=run.id)().result(WAIT)
    tool[0] = "a"
    before = log.all("call")
    assert body.using(resume=run.id)().result(WAIT) == first
    assert log.all("call") == before


def test_a_budget_does_not_count_as_a_change(path):
    @rt.function
    def body(s: rt.State) -> str:
        s += "x"
        for branch in s.fork(2):
            branch.gen(name="a", max_tokens=2)
        s.gen(name="b", max_tokens=3).get()
        return s.gen(name="c").get()  # as much as is left

    body = body.using(backend=rt.Mock("1 2 3 4"), journal=path, budget=20)
    run = body()
    first = run.result(WAIT)
    assert body.using(resume=run.id)().result(WAIT) == first


@pytest.mark.parametrize(
    ("act", "error", "says"),
    [
        (lambda p: p.using(resume="x")("a"), rt.ConstraintError, "say of which journal"),
        (lambda p: p.using(journal="")("a"), rt.ConstraintError, "journal=''"),
        (lambda p: p.using(journal=3)("a"), rt.ConstraintError, "journal=3"),
        (lambda p: p.using(journal="x", resume=3)("a"), rt.ConstraintError, "resume=3"),
        (lambda p: p.using(journal="x", resume="y").batch(["a"]), rt.ConstraintError, "a batch makes one per row"),
        (lambda p: p.using(journal="x").compile(), rt.ConstraintError, "runs of a plan are not recorded"),
    ],
)
def test_wrong_options(act, error, says, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=says):
        act(told.using(backend=rt.Mock("x")))
    assert os.listdir(tmp_path) == []


def test_unknown_runs_and_journals(path):
    program = told.using(backend=rt.Mock("x"), journal=path)
    with pytest.raises(rt.JournalError, match="no such journal"):
        program.using(resume="abc")("a")
    assert not path.exists()
    program("a").result(WAIT)
    with pytest.raises(rt.JournalError, match="has no run 'abc'; unfinished ones: none"):
        program.using(resume="abc")("a")
    with pytest.raises(rt.JournalError, match="no such journal"):
        journal.runs(f"{path}x")
    with pytest.raises(rt.JournalError):
        program.using(journal=path / "below")("a")
    with pytest.raises(rt.JournalError, match="is no file"):
        program.using(journal=path.parent)("a")
    assert HOST.shared == {}


def test_inside_a_journaled_program(path):
    """Its own calls are recorded or refused, never lost."""

    @rt.function
    def inner(s: rt.State) -> str:
        s += "x"
        return s.gen(max_tokens=2).get()

    plan = inner.compile()

    @rt.function
    def with_journal(s: rt.State) -> str:
        return inner.using(journal=path)().result()

    @rt.function
    def with_plan(s: rt.State) -> Any:
        return plan.run().result()

    on = {"backend": rt.Mock("x"), "journal": path}
    with pytest.raises(rt.ConstraintError, match="'inner' is called by 'with_journal', whose run it is a part of"):
        with_journal.using(**on)().result(WAIT)
    with pytest.raises(rt.StateError, match="the plan 'inner' inside the journaled program 'with_plan'"):
        with_plan.using(**on)().result(WAIT)
    assert plan.run(backend=rt.Mock("x")).result(WAIT) == "x"


def test_a_backend_that_is_gone_leaves_the_run_to_others(path):
    closed = rt.Mock("x")
    closed.close()
    program = told.using(journal=path)
    with pytest.raises(rt.TransportError):
        program.using(backend=closed)("a")
    [row] = journal.runs(str(path))
    assert program.using(backend=rt.Mock("x"), resume=row.run)("a").result(WAIT) == "x"

    @rt.function
    def ends(s: rt.State) -> str:
        s += "x"
        dying.close()
        return s.gen().get()

    dying = rt.Mock(rt.Mock.PENDING)
    with pytest.raises(rt.TransportError):
        ends.using(backend=dying, journal=path)().result(WAIT)
    assert state(path) == ["finished", "failed"]


def test_a_failure_that_only_the_backend_knows(path):
    """The backend ends a program whose body has ended well, and nothing of it: the run is not called finished."""
    held = rt.Mock(rt.Mock.PENDING)

    @rt.function
    def unread(s: rt.State) -> str:
        s += "x"
        s.gen(name="a")
        return "done"

    run = unread.using(backend=held, journal=path)()
    run.value("a")
    held.close()
    assert isinstance(run.error(), rt.TransportError)
    assert state(path) == ["failed"]
    again = unread.using(backend=rt.Mock("y"), journal=path, resume=run.id)()
    assert again.result(WAIT) == "done"
