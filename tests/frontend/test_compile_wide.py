"""What compiling costs, in counts: runs of the body, calls that are watched, steps that are kept."""

from __future__ import annotations

import gc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import ramet as rt
from ramet.frontend import compile as compiling
from ramet.frontend.compile import _Explorer
from ramet.frontend.entries import Entry
from ramet.frontend.traced import TraceExecution
from ramet.frontend.tracing import Shared, Unwatched
from ramet.frontend.watch import Watch

EVENTS = 16  # per operation, of all calls and returns that a watching function is told of
READ = 220  # beside them, per decision that is read


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Runs of a body, events of its watch, comparisons of steps while paths are merged, distinct steps."""
    counts: Counter[str] = Counter()

    def counting(owner: Any, name: str, key: str) -> None:
        plain = getattr(owner, name)

        def method(*args: Any) -> Any:
            counts[key] += 1
            return plain(*args)

        monkeypatch.setattr(owner, name, method)

    counting(_Explorer, "_trace", "runs")
    counting(Watch, "__call__", "events")
    counting(compiling, "_agree", "compared")
    made: list[Shared] = []

    def shared() -> Shared:
        made.append(Shared())
        return made[-1]

    monkeypatch.setattr(compiling, "Shared", shared)
    plain = compiling.compiled

    def compiled(job: Any) -> Any:
        found = plain(job)
        counts["kept"] = len(made[-1].steps)
        return found

    monkeypatch.setattr("ramet.frontend.compiling.compiled", compiled)
    return counts


def wide(branches: int, picks: int, *, read: bool = False) -> rt.Plan:
    """Two to the power of `picks` paths, each with all of the branches; each branch's text is read, if asked for."""

    def body(s: rt.State) -> int:
        chosen = [s.gen(bool, name=f"pick{k}").get() for k in range(picks)]
        for index, branch in enumerate(s.fork(branches)):
            branch += f"Branch {index}."
            said = branch.gen(name="said", max_tokens=2)
            if read:
                said.get()
        return sum(chosen)

    return rt.function(body).compile(max_paths=1 << picks)


def cost(counts: Counter[str], branches: int, picks: int, *, read: bool = False) -> Counter[str]:
    """Of compiling one such program; its operations are "ops", its decisions "picks"."""
    counts.clear()
    plan = wide(branches, picks, read=read)
    assert len(plan.paths) == 1 << picks and plan.whole
    return Counter({**counts, "ops": 2 * branches + 1 + picks, "picks": picks})


def test_each_path_is_traced_twice_and_its_steps_are_kept_once(counted: Counter[str]) -> None:
    found = cost(counted, 16, 3)
    assert found["runs"] == 2 * 8
    assert found["kept"] <= found["ops"] + 2, "all paths are the same steps"


def test_the_cost_of_an_operation_does_not_depend_on_how_many_there_are(counted: Counter[str]) -> None:
    narrow, broad, many = cost(counted, 12, 2), cost(counted, 48, 2), cost(counted, 12, 4)
    for key in ("events", "compared"):
        assert broad[key] <= 4.1 * narrow[key], "four times as wide"
    assert many["compared"] <= 1.5 * 4 * narrow["compared"], "four times as many paths, with two operations more"
    assert all(watched_little(found) for found in (narrow, broad, many))


def test_the_cost_of_a_read_does_not_depend_on_how_much_was_recorded_before(counted: Counter[str]) -> None:
    narrow, broad = cost(counted, 12, 0, read=True), cost(counted, 96, 0, read=True)
    assert broad["events"] <= 8.1 * narrow["events"], "eight times as many reads"


@pytest.mark.nightly
def test_a_thousand_branches_on_128_paths(counted: Counter[str]) -> None:
    found = cost(counted, 1000, 7)
    assert found["runs"] == 2 * 128
    assert found["kept"] <= found["ops"] + 2
    assert found["compared"] <= 2 * found["ops"] * 128
    assert watched_little(found)


def watched_little(found: Counter[str]) -> bool:
    return found["events"] <= (EVENTS * found["ops"] + READ * found["picks"]) * found["runs"]


def test_what_is_the_languages_alone_is_not_watched(counted: Counter[str]) -> None:
    assert watched_little(cost(counted, 40, 1))


def test_with_everything_watched_the_count_is_exceeded(counted: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The control."""
    start = Unwatched.__exit__
    monkeypatch.setattr(Unwatched, "__enter__", lambda self: None)
    monkeypatch.setattr(Unwatched, "__exit__", lambda self, *_: start(self, None, None, None) if self._depth else None)
    assert not watched_little(cost(counted, 40, 1))


def cyclic(branches: int) -> int:
    """Recorded operations of one trace that only a collection of garbage can free; other threads may leave garbage too,
    and theirs are recorded elsewhere."""
    left: list[int] = []
    plain = _Explorer._trace

    def traced(self: _Explorer, *args: Any) -> Any:
        gc.collect()
        trace = plain(self, *args)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        gc.set_debug(0)
        left.append(sum(isinstance(one, Entry) and Path(__file__).name in one.where for one in gc.garbage))
        gc.garbage.clear()
        return trace

    was = gc.isenabled()
    gc.disable()  # or the next collection may come first
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_Explorer, "_trace", traced)
            wide(branches, 0)
    finally:
        (gc.enable if was else gc.disable)()
    return max(left)


def test_a_trace_leaves_no_garbage() -> None:
    assert cyclic(60) == 0


def test_a_trace_that_is_not_forgotten_leaves_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control."""
    monkeypatch.setattr(TraceExecution, "forget", lambda self: None)
    assert cyclic(60) > 60


@pytest.mark.parametrize("on", [True, False])
def test_the_collector_is_as_it_was_before(on: bool) -> None:
    was = gc.isenabled()
    seen: list[bool] = []

    def body(s: rt.State) -> None:
        s.gen(name="said", max_tokens=2)
        seen.append(gc.isenabled())

    try:
        (gc.enable if on else gc.disable)()
        rt.function(body).compile()
        assert gc.isenabled() is on
    finally:
        (gc.enable if was else gc.disable)()
    assert seen == [False, False], "not in the middle of a trace"
