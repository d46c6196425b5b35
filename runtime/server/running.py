"""One request in the engine: its programs, its mailbox, its place in the gate, and how all of that ends.

In: a `Call` (or the operations of a whole program). Out: sessions whose events land in a mailbox. However a request
ends, `close` stops what still runs in the engine and frees its place.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from types import TracebackType

from ramet.frontend import errors, ir
from ramet.runtime.boundary import contained
from ramet.runtime.client import ClientSession, EngineClient
from ramet.runtime.server import failures
from ramet.runtime.server.bridge import Bridge, EngineLost, Mailbox
from ramet.runtime.server.compose import Layout, failure_of
from ramet.runtime.server.failures import Failure
from ramet.runtime.server.gate import Place

ALL = frozenset({ir.Started, ir.Token, ir.Finished, ir.Forked, ir.Joined, ir.Rendered, ir.Failed, ir.Ended})
STREAMED = frozenset({ir.Started, ir.Token, ir.Finished, ir.Failed, ir.Ended})
WHOLE = STREAMED - {ir.Token}  # nobody needs to wake for text that is asked for as a whole
_FIELD = re.compile(r"([a-z_]+)(?:=|: )")  # "logit_bias: 5 is not a token id", "max_tokens=5: ..."
Prepare = Callable[[Layout, ClientSession], None]


class Run:
    """One request. Made on the loop; `launch` runs in a thread that tokenises, everything else on the loop.

    `left` is called once, when it is closed. `deadline` is of the loop's clock.
    """

    def __init__(
        self, client: EngineClient, bridge: Bridge, place: Place, deadline: float | None, left: Callable[[Run], None]
    ) -> None:
        self.mailbox = Mailbox(bridge.loop)
        self.lengths: tuple[int, ...] = ()
        self.over: set[int] = set()  # programs that have ended: there is nothing left to stop
        self.made = bridge.loop.time()
        self._client = client
        self._bridge = bridge
        self._place = place
        self._left = left
        self._lock = threading.Lock()  # guards the two below: `launch` may still open sessions while `close` ends them
        self._sessions: list[ClientSession] = []
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        if deadline is not None:
            place.expire(deadline)
            self._timer = bridge.loop.call_at(
                deadline, self.fail, failures.late("the deadline passed before the answer was complete")
            )

    async def admitted(self) -> None:
        """Wait for the place."""
        await self._place.entered()

    # -- in a thread

    def open(self, header: ir.Header, wanted: frozenset[type], alike: str | None = None) -> ClientSession:
        """Begin a program. `alike` as of the client's `open`."""
        deliver = self._bridge.to(self.mailbox, len(self._sessions), wanted)
        session = self._client.open(header, deliver, start=False, alike=alike)
        with self._lock:
            self._sessions.append(session)
            closed = self._closed
        if closed:
            session.cancel()
        return session

    def launch(self, header: ir.Header, layouts: Sequence[Layout], wanted: frozenset[type], prepare: Prepare) -> None:
        """Begin a program per layout. `prepare` tokenises and checks each before any of them may do anything. The
        header's name is the request's id: it stands for no other request."""
        sessions = [self.open(header, wanted, alike="") for _ in layouts]
        for layout, session in zip(layouts, sessions, strict=True):
            prepare(layout, session)
        self.lengths = tuple(session.length(layout.seq) for layout, session in zip(layouts, sessions, strict=True))
        for session in sessions:
            session.end()

    # -- on the loop

    def fail(self, failure: Failure) -> None:
        """End it early: its reader gets `failure`, the engine is told at once."""
        self._place.refuse(failure)
        self.mailbox.fail(failure)
        self._stop()

    def _stop(self) -> None:
        with self._lock:
            self._closed = True
            sessions = [session for n, session in enumerate(self._sessions) if n not in self.over]
        for session in sessions:
            session.cancel()

    def close(self) -> None:
        """Its reader is done, or gone. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
        self._stop()
        self.mailbox.close()
        self._place.release()
        self._left(self)


class Duplex:
    """A live program whose operations come while it runs. Iterate over its events; they end with `ir.Ended`. Close it
    (or use it with `async with`) in any case. A missed deadline is raised as `Failure`, a lost engine as an event."""

    def __init__(self, run: Run, session: ClientSession, threads: Executor, ended: Callable[[ir.Ended], None]) -> None:
        self._ended = ended
        self._run = run
        self._session = session
        self._threads = threads
        self._turn = asyncio.Lock()
        self._sending = 0
        self._ending = False
        self._over = False
        self._events: list[ir.Event] = []

    async def send(self, ops: Sequence[ir.AnyOp]) -> None:
        """Append operations; tokenised in a thread, in the order of the calls. Raises `Failure` 400 for what cannot be
        carried out; nothing of the call has happened then."""
        if self._ending:
            raise failures.bad("the program has ended: no more operations can be sent", "ops")
        self._sending += 1
        try:
            async with self._turn:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._threads, contained, partial(self._session.send, tuple(ops)))
        except (errors.RametError, OSError) as error:
            raise known(error) from None
        finally:
            self._sending -= 1
            if self._ending and not self._sending:
                self._session.end()

    def end(self) -> None:
        """No more operations come. Those that are being sent still go first."""
        if not self._ending:
            self._ending = True
            if not self._sending:
                self._session.end()

    def cancel(self) -> None:
        """Stop at once; the events end with kind "aborted"."""
        self._session.cancel()

    def close(self) -> None:
        """Stop it if it still runs, and free its place. Idempotent."""
        self._run.close()

    def __aiter__(self) -> Duplex:
        return self

    async def __anext__(self) -> ir.Event:
        if self._over:
            raise StopAsyncIteration
        if not self._events:
            self._events = [event for _, event in await self._run.mailbox.take()]
            self._events.reverse()
        event = self._events.pop()
        if isinstance(event, ir.Ended):
            self._over = True
            self._run.over.add(0)
            self._ended(event)
        return event

    async def __aenter__(self) -> Duplex:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def known(error: BaseException, limit: str = "max_tokens") -> Failure:
    """The failure of an error that came out of the client: a lost engine, or an operation that was refused. `limit` is
    what whoever asked calls `max_tokens`."""
    if isinstance(error, errors.ContextOverflow):
        return failure_of("context", error.message)
    if isinstance(error, errors.TransportError):
        return EngineLost(error.message)
    if isinstance(error, errors.ConstraintError | errors.StateError):
        field, message = _FIELD.match(error.message), error.message
        if field is None:
            return failures.bad(message)
        name = limit if field[1] == "max_tokens" else field[1]
        return failures.bad(name + message.removeprefix(field[1]), name)
    return failures.of(error)
