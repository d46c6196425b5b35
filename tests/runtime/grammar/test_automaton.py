"""Automata and their cache: what they refuse, how they fail closed, and that copies and prototypes share nothing."""

from __future__ import annotations

import random

import numpy as np
import pytest
from llguidance import LLParserLimits

from ramet.frontend.errors import EngineError
from ramet.runtime.grammar import automaton as automaton_module
from ramet.runtime.grammar.automaton import DEAD_END, HEADER, WORN_SECONDS, GrammarCache, LLAutomaton
from ramet.runtime.grammar.base import GrammarError
from ramet.runtime.grammar.tokens import EXACT, Lexicon, Speller

from .small import CONTROL, EMPTY, END2, EOS, EOS_IDS, TOKENS, VOCAB, bits, row

FREE = r"start: /(.|\n)*/"


@pytest.fixture
def cache() -> GrammarCache:
    return GrammarCache(TOKENS, VOCAB, EOS_IDS)


def begun(cache: GrammarCache, rules: str) -> LLAutomaton:
    return cache.automaton(HEADER + rules)


def mask_of(automaton: LLAutomaton) -> set[int]:
    out = row()
    automaton.mask(out)
    return bits(out)


def ids(text: str) -> list[int]:
    return list(text.encode())


def test_free_text_never_allows_control_empty_or_padding_tokens(cache: GrammarCache) -> None:
    found = mask_of(begun(cache, FREE))
    assert set(EOS_IDS) <= found
    assert not found & {CONTROL, EMPTY, *range(len(TOKENS), VOCAB + 70)}
    assert all(TOKENS[i] and b"\xff" not in TOKENS[i] for i in found - set(EOS_IDS))


def test_every_end_token_follows_where_the_text_may_end_and_only_there(cache: GrammarCache) -> None:
    automaton = begun(cache, "start: /ab?/")
    assert not mask_of(automaton) & set(EOS_IDS)
    automaton.advance(ids("a"))
    assert mask_of(automaton) == {ord("b"), EOS, END2}
    automaton.advance(ids("b"))
    assert mask_of(automaton) == {EOS, END2}


def test_the_row_is_written_in_full_even_when_it_was_dirty(cache: GrammarCache) -> None:
    out = row()
    begun(cache, "start: /a/").mask(out)
    assert bits(out) == {ord("a")}


@pytest.mark.parametrize("token", [EOS, CONTROL, EMPTY, len(TOKENS), VOCAB, 10_000, -1, ord("z")])
def test_a_token_that_is_not_allowed_changes_nothing(cache: GrammarCache, token: int) -> None:
    automaton = begun(cache, "start: /abab/")
    automaton.advance(ids("a"))
    before = mask_of(automaton)
    with pytest.raises(GrammarError, match=f"token {token} "):
        automaton.advance([ord("b"), token])
    assert mask_of(automaton) == before
    automaton.advance(ids("bab"))
    assert automaton.complete


def test_special_tokens_named_by_number_are_masked_all_the_same(cache: GrammarCache) -> None:
    automaton = begun(cache, f'start: <[{CONTROL}]> | "a"')
    assert mask_of(automaton) == {ord("a")}
    with pytest.raises(GrammarError, match=f"token {CONTROL} is no text"):
        automaton.advance([CONTROL])
    alone = begun(cache, f"start: <[{CONTROL}]>")
    with pytest.raises(GrammarError, match=DEAD_END):
        mask_of(alone)


def test_a_dead_end_fails_closed(cache: GrammarCache) -> None:
    automaton = begun(cache, r"start: /a[^\s\S]/ | /b/")
    out = row()
    automaton.mask(out)
    dead = begun(cache, r"start: /[^\s\S]+/")
    with pytest.raises(GrammarError, match=DEAD_END):
        dead.mask(out)
    assert not out.any()
    assert not dead.accepting
    assert not dead.complete


def test_rollback_undoes_also_what_completed_the_text(cache: GrammarCache) -> None:
    automaton = begun(cache, 'start: "ab" ("c" | "d")')
    automaton.advance([*ids("ab"), ord("c")])
    assert automaton.complete
    automaton.rollback(1)
    assert not automaton.complete
    assert mask_of(automaton) == {ord("c"), ord("d")}
    automaton.rollback(2)
    assert automaton.forced() == b"ab"
    with pytest.raises(GrammarError, match="cannot take 1 tokens back: 0 were followed"):
        automaton.rollback(1)
    automaton.rollback(0)
    automaton.advance(ids("abd"))
    assert automaton.complete


def test_text_that_goes_on_is_accepting_but_not_complete(cache: GrammarCache) -> None:
    automaton = begun(cache, "start: /a{1,2}/")
    assert (automaton.accepting, automaton.complete) == (False, False)
    automaton.advance(ids("a"))
    assert (automaton.accepting, automaton.complete) == (True, False)
    assert automaton.forced() == b""
    automaton.advance(ids("a"))
    assert (automaton.accepting, automaton.complete) == (True, True)
    assert automaton.forced() == b""


def test_a_text_is_complete_when_no_token_can_spell_what_may_follow() -> None:
    cache = GrammarCache([b"a", b"b", b""], 3, (2,))
    automaton = begun(cache, "start: /ac?/")
    automaton.advance([0])
    assert automaton.complete


def test_forced_bytes_may_end_inside_a_character(cache: GrammarCache) -> None:
    automaton = begun(cache, "start: /x(é|è)/")
    assert automaton.forced() == b"x\xc3"
    automaton.advance(list(b"x\xc3"))
    assert automaton.forced() == b""
    assert mask_of(automaton) == {0xA9, 0xA8}


def test_copies_go_their_own_way(cache: GrammarCache) -> None:
    one = begun(cache, "start: /ab|ac/")
    one.advance(ids("a"))
    other = one.copy()
    one.advance(ids("b"))
    assert one.complete
    assert mask_of(other) == {ord("b"), ord("c")}
    other.rollback(1)
    assert ord("a") in mask_of(other)
    assert one.complete


def test_prototypes_stay_at_the_beginning(cache: GrammarCache) -> None:
    first = begun(cache, "start: /abc/")
    first.advance(ids("abc"))
    assert begun(cache, "start: /abc/").forced() == b"abc"


def test_the_cache_is_bounded_and_recompiles_what_it_dropped() -> None:
    cache = GrammarCache(TOKENS, VOCAB, EOS_IDS, most_bytes=3 << 20)
    for i in range(20):
        assert begun(cache, f'start: "text {i}"').forced() == f"text {i}".encode()
        assert cache.bytes <= 3 << 20
    assert begun(cache, 'start: "text 0"').forced() == b"text 0"


def test_a_program_that_is_none_is_an_error_without_its_text(cache: GrammarCache) -> None:
    with pytest.raises(GrammarError, match="unknown name") as caught:
        begun(cache, "start: secret")
    assert "%llguidance" not in str(caught.value)


def spend(automaton: LLAutomaton, tokens: list[int], out: np.ndarray) -> None:
    for token in tokens:
        automaton.mask(out)
        automaton.advance([token])


def test_ambiguous_grammars_that_become_too_slow_end_with_an_error(cache: GrammarCache) -> None:
    automaton = begun(cache, 'start: a\na: a a | "a"')
    out = row()
    with pytest.raises(GrammarError, match="cannot be followed"):
        spend(automaton, [TOKENS.index(b"aaaa")] * 2000, out)
    with pytest.raises(GrammarError):
        automaton.mask(out)
    assert not out.any()


def test_a_limit_that_is_met_while_following_stays_met(cache: GrammarCache, monkeypatch: pytest.MonkeyPatch) -> None:
    automaton, out = begun(cache, "start: /[ab]*/"), row()
    automaton.mask(out)  # known from here on, as long as nothing happens
    automaton._slow = automaton_module.MOST_SLOW
    monkeypatch.setattr(automaton_module, "SLOW_SECONDS", -1.0)
    with pytest.raises(GrammarError, match="time per token"):
        automaton.advance(ids("a"))
    for _ in range(2):
        with pytest.raises(GrammarError, match="time per token"):
            automaton.mask(out)
        assert not out.any()


def small_lexers(patch: pytest.MonkeyPatch, states: int) -> None:
    """Lexers of few states."""
    patch.setattr(
        automaton_module,
        "parser_limits",
        lambda most=0: LLParserLimits(max_lexer_states=states, initial_lexer_fuel=100_000, step_lexer_fuel=100_000),
    )


MANY = "start: /(.*a.{12}b.*|[ab]*c.{9}d.*)/"  # a state for each set of places where an `a` stands


def test_texts_do_not_fail_for_what_others_made_of_their_lexer(monkeypatch: pytest.MonkeyPatch) -> None:
    small_lexers(monkeypatch, 1200)
    cache, out, rng = GrammarCache(TOKENS, VOCAB, EOS_IDS), row(), random.Random(4)
    begun(cache, MANY)
    (first,) = cache._prototypes.values()
    open_ones = [begun(cache, MANY) for _ in range(4)]
    texts: list[list[int]] = [[] for _ in open_ones]
    for _ in range(60):
        for automaton, text in zip(open_ones, texts, strict=True):
            automaton.mask(out)
            text.append(rng.choice(sorted(bits(out) & {*b"abcd"})))
            automaton.advance(text[-1:])
    assert [*cache._prototypes.values()] != [first]  # one lexer had not been enough
    fresh = begun(cache, MANY)
    fresh.mask(out)
    for automaton, text in zip(open_ones, texts, strict=True):
        alone = begun(cache, MANY)
        alone.advance(text)
        assert mask_of(alone) == mask_of(automaton)
        automaton.rollback(30)
        alone.rollback(30)
        assert mask_of(alone) == mask_of(automaton) == mask_of(automaton.copy())


def test_a_text_that_fills_lexers_by_itself_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    small_lexers(monkeypatch, 60)
    cache, out, rng = GrammarCache(TOKENS, VOCAB, EOS_IDS), row(), random.Random(4)
    automaton = begun(cache, MANY)
    with pytest.raises(GrammarError, match="too costly"):
        spend(automaton, [rng.choice(b"ab") for _ in range(500)], out)
    begun(cache, MANY).mask(out)  # others go on


def test_a_prototype_that_much_was_made_of_gives_way(cache: GrammarCache) -> None:
    begun(cache, "start: /abc/")
    (first,) = cache._prototypes.values()
    begun(cache, "start: /abc/")
    assert [*cache._prototypes.values()] == [first]
    before = cache.bytes
    first.worn = 2 * WORN_SECONDS
    assert cache.bytes > before
    assert begun(cache, "start: /abc/").forced() == b"abc"
    assert [*cache._prototypes.values()] != [first] and cache.bytes == before


def test_without_end_tokens_a_text_still_completes() -> None:
    cache = GrammarCache(TOKENS, VOCAB)
    automaton = begun(cache, "start: /ab/")
    automaton.advance(ids("ab"))
    assert automaton.complete
    with pytest.raises(GrammarError, match=DEAD_END):
        automaton.mask(row())


@pytest.mark.parametrize(("size", "words"), [(len(TOKENS), 10), (100, 4), (128, 4), (1000, 32)])
def test_masks_fit_the_models_vocabulary(size: int, words: int) -> None:
    cache = GrammarCache(TOKENS, size, (3,))
    out = np.zeros(words, np.uint32)
    begun(cache, "start: /(a|b|ab)c?/").mask(out)
    assert bits(out) == {i for i in range(min(size, len(TOKENS))) if TOKENS[i] in (b"a", b"b", b"ab", b"abc", b"bc")}


def test_bad_vocabularies_are_refused() -> None:
    with pytest.raises(EngineError, match="end tokens must be ids from 0 to 2"):
        Lexicon.of([b"a", b"b", b"c"], (3,))
    with pytest.raises(EngineError, match="no token that stands for text"):
        Lexicon.of([b"", b"\xff", b"<eos>"], (2,))


def test_the_fewest_tokens_are_counted() -> None:
    speller = Speller([b"a", b"b", b"ab", b"bcd", b"c", b""])
    assert speller.spell(b"abcd") == [0, 3]
    assert speller.fewest(b"abc") == 2
    assert speller.fewest(b"") == 0
    assert speller.spell(b"abx") is None
    assert speller.fewest(b"bcd" * EXACT) == EXACT
