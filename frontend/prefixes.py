"""The prefix tree of a run: which branch has how much in common with which.

In: the facts of a run. Out: per branch where it begins, how long it is, and what its calls computed and made: in
tokens where the backend counts them, else in characters.
"""

from __future__ import annotations

from collections.abc import Sequence

from ramet.frontend.explained import Branch
from ramet.frontend.facts import CALLS, Fact, Facts

Piece = tuple[float, float, str, str]


def branches_of(run: Facts) -> tuple[str, tuple[Branch, ...]]:
    """The unit, and the branches in the order in which they were made."""
    facts = [fact for fact in run.facts.values() if fact.kind != "put"]
    forks = [fact for fact in facts if fact.into and fact.status == "done"]
    calls = [fact for fact in facts if fact.kind in CALLS and fact.status == "done"]
    counted = all(fact.tokens is not None for fact in forks) and all(fact.prompt > 0 for fact in calls) and bool(calls)
    own: dict[str, list[Fact]] = {path: [] for path in run.parents}
    for fact in facts:
        own.setdefault(fact.seq, []).append(fact)
    measure = _tokens if counted else _characters
    begins: dict[str, float] = {}
    found: list[Branch] = []
    for path, parent in run.parents.items():  # parents come first
        shared = begins.get(path, 0.0)
        pieces = measure(own.get(path, []), shared, begins)
        length = max((piece[1] for piece in pieces), default=shared)
        found.append(Branch(path, parent, run.items.get(path, ""), shared, length, tuple(pieces)))
    return ("tokens" if counted else "characters"), tuple(found)


def _tokens(facts: Sequence[Fact], at: float, begins: dict[str, float]) -> list[Piece]:
    pieces: list[Piece] = []
    exact = True  # nothing of unknown length stands behind `at`
    for fact in facts:
        if fact.kind == "join":
            if exact and fact.tokens:
                pieces.append((at, at + fact.tokens, fact.id, "join"))
                at += fact.tokens
        elif fact.kind in CALLS and fact.meta is not None:
            exact = True
            end = float(fact.prompt)
            if end > at:
                pieces.append((at, end, fact.id, "text"))
            at = max(at, end)
            kept = len(fact.meta.tokens) or fact.meta.completion_tokens
            made = fact.winner if fact.kind == "select" else 0 if fact.kind == "score" else kept
            if made:
                pieces.append((at, at + made, fact.id, fact.kind))
            at += made
        elif fact.tokens is not None:
            if fact.tokens > at:
                pieces.append((at, float(fact.tokens), fact.id, "text"))
                at = float(fact.tokens)
            begins.update(dict.fromkeys(fact.into, at))
            exact = True
        else:
            exact = False
    return pieces


def _characters(facts: Sequence[Fact], at: float, begins: dict[str, float]) -> list[Piece]:
    pieces: list[Piece] = []
    for fact in facts:
        if fact.into:
            begins.update(dict.fromkeys(fact.into, at))
            continue
        kind = fact.kind if fact.kind in ("gen", "select", "join") else "text"
        if fact.characters:
            pieces.append((at, at + fact.characters, fact.id, kind))
            at += fact.characters
    return pieces
