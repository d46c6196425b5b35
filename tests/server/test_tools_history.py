"""Calls of tools in histories: every protocol writes the same conversation, and results answer calls that were made."""

from __future__ import annotations

from typing import Any

import pytest

from ramet.runtime.server.anthropic import Turn, _messages
from ramet.runtime.server.call import Message
from ramet.runtime.server.conversation import ChatMessage, chat_of
from ramet.runtime.server.failures import Failure
from ramet.runtime.server.ollama import _messages as of_ollama
from ramet.runtime.server.ollama_bodies import ChatTurn
from ramet.runtime.server.toolhistory import Told
from ramet.runtime.tools import ToolFormat

ARGUMENTS = '{"zone": "UTC"}'
CALL = '<tool_call>\n{"name": "clock", "arguments": {"zone": "UTC"}}\n</tool_call>'
RESULT = "<tool_response>\nnoon\n</tool_response>"
NATIVE = ToolFormat(native=True)
TAGGED = ToolFormat()


def call(id: str = "c1", **function: Any) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": "clock", "arguments": ARGUMENTS, **function}}


def chat(messages: list[dict[str, Any]], format: ToolFormat = TAGGED) -> tuple[Message, ...]:
    said = [ChatMessage.model_validate(message) for message in messages]
    return chat_of(said, context=64, told=Told(format), strict=True)[0].messages


def answer(id: str = "c1", content: Any = "noon") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "content": content}


def made(*calls: dict[str, Any], content: str | None = None) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": list(calls)}


def test_a_call_and_its_result() -> None:
    assert chat([made(call(), content="Well."), answer()]) == (
        Message("assistant", f"Well.\n{CALL}"),
        Message("user", RESULT),
    )
    assert chat([made(call()), answer()], NATIVE) == (Message("assistant", CALL), Message("tool", "noon"))


def test_results_that_follow_each_other() -> None:
    messages = [made(call("a"), call("b")), answer("b"), answer("a", [{"type": "text", "text": "one"}])]
    said, results = chat(messages)
    assert said.content == f"{CALL}\n{CALL}"
    assert results == Message("user", f"{RESULT}\n<tool_response>\none\n</tool_response>")
    assert [message.role for message in chat(messages, NATIVE)] == ["assistant", "tool", "tool"]


def test_functions_of_the_older_kind() -> None:
    messages = [
        {"role": "assistant", "content": None, "function_call": {"name": "clock", "arguments": ARGUMENTS}},
        {"role": "function", "name": "clock", "content": "noon"},
    ]
    assert chat(messages) == (Message("assistant", CALL), Message("user", RESULT))


def test_custom_calls_are_text() -> None:
    custom = {"id": "c1", "type": "custom", "custom": {"name": "sql", "input": 'SELECT "1"'}}
    (said, _) = chat([made(custom), answer()])
    assert said.content == '<tool_call>\n{"name": "sql", "input":\nSELECT "1"\n}\n</tool_call>'


def test_anthropics_blocks() -> None:
    told = Told(TAGGED)
    use = {"type": "tool_use", "id": "t1", "name": "clock", "input": {"zone": "UTC"}}
    turn = Turn.model_validate({"role": "assistant", "content": [{"type": "text", "text": "Well."}, use]})
    assert _messages(turn, "m", told) == [Message("assistant", f"Well.\n{CALL}")]
    result = {"type": "tool_result", "tool_use_id": "t1", "content": "noon"}
    content = [result, {**result, "is_error": True}, {"type": "text", "text": "So?"}]
    turn = Turn.model_validate({"role": "user", "content": content})
    failed = "<tool_response>\nError: noon\n</tool_response>"
    assert _messages(turn, "m", told) == [Message("user", f"{RESULT}\n{failed}\nSo?")]
    told = Told(NATIVE)
    told.ledger.made("t1", "clock")
    roles = [("tool", "noon"), ("tool", "Error: noon"), ("user", "So?")]
    assert _messages(turn, "m", told) == [Message(role, text) for role, text in roles]


def test_ollamas_messages() -> None:
    turns = [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "clock", "arguments": {"zone": "UTC"}}}],
        },
        {"role": "tool", "content": "noon", "tool_name": "clock"},
    ]
    messages = [ChatTurn.model_validate(turn) for turn in turns]
    assert of_ollama(messages, Told(TAGGED)) == (Message("assistant", CALL), Message("user", RESULT))


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([answer()], "messages[0].tool_call_id"),
        ([made(call()), answer("c2")], "messages[1].tool_call_id"),
        ([made(call()), {"role": "tool", "content": "noon"}], "messages[1].tool_call_id"),
        ([made(call()), {"role": "tool", "tool_call_id": "c1"}], "messages[1].content"),
        ([{"role": "function", "name": "clock", "content": "noon"}], "messages[0].name"),
        ([{**made(call()), "role": "user", "content": "x"}], "messages[0].tool_calls"),
        ([made({"type": "function"})], "messages[0].tool_calls[0].function"),
        ([made({**call(), "type": "mcp"})], "messages[0].tool_calls[0].type"),
        ([made({**call(), "id": None})], "messages[0].tool_calls[0].id"),
        ([made(call(name=""))], "messages[0].tool_calls[0].function.name"),
        ([made(call(arguments={"zone": "UTC"}))], "messages[0].tool_calls[0].function.arguments"),
        ([made(call(arguments='{"zone": '))], "messages[0]"),
        ([made(*(call(f"c{n}") for n in range(129)))], "messages[0].tool_calls"),
    ],
)
def test_what_cannot_have_been_said(messages: list[dict[str, Any]], param: str) -> None:
    with pytest.raises(Failure) as raised:
        chat(messages)
    assert (raised.value.status, raised.value.param) == (400, param)
