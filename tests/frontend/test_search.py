"""beam and tree_search: which paths go on, how often they ask, what remains."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ramet as rt

from .test_branches import Recorder

WAIT = 20.0


def run(body, backend):
    handle = rt.function(body).using(backend=backend)()
    handle.result(WAIT)
    return handle


def step(branch, level):
    branch += f"/{branch.item}"
    return branch.gen(name=f"step{level}")


def rated(branch):
    branch += "\nRating: "
    return branch.select([str(k) for k in range(10)], name="rating")


def best_path(score, n, depth, keep):
    """Breadth-first search by its definition: paths as tuples of branch numbers."""
    frontier = [()]
    for level in range(depth):
        grown = [(*path, k) for path in frontier for k in range(n)]
        left = keep if level < depth - 1 else 1
        if len(grown) > left:  # else nobody is rated, and the order stays
            grown = [grown[i] for i in sorted(range(len(grown)), key=lambda i: (-score(grown[i]), i))[:left]]
        frontier = grown
    return frontier[0]


def told(prompt):
    """The branch numbers of a path, from the text of it."""
    return tuple(int(part) for part in prompt.split("\n")[0].split("/")[1:])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.randoms(use_true_random=False))
def test_tree_search_is_breadth_first_search(n, depth, keep, random):
    paths = [path for level in range(1, depth + 1) for path in itertools.product(range(n), repeat=level)]
    ratings = {path: random.randrange(4) for path in paths}  # many equals
    want = best_path(ratings.__getitem__, n, depth, keep)

    def body(s):
        s += "root"
        found = rt.tree_search(s, step, n=n, depth=depth, keep=keep, judge=rated)
        return len(found.values), found.score, s.text()

    mock = rt.Mock(lambda prompt, var: str(ratings[told(prompt)]) if var == "rating" else "")
    assert run(body, mock).result() == (depth, ratings[want], "root" + "".join(f"/{k}" for k in want))
    assert all("Rating" not in prompt.split("Rating")[0] for prompt in mock.prompts)


@pytest.mark.parametrize("keep", [None, 2])
def test_a_tree_of_two_by_two_by_two_by_two_is_one_submission_per_level(keep, monkeypatch):
    """At most: a level on which nothing is pruned is not read, so that the next one leaves with it."""
    monkeypatch.setattr("ramet.frontend.outbox.QUIET", 60.0)  # the machine may be slow; reads alone send
    backend = Recorder(lambda prompt, var: "5" if var == "rating" else "x")

    def body(s):
        s += "root"
        return rt.tree_search(s, step, n=2, depth=4, keep=keep, judge=rated).values

    assert run(body, backend).result() == ("x",) * 4
    asking = [batch for batch in backend.batches if any(hasattr(op, "var") for op in batch)]
    assert len(asking) == (3 if keep else 1)  # keep 2: the first level has but two
    calls = len(backend.prompts)
    assert calls == (2 + 3 * 4 + 3 * 4 if keep else 2 + 4 + 8 + 16 + 16)


def test_the_async_form_finds_the_same():
    def answer(prompt, var):
        return str(sum(told(prompt))) if var == "rating" else ""

    def body(s):
        return rt.tree_search(s, step, n=3, depth=2, keep=2, judge=rated), s.text()

    async def later(s):
        return await rt.atree_search(s, step, n=3, depth=2, keep=2, judge=rated), await s.atext()

    assert run(body, rt.Mock(answer)).result() == run(later, rt.Mock(answer)).result()


def test_coroutines_as_steps_and_judges():
    async def thought(branch, level):
        return await step(branch, level)

    async def judge(branch):
        return await rated(branch)

    def body(s):
        return rt.tree_search(s, thought, n=2, depth=3, judge=judge).score, s.text()

    mock = rt.Mock(lambda prompt, var: str(sum(told(prompt))) if var == "rating" else "")
    assert run(body, mock).result() == (3.0, "/1/1/1")


def test_a_score_is_given_the_values_of_the_path():
    seen = []

    def score(values):
        seen.append(values)
        return values.count("b")

    def body(s):
        found = rt.beam(s, step, n=2, width=1, depth=2, score=score)
        return found.values, found.score

    answers = {"step0": ["a", "b"], "step1": ["b", "c"]}
    assert run(body, rt.Mock(answers)).result() == (("b", "b"), 2)
    assert seen == [("a",), ("b",), ("b", "b"), ("b", "c")]


def test_a_step_that_cannot_be_read_ends_its_path():
    def typed(branch, level):
        branch += f"/{branch.item}"
        return branch.gen(list[int], max_tokens=2)

    def body(s):
        return rt.tree_search(s, typed, n=2, depth=2, score=lambda path: len(path)).values, s.text()

    short = rt.Mock(lambda prompt, var: "[1, 2, 3]" if prompt in ("/0", "/1[4]/0") else "[4]")
    assert run(body, short).result() == (([4], [4]), "/1[4]/1[4]")
    with pytest.raises(rt.TruncatedError):
        run(body, rt.Mock("[1, 2, 3]"))


def test_what_is_pruned_is_cancelled_and_nothing_is_left_running():
    def body(s):
        with pytest.raises(rt.GenerationError, match="broken"):
            rt.tree_search(s, step, n=2, depth=2, score=len)
        return s.gen(name="after").get()

    pending = {"step0": rt.Mock.PENDING, "after": "fine"}
    with rt.Mock(pending, fail={"step1": "broken"}) as mock:
        mock.release("step0", "x")
        assert run(body, mock).result() == "fine", "step0 of the second branch would never come"
        assert mock.info()["programs"] == 0
