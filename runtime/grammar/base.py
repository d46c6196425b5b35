"""What a grammar is to the rest of the engine: a compiled program, and an automaton that follows one text.

In: nothing. Out: the types that the compiler (in the world of text) and the step loop (in the world of tokens) share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from ramet.frontend.errors import RametError

if TYPE_CHECKING:  # the world of text needs no numpy
    from ramet.runtime.batch import U32


class GrammarError(RametError):
    """An automaton cannot go on: a token that it does not allow, a limit that it ran into. It ends one request."""


class Compiled(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A constraint that was found valid. `program` is what the engine builds automata from. `shortest` tokens at least
    (0: unknown) and `longest` bytes at most (0: unbounded or unknown) make up its texts; `notes` are sentences about
    what the texts are held to less strictly than the specification says (`format` keywords that are not checked)."""

    program: str
    shortest: int = 0
    longest: int = 0
    notes: tuple[str, ...] = ()


class Automaton(Protocol):
    """Follows one text, token by token. Not shared between threads; `copy` is cheap."""

    def mask(self, out: U32) -> None:
        """Write the tokens that may follow as a packed bitmask `[ceil(V/32)]` (bit set: allowed; end tokens where the
        text may end). Fails closed: `GrammarError`, and `out` is all zeros."""

    def advance(self, tokens: Sequence[int]) -> None:
        """Follow tokens (no end tokens). Raises `GrammarError` for one that is not allowed."""

    def rollback(self, count: int) -> None:
        """Take the last `count` tokens back."""

    def forced(self) -> bytes:
        """What must follow, as far as there is no choice: b"" where there is. It may end inside a character."""

    @property
    def accepting(self) -> bool:
        """Whether the text may end here."""

    @property
    def complete(self) -> bool:
        """Whether it must: it is accepted, and nothing can follow."""

    def copy(self) -> Automaton:
        """Another one at the same place."""


class Grammars(Protocol):
    """Automata of compiled programs, for one vocabulary. An `owner` is the id of a program of operations."""

    def prepare(self, program: str, owner: str) -> bool:
        """Whether `automaton` would answer at once, if only by an error; else it is being built, and `built` will name
        the owner."""

    def automaton(self, program: str) -> Automaton:
        """A fresh automaton at the beginning. Raises `GrammarError`."""

    def built(self) -> list[str]:
        """The owners for whom something was built, or could not be, since the last call: they ask again."""

    def forget(self, owner: str) -> None:
        """The owner waits no more; what nobody else waits for is not built, or not kept."""

    def warm(self) -> None:
        """Make what every automaton needs, beside the loop: programs will come."""

    def close(self) -> None:
        """End whatever builds. Idempotent."""
