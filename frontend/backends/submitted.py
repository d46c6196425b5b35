"""Plans as a whole to a ramet server: one request for a run, and its events.

In: a plan's file, the texts of its arguments. Out: events, delivered on the backend's loop. Each run has an idempotency
key: when the connection is lost, the same request attaches to the run that is under way, or gets its recorded events.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx
import msgspec

from ramet.frontend.backends.base import Deliver, Session
from ramet.frontend.backends.http import Http, RemoteFailure, data_of, failure_of, pause
from ramet.frontend.backends.loop import Loop
from ramet.frontend.ir import AnyOp, Ended, Event, Header, Usage

PATH = "/v1/programs"
KEY = "Idempotency-Key"
REFUSED = frozenset((400, 404, 405, 413, 415, 422, 501))  # not as a whole: operation by operation says more, or works
LOWEST = -9999.0  # what the server writes for -inf
CALLS = 8  # attempts to call a run off that the server may not have begun yet
_STATUS = {"invalid_request_error": 400, "aborted": 499, "timeout_error": 504}  # of errors inside a stream, by type


class Submissions:
    """The plans that run on one server. Used on the loop, but for `open`."""

    def __init__(self, loop: Loop, http: Http, retries: int) -> None:
        self.loop = loop
        self.http = http
        self.retries = retries
        self.calling: set[asyncio.Task[None]] = set()

    def open(
        self, header: Header, plan: bytes, args: Mapping[str, str], deliver: Deliver, instead: Callable[[], Session]
    ) -> Session:
        """A run of a plan; from any thread. It goes to the server with the first `send` or `end`. `instead` opens the
        session that carries it out operation by operation, where the server does not take it whole."""
        body = {"version": 1, "header": header, "plan": msgspec.Raw(plan), "args": dict(args)}
        try:
            content = msgspec.json.encode(body)
        except UnicodeEncodeError:  # a lone surrogate: the operation that has it is refused
            return instead()
        return SubmittedPlan(self, msgspec.Raw(content), deliver, instead)

    def call_off(self, key: str, run: asyncio.Task[None] | None) -> None:
        """Have the server stop a run that nobody is going to read."""
        task = self.loop.task(self._called_off(key, run))
        self.calling.add(task)
        task.add_done_callback(self.calling.discard)

    async def _called_off(self, key: str, run: asyncio.Task[None] | None) -> None:
        """Ask until there was something to stop: while `run` waits for an answer, its request may be on its way."""
        with contextlib.suppress(RemoteFailure):
            for attempt in range(CALLS):
                found = await self.http.json("POST", "/abort_request", {"rid": key})
                if run is None or not isinstance(found, dict) or found.get("aborted") != 0:
                    break
                if (await asyncio.wait({run}, timeout=pause(0.0, attempt)))[0]:
                    break
        if run is not None:
            run.cancel()

    async def answers(self) -> bool:
        """Whether the server is there."""
        try:
            await self.http.json("GET", "/version")
        except RemoteFailure:
            return False
        return True

    async def close(self) -> None:
        """Call off what still runs, then close the connections."""
        await asyncio.gather(*self.calling, return_exceptions=True)
        await self.http.close()


async def submissions(loop: Loop, url: str, headers: Mapping[str, str], timeout: float, retries: int) -> Submissions:
    """Made on the loop that uses it, and closed with it."""
    made = Submissions(loop, Http(url, headers, timeout, retries), retries)
    loop.closers.append(made.close)
    return made


class SubmittedPlan:
    """See `Session`. What is sent to it is what the server, which follows the same plan, does by itself: it is kept
    until the server has taken the plan."""

    def __init__(self, home: Submissions, body: msgspec.Raw, deliver: Deliver, instead: Callable[[], Session]) -> None:
        self._home = home
        self._body = body
        self._deliver = deliver
        self._instead = instead
        self._key = secrets.token_hex(16)
        self._ops: list[Sequence[AnyOp]] = []
        self._ended = self._over = False
        self._heard = 0  # events that were delivered
        self._session: Session | None = None  # which carries it out instead
        self._task: asyncio.Task[None] | None = None

    # -- from any thread

    def send(self, ops: Sequence[AnyOp]) -> None:
        """See `Session.send`."""
        self._home.loop.post(functools.partial(self._send, ops))

    def end(self) -> None:
        """See `Session.end`."""
        self._home.loop.post(self._end_ops)

    def cancel(self) -> None:
        """See `Session.cancel`."""
        self._home.loop.post(self._cancel)

    # -- on the loop

    def _send(self, ops: Sequence[AnyOp]) -> None:
        if self._session is not None:
            self._pass(ops)
        elif not self._heard:
            self._ops.append(ops)
            self._begin()

    def _end_ops(self) -> None:
        self._ended = True
        if self._session is not None:
            self._pass(None)
        else:
            self._begin()

    def _begin(self) -> None:
        if self._task is None and not self._over:
            self._home.loop.live.add(self)
            self._task = self._home.loop.task(self._run())

    def _cancel(self) -> None:
        if self._session is not None:
            self._session.cancel()
        else:
            self._stop("aborted", "the program was cancelled")

    def lose(self, message: str) -> None:
        """See `Live.lose`."""
        self._stop("transport", message)

    def _stop(self, kind: str, message: str) -> None:
        if not self._over:
            self._end(Ended(usage=Usage(), kind=kind, message=message))
            if self._task is not None:
                self._home.call_off(self._key, self._task)

    def _end(self, ended: Ended) -> None:
        if self._over:
            return
        self._over = True
        self._home.loop.live.discard(self)
        with contextlib.suppress(Exception):  # one program's reader must not keep the others from theirs
            self._deliver(ended)

    async def _run(self) -> None:
        failed = 0
        while not self._over:
            before = self._heard
            try:
                self._end(await self._attempt())
            except RemoteFailure as failure:
                if not self._heard and failure.status in REFUSED:
                    self._step_aside()
                    return
                if not failure.status and failure.after is None and await self._home.answers():
                    continue  # silence, and not the server's end: the run waits for its turn
                failed = failed if self._heard == before else 0
                if failure.after is None or failed >= self._home.retries:
                    self._end(Ended(usage=Usage(), kind=failure.kind, message=failure.message))
                elif not self._over:
                    await asyncio.sleep(pause(failure.after, failed))
                    failed += 1
            except Exception as error:  # noqa: BLE001 (the boundary of a program: its reader is told, others go on)
                self._end(Ended(usage=Usage(), kind="generation", message=f"{type(error).__name__}: {error}"))

    async def _attempt(self) -> Ended:
        """Read the events from the first on; those that were delivered are passed over."""
        headers = {KEY: self._key, "X-Request-Id": self._key}
        async with self._home.http.answer("POST", PATH, self._body, headers) as response:
            if self._heard and "idempotent-replayed" not in response.headers:
                self._home.call_off(self._key, None)
                lost = f"{response.url}: the connection was lost, and the server does not know the run any more"
                raise RemoteFailure("transport", lost, status=410)
            return await self._read(response)

    async def _read(self, response: httpx.Response) -> Ended:
        known = self._heard
        async with contextlib.aclosing(data_of(response)) as lines:
            async for line in lines:
                event = event_of(line)
                if event is None:
                    continue
                if isinstance(event, Ended):
                    return event
                if known:
                    known -= 1
                    continue
                self._heard += 1
                self._ops.clear()
                if not self._over:
                    self._deliver(event)
        raise AssertionError("the data of a stream ends by an error or at [DONE]")

    def _step_aside(self) -> None:
        """The server does not take the plan whole: it gets its operations."""
        self._home.loop.live.discard(self)
        if self._over:
            return
        self._session = self._instead()
        for ops in self._ops:
            self._pass(ops)
        self._ops.clear()
        if self._ended:
            self._pass(None)

    def _pass(self, ops: Sequence[AnyOp] | None) -> None:
        """Hand operations on, or (None) their end; what cannot be said ends the program."""
        assert self._session is not None, "there is a session in its place"
        try:
            if ops is None:
                self._session.end()
            else:
                self._session.send(ops)
        except Exception as error:  # noqa: BLE001 (the boundary of a program: its reader is told, others go on)
            self._session.cancel()
            self._end(Ended(usage=Usage(), kind="constraint", message=str(error)))


def event_of(line: bytes) -> Event | None:
    """The event of a line; None for the plan's result, which its course knows. Raises `RemoteFailure`."""
    try:
        raw = msgspec.json.decode(line)
        if isinstance(raw, dict) and "error" in raw and "type" not in raw and isinstance(raw["error"], dict):
            failure = failure_of(_STATUS.get(str(raw["error"].get("type")), 500), raw, None)
            failure.after = None  # it was told that it ended
            raise failure
        if isinstance(raw, dict) and "type" not in raw:
            return None
        found: Event = msgspec.convert(_numbers(raw, inside=False), Event)
        return found
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise RemoteFailure("generation", f"an event of the server is not understood: {error}") from None


def _numbers(value: Any, *, inside: bool) -> Any:
    """JSON's values with the numbers that it does not have: in an array null is nan, and `LOWEST` is -inf."""
    if isinstance(value, dict):
        return {name: _numbers(part, inside=False) for name, part in value.items()}
    if isinstance(value, list):
        return [_numbers(part, inside=True) for part in value]
    if inside and value is None:
        return math.nan
    return -math.inf if value == LOWEST else value
