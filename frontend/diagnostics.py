"""Diagnostics: what checking a plan finds, as data.

In: what a check saw. Out: a `Diagnostic` with a stable code, the user's line and a remedy; their order; one line each.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

import msgspec

Severity = Literal["error", "warning", "note"]
SEVERITIES: Final = ("error", "warning", "note")

CODES: Final[dict[str, str]] = {
    "bad-argument": "an argument of an operation is not valid",
    "bad-constraint": "a pattern, schema, grammar or type does not compile, is not supported, or allows no text",
    "body-raises": "the program's body raises here whatever the model says",
    "branch-alike": "branches of one fork give the same text, token for token",
    "choice-prefix": "a choice is the beginning of another one",
    "context-overflow": "a prompt, or a prompt and its max_tokens, exceed the model's context",
    "duplicate-choices": "two choices are the same text, or may be once arguments are filled in",
    "endless-path": "a path has more steps or decisions than are followed",
    "gen-without-bound": "nothing but the model's own end token, or the context, ends a generation",
    "graph-break": "only Python knows how the program goes on from here",
    "max-tokens-too-small": "the shortest text that a constraint allows does not fit into max_tokens",
    "not-compiled": "the program was not checked, because it could not be compiled",
    "outside-message": "a generation outside any message of a program that has messages",
    "overwritten": "a variable is defined again before anything has read it",
    "paths-truncated": "the program has more paths than were followed",
    "role-open": "a message is begun and never ended",
    "role-order": "messages in an order that chat templates refuse, or blocks of messages that do not match",
    "state-misuse": "an operation on a branch that cannot take it",
    "stop-cuts-constraint": "a stop string stands in every text that a constraint allows, or in one of the choices",
    "stop-never-comes": "no text that a constraint allows contains a stop string",
    "text-behind-argument": "constant text that would be computed once for all runs if it stood before an argument",
    "trailing-space": "text ends in a space just before a generation",
    "unknown-variable": "a variable is read that is not defined on this path",
    "unread-branch": "what a branch generates is never read, joined or gone on from",
    "unread-value": "a generated value is neither read, nor returned, nor followed by anything",
    "unused-parameter": "nothing depends on an argument",
    "value-respelled": "a value is read and said again as text, instead of by its handle",
}
"""Every code, and what it stands for. Codes are stable: names are neither reused nor changed."""


class Diagnostic(msgspec.Struct, frozen=True):
    """Something that checking a plan has found.

    `code`: a key of `CODES`. `where`: the user's line, "file.py:12". `path`: indices of the plan's nodes from the
    beginning to the place; `when`: the outcomes that lead there, in words ("" where every run comes by).
    """

    code: str
    severity: Severity
    message: str
    where: str
    remedy: str
    path: tuple[int, ...] = ()
    when: str = ""

    def __str__(self) -> str:
        when = f" (when {self.when})" if self.when else ""
        return f"{self.where or '?'}: {self.severity} {self.code}: {self.message}{when}; {self.remedy}"


def ordered(found: Iterable[Diagnostic]) -> list[Diagnostic]:
    """The worst first, then by line; of what is found on several paths, the first."""
    first: dict[tuple[str, str, str], Diagnostic] = {}
    for each in found:
        key = (each.code, each.where, each.message)
        kept = first.get(key)
        if kept is None or SEVERITIES.index(each.severity) < SEVERITIES.index(kept.severity):
            first[key] = each
    return sorted(first.values(), key=_place)


def _place(each: Diagnostic) -> tuple[int, str, int, str]:
    file, _, line = each.where.rpartition(":")
    return SEVERITIES.index(each.severity), file, int(line) if line.isdecimal() else 0, each.code
