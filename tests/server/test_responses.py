"""Responses: the engine's own answers, in the shapes of the `openai` package, kept for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, get_args

import httpx
import msgspec
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from ramet.frontend import ir
from ramet.runtime.server.call import Call, Chat, Message
from ramet.runtime.server.compose import layout
from ramet.runtime.server.recall import Kept, Recall

from .offline import finished
from .serving import WAIT, Served, serving

pytestmark = pytest.mark.model
PATH = "/v1/responses"
QUESTION = "Why is the sky blue?"
CHAT = Chat((Message("user", QUESTION),))
SEEDED: dict[str, Any] = {"temperature": 0.9, "max_tokens": 8, "seed": 11, "ignore_eos": True}
FIXED: dict[str, Any] = {"temperature": 0.9, "max_output_tokens": 8, "seed": 11, "ignore_eos": True}
EXTRA: dict[str, Any] = {"seed": 11, "ignore_eos": True}
EVENT: TypeAdapter[Any] = TypeAdapter(get_args(ResponseStreamEvent)[0])
ORDER = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.incomplete",
]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(api_key=("alice", "bob")) as made:
        yield made


@pytest.fixture(scope="module")
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=WAIT, headers={"Authorization": "Bearer alice"}) as client:
        yield client


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="alice", timeout=WAIT, max_retries=0) as made:
        yield made


def offline(served: Served, *messages: Message, **sampling: Any) -> ir.Finished:
    chat = Chat(messages)
    (whole,) = finished(served, *layout(chat, Call((chat,), ir.Sampling(**{**SEEDED, **sampling}))).ops)
    return whole


def ask(http: httpx.Client, **body: Any) -> Response:
    answer = http.post(PATH, json={"input": QUESTION, "model": "tiny", **FIXED, **body})
    assert answer.status_code == 200, answer.text
    return Response.model_validate(answer.json(), strict=True)


def refused(http: httpx.Client, status: int, **body: Any) -> dict[str, Any]:
    answer = http.post(PATH, json={"input": QUESTION, "model": "tiny", **FIXED, **body})
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


def stream(http: httpx.Client, **body: Any) -> list[dict[str, Any]]:
    sent = {"input": QUESTION, "model": "tiny", "stream": True, **FIXED, **body}
    events = []
    with http.stream("POST", PATH, json=sent) as answer:
        assert answer.status_code == 200
        blocks = answer.read().decode().removesuffix("\n\n").split("\n\n")
    for block in blocks:
        name, data = block.split("\n")
        events.append(msgspec.json.decode(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
        EVENT.validate_python(events[-1], strict=True)
    return events


# -- one answer


def test_it_is_the_engines_own_answer(served: Served, http: httpx.Client) -> None:
    whole = offline(served, *CHAT.messages)
    answer = ask(http)
    assert answer.output_text == whole.value
    assert (answer.status, answer.object) == ("incomplete", "response")
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage is not None
    assert answer.usage.input_tokens == whole.meta.prompt_tokens
    assert answer.usage.output_tokens == 8
    details = ask(http).usage.input_tokens_details  # type: ignore[union-attr]
    assert details.cached_tokens == whole.meta.prompt_tokens - 1


def test_one_that_stops_by_itself_is_completed(served: Served, http: httpx.Client) -> None:
    whole = offline(served, *CHAT.messages, max_tokens=24)
    answer = ask(http, stop=whole.value[4:7], max_output_tokens=24)
    assert (answer.status, answer.incomplete_details) == ("completed", None)
    assert answer.completed_at is not None
    assert answer.output_text == whole.value[: whole.value.index(whole.value[4:7])]


def test_instructions_and_items(served: Served, http: httpx.Client) -> None:
    items = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello."}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Hi.", "annotations": []}]},
        {"role": "user", "content": QUESTION},
    ]
    whole = offline(
        served,
        Message("system", "Be brief."),
        Message("user", "Hello."),
        Message("assistant", "Hi."),
        Message("user", QUESTION),
    )
    assert ask(http, instructions="Be brief.", input=items).output_text == whole.value


def test_logprobs_are_the_engines(served: Served, http: httpx.Client) -> None:
    whole = offline(served, *CHAT.messages, logprobs=2)
    answer = ask(http, include=["message.output_text.logprobs"], top_logprobs=2)
    part = answer.output[0].content[0]  # type: ignore[union-attr]
    logs = part.logprobs  # type: ignore[union-attr]
    assert [log.logprob for log in logs] == [log.logprob for log in whole.meta.logprobs]  # type: ignore[union-attr]
    assert [len(log.top_logprobs) for log in logs] == [2] * 8  # type: ignore[union-attr]


# -- streams


def test_events_come_in_order_and_numbered(http: httpx.Client) -> None:
    whole, events = ask(http), stream(http)
    names = [event["type"] for event in events]
    assert list(dict.fromkeys(names)) == ORDER
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    deltas = [event["delta"] for event in events if event["type"] == ORDER[4]]
    assert "".join(deltas) == whole.output_text
    assert len(deltas) > 1
    assert events[-4]["text"] == whole.output_text
    last = Response.model_validate(events[-1]["response"])
    assert (last.output_text, last.status) == (whole.output_text, "incomplete")
    assert last.usage is not None
    assert whole.usage is not None
    assert last.usage.output_tokens == whole.usage.output_tokens
    ids = {event["response"]["id"] for event in events if "response" in event}
    assert len(ids) == 1
    assert {event["item_id"] for event in events if "item_id" in event} == {last.output[0].id}


def test_a_failure_ends_the_stream_with_its_events(served: Served, http: httpx.Client) -> None:
    sent = {"input": QUESTION, "stream": True, "rid": "doomed", "ignore_eos": True}
    with http.stream("POST", PATH, json=sent) as answer:
        lines = answer.iter_lines()
        assert next(lines) == "event: response.created"
        assert http.post("/abort_request", json={"rid": "doomed"}).json()["aborted"] == 1
        names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    assert names[-2:] == ["error", "response.failed"]


def test_the_openai_client(served: Served, client: openai.OpenAI) -> None:
    whole = offline(served, *CHAT.messages)
    asked: dict[str, Any] = {"model": "tiny", "input": QUESTION, "temperature": 0.9, "max_output_tokens": 8}
    answer = client.responses.create(**asked, extra_body=EXTRA)
    assert answer.output_text == whole.value
    with client.responses.create(**asked, stream=True, extra_body=EXTRA) as events:
        assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.value
    with client.responses.stream(**asked, extra_body={**EXTRA, "stop": whole.value[4:7]}) as helper:
        assert helper.get_final_response().status == "completed"
    again = client.responses.retrieve(answer.id)
    assert again.output_text == whole.value
    client.responses.delete(answer.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(answer.id)


def test_the_async_client(served: Served) -> None:
    whole = offline(served, *CHAT.messages)

    async def main() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="alice", timeout=WAIT) as client:
            asked: dict[str, Any] = {"model": "tiny", "input": QUESTION, "temperature": 0.9, "max_output_tokens": 8}
            answer = await client.responses.create(**asked, extra_body=EXTRA)
            events = await client.responses.create(**asked, stream=True, extra_body=EXTRA)
            deltas = [e.delta async for e in events if e.type == "response.output_text.delta"]
        return answer.output_text, "".join(deltas)

    assert asyncio.run(main()) == (whole.value, whole.value)


# -- what is kept


@pytest.mark.parametrize("streamed", [False, True])
def test_a_conversation_goes_on_without_its_instructions(served: Served, http: httpx.Client, streamed: bool) -> None:
    if streamed:
        first = Response.model_validate(stream(http, instructions="Be brief.")[-1]["response"])
    else:
        first = ask(http, instructions="Be brief.")
    whole = offline(served, Message("user", QUESTION), Message("assistant", first.output_text), Message("user", "And?"))
    second = ask(http, input="And?", previous_response_id=first.id)
    assert second.output_text == whole.value
    assert second.previous_response_id == first.id
    third = ask(http, input="So?", previous_response_id=second.id, max_output_tokens=4)
    assert third.usage is not None
    assert third.usage.input_tokens > whole.meta.prompt_tokens + 8


def test_a_response_is_its_callers(served: Served, http: httpx.Client) -> None:
    mine = ask(http)
    bob = {"Authorization": "Bearer bob"}
    assert http.get(f"{PATH}/{mine.id}", headers=bob).status_code == 404
    assert http.delete(f"{PATH}/{mine.id}", headers=bob).status_code == 404
    other = http.post(PATH, json={"input": "And?", "previous_response_id": mine.id}, headers=bob)
    assert other.json()["error"]["code"] == "previous_response_not_found"
    assert http.get(f"{PATH}/{mine.id}").json() == mine.model_dump(exclude_unset=True)


def test_what_is_not_to_be_stored_is_not(http: httpx.Client) -> None:
    answer = ask(http, store=False)
    assert answer.to_dict()["store"] is False
    assert http.get(f"{PATH}/{answer.id}").status_code == 404
    assert refused(http, 400, previous_response_id=answer.id)["param"] == "previous_response_id"


def kept(size: int) -> Kept:
    return Kept(b"x" * size, ())


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3000), st.floats(0, 40)), max_size=40))
@settings(deadline=None)
def test_the_store_is_bounded_and_expires(steps: list[tuple[int, int, float]]) -> None:
    now = 0.0
    recall = Recall(lambda: now, entries=4, characters=5000, seconds=60.0)
    model: dict[str, tuple[float, int]] = {}
    for name, size, wait in steps:
        now += wait
        recall.keep("me", str(name), kept(size))
        model.pop(str(name), None)
        model[str(name)] = (now + 60.0, kept(size).size())
        while len(model) > 4 or sum(s for _, s in model.values()) > 5000:
            del model[next(iter(model))]
        alive = {each for each, (expires, _) in model.items() if expires > now}
        assert {str(n) for n in range(10) if recall.find("me", str(n))} == alive
        assert recall.find("you", str(name)) is None
        assert len(recall) == len(alive)
        model = {each: model[each] for each in model if each in alive}


# -- what is refused


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [{"content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "assistant", "content": "x", "tool_calls": 5}]}, "input[0].tool_calls"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "", "arguments": "{}"}]}, "input[0].name"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f"}]}, "input[0].arguments"),
        (
            {"input": [{"role": "user", "content": "x"}, {"type": "custom_tool_call", "call_id": "c", "name": "f"}]},
            "input[1].input",
        ),
        ({"input": [{"type": "computer_call"}]}, "input[0]"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"truncation": "auto"}, "truncation"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"include": ["everything"]}, "include"),
        ({"metadata": {"k" * 65: "v"}}, "metadata"),
        ({"previous_response_id": "resp_0"}, "previous_response_id"),
        ({"temperature": 1000}, "temperature"),
    ],
)
def test_what_cannot_be_done(http: httpx.Client, body: dict[str, Any], param: str) -> None:
    for streamed in (False, True):
        assert refused(http, 400, stream=streamed, **body)["param"] == param


def test_what_asks_for_nothing_is_taken(http: httpx.Client) -> None:
    answer = ask(
        http,
        text={"format": {"type": "text"}, "verbosity": "low"},
        tools=[],
        tool_choice="auto",
        reasoning={"effort": "low"},
        include=["reasoning.encrypted_content"],
        truncation="disabled",
        background=False,
        metadata={"a": "b"},
        user="me",
    )
    assert answer.output_text == ask(http).output_text
    assert answer.metadata == {"a": "b"}
    assert not hasattr(answer, "warnings")


def test_min_tokens_has_an_effect_and_is_not_called_unknown(http: httpx.Client) -> None:
    answer = http.post(PATH, json={"input": QUESTION, "max_output_tokens": 2, "min_tokens": 2, "temperature": 0})
    assert answer.status_code == 200, answer.text
    assert "warnings" not in answer.json()
