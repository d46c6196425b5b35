"""Masks, forced bytes and ends, against brute force: random languages, every token of a small vocabulary tried."""

from __future__ import annotations

import json
import random
from itertools import product

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ramet.frontend import ir
from ramet.runtime.grammar.automaton import HEADER, GrammarCache, LLAutomaton
from ramet.runtime.grammar.base import GrammarError
from ramet.runtime.grammar.translate import translate

from . import small
from .small import EOS_IDS, NONE, TOKENS, VOCAB, Lang, allowed, alt, any_of, bits, cat, follow, nullable, star

CACHE = GrammarCache(TOKENS, VOCAB, EOS_IDS, most_bytes=1 << 20)
CHARACTERS = 'ab1é日€\n" '
Pair = tuple[str, Lang]  # a pattern and its language


def _repeated(inner: Pair, low: int, high: int | None) -> Pair:
    lang = small.NOTHING
    tail = star(inner[1]) if high is None else small.NOTHING
    for _ in range((high or low) - low):
        tail = alt(small.NOTHING, cat(inner[1], tail))
    for _ in range(low):
        lang = cat(lang, inner[1])
    bounds = f"{{{low},{'' if high is None else high}}}"
    return f"(?:{inner[0]}){bounds}", cat(lang, tail)


def _either(pairs: list[Pair]) -> Pair:
    lang = NONE
    for _, each in pairs:
        lang = alt(lang, each)
    return "(?:" + "|".join(p for p, _ in pairs) + ")", lang


def _together(pairs: list[Pair]) -> Pair:
    lang = small.NOTHING
    for _, each in reversed(pairs):
        lang = cat(each, lang)
    return "".join(p for p, _ in pairs), lang


LITERALS = st.text(CHARACTERS, min_size=1, max_size=4).map(lambda t: (t, small.text(t)))
CLASSES = st.sets(st.sampled_from(CHARACTERS), min_size=1).map(
    lambda s: ("[" + "".join(sorted(s)) + "]", any_of(sorted(s)))
)
PATTERNS = st.recursive(
    LITERALS | CLASSES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(_either),
        st.lists(inner, min_size=1, max_size=3).map(_together),
        st.builds(_repeated, inner, st.integers(0, 2), st.sampled_from([None, 2, 3])),
    ),
    max_leaves=6,
)


def _program(constraint: ir.Constraint) -> str:
    return HEADER + translate(constraint).lark


def _check(automaton: LLAutomaton, lang: Lang) -> set[int]:
    """Everything that an automaton says of one place. Gives the tokens that may follow."""
    out = small.row()
    automaton.mask(out)
    found = bits(out)
    assert found == allowed(lang)
    assert automaton.accepting == nullable(lang)
    assert automaton.complete == (nullable(lang) and not small.nexts(lang))
    assert automaton.forced()[:64] == small.forced(lang)
    return found - set(EOS_IDS)


def _walk(constraint: ir.Constraint, lang: Lang, seed: int) -> None:
    draw = random.Random(seed)
    automaton = CACHE.automaton(_program(constraint))
    places = [lang]
    taken: list[int] = []
    for _ in range(8):
        follows = _check(automaton, places[-1])
        if not follows:
            break
        taken.append(draw.choice(sorted(follows)))
        automaton.advance(taken[-1:])
        places.append(follow(places[-1], TOKENS[taken[-1]]))
    _check(automaton, places[-1])
    back = draw.randrange(len(taken) + 1)
    twin = automaton.copy()
    twin.rollback(back)
    _check(twin, places[len(taken) - back])
    twin.advance(taken[len(taken) - back :])
    _check(twin, places[-1])
    _check(automaton, places[-1])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(PATTERNS, st.integers(0, 1 << 30))
@example(("a{0,3}b", cat(_repeated(("a", small.text("a")), 0, 3)[1], small.text("b"))), 1)
@example(("日|€", any_of("日€")), 2)
def test_masks_of_patterns_are_those_of_brute_force(pair: Pair, seed: int) -> None:
    pattern, lang = pair
    _walk(ir.Regex(pattern), lang, seed)


SCALARS = st.one_of(
    st.booleans().map(lambda b: ({"const": b}, [b])),
    st.none().map(lambda n: ({"type": "null"}, [n])),
    st.just(({"type": "boolean"}, [True, False])),
    st.lists(
        st.sampled_from([1, 12, 123, "a", "ab", "b1", "é", None, True, ""]), min_size=1, max_size=3, unique_by=repr
    ).map(lambda values: ({"enum": values}, values)),
)


def _object(members: list[tuple[dict[str, object], list[object]]]) -> tuple[dict[str, object], list[object]]:
    names = ["a", "ab", "b1"][: len(members)]
    schema = {
        "type": "object",
        "properties": {n: s for n, (s, _) in zip(names, members, strict=True)},
        "required": names,
        "additionalProperties": False,
    }
    return schema, [dict(zip(names, each, strict=True)) for each in product(*(v for _, v in members))]


def _array(member: tuple[dict[str, object], list[object]]) -> tuple[dict[str, object], list[object]]:
    schema = {"type": "array", "items": member[0], "minItems": 1, "maxItems": 2}
    return schema, [[x] for x in member[1]] + [[x, y] for x in member[1] for y in member[1]]


SCHEMAS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, min_size=1, max_size=3).map(_object) | inner.map(_array),
    max_leaves=4,
).filter(lambda pair: len(pair[1]) <= 200)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(SCHEMAS, st.integers(0, 1 << 30))
def test_masks_of_finite_schemas_are_those_of_their_texts(
    pair: tuple[dict[str, object], list[object]], seed: int
) -> None:
    schema, values = pair
    texts = sorted({json.dumps(v, ensure_ascii=False) for v in values})
    automaton = CACHE.automaton(_program(ir.JsonSchema(json.dumps(schema))))
    draw, said = random.Random(seed), b""
    for _ in range(500):
        left = [t.encode()[len(said) :] for t in texts if t.encode().startswith(said)]
        tokens = {i for i, t in enumerate(TOKENS) if t and any(each.startswith(t) for each in left)}
        out = small.row()
        automaton.mask(out)
        assert bits(out) == tokens | (set(EOS_IDS) if b"" in left else set())
        assert automaton.accepting == (b"" in left)
        assert automaton.complete == (left == [b""])
        assert automaton.forced() == _common(left)
        if automaton.complete:
            return
        token = draw.choice(sorted(tokens))
        automaton.advance([token])
        said += TOKENS[token]
    pytest.fail("a finite text never ended")


def _common(texts: list[bytes]) -> bytes:
    """What all of them begin with."""
    low, high = min(texts), max(texts)
    same = next((i for i, (x, y) in enumerate(zip(low, high, strict=False)) if x != y), min(len(low), len(high)))
    return low[:same]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.text(CHARACTERS, min_size=1, max_size=5), min_size=1, max_size=8, unique=True), st.integers(0, 1 << 30)
)
def test_masks_of_choices_are_those_of_their_texts(choices: list[str], seed: int) -> None:
    _walk(ir.Choices(tuple(choices)), any_of(sorted(choices)), seed)


@settings(max_examples=60, deadline=None)
@given(PATTERNS, st.lists(st.integers(-3, VOCAB + 40), max_size=6))
def test_what_a_mask_forbids_cannot_be_followed(pair: Pair, tokens: list[int]) -> None:
    pattern, lang = pair
    automaton = CACHE.automaton(_program(ir.Regex(pattern)))
    for token in tokens:
        if token in allowed(lang) - set(EOS_IDS):
            automaton.advance([token])
            lang = follow(lang, TOKENS[token])
        else:
            with pytest.raises(GrammarError):
                automaton.advance([token])
        _check(automaton, lang)
