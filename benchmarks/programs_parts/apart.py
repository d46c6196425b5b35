"""A program's calls one by one, on an engine that knows nothing of programs.

In: an `Engine`. Out: a `Backend` over it: every call is a program of its own with its whole prefix as text, sent when
the one before it has answered, and finds in the prefix cache what is still there. What other servers are given, without
the way over HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from msgspec.structs import replace

import ramet as rt
from ramet.frontend import ir
from ramet.frontend.backends.base import Deliver, Session
from ramet.frontend.backends.http import RemoteFailure
from ramet.frontend.backends.loop import Loop
from ramet.frontend.backends.remote import Emit, Item, RemoteProgram, Shape


class _Calls:
    """`remote.Remote` on an engine."""

    def __init__(self, engine: rt.Engine) -> None:
        self._engine = engine

    def check(self, op: ir.AnyOp, shape: Shape) -> None:
        """Whatever the engine can do."""

    async def generate(self, items: Sequence[Item], op: ir.Gen, seed: int, emit: Emit) -> tuple[str, ir.Meta]:
        """One program: the prefix, the generation."""
        finished = await self._alone(items, replace(op, id="0.1", seq=ir.ROOT), seed)
        emit(finished.value, ())
        return finished.value, finished.meta

    async def choose(self, items: Sequence[Item], op: ir.Select) -> tuple[int, ir.Meta]:
        """One program: the prefix, the choice."""
        finished = await self._alone(items, replace(op, id="0.1", seq=ir.ROOT), 0)
        return op.choices.index(finished.value), finished.meta

    async def _alone(self, items: Sequence[Item], op: ir.Gen | ir.Select, seed: int) -> ir.Finished:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[ir.Finished] = loop.create_future()
        found: list[ir.Finished] = []

        def told(ended: ir.Ended) -> None:
            if done.done():
                return
            if found:
                done.set_result(found[0])
            else:
                done.set_exception(RemoteFailure(ended.kind or "generation", ended.message or "the call failed"))

        def deliver(event: ir.Event) -> None:
            if isinstance(event, ir.Finished):
                found.append(event)
            elif isinstance(event, ir.Ended):
                loop.call_soon_threadsafe(told, event)

        session = self._engine.open(ir.Header(seed=seed), deliver)
        try:
            session.send((ir.Text(id="0.0", seq=ir.ROOT, parts=("".join(map(str, items)),)), op))
            session.end()
            return await done
        except BaseException:
            session.cancel()
            raise


class Apart:
    """See the module. Closing it leaves the engine open."""

    def __init__(self, engine: rt.Engine) -> None:
        self._engine = engine
        self._calls = _Calls(engine)
        self._loop = Loop("calls one by one")

    def open(self, header: ir.Header, deliver: Deliver) -> Session:
        """See `Backend.open`."""
        return RemoteProgram(self._loop, self._calls, header, deliver)

    def info(self) -> dict[str, object]:
        """The engine's."""
        return self._engine.info()

    def flush_cache(self) -> bool:
        """The engine's."""
        return self._engine.flush_cache()

    def close(self) -> None:
        """End what runs."""
        self._loop.close()
