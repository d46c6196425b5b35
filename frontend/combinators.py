"""Patterns of many attempts, as functions of a state: several at once and the best or the commonest of them, one after
the other until one is good enough, a draft that is revised until it is.

In: a state, and functions that record an attempt on a branch and return its value unread (or are async). Out: what the
chosen attempt found; the state goes on from its branch, all others are cancelled. Nothing depends on which attempt
finishes first. Names with an "a" before them are for async bodies.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ramet.frontend.ballot import Ballot
from ramet.frontend.errors import ConstraintError
from ramet.frontend.rating import check_callable, check_count, check_logprobs, one_of, rates, truth
from ramet.frontend.state import State
from ramet.frontend.trials import Arena, Steps, Trial, awaiting, blocking
from ramet.frontend.where import user_line

T = TypeVar("T")
C = TypeVar("C")

Attempt = Callable[[State], Awaitable[T]]


@dataclass(frozen=True)
class Best(Generic[T]):
    """The best of several attempts: its value, its place among them, its score."""

    value: T
    index: int
    score: float


@dataclass(frozen=True)
class Settled(Generic[T]):
    """What a cascade or a refinement ended with: a value, the place of the attempt that made it (in a refinement, the
    number of revisions), and whether it was accepted, or only the last one."""

    value: T
    index: int
    accepted: bool


def _vote(
    s: State,
    attempt: Attempt[T],
    /,
    *,
    n: int,
    key: Callable[[T], Hashable] | None = None,
    early_stop: bool = True,
) -> Steps[T]:
    """The answer that most of `n` attempts give; the state goes on from the first attempt that gives it.

    `attempt(branch)` records one attempt and returns its value, unread: `lambda b: b.reply(max_tokens=80).map(answer)`.
    Answers with equal `key` (by default: equal answers) count as the same. Of equals, the answer whose first attempt
    comes first wins. With `early_stop` the vote is over as soon as no other answer can catch up, and what still runs
    is cancelled; winner and text are those of the full vote, always. An attempt whose text cannot be read as its type
    (`ParseError`) casts no vote; any other failure ends the vote.

    Raises `ConstraintError` for n < 1 and answers that are not hashable, and the first `ParseError` when nobody votes.
    (Self-consistency: Wang et al., "Self-Consistency Improves Chain of Thought Reasoning in Language Models", 2022.)
    """
    where = user_line()
    check_count("n", n, where)
    check_callable("attempt", attempt, where)
    if key is not None:
        check_callable("key", key, where)
    with Arena(s, "vote", where) as arena:
        trials = [arena.begin(branch, "attempt", attempt) for branch in arena.fork(s, n)]
        ballot, pending = Ballot(n), list(trials)
        while pending and (ballot.winner is None or not early_stop):
            for trial in (yield from arena.first(pending)):
                _count(ballot, trial, trials.index(trial), key, where)
                pending.remove(trial)
        yield from arena.some([trial for trial in trials if trial.done])
        assert ballot.winner is not None, "somebody voted"
        winner = trials[ballot.winner]
        arena.adopt(winner.branch)
        return winner.read()


def _count(ballot: Ballot, trial: Trial[T], voter: int, key: Callable[[T], Hashable] | None, where: str) -> None:
    if trial.spoilt() is not None:
        ballot.abstain(voter)
        return
    answer: Any = trial.read()
    if key is not None:
        answer = key(answer)
    try:
        hash(answer)
    except TypeError:
        raise ConstraintError(
            f"vote over {answer!r:.60}: a {type(answer).__name__} cannot be counted; give key=..., a function that "
            "makes something hashable of an answer",
            where=where,
        ) from None
    ballot.cast(voter, answer)


def _best_of(
    s: State,
    attempt: Attempt[T],
    /,
    *,
    n: int,
    score: Callable[[T], float] | None = None,
    judge: Callable[[State], Awaitable[float | str]] | None = None,
) -> Steps[Best[T]]:
    """The best of `n` attempts; the state goes on from it.

    `attempt(branch)` records one attempt and returns its value, unread. The highest rate wins, of equals the first:
    `score(value)`, a number; or `judge(branch)`, which asks the model on a side branch behind the attempt and returns
    the value of its rating, unread (a number, or a choice among numerals: `b.select(["1", "2", "3"])`); without
    either, the mean logprob of the attempt's tokens, which it generates with `logprobs=0`. Attempts whose text cannot
    be read as their type (`ParseError`) are left out; any other failure is raised.

    Raises `ConstraintError` for n < 1, for both `score` and `judge`, for a rate that is no number, and the first
    `ParseError` when all are left out. (Best-of-n, by a verifier: Cobbe et al., "Training Verifiers to Solve Math Word
    Problems", 2021.)
    """
    where = user_line()
    check_count("n", n, where)
    check_callable("attempt", attempt, where)
    one_of({"score": score, "judge": judge}, where, optional=True)
    with Arena(s, "best_of", where) as arena:
        trials = [arena.begin(branch, "attempt", attempt) for branch in arena.fork(s, n)]
        found = yield from rates(arena, [(trial,) for trial in trials], judge, score and (lambda path: score(path[0])))
        best = max(found, key=lambda index: (found[index], -index))
        arena.adopt(trials[best].branch)
        return Best(trials[best].read(), best, found[best])


def _cascade(
    s: State,
    attempts: Sequence[Attempt[T]],
    /,
    *,
    accept: Callable[[T], bool] | None = None,
    judge: Callable[[State], Awaitable[bool | str]] | None = None,
    threshold: float | None = None,
) -> Steps[Settled[T]]:
    """The first of `attempts`, cheapest first, that is good enough, else the last; the state goes on from it.

    Each `attempt(branch)` begins where the state is (none sees the ones before) and returns its value unread, or a
    `Run` of another program, perhaps on a larger model (its text is not on the branch: append it afterwards, and judge
    it with `accept`). What is good enough: `accept(value)` is true; or `judge(branch)`, which asks the model on a side
    branch behind the attempt and returns the value of a bool or of a choice between "yes" and "no", unread; or the
    mean logprob of its tokens, which it generates with `logprobs=0`, is at least `threshold`. An attempt whose text
    cannot be read as its type is not good enough; when it is the last, its `ParseError` is raised.

    Raises `ConstraintError` for no attempts, and unless exactly one of accept, judge, threshold is given.
    (Chen et al., "FrugalGPT: How to Use Large Language Models While Reducing Cost and Improving Performance", 2023.)
    """
    where = user_line()
    if not isinstance(attempts, Sequence) or not attempts:
        raise ConstraintError(f"attempts={attempts!r:.60}: must be a list of one function or more", where=where)
    for attempt in attempts:
        check_callable("attempts", attempt, where)
    one_of({"accept": accept, "judge": judge, "threshold": threshold}, where)
    with Arena(s, "cascade", where) as arena:
        for index, attempt in enumerate(attempts):
            [branch] = arena.fork(s, 1)
            trial = arena.begin(branch, "attempts", attempt)
            last = index == len(attempts) - 1
            fine = yield from _good_enough(arena, trial, accept, judge, threshold)
            if fine or last:
                value = trial.read()
                arena.adopt(branch)
                return Settled(value, index, fine)
            arena.drop([branch])
    raise AssertionError("the last attempt is taken")


def _good_enough(
    arena: Arena,
    trial: Trial[T],
    accept: Callable[[T], bool] | None,
    judge: Callable[[State], Awaitable[bool | str]] | None,
    threshold: float | None,
) -> Steps[bool]:
    if threshold is not None:
        check_logprobs(trial, "threshold", arena.where)
    verdict: Trial[bool | str] | None = None
    if judge is not None and trial.recorded:  # asked before the answer is known: no round trip between the two
        verdict = arena.begin(arena.aside(trial.branch), "judge", judge)
    yield from arena.finish([trial])
    if trial.spoilt() is not None:
        return False
    if accept is not None:
        return bool(accept(trial.read()))
    if threshold is not None:
        return (yield from rates(arena, [(trial,)], None, None))[0] >= threshold
    assert judge is not None, "one of the three was given"
    verdict = verdict or arena.begin(arena.aside(trial.branch), "judge", judge)
    yield from arena.finish([verdict])
    return truth(verdict.read(), arena.where)


def _refine_until(
    s: State,
    draft: Attempt[T],
    /,
    *,
    critique: Callable[[State], Awaitable[C]],
    accept: Callable[[C], bool],
    revise: Attempt[T],
    rounds: int = 3,
) -> Steps[Settled[T]]:
    """A draft, revised until its critique is acceptable, at most `rounds` times.

    `draft(s)` and `revise(s)` record a version on the state itself and return its value, unread. `critique(branch)`
    records what the model says about the version before it, on a branch, and returns its value; `accept` of it ends
    the loop. A critique that is not accepted becomes part of the text, so that the revision reads it; one that is
    accepted does not. The version after the last round is not criticised any more: it counts as not accepted.

    Raises `ConstraintError` for rounds < 0, and whatever an attempt failed with.
    (Madaan et al., "Self-Refine: Iterative Refinement with Self-Feedback", 2023.)
    """
    where = user_line()
    check_count("rounds", rounds, where, least=0)
    for name, fn in (("draft", draft), ("critique", critique), ("accept", accept), ("revise", revise)):
        check_callable(name, fn, where)
    with Arena(s, "refine_until", where) as arena:
        version = arena.begin(s, "draft", draft)
        for done in range(rounds):
            if not version.recorded:
                yield from arena.finish([version])
            side = arena.aside(s)
            verdict = arena.begin(side, "critique", critique)
            yield from arena.finish([version, verdict])
            if accept(verdict.read()):
                return Settled(version.read(), done, True)
            arena.adopt(side)
            version = arena.begin(s, "revise", revise)
        yield from arena.finish([version])
        return Settled(version.read(), rounds, False)


vote, avote = blocking(_vote), awaiting(_vote)
best_of, abest_of = blocking(_best_of), awaiting(_best_of)
cascade, acascade = blocking(_cascade), awaiting(_cascade)
refine_until, arefine_until = blocking(_refine_until), awaiting(_refine_until)
