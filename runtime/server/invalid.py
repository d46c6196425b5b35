"""What is wrong with a body, in plain words.

In: the problems that pydantic found, and the body that it found them in. Out: a `Failure` 400 that names the client's
own field. The steps of pydantic's paths that name a branch of a union or a class are known by not being in the body.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ramet.runtime.server.failures import Failure, bad

MAX_WORD = 64  # characters of a name or a value that is repeated
MAX_PROBLEMS = 1000  # that are looked at
Place = tuple[str | int, ...]
Problem = Mapping[str, Any]

_KINDS: Mapping[str, str] = {  # problems of type → what is asked for
    "string_type": "a string",
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
_NAMES = {str: "a string", bool: "a boolean", int: "an integer", float: "a number", list: "a list", dict: "an object"}
_OTHERS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {  # of other problems' contexts
    "missing": lambda about: "is required",
    "union_tag_not_found": lambda about: "is required",
    "union_tag_invalid": lambda about: f"must be one of {about['expected_tags']}, got {_cut(about['tag'])!r}",
    "too_short": lambda about: f"must have at least {_many(about['min_length'])}, has {about['actual_length']}",
    "too_long": lambda about: f"must have at most {_many(about['max_length'])}, has {about['actual_length']}",
}
_TAGS = ("union_tag_invalid", "union_tag_not_found")  # pydantic names the object; what is wrong is a field of it


def sentence(problems: Sequence[Any], body: object) -> Failure:
    """400 about the first problem; of a union's about those of the branch that got furthest, or, where several got
    there, about all that would be right."""
    found: list[tuple[Place, Problem]] = [(_place(problem, body), problem) for problem in problems[:MAX_PROBLEMS]]
    if not found:
        return bad("`body` is invalid")
    place = _furthest([place for place, _ in found])
    here = [problem for each, problem in found if each == place]
    field = _spelled(place)
    return bad(f"`{field or 'body'}` {_said(here)}", param=field or None)


def _place(problem: Problem, body: object) -> Place:
    """Where the problem is: the steps that lead through the body, and the last one of what is missing there."""
    where: Place = problem["loc"]
    value: Any = body
    if where[:1] != ("body",):  # of a query, which has no unions
        return tuple(where[1:])
    place: list[str | int] = []
    for step in where[1:]:
        if _leads(step, value):
            value = value[step]
            place.append(step)
    if problem["type"] == "missing":
        place.append(where[-1])
    elif problem["type"] in _TAGS:
        place.append(problem["ctx"]["discriminator"].strip("'"))
    return tuple(place)


def _leads(step: str | int, value: object) -> bool:
    """Whether there is something at `step` of a value."""
    if isinstance(value, list):
        return isinstance(step, int) and step < len(value)
    return isinstance(value, dict) and step in value


def _furthest(places: Sequence[Place]) -> Place:
    """The deepest; among items of one list the last: the branch that took those before it was meant."""
    deepest = max(places, key=len)
    beside = [place for place in places if len(place) == len(deepest) and place[:-1] == deepest[:-1]]
    if all(place and isinstance(place[-1], int) for place in beside):
        return max(beside, key=lambda place: place[-1])
    return deepest


def _spelled(place: Place) -> str:
    parts = [f"[{_cut(step)}]" if str(step).isdigit() else f".{_cut(step)}" for step in place]
    return "".join(parts).lstrip(".")


def _said(problems: Sequence[Problem]) -> str:
    """What must be, of problems in one place: one of several kinds, or more than that of the right kind."""
    other = next((problem for problem in problems if problem["type"] not in _KINDS), None)
    if other is not None:
        say = _OTHERS.get(other["type"])
        if say is not None:
            return say(other.get("ctx", {}))
        return str(other["msg"]).removeprefix("Value error, ").removeprefix("Input ").replace("should", "must", 1)
    kinds = list(dict.fromkeys(_KINDS[problem["type"]] for problem in problems))
    got = problems[0].get("input")
    name = "null" if got is None else _NAMES.get(type(got), "something else")
    return f"must be {' or '.join((', '.join(kinds[:-1]), kinds[-1]) if kinds[1:] else kinds)}, got {name}"


def _many(count: int) -> str:
    return "1 item" if count == 1 else f"{count} items"


def _cut(word: object) -> str:
    return str(word)[:MAX_WORD]
