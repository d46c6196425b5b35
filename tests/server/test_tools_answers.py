"""Calls of tools as they are told, in each protocol's shapes, of a text that is known: whole, and in pieces of any
size."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any, cast

import msgspec
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response

from ramet.frontend import ir
from ramet.runtime.models import hub
from ramet.runtime.models.tokenizer import load_tokenizer
from ramet.runtime.server import anthropic, chat_answers, ollama, response_answers
from ramet.runtime.server.call import Answer, Answered, Begun, Call, Caller, Chat, Completion, Message, Outs, Piece
from ramet.runtime.server.reasoning import Thoughts
from ramet.runtime.server.service import Service
from ramet.runtime.server.speech import Hearing
from ramet.runtime.server.toolcalls import Offer, chat_offer
from ramet.runtime.server.wire import Batches, Event
from ramet.runtime.text import Tokenizer

ME = Caller(label="r1")
TOOLS = [{"type": "function", "function": {"name": name}} for name in ("clock", "weather")]
SQL = {"type": "custom", "custom": {"name": "sql"}}
CLOCK = '{"name": "clock", "arguments": {"zone": "UTC"}}'
WEATHER = '{"name": "weather", "arguments": {}}'
BOTH = f"Let me see.\n<tool_call>\n{CLOCK}\n</tool_call>\n<tool_call>\n{WEATHER}\n</tool_call>"
TEXT = '<tool_call>\n{"name": "sql", "input":\nSELECT "1"\n}\n</tool_call>'
CUT = '<tool_call>\n{"name": "clock", "arguments": {"zone": "U'
META = ir.Meta(prompt_tokens=5, completion_tokens=3)
OFFER = chat_offer({"tools": TOOLS})
HEARING = Hearing(offer=OFFER)
ASKED = Call((Chat((Message("user", "What time is it?"),)),), ir.Sampling())


@functools.cache
def tokenizer() -> Tokenizer:
    """The tiny model's."""
    return load_tokenizer(hub.resolve("random:tiny"))


class Script:
    """A service that says one text, `size` characters at a time, to every call."""

    def __init__(self, text: str, size: int, meta: ir.Meta = META) -> None:
        self._pieces = [text[at : at + size] for at in range(0, len(text), size)]
        self._meta = meta

    async def stream(self, call: Call, caller: Caller) -> AsyncGenerator[Outs, None]:
        """What it says."""
        yield [Begun(0, 5, 0)]
        for text in self._pieces:
            yield [Piece(0, 0, text)]
        yield [Piece(0, 0, "", meta=self._meta)]


def answer(text: str, meta: ir.Meta = META) -> Answer:
    return Answer((Answered(Begun(0, 5, 0), (Completion(text, meta),)),))


def told(batches: Batches) -> list[Any]:
    """All that a stream says, as values."""

    async def read() -> list[Any]:
        return [item async for batch in batches for item in batch]

    found = asyncio.run(read())
    values = [item.data if isinstance(item, Event) else item for item in found]
    return [msgspec.json.decode(value) if isinstance(value, bytes) else value for value in values]


def script(text: str, size: int = 1, meta: ir.Meta = META) -> Service:
    return cast("Service", Script(text, size, meta))


CUT_META = ir.Meta(finish_reason="length", prompt_tokens=5, completion_tokens=3)
SIZES = pytest.mark.parametrize("size", [1, 7, 1000])


# -- chat completions


def shown(offer: Offer = OFFER, hearing: Hearing | None = None) -> chat_answers.Shown:
    return chat_answers.Shown(
        id="chatcmpl-1",
        model="m",
        created=1,
        n=1,
        fingerprint="f",
        tokenizer=tokenizer(),
        hearing=hearing or Hearing(offer=offer),
    )


def message(text: str, meta: ir.Meta = META, offer: Offer = OFFER) -> tuple[Any, str]:
    """The one message of a whole answer, and its finish reason."""
    whole = ChatCompletion.model_validate(chat_answers.whole(answer(text, meta), shown(offer)))
    (choice,) = whole.choices
    return choice.message, choice.finish_reason


def deltas(text: str, size: int, offer: Offer = OFFER, meta: ir.Meta = META) -> tuple[list[Any], str | None]:
    """The deltas of a stream, and its finish reason."""
    chunks = [
        ChatCompletionChunk.model_validate(chunk)
        for chunk in told(chat_answers.chunks(script(text, size, meta), ASKED, ME, shown(offer)))
    ]
    return [chunk.choices[0].delta for chunk in chunks], chunks[-1].choices[0].finish_reason


def test_a_chat_that_calls() -> None:
    said, reason = message(BOTH)
    assert (said.content, reason) == ("Let me see.", "tool_calls")
    first, second = said.tool_calls
    assert (first.type, first.function.name, json.loads(first.function.arguments)) == (
        "function",
        "clock",
        {"zone": "UTC"},
    )
    assert (second.function.name, second.function.arguments) == ("weather", "{}")
    assert first.id != second.id
    alone, _ = message(BOTH.partition("\n")[2])
    assert alone.content is None


@SIZES
def test_a_chat_that_calls_as_a_stream(size: int) -> None:
    found, reason = deltas(BOTH, size)
    assert reason == "tool_calls"
    assert (found[0].role, found[0].content) == ("assistant", "")
    assert "".join(delta.content or "" for delta in found) == "Let me see."
    calls = [call for delta in found for call in delta.tool_calls or ()]
    begins = [call for call in calls if call.id]
    assert [(call.index, call.type, call.function.name, call.function.arguments) for call in begins] == [
        (0, "function", "clock", ""),
        (1, "function", "weather", ""),
    ]
    more = [call for call in calls if not call.id]
    assert all(call.type is None and call.function.name is None for call in more)
    texts = ["".join(call.function.arguments for call in more if call.index == index) for index in (0, 1)]
    assert texts == ['{"zone": "UTC"}', "{}"]
    if size == 1:  # they come as they are generated
        assert len(more) > 10


def test_a_call_that_the_length_cut() -> None:
    said, reason = message(CUT, CUT_META)
    assert (said.tool_calls[0].function.arguments, reason) == ('{"zone": "U', "length")
    assert deltas(CUT, 5, meta=CUT_META)[1] == "length"


def test_a_text_without_a_call() -> None:
    said, reason = message("Noon.")
    assert (said.content, said.tool_calls, reason) == ("Noon.", None, "stop")


def test_a_function_call_of_the_older_kind() -> None:
    offer = chat_offer({"functions": [tool["function"] for tool in TOOLS]})
    said, reason = message(BOTH.partition("\n<tool_call>\n" + WEATHER)[0], offer=offer)
    assert (said.function_call.name, said.tool_calls, reason) == ("clock", None, "function_call")
    found, reason = deltas(BOTH.partition("\n<tool_call>\n" + WEATHER)[0], 4, offer)
    calls = [delta.function_call for delta in found if delta.function_call]
    assert (calls[0].name, calls[0].arguments, reason) == ("clock", "", "function_call")
    assert "".join(call.arguments for call in calls) == '{"zone": "UTC"}'


@SIZES
def test_a_custom_tool(size: int) -> None:
    offer = chat_offer({"tools": [SQL]})
    said, reason = message(TEXT, offer=offer)
    (call,) = said.tool_calls
    assert (call.type, call.custom.name, call.custom.input, reason) == ("custom", "sql", 'SELECT "1"', "tool_calls")
    chunks = told(chat_answers.chunks(script(TEXT, size), ASKED, ME, shown(offer)))
    calls = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", ())]
    assert (calls[0]["type"], calls[0]["custom"]) == ("custom", {"name": "sql", "input": ""})
    assert "".join(call["custom"]["input"] for call in calls) == 'SELECT "1"'


def test_a_required_call_has_no_content_in_front() -> None:
    offer = chat_offer({"tools": TOOLS, "tool_choice": "required"})
    assert deltas(BOTH.partition("\n")[2], 9, offer)[0][0].content is None


# -- responses


def asked(hearing: Hearing = HEARING) -> response_answers.Asked:
    base: dict[str, Any] = {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "model": "m",
        "output": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }
    return response_answers.Asked(ASKED, hearing, (), (), base, tokenizer(), logprobs=False)


def test_a_response_that_calls() -> None:
    made, kept = response_answers.whole(answer(BOTH), asked())
    response = Response.model_validate(made)
    assert [item.type for item in response.output] == ["message", "function_call", "function_call"]
    assert response.output_text == "Let me see."
    call: Any = response.output[1]
    assert (call.name, json.loads(call.arguments), call.status) == ("clock", {"zone": "UTC"}, "completed")
    assert kept.messages == (Message("assistant", BOTH),)
    assert kept.calls == tuple((item.call_id, item.name) for item in cast("Sequence[Any]", response.output[1:]))


def unbroken() -> None:
    pytest.fail("the stream is whole")


@SIZES
def test_a_response_that_calls_as_a_stream(size: int) -> None:
    events = told(response_answers.events(script(BOTH, size), asked(), ME, None, unbroken))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"].removeprefix("response.") for event in events]
    call = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]
    texts = ["output_item.added", "content_part.added", "output_text.delta", "output_text.done"]
    once = [kind for n, kind in enumerate(kinds) if n == 0 or kind != kinds[n - 1]]
    assert once == [
        *("created", "in_progress", *texts, "content_part.done", "output_item.done"),
        *(*call, *call, "completed"),
    ]
    done = events[-1]["response"]["output"]
    assert [event["item"] for event in events if event["type"].endswith("output_item.done")] == done
    for index, item in enumerate(done[1:], 1):
        mine = [event for event in events if event.get("output_index") == index]
        parts = [event["delta"] for event in mine if event["type"].endswith("arguments.delta")]
        assert "".join(parts) == item["arguments"]
        assert mine[0]["item"] == {**item, "arguments": "", "status": "in_progress"}
        assert {event.get("item_id", item["id"]) for event in mine} == {item["id"]}
    whole = response_answers.whole(answer(BOTH), asked())[0]["output"]
    assert [item["type"] for item in whole] == [item["type"] for item in done]


def test_a_response_with_a_custom_tool() -> None:
    hearing = Hearing(offer=chat_offer({"tools": [SQL]}))
    events = told(response_answers.events(script(TEXT, 3), asked(hearing), ME, None, unbroken))
    (item,) = events[-1]["response"]["output"]
    assert (item["type"], item["name"], item["input"]) == ("custom_tool_call", "sql", 'SELECT "1"')
    parts = [event["delta"] for event in events if event["type"] == "response.custom_tool_call_input.delta"]
    assert "".join(parts) == 'SELECT "1"'


def test_a_response_with_thoughts() -> None:
    hearing = Hearing(offer=OFFER, thoughts=Thoughts("maybe"))
    text = f"<think>\nhm\n</think>\n\n{BOTH}"

    made = asked(hearing)
    output = made.output(lambda name, /, **fields: Event(name, fields))
    speech = hearing.speech()
    output.begin()
    output.take(speech.push(text, last=True), speech, ())
    output.close("completed")
    kinds = [item["type"] for item in output.items]
    assert kinds == ["reasoning", "message", "function_call", "function_call"]
    assert output.items[0]["content"] == [{"type": "reasoning_text", "text": "hm"}]
    assert made.kept({}, text, speech.said).messages == (Message("assistant", BOTH),)


def test_a_response_that_says_nothing() -> None:
    response = Response.model_validate(response_answers.whole(answer(""), asked())[0])
    assert [item.type for item in response.output] == ["message"]
    assert response.output_text == ""


# -- Anthropic


def test_a_message_that_uses_tools() -> None:
    made = anthropic._message(answer(BOTH), HEARING, ME, "m")
    text, first, second = made["content"]
    assert text == {"type": "text", "text": "Let me see."}
    assert {**first, "id": ""} == {"type": "tool_use", "id": "", "name": "clock", "input": {"zone": "UTC"}}
    assert (second["name"], second["input"], made["stop_reason"]) == ("weather", {}, "tool_use")
    assert first["id"].startswith("toolu_")
    cut = anthropic._message(answer(CUT, CUT_META), HEARING, ME, "m")
    assert (cut["content"][0]["input"], cut["stop_reason"]) == ({}, "max_tokens")


@SIZES
def test_a_message_that_uses_tools_as_a_stream(size: int) -> None:
    events = told(anthropic._events(script(BOTH, size), ASKED, HEARING, ME, "m"))
    kinds = [event["type"] for event in events]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    once = [kind for n, kind in enumerate(kinds) if n == 0 or kind != kinds[n - 1]]
    assert once == ["message_start", "ping", *block * 3, "message_delta", "message_stop"]
    starts = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert [start["type"] for start in starts] == ["text", "tool_use", "tool_use"]
    assert [start.get("input") for start in starts] == [None, {}, {}]
    inner = [event for event in events if event["type"] == "content_block_delta"]
    jsons = ["".join(e["delta"]["partial_json"] for e in inner if e["index"] == index) for index in (1, 2)]
    assert jsons == ['{"zone": "UTC"}', "{}"]
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}


def test_a_message_that_thinks() -> None:
    hearing = Hearing(offer=OFFER, thoughts=Thoughts("inside"))
    made = anthropic._message(answer(f"hm\n</think>\n\n{BOTH}"), hearing, ME, "m")
    assert made["content"][0] == {"type": "thinking", "thinking": "hm", "signature": ""}
    events = told(anthropic._events(script(f"hm\n</think>\n\n{BOTH}", 2), ASKED, hearing, ME, "m"))
    starts = [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"]
    assert starts == ["thinking", "text", "tool_use", "tool_use"]


# -- Ollama


def job(hearing: Hearing = HEARING) -> ollama._Job:
    return ollama._Job(ASKED, hearing, ME, "m", chat=True)


@SIZES
def test_an_ollama_chat_that_calls(size: int) -> None:
    lines = told(ollama._lines(script(BOTH, size), job()))
    assert "".join(line["message"]["content"] for line in lines) == "Let me see."
    calls = [call["function"] for line in lines for call in line["message"].get("tool_calls", ())]
    assert calls == [
        {"index": 0, "name": "clock", "arguments": {"zone": "UTC"}},
        {"index": 1, "name": "weather", "arguments": {}},
    ]
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert lines[-1]["done_reason"] == "stop"


def test_an_ollama_call_that_the_length_cut_is_left_out() -> None:
    lines = told(ollama._lines(script(CUT, 4, CUT_META), job()))
    assert not any("tool_calls" in line["message"] for line in lines)
    assert lines[-1]["done_reason"] == "length"
