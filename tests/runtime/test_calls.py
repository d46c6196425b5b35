"""Calls on an engine, held against a float64 forward pass: choices, stops, biases, logprobs, seeds, streams.

The engine runs in a thread of this process and checks all its invariants after every step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import ramet as rt
from ramet.frontend.backends.engine import Engine
from ramet.frontend.ir import Meta

from .by_the_book import forward, greedy, tokenizer
from .engines import GREEDY, PROMPT, WAIT, assert_clean, checked_engine

pytestmark = pytest.mark.model
METHODS = ("token_length_normalized", "greedy_token_selection", "unconditional_likelihood_normalized")
CHOICES = [" yes", " yes, of course", " no", " no way", " it depends on the weather"]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with checked_engine() as started:
        yield started


@pytest.fixture
def cold(engine: Engine) -> Engine:
    engine.flush_cache()
    return engine


# -- choices


def scored(prompt: list[int], choice: list[int]) -> list[float]:
    table = forward([*prompt, *choice])
    return [float(table[len(prompt) - 1 + i, token]) for i, token in enumerate(choice)]


def expected(engine: Engine, method: str, prompt: list[int]) -> tuple[list[list[float]], list[float] | None, int]:
    """Logprobs of each choice's tokens, the scores where they are a mean, and the winner, all in float64."""
    t = tokenizer(engine)
    choices = [t.encode(choice) for choice in CHOICES]
    rows = [scored(prompt, choice) for choice in choices]
    means = [float(np.mean(row)) for row in rows]
    if method == "token_length_normalized":
        return rows, means, int(np.argmax(means))
    if method == "unconditional_likelihood_normalized":
        start = [t.bos] if t.bos is not None else list(t.eos[:1])
        gains = [float(np.mean(np.subtract(r, scored(start, c)))) for r, c in zip(rows, choices, strict=True)]
        return rows, gains, int(np.argmax(gains))
    alive = list(range(len(rows)))
    for step in range(max(map(len, rows))):
        best = max(rows[c][step] if step < len(rows[c]) else means[c] for c in alive)
        alive = [c for c in alive if (rows[c][step] if step < len(rows[c]) else means[c]) == best]
    return rows, None, alive[0]


@pytest.mark.parametrize("method", METHODS)
def test_select_on_forks_equals_a_float64_forward(cold: Engine, method: Any) -> None:
    questions = [" Is it raining?", " Will you come with us?", " Are trees alive?"]

    @rt.function
    def judge(s: rt.State) -> list[tuple[str, Meta]]:
        s += PROMPT
        branches = s.fork(questions)
        for branch in branches:
            branch += branch.item
            branch.select(CHOICES, name="answer", method=method)
        return [(branch["answer"], branch.value("answer").meta) for branch in branches]

    results = judge.using(backend=cold)().result(WAIT)
    for question, (answer, meta) in zip(questions, results, strict=True):
        prompt = [*tokenizer(cold).encode(PROMPT, start=True), *tokenizer(cold).encode(question)]
        assert meta.prompt_tokens == len(prompt)
        rows, scores, winner = expected(cold, method, prompt)
        for own, row in zip(meta.choice_logprobs, rows, strict=True):
            assert own == pytest.approx(row, abs=2e-4)
        assert answer == CHOICES[winner]
        assert scores is None or meta.scores == pytest.approx(scores, abs=2e-4)
    assert_clean(cold)


def test_the_text_goes_on_after_a_choice(cold: Engine) -> None:
    @rt.function
    def chooses(s: rt.State) -> tuple[Meta, str]:
        s += PROMPT
        answer = s.select(CHOICES)
        return s.gen(max_tokens=5, **GREEDY).meta, answer.get()

    meta, answer = chooses.using(backend=cold)().result(WAIT)
    ids = [*tokenizer(cold).encode(PROMPT, start=True), *tokenizer(cold).encode(answer)]
    assert meta.prompt_tokens == len(ids)
    assert list(meta.tokens) == greedy(cold, ids, 5)


# -- stopping


def sampled(engine: Engine, seed: int, count: int = 40) -> tuple[list[int], str]:
    """What the model says under this seed."""

    @rt.function
    def story(s: rt.State) -> Meta:
        s += "Once"
        return s.gen(max_tokens=count, seed=seed, ignore_eos=True).meta

    tokens = list(story.using(backend=engine)().result(WAIT).tokens)
    return tokens, tokenizer(engine).decode(tokens)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("across", [False, True])
def test_a_stop_string_ends_the_text_and_the_sequence_there(cold: Engine, seed: int, across: bool) -> None:
    t = tokenizer(cold)
    tokens, text = sampled(cold, seed)
    border = len(t.decode(tokens[:9]))
    stop = text[border - 1 : border + 2] if across else text[border + 1 : border + 4]
    at = text.index(stop)

    @rt.function
    def story(s: rt.State) -> tuple[str, Meta, Meta, str]:
        s += "Once"
        x = s.gen(max_tokens=40, seed=seed, ignore_eos=True, stop=stop, logprobs=0)
        y = s.gen(max_tokens=4, **GREEDY)
        return x.get(), x.meta, y.meta, s.text()

    run = story.using(backend=cold)()
    value, x, y, whole = run.result(WAIT)
    assert value == text[:at]
    assert (x.finish_reason, x.matched) == ("stop", stop)
    assert t.decode(list(x.tokens)) == value
    assert whole.startswith("Once" + value)
    ids = [*t.encode("Once", start=True), *x.tokens]
    assert y.prompt_tokens == len(ids)
    assert list(y.tokens) == greedy(cold, ids, 4)
    assert len(x.logprobs) <= len(x.tokens)
    assert [p.token for p in x.logprobs] == tokens[: len(x.logprobs)]
    assert x.mean_logprob == pytest.approx(float(np.mean([p.logprob for p in x.logprobs])))
    assert "".join(e.text for e in run.events() if isinstance(e, rt.Token) and e.op == "0.1") == value
    assert_clean(cold)


def test_a_stop_string_that_does_not_come_takes_nothing_back(cold: Engine) -> None:
    tokens, text = sampled(cold, 3)

    @rt.function
    def story(s: rt.State) -> tuple[str, Meta]:
        s += "Once"
        x = s.gen(max_tokens=40, seed=3, ignore_eos=True, stop=[text[-3:] + "never", "\u2603\u2603"])
        return x.get(), x.meta

    value, meta = story.using(backend=cold)().result(WAIT)
    assert (value, list(meta.tokens), meta.finish_reason, meta.matched) == (text, tokens, "length", None)


def test_stop_tokens_and_min_tokens(cold: Engine) -> None:
    tokens, _ = sampled(cold, 5)
    stop = tokens[4]
    first = tokens.index(stop)

    @rt.function
    def story(s: rt.State, least: int) -> Meta:
        s += "Once"
        return s.gen(max_tokens=40, seed=5, ignore_eos=True, stop_token_ids=[stop], min_tokens=least).meta

    meta = story.using(backend=cold)(0).result(WAIT)
    assert (list(meta.tokens), meta.finish_reason, meta.matched) == (tokens[:first], "stop", stop)
    assert meta.completion_tokens == first
    meta = story.using(backend=cold)(20).result(WAIT)
    assert stop not in meta.tokens[:20]
    assert len(meta.tokens) >= 20


def test_the_end_token_ends_unless_it_is_ignored(cold: Engine) -> None:
    [eos, *_] = tokenizer(cold).eos

    @rt.function
    def story(s: rt.State, ignore: bool, least: int) -> Meta:
        s += "Once"
        return s.gen(max_tokens=6, logit_bias={eos: 100}, ignore_eos=ignore, min_tokens=least).meta

    story = story.using(backend=cold)
    ended = story(False, 0).result(WAIT)
    assert (ended.tokens, ended.finish_reason, ended.matched) == ((), "stop", eos)
    later = story(False, 3).result(WAIT)
    assert (len(later.tokens), later.finish_reason) == (3, "stop")
    ignored = story(True, 0).result(WAIT)
    assert (ignored.tokens, ignored.finish_reason) == ((eos,) * 6, "length")


# -- sampling


def test_biases_forbid_and_force(cold: Engine) -> None:
    @rt.function
    def one(s: rt.State, bias: dict[int, float], temperature: float) -> tuple[int, ...]:
        s += "Once"
        return s.gen(max_tokens=3, temperature=temperature, ignore_eos=True, logit_bias=bias).meta.tokens

    one = one.using(backend=cold, seed=4)
    free = one({}, 0).result(WAIT)
    assert free[0] not in one({free[0]: -100}, 0).result(WAIT)
    assert one({777: 100}, 0).result(WAIT) == (777, 777, 777)
    assert one({777: 100}, 1.0).result(WAIT) == (777, 777, 777)


def test_logprobs_are_the_models_own(cold: Engine) -> None:
    @rt.function
    def story(s: rt.State) -> Meta:
        s += PROMPT
        return s.gen(max_tokens=8, temperature=0.7, top_p=0.8, seed=2, logprobs=5, ignore_eos=True).meta

    meta = story.using(backend=cold)().result(WAIT)
    prompt = tokenizer(cold).encode(PROMPT, start=True)
    table = forward([*prompt, *meta.tokens])
    assert [p.token for p in meta.logprobs] == list(meta.tokens)
    for i, logprob in enumerate(meta.logprobs):
        row = table[len(prompt) - 1 + i]
        assert logprob.logprob == pytest.approx(float(row[logprob.token]), abs=2e-4)
        best = [p for _, _, p in logprob.top]
        assert best == sorted(best, reverse=True)
        assert best == pytest.approx(row.topk(5).values.tolist(), abs=2e-4)
        assert all(text == tokenizer(cold).decode([token]) for token, text, _ in logprob.top)
    assert meta.mean_logprob == pytest.approx(float(np.mean([p.logprob for p in meta.logprobs])))


def test_greedy_is_top_1_and_equals_a_float64_forward(cold: Engine) -> None:
    @rt.function
    def story(s: rt.State, **options: Any) -> tuple[int, ...]:
        s += PROMPT
        return s.gen(max_tokens=10, ignore_eos=True, **options).meta.tokens

    story = story.using(backend=cold)
    cool = story(temperature=0).result(WAIT)
    assert story(top_k=1, temperature=1.5).result(WAIT) == cool
    assert story(min_p=1.0, temperature=0.9).result(WAIT) == cool
    assert list(cool) == greedy(cold, tokenizer(cold).encode(PROMPT, start=True), 10)


def test_a_seed_is_of_the_branch_and_not_of_the_company(cold: Engine) -> None:
    @rt.function
    def stories(s: rt.State, n: int) -> list[str]:
        s += "Once"
        branches = s.fork(n)
        branches += rt.gen("x", max_tokens=8, ignore_eos=True)
        return branches.gather("x")

    stories = stories.using(backend=cold, seed=9)
    six = stories(6).result(WAIT)
    assert len(set(six)) == 6
    assert stories(2).result(WAIT) == six[:2]
    assert stories.using(seed=10)(2).result(WAIT) != six[:2]


def test_streamed_pieces_are_the_value(cold: Engine) -> None:
    @rt.function
    def story(s: rt.State) -> tuple[str, int]:
        s += "Once"
        x = s.gen(name="x", max_tokens=60, ignore_eos=True, temperature=1.6)
        return x.get(), len(x.meta.tokens)

    run = story.using(backend=cold, seed=21)()
    pieces = list(run.text_iter("x"))
    value, count = run.result(WAIT)
    assert "".join(pieces) == value
    assert 10 < len(pieces) <= count
    assert "\ufffd" not in "".join(pieces[:-1])
