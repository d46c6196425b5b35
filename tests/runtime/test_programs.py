"""Programs on an engine, counted: what is shared, what decodes together, what a value is, what a lease keeps.

The engine runs in a thread of this process and checks all its invariants after every step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import ramet as rt
from ramet.frontend.backends.engine import Engine
from ramet.frontend.ir import Meta

from .by_the_book import greedy, tokenizer
from .engines import GREEDY, PROMPT, WAIT, assert_clean, checked_engine, words

pytestmark = pytest.mark.model
COLORS = ("Red", "Green", "Blue", "Black", "White", "Yellow", "Brown", "Orange")


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with checked_engine() as started:
        yield started


@pytest.fixture
def cold(engine: Engine) -> Engine:
    engine.flush_cache()
    return engine


# -- sharing


@pytest.mark.parametrize("more", [[""] * 8, [f" {color} is best" for color in COLORS]])
def test_a_fork_computes_no_prompt_token(cold: Engine, more: list[str]) -> None:
    @rt.function
    def alone(s: rt.State) -> Meta:
        s += PROMPT
        return s.gen(max_tokens=6, **GREEDY).meta

    @rt.function
    def forked(s: rt.State) -> list[Meta]:
        s += PROMPT
        branches = s.fork(more)
        for branch in branches:
            branch += branch.item
            branch += rt.gen("x", max_tokens=6, **GREEDY)
        return [branch.value("x").meta for branch in branches]

    one = alone.using(backend=cold)()
    prompt = one.result(WAIT).prompt_tokens
    cold.flush_cache()
    run = forked.using(backend=cold)()
    metas = run.result(WAIT)
    own = sum(meta.prompt_tokens - prompt for meta in metas)
    assert one.usage.computed_tokens == prompt + 5
    assert run.usage.computed_tokens == prompt + own + 8 * 5
    assert own == sum(len(tokenizer(cold).encode(text)) for text in more)
    assert sum(meta.prompt_tokens - meta.cached_tokens for meta in metas) == prompt + own
    assert (run.usage.calls, run.usage.generated_tokens) == (8, 48)


def test_branches_decode_in_the_same_steps(cold: Engine) -> None:
    @rt.function
    def forked(s: rt.State) -> list[Meta]:
        s += PROMPT
        branches = s.fork(8)
        branches += rt.gen("x", max_tokens=12, **GREEDY)
        return [branch.value("x").meta for branch in branches]

    run = forked.using(backend=cold)()
    metas = run.result(WAIT)
    assert len({(meta.first_step, meta.last_step) for meta in metas}) == 1
    assert metas[0].last_step - metas[0].first_step == 11
    assert run.usage.steps == 12


def test_a_warm_prefix_is_counted(cold: Engine) -> None:
    @rt.function
    def reads(s: rt.State, end: str) -> Meta:
        s += PROMPT + end
        return s.gen(max_tokens=2, **GREEDY).meta

    first = reads.using(backend=cold)(" One.").result(WAIT)
    second = reads.using(backend=cold)(" Two!").result(WAIT)
    assert first.cached_tokens == 0
    assert second.prompt_tokens - 3 <= second.cached_tokens < second.prompt_tokens


# -- values between branches


def test_a_value_of_one_branch_in_another_is_its_tokens(cold: Engine) -> None:
    @rt.function
    def crossed(s: rt.State) -> tuple[str, Meta, Meta]:
        s += "Once"
        a, b = s.fork(2)
        x = a.gen(max_tokens=7, name="x", seed=3, ignore_eos=True)
        b += " upon"
        b += x
        y = b.gen(max_tokens=5, **GREEDY)
        return x.get(), x.meta, y.meta

    text, x, y = crossed.using(backend=cold)().result(WAIT)
    ids = [*tokenizer(cold).encode("Once", start=True), *tokenizer(cold).encode(" upon"), *x.tokens]
    assert y.prompt_tokens == len(ids)
    assert text == tokenizer(cold).decode(list(x.tokens))
    assert list(y.tokens) == greedy(cold, ids, 5)


def test_join_modes(cold: Engine) -> None:
    @rt.function
    def joined(s: rt.State, mode: Any, template: str | None) -> tuple[str, list[str], Meta]:
        s += "Once"
        branches = s.fork(["one", "two"])
        for branch in branches:
            branch += f" ({branch.item}"
            branch += rt.gen("x", max_tokens=4, **GREEDY)
        branches.join(mode, template)
        meta = s.gen(max_tokens=3, **GREEDY).meta
        return s.text(), s["x"], meta

    text, xs, _ = joined.using(backend=cold)("gather_variable", None).result(WAIT)
    assert text.startswith("Once") and "(one" not in text and len(xs) == 2
    text, xs, meta = joined.using(backend=cold)("concat", None).result(WAIT)
    assert text.startswith(f"Once (one{xs[0]} (two{xs[1]}")
    assert meta.prompt_tokens == 1 + 2 * (len(tokenizer(cold).encode(" (one")) + 4)
    text, xs, _ = joined.using(backend=cold)("concat", "<{item}: {x}>").result(WAIT)
    assert text.startswith(f"Once<one: {xs[0]}><two: {xs[1]}>")
    assert_clean(cold)


def test_adopt_goes_on_from_the_branch(cold: Engine) -> None:
    @rt.function
    def best(s: rt.State) -> tuple[Meta, Meta, str]:
        s += PROMPT
        branches = s.fork(3)
        for i, branch in enumerate(branches):
            branch += rt.gen("x", max_tokens=6, seed=i, ignore_eos=True)
        branches.gather("x")
        s.adopt(branches[1])
        y = s.gen(max_tokens=3, **GREEDY)
        return branches[1].value("x").meta, y.meta, s.text()

    x, y, text = best.using(backend=cold)().result(WAIT)
    assert y.prompt_tokens == x.prompt_tokens + 6
    assert y.cached_tokens == y.prompt_tokens - 1
    assert text.startswith(PROMPT + tokenizer(cold).decode(list(x.tokens)))


def test_copy_leaves_the_state_alone(cold: Engine) -> None:
    @rt.function
    def copies(s: rt.State) -> tuple[str, str, Meta, Meta]:
        s += PROMPT
        with s.copy() as aside:
            x = aside.gen(max_tokens=4, name="x", **GREEDY)
        y = s.gen(max_tokens=4, **GREEDY)
        return s["x"], y.get(), x.meta, y.meta

    x, y, first, second = copies.using(backend=cold)().result(WAIT)
    assert x == y
    assert first.prompt_tokens == second.prompt_tokens


def test_n_samples_share_the_prompt(cold: Engine) -> None:
    @rt.function
    def samples(s: rt.State) -> tuple[list[str], list[Meta], str]:
        s += PROMPT
        values = s.gen(n=5, max_tokens=6, temperature=1.0, ignore_eos=True)
        return values.get(), values.metas(), s.text()

    run = samples.using(backend=cold, seed=1)()
    texts, metas, text = run.result(WAIT)
    assert len(set(texts)) == 5
    assert text == PROMPT + texts[0]
    prompt = metas[0].prompt_tokens
    assert run.usage.computed_tokens <= prompt + 5 * 6
    assert sum(meta.prompt_tokens - meta.cached_tokens for meta in metas) == prompt


# -- leases


def paused(engine: Engine, tool: Any) -> rt.Run[tuple[Meta, Meta]]:
    @rt.function
    def waits(s: rt.State) -> tuple[Meta, Meta]:
        s += PROMPT
        x = s.gen(max_tokens=4, **GREEDY)
        x.get()
        s += s.call(tool)
        y = s.gen(max_tokens=6, **GREEDY)
        return x.meta, y.meta

    return waits.using(backend=engine)()


def test_a_program_that_waits_in_python_keeps_its_kv(cold: Engine) -> None:
    seen: list[dict[str, int]] = []

    def tool() -> str:
        kv = cold.info()["kv"]
        assert isinstance(kv, dict)
        seen.append(kv)
        return " and so"

    x, y = paused(cold, tool).result(WAIT)
    assert y.cached_tokens == x.prompt_tokens + 4 - 1  # all but the token that was sampled last
    assert y.prompt_tokens - y.cached_tokens == 1 + len(tokenizer(cold).encode(" and so"))
    assert seen[0]["used"] == y.cached_tokens
    assert_clean(cold)


def test_a_lost_lease_costs_time_and_nothing_else(cold: Engine) -> None:
    _, alone = paused(cold, lambda: " and so").result(WAIT)
    with checked_engine(kv_tokens=160, context=160) as tiny:

        @rt.function
        def presses(s: rt.State, i: int) -> Meta:
            s += f"{i} " + words(110)
            return s.gen(max_tokens=8, **GREEDY).meta

        def tool() -> str:
            for i in range(3):
                presses.using(backend=tiny)(i).result(WAIT)
            return " and so"

        x, y = paused(tiny, tool).result(WAIT)
        assert y.cached_tokens < x.prompt_tokens  # it was taken from it
        assert y.tokens == alone.tokens
        info = tiny.info()
        assert isinstance(info["evicted_tokens"], int) and info["evicted_tokens"] > 0
