"""Mistakes of people who begin: each error says what to write instead, and shows their lines rather than ours."""

import traceback
from typing import Any

import pytest

import ramet as rt


def refused(body, error, match, answers="x", **options):
    run = rt.function(body, **options).using(backend=rt.Mock(answers))()
    with pytest.raises(error, match=match) as caught:
        run.result(10)
    return caught.value


def files(error):
    return [frame.filename for frame in traceback.extract_tb(error.__traceback__)]


def misspelt_option(s):
    s.gen(max_token=5)


def unread_value(s):
    if s.gen():
        pass


def unknown_variable(s):
    s += rt.gen("answer")
    return s["anser"]


async def unknown_variable_async(s):
    s += rt.gen("answer")
    return await s.value("anser")


@pytest.mark.parametrize("body", [misspelt_option, unknown_variable, unknown_variable_async])
def test_tracebacks_show_the_users_lines(body):
    error = refused(body, rt.ProgramError, None)
    inside = [name for name in files(error) if name != __file__]
    assert len(inside) <= 3  # result(), and what it raises with
    assert files(error)[-1] == __file__


def test_an_error_of_the_users_own_keeps_all_below_the_body():
    def body(s):
        raise KeyError("mine")

    error = refused(body, KeyError, "mine")
    assert files(error)[-1] == __file__
    error = refused(unread_value, TypeError, "cannot test")
    assert files(error)[-1].endswith("values.py")  # it is no error of ramet's: nothing below the body is left out


def test_a_refusal_of_the_backend_shows_the_users_lines_alone():
    class Refusing(rt.Mock):
        def open(self, header, deliver):
            session = super().open(header, deliver)
            send = session.send

            def refuse(ops):
                if any(op.seq == "0" and getattr(op, "var", "") == "x" for op in ops):
                    raise rt.ConstraintError("x: this backend cannot do that")
                send(ops)

            session.send = refuse
            return session

    def body(s):
        s += "a"
        return s.gen(name="x").get()

    with pytest.raises(rt.ConstraintError, match="this backend cannot do that") as caught:
        rt.function(body).using(backend=Refusing(""))().result(10)
    assert caught.value.where == f"test_newcomers.py:{body.__code__.co_firstlineno + 2}"
    shown = "".join(traceback.format_exception(caught.value))
    assert "refuse" not in shown
    assert "outbox" not in shown


def test_an_error_that_is_raised_again_does_not_grow():
    run = rt.function(unknown_variable).using(backend=rt.Mock(""))()
    lengths = set()
    for _ in range(3):
        with pytest.raises(rt.UnknownVariable) as caught:
            run.result(10)
        lengths.add(len(files(caught.value)))
    assert len(lengths) == 1

    def again(s):
        value = s.gen(name="x")
        for _ in range(3):
            with pytest.raises(rt.GenerationError) as caught:
                value.get()
            lengths.add(len(files(caught.value)) * 100)
        assert len(lengths) == 2

    rt.function(again).using(backend=rt.Mock("", fail={"x": "no"}))().result(10)


def test_misspelt_options_say_what_was_meant():
    refused(misspelt_option, rt.ConstraintError, r"max_token=5: no such option; did you mean max_tokens\?")
    with pytest.raises(rt.ConstraintError, match=r"temprature=0: no such option; did you mean temperature\?"):
        rt.function(temprature=0)

    @rt.function
    def program(s, question):
        pass

    program = program.using(backend=rt.Mock(""))
    with pytest.raises(TypeError, match=r"program\(question\): missing a required argument: 'question'"):
        program()
    with pytest.raises(TypeError, match=r"program\(question\): .*did you mean question\?"):
        program(questoin="x")
    with pytest.raises(TypeError, match=r"program\(question\): .*did you mean temperature\?"):
        program.run(question="x", temprature=1)
    with pytest.raises(rt.ConstraintError, match=r"did you mean question\?"):
        program.bind(questoin="x")


def test_a_message_without_content():
    def forgotten(s):
        s.user()
        s += "hello"

    def returned_nothing(s):
        s.user([].sort())
        s.reply()

    def entered_later(s):
        block = s.user()
        with block:
            s += "hello"

    error = refused(forgotten, rt.StateError, r"user\(\) without content: .*`with s.user\(\): ...`")
    assert error.where.endswith(f":{forgotten.__code__.co_firstlineno + 1}")
    refused(returned_nothing, rt.StateError, r"user\(\) without content")
    rt.function(entered_later).using(backend=rt.Mock(""))().result(10)


def test_what_a_method_appends_is_not_appended_again():
    def gen(s):
        s += s.gen(name="x")

    def select(s):
        s += "I say: " + s.select(["a", "b"])

    def echo(s):
        word = s.gen(name="x")
        s += word
        return s.text()

    refused(gen, rt.ConstraintError, r"gen\(\) of a state appends its text by itself: .*ramet\.gen")
    refused(select, rt.ConstraintError, r"ramet\.select")
    assert rt.function(echo).using(backend=rt.Mock("ab"))().result(10) == "abab"


@pytest.mark.parametrize(
    ("use", "says"),
    [
        (lambda v: v.upper(), "no 'upper': read what it holds first"),
        (lambda v: v[0], "cannot index the value of 'x': read it first"),
        (lambda v: int(v), "cannot make an int of the value of 'x'"),
        (lambda v: float(v), "cannot make a float of the value of 'x'"),
        (lambda v: v < 3, "cannot compare the value of 'x'"),
        (lambda v: v >= 3, "cannot compare the value of 'x'"),
    ],
)
def test_unread_values(use, says):
    refused(lambda s: use(s.gen(name="x")), (TypeError, AttributeError), says)


def test_what_is_no_backend():
    program = rt.function(lambda s: 1)
    wrong: Any
    for wrong in ("smollm", rt.Mock, 5):
        with pytest.raises(rt.EngineError, match=r"backend=.*: must be a backend, such as ramet.Engine\(model\)"):
            program.using(backend=wrong)
        with pytest.raises(rt.EngineError, match="must be a backend"):
            program.run(backend=wrong)
        with pytest.raises(rt.EngineError, match="must be a backend"):
            rt.using(wrong)
        with pytest.raises(rt.EngineError, match="must be a backend"):
            rt.set_default_backend(wrong)
    with pytest.raises(rt.EngineError, match=r"did you mean ramet.Engine\('smollm'\)\?"):
        rt.using("smollm")


@pytest.mark.parametrize("rows", ["ab", {"a": 1}, 5])
def test_what_are_no_rows(rows):
    program = rt.function(lambda s, a: a).using(backend=rt.Mock(""))
    with pytest.raises(rt.ConstraintError, match="must be a list with one row per run"):
        program.batch(rows)
    with pytest.raises(rt.ConstraintError, match="must be a list with one row per run"):
        program.run_batch(rows)


def test_what_is_no_function():
    with pytest.raises(rt.ConstraintError, match=r"function\('name'\): decorate a function"):
        rt.function("name")


@pytest.mark.parametrize("name", ["Runtime", "Anthropic", "VertexAI", "LiteLLM"])
def test_names_of_sglang_that_are_not_built_yet(name):
    with pytest.raises(AttributeError, match=f"{name} is not built into this version: .*Engine"):
        getattr(rt, name)
    assert not hasattr(rt, name)
