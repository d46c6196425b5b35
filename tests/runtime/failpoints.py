"""Fails the k-th call of one function, for k = 1, 2, ... until a run makes fewer calls.

In: where a call can fail (`Point`) and a run. Out: for each k the outcome, judged by a function of the caller's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar

import pytest

T = TypeVar("T")
REFUSES = object()  # the call returns None: there is nothing to be had


class PanicError(BaseException):
    """What a panic of native code looks like: no `Exception`."""


@dataclass(frozen=True)
class Point:
    """One place that can fail: the call `name` of `owner` (a class, or a module) raises `error`, or, if that is
    `REFUSES`, returns None. `when` chooses among its calls by their arguments."""

    owner: Any
    name: str
    error: Any = field(default_factory=lambda: RuntimeError("this call fails"))
    when: Callable[..., bool] = lambda *args, **kwargs: True


@dataclass
class Reached:
    """`calls` that were made; `at_last`: the one that fails was among them."""

    calls: int = 0
    at_last: bool = False

    def __bool__(self) -> bool:
        return self.at_last


@contextlib.contextmanager
def failing(point: Point, k: int) -> Iterator[Reached]:
    """The k-th call at `point` (from 1) fails, all others are carried out."""
    reached, original = Reached(), getattr(point.owner, point.name)

    def call(*args: Any, **kwargs: Any) -> Any:
        if point.when(*args, **kwargs):
            reached.calls += 1
            if reached.calls == k:
                reached.at_last = True
                if point.error is REFUSES:
                    return None
                raise point.error
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(point.owner, point.name, call)
        yield reached


def sweep(point: Point, run: Callable[[], T], judge: Callable[[T, bool], None], *, stride: int = 1) -> int:
    """Run with the k-th call failing, and judge, for k = 1, 1 + stride, ... until a run ends without it (the last one:
    `judge` is told whether the call was reached); how many did fail. What is raised says which k it was."""
    for failed, k in enumerate(count(1, stride)):
        try:
            with failing(point, k) as reached:
                outcome = run()
            judge(outcome, bool(reached))
        except BaseException as error:
            error.add_note(f"with call {k} of {point.name} failing")
            raise
        if not reached:
            return failed
    raise AssertionError("unreachable")
