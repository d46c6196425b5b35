"""The combinators on the real engine with a small random model, whose invariants are checked after every step."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

import ramet as rt
from ramet.frontend.backends.engine import Engine

from ..runtime.engines import WAIT, assert_clean, checked_engine

pytestmark = pytest.mark.model
SEEDS = 200
STOPS = ["k", "ch", "er", "s"]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with checked_engine(dtype="auto", kv_tokens=8192) as started:
        yield started


def parity(text: str) -> int:
    return len(text) % 2


@rt.function(temperature=1.0, ignore_eos=True)
def voting(s: rt.State, early_stop: bool, n: int = 5) -> tuple[str, str, str]:
    """Attempts of very different lengths, two answers; and what is said after the vote."""
    s += "Once upon a time"
    answer = rt.vote(s, lambda b: b.gen(max_tokens=12, stop=STOPS), n=n, key=parity, early_stop=early_stop)
    s += " and"
    return answer, s.gen(max_tokens=2).get(), s.text()


def test_early_votes_agree_with_full_ones_and_cost_less(engine: Engine) -> None:
    results, tokens = [], []
    for early_stop in (True, False):
        batch = voting.using(backend=engine).batch([(early_stop,)] * SEEDS, seed=11)
        results.append(batch.result())
        tokens.append(sum(run.usage.generated_tokens for run in batch.runs))
        assert_clean(engine)
    early, full = results
    assert early == full
    assert tokens[0] < tokens[1]
    assert len(set(full)) > SEEDS / 2, "the seeds differ"


@rt.function(temperature=1.0, ignore_eos=True)
async def voting_later(s: rt.State) -> str:
    s += "Once upon a time"
    return await rt.avote(s, lambda b: b.gen(max_tokens=12, stop=STOPS), n=5, key=parity)


def test_the_async_form_agrees(engine: Engine) -> None:
    for seed in range(2):
        [want] = voting.using(backend=engine).batch([(False,)], seed=seed).result()
        [got] = voting_later.using(backend=engine).batch([()], seed=seed).result()
        assert got == want[0]


def test_a_vote_that_one_answer_cannot_lose_stops_the_others(engine: Engine) -> None:
    """The attempts that are still to come have a thousand tokens to go: they are stopped long before."""

    def attempt(branch: rt.State) -> rt.Value[str]:
        tokens = 2 if branch.item < 3 else 900
        return branch.gen(max_tokens=tokens, ignore_eos=True)

    @rt.function
    def body(s: rt.State) -> str:
        s += "Once"
        return rt.vote(s, attempt, n=4, key=lambda text: "same")

    run = body.using(backend=engine)()
    run.result(WAIT)
    assert run.usage.generated_tokens < 900
    assert_clean(engine)


def test_best_of_takes_the_surest_and_goes_on_from_it(engine: Engine) -> None:
    @rt.function(temperature=1.0, seed=3)
    def body(s: rt.State) -> tuple[rt.Best[str], list[float], str]:
        s += "Once upon a time"
        values = []

        def attempt(branch: rt.State) -> rt.Value[str]:
            values.append(branch.gen(max_tokens=6, logprobs=0, ignore_eos=True))
            return values[-1]

        best = rt.best_of(s, attempt, n=6)
        means = [value.meta.mean_logprob for value in values]
        assert all(mean is not None for mean in means)
        return best, [mean for mean in means if mean is not None], s.text()

    best, means, text = body.using(backend=engine)().result(WAIT)
    assert best.index == means.index(max(means))
    assert math.isclose(best.score, max(means), rel_tol=1e-6)
    assert text == "Once upon a time" + best.value
    assert len(set(means)) == 6
    assert_clean(engine)


def test_beam_ranks_by_the_mean_over_the_whole_path(engine: Engine) -> None:
    steps: dict[str, list[float]] = {}

    def step(branch: rt.State, level: int) -> rt.Value[str]:
        return branch.gen(name=f"step{level}", max_tokens=2 + level, logprobs=0, ignore_eos=True)

    @rt.function(temperature=1.0, seed=5)
    def body(s: rt.State) -> tuple[rt.BestPath[str], str]:
        s += "Once upon a time"
        return rt.beam(s, step, n=3, width=2, depth=3), s.text()

    run = body.using(backend=engine)()
    found, text = run.result(WAIT)
    for event in run.events():
        if isinstance(event, rt.Finished):
            steps[event.seq] = [p.logprob for p in event.meta.logprobs]
    paths = [
        [logprob for seq in sorted(steps, key=len) if f"{leaf}.".startswith(f"{seq}.") for logprob in steps[seq]]
        for leaf in steps
    ]
    scores = [sum(path) / len(path) for path in paths if len(path) == 2 + 3 + 4]
    assert len(scores) == 2 * 3
    assert math.isclose(found.score, max(scores), rel_tol=1e-6)
    assert text == "Once upon a time" + "".join(found.values)
    assert_clean(engine)


def test_tree_search_cascade_and_refinement_leave_nothing(engine: Engine) -> None:
    def rated(branch: rt.State) -> rt.Value[str]:
        branch += " Rating:"
        return branch.select(["1", "2", "3"])

    def thought(branch: rt.State, level: int) -> rt.Value[str]:
        return branch.gen(max_tokens=4)

    @rt.function(temperature=1.0, seed=7)
    def body(s: rt.State) -> tuple[object, ...]:
        s += "Once upon a time"
        tree = rt.tree_search(s, thought, n=2, depth=3, keep=2, judge=rated)
        attempts = [lambda b, k=k: b.gen(max_tokens=k, logprobs=0) for k in (1, 4)]
        first = rt.cascade(s, attempts, threshold=-math.inf)
        last = rt.cascade(s, attempts, judge=lambda b: b.select(["no", "yes"]))
        refined = rt.refine_until(
            s,
            lambda s: s.gen(max_tokens=3),
            critique=lambda b: b.gen(max_tokens=3),
            accept=lambda text: len(text) > 100,
            revise=lambda s: s.gen(max_tokens=3),
            rounds=2,
        )
        return tree, first, last, refined, s.text()

    program = body.using(backend=engine)
    once, again = program().result(WAIT), program().result(WAIT)
    assert once == again
    assert once[1] == rt.Settled(once[1].value, 0, True)  # type: ignore[attr-defined]
    assert (once[3].index, once[3].accepted) == (2, False)  # type: ignore[attr-defined]
    assert_clean(engine)


def test_a_cancelled_branch_gives_its_slots_back(engine: Engine) -> None:
    @rt.function
    def body(s: rt.State) -> str:
        s += "Once upon a time"
        slow, quick = s.fork(2)
        story = slow.gen(max_tokens=900, ignore_eos=True)
        quick.gen(max_tokens=2, ignore_eos=True).get()
        slow.cancel()
        with pytest.raises(rt.Aborted):
            story.get()
        return s.gen(max_tokens=2, ignore_eos=True).get()

    run = body.using(backend=engine)()
    run.result(WAIT)
    assert run.usage.generated_tokens < 900
    assert_clean(engine)
