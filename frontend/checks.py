"""Checking a plan: everything that can be known to go wrong, or to be wasted, before anything runs.

In: a document, its advice, perhaps a backend. Out: diagnostics, the worst first. Without a backend nothing is computed
and nothing is sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ramet.frontend.backends.base import Backend
from ramet.frontend.checks_calls import calls
from ramet.frontend.checks_ends import ends, whole
from ramet.frontend.checks_flow import flow
from ramet.frontend.diagnostics import Diagnostic, ordered
from ramet.frontend.estimate import Advice
from ramet.frontend.lineage import Lineage, Reached
from ramet.frontend.planned import Document
from ramet.frontend.walk import Lengths


def checked(
    document: Document, advice: Sequence[Advice], lengths: Lengths, backend: Backend | None = None
) -> list[Diagnostic]:
    """See `Plan.check`. `lengths` are those that runs of the plan have shown."""
    return ordered(_found(document, advice, lengths, backend))


def _found(
    document: Document, advice: Sequence[Advice], lengths: Lengths, backend: Backend | None
) -> Iterator[Diagnostic]:
    lines = [Lineage(document, path) for path in document.paths()]
    reached = Reached(lines)
    seen: set[object] = set()
    exact: set[tuple[str, str]] = set()
    if backend is not None:
        from ramet.frontend.checks_backend import against

        for found in against(lines, lengths, backend):
            exact.add((found.code, found.where))
            yield found
    for line in lines:
        yield from (found for found in calls(line, seen) if (found.code, found.where) not in exact)
        yield from flow(line, reached)
    yield from ends(lines)
    yield from whole(document, lines)
    for each in advice:
        yield _advised(each)


def _advised(advice: Advice) -> Diagnostic:
    if advice.tokens:
        remedy = "put the constant text first, if the program may say it in that order"
        return Diagnostic("text-behind-argument", "note", advice.message, advice.where, remedy)
    message, _, remedy = advice.message.partition(": ")
    return Diagnostic("value-respelled", "note", message, advice.where, remedy)
