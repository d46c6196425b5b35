"""Turns with tools: calls that a program makes for its model, on branches, with errors, and what is refused."""

import asyncio
import enum
from dataclasses import dataclass
from typing import Any, Literal

import pytest

import ramet as rt
from ramet.frontend import ir
from ramet.frontend.replay import Recorder
from ramet.frontend.toolcalls import message_text
from ramet.frontend.tools import ToolReply, all_offered, tool_of, wanted_reply

WAIT = 20.0


class Unit(enum.Enum):
    C = "celsius"
    F = "fahrenheit"


@dataclass
class Place:
    """A place."""

    name: str
    height: float = 0.0


def weather(city: str, days: int = 3, unit: Unit | None = None, places: list[Place] = []) -> str:  # noqa: B006
    """The weather
    of a city.

    It is a forecast.

    Args:
        city (str): the city's name,
            in English
        days: how many days
        unit: of the temperatures

    Returns:
        str: a sentence
    """
    return f"{city} {days} {unit} {places}"


def said(*calls: tuple[str, str], content: str = "") -> str:
    return message_text(content, [ir.ToolCall(name, arguments) for name, arguments in calls])


def lookup(key: Literal["a", "b"]) -> dict[str, int]:
    """Looks a key up."""
    return {"value": {"a": 1, "b": 2}[key]}


async def slow(seconds: float) -> str:
    """Waits."""
    await asyncio.sleep(0)
    return f"waited {seconds}"


def broken(x: int) -> str:
    """Fails."""
    raise ValueError(f"no {x}")


@rt.function
def agent(s: rt.State, tools: Any, rounds: int = 3) -> str:
    s.tools(tools)
    s.user("Go.")
    for _ in range(rounds):
        reply = s.reply(tools=tools, name="reply").get()
        if not reply.calls:
            return reply.content
        s.run_tools(reply)
    return "gave up"


def test_an_agent_calls_and_answers():
    answers = [said(("lookup", '{"key": "b"}'), ("slow", '{"seconds": 1}'), content="Look."), "It is 2."]
    mock = rt.Mock(answers)
    run = agent.using(backend=mock)([lookup, slow])
    assert run.result(WAIT) == "It is 2."
    roles = [(m["role"], m["content"]) for m in run.messages()]
    assert roles == [
        ("user", "Go."),
        ("assistant", answers[0]),
        ("tool", '{"value": 2}'),
        ("tool", "waited 1.0"),
        ("assistant", "It is 2."),
    ]
    assert "tools lookup, slow" in run.tree()


def test_a_reply_has_its_content_and_its_typed_calls():
    @rt.function
    def ask(s: rt.State) -> ToolReply:
        s.user("?")
        return s.reply(tools=[weather], tool_choice="required", name="r").get()

    answer = said(("weather", '{"city": "Rome", "unit": "celsius", "places": [{"name": "Forum"}]}'))
    run = ask.using(backend=rt.Mock(answer))()
    reply = run.result(WAIT)
    assert (reply.content, str(reply), reply.text) == ("", "", answer)
    (call,) = reply.calls
    assert call.arguments == {"city": "Rome", "unit": Unit.C, "places": [Place("Forum")]}
    assert call.run() == f"Rome 3 {Unit.C} [Place(name='Forum', height=0.0)]"
    assert run["r"] is reply


def test_a_failing_tool_is_told_or_raised():
    answers = [said(("broken", '{"x": 7}')), "Oh."]
    run = agent.using(backend=rt.Mock(answers))([broken])
    assert run.result(WAIT) == "Oh."
    assert run.messages()[2] == {"role": "tool", "content": "Error: ValueError: no 7"}

    @rt.function
    def strict(s: rt.State) -> str:
        s.user("Go.")
        (result,) = s.run_tools(s.reply(tools=[broken]).get(), errors="raise")
        return result.get()

    with pytest.raises(rt.ToolError, match="broken raised ValueError: no 7"):
        strict.using(backend=rt.Mock(answers[0]))().result(WAIT)


def recorded(program: rt.Program[Any, Any], answers: Any = "") -> list[ir.AnyOp]:
    """The operations that a program sends."""
    recorder = Recorder(rt.Mock(answers))
    program.using(backend=recorder).run().result(WAIT)
    return recorder.programs[0].ops


def test_tools_are_told_once_on_each_branch():
    @rt.function
    def program(s: rt.State) -> None:
        s.tools([lookup])
        s.user("Go.")
        s.reply(tools=[lookup])
        s.user("And?")
        s.reply(tools=[lookup, slow])
        for branch in s.fork(2):
            branch.user("More.")
            branch.reply(tools=[slow]).get()

    told = [(op.seq, [t.name for t in op.tools]) for op in recorded(program) if isinstance(op, ir.Tools)]
    assert told == [("0", ["lookup"]), ("0", ["slow"])]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ir.Calls((tool_of(lookup), tool_of(slow)))),
        ({"tool_choice": "none"}, ir.Calls((tool_of(lookup), tool_of(slow)), "none")),
        ({"tool_choice": "required"}, ir.Calls((tool_of(lookup), tool_of(slow)), "required")),
        ({"tool_choice": "slow"}, ir.Calls((tool_of(lookup), tool_of(slow)), "required", "slow")),
        ({"tool_choice": slow}, ir.Calls((tool_of(lookup), tool_of(slow)), "required", "slow")),
        ({"parallel_tool_calls": False}, ir.Calls((tool_of(lookup), tool_of(slow)), parallel=False)),
    ],
)
def test_choices_of_calls(options, expected):
    @rt.function
    def program(s: rt.State) -> None:
        s.user("Go.")
        s.reply(tools=[lookup, slow], jump="exact", max_tokens=7, **options)

    (gen,) = [op for op in recorded(program) if isinstance(op, ir.Gen)]
    assert (gen.constraint, gen.jump, gen.sampling.max_tokens) == (expected, "exact", 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"tools": [lookup], "tool_choice": "weather"},
            "tool_choice='weather': must be one of auto, none, required, l",
        ),
        ({"tools": [lookup], "tool_choice": slow}, "tool_choice=.*slow"),
        ({"tools": [lookup], "tool_choice": None}, "tool_choice=None"),
        ({"tools": [lookup], "parallel_tool_calls": 1}, "parallel_tool_calls=1"),
        ({"tools": [lookup], "jump": "far"}, "jump='far'"),
        ({"tools": [lookup], "regex": "a"}, "regex=...: a reply that may call tools has no other"),
        ({"tools": [lookup], "type": int}, "has no type"),
        ({"tools": [lookup], "max_tokens": -1}, "max_tokens"),
        ({"tools": [lookup, lookup]}, "two are called 'lookup'"),
        ({"tools": []}, "0 are given"),
        ({"tools": lookup}, "must be a list of functions"),
        ({"tools": [ir.Tool(f"t{n}") for n in range(129)]}, "129 are given"),
        ({"tool_choice": "required"}, "there are no tools"),
    ],
)
def test_bad_replies_are_refused_at_the_line(options, message):
    @rt.function
    def program(s: rt.State) -> None:
        s.user("Go.")
        s.reply(**options)

    with pytest.raises(rt.ConstraintError, match=message) as caught:
        program.using(backend=rt.Mock()).run().result(WAIT)
    assert caught.value.where.startswith("test_tool_turns.py:")


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (said(("lookup", '{"key": "c"}')), rt.ParseError, "expected one of 'a', 'b'"),
        (said(("lookup", "{}")), rt.ParseError, "lacks 'key'"),
        (said(("other", "{}")), rt.ParseError, "calls 'other', which is none of lookup"),
        (said(("lookup", '{"key": "a b"}')), rt.TruncatedError, "max_tokens ended it"),
    ],
)
def test_calls_that_cannot_be_read(answer, error, message):
    @rt.function
    def program(s: rt.State) -> Any:
        s.user("Go.")
        return s.reply(tools=[lookup], max_tokens=5 if error is rt.TruncatedError else 99).get()

    with pytest.raises(error, match=message):
        program.using(backend=rt.Mock(answer))().result(WAIT)


def test_a_choice_of_none_reads_no_calls():
    @rt.function
    def program(s: rt.State) -> ToolReply:
        s.user("Go.")
        return s.reply(tools=[lookup], tool_choice="none").get()

    answer = said(("lookup", '{"key": "a"}'))
    assert program.using(backend=rt.Mock(answer))().result(WAIT) == ToolReply(answer, (), answer)


def test_meta_of_the_backend_is_what_counts():
    want = ir.Meta(calls=(ir.ToolCall("lookup", '{"key": "a"}'),), content="By the backend.")
    read = wanted_reply(all_offered([lookup], ""), "auto", True, None, "").read
    assert read is not None
    reply = read("[other notation]", want)
    assert (reply.content, reply.calls[0].arguments) == ("By the backend.", {"key": "a"})
    custom = ir.Meta(calls=(ir.ToolCall("lookup", "raw text", custom=True),))
    assert read("", custom).calls[0].arguments == {"input": "raw text"}


def test_tools_without_functions_are_run_by_the_program():
    @rt.function
    def program(s: rt.State) -> str:
        s.user("Go.")
        reply = s.reply(tools=[ir.Tool("f")]).get()
        with pytest.raises(rt.ConstraintError, match="'f' was declared without a function"):
            s.run_tools(reply)
        with pytest.raises(rt.ConstraintError, match="without a function"):
            reply.calls[0].run()
        s.tool("42")
        return s.reply(tools=[ir.Tool("f")]).get().content

    assert program.using(backend=rt.Mock([said(("f", "{}")), "Thanks."]))().result(WAIT) == "Thanks."


def test_an_unread_reply_is_no_reply():
    @rt.function
    def program(s: rt.State) -> None:
        s.user("Go.")
        s.run_tools(s.reply(tools=[lookup]))  # type: ignore[arg-type]

    with pytest.raises(rt.ConstraintError, match="an unread value: read it with"):
        program.using(backend=rt.Mock("x"))().result(WAIT)
