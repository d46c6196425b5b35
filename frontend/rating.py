"""What attempts are worth: a number of Python's, a rating of the model's, or how sure the model was of its words.

In: attempts under way, and who rates them. Out: rates by place, of those that found something. Also the checks that
the combinators share.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from ramet.frontend.entries import Entry
from ramet.frontend.errors import ConstraintError
from ramet.frontend.ir import Gen, Select
from ramet.frontend.state import State
from ramet.frontend.trials import Arena, Steps, Trial
from ramet.frontend.values import Value

T = TypeVar("T")
Judge = Callable[[State], Awaitable[float | str]]

YES, NO = ("yes", "true", "y"), ("no", "false", "n")


def check_count(name: str, value: object, where: str, least: int = 1, most: int | None = None) -> None:
    """Raise `ConstraintError` unless `value` is an integer of the range."""
    fine = isinstance(value, int) and not isinstance(value, bool) and value >= least
    if not fine or (most is not None and isinstance(value, int) and value > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ConstraintError(f"{name}={value!r}: must be an integer {bounds}", where=where)


def check_callable(name: str, value: object, where: str) -> None:
    """Raise `ConstraintError` unless `value` can be called."""
    if not callable(value):
        raise ConstraintError(f"{name}={value!r:.60}: must be a function", where=where)


def one_of(given: Mapping[str, object], where: str, optional: bool = False) -> None:
    """Raise `ConstraintError` unless one of the arguments (or none, if that is `optional`) is given, and valid: a
    `threshold` is a finite number, all others are functions."""
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1 or not (named or optional):
        said = " and ".join(named) or "none of them"
        raise ConstraintError(f"{said} given: give one of {', '.join(given)}", where=where)
    for name in named:
        if name == "threshold":
            number(given[name], name, where)
        else:
            check_callable(name, given[name], where)


def number(value: Any, label: str, where: str) -> float:
    """`value` as a number. Raises `ConstraintError` for what is none, or has no place in an order."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if math.isnan(found):
        raise ConstraintError(f"{label} gave {value!r:.60}: it must be a number, or the text of one", where=where)
    return found


def truth(value: object, where: str) -> bool:
    """`value` as yes or no. Raises `ConstraintError` for what is neither."""
    if isinstance(value, bool):
        return value
    word = value.strip().casefold() if isinstance(value, str) else ""
    if word not in YES + NO:
        raise ConstraintError(f"judge gave {value!r:.60}: it must be a bool, or the text yes or no", where=where)
    return word in YES


def check_logprobs(trial: Trial[Any], instead: str, where: str) -> Entry:
    """The generation that a trial consists of. Raises `ConstraintError` unless its tokens have logprobs."""
    entry = trial.made.entry if isinstance(trial.made, Value) else None
    if entry is None or not isinstance(entry.op, Gen | Select):
        raise ConstraintError(
            f"{instead}: an attempt that is no single generation or choice has no mean logprob; return the value of "
            "gen, reply or select itself, or give a function that rates it",
            where=where,
        )
    if isinstance(entry.op, Gen) and entry.op.sampling.logprobs < 0:
        raise ConstraintError(
            f"{instead}: the attempt at {entry.where} is ranked by its logprobs and does not ask for them; add "
            "logprobs=0 to its generation, or give a function that rates it",
            where=where,
        )
    return entry


def _logprobs(trial: Trial[Any]) -> tuple[float, ...]:
    """Of the tokens that were sampled, or of the choice's own tokens."""
    entry = trial.made.entry if isinstance(trial.made, Value) else None
    assert entry is not None and entry.meta is not None, "it was checked, and is done"
    if isinstance(entry.op, Select):
        chosen = entry.meta.choice_logprobs
        return chosen[entry.op.choices.index(entry.value_text())] if chosen else ()
    return tuple(p.logprob for p in entry.meta.logprobs if not math.isnan(p.logprob))


def mean_logprob(path: Sequence[Trial[Any]]) -> float:
    """Of all tokens of the trials together; -inf without any, which is the least sure."""
    logprobs = [logprob for trial in path for logprob in _logprobs(trial)]
    return sum(logprobs) / len(logprobs) if logprobs else -math.inf


def rates(
    arena: Arena,
    paths: Sequence[tuple[Trial[T], ...]],
    judge: Judge | None,
    score: Callable[[tuple[T, ...]], float] | None,
) -> Steps[dict[int, float]]:
    """Wait for all paths (of trials, one behind the other) and rate them, by place; those with a trial that cannot be
    read have no rate. `judge` is asked on a side branch behind each path, all of them at once; `score` is given the
    values of the path; without either it is the mean logprob. Raises the first `ParseError` when none can be read."""
    if judge is None and score is None:
        for trial in dict.fromkeys(trial for path in paths for trial in path):
            check_logprobs(trial, "no score and no judge", arena.where)
    asked: dict[int, Trial[float | str]] = {}

    def ask(index: int) -> None:
        if judge is not None and index not in asked:
            asked[index] = arena.begin(arena.aside(paths[index][-1].branch), "judge", judge)

    for index, path in enumerate(paths):
        if path[-1].recorded:  # asked before the answer is known: no round trip between the two
            ask(index)
    yield from arena.finish(list(dict.fromkeys(trial for path in paths for trial in path)))
    errors = [[error for trial in path if (error := trial.spoilt())] for path in paths]
    sound = [index for index, found in enumerate(errors) if not found]
    if not sound:
        raise errors[0][0]
    for index in sound:
        ask(index)
    if judge is not None:
        yield from arena.finish([asked[index] for index in sound])
        return {index: number(asked[index].read(), "judge", arena.where) for index in sound}
    if score is not None:
        values = {index: tuple(trial.read() for trial in paths[index]) for index in sound}
        return {index: number(score(values[index]), "score", arena.where) for index in sound}
    return {index: mean_logprob(paths[index]) for index in sound}
