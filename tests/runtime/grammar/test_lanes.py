"""Lanes change what masks cost and nothing else: the same program without its marks says the same at every place."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ramet.frontend import ir
from ramet.frontend.errors import ConstraintError
from ramet.runtime.batch import U32
from ramet.runtime.grammar.automaton import HEADER, GrammarCache
from ramet.runtime.grammar.base import GrammarError
from ramet.runtime.grammar.lanes import COUNT, GATE, WIDE, marked, widened
from ramet.runtime.grammar.structure_told import told_apart
from ramet.runtime.grammar.translate import translate

WORDS = (
    "ab",
    "abc",
    "abcd",
    "abcdefgh",
    "na",
    "name",
    'e"',
    '", "',
    '": "',
    '"}',
    '"]',
    "é",
    "日本",
    "日a",
    "a\\",
    "\\n",
    "\u2028",
)
PIECES = (b"\xe6\x97", b"ab\xe6", b"\xa5a", b"abcde\xf0\x9f")
TOKENS = [b"<eos>", *(bytes([i]) for i in range(256)), *(word.encode() for word in WORDS), *PIECES]
VOCAB = len(TOKENS)
CACHE = GrammarCache(TOKENS, VOCAB, (0,), most_bytes=1 << 20)
CONTROLS = {1 + ord(signal) for signal in (GATE, COUNT, WIDE)}  # their tokens

LENGTHS = st.tuples(st.integers(0, 3), st.integers(1, 9)).map(
    lambda p: {"type": "string", "minLength": min(p), "maxLength": max(p)}
)
STRINGS = st.one_of(
    LENGTHS,
    st.just({"type": "string"}),
    st.just({"type": "string", "maxLength": 0}),
    st.sets(st.sampled_from(["ab", "abcd", "abcdefghi", "x", ""]), min_size=1).map(lambda s: {"enum": sorted(s)}),
    st.sampled_from(["^ab+$", "^[a-c]{2,6}$", "b", "^(.+)/(.+)$", "^a"]).map(
        lambda p: {"type": "string", "pattern": p}
    ),
    st.just({"type": "string", "pattern": "a", "maxLength": 5}),
    st.just({"not": {"enum": ["ab", "abcd"]}, "type": "string"}),
)


def _object(fields: dict[str, Any], required: set[str], rest: Any) -> dict[str, Any]:
    found = {"type": "object", "properties": fields, "required": sorted(required & fields.keys())}
    return found if rest is None else found | rest


def _objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    rests = st.one_of(
        st.none(),
        st.just({"additionalProperties": False}),
        inner.map(lambda s: {"additionalProperties": s}),
        inner.map(lambda s: {"patternProperties": {"^a": s, "e$": {"type": "integer"}}}),
        st.just({"propertyNames": {"maxLength": 4}}),
    )
    names = st.sampled_from(["name", "na", "abc"])
    return st.builds(_object, st.dictionaries(names, inner, max_size=3), st.sets(names), rests)


def _arrays(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        inner.map(lambda s: {"type": "array", "items": s}),
        st.lists(inner, min_size=1, max_size=2).map(lambda s: {"type": "array", "prefixItems": s, "minItems": 1}),
        inner.map(lambda s: {"type": "array", "items": s, "contains": {"const": "abc"}}),
    )


SCHEMAS = st.recursive(
    STRINGS,
    lambda inner: st.one_of(
        _objects(inner), _arrays(inner), st.lists(inner, min_size=2, max_size=3).map(lambda s: {"anyOf": s})
    ),
    max_leaves=5,
)


def program_of(constraint: ir.Constraint) -> str:
    return HEADER + translate(constraint).lark


def without(program: str) -> str:
    return program.replace("(?P<counted>", "(?:").replace("(?P<free>", "(?:")


def bits(row: U32) -> set[int]:
    return {int(i) for i in np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))}


def compared(program: str, seed: int, most: int = 40) -> None:
    """Both programs along one random text."""
    draw, row = random.Random(seed), np.zeros(-(-VOCAB // 32), np.uint32)
    mine, plain = CACHE.automaton(program), CACHE.automaton(without(program))
    for _ in range(most):
        masks = []
        for each in (mine, plain):
            each.mask(row)
            masks.append(bits(row))
        assert masks[0] == masks[1] - (CONTROLS if marked(program) else set())
        assert (mine.forced(), mine.accepting, mine.complete) == (plain.forced(), plain.accepting, plain.complete)
        texts = sorted(masks[0] - {0})
        if not texts:
            return
        wanted = [t for t in texts if b'"' in TOKENS[t]] if draw.random() < 0.2 else [t for t in texts if t > 256]
        token = draw.choice(wanted or texts)
        refused = draw.choice([t for t in range(1, VOCAB) if t not in masks[0]])
        with pytest.raises(GrammarError):
            mine.advance([refused])
        mine.advance([token])
        plain.advance([token])


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SCHEMAS, st.integers(0, 1 << 30))
def test_lanes_change_no_mask(schema: Any, seed: int) -> None:
    try:
        program = program_of(ir.JsonSchema(json.dumps(schema)))
    except ConstraintError:
        return
    for turn in range(3):
        compared(program, seed + turn)


def tag(begin: str, schema: Any) -> dict[str, Any]:
    return {"type": "tag", "begin": begin, "content": {"type": "json_schema", "json_schema": schema}, "end": "</t>"}


SHORT = {"type": "string", "maxLength": 6}
TAGS = [tag("<a>", {"type": "array", "items": SHORT}), tag("<ab>", {"type": "object", "additionalProperties": SHORT})]
TRIGGERED = {"type": "triggered_tags", "triggers": ["<a"], "tags": TAGS}


@pytest.mark.parametrize("text", ["x", '<a>["', '<ab>{"', '<ab>{"name": "ab'])
def test_lanes_change_no_mask_of_tags(text: str) -> None:
    program = program_of(ir.Structure(json.dumps({"type": "structural_tag", "format": TRIGGERED})))
    assert marked(program)
    mine, plain = CACHE.automaton(program), CACHE.automaton(without(program))
    tokens = [1 + byte for byte in text.encode()]
    row = np.zeros(-(-VOCAB // 32), np.uint32)
    for each in ([*tokens], [*tokens, 1 + ord("a"), 1 + ord("b")]):
        found = []
        for automaton in (mine.copy(), plain.copy()):
            automaton.advance(each)
            automaton.mask(row)
            found.append(bits(row))
        assert found[0] == found[1] - CONTROLS


@pytest.mark.parametrize(
    ("told", "spec"),
    [
        (True, {"type": "json_schema", "json_schema": SHORT}),
        (True, TRIGGERED),
        (True, {"type": "sequence", "elements": [{"type": "const_string", "value": "x"}, TRIGGERED]}),
        (
            False,
            {"type": "sequence", "elements": [{"type": "any_text"}, {"type": "json_schema", "json_schema": SHORT}]},
        ),
        (False, {"type": "or", "elements": [{"type": "json_schema", "json_schema": SHORT}, {"type": "any_text"}]}),
        (False, {**TRIGGERED, "tags": [tag("<a", SHORT), tag("<ab>", SHORT)]}),
        (False, {**TRIGGERED, "tags": [tag("<a>\x01", SHORT)]}),
        (False, {"type": "tag", "begin": "x", "content": {"type": "regex", "pattern": "."}, "end": ""}),
        (False, None),
    ],
)
def test_tags_that_tell_their_json_apart(told: bool, spec: Any) -> None:
    assert told_apart(spec) == told


def lanes_of(schema: Any) -> int:
    return widened(program_of(ir.JsonSchema(json.dumps(schema)))).count("_LANE_0:")


def one_of(*schemas: Any) -> dict[str, Any]:
    return {"anyOf": list(schemas)}


def holding(value: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": value}, "required": ["a"], "additionalProperties": False}


def test_strings_that_stand_beside_others_get_no_lane() -> None:
    word, longer = {"enum": ["abcdefghi"]}, {"type": "string", "maxLength": 9}
    assert lanes_of(SHORT) == lanes_of(holding(SHORT)) == lanes_of(one_of(SHORT, {"type": "integer"})) == 1
    assert lanes_of({"type": "array", "prefixItems": [SHORT, word], "items": False}) == 1
    assert lanes_of(one_of(holding(SHORT), holding({**SHORT, "title": "the same"}))) == 1
    assert lanes_of(one_of(SHORT, word)) == lanes_of(one_of(SHORT, longer)) == lanes_of(one_of(SHORT, word)) == 0
    assert lanes_of(one_of(holding(SHORT), holding(word))) == lanes_of(one_of(holding(SHORT), holding(longer))) == 0
    assert lanes_of({"type": "array", "items": SHORT, "contains": {"const": "abc"}}) == 0


def test_free_keys_get_a_lane_where_any_beginning_may_become_one() -> None:
    declared = {"type": "object", "properties": {"abc": {"type": "integer"}}, "additionalProperties": {"type": "null"}}
    assert lanes_of(declared) == 1
    assert lanes_of({**declared, "propertyNames": {"pattern": "b"}}) == 1
    assert lanes_of({**declared, "propertyNames": {"pattern": "^b"}}) == 0
    assert lanes_of({**declared, "propertyNames": {"maxLength": 9}}) == 0


def test_a_vocabulary_without_control_characters_has_lanes_too() -> None:
    tokens = [b"<eos>", b'"', b"a", b"ab", b"abc"]
    cache = GrammarCache(tokens, len(tokens), (0,))
    row, automaton = (
        np.zeros(1, np.uint32),
        cache.automaton(program_of(ir.JsonSchema('{"type": "string", "maxLength": 2}'))),
    )
    found = []
    for token in (1, 2, 2, 1):
        automaton.mask(row)
        found.append(bits(row))
        automaton.advance([token])
    assert found == [{1}, {1, 2, 3}, {1, 2}, {1}]
    assert automaton.complete


def test_a_program_without_marks_stays_as_it_is() -> None:
    program = program_of(ir.JsonSchema('{"type": "integer"}'))
    assert widened(program) == program and not marked(program)
