"""A service for tests: one event loop that stays between tests, a checked engine in a thread or one in a process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from typing import Any, TypeVar

from ramet.frontend import ir
from ramet.frontend.backends.engine import Engine
from ramet.runtime.server.call import Begun, Call, Caller, Piece, Prompt
from ramet.runtime.server.gate import GateLimits
from ramet.runtime.server.service import Service

from ..runtime.engines import QUICK, WAIT, checked_engine

T = TypeVar("T")
ME = Caller(namespace="me", label="r1")
TEXT = "Once upon a time there was a river"


class Stage:
    """A service on a loop. `run` runs a coroutine there, bounded in time."""

    def __init__(self, engine: Engine, limits: GateLimits) -> None:
        self.engine = engine
        self.noted: list[tuple[str, float]] = []
        self.runner = asyncio.Runner()
        note = lambda name, value: self.noted.append((name, value))  # noqa: E731
        engine._client.compiler.warm = lambda: None  # type: ignore[method-assign]  # until a constraint comes
        self.service = Service(engine._client, names=["tiny"], limits=limits, on_event=note)
        self.run(self.service.start)

    def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run to the end."""
        return self.runner.run(asyncio.wait_for(work(), WAIT))

    def count(self, name: str) -> int:
        """How often something was noted."""
        return sum(1 for noted, _ in self.noted if noted == name)

    @contextlib.contextmanager
    def limited(self, **bounds: Any) -> Iterator[None]:
        """Other bounds of the gate for a while."""
        gate = self.service._gate
        before = gate._limits
        gate._limits = replace(before, **bounds)
        yield
        gate._limits = before


@contextlib.contextmanager
def staged(limits: GateLimits | None = None, **options: Any) -> Iterator[Stage]:
    """A service on an engine in a thread, all invariants checked; clean at the end."""
    with checked_engine(**options) as engine:
        stage = Stage(engine, limits or GateLimits())
        yield stage
        stage.run(stage.service._watch.stop)
        assert (stage.service.running, stage.service.waiting) == (0, 0)
        assert not stage.service._runs
        stage.runner.close()


@contextlib.contextmanager
def child_staged(limits: GateLimits | None = None, **options: Any) -> Iterator[Stage]:
    """A service on an engine in a process of its own; closed at the end."""
    with Engine("random:tiny", **{**QUICK, **options}) as engine:
        stage = Stage(engine, limits or GateLimits())
        yield stage
        stage.run(stage.service.close)
        stage.runner.close()


def call(prompt: Prompt = TEXT, tokens: int | None = 8, *more: Prompt, **fields: Any) -> Call:
    """A call for exactly `tokens` tokens, of a fixed seed."""
    sampling = {"max_tokens": tokens, "ignore_eos": True, "seed": 7, **fields.pop("sampling", {})}
    return Call((prompt, *more), ir.Sampling(**sampling), **fields)


def caller(label: str, namespace: str = "me", deadline: float | None = None) -> Caller:
    return Caller(namespace=namespace, label=label, deadline=deadline)


async def collect(service: Service, what: Call, who: Caller = ME) -> tuple[list[Begun], list[Piece]]:
    """All of a stream."""
    begun: list[Begun] = []
    pieces: list[Piece] = []
    async for outs in service.stream(what, who):
        for out in outs:
            (begun if isinstance(out, Begun) else pieces).append(out)  # type: ignore[arg-type]
    return begun, pieces


def text_of(pieces: list[Piece], prompt: int = 0, choice: int = 0) -> str:
    return "".join(piece.text for piece in pieces if (piece.prompt, piece.choice) == (prompt, choice))
