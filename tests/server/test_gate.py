"""The gate: bounds, fairness between namespaces, refusals that say when to come again."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.runtime.server.failures import Failure, unavailable
from ramet.runtime.server.gate import DrainRate, Gate, GateLimits, Place, restarting


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def gate(running: int = 1, queue: int = 8, clock: Clock | None = None, **limits: float) -> Gate:
    bounds: dict[str, Any] = {"max_running_requests": running, "max_queue": queue, **limits}
    return Gate(GateLimits(**bounds), clock or Clock())


def on_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(**given: Any) -> None:
        asyncio.run(asyncio.wait_for(test(**given), 30.0))

    return run


def order_of(here: Gate, places: dict[str, Place]) -> list[str]:
    """The order in which waiting places get in when one after the other leaves."""
    order: list[str] = []
    while here.running:
        inside = [name for name, place in places.items() if place.inside]
        order += [name for name in inside if name not in order]
        for name in inside:
            place = places.pop(name)
            place.release()
    return order


@on_loop
async def test_namespaces_take_turns() -> None:
    here = gate()
    first = here.queue("x")
    assert first.inside
    places = {f"a{i}": here.queue("a") for i in range(4)} | {"b0": here.queue("b"), "c0": here.queue("c")}
    assert here.waiting == 6
    first.release()
    assert order_of(here, places) == ["a0", "b0", "c0", "a1", "a2", "a3"]


@on_loop
async def test_priority_within_a_namespace() -> None:
    here = gate()
    first = here.queue("a")
    places = {"low": here.queue("a"), "high": here.queue("a", priority=5), "low2": here.queue("a")}
    first.release()
    assert order_of(here, places) == ["high", "low", "low2"]


@on_loop
async def test_a_wide_request_is_not_overtaken_for_ever() -> None:
    here = gate(running=4)
    small = [here.queue("a") for _ in range(3)]
    wide, late_one = here.queue("a", weight=4), here.queue("b")
    assert not wide.inside
    assert not late_one.inside
    for place in small:
        place.release()
    assert wide.inside
    assert not late_one.inside
    wide.release()
    assert late_one.inside
    late_one.release()
    huge = here.queue("a", weight=100)
    assert huge.inside
    assert here.running == 4
    huge.release()


@on_loop
async def test_a_full_queue_says_when_to_come_again() -> None:
    clock = Clock()
    here = gate(queue=2, clock=clock)
    inside = here.queue("a")
    waiting = [here.queue("a"), here.queue("b")]
    with pytest.raises(Failure) as caught:
        here.queue("c")
    assert (caught.value.status, caught.value.retry_after) == (429, 1.0)
    inside.release()
    for _ in range(40):  # one completion in four seconds
        clock.now += 4.0
        place = next(place for place in waiting if place.inside)
        waiting.append(here.queue("a"))
        waiting.remove(place)
        place.release()
    here.queue("a")
    with pytest.raises(Failure) as caught:
        here.queue("c")
    assert caught.value.retry_after == pytest.approx(12.0, rel=0.1)
    assert caught.value.headers()["Retry-After"] in ("12", "13")


def told(here: Gate) -> float | None:
    """What a full queue says of when to come again; everybody has left afterwards."""
    places = [here.queue("a") for _ in range(3)]
    with pytest.raises(Failure) as caught:
        here.queue("a")
    for place in reversed(places):
        place.release()
    return caught.value.retry_after


@pytest.mark.parametrize("quiet", [0.0, 30.0, 86_400.0])
@on_loop
async def test_quiet_times_do_not_count(quiet: float) -> None:
    clock = Clock()
    here = gate(queue=2, clock=clock)
    for _ in range(100):  # each is done in four seconds, and nobody is there between them
        place = here.queue("a")
        clock.now += 4.0
        place.release()
        clock.now += quiet
    assert told(here) == pytest.approx(12.0, rel=0.1)


@pytest.mark.parametrize("seconds", [0.05, 0.1, 0.2, 0.3])
@on_loop
async def test_what_is_fast_is_known_from_the_first_on(seconds: float) -> None:
    clock = Clock()
    here = gate(queue=2, clock=clock)
    place = here.queue("a")
    clock.now += seconds
    place.release()
    clock.now += 100.0
    assert told(here) == 1.0


@on_loop
async def test_work_that_does_not_end_counts() -> None:
    clock = Clock()
    here = gate(queue=2, clock=clock)
    here.queue("a").release()
    places = [here.queue("a") for _ in range(3)]
    clock.now += 200.0
    with pytest.raises(Failure) as caught:
        here.queue("a")
    assert caught.value.retry_after == 60.0
    assert len(places) == 3


@on_loop
async def test_refused_while_paused_longer_than_patience() -> None:
    here = gate(patience=0.05)
    waiting = here.queue("a")
    assert waiting.inside
    early = here.queue("a")
    here.pause(lambda: restarting(3.0))
    late_one = here.queue("b", patience=20.0)
    with pytest.raises(Failure) as caught:
        await early.entered()
    assert (caught.value.status, caught.value.retry_after) == (503, 3.0)
    waiting.release()
    assert not late_one.inside
    here.resume()
    await late_one.entered()
    late_one.release()
    await here.emptied()


@on_loop
async def test_the_deadline_counts_the_queue() -> None:
    here = gate()
    inside, waiting = here.queue("a"), here.queue("a")
    waiting.expire(asyncio.get_running_loop().time() + 0.02)
    with pytest.raises(Failure) as caught:
        await waiting.entered()
    assert caught.value.status == 504
    assert here.waiting == 0
    inside.release()


@on_loop
async def test_cancelled_while_it_waits() -> None:
    here = gate()
    inside, waiting, last = here.queue("a"), here.queue("a"), here.queue("a")
    task = asyncio.create_task(waiting.entered())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    inside.release()  # may let it in although nobody waits any more: its owner releases it
    waiting.release()
    await last.entered()
    last.release()
    last.release()
    assert (here.running, here.waiting) == (0, 0)


@on_loop
async def test_closed_and_cleared() -> None:
    here = gate()
    inside, waiting = here.queue("a"), here.queue("a")
    here.close(unavailable("draining", 5.0))
    with pytest.raises(Failure, match="draining"):
        here.queue("a")
    inside.release()
    await waiting.entered()  # it was there before
    waiting.release()
    await here.emptied()


def test_bounds_are_checked() -> None:
    for bounds in ({"max_running_requests": 0}, {"max_queue": -1}):
        with pytest.raises(ValueError, match="at least"):
            GateLimits(**bounds)


@given(gap=st.floats(0.05, 5.0), seconds=st.floats(10.0, 200.0))
def test_a_steady_rate_is_found(gap: float, seconds: float) -> None:
    rate = DrainRate()
    count = int(seconds / gap) + 10
    for i in range(count):
        rate.add(i * gap)
    now = (count - 1) * gap
    assert rate.per_second(now) == pytest.approx(1 / gap, rel=0.15)
    assert rate.per_second(now + 300.0) < 0.01 / gap  # nothing happened since
    assert DrainRate().per_second(1.0) == 0.0


Step = tuple[str, int, int, int]  # what, namespace or index, weight, priority
steps = st.lists(
    st.tuples(st.sampled_from(["queue", "leave", "refuse", "pause", "resume"]), *[st.integers(0, 4)] * 3), max_size=60
)


@settings(max_examples=60, deadline=None)
@given(limit=st.integers(1, 5), depth=st.integers(0, 6), steps=steps)
def test_bounds_hold_whatever_happens(limit: int, depth: int, steps: list[Step]) -> None:
    async def play() -> None:
        here = gate(running=limit, queue=depth)
        live: list[Place] = []
        for what, number, weight, priority in steps:
            if what == "queue":
                full = here.waiting
                with contextlib.suppress(Failure):
                    live.append(here.queue(f"n{number}", weight=weight + 1, priority=priority))
                    full = depth
                assert full == depth  # only a full queue refuses
            elif what == "pause":
                here.pause(lambda: restarting(1.0))
            elif what == "resume":
                here.resume()
            elif live:
                place = live.pop(number % len(live))
                if what == "refuse":
                    place.refuse(unavailable("no", 1.0))
                place.release()
            inside = [place for place in live if place.inside]
            assert here.running == sum(place.weight for place in inside) <= limit
            assert here.waiting == len(live) - len(inside) <= depth
        here.resume()
        while live:
            assert any(place.inside for place in live)  # nobody starves
            live.pop(next(i for i, place in enumerate(live) if place.inside)).release()
        await here.emptied()

    asyncio.run(play())
