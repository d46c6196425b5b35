"""Bodies that loop without recording anything, or wait: compiling them comes to an end, and says at which line."""

from __future__ import annotations

import contextlib
import inspect
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ramet as rt
from ramet.frontend import endless, tracing
from ramet.frontend.planned import Break

FILE = Path(__file__).name


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endless, "MOST_LINES", 2_000)
    monkeypatch.setattr(endless, "GLANCE", 0.02)
    monkeypatch.setattr(endless, "SILENCE", 10.0)
    monkeypatch.setattr(tracing, "MOST_LOOKS", 200)
    monkeypatch.setattr(tracing, "MOST_TEXTS", 300)


def here(fn: Callable[..., Any]) -> str:
    lines, first = inspect.getsourcelines(fn)
    return f"{FILE}:{first + next(index for index, line in enumerate(lines) if '# here' in line)}"


# A loop on one line is found at that line.
# fmt: off
def _passes(s: rt.State) -> str:
    while True: pass  # here  # noqa: E701


def _counts(s: rt.State) -> str:
    count = 0
    while count >= 0:
        count += 1; count -= 1  # here  # noqa: E702
    return "never"


def _finite(s: rt.State) -> str:
    value = s.select(["a", "b"], name="letter").get()
    while value != "b": pass  # here  # noqa: E701
    return value


def _typed(s: rt.State) -> str:
    while s["sure"] if "sure" in s else s.gen(bool, name="sure").get():
        time.monotonic()  # here
    return "x"


def _below(s: rt.State) -> str:
    return _spins(s.gen(bool).get())


def _spins(on: bool) -> str:
    while on: len("")  # here  # noqa: E701
    return "x"


def _generator(s: rt.State) -> str:
    def forever() -> Iterator[int]:
        while True: yield 1  # here  # noqa: E701

    return s.gen(max_tokens=sum(forever())).get()


async def _awaits(s: rt.State) -> str:
    sure = await s.gen(bool)
    while sure: sure = bool(sure)  # here  # noqa: E701
    return "x"


def _appends(s: rt.State) -> str:
    while True:
        s += "more"  # here
# fmt: on


LOOPS = {
    "appends": (_appends, _appends),
    "pass": (_passes, _passes),
    "counts": (_counts, _counts),
    "finite": (_finite, _finite),
    "below": (_below, _spins),
    "generator": (_generator, _generator),
    "awaits": (_awaits, _awaits),
}


def bounded(body: Callable[..., Any], line: str) -> None:
    """Compiling ends, with a break at the line of the loop and a diagnostic of it."""
    plan = rt.function(body).compile(max_paths=4)
    [found] = plan.breaks
    assert isinstance(found, Break) and found.kind == "limit"
    assert "does a loop end?" in found.reason
    assert line in (found.where, found.reason.rpartition("called from ")[2].rstrip(")"))
    [told] = [each for each in plan.check() if each.code == "endless-path"]
    assert told.where == found.where and told.remedy


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_that_records_nothing_ends_the_path(name: str) -> None:
    body, loop = LOOPS[name]
    bounded(body, here(loop))


@pytest.mark.parametrize("name", sorted(LOOPS.keys() - {"appends"}))
def test_without_the_bounds_such_a_body_is_given_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: with the counters off, the same bodies hang until nothing was recorded for long enough, and the
    check above fails."""
    monkeypatch.setattr(endless, "MOST_LINES", 1 << 60)
    monkeypatch.setattr(tracing, "MOST_LOOKS", 1 << 60)
    monkeypatch.setattr(endless, "SILENCE", 0.1)
    body, loop = LOOPS[name]
    with pytest.raises(rt.PlanError, match=r"recorded nothing for 0.1 s; its body is at test_compile_endless\.py:\d+"):
        bounded(body, here(loop))


def test_other_outcomes_are_compiled() -> None:
    plan = rt.function(_finite).compile()
    assert plan.run(backend=rt.Mock("b")).result(10) == "b"


def test_a_body_that_waits_is_given_up_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endless, "SILENCE", 0.1)
    go = threading.Event()

    def waits(s: rt.State) -> str:
        go.wait()  # here
        return s.gen(max_tokens=1).get()

    with pytest.raises(rt.PlanError, match=r"recorded nothing for 0\.1 s") as caught:
        rt.function(waits).compile()
    go.set()
    assert here(waits) in str(caught.value)
    assert "s.call" in str(caught.value)


def test_a_body_that_catches_everything_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endless, "SILENCE", 0.2)
    go = threading.Event()

    def stubborn(s: rt.State) -> str:
        with contextlib.suppress(BaseException):
            while not go.is_set():
                pass
        while not go.is_set():  # nothing counts any more
            pass
        return "x"

    with pytest.raises(rt.PlanError):
        rt.function(stubborn).compile()
    go.set()


def test_work_between_operations_is_not_a_loop() -> None:
    def works(s: rt.State) -> str:
        for _ in range(3):
            for number in range(800):
                number += 1
            s += "x"
        return s.gen(max_tokens=1).get()

    assert rt.function(works).compile().whole
