"""From the keywords of a JSON schema to shapes: what each says about values, and what its opposite says.

In: a `Document`. Out: for a state (a set of atoms) the union of shapes that its values have. In-place keywords (allOf,
anyOf, oneOf, not, if, $ref, dependentSchemas) are worked out here; properties and items stay states, so that recursive
schemas end. Source: the JSON Schema specification, Draft 2020-12, with the older spellings.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any, Final

from ramet.frontend.errors import ConstraintError
from ramet.frontend.schema_refs import Document, refusal, step
from ramet.frontend.schemas import KEYWORDS
from ramet.runtime.grammar.json_keywords import (
    SIMPLE,
    Shapes,
    bound,
    gathered,
    listed,
    not_value,
    others,
    required,
    types,
    values_of,
    without,
)
from ramet.runtime.grammar.json_shapes import (
    ANYTHING,
    EVERY,
    NOTHING,
    Arr,
    Atom,
    Contains,
    Items,
    Members,
    Obj,
    Shape,
    State,
    meet,
)

MOST_SHAPES: Final = 512
MOST_STEPS: Final = 100


class Unwritable(ConstraintError):
    """The opposite of a keyword that no grammar here can express."""


class Expander:
    """Shapes of states, remembered. `empty` tells whether a state surely has no values (given by the emitter)."""

    def __init__(self, document: Document, empty: Callable[[Shape], bool]) -> None:
        self._document = document
        self._empty = empty
        self._known: dict[Atom, Shapes] = {}
        self._depth = 0
        self.notes: set[str] = set()

    def state(self, pointer: str, holds: bool = True) -> State:
        """The state of a subschema; plain ones are the same state wherever they stand."""
        for _ in range(MOST_STEPS):
            schema = self._document[pointer]
            if isinstance(schema, bool):
                return ANYTHING if schema is holds else NOTHING
            telling = [key for key in schema if key in KEYWORDS and KEYWORDS[key].effect == "enforced"]
            telling = [key for key in telling if key not in ("$id", "$anchor", "$defs", "definitions")]
            if not telling:
                return ANYTHING if holds else NOTHING
            if telling != ["$ref"]:
                return frozenset({("at", pointer, holds)})
            pointer = self._document.resolve(pointer)
        raise refusal(pointer, f"is reached by more than {MOST_STEPS} references in a row (limit: depth)")

    def shapes(self, state: State) -> Shapes:
        """The union of shapes that the values of a state have."""
        return self._all(self.atom(atom) for atom in sorted(state)) if state else EVERY

    def atom(self, atom: Atom) -> Shapes:
        """The shapes of one atom."""
        found = self._known.get(atom)
        if found is None:
            self._depth += 1
            if self._depth > MOST_STEPS:
                raise refusal(atom[1], f"applies more than {MOST_STEPS} schemas to one value (limit: depth)")
            try:
                found = self._known[atom] = tuple(dict.fromkeys(self._expand(atom)))
            finally:
                self._depth -= 1
        return found

    def _expand(self, atom: Atom) -> Shapes:
        kind, text, holds = atom
        if kind == "false":
            return ()
        if kind == "is":
            value = json.loads(text, parse_float=Decimal)
            return values_of([value]) if holds else not_value(value)
        schema = self._document[text]
        if isinstance(schema, bool):
            return EVERY if schema is holds else ()
        if holds:
            return self._all(say() for _, say in self._clauses(schema, text, True))
        return self._some(say() for _, say in self._clauses(schema, text, False))

    def _all(self, unions: Iterable[Shapes]) -> Shapes:
        found: Shapes = EVERY
        for union in unions:
            pairs = (meet(a, b) for a in found for b in union)
            found = self._bounded(one for one in pairs if one is not None)
        return found

    def _some(self, unions: Iterable[Shapes]) -> Shapes:
        return self._bounded(one for union in unions for one in union)

    def _bounded(self, found: Iterable[Shape]) -> Shapes:
        distinct: dict[Shape, None] = {}
        for one in found:
            distinct[one] = None
            if len(distinct) > 2 * MOST_SHAPES:
                distinct = dict.fromkeys(gathered(distinct))
            if len(distinct) > 2 * MOST_SHAPES:
                break
        united = tuple(gathered(distinct))
        if len(united) > MOST_SHAPES:
            raise refusal("#", f"combines to more than {MOST_SHAPES} alternatives (limit: combinations)")
        return united

    # Each keyword is a clause: what it says (or its opposite says), worked out when it is called.

    def _clauses(self, schema: dict[str, Any], pointer: str, holds: bool) -> list[tuple[str, Callable[[], Shapes]]]:
        found: list[tuple[str, Callable[[], Shapes]]] = []
        # The schema's own properties come first, so that theirs is the order of keys.
        if schema.keys() & {"properties", "patternProperties", "additionalProperties"}:
            found.append(("properties", lambda: self._members(schema, pointer, holds)))
        if schema.keys() & {"items", "prefixItems"}:
            found.append(("items", lambda: self._items(schema, pointer, holds)))
        for limit in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
            if limit in schema:
                found.append((limit, lambda limit=limit: bound(schema, limit, holds)))  # type: ignore[misc]
        for key, value in schema.items():
            if key in SIMPLE:
                say = SIMPLE[key]
                found.append((key, lambda say=say, value=value, key=key: self._said(say(value, holds), pointer, key)))  # type: ignore[misc]
            elif key in _APPLIED:
                apply = _APPLIED[key]
                found.append((key, lambda apply=apply: apply(self, schema, pointer, holds)))  # type: ignore[misc]
        return found

    def _said(self, said: Shapes | None, pointer: str, key: str) -> Shapes:
        if said is None:
            raise self._unwritable(pointer, key)
        return said

    def _unwritable(self, pointer: str, key: str) -> Unwritable:
        return Unwritable(
            f'json_schema: at "{step(pointer, key)[:300]}": the opposite of {key} is needed here (by not, if, oneOf or '
            "maxContains), and it is not supported; say what is allowed instead"
        )

    def _ref(self, schema: dict[str, Any], pointer: str, holds: bool) -> Shapes:
        return self.shapes(self.state(self._document.resolve(pointer), holds))

    def _one(self, pointer: str, holds: bool) -> Shapes:
        return self.shapes(self.state(pointer, holds))

    def _all_of(self, schema: dict[str, Any], pointer: str, holds: bool) -> Shapes:
        parts = (self._one(step(pointer, "allOf", i), holds) for i in range(len(schema["allOf"])))
        return self._all(parts) if holds else self._some(parts)

    def _any_of(self, schema: dict[str, Any], pointer: str, holds: bool) -> Shapes:
        parts = (self._one(step(pointer, "anyOf", i), holds) for i in range(len(schema["anyOf"])))
        return self._some(parts) if holds else self._all(parts)

    def _one_of(self, schema: dict[str, Any], pointer: str, holds: bool) -> Shapes:
        """Branches that exclude each other are alternatives; of two that overlap, each without the other."""
        places = [step(pointer, "oneOf", i) for i in range(len(schema["oneOf"]))]
        branches = [self._one(place, True) for place in places]
        # What stands beside oneOf often tells its branches apart: objects only, say.
        beside = self._one_of_beside(schema, pointer) if holds else EVERY
        rivals = self._rivals(branches, beside)
        if not holds:
            if any(rivals):
                raise self._unwritable(pointer, "oneOf")
            return self._all(self._one(place, False) for place in places)
        try:
            return self._some(
                self._all([branches[i], *(self._one(places[j], False) for j in rivals[i])]) for i in range(len(places))
            )
        except Unwritable as error:
            i = next(i for i, some in enumerate(rivals) if some)
            both = f"branches {i} and {rivals[i][0]} may both hold, and one without the other cannot be written"
            why = error.message.removeprefix("json_schema: ")
            raise refusal(step(pointer, "oneOf"), f"{both} ({why}); use anyOf, or make them exclusive") from None

    def _one_of_beside(self, schema: dict[str, Any], pointer: str) -> Shapes:
        return types(schema["type"], True) if "type" in schema else EVERY

    def _rivals(self, branches: list[Shapes], beside: Shapes) -> list[list[int]]:
        """For each branch the others that may hold of the same value. Branches that list their values, and objects
        that list those of one property, are told apart at once, so that hundreds of them cost little."""
        rivals: list[list[int]] = [[] for _ in branches]
        lists = [_listed_all(branch) for branch in branches]
        tagged = self._tagged(branches)
        for i, one in enumerate(branches):
            for j in range(i):
                mine, theirs = lists[i], lists[j]
                if i in tagged and j in tagged:
                    continue
                if mine is not None and theirs is not None:
                    apart = mine.isdisjoint(theirs)
                else:
                    apart = self._disjoint(one, branches[j], beside)
                if not apart:
                    rivals[i].append(j)
                    rivals[j].append(i)
        return rivals

    def _tagged(self, branches: list[Shapes]) -> set[int]:
        """The branches of objects that one required property tells apart by its values."""
        objects = {i: one for i, one in enumerate(branches) if one and all(isinstance(s, Obj) for s in one)}
        shapes = [shape for one in objects.values() for shape in one if isinstance(shape, Obj)]
        names = dict.fromkeys(shapes[0].required) if shapes else {}
        for name in names:
            if not all(name in shape.required for shape in shapes):
                continue
            values = {
                i: [_listed_all(self.shapes(s.at(name))) for s in one if isinstance(s, Obj)]
                for i, one in objects.items()
            }
            sets = {i: frozenset().union(*(v for v in lists if v is not None)) for i, lists in values.items()}
            known = all(v is not None for lists in values.values() for v in lists)
            if known and sum(map(len, sets.values())) == len(frozenset[str]().union(*sets.values())):
                return set(objects)
        return set()

    def _disjoint(self, a: Shapes, b: Shapes, beside: Shapes) -> bool:
        both = self._all([a, b, beside])
        return all(self._empty(one) for one in both)

    def _not(self, schema: dict[str, Any], pointer: str, holds: bool) -> Shapes:
        return self._one(step(pointer, "not"), not holds)

    def _if(self, schema: dict[str, Any], pointer: str, holds: bool) -> Shapes:
        cases = []
        for branch, when in (("then", True), ("else", False)):
            if branch in schema:
                cases.append([self._one(step(pointer, "if"), when), self._one(step(pointer, branch), holds)])
            elif holds:
                cases.append([self._one(step(pointer, "if"), when)])
        if holds and "then" not in schema and "else" not in schema:
            return EVERY
        return self._some(self._all(case) for case in cases)

    def _names(self, schema: dict[str, Any], pointer: str, holds: bool) -> Shapes:
        if not holds:
            raise self._unwritable(pointer, "propertyNames")
        return (*others(Obj), Obj(keys=self.state(step(pointer, "propertyNames"))))

    def _depend(self, key: str, schema: dict[str, Any], pointer: str, holds: bool) -> Shapes:
        """Where a property is, others must be, or a schema must hold."""
        cases = []
        for name, need in schema[key].items():
            there = (Obj(required=(name,)),)
            needed = required(need, holds) if isinstance(need, list) else self._one(step(pointer, key, name), holds)
            met = self._all([there, needed])
            cases.append((*others(Obj), without(name), *met) if holds else met)
        return self._all(cases) if holds else self._some(cases)

    def _contains(self, schema: dict[str, Any], pointer: str, holds: bool) -> Shapes:
        low, high = int(schema.get("minContains", 1)), schema.get("maxContains")
        if not holds and (low != 1 or high is not None):
            raise self._unwritable(pointer, "contains")
        place = step(pointer, "contains")
        if not holds:
            return (Arr((Items(rest=self.state(place, False)),)),)
        if low == 0 and high is None:
            return EVERY
        one = Contains(self.state(place), self.state(place, False), low, None if high is None else int(high))
        return (*others(Arr), Arr(contains=(one,)))

    def _items(self, schema: dict[str, Any], pointer: str, holds: bool) -> Shapes:
        items = schema.get("items")
        if isinstance(items, list):  # before Draft 2020-12
            prefix = [step(pointer, "items", i) for i in range(len(items))]
            rest = step(pointer, "additionalItems") if "additionalItems" in schema else None
        else:
            prefix = [step(pointer, "prefixItems", i) for i in range(len(schema.get("prefixItems", ())))]
            rest = step(pointer, "items") if items is not None else None
        after = ANYTHING if rest is None else self.state(rest, holds)
        states = tuple(self.state(place, holds) for place in prefix)
        if holds:
            return (*others(Arr), Arr((Items(states, after),)))
        found: list[Shape] = [
            Arr((Items((*[ANYTHING] * i, state)),), low=i + 1) for i, state in enumerate(states) if state != NOTHING
        ]
        if rest is not None and after != NOTHING:
            if prefix:
                raise self._unwritable(pointer, "items")
            found.append(Arr(contains=(Contains(after, ANYTHING),)))
        return found

    def _members(self, schema: dict[str, Any], pointer: str, holds: bool) -> Shapes:
        named = {name: self.state(step(pointer, "properties", name), holds) for name in schema.get("properties", ())}
        patterns = [
            (one, self.state(step(pointer, "patternProperties", one), holds))
            for one in schema.get("patternProperties", ())
        ]
        rest = ANYTHING
        if "additionalProperties" in schema:
            rest = self.state(step(pointer, "additionalProperties"), holds)
        if holds:
            return (*others(Obj), Obj((Members(tuple(named.items()), tuple(patterns), rest),)))
        if ("additionalProperties" in schema and rest != NOTHING) or any(state != NOTHING for _, state in patterns):
            raise self._unwritable(pointer, "additionalProperties" if rest != NOTHING else "patternProperties")
        return [Obj((Members(((name, state),)),), (name,)) for name, state in named.items() if state != NOTHING]


def _listed_all(shapes: Shapes) -> frozenset[str] | None:
    """The values of a union of shapes that all have few."""
    lists = [listed(one) for one in shapes]
    return None if None in lists else frozenset(text for texts in lists if texts is not None for text in texts)


_APPLIED: Final[dict[str, Callable[[Expander, dict[str, Any], str, bool], Shapes]]] = {
    "$ref": Expander._ref,
    "allOf": Expander._all_of,
    "anyOf": Expander._any_of,
    "oneOf": Expander._one_of,
    "not": Expander._not,
    "if": Expander._if,
    "propertyNames": Expander._names,
    "contains": Expander._contains,
    "dependentRequired": lambda self, schema, pointer, holds: self._depend("dependentRequired", schema, pointer, holds),
    "dependentSchemas": lambda self, schema, pointer, holds: self._depend("dependentSchemas", schema, pointer, holds),
    "dependencies": lambda self, schema, pointer, holds: self._depend("dependencies", schema, pointer, holds),
}
