"""The call-by-call baseline: each call of a program becomes a program of its own, with its exact prefix."""

from __future__ import annotations

import pytest

import ramet as rt
from ramet.frontend.ir import Finished, Gen, Header, Meta, Role, Sampling, Score, Select, Text, Tokens
from ramet.frontend.replay import Recorder, Recording, one_by_one


@rt.function(temperature=0)
def everything(s: rt.State) -> str:
    """Text, roles, references, nested forks, an exact join, adopt, a value of the host, a choice."""
    s.system("Be brief.")
    s.user("Say one.")
    first = s.reply(name="first", max_tokens=5, stop=["."])
    branches = s.fork(["left", "right"])
    for branch in branches:
        branch.user("Go " + branch.item + " after " + first)
        branch.assistant(rt.gen("go", max_tokens=3) + "; " + rt.select("sure", choices=["yes", "no"]))
    branches.join("concat")
    best = s.fork(2)
    for branch in best:
        branch.user("More: " + s.call(str.upper, first))
        branch.reply(name="more", max_tokens=2)
    s.adopt(best[1])
    s.user("End.")
    return s.reply(name="last").get()


ANSWERS = {"first": "one two.", "go": ["l", "r"], "sure": ["no", "yes"], "more": "more", "last": "the end"}


def recorded() -> tuple[rt.Mock, Recorder]:
    mock = rt.Mock(ANSWERS)
    recorder = Recorder(mock)
    assert everything.using(backend=recorder)().result(20) == "the end"
    return mock, recorder


def test_every_call_gets_its_exact_prompt():
    mock, recorder = recorded()
    [recording] = recorder.programs
    again = rt.Mock("x")
    one_by_one(again, recording)
    assert sorted(again.prompts) == sorted(mock.prompts)
    assert len(again.prompts) == 8


def test_calls_are_constant_programs_of_one_sequence():
    _, recorder = recorded()
    calls = recorder.programs[0].calls()
    for ops in calls:
        assert {op.seq for op in ops} == {"0"}
        assert [op.id for op in ops] == [f"0.{k}" for k in range(len(ops))]
        assert all(isinstance(op, Text | Role) for op in ops[:-1])
        assert all(isinstance(part, str) for op in ops if isinstance(op, Text) for part in op.parts)
        assert isinstance(ops[-1], Gen | Select)


def test_calls_generate_as_many_tokens_as_recorded():
    _, recorder = recorded()
    lengths = {}
    for ops in recorder.programs[0].calls():
        last = ops[-1]
        if isinstance(last, Gen):
            assert last.sampling == Sampling(temperature=0, max_tokens=last.sampling.max_tokens, ignore_eos=True)
            lengths.setdefault(last.var, []).append(last.sampling.max_tokens)
    assert lengths == {"first": [2], "go": [1, 1], "more": [1, 1], "last": [2]}


def test_the_costs_add_up_and_each_call_starts_cold():
    _, recorder = recorded()
    again = rt.Mock("a b c d e f")
    total = one_by_one(again, recorder.programs[0])
    assert (total.calls, total.generated_tokens) == (8, 2 + 1 + 1 + 1 + 1 + 2)
    assert again.info()["flushes"] == 8
    assert total.seconds > 0


def test_a_failed_call_raises():
    _, recorder = recorded()
    with pytest.raises(rt.RametError):
        one_by_one(rt.Mock("x", fail={"go": "out of order"}), recorder.programs[0])


def test_recording_does_not_change_the_run():
    mock, recorder = recorded()
    plain = rt.Mock(ANSWERS)
    run = everything.using(backend=plain)()
    assert run.result(20) == "the end"
    assert sorted(plain.prompts) == sorted(mock.prompts)
    assert recorder.info() == mock.info()
    assert recorder.flush_cache()
    recorder.close()
    with pytest.raises(rt.TransportError):
        everything.using(backend=mock)().result(20)


def test_ids_and_scores_are_part_of_a_prefix_and_calls_of_their_own():
    ids, score = Tokens(id="0.0", seq="0", ids=(1, 2)), Score(id="0.1", seq="0", var="s", start=1, top=2)
    gen = Gen(id="0.2", seq="0", var="x")
    finished = [Finished("0.1", "0", "", Meta()), Finished("0.2", "0", "a", Meta(completion_tokens=4))]
    first, second = Recording(Header(), [ids, score, gen], finished).calls()
    assert first == (ids, score)
    assert second[0] == ids
    assert [type(op) for op in second] == [Tokens, Gen]
    assert second[1].id == "0.1"
