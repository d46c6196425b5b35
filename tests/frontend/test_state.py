"""What a body records, and what its reads give back."""

import enum
from typing import Literal

import pytest

import ramet as rt
from ramet.frontend.ir import Gen, Put, Ref, Role, Select, Text


def run(body, answers="answer", **options):
    """The finished run of a body on a mock."""
    backend = options.pop("backend", None) or rt.Mock(answers)
    program = rt.function(body).using(backend=backend)
    handle = program.run(**options)
    handle.result(10)
    return handle


def test_a_role_wraps_its_content_and_messages_give_it_back():
    def body(s):
        s.system("Be brief.")
        with s.user():
            s += "Say "
            s += "hello"
        s.assistant(rt.gen("reply"))

    handle = run(body)
    assert handle.text() == "<|system|>\nBe brief.<|end|>\n<|user|>\nSay hello<|end|>\n<|assistant|>\nanswer<|end|>\n"
    assert handle.messages() == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Say hello"},
        {"role": "assistant", "content": "answer"},
    ]


def test_reply_is_one_assistant_turn_with_its_prefix():
    def body(s):
        s.user("x")
        return s.reply(prefix="Sure: ", name="r").get()

    handle = run(body, {"r": "yes"})
    assert handle.result() == "yes"
    assert handle.messages()[-1] == {"role": "assistant", "content": "Sure: yes"}


def test_a_value_is_appended_by_reference():
    class Recorder(rt.Mock):
        def open(self, header, deliver):
            session = super().open(header, deliver)
            send = session.send
            session.send = lambda batch: (ops.extend(batch), send(batch))
            return session

    ops = []

    def body(s):
        value = s.gen(name="a")
        s += "again: " + value + "!"
        s += rt.gen("b")

    handle = run(body, backend=Recorder({"a": "one", "b": "two"}))
    assert handle.text() == "oneagain: one!two"
    [gen, text, _] = ops
    assert isinstance(gen, Gen)
    assert isinstance(text, Text)
    assert text.parts == ("again: ", Ref(op=gen.id), "!")


def test_a_mapped_value_is_sent_as_a_put_before_the_text_that_uses_it():
    class Recorder(rt.Mock):
        def open(self, header, deliver):
            session = super().open(header, deliver)
            send = session.send
            session.send = lambda batch: (ops.extend(batch), send(batch))
            return session

    ops = []

    def body(s):
        upper = s.gen(name="a").map(str.upper)
        s += " -> " + upper
        s += rt.gen("b")

    handle = run(body, backend=Recorder({"a": "one", "b": "two"}))
    assert handle.text() == "one -> ONEtwo"
    said = {op.id: op for op in reversed(ops)}  # a value that was announced comes twice, the first time before the text
    assert [type(op) for op in sorted(said.values(), key=ops.index)] == [Gen, Put, Text, Gen]
    assert [op.value for op in ops if isinstance(op, Put) and not op.due] == ["ONE"]
    assert ops[2].parts == (" -> ", Ref(op=ops[1].id))


def test_adjacent_constants_are_one_text():
    class Recorder(rt.Mock):
        def open(self, header, deliver):
            session = super().open(header, deliver)
            send = session.send
            session.send = lambda batch: (ops.extend(batch), send(batch))
            return session

    ops = []

    def body(s):
        s += "a"
        s += ""
        s += "b" + rt.gen("x") + "c"
        assert s["x"] == "!"  # a read in the middle makes no boundary
        s += "d"
        with s.user():
            s += "e"

    run(body, backend=Recorder("!"))
    assert [op.parts for op in ops if isinstance(op, Text)] == [("ab",), ("cd",), ("e",)]
    assert [op.edge for op in ops if isinstance(op, Role)] == ["begin", "end"]


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@pytest.mark.parametrize(
    ("type_", "answer", "value", "choices"),
    [
        (bool, "False", False, ("True", "False")),
        (Literal["a", "b"], "b", "b", ("a", "b")),
        (Literal[1, 2], "2", 2, ("1", "2")),
        (Colour, "blue", Colour.BLUE, ("red", "blue")),
    ],
)
def test_types_of_finitely_many_values_are_choices(type_, answer, value, choices):
    ops = []

    def body(s):
        result = s.gen(type_, name="x")
        ops.append(result.entry.op)
        return result.get()

    handle = run(body, {"x": answer})
    assert handle.result() == value
    assert handle["x"] == value
    assert isinstance(ops[0], Select)
    assert ops[0].choices == choices
    assert handle.text() == answer


def test_variables():
    def body(s):
        s["topic"] = "bees"
        s += "About " + s.value("topic") + ": " + rt.gen("x")
        assert "x" in s
        assert "y" not in s
        with pytest.raises(rt.UnknownVariable, match="'topic', 'x'"):
            s["y"]
        with pytest.raises(KeyError):
            s.value("y")
        return s["topic"], s["x"]

    handle = run(body)
    assert handle.result() == ("bees", "answer")
    assert handle.text() == "About bees: answer"


def test_var_scope_is_the_text_of_its_block():
    def body(s):
        s += "before "
        with s.var_scope("all"):
            s += "in "
            s += rt.gen("x")
            s += " out"
        s += " after"
        return s["all"]

    handle = run(body)
    assert handle.result() == "in answer out"
    assert handle.text() == "before in answer out after"


def test_var_scope_inside_one_text():
    def body(s):
        s += "a"
        with s.var_scope("empty"):
            pass
        with s.var_scope("b"):
            s += "b"
        s += "c"
        s += rt.gen("x")
        return s["empty"], s["b"]

    assert run(body).result() == ("", "b")


def test_sync_error_and_meta():
    def body(s):
        s += rt.gen("x", max_tokens=2, return_logprob=True)
        s.sync()
        assert s.error() is None
        return s.get_meta_info("x")

    meta = run(body, "one two three").result()
    assert meta["completion_tokens"] == 2
    assert meta["finish_reason"] == {"type": "length"}
    assert [text for _, _, text in meta["output_token_logprobs"]] == ["one", " two"]
    assert meta["meta"].mean_logprob == -0.5


def test_select_reports_the_score_of_each_choice():
    def body(s):
        value = s.select(["yes", "no"], name="x", method=rt.greedy_token_selection)
        return value.get(), value.meta.scores

    choice, scores = run(body, "no").result()
    assert choice == "no"
    assert scores[1] > scores[0]


def test_a_host_function_takes_values_and_runs_off_the_body():
    import threading

    def body(s):
        here = threading.get_ident()
        value = s.gen(name="x")
        result = s.call(lambda text, times, sep: (sep.join([text] * times), threading.get_ident()), value, 2, sep="-")
        text, there = result.get()
        assert here != there
        s += s.call(str.upper, value)
        return text

    handle = run(body, "hi")
    assert handle.result() == "hi-hi"
    assert handle.text() == "hiHI"


def test_unread_values_are_not_tested_measured_compared_or_iterated():
    def body(s):
        value = s.gen(name="x")
        for doing in (
            lambda: bool(value),
            lambda: len(value),
            lambda: list(value),
            lambda: value == "x",
            lambda: value != "x",
            lambda: "x" in value,
        ):
            with pytest.raises(TypeError, match=r"test_state\.py:\d+: .*'x'.*read it first with \.get\(\) or await"):
                doing()
        assert value in {value: 1}
        return f"{value:>8}", str(value)

    assert run(body).result() == ("  answer", "answer")


def test_gather_gives_all_in_order():
    def body(s):
        branches = s.fork(3)
        branches += lambda i: f"{i}:" + rt.gen("x")
        return rt.gather(*[branch.value("x") for branch in branches])

    assert run(body, lambda prompt, var: prompt[-2:]).result() == ["0:", "1:", "2:"]


def test_expressions_concatenate_from_either_side():
    expr = "a" + rt.gen("x") + "b" + (rt.gen("y") + "c") + rt.select("z", ["p", "q"])

    def body(s):
        s += expr
        return s["x"], s["y"], s["z"]

    handle = run(body, {"x": "1", "y": "2", "z": "q"})
    assert handle.result() == ("1", "2", "q")
    assert handle.text() == "a1b2cq"


def test_role_by_name_and_begin_end_expressions():
    def body(s):
        s.role("user", "x")
        s += rt.assistant_begin() + rt.gen("a") + rt.assistant_end()
        s.tool("t")

    assert [m["role"] for m in run(body).messages()] == ["user", "assistant", "tool"]
