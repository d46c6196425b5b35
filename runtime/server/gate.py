"""Who may enter: a bound on the programs in the engine, and a bounded queue in front of it that is fair between
namespaces.

In: requests that want to run. Out: a `Place` for each, or a `Failure` that says when to come again. Used on the
event loop alone.
"""

from __future__ import annotations

import asyncio
import bisect
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from ramet.runtime.server.failures import Failure, late, overloaded, unavailable

LONGEST_WAIT = 60.0  # seconds: the largest Retry-After
SHORTEST = 0.1  # seconds of work from which a rate is read


@dataclass(frozen=True, slots=True)
class GateLimits:
    """Bounds of the service; times in seconds.

    `max_running_requests` programs are in the engine at once, `max_queue` requests wait for it. While the engine is
    being restarted a new request waits for `patience`, one that is run again for `retry_patience`. The engine counts
    as stalled after `stall_seconds`, or `stall_factor` times its largest recent step, without a sign of life;
    `busy_factor` times as long while its process uses the processor. `restart_delay` is the first pause after a start
    that failed; it doubles up to `restart_delay_most`.
    """

    max_running_requests: int = 256
    max_queue: int = 1024
    patience: float = 2.0
    retry_patience: float = 60.0
    stall_seconds: float = 13.0  # looked at every 0.9 s: `/ready` says so within 15
    stall_factor: float = 20.0
    busy_factor: float = 10.0
    restart_delay: float = 0.5
    restart_delay_most: float = 30.0

    def __post_init__(self) -> None:
        if self.max_running_requests < 1 or self.max_queue < 0:
            raise ValueError(
                f"max_running_requests={self.max_running_requests}, max_queue={self.max_queue}: at least 1 and 0"
            )


class Stopwatch:
    """Counts the seconds between its starts and stops."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._counted = 0.0
        self._since: float | None = None

    def start(self) -> None:
        """Count from now on. Idempotent."""
        if self._since is None:
            self._since = self._clock()

    def stop(self) -> None:
        """Count no more. Idempotent."""
        self._counted, self._since = self.seconds(), None

    def seconds(self) -> float:
        """What was counted so far."""
        return self._counted + (0.0 if self._since is None else self._clock() - self._since)


class DrainRate:
    """Completions per second: a time-weighted exponential average with time constant `memory` (seconds), corrected for
    the time before all others. Times are of a clock that began with 0."""

    def __init__(self, memory: float = 30.0) -> None:
        self._memory = memory
        self._sum = 0.0
        self._last = 0.0

    def add(self, now: float) -> None:
        """One more completion."""
        self._sum = self._sum * math.exp((self._last - now) / self._memory) + 1.0
        self._last = now

    def per_second(self, now: float) -> float:
        """The rate now; 0 as long as nothing is known."""
        weight = self._memory * (1.0 - math.exp(-max(now, SHORTEST) / self._memory))
        return self._sum * math.exp((self._last - now) / self._memory) / weight


class Place:
    """One request's place: waiting, then inside, then released. Made by `Gate.queue`."""

    def __init__(self, gate: Gate, namespace: str, weight: int, rank: tuple[int, int], patience: float) -> None:
        self.namespace = namespace
        self.weight = weight
        self.rank = rank
        self.inside = False
        self._gate = gate
        self._patience = patience
        self._future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._timers: list[asyncio.TimerHandle] = []
        self._pause: asyncio.TimerHandle | None = None

    async def entered(self) -> None:
        """Wait until inside. Raises the `Failure` that it was refused with. On cancellation, `release`."""
        if not self.inside:
            await self._future

    def expire(self, deadline: float) -> None:
        """Refuse with 504 when it still waits at `deadline` (the loop's clock)."""
        handle = asyncio.get_running_loop().call_at(
            deadline, self.refuse, late("the deadline passed while the request waited in the queue")
        )
        self._timers.append(handle)

    def hold(self, refusal: Callable[[], Failure]) -> None:
        """Nobody is let in for now: refuse when that lasts longer than this request is ready to wait."""
        if self._pause is None and not self.inside:
            loop = asyncio.get_running_loop()
            self._pause = loop.call_later(self._patience, lambda: self.refuse(refusal()))

    def resume(self) -> None:
        """People are let in again."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    def grant(self) -> None:
        """Let in."""
        self.inside = True
        self._quiet()
        if not self._future.done():
            self._future.set_result(None)

    def refuse(self, failure: Failure) -> None:
        """Turn away while it waits; inside it changes nothing."""
        if self.inside or self._future.done():
            return
        self._future.set_exception(failure)
        self._future.exception()  # whoever waits is told; nobody else needs a warning
        self.release()

    def release(self) -> None:
        """Leave, from wherever it is. Idempotent."""
        self._quiet()
        self._future.cancel()
        self._gate.left(self)

    def _quiet(self) -> None:
        self.resume()
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()


class Gate:
    """The queue and the bound. Round robin between namespaces; inside one, priority and then order of arrival."""

    def __init__(self, limits: GateLimits, clock: Callable[[], float]) -> None:
        self.running = 0  # programs
        self.waiting = 0  # requests
        self.rate = DrainRate()
        self._limits = limits
        self._busy = Stopwatch(clock)  # runs while somebody waits or is inside: an idle gate is no slow one
        self._queues: OrderedDict[str, list[Place]] = OrderedDict()
        self._inside: set[Place] = set()
        self._arrived = 0
        self._closed: Failure | None = None  # newcomers are refused with it
        self._paused: Callable[[], Failure] | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    def queue(self, namespace: str, *, weight: int = 1, priority: int = 0, patience: float | None = None) -> Place:
        """A place for a request of `weight` programs; it may be inside already. A weight above the bound counts as the
        whole of it. Raises `Failure` 429 (the queue is full) or 503 (closed)."""
        if self._closed is not None:
            raise self._closed
        weight = min(weight, self._limits.max_running_requests)
        wait = self._limits.patience if patience is None else patience
        self._arrived += 1
        place = Place(self, namespace, weight, (-priority, self._arrived), wait)
        if self._paused is None and not self.waiting and self._fits(place):
            self._enter(place)
            return place
        if self.waiting >= self._limits.max_queue:
            raise overloaded(
                f"the queue is full: {self.waiting} requests wait; come again when it has drained", self.retry_after()
            )
        bisect.insort(self._queues.setdefault(namespace, []), place, key=lambda other: other.rank)
        self.waiting += 1
        self._occupied()
        if self._paused is not None:
            place.hold(self._paused)
        return place

    def retry_after(self) -> float:
        """Seconds until the queue should have drained, by the rate of completions while there was work."""
        rate = self.rate.per_second(self._busy.seconds())
        return min(LONGEST_WAIT, max(1.0, (self.waiting + 1) / rate)) if rate > 0 else 1.0

    def pause(self, refusal: Callable[[], Failure]) -> None:
        """Let nobody in; whoever waits longer than its patience is refused. Idempotent."""
        if self._paused is None:
            self._paused = refusal
            for queue in self._queues.values():
                for place in queue:
                    place.hold(refusal)

    def resume(self) -> None:
        """Let in again."""
        self._paused = None
        for queue in self._queues.values():
            for place in queue:
                place.resume()
        self._advance()

    def close(self, failure: Failure) -> None:
        """Refuse newcomers with `failure`; those who wait still get in."""
        self._closed = failure

    def clear(self, failure: Failure) -> None:
        """Refuse everyone who waits."""
        for place in [place for queue in self._queues.values() for place in queue]:
            place.refuse(failure)

    async def emptied(self) -> None:
        """Wait until nobody waits and nobody is inside."""
        await self._idle.wait()

    def left(self, place: Place) -> None:
        """Called by the place when it is released."""
        if place in self._inside:
            self._inside.remove(place)
            self.running -= place.weight
            self.rate.add(self._busy.seconds())
        else:
            queue = self._queues.get(place.namespace, [])
            if place not in queue:
                return
            queue.remove(place)
            self.waiting -= 1
            if not queue:
                del self._queues[place.namespace]
        self._advance()
        if not self.waiting and not self._inside:
            self._idle.set()
            self._busy.stop()

    def _occupied(self) -> None:
        self._idle.clear()
        self._busy.start()

    def _fits(self, place: Place) -> bool:
        return self.running + place.weight <= self._limits.max_running_requests

    def _enter(self, place: Place) -> None:
        self._inside.add(place)
        self.running += place.weight
        self._occupied()
        place.grant()

    def _advance(self) -> None:
        """Let in whoever is next. A wide request at the head is waited for: smaller ones do not overtake it."""
        while self._queues and self._paused is None:
            namespace, queue = next(iter(self._queues.items()))
            if not self._fits(queue[0]):
                return
            place = queue.pop(0)
            self.waiting -= 1
            self._queues.move_to_end(namespace)
            if not queue:
                del self._queues[namespace]
            self._enter(place)


def restarting(seconds: float) -> Failure:
    """503: the engine was lost; another should be up in about `seconds`."""
    return unavailable("the engine is being restarted; send the request again in a moment", max(1.0, seconds))
