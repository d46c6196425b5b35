"""Random programs do from their plan what they do by their body: the same operations under the same names, the same
answers. Where the plan ends in a graph break, the body goes on behind it."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

import ramet as rt
from ramet.frontend.ir import Close
from ramet.frontend.replay import Recorder, Recording

from .test_random_programs import TEXT, actions, answer, play

WAIT = 30.0


def said(recording: Recording) -> tuple[dict[str, Any], dict[str, str]]:
    ops = {op.id: op for op in recording.ops if not isinstance(op, Close)}
    return ops, {event.op: event.value for event in recording.finished}


@settings(max_examples=150, deadline=None)
@given(actions(2), actions(1), TEXT)
def test_the_same_operations_and_the_same_answers(program, rest, text):
    @rt.function
    def body(s: rt.State, given: str) -> list[str]:
        values: list[Any] = []
        play(s, program, values)
        s += given
        if s.select(["yes", f"no {len(program)}"], name="choice").get() == "yes":
            s += f"<{given}>"
            play(s, rest, values)
        s += given
        return [value.get() for value in values]

    def choosing(prompt: str, var: str) -> str:
        return ["yes", f"no {len(program)}"][len(prompt) % 2] if var == "choice" else answer(prompt, var)

    plan = body.compile()
    found = []
    with rt.Mock(choosing) as mock:
        for start in (lambda b: body.using(backend=b)(text), lambda b: plan.run(text, backend=b)):
            recorder = Recorder(mock)
            found.append((start(recorder).result(WAIT), *said(recorder.programs[0])))
    assert found[0] == found[1]
    assert plan.whole == (not plan.breaks)
    loaded = rt.Plan.loads(plan.dumps())
    assert loaded.document == plan.document


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["say", "read", "branch"]), st.integers(0, 5)), min_size=1, max_size=12), TEXT
)
def test_values_that_are_said_again_arrive_in_time(moves, text):
    """Reads whose text goes elsewhere hold up nothing but what says them."""

    @rt.function
    def body(s: rt.State, given: str) -> str:
        values, states = [s.gen(name="first")], [s]
        for kind, number in moves:
            state = states[number % len(states)]
            if kind == "say":
                state += f"{given}({values[number % len(values)].get()})"
            elif kind == "read":
                values.append(state.gen(name="x"))
            else:
                states += state.fork(1 + number % 2)
        return "|".join(value.get() for value in values)

    plan = body.compile()
    assert plan.whole
    found = []
    for start in (lambda b: body.using(backend=b)(text), lambda b: plan.run(text, backend=b)):
        recorder = Recorder(rt.Mock(answer))
        found.append((start(recorder).result(WAIT), *said(recorder.programs[0])))
    assert found[0] == found[1]
