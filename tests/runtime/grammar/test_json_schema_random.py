"""Random schemas and random texts of their grammars: whatever the automaton lets through is valid for `jsonschema`."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ramet.frontend.errors import ConstraintError
from ramet.runtime.grammar.json_schema import translate

from .json_texts import accepts, matcher, valid, walk

NAMES = st.sampled_from(["a", "b", "c", 'd"', "é", "with space"])
SCALARS: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-20, 20),
    st.sampled_from(["", "a", 'q"', "\n", "é", "ab", 0.5, -1.25, 10**20]),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2), max_leaves=3
)
PATTERNS = st.sampled_from(
    [
        "a",
        "^a",
        "b$",
        "^ab?$",
        r"^\d{2,3}$",
        r"^[^x\s]+$",
        r"\W",
        "^(a|b)+$",
        "a|^b",
        r"^\S*$",
        ".",
        r"^.{1,3}$",
        "^$",
        r"\D$",
    ]
)
BOUNDS = st.one_of(st.integers(-30, 30), st.sampled_from([0.5, -0.5, 2.25, 1e3, -12.75, 10.01]))
COUNTS = st.integers(0, 3)


def _typed(**keywords: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=keywords)


NUMBERS = _typed(
    type=st.sampled_from(["integer", "number", ["number", "null"], ["integer", "string"]]),
    minimum=BOUNDS,
    maximum=BOUNDS,
    exclusiveMinimum=BOUNDS,
    exclusiveMaximum=BOUNDS,
    multipleOf=st.sampled_from([1, 2, 3, 10, 0.5, 0.01, 7, 2.5]),
)
STRINGS = _typed(
    type=st.just("string"),
    minLength=COUNTS,
    maxLength=COUNTS,
    pattern=PATTERNS,
    format=st.sampled_from(["date", "time", "date-time", "ipv4", "ipv6", "uuid", "email", "made-up"]),
)
FINITE = _typed(enum=st.lists(VALUES, min_size=1, max_size=4), const=VALUES) | st.just({"type": ["boolean", "null"]})


def _compound(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    few = st.lists(inner, min_size=1, max_size=3)
    arrays = _typed(
        type=st.just("array"),
        items=inner,
        prefixItems=few,
        minItems=COUNTS,
        maxItems=COUNTS,
        contains=inner,
        minContains=COUNTS,
        maxContains=COUNTS,
        uniqueItems=st.booleans(),
    )
    objects = _typed(
        type=st.just("object"),
        properties=st.dictionaries(NAMES, inner, max_size=4),
        required=st.lists(NAMES, unique=True, max_size=2),
        additionalProperties=inner | st.booleans(),
        patternProperties=st.dictionaries(PATTERNS, inner, min_size=1, max_size=2),
        propertyNames=STRINGS,
        minProperties=COUNTS,
        maxProperties=COUNTS,
        dependentRequired=st.dictionaries(NAMES, st.lists(NAMES, unique=True, max_size=2), max_size=2),
        dependentSchemas=st.dictionaries(NAMES, inner, max_size=1),
    )
    return st.one_of(
        arrays,
        objects,
        objects,
        st.builds(lambda a, b: {**a, **b}, objects, st.fixed_dictionaries({"anyOf": few})),
        st.builds(lambda a, b: {**a, **b}, NUMBERS, st.fixed_dictionaries({"not": inner})),
        st.fixed_dictionaries({"allOf": few}),
        st.fixed_dictionaries({"oneOf": few}),
        _typed(**{"if": inner, "then": inner, "else": inner}),
        st.just({"$ref": "#/$defs/again"}),
        inner,
    )


SCHEMAS = st.recursive(NUMBERS | STRINGS | FINITE | st.booleans(), _compound, max_leaves=8)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(SCHEMAS, st.integers(0, 2**32), st.sampled_from(["fixed", "flexible"]))
def test_what_the_automaton_accepts_is_valid(schema: Any, seed: int, whitespace: Any) -> None:
    again = {"type": "object", "properties": {"next": {"$ref": "#/$defs/again"}, "v": {"type": "integer"}}}
    again |= {"required": ["v"], "additionalProperties": False}
    text = json.dumps({"allOf": [schema], "$defs": {"again": again}})
    try:
        translation = translate(text, whitespace)
    except ConstraintError:
        assume(False)
    start = matcher(translation)
    if translation.shortest is not None:
        assert accepts(start, translation.shortest.decode()), translation.shortest
        assert valid(text, translation.shortest.decode()), translation.shortest
    for i in range(6):
        found = walk(start, seed + i)
        if found is not None:
            assert valid(text, found), found
            assert translation.longest is None or len(found.encode()) <= translation.longest
