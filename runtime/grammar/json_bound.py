"""The most bytes that the texts of a JSON schema take.

In: an emitter after `explore`. Out: a bound, or None where there is none (recursion, open lists, open objects).
"""

from __future__ import annotations

import json
from typing import Final

from ramet.runtime.grammar.json_arrays import Unique
from ramet.runtime.grammar.json_emit import Emitter, Facts
from ramet.runtime.grammar.json_keywords import value_text
from ramet.runtime.grammar.json_scalars import MOST_DIGITS
from ramet.runtime.grammar.json_shapes import Arr, Bool, Null, Num, Obj, State, Str

_SPACE: Final = 66  # a line end of two bytes and 64 spaces
_ESCAPED: Final = 12  # a character beyond the Basic Multilingual Plane as two escapes


def longest(emitter: Emitter, root: State) -> int | None:
    """Bytes that no text exceeds."""
    known: dict[State, int | None] = {}
    space = 0 if emitter.layout.fixed else _SPACE

    def of_state(state: State) -> int | None:
        if state not in known:
            known[state] = None  # what is met again inside itself has no bound
            sizes = [of_fact(fact) for fact in emitter.facts(state)]
            known[state] = None if None in sizes else max((size for size in sizes if size is not None), default=0)
        return known[state]

    def of_fact(fact: Facts) -> int | None:
        shape = fact.shape
        if isinstance(shape, Arr):
            return of_array(fact, shape)
        if isinstance(shape, Obj):
            return of_object(fact, shape)
        return _of_scalar(shape)

    def of_array(fact: Facts, shape: Arr) -> int | None:
        states = [state for i in range(shape.prefix + 1) if emitter.alive(state := shape.at(i))]
        count = shape.high
        if isinstance(fact.graph, Unique):
            states = [state for state in fact.graph.values if emitter.alive(state)]
            count = len(states)
        elif fact.graph is not None:
            states = [state for row in fact.graph.edges for state, _ in row if emitter.alive(state)]
        if count is None and (fact.graph is not None or emitter.alive(shape.at(shape.prefix))):
            return None
        sizes = [of_state(state) for state in states]
        if None in sizes:
            return None
        each = max((size for size in sizes if size is not None), default=0) + 2 + 2 * space
        return 2 + 2 * space + each * (shape.prefix if count is None else count)

    def of_object(fact: Facts, shape: Obj) -> int | None:
        assert fact.fields is not None, "objects have fields"
        if any(emitter.alive(one.state) for one in fact.fields.free):
            return None
        total = 2 + 2 * space
        for name, state in fact.fields.named:
            if emitter.alive(state):
                size = of_state(state)
                if size is None:
                    return None
                total += len(json.dumps(name, ensure_ascii=False).encode()) + size + 4 + 4 * space
        return total

    return of_state(root)


def _of_scalar(shape: Null | Bool | Num | Str | Arr | Obj) -> int | None:
    if isinstance(shape, Null | Bool):
        return 5
    if isinstance(shape, Num):
        if shape.only is not None:
            return max(len(value_text(value)) for value in shape.only)
        return 2 * MOST_DIGITS + 8
    if isinstance(shape, Str) and shape.only is not None:
        return max(len(json.dumps(text, ensure_ascii=False).encode()) for text in shape.only)
    return 2 + _ESCAPED * shape.high if isinstance(shape, Str) and shape.high is not None else None
