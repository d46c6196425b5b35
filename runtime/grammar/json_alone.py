"""Where a counted string is the only string that may begin: lanes (lanes.py) need to know.

In: a schema's states and the shapes that they may have. Out: the states whose strings are counted and beside which no
other strings stand, at every place that they may stand at. Text determines a JSON text's nesting, keys and positions,
so a place is a set of states: those that the objects and arrays which are still possible there give to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

from ramet.runtime.grammar.json_shapes import Arr, Obj, Shape, State, Str

if TYPE_CHECKING:
    from ramet.runtime.grammar.json_emit import Facts

MOST_PLACES: Final = 2_000  # above, no state is found to be alone
Place = frozenset[State]


def alone(
    root: State,
    facts: Callable[[State], Sequence[Facts]],
    children: Callable[[Facts], list[State]],
    alive: Callable[[State], bool],
) -> frozenset[State]:
    """The states whose strings, if any, are counted alike, at no place beside others (which might be full sooner)."""
    first = frozenset((root,))
    seen, todo = {first}, [first]
    mixed: set[State] = set()
    while todo:
        place = todo.pop()
        here = [fact for state in place for fact in facts(state)]
        strings = {fact.shape for fact in here if isinstance(fact.shape, Str)}
        if len(strings) > 1 or not all(map(countable, strings)):
            mixed |= place
        arrays = [fact for fact in here if isinstance(fact.shape, Arr)]
        objects = [fact for fact in here if isinstance(fact.shape, Obj)]
        for states in (*_items(arrays, children), *_values(objects)):
            there = frozenset(state for state in states if alive(state))
            if there and there not in seen:
                seen.add(there)
                todo.append(there)
        if len(seen) > MOST_PLACES:
            return frozenset()
    return frozenset(state for place in seen for state in place) - mixed


def countable(shape: Shape) -> bool:
    """Whether a shape is strings of so many characters, whatever they are."""
    if not isinstance(shape, Str) or not shape.high or shape.only is not None:
        return False
    return not (shape.patterns or shape.others or shape.formats or shape.excluded)


def _items(arrays: list[Facts], children: Callable[[Facts], list[State]]) -> Iterable[list[State]]:
    """The states at each position; for arrays that count, or several, all of them together."""
    if len(arrays) == 1 and arrays[0].graph is None:
        return [[state] for state in children(arrays[0])]
    return [[state for one in arrays for state in children(one)]] if arrays else []


def _values(objects: list[Facts]) -> Iterable[list[State]]:
    """The states of the value of each key; keys that are declared nowhere are told apart for one object alone."""
    fields = [one.fields for one in objects if one.fields is not None]
    named = [dict(one.named) for one in fields]
    found = []
    for name in dict.fromkeys(name for one in named for name in one):
        states = [one[name] for one in named if name in one]
        found.append(states + [free.state for one, names in zip(fields, named, strict=True) if name not in names
                               for free in one.free])  # fmt: skip
    if len(fields) == 1:
        return [*found, *([free.state] for free in fields[0].free)]
    return [*found, [free.state for one in fields for free in one.free]]
