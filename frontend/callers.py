"""Which program's body, and which of its host calls, runs here: context variables, which follow threads and tasks.

In: a run that starts its body, a host call that begins. Out: for a program that is called inside, who calls it; for a
host function, the idempotency key of its call.
"""

from __future__ import annotations

import contextvars
import secrets
from typing import TYPE_CHECKING, NamedTuple

from ramet.frontend.errors import StateError
from ramet.frontend.where import user_line

if TYPE_CHECKING:
    from ramet.frontend.execution import Execution


class Inside(NamedTuple):
    """A host call under way: its program, its operation's path, its idempotency key."""

    execution: Execution
    op: str
    key: str


_caller: contextvars.ContextVar[Execution | None] = contextvars.ContextVar("ramet_caller", default=None)
_inside: contextvars.ContextVar[Inside | None] = contextvars.ContextVar("ramet_inside", default=None)


def caller() -> Execution | None:
    """The program whose body, or host function, runs here."""
    return _caller.get()


def enter_body(execution: Execution) -> None:
    """The body of `execution` runs in this context."""
    _caller.set(execution)
    _inside.set(None)


def enter_call(execution: Execution, op: str, key: str) -> None:
    """A host call of `execution` runs in this context; without a journal, under a key of its own."""
    _inside.set(Inside(execution, op, key or secrets.token_hex(16)))


def inside_call() -> str:
    """The operation of the host call that runs here, "" outside of any."""
    found = _inside.get()
    return found.op if found is not None else ""


def idempotency_key() -> str:
    """Inside a function that a program calls (`State.call`, a tool): 32 hexadecimal digits that name this call. With a
    journal they are the same when a resumed run makes the call again: give them to whatever the call changes elsewhere,
    so that it is changed once. Outside of such a function: `StateError`."""
    found = _inside.get()
    if found is None:
        raise StateError(
            "idempotency_key() names a call of a host function, and none runs here: ask inside one that a program "
            "calls (s.call(fn), a tool)",
            where=user_line(),
        )
    return found.key


def refuse_unrecorded(what: str) -> None:
    """Raise where a journaled program would do what its journal cannot record."""
    here = _caller.get()
    if here is not None and here.journal is not None:
        raise StateError(
            f"{what} inside the journaled program {here.name!r}: its calls would not be recorded; call the program "
            "itself, which becomes a part of the run",
            where=user_line(),
        )
