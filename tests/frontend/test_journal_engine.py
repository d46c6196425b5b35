"""A journaled run on the real engine: what is resumed has the same tokens, logprobs and choices, bit for bit, wherever
it was interrupted. What had finished is prefilled as the very tokens that it was, and sampled no second time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import pytest

import ramet as rt
from ramet.frontend import journal, journal_session
from ramet.frontend.backends.base import Deliver, Session
from ramet.frontend.backends.engine import Engine
from ramet.frontend.backends.through import Through
from ramet.frontend.ir import AnyOp, Finished, Gen, Header, Put, Select
from ramet.frontend.journal_file import JournalFile

from ..runtime.engines import WAIT, checked_engine
from .journal_cases import Full
from .journaled import let_go

pytestmark = pytest.mark.model
SEED = 11


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with checked_engine() as started:
        yield started


@rt.function(temperature=1.0)
def essay(s: rt.State, topic: str) -> str:
    s.system("Write.")
    s.user(topic)
    opening = s.reply(name="opening", max_tokens=9, logprobs=2, ignore_eos=True)
    branches = s.fork(3)
    for branch in branches:
        branch.user(f"Part {branch.item}")
        branch += "Verdict: "
        branch.select(["yes", "no", "yes and no"], name="verdict", method="unconditional_likelihood_normalized")
        branch += " because"
        branch.gen(name="part", max_tokens=7, logprobs=1, stop="e", ignore_eos=True)
    s.user(s.call(str.upper, opening))
    number = s.gen(int, name="number", max_tokens=3)
    branches.join("concat")
    s += " and "
    s += number
    s.gen(name="end", max_tokens=8, logprobs=0, ignore_eos=True)
    return s.text()


class Counted(Through):
    """A backend that counts the calls that it is given."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.calls: list[str] = []
        self.puts: list[Put] = []

    def open(self, header: Header, deliver: Deliver) -> Session:
        session = self.backend.open(header, deliver)
        send = session.send

        def counted(ops: Any) -> None:
            self.calls += [op.id for op in ops if isinstance(op, Gen | Select)]
            self.puts += [op for op in ops if isinstance(op, Put) and op.tokens is not None]
            send(ops)

        session.send = counted  # type: ignore[method-assign]
        return session

    def close(self) -> None:
        """The engine is the fixture's."""


def bits(event: Finished) -> tuple[Any, ...]:
    """What of a call must be the same: all but counts and times of how it was computed."""
    meta = event.meta
    logprobs = tuple((p.token, p.logprob.hex(), tuple((i, x.hex()) for i, _, x in p.top)) for p in meta.logprobs)
    scores = tuple(score.hex() for score in meta.scores)
    return event.op, event.value, meta.tokens, meta.finish_reason, meta.matched, logprobs, scores


def outcome(run: rt.Run[str]) -> tuple[str, list[tuple[Any, ...]]]:
    text = run.result(WAIT)
    return text, sorted(bits(event) for event in run.events() if isinstance(event, Finished))


def interrupted(backend: Any, path: Path, k: int) -> rt.Run[str]:
    """A run whose k-th commit fails."""
    opened = JournalFile.__init__

    def opened_full(file: JournalFile, where: str) -> None:
        opened(file, where)
        file._connection = Full(file._connection, k)  # type: ignore[assignment]

    with mock.patch.object(JournalFile, "__init__", opened_full):
        run = essay.using(backend=backend, seed=SEED, journal=path)("trees")
        run.sync()
    return run


def resumed(engine: Engine, path: Path, k: int) -> tuple[bool, tuple[Any, ...], Counted]:
    """Interrupt a run at its k-th commit, and resume it on a cold cache: whether it was interrupted, its outcome."""
    run = interrupted(Counted(engine), path, k)
    error = run.error()
    if error is not None:
        assert isinstance(error, rt.JournalError)
        assert "disk is full" in str(error)
        assert "make room, and resume" in str(error)
    let_go()  # the host call's result may be on its way to the journal
    for op in journal.uncertain(str(path), run.id):
        journal.settle(str(path), run.id, op, None)
    engine.flush_cache()
    counted = Counted(engine)
    again = essay.using(backend=counted, journal=path, resume=run.id)("trees")
    return error is not None, outcome(again), counted


def all_the_same(engine: Engine, folder: Path, points: Iterable[int]) -> int:
    """Interrupt runs at commits until one is not interrupted any more; how many were."""
    expected = outcome(essay.using(backend=engine, seed=SEED)("trees"))
    calls = len(expected[1])
    failed = 0
    for k in points:
        was, found, counted = resumed(engine, folder / f"{k}.db", k)
        assert found == expected, f"interrupted at commit {k}"
        if not was:
            assert counted.calls == []
            assert len(counted.puts) == calls - 3  # choices are tokenised as they were, and need no tokens
            break
        failed += 1
        assert len(counted.calls) <= calls
    return failed


def test_the_same_bits_here_and_there(engine: Engine, tmp_path: Path) -> None:
    assert all_the_same(engine, tmp_path, (1, 4, 99)) >= 1


@pytest.mark.nightly
def test_the_same_bits_wherever_it_was_interrupted(engine: Engine, tmp_path: Path) -> None:
    assert all_the_same(engine, tmp_path, range(60)) >= 5


def test_tokens_are_those_that_were_sampled(engine: Engine, tmp_path: Path) -> None:
    """Control: a value that is tokenised again is other tokens (random weights write what no tokeniser would)."""
    expected = outcome(essay.using(backend=engine, seed=SEED)("trees"))
    known = journal_session._as_known

    def retokenised(op: Any, finished: Finished) -> list[AnyOp]:
        return [msgspec.structs.replace(x, tokens=None) if isinstance(x, Put) else x for x in known(op, finished)]

    with mock.patch.object(journal_session, "_as_known", retokenised):
        differ = sum(resumed(engine, tmp_path / f"{k}.db", k)[1] != expected for k in (3, 4))
    assert differ


def test_what_was_finished_computes_no_second_time(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    first = essay.using(backend=engine, seed=SEED, journal=path)("trees")
    expected = outcome(first)
    before: Any = engine.info()["generated_tokens"]
    again = essay.using(backend=engine, journal=path, resume=first.id)("trees")
    assert outcome(again) == expected
    assert engine.info()["generated_tokens"] == before
    kinds = [type(event).__name__ for event in again.events()]
    assert kinds.count("Finished") == len(expected[1])
    assert kinds.count("Ended") == 1


def test_a_run_of_another_model_or_precision_is_refused(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    run = essay.using(backend=engine, seed=SEED, journal=path)("trees")
    run.result(WAIT)
    with pytest.raises(rt.JournalMismatch, match="backend 'model' was random:tiny, is mock"):
        essay.using(backend=rt.Mock("x"), journal=path, resume=run.id)("trees")
