"""Random programs on a mock say what a plain string model of them says, however reads and tools are timed."""

from hypothesis import given, settings
from hypothesis import strategies as st

import ramet as rt

TEXT = st.text("ab <", min_size=0, max_size=4)


def actions(depth):
    leaf = st.one_of(
        st.tuples(st.just("text"), TEXT),
        st.tuples(st.just("gen"), st.booleans()),
        st.tuples(st.just("ref"), st.integers(0, 9)),
        st.tuples(st.just("tool"), st.integers(0, 9)),
        st.tuples(st.just("samples"), st.integers(2, 3)),
        st.tuples(st.just("role"), TEXT),
    )
    if depth == 0:
        return st.lists(leaf, max_size=5)
    below = st.lists(actions(depth - 1), min_size=1, max_size=3)
    how = st.sampled_from(["drop", "concat", "gather", "template", "adopt"])
    branching = st.one_of(
        st.tuples(st.just("fork"), st.tuples(how, below)),
        st.tuples(st.just("copy"), actions(depth - 1)),
        st.tuples(st.just("scope"), st.lists(leaf, max_size=3)),
    )
    return st.lists(st.one_of(leaf, leaf, branching), max_size=6)


def answer(prompt, var):
    return f"[{len(prompt)} {sum(map(ord, prompt)) % 97}]"


def play(state, program, values):
    """Record the program; `values` are the handles that may be referred to."""
    for name, argument in program:
        if name == "text":
            state += argument
        elif name == "gen":
            values.append(state.gen(name="x"))
            if argument:
                values[-1].get()
        elif name == "ref" and values:
            state += values[argument % len(values)]
        elif name == "tool" and values:
            state += state.call(str.upper, values[argument % len(values)])
        elif name == "samples":
            state += rt.gen("many", n=argument)
        elif name == "role":
            state.user(argument)
        elif name == "scope":
            with state.var_scope("scope"):
                play(state, argument, values)
            values.append(state.value("scope"))
        elif name == "copy":
            with state.copy() as other:
                play(other, argument, list(values))
        elif name == "fork":
            play_fork(state, *argument, values)


def play_fork(state, how, programs, values):
    branches = state.fork(programs)
    for branch in branches:
        play(branch, branch.item, list(values))
        branch["t"] = branch.gen(name="x")
    if how == "concat":
        branches.join("concat")
    elif how == "gather":
        branches.join()
        state += ",".join(state["t"])
    elif how == "template":
        branches.join("concat", template="({t})")
    elif how == "adopt":
        state.adopt(branches[-1])


def model(text, program, values):
    """The text that the program makes of `text`."""
    for name, argument in program:
        if name == "text":
            text += argument
        elif name == "gen":
            values.append(answer(text, "x"))
            text += values[-1]
        elif name == "ref" and values:
            text += values[argument % len(values)]
        elif name == "tool" and values:
            text += values[argument % len(values)].upper()
        elif name == "samples":
            text += answer(text, "many")
        elif name == "role":
            text += f"<|user|>\n{argument}<|end|>\n"
        elif name == "scope":
            before = text
            text = model(text, argument, values)
            values.append(text[len(before) :])
        elif name == "fork":
            text = model_fork(text, *argument, values)
    return text


def model_fork(text, how, programs, values):
    ends, answers = [], []
    for program in programs:
        end = model(text, program, list(values))
        answers.append(answer(end, "x"))
        ends.append(end + answers[-1])
    if how == "concat":
        return text + "".join(end[len(text) :] for end in ends)
    if how == "gather":
        return text + ",".join(answers)
    if how == "template":
        return text + "".join(f"({a})" for a in answers)
    return ends[-1] if how == "adopt" else text


@settings(max_examples=150, deadline=None)
@given(actions(2))
def test_random_programs_say_what_the_model_says(program):
    @rt.function
    def body(s):
        play(s, program, [])

    with rt.Mock(answer) as mock:
        run = body.using(backend=mock, timeout=30)()
        streamed = "".join(run.text_iter())
        run.result(20)
        assert run.text() == streamed == model("", program, [])
        assert mock.info()["programs"] == 0
        assert run.tree().startswith("body: done")


@settings(max_examples=40, deadline=None)
@given(actions(1), st.integers(0, 6))
def test_random_programs_with_a_failing_generation_end(program, failing):
    calls = [0]

    def unreliable(prompt, var):
        calls[0] += 1
        if calls[0] == failing:
            raise ValueError("chance")
        return answer(prompt, var)

    @rt.function
    def body(s):
        play(s, program, [])

    with rt.Mock(unreliable) as mock:
        run = body.using(backend=mock, timeout=30)()
        error = run.error()
        if not 0 < failing <= calls[0]:
            assert error is None
            assert run.text() == model("", program, [])
        else:
            assert isinstance(error, rt.ProgramError | ExceptionGroup)
        assert mock.info()["programs"] == 0
