"""vote, best_of, cascade, refine_until: results, text, what is cancelled. Nothing may depend on who finishes first."""

import asyncio
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ramet as rt
from ramet.frontend.ballot import Ballot
from ramet.frontend.ir import Close

from .test_branches import Recorder

WAIT = 20.0


def run(body, backend):
    handle = rt.function(body).using(backend=backend)()
    handle.result(WAIT)
    return handle


def own_name(branch):
    """An attempt whose variable is called after its branch."""
    branch += f"{branch.item}:"
    return branch.gen(name=f"v{branch.item}")


# --- vote


@rt.function
def voting(s, n, early_stop):
    s += "root "
    answer = rt.vote(s, own_name, n=n, early_stop=early_stop)
    s += "!"
    return answer, s.text()


@rt.function
async def voting_later(s, n, early_stop):
    s += "root "
    answer = await rt.avote(s, own_name, n=n, early_stop=early_stop)
    s += "!"
    return answer, await s.atext()


def first_of_the_most(votes):
    first = min(votes, key=lambda vote: (-votes.count(vote), votes.index(vote)))
    return first, f"root {votes.index(first)}:{first}!"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_an_early_vote_is_the_full_vote_in_every_order(data):
    """Only as many answers come as decide it: had it waited for more, it would hang; had it been wrong, it would
    differ."""
    votes = data.draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=7))
    order = data.draw(st.permutations(range(len(votes))))
    program = data.draw(st.sampled_from([voting, voting_later]))
    with rt.Mock(rt.Mock.PENDING) as mock:
        run = program.using(backend=mock)(len(votes), True)
        ballot = Ballot(len(votes))
        for voter in order:
            if ballot.winner is not None:
                break
            ballot.cast(voter, votes[voter])
            mock.release(f"v{voter}", votes[voter])
        assert run.result(WAIT) == first_of_the_most(votes)
        assert mock.info()["programs"] == 0


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=7), st.sampled_from([voting, voting_later]))
def test_a_full_vote_counts_all(votes, program):
    with rt.Mock({f"v{voter}": vote for voter, vote in enumerate(votes)}) as mock:
        assert program.using(backend=mock)(len(votes), False).result(WAIT) == first_of_the_most(votes)
        assert len(mock.prompts) == len(votes)


def test_what_loses_is_cancelled_at_once():
    backend = Recorder({"v0": "x", "v1": "x", "v2": rt.Mock.PENDING})
    handle = voting.using(backend=backend)(3, True)
    assert handle.result(WAIT) == ("x", "root 0:x!")
    stopped = [op.seq for op in backend.ops if isinstance(op, Close) and op.now]
    assert "0.1.b2" in stopped
    assert [row["status"] for row in handle.trace().rows() if row["kind"] == "gen"] == ["done", "done", "failed"]


def test_answers_with_equal_keys_are_the_same_answer():
    def body(s):
        return rt.vote(s, own_name, n=3, key=str.casefold), s["v1"]

    assert run(body, rt.Mock({"v0": "no", "v1": "Yes", "v2": "yes"})).result() == ("Yes", "Yes")


def numbers(branch):
    return branch.gen(list[int], name=f"v{branch.item}", max_tokens=2).map(tuple)


def test_who_writes_nothing_readable_casts_no_vote():
    def body(s):
        return rt.vote(s, numbers, n=3)

    answers = {"v0": "[1, 2, 3]", "v1": "[4]", "v2": "[5, 6, 7]"}  # two words are too few for three numbers
    assert run(body, rt.Mock(answers)).result() == (4,)
    with pytest.raises(rt.TruncatedError):
        run(body, rt.Mock("[1, 2, 3]"))


def test_any_other_failure_ends_the_vote_and_its_branches():
    def body(s):
        with pytest.raises(rt.GenerationError, match="broken"):
            rt.vote(s, own_name, n=3)
        s += "go on"
        return s.gen(name="after").get()

    with rt.Mock({"v0": rt.Mock.PENDING, "v2": rt.Mock.PENDING, "*": "fine"}, fail={"v1": "broken"}) as mock:
        assert run(body, mock).result() == "fine"


def test_two_failures_at_once_are_one_report():
    def body(s):
        with pytest.raises(rt.GenerationError, match="broken"):
            rt.vote(s, own_name, n=2, early_stop=False)

    run(body, rt.Mock("", fail={"v0": "broken", "v1": "broken too"}))


def test_attempts_may_be_coroutines_and_runs_of_other_programs():
    @rt.function
    def other(s, answer):
        s += answer
        return s.gen(name="other").get()

    async def reads_twice(branch):
        first = await branch.gen(name="first")
        branch += " "
        return first + await branch.gen(name="second")

    def body(s):
        return rt.vote(s, reads_twice, n=3), rt.vote(s, lambda b: other(f"{b.item}"), n=2), s.text()

    async def later(s):
        return await rt.avote(s, reads_twice, n=3), await rt.avote(s, lambda b: other("a"), n=2), await s.atext()

    answers = {"first": "1", "second": "2", "other": "o"}
    for each in (body, later):
        assert run(each, rt.Mock(answers)).result() == ("12", "o", "1 2")


def test_a_coroutine_that_loses_is_cancelled():
    ended = threading.Event()

    async def attempt(branch):
        if branch.item < 2:
            return "a"
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    def body(s):
        return rt.vote(s, attempt, n=3)

    assert run(body, rt.Mock("")).result() == "a"
    assert ended.wait(WAIT)


def test_a_run_that_loses_is_cancelled():
    started = []

    @rt.function
    def other(s, index):
        return s.gen(name=f"other{index}").get()

    def attempt(branch):
        started.append(other(branch.item))
        return started[-1]

    with rt.Mock({"other2": rt.Mock.PENDING, "*": "a"}) as mock:
        assert run(lambda s: rt.vote(s, attempt, n=3), mock).result() == "a"
        with pytest.raises(rt.Aborted):
            started[2].result(WAIT)


def test_combinators_nest():
    async def attempt(branch):
        best = await rt.abest_of(branch, lambda b: b.gen(name="inner"), n=2, score=len)
        return best.value

    def body(s):
        s += "root "
        answer = rt.vote(s, attempt, n=3, early_stop=False)
        return answer, s.text()

    words = iter(["a", "bb", "bb", "a", "c", "c"] * 2)
    answer, text = run(body, rt.Mock(lambda prompt, var: next(words))).result()
    assert text == f"root {answer}"


def test_a_timeout_of_an_attempt_counts():
    def body(s):
        with pytest.raises(rt.ProgramTimeout, match=r"an attempt of vote\(\) did not come within"):
            rt.vote(s, lambda b: b.gen(name="slow", timeout=0.01), n=2)
        return s.gen(name="after").get()

    with rt.Mock({"slow": rt.Mock.PENDING, "after": "fine"}) as mock:
        assert run(body, mock).result() == "fine"


def test_cancelling_the_program_ends_a_vote():
    with rt.Mock(rt.Mock.PENDING) as mock:
        for program in (voting, voting_later):
            handle = program.using(backend=mock)(3, True)
            next(event for event in handle.events() if isinstance(event, rt.Started))
            handle.cancel()
            with pytest.raises(rt.Aborted):
                handle.result(WAIT)
        assert mock.info()["programs"] == 0


# --- best_of


def test_best_of_by_a_score_of_the_value():
    def body(s):
        s += "root "
        best = rt.best_of(s, own_name, n=4, score=len)
        return best, s.text()

    best, text = run(body, rt.Mock({"v0": "a", "v1": "abc", "v2": "ab", "v3": "xyz"})).result()
    assert (best.value, best.index, best.score) == ("abc", 1, 3)
    assert text == "root 1:abc"


def rated(branch):
    branch += "\nRating: "
    return branch.select(["1", "2", "3"], name="rating")


def test_best_of_by_a_judge_that_leaves_no_trace():
    def body(s):
        best = rt.best_of(s, own_name, n=3, judge=rated)
        return best.index, best.score, s.text(), "rating" in s

    mock = rt.Mock(lambda prompt, var: ("3" if "1:" in prompt else "2") if var == "rating" else "x")
    assert run(body, mock).result() == (1, 3.0, "1:x", False)
    assert sum("Rating" in prompt for prompt in mock.prompts) == 3


def test_best_of_asks_for_attempts_and_ratings_in_one_submission(monkeypatch):
    monkeypatch.setattr("ramet.frontend.outbox.QUIET", 60.0)
    backend = Recorder(lambda prompt, var: "2" if var == "rating" else "x")
    assert run(lambda s: rt.best_of(s, own_name, n=5, judge=rated).index, backend).result() == 0
    assert len([batch for batch in backend.batches if any(hasattr(op, "var") for op in batch)]) == 1


def test_best_of_leaves_out_what_cannot_be_read():
    def body(s):
        return rt.best_of(s, numbers, n=3, score=sum).value, rt.best_of(s, numbers, n=3, judge=rated).value

    answers = {"v0": "[9, 9, 9]", "v1": "[4]", "v2": "[5]", "rating": "1"}
    assert run(body, rt.Mock(answers)).result() == ((5,), (4,))


def test_best_of_asks_coroutines_judges_too():
    async def attempt(branch):
        return len(await own_name(branch))

    async def judge(branch):
        return await branch.gen(int, name="judged")

    def body(s):
        return rt.best_of(s, attempt, n=2, judge=judge)

    mock = rt.Mock(lambda prompt, var: ("7" if "1:" in prompt else "5") if var == "judged" else "xx")
    assert run(body, mock).result() == rt.Best(2, 1, 7.0)


# --- cascade


def named(name, **options):
    def attempt(branch):
        branch += f"[{name}]"
        return branch.gen(name=name, **options)

    return attempt


def test_cascade_stops_at_what_is_accepted():
    def body(s):
        s += "q"
        found = rt.cascade(s, [named("small"), named("middle"), named("large")], accept=lambda text: len(text) > 2)
        return found, s.text()

    mock = rt.Mock({"small": "no", "middle": "fine", "large": "never"})
    assert run(body, mock).result() == (rt.Settled("fine", 1, True), "q[middle]fine")
    assert mock.prompts == ["q[small]", "q[middle]"]


def test_cascade_takes_the_last_as_it_is():
    def body(s):
        return rt.cascade(s, [named("small"), named("large")], accept=lambda text: False)

    assert run(body, rt.Mock("x")).result() == rt.Settled("x", 1, False)


def test_cascade_goes_on_when_an_attempt_cannot_be_read():
    def typed(branch):
        return branch.gen(list[int], name=f"v{branch.item}", max_tokens=2)

    def body(s, attempts):
        return rt.cascade(s, attempts, accept=bool)

    mock = rt.Mock({"v0": "[1, 2, 3]", "other": "y"})
    assert run(lambda s: body(s, [typed, named("other")]), mock).result() == rt.Settled("y", 1, True)
    with pytest.raises(rt.TruncatedError):
        run(lambda s: body(s, [named("other"), typed]), rt.Mock({"other": "", "v0": "[1, 2, 3]"}))


@pytest.mark.parametrize(
    ("judged", "no", "yes"),
    [
        (lambda b: b.select(["yes", "no"], name="ok"), "no", "yes"),
        (lambda b: b.gen(bool, name="ok"), "False", "True"),
        (lambda b: b.gen(name="ok").map(lambda text: text == "fine"), "hm", "fine"),
    ],
)
def test_cascade_by_a_judge(judged, no, yes):
    def judge(branch):
        branch += " good? "
        return judged(branch)

    def body(s):
        found = rt.cascade(s, [named("small"), named("large")], judge=judge)
        return found, s.text()

    mock = rt.Mock({"ok": lambda prompt, var: yes if "large" in prompt else no, "small": "s", "large": "l"})
    assert run(body, mock).result() == (rt.Settled("l", 1, True), "[large]l")


def test_cascade_by_confidence():
    def body(s):
        attempts = [named("small", logprobs=0), named("large", logprobs=0)]
        return rt.cascade(s, attempts, threshold=-1.0).index, rt.cascade(s, attempts, threshold=-0.1).accepted

    assert run(body, rt.Mock("some words", logprob=-0.5)).result() == (0, False)


# --- refine_until


def critique(branch):
    branch += " Critique:"
    return branch.gen(name="critique")


def revise(s):
    s += " Revised:"
    return s.gen(name="version")


def refining(rounds, later=False):
    options = {"critique": critique, "revise": revise, "accept": lambda text: text == "good", "rounds": rounds}

    def body(s):
        return rt.refine_until(s, lambda s: s.gen(name="draft"), **options), s.text()

    async def async_body(s):
        return await rt.arefine_until(s, lambda s: s.gen(name="draft"), **options), await s.atext()

    return async_body if later else body


@pytest.mark.parametrize("later", [False, True])
def test_refine_until_the_critique_is_accepted(later):
    mock = rt.Mock({"draft": "d", "version": ["v1", "v2"], "critique": ["bad", "worse", "good"]})
    found, text = run(refining(5, later), mock).result()
    assert found == rt.Settled("v2", 2, True)
    assert text == "d Critique:bad Revised:v1 Critique:worse Revised:v2"


def test_refine_until_is_bounded():
    mock = rt.Mock({"draft": "d", "version": ["v1", "v2"], "critique": "bad"})
    assert run(refining(2), mock).result()[0] == rt.Settled("v2", 2, False)
    assert run(refining(0), mock).result() == (rt.Settled("d", 0, False), "d")


def test_refine_until_needs_one_submission_per_round(monkeypatch):
    monkeypatch.setattr("ramet.frontend.outbox.QUIET", 60.0)
    backend = Recorder({"draft": "d", "version": "v", "critique": ["bad", "bad", "good"]})
    assert run(refining(5), backend).result()[0].index == 2
    assert len([batch for batch in backend.batches if any(hasattr(op, "var") for op in batch)]) == 3
