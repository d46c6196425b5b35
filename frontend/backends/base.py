"""What a program needs of the place where it runs: a backend that opens sessions, each of three methods.

In: operations, as they are recorded. Out: events, delivered from the backend's own thread in program order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from ramet.frontend.ir import AnyOp, Event, Header

Deliver = Callable[[Event], None]


class Session(Protocol):
    """One live program at a backend. Methods may be called from any thread, never block and never wait."""

    def send(self, ops: Sequence[AnyOp]) -> None:
        """Append operations to the program. Raises `ConstraintError` for what the backend cannot carry out."""

    def end(self) -> None:
        """Say that no more operations come; `Ended` follows when all of them are done."""

    def cancel(self) -> None:
        """Stop at once and free everything; operations under way fail with kind "aborted", then `Ended`. Idempotent."""


class Opener(Protocol):
    """Where a program can begin."""

    def open(self, header: Header, deliver: Deliver) -> Session:
        """Begin a program. `deliver` is called from one backend thread, in order, and must return quickly. Exactly
        one `Ended` is delivered, last. Raises `TransportError` when the backend is gone."""


class Backend(Opener, Protocol):
    """A place where programs run."""

    def info(self) -> dict[str, object]:
        """What it is: at least "model", "context_length" and, where it keeps one, "kv" (total, free, cached, used)."""

    def flush_cache(self) -> bool:
        """Forget cached prefixes that no live program uses; True when it did."""

    def close(self) -> None:
        """End every program with kind "transport" and free everything. Idempotent."""


@runtime_checkable
class PlanBackend(Backend, Protocol):
    """A backend that can take a compiled plan as a whole."""

    def submit(self, header: Header, plan: bytes, args: Mapping[str, str], deliver: Deliver) -> Session | None:
        """Begin a run of a plan without graph breaks, or None where plans are not taken; else as `open`. `plan` is its
        file, `args` the texts of its arguments. The run begins with the session's first `send` or `end`: these are
        told the operations that the backend, which follows the same plan, carries out by itself, in case that it has to
        be given them one by one."""
