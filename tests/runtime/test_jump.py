"""Forced text as tokens: both edges, and the tokeniser's own tokens for whole texts."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from ramet.frontend.ir import Jump, Sampling
from ramet.runtime import messages as m
from ramet.runtime.grammar.automaton import HEADER, GrammarCache
from ramet.runtime.grammar.base import Automaton, GrammarError
from ramet.runtime.jump import GUESSES, Run, allow, run
from ramet.runtime.models import hub
from ramet.runtime.models.tokenizer import load_tokenizer
from ramet.runtime.sequence import Generating
from ramet.runtime.text import Tokenizer

SAMPLE = Path(__file__).parents[1] / "data" / "grammar" / "schemas.jsonl"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(hub.resolve("random:tiny"))


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> GrammarCache:
    return GrammarCache(tokenizer, tokenizer.vocab_size, tokenizer.eos)


def task(automaton: Automaton, jump: Jump = "canonical", **sampling: object) -> Generating:
    op = m.Generate("0.1", "0", Sampling(**sampling), 0, "grammar", jump)  # type: ignore[arg-type]
    made = Generating(op, 1, 1 << 20, eos=(), now=0.0)
    made.automaton = automaton
    return made


@dataclass
class Case:
    """An op that stands behind some text."""

    tokenizer: Tokenizer
    automaton: Automaton
    value: list[int] = field(default_factory=list)

    def run(self, *, fresh: bool = True, jump: Jump = "canonical") -> Run:
        return run(task(self.automaton, jump), self.value, self.tokenizer, fresh=fresh)

    def spell(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens)


def behind(tokenizer: Tokenizer, grammars: GrammarCache, pattern: str, *texts: str) -> Case:
    """Behind texts that were each sampled as one token."""
    automaton = grammars.automaton(f"{HEADER}start: /{pattern}/\n")
    value = []
    for text in texts:
        tokens = tokenizer.encode(text)
        assert len(tokens) == 1, f"{text!r} is no token"
        value += tokens
    automaton.advance(value)
    return Case(tokenizer, automaton, value)


def test_nothing_is_known_where_there_is_a_choice(tokenizer: Tokenizer, grammars: GrammarCache) -> None:
    assert behind(tokenizer, grammars, "[a-z]+").run() == Run()
    assert behind(tokenizer, grammars, "a+", "a").run() == Run()  # the end is a choice too


def test_the_right_edge_is_guessed(tokenizer: Tokenizer, grammars: GrammarCache) -> None:
    case = behind(tokenizer, grammars, "the answer is [a-z]+")
    known = case.run()
    assert case.spell(known.tokens) == "the answer is"
    assert case.spell(known.guess) == " "  # of " yes", or of " no"
    assert case.automaton.forced() == b" "  # the automaton stands behind the tokens


def test_the_whole_rest_is_known_when_nothing_follows(tokenizer: Tokenizer, grammars: GrammarCache) -> None:
    case = behind(tokenizer, grammars, "[ab] is the answer", "a")
    known = case.run()
    assert (case.spell(known.tokens), known.guess, known.instead) == (" is the answer", [], False)
    assert case.automaton.complete


def test_the_left_edge_is_healed_as_long_as_nobody_was_told(tokenizer: Tokenizer, grammars: GrammarCache) -> None:
    case = behind(tokenizer, grammars, r'(\[|\{)"name": [0-9]', "{")
    known = case.run(fresh=True)
    assert known.instead and known.tokens[0] == tokenizer.encode('{"')[0]
    told = behind(tokenizer, grammars, r'(\[|\{)"name": [0-9]', "{")
    kept = told.run(fresh=False)
    assert not kept.instead and told.spell(kept.tokens + kept.guess) == '"name": '


def test_a_token_is_not_replaced_by_a_guess(tokenizer: Tokenizer, grammars: GrammarCache) -> None:
    case = behind(tokenizer, grammars, "(wo|xy)rd[a-z]*", "wo")
    known = case.run()
    assert not known.instead and known.tokens == []
    assert case.spell(known.guess) == "rd"
    assert case.automaton.forced() == b"rd"


def test_exact_runs_are_guesses_alone(tokenizer: Tokenizer, grammars: GrammarCache) -> None:
    case = behind(tokenizer, grammars, r'(\[|\{)"name": [0-9]', "{")
    known = case.run(jump="exact")
    assert not known.tokens and not known.instead and 0 < len(known.guess) <= GUESSES
    assert case.spell(known.guess) == '"name": '
    assert behind(tokenizer, grammars, "abc").run(jump="off") == Run()


def test_forced_text_may_end_inside_a_character(tokenizer: Tokenizer, grammars: GrammarCache) -> None:
    case = behind(tokenizer, grammars, "[äö]")  # their first bytes are equal
    assert case.automaton.forced() == "ä".encode()[:1]
    assert case.run() == Run()


def test_a_value_may_end_inside_a_character(tokenizer: Tokenizer, grammars: GrammarCache) -> None:
    automaton = grammars.automaton(f"{HEADER}start: /[漢字]+ kanji/\n")
    raw = [t for t in range(tokenizer.vocab_size) if tokenizer.token_bytes(t) == "漢".encode()[:1]]
    automaton.advance(raw[:1])
    case = Case(tokenizer, automaton, raw[:1])
    known = case.run()
    assert not known.instead
    assert b"".join(map(tokenizer.token_bytes, [*raw[:1], *known.tokens, *known.guess])).startswith(b"\xe6")


def test_a_mask_behind_guesses_leaves_the_automaton_where_it_was(tokenizer: Tokenizer, grammars: GrammarCache) -> None:
    case = behind(tokenizer, grammars, "the answer is (yes|no)")
    op = task(case.automaton)
    op.guess = tokenizer.encode("the answer is")
    row = np.zeros(-(-tokenizer.vocab_size // 32), np.uint32)
    allow(op, len(op.guess), row, ())
    bits = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))
    assert {case.spell([int(t)]) for t in bits} >= {" ", " yes", " no"}
    assert case.automaton.forced().startswith(b"the answer is ")


def test_a_mask_that_cannot_be_made_allows_nothing(tokenizer: Tokenizer, grammars: GrammarCache) -> None:
    case = behind(tokenizer, grammars, "yes")
    op = task(case.automaton)
    op.guess = tokenizer.encode("no")
    row = np.full(-(-tokenizer.vocab_size // 32), 0xFFFFFFFF, np.uint32)
    allow(op, 1, row, ())
    assert not row.any() and op.trouble


def test_end_tokens_are_not_allowed_where_they_are_ignored(tokenizer: Tokenizer, grammars: GrammarCache) -> None:
    case = behind(tokenizer, grammars, "[0-9]+", "7")
    rows = []
    for ignored in (False, True):
        row = np.zeros(-(-tokenizer.vocab_size // 32), np.uint32)
        allow(task(case.automaton, ignore_eos=ignored, max_tokens=5), 0, row, tokenizer.eos)
        rows.append(row)
    changed = np.flatnonzero(np.unpackbits((rows[0] ^ rows[1]).view(np.uint8), bitorder="little"))
    assert changed.tolist() == sorted(tokenizer.eos)


def followed(tokenizer: Tokenizer, automaton: Automaton, text: str) -> tuple[list[int], int]:
    """The tokens of a text whose free parts are sampled as the tokeniser would write them, and how many were sampled;
    `GrammarError` where the grammar does not take it."""
    target = tokenizer.encode(text)
    op, value, sampled = task(automaton), list[int](), 0
    while True:
        known = run(op, value, tokenizer, fresh=sampled > 0)
        value = [*(value[:-1] if known.instead else value), *known.tokens]
        for guess in known.guess:
            if value != target[: len(value)] or target[len(value) : len(value) + 1] != [guess]:
                break
            automaton.advance([guess])
            value.append(guess)
        if automaton.complete or value == target:
            return value, sampled
        if value != target[: len(value)]:
            raise AssertionError(f"{tokenizer.decode(value)!r} is not written as in {text!r}")
        token = target[len(value)]
        automaton.advance([token])
        value.append(token)
        sampled += 1


def test_jumps_keep_the_tokenisation_of_whole_texts(tokenizer: Tokenizer, grammars: GrammarCache) -> None:
    texts = tokens = sampled = 0
    options = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    for line in SAMPLE.read_text().splitlines():
        case = json.loads(line)
        for instance in case["valid"]:
            text = json.dumps(instance, ensure_ascii=False)
            try:
                program = f"{HEADER}start: %json {json.dumps({**case['schema'], 'x-guidance': options})}\n"
                value, drawn = followed(tokenizer, grammars.automaton(program), text)
            except GrammarError:  # what this spelling of the schema does not take
                continue
            assert value == tokenizer.encode(text)
            texts, tokens, sampled = texts + 1, tokens + len(value), sampled + drawn
    assert texts > 40
    assert sampled < 0.9 * tokens
