"""From shapes to rules of llguidance's Lark dialect: one rule for each state that has texts, terminals for scalars.

In: an `Expander`'s shapes. Out: rules whose sentences are exactly the JSON texts of the state (in one order of keys and
with the whitespace asked for), which states have none, a short text, the most bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Final

from ramet.frontend.schema_refs import Document, refusal
from ramet.runtime.grammar import json_scalars as scalars
from ramet.runtime.grammar.json_alone import alone, countable
from ramet.runtime.grammar.json_arrays import (
    Graph,
    Unique,
    array_rules,
    graph,
    graph_text,
    plain,
    plain_text,
    unique_text,
)
from ramet.runtime.grammar.json_expand import Expander
from ramet.runtime.grammar.json_layout import Layout, Rules, Whitespace
from ramet.runtime.grammar.json_objects import Fields, Free, object_rules, object_text
from ramet.runtime.grammar.json_shapes import (
    NOTHING,
    Arr,
    Bool,
    Null,
    Num,
    Obj,
    Shape,
    State,
    Str,
    Unenforced,
    meet,
    unite,
)

MOST_STATES: Final = 4_000
MOST_PATTERNS: Final = 4
MOST_EXAMPLE: Final = 16_384  # the shortest text of nested references can be exponential


@dataclass(frozen=True)
class Facts:
    """What is known of a shape before rules are written: the terminal of a scalar, the fields of an object."""

    shape: Shape
    term: str | None = None
    fields: Fields | None = None
    graph: Graph | Unique | None = None
    text: str | None = None


class Emitter:
    """Writes the rules of one schema; `marks`: for lanes (lanes.py)."""

    def __init__(self, document: Document, whitespace: Whitespace, prefix: str, marks: bool = False) -> None:
        self.terms = scalars.Terms(prefix, marks)
        self.rules = Rules(prefix)
        self.expander = Expander(document, self._surely_empty)
        self.layout = Layout.of(whitespace, self.terms)
        self._facts: dict[State, tuple[Facts, ...]] = {}
        self._texts: dict[State, str | None] = {}  # of states that have texts: an example, where one is known
        self._checking: set[State] = set()
        self._alone: frozenset[State] = frozenset()

    # Which states have texts

    def facts(self, state: State) -> tuple[Facts, ...]:
        """The shapes of a state that may have values."""
        found = self._facts.get(state)
        if found is None:
            if len(self._facts) >= MOST_STATES:
                raise refusal("#", f"combines to more than {MOST_STATES} different subschemas (limit: combinations)")
            some = (self._fact(shape) for shape in self.expander.shapes(state))
            found = self._facts[state] = tuple(one for one in some if one is not None)
        return found

    def _fact(self, shape: Shape) -> Facts | None:
        if isinstance(shape, Null | Bool | Num | Str):
            term = scalars.scalar(self.terms, shape)
            return None if term is None else Facts(shape, term, text=scalars.example(self.terms, shape, term))
        if isinstance(shape, Arr):
            shape = plain(shape)
            return Facts(shape, graph=graph(shape, self.expander.shapes))
        return Facts(shape, fields=self._fields(shape))

    def _fields(self, shape: Obj) -> Fields:
        declared = dict.fromkeys(name for part in shape.parts for name, _ in part.named)
        declared |= dict.fromkeys(shape.required)
        fits = self._key_filter(shape)
        named = tuple((name, shape.at(name) if fits(name) else NOTHING) for name in declared)
        free = self._free(shape, frozenset(declared))
        if free and len(declared) + 1 < shape.low:
            raise Unenforced(
                "minProperties",
                f"{shape.low} cannot be enforced for keys that are not declared, as one could occur twice; list them "
                "in properties, or use minProperties=1",
                shape.low,
            )
        return Fields(named, free)

    def _key_filter(self, shape: Obj) -> Callable[[str], bool]:
        if not shape.keys:
            return lambda name: True
        allowed = [one for one in self.expander.shapes(shape.keys) if isinstance(one, Str)]

        def fits(name: str) -> bool:
            met = (meet(one, Str(only=frozenset((name,)))) for one in allowed)
            return any(isinstance(m, Str) and scalars.scalar(self.terms, m) is not None for m in met)

        return fits

    def _free(self, shape: Obj, declared: frozenset[str]) -> tuple[Free, ...]:
        """Terminals of keys that are not declared, by the patterns that they match, and the states of their values."""
        sources = list(dict.fromkeys(pattern for part in shape.parts for pattern, _ in part.patterns))
        if len(sources) > MOST_PATTERNS:
            raise Unenforced("patternProperties", f"at most {MOST_PATTERNS} patterns for one object")
        by_state: dict[State, list[tuple[str, Str]]] = {}
        for chosen in product((False, True), repeat=len(sources)):
            matching = frozenset(s for s, taken in zip(sources, chosen, strict=True) if taken)
            state = unite(part.matching(matching) for part in shape.parts)
            if state == NOTHING:
                continue
            key = Str(patterns=matching, others=frozenset(sources) - matching, excluded=declared)
            by_state.setdefault(state, []).extend(self._keys(shape, key))
        return tuple(self._freely(keys, state) for state, keys in by_state.items() if keys)

    def _freely(self, keys: list[tuple[str, Str]], state: State) -> Free:
        terms = [term for term, _ in keys]
        name = self.terms.name(" | ".join(terms)) if len(terms) > 1 else terms[0]
        texts = [text for term, key in keys if (text := scalars.example(self.terms, key, term)) is not None]
        return Free(name, state, min(texts, key=len, default=None))

    def _keys(self, shape: Obj, key: Str) -> list[tuple[str, Str]]:
        allowed = self.expander.shapes(shape.keys) if shape.keys else (Str(),)
        met = (meet(one, key) for one in allowed if isinstance(one, Str))
        found = []
        for one in met:
            if isinstance(one, Str):
                term = scalars.key(self.terms, one)
                found += [] if term is None else [(term, one)]
        return found

    def _surely_empty(self, shape: Shape) -> bool:
        """Whether no value has this shape; False where that would need to look through a recursion."""
        if isinstance(shape, Null | Bool | Num | Str):
            return scalars.scalar(self.terms, shape) is None
        if isinstance(shape, Arr):
            return any(self._no_values(shape.at(i)) for i in range(min(shape.low, shape.prefix + 1)))
        return any(self._no_values(shape.at(name)) for name in shape.required)

    def _no_values(self, state: State) -> bool:
        if state == NOTHING:
            return True
        if state in self._checking:
            return False
        self._checking.add(state)
        try:
            return all(self._surely_empty(shape) for shape in self.expander.shapes(state))
        finally:
            self._checking.discard(state)

    def explore(self, root: State) -> None:
        """Find every state that `root` leads to and the ones among them that have texts (a least fixed point)."""
        seen, todo = {root}, [root]
        while todo:
            for fact in self.facts(todo.pop()):
                fresh = {child for child in children(fact) if child not in seen and child != NOTHING}
                seen |= fresh
                todo.extend(sorted(fresh, key=sorted))
        changed = True
        while changed:
            changed = False
            for state in seen:
                changed = self._improve(state) or changed

    def _improve(self, state: State) -> bool:
        before = self._texts.get(state, "missing")
        best = before
        for fact in self.facts(state):
            there, text = self._example(fact)
            text = None if text is not None and len(text) > MOST_EXAMPLE else text
            if there and (best == "missing" or (text is not None and (best is None or len(text) < len(best)))):
                best = text
        if best == before:
            return False
        self._texts[state] = best
        return True

    def alive(self, state: State) -> bool:
        """Whether a state has texts (after `explore`)."""
        return state in self._texts

    def text(self, state: State) -> str | None:
        """A short text of a state that has texts."""
        return self._texts.get(state)

    def _example(self, fact: Facts) -> tuple[bool, str | None]:
        if fact.term is not None:
            return True, fact.text
        if isinstance(fact.graph, Graph):
            return graph_text(fact.graph, self)
        if isinstance(fact.shape, Arr):
            if fact.graph is not None:
                return unique_text(fact.shape, fact.graph, self)
            return plain_text(fact.shape, self)
        assert fact.fields is not None and isinstance(fact.shape, Obj), "what is no scalar and no array is an object"
        return object_text(fact.shape, fact.fields, self)

    # Rules

    def value(self, state: State) -> str:
        """The rule (or terminal) of a state that has texts."""
        name = self.rules.names.get(state)
        if name is None:
            name = self.rules.names[state] = self.rules.fresh()
            self.rules.pending.append(state)
        return name

    def write(self, root: State) -> str:
        """Write the rules of `root` and all that it leads to; returns the name of its rule."""
        if self.terms.marks:
            self._alone = alone(root, self.facts, children, self.alive)
        name = self.value(root)
        while self.rules.pending:
            state = self.rules.pending.pop()
            self.rules.define(self.rules.names[state], self._options(state))
        return name

    def _options(self, state: State) -> list[str]:
        facts = [fact for fact in self.facts(state) if self._example(fact)[0]]
        strings = [fact for fact in facts if state in self._alone and countable(fact.shape)]
        others = [fact for fact in facts if fact not in strings]
        terms = list(dict.fromkeys(fact.term for fact in others if fact.term is not None))
        single = [term for term in terms if term.startswith("%") or term in self.terms.open]
        plain = [term for term in terms if term not in single]
        options = [self.terms.name(" | ".join(plain))] if plain else []
        options += [*single, *dict.fromkeys(scalars.counted(self.terms, fact.shape) for fact in strings)]
        for fact in facts:
            if isinstance(fact.shape, Arr):
                options += array_rules(self, fact.shape, fact.graph)
            elif isinstance(fact.shape, Obj) and fact.fields is not None:
                options += object_rules(self, fact.shape, fact.fields)
        return options


def children(fact: Facts) -> list[State]:
    """The states of the parts of a value of this shape."""
    shape = fact.shape
    if isinstance(shape, Arr):
        if isinstance(fact.graph, Unique):
            return list(fact.graph.values)
        if fact.graph is not None:
            return [state for row in fact.graph.edges for state, _ in row]
        return [shape.at(i) for i in range(shape.prefix + 1)]
    if fact.fields is not None:
        return [*(state for _, state in fact.fields.named), *(one.state for one in fact.fields.free)]
    return []
