"""The one hierarchy of errors.

In: what went wrong, where in the user's program, and what to do about it. Out: an exception that says so.
Every error that ramet raises on purpose is a `RametError`; messages name the field, the value and the remedy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class RametError(Exception):
    """Base of every error that ramet raises on purpose."""


class ModelError(RametError):
    """A model cannot be found, read or run here (corrupt file, unsupported architecture, does not fit)."""


class EngineError(RametError):
    """The engine or its process cannot be configured, started or reached."""


class DeviceLost(EngineError):
    """The device failed and can compute nothing more in this process; the engine ends, and its client starts another
    for the next program."""


class PlanError(RametError):
    """A plan cannot be made, read or run as asked: an argument that it does not have, a file that was changed, a graph
    break where there is no Python to go on."""


class JournalError(RametError):
    """A journal cannot be opened, read or written (a corrupt or foreign file, no room, a lock), or has no such run."""


class JournalMismatch(JournalError):
    """A run cannot be resumed as asked: something is not what the journal says. The message says what."""


class JournalHeld(JournalError):
    """The run is under way already, in this process or in another. `over`: it has ended, a host call of it has not."""

    over = False


class ProgramError(RametError):
    """Something in a user's program went wrong.

    `where` is "file.py:12" of the user's line (or ""), `branch` the path of the sequence ("0.2.b3"),
    `prompt_tail` the last characters of the text before the failed operation. `str()` shows all that is known.
    """

    def __init__(self, message: str, *, where: str = "", branch: str = "", prompt_tail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.branch = branch
        self.prompt_tail = prompt_tail

    def __str__(self) -> str:
        known = [f"at {self.where}" if self.where else "", f"branch {self.branch}" if self.branch else ""]
        known.append(f"after {self.prompt_tail!r}" if self.prompt_tail else "")
        detail = ", ".join(part for part in known if part)
        return f"{self.message} ({detail})" if detail else self.message


class ConstraintError(ProgramError, ValueError):
    """An argument of an operation is not valid; raised at its line, before anything is sent."""


class StateError(ProgramError, RuntimeError):
    """An operation on a branch that is closed, joined or finished, or an unreadable handle."""


class UnknownVariable(ProgramError, KeyError):
    """A variable was read that is not defined here. Lists the names that are, and the `branches` that define it."""

    def __init__(
        self, name: str, known: Iterable[str] = (), *, where: str = "", branch: str = "", branches: Sequence[str] = ()
    ) -> None:
        names = ", ".join(repr(n) for n in known) or "none"
        more = f" and {len(branches) - 1} more" if len(branches) > 1 else ""
        there = f"; branch {branches[0]}{more} defined it: read it there, gather it, or join them" if branches else ""
        super().__init__(f"no variable {name!r}; known: {names}{there}", where=where, branch=branch)
        self.name = name

    __str__ = ProgramError.__str__  # KeyError would show the repr


class GenerationError(ProgramError):
    """The engine could not carry out an operation. `status` is the HTTP status it maps to."""

    status = 500
    retryable = False


class TransportError(GenerationError):
    """The engine or server was lost or could not be reached."""

    status = 503
    retryable = True


class OverloadedError(GenerationError):
    """Too much else is under way to take on this operation now; nothing is wrong with it, and it may be tried again."""

    status = 503
    retryable = True


class Aborted(GenerationError):
    """The program was cancelled."""

    status = 499


class ContextOverflow(GenerationError):
    """The sequence does not fit the model's context or the KV pool; the message has the figures."""

    status = 400


class ParseError(GenerationError):
    """The generated text is not a value of the asked type; `text` is what was generated."""

    def __init__(
        self, message: str, *, text: str = "", where: str = "", branch: str = "", prompt_tail: str = ""
    ) -> None:
        super().__init__(message, where=where, branch=branch, prompt_tail=prompt_tail)
        self.text = text


class TruncatedError(ParseError):
    """max_tokens ended the generation inside a typed value; `partial` is the text so far."""

    @property
    def partial(self) -> str:
        """The text that was generated before the limit."""
        return self.text


class ToolError(ProgramError):
    """A host function called through `State.call` raised; `__cause__` is its exception."""


class UncertainToolCall(ProgramError):
    """A resumed run comes to a host call that had begun, and of which nobody knows whether it was carried out. `op` is
    its path, `key` the idempotency key that it was given."""

    op = ""
    key = ""


class BudgetExceeded(ProgramError):
    """The program asked for more tokens than its budget allows."""


class ProgramTimeout(ProgramError, TimeoutError):
    """The program or a wait inside it took longer than its timeout."""


class RefusedError(ConstraintError, GenerationError):
    """An argument that a backend elsewhere refused: a `ConstraintError` that came back as an event."""

    status = 400


# Failures cross process boundaries as a kind and a message; this is the only mapping between the two.
FAILURES: dict[str, type[GenerationError]] = {
    "context": ContextOverflow,
    "aborted": Aborted,
    "transport": TransportError,
    "generation": GenerationError,
    "constraint": RefusedError,
}
