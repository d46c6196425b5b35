"""The backend without a model."""

import threading

import pytest

import ramet as rt
from ramet.frontend.ir import Header, Score, Tokens


def ask(mock, *names, **options):
    @rt.function
    def program(s):
        s += "Q"
        for name in names:
            s += rt.gen(name, **options)
        return [s[name] for name in names]

    return program.using(backend=mock)().result(10)


def test_answers_of_every_kind():
    assert ask(rt.Mock("same"), "a", "b") == ["same", "same"]
    assert ask(rt.Mock(["1", "2"]), "a", "b") == ["1", "2"]
    assert ask(rt.Mock({"a": "1", "*": "2"}), "a", "b") == ["1", "2"]
    assert ask(rt.Mock({"a": ["1"], "b": lambda prompt, var: prompt + var}), "a", "b") == ["1", "Q1b"]
    assert ask(rt.Mock(lambda prompt, var: f"<{var}>"), "a") == ["<a>"]


def test_it_records_prompts_with_role_markers():
    mock = rt.Mock("x")

    @rt.function
    def program(s):
        s.user("hello")
        s.reply()
        s += rt.select("y", ["a"])

    program.using(backend=mock)().result(10)
    prefix = "<|user|>\nhello<|end|>\n<|assistant|>\n"
    assert mock.prompts == [prefix, prefix + "x<|end|>\n"]


def test_stop_and_max_tokens():
    assert ask(rt.Mock("one two three. four"), "a", stop=["three", "."]) == ["one two "]
    assert ask(rt.Mock("one two three"), "a", max_tokens=2) == ["one two"]


def test_select_takes_the_answer_or_the_first_choice():
    @rt.function
    def program(s):
        return s.select(["yes", "no"], name="x").get()

    assert program.using(backend=rt.Mock({"x": "no"}))().result(10) == "no"
    assert program.using(backend=rt.Mock({"x": "perhaps"}))().result(10) == "yes"


def test_missing_answers_say_so():
    with pytest.raises(rt.GenerationError, match="no answer for variable 'b'; it has: 'a'"):
        ask(rt.Mock({"a": "x"}), "a", "b")
    with pytest.raises(rt.GenerationError, match="list of 1 answers is used up"):
        ask(rt.Mock(["x"]), "a", "b")
    with pytest.raises(rt.GenerationError, match="must be a str"):
        ask(rt.Mock({"a": 5}), "a")
    with pytest.raises(rt.ContextOverflow, match="mine"):
        ask(rt.Mock(fail={"a": rt.ContextOverflow("mine")}), "a")


def test_lists_are_consumed_in_the_order_of_recording():
    @rt.function
    def program(s):
        branches = s.fork(3)
        branches += rt.gen("x")
        branches += rt.gen("y")
        return branches.gather("x"), branches.gather("y")

    for _ in range(5):
        mock = rt.Mock(list("abcdef"))
        assert program.using(backend=mock)().result(10) == (["a", "b", "c"], ["d", "e", "f"])


def test_release_before_and_after_the_generation_is_reached():
    mock = rt.Mock({"*": rt.Mock.PENDING})
    mock.release("a", "early")

    @rt.function
    def program(s):
        s += rt.gen("a") + rt.gen("b")
        assert s["a"] == "early"
        mock.release("b", "late")
        return s["b"]

    assert program.using(backend=mock)().result(10) == "late"


def test_closing_ends_its_thread():
    with rt.Mock("x") as mock:
        ask(mock, "a")
        thread = mock._thread
    assert thread is not None
    assert not thread.is_alive()
    assert threading.main_thread().is_alive()


def test_two_programs_on_one_mock():
    mock = rt.Mock({"a": rt.Mock.PENDING, "b": "x"})

    @rt.function
    def program(s, name):
        return s.gen(name=name).get()

    with rt.using(mock):
        waiting = program("a")
        assert program("b").result(10) == "x"
        mock.release("a", "y")
        assert waiting.result(10) == "y"


@pytest.mark.parametrize("op", [Tokens(id="0.0", seq="0", ids=(1,)), Score(id="0.0", seq="0", var="x")])
def test_it_has_text_and_no_tokens(op):
    with rt.Mock() as mock:
        session = mock.open(Header(), lambda event: None)
        with pytest.raises(rt.ConstraintError, match=f"{type(op).__name__}: the mock has text and no tokens"):
            session.send([op])
