"""What a constraint becomes: rules of llguidance's Lark dialect, and what is known of the language beforehand.

In: nothing. Out: the type that the translators of regexes, schemas, choices, grammars and structures share.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Translation:
    """`lark` are rules and terminals, the rule `start` among them, without a `%llguidance` line. `shortest` is a
    shortest text of the language or one near it (None: unknown), which the compiler takes through the automaton to
    prove the translation; `longest` the number of bytes that no text exceeds (None: unbounded or unknown). `notes` are
    sentences for the user about what is enforced less strictly than the specification says."""

    lark: str
    shortest: bytes | None = None
    longest: int | None = None
    notes: tuple[str, ...] = ()
