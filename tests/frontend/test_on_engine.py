"""Bad input through the language on the real engine: typed errors that say what to do, and nothing held afterwards.

The engine runs in a thread of this process and checks all its invariants after every step.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import ramet as rt
from ramet.frontend.backends.engine import Engine

from ..runtime.engines import WAIT, assert_clean, checked_engine, words

pytestmark = pytest.mark.model
CONTEXT, POOL = 256, 160


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with checked_engine(context=CONTEXT, kv_tokens=1024) as started:
        yield started


@pytest.fixture(scope="module")
def small_pool() -> Iterator[Engine]:
    with checked_engine(context=CONTEXT, kv_tokens=POOL) as started:
        yield started


def refused(engine: Engine, body: Callable[[rt.State], Any], error: type[BaseException], match: str) -> BaseException:
    """Run `body`, which fails with `error`; the engine is clean afterwards and still works."""
    run = rt.function(body).using(backend=engine)()
    with pytest.raises(error, match=match) as caught:
        run.result(WAIT)
    assert_clean(engine)
    assert rt.function(fine).using(backend=engine)().result(WAIT)
    assert_clean(engine)
    if isinstance(caught.value, rt.ProgramError):
        assert caught.value.where.startswith("test_on_engine.py:")
    return caught.value


def fine(s: rt.State) -> str:
    s += "Once"
    return s.gen(max_tokens=2, ignore_eos=True).get()


# -- lengths


def test_a_prompt_longer_than_the_context(engine: Engine) -> None:
    def body(s: rt.State) -> str:
        s += words(CONTEXT + 10)
        return s.gen(max_tokens=4).get()

    refused(engine, body, rt.ContextOverflow, rf"26\d tokens.*context.*{CONTEXT}; shorten the text")


def test_a_prompt_longer_than_the_pool(small_pool: Engine) -> None:
    def body(s: rt.State) -> str:
        s += words(POOL + 10)
        return s.gen(max_tokens=4).get()

    refused(small_pool, body, rt.ContextOverflow, rf"the KV pool of {POOL} tokens.*raise kv_tokens")


def test_a_text_far_beyond_the_context_is_refused_before_it_is_tokenised(engine: Engine) -> None:
    def body(s: rt.State) -> str:
        s += "a" * 1_000_000
        return s.gen(max_tokens=4).get()

    refused(engine, body, rt.ContextOverflow, "1000000 characters")


def test_generations_end_at_the_context(engine: Engine) -> None:
    @rt.function
    def fills(s: rt.State) -> tuple[str, int, int]:
        s += words(CONTEXT // 2)
        meta = s.gen(name="x", ignore_eos=True).meta
        return meta.finish_reason, meta.prompt_tokens + meta.completion_tokens, len(meta.tokens)

    reason, total, made = fills.using(backend=engine)().result(WAIT)
    assert (reason, total) == ("length", CONTEXT)
    assert made > 0
    assert_clean(engine)


def test_text_after_a_generation_that_filled_the_context(engine: Engine) -> None:
    def body(s: rt.State) -> str:
        s += "Once"
        s += rt.gen("x", ignore_eos=True)
        s += "and more text"
        return s.gen(max_tokens=1).get()

    refused(engine, body, rt.ContextOverflow, f"the context of {CONTEXT} tokens")


def test_branches_that_need_more_than_the_pool_take_turns(small_pool: Engine) -> None:
    @rt.function
    def wide(s: rt.State) -> list[str]:
        s += words(40)
        branches = s.fork(8)
        for i, branch in enumerate(branches):
            branch += f" {words(30)} {i}"
            branch += rt.gen("x", max_tokens=30, ignore_eos=True, temperature=0)
        return branches.gather("x")

    run = wide.using(backend=small_pool)()
    assert len(run.result(WAIT)) == 8
    assert run.usage.generated_tokens == 240
    assert_clean(small_pool)


def test_a_choice_longer_than_the_pool(small_pool: Engine) -> None:
    def body(s: rt.State) -> str:
        s += "Pick:"
        return s.select([words(POOL + 20), "no"]).get()

    refused(small_pool, body, rt.ContextOverflow, "prompt and choices")


# -- arguments


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_tokens": 0}, "max_tokens=0: .*leave it out"),
        ({"max_tokens": -1}, "max_tokens=-1"),
        ({"temperature": math.nan}, "temperature=nan: must be a finite number"),
        ({"temperature": math.inf}, "temperature=inf: must be a finite number"),
        ({"stop_token_ids": [10**6]}, "stop_token_ids: 1000000 is not a token id"),
        ({"logit_bias": {-4: 1.0}}, "logit_bias: -4 is not a token id"),
        ({"stop": ["\ud800"]}, "surrogate"),
    ],
)
def test_options_of_a_generation(engine: Engine, options: dict[str, Any], match: str) -> None:
    def body(s: rt.State) -> str:
        s += "Once"
        return s.gen(**options).get()

    refused(engine, body, rt.ConstraintError, match)


def test_an_empty_prompt(engine: Engine) -> None:
    refused(engine, lambda s: s.gen(max_tokens=2).get(), rt.ConstraintError, "empty prompt: append text or a role")
    refused(engine, lambda s: s.select(["a", "b"]).get(), rt.ConstraintError, "empty prompt")


def test_empty_choices(engine: Engine) -> None:
    def nothing(s: rt.State) -> str:
        s += "Pick:"
        return s.select([]).get()

    def blank(s: rt.State) -> str:
        s += "Pick:"
        return s.select(["a", ""]).get()

    refused(engine, nothing, rt.ConstraintError, "at least one")
    refused(engine, blank, rt.ConstraintError, "non-empty")


def test_an_unknown_role(engine: Engine) -> None:
    def body(s: rt.State) -> str:
        s.role("wizard", "Abracadabra")
        return s.gen(max_tokens=2).get()

    refused(engine, body, rt.ConstraintError, "role='wizard': must be one of system")


def test_a_piece_that_is_no_text(engine: Engine) -> None:
    def body(s: rt.State) -> str:
        s += 5  # type: ignore[arg-type]
        return s.gen(max_tokens=2).get()

    refused(engine, body, (rt.ConstraintError, TypeError), "5|int")  # type: ignore[arg-type]


def test_text_that_is_no_unicode(engine: Engine) -> None:
    def body(s: rt.State) -> str:
        s += "a \ud800 b"
        return s.gen(max_tokens=2).get()

    refused(engine, body, rt.ConstraintError, "surrogate")


# -- branches and variables


def test_a_joined_branch(engine: Engine) -> None:
    def body(s: rt.State) -> str:
        s += "Once"
        branches = s.fork(2)
        branches += rt.gen("x", max_tokens=2)
        branches.join()
        branches[0].gen(max_tokens=2)
        return ""

    refused(engine, body, rt.StateError, "this branch was joined")


def test_a_closed_branch(engine: Engine) -> None:
    def body(s: rt.State) -> str:
        s += "Once"
        with s.copy() as other:
            other.gen(max_tokens=2, name="x")
        return other.gen(max_tokens=2).get()

    refused(engine, body, rt.StateError, "copy whose block has ended")


def test_a_state_used_after_its_program(engine: Engine) -> None:
    kept: list[rt.State] = []

    @rt.function
    def body(s: rt.State) -> str:
        kept.append(s)
        return fine(s)

    body.using(backend=engine)().result(WAIT)
    with pytest.raises(rt.StateError, match="the program has ended"):
        kept[0].gen(max_tokens=2)
    assert_clean(engine)


def test_a_variable_that_does_not_exist(engine: Engine) -> None:
    def body(s: rt.State) -> str:
        s += "Once"
        s += rt.gen("tale", max_tokens=2)
        return s["tail"]  # type: ignore[no-any-return]

    refused(engine, body, rt.UnknownVariable, "no variable 'tail'; known: 'tale'")


def test_a_body_that_raises_while_branches_run(engine: Engine) -> None:
    def body(s: rt.State) -> str:
        s += "Once"
        branches = s.fork(4)
        branches += rt.gen("x", max_tokens=200, ignore_eos=True)
        s.gen(max_tokens=1).get()  # decodes in the same steps: the branches are under way now
        raise ZeroDivisionError("the body's own error")

    refused(engine, body, ZeroDivisionError, "the body's own error")


def test_a_branch_that_fails_while_siblings_run(engine: Engine) -> None:
    """It poisons what depends on it, and nothing else."""

    def body(s: rt.State) -> list[Any]:
        s += "Once"
        branches = s.fork(3)
        branches[0] += rt.gen("x", max_tokens=20, ignore_eos=True)
        branches[1] += words(CONTEXT + 5)
        branches[1] += rt.gen("x", max_tokens=20, ignore_eos=True)
        branches[2] += rt.gen("x", max_tokens=20, ignore_eos=True)
        good = [branches[0]["x"], branches[2]["x"]]
        assert all(good)
        return branches.gather("x")

    error = refused(engine, body, rt.ContextOverflow, f"context is {CONTEXT}|context of {CONTEXT}")
    assert isinstance(error, rt.ProgramError)
    assert error.branch.endswith("b1")

    @rt.function
    def tolerant(s: rt.State) -> list[Any]:
        s += "Once"
        branches = s.fork(3)
        branches[1] += words(CONTEXT + 5)
        branches += rt.gen("x", max_tokens=5, ignore_eos=True)
        return branches.gather("x", on_error="return")

    results = tolerant.using(backend=engine)().result(WAIT)
    assert [type(result) for result in results] == [str, rt.ContextOverflow, str]
    assert_clean(engine)


def test_a_value_of_a_failed_operation_poisons_who_refers_to_it(engine: Engine) -> None:
    @rt.function
    def body(s: rt.State) -> tuple[Any, Any]:
        s += "Once"
        a, b, c = s.fork(3)
        a += words(CONTEXT + 5)
        a += rt.gen("x", max_tokens=2)
        b += a.value("x")
        b += rt.gen("y", max_tokens=2)
        c += rt.gen("z", max_tokens=2, ignore_eos=True)
        return b.error(), c["z"]

    error, text = body.using(backend=engine)().result(WAIT)
    assert isinstance(error, rt.GenerationError)
    assert text
    assert_clean(engine)


def test_cancelled_while_branches_run(engine: Engine) -> None:
    @rt.function
    def endless(s: rt.State) -> list[str]:
        s += "Once"
        branches = s.fork(4)
        branches += rt.gen("x", max_tokens=CONTEXT - 10, ignore_eos=True)
        return branches.gather("x")

    run = endless.using(backend=engine)()
    next(event for event in run.events() if isinstance(event, rt.Token))
    run.cancel()
    with pytest.raises(rt.Aborted):
        run.result(WAIT)
    assert_clean(engine)


def test_a_program_that_takes_too_long(engine: Engine) -> None:
    go = threading.Event()

    @rt.function
    def slow(s: rt.State) -> Any:
        s += "Once"
        s.gen(max_tokens=2)
        return s.call(go.wait, WAIT).get()

    run = slow.using(backend=engine, timeout=0.05)()
    with pytest.raises(rt.ProgramTimeout, match=r"0\.05 s"):
        run.result(WAIT)
    go.set()
    assert_clean(engine)


def test_a_caught_failure_of_a_branch_has_stopped_its_siblings(engine: Engine) -> None:
    def body(s: rt.State) -> str:
        s += "Once"
        branches = s.fork(3)
        branches[1] += words(CONTEXT + 10)
        branches += rt.gen("tale", max_tokens=200, ignore_eos=True)
        with pytest.raises(rt.ContextOverflow):
            branches.gather("tale")
        s += " upon a time"
        return s.gen(max_tokens=2, ignore_eos=True).get()

    run = rt.function(body).using(backend=engine)()
    assert run.result(WAIT)
    assert run.usage.generated_tokens < 200
    assert_clean(engine)
