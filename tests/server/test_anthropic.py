"""Anthropic's Messages: its own client, unmodified, gets the engine's own answers in its own types."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest

from ramet.runtime.server.call import Message
from ramet.runtime.server.dialect import turns
from ramet.runtime.template import CHATML, ChatTemplate

from .offline import said
from .serving import WAIT, Served, in_process_client, serving

pytestmark = pytest.mark.model
KEY = "the-key"
HELLO: Any = [{"role": "user", "content": "Hello there"}]
GREEDY: dict[str, Any] = {"model": "tiny", "max_tokens": 8, "temperature": 0.0}
ASKED: dict[str, Any] = {  # the same by the client, whose newer versions do not name `temperature`
    "model": "tiny",
    "max_tokens": 8,
    "extra_body": {"temperature": 0.0},
}
CALL = '<tool_call>\n{"name": "clock", "arguments": {"zone": "UTC"}}\n</tool_call>'
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(api_key=(KEY,)) as made:
        yield made


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=served.url, api_key=KEY, max_retries=0, timeout=WAIT) as made:
        yield made


@pytest.fixture(scope="module")
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, headers={"x-api-key": KEY}, timeout=WAIT) as made:
        yield made


def events(http: httpx.Client, **body: Any) -> list[tuple[str, dict[str, Any]]]:
    """A stream's events as they came over the wire."""
    with http.stream("POST", "/v1/messages", json={**GREEDY, **body, "stream": True}) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        text = answer.read().decode()
    found = []
    for block in text.strip().split("\n\n"):
        name, data = (line.partition(": ")[2] for line in block.split("\n"))
        found.append((name, json.loads(data)))
    return found


def refused(http: httpx.Client, status: int, path: str = "/v1/messages", **body: Any) -> dict[str, Any]:
    answer = http.post(path, json={**GREEDY, "messages": HELLO, **body})
    assert answer.status_code == status, answer.text
    whole = answer.json()
    assert whole["type"] == "error"
    assert whole["request_id"] == answer.headers["request-id"]
    error: dict[str, Any] = whole["error"]
    return error


# -- answers


def test_message_is_the_engines_own(served: Served, client: anthropic.Anthropic) -> None:
    want = said(served, ("user", "Hello there"))
    message = client.messages.create(messages=HELLO, **ASKED)
    assert [(block.type, block.text) for block in message.content if block.type == "text"] == [("text", want.value)]
    assert (message.role, message.type, message.model) == ("assistant", "message", "tiny")
    assert (message.stop_reason, message.stop_sequence) == ("max_tokens", None)
    assert message.id == f"msg_{message._request_id}"
    usage = message.usage
    assert usage.output_tokens == want.meta.completion_tokens == 8
    assert usage.cache_creation_input_tokens == 0
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == want.meta.prompt_tokens
    again = client.messages.create(messages=HELLO, **ASKED).usage
    assert (again.input_tokens, again.cache_read_input_tokens) == (1, want.meta.prompt_tokens - 1)


def test_stream_is_the_message(client: anthropic.Anthropic) -> None:
    whole = client.messages.create(messages=HELLO, **ASKED)
    with client.messages.stream(messages=HELLO, **ASKED) as stream:
        text = "".join(stream.text_stream)
        last = stream.get_final_message()
    assert text == last.content[0].text == whole.content[0].text  # type: ignore[union-attr]
    assert (last.stop_reason, last.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)


def test_async_client_and_bearer(served: Served) -> None:
    async def main() -> tuple[str, str]:
        async with anthropic.AsyncAnthropic(
            base_url=served.url, api_key=None, auth_token=KEY, max_retries=0, timeout=WAIT
        ) as client:
            whole = await client.messages.create(messages=HELLO, **ASKED)
            async with client.messages.stream(messages=HELLO, **ASKED) as stream:
                text = "".join([part async for part in stream.text_stream])
        return whole.content[0].text, text  # type: ignore[union-attr]

    whole, text = asyncio.run(main())
    assert whole == text != ""


def test_beta_client(client: anthropic.Anthropic) -> None:
    plain = client.messages.create(messages=HELLO, **ASKED)
    beta = client.beta.messages.create(messages=HELLO, betas=["context-1m-2025-08-07"], **ASKED)
    assert beta.content[0].text == plain.content[0].text  # type: ignore[union-attr]


def test_order_of_events(http: httpx.Client) -> None:
    found = events(http, messages=HELLO)
    assert all(name == data["type"] for name, data in found)
    names = [name for name, _ in found]
    deltas = names.count("content_block_delta")
    assert names == [
        *("message_start", "content_block_start", "ping"),
        *["content_block_delta"] * deltas,
        *("content_block_stop", "message_delta", "message_stop"),
    ]
    assert deltas > 0
    start = found[0][1]["message"]
    assert (start["content"], start["stop_reason"], start["usage"]["output_tokens"]) == ([], None, 0)
    end = found[-2][1]
    assert end["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert end["usage"]["output_tokens"] == 8
    assert end["usage"]["input_tokens"] == start["usage"]["input_tokens"]


def test_stop_sequence(served: Served, client: anthropic.Anthropic) -> None:
    text = said(served, ("user", "Hello there"), max_tokens=24).value
    stop = text[len(text) // 2 :][:2]
    message = client.messages.create(messages=HELLO, **{**ASKED, "max_tokens": 24}, stop_sequences=["\0never", stop])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
    assert message.content[0].text == text[: text.index(stop)]  # type: ignore[union-attr]


def test_nothing_to_generate_caches(client: anthropic.Anthropic) -> None:
    messages: Any = [{"role": "user", "content": "A prompt that nobody has sent before this"}]
    warm = client.messages.create(messages=messages, model="tiny", max_tokens=0)
    assert (warm.content, warm.stop_reason, warm.usage.output_tokens) == ([], "max_tokens", 0)
    read = client.messages.create(messages=messages, **ASKED).usage.cache_read_input_tokens or 0
    assert read >= warm.usage.input_tokens + (warm.usage.cache_read_input_tokens or 0) - 1
    with client.messages.stream(messages=messages, model="tiny", max_tokens=0) as stream:
        assert stream.get_final_message().content == []


# -- what the model reads


def test_system_and_blocks(served: Served, client: anthropic.Anthropic) -> None:
    want = said(served, ("system", "Be brief.\nBe kind."), ("user", "One\nTwo"))
    message = client.messages.create(
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}, text("Be kind.")],
        messages=[{"role": "user", "content": [text("One"), text("Two")]}],
        **ASKED,
    )
    assert message.content[0].text == want.value  # type: ignore[union-attr]


def text(words: str) -> Any:
    return {"type": "text", "text": words}


def test_last_message_of_the_assistant_goes_on(served: Served, client: anthropic.Anthropic) -> None:
    want = said(served, ("user", "Hello there"), ("assistant", "The answer is"), left_open=True)
    messages: Any = [*HELLO, {"role": "assistant", "content": "The answer is"}]
    assert client.messages.create(messages=messages, **ASKED).content[0].text == want.value  # type: ignore[union-attr]


def test_empty_last_message_is_a_reply(served: Served, client: anthropic.Anthropic) -> None:
    messages: Any = [*HELLO, {"role": "assistant", "content": ""}]
    answer = client.messages.create(messages=messages, **ASKED)
    assert answer.content[0].text == said(served, ("user", "Hello there")).value  # type: ignore[union-attr]


def test_turns_of_one_role_are_one(served: Served, http: httpx.Client) -> None:
    want = said(served, ("user", "One\n\nTwo"), ("system", "Now be brief."), ("user", "Three"))
    turns = [("user", "One"), ("user", "Two"), ("system", "Now be brief."), ("user", "Three")]
    messages = [{"role": role, "content": content} for role, content in turns]
    answer = http.post("/v1/messages", json={**GREEDY, "messages": messages})
    assert answer.json()["content"][0]["text"] == want.value


def test_tools_in_a_history_are_text(served: Served, client: anthropic.Anthropic) -> None:
    want = said(
        served,
        ("user", "What time is it?"),
        ("assistant", f"Let me see.\n{CALL}\n{CALL}"),
        ("user", "<tool_response>\nnoon\n</tool_response>\n<tool_response>\nError: broken\n</tool_response>"),
    )
    use = {"type": "tool_use", "id": "t1", "name": "clock", "input": {"zone": "UTC"}}
    results = [
        {"type": "tool_result", "tool_use_id": "t1", "content": [text("noon")]},
        {"type": "tool_result", "tool_use_id": "t2", "content": "broken", "is_error": True},
    ]
    thought = {"type": "thinking", "thinking": "hm", "signature": "x"}
    messages: Any = [
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "content": [thought, text("Let me see."), use, {**use, "id": "t2"}]},
        {"role": "user", "content": results},
    ]
    assert client.messages.create(messages=messages, **ASKED).content[0].text == want.value  # type: ignore[union-attr]


def test_system_where_the_template_has_none() -> None:
    plain = ChatTemplate(NO_SYSTEM, context=1024)
    chatml = ChatTemplate(CHATML, context=1024)
    messages = [Message("system", "S"), Message("user", "U"), Message("assistant", "A"), Message("system", "T")]
    assert turns(messages, plain) == (Message("user", "S\n\nU"), Message("assistant", "A"), Message("user", "T"))
    assert turns(messages, chatml) == tuple(messages)


def test_count_is_what_a_message_uses(client: anthropic.Anthropic) -> None:
    system = "You count."
    counted = client.messages.count_tokens(model="tiny", system=system, messages=HELLO).input_tokens
    usage = client.messages.create(system=system, messages=HELLO, **ASKED).usage
    assert counted == usage.input_tokens + (usage.cache_read_input_tokens or 0)


# -- what is refused, and how


@pytest.mark.parametrize(
    ("status", "kind", "body"),
    [
        (404, "not_found_error", {"model": "claude-none"}),
        (400, "invalid_request_error", {"messages": []}),
        (400, "invalid_request_error", {"messages": [{"role": "robot", "content": "x"}]}),
        (400, "invalid_request_error", {"messages": [{"role": "user"}]}),
        (400, "invalid_request_error", {"messages": "hello"}),
        (400, "invalid_request_error", {"max_tokens": -1}),
        (400, "invalid_request_error", {"max_tokens": 10**9}),
        (400, "invalid_request_error", {"max_tokens": None}),
        (400, "invalid_request_error", {"temperature": 1.5}),
        (400, "invalid_request_error", {"top_p": 2}),
        (400, "invalid_request_error", {"stop_sequences": [""]}),
        (400, "invalid_request_error", {"tools": [{"name": "f"}]}),
        (400, "invalid_request_error", {"tool_choice": {"type": "any"}}),
        (400, "invalid_request_error", {"output_config": {"format": {"type": "json_schema"}}}),
        (400, "invalid_request_error", {"output_format": {"type": "xml"}}),
        (400, "invalid_request_error", {"guided_regex": "(a"}),
        (400, "invalid_request_error", {"mcp_servers": [{"type": "url", "url": "http://x"}]}),
        (400, "invalid_request_error", {"messages": [{"role": "user", "content": "x " * 4000}]}),
    ],
)
def test_refused(http: httpx.Client, status: int, kind: str, body: dict[str, Any]) -> None:
    for stream in (False, True):
        assert refused(http, status, **body, stream=stream)["type"] == kind


@pytest.mark.parametrize("kind", ["image", "document", "search_result", "no such"])
def test_other_blocks_are_refused(http: httpx.Client, kind: str) -> None:
    error = refused(http, 400, messages=[{"role": "user", "content": [text("see"), {"type": kind}]}])
    assert "messages[0].content[1]" in error["message"]
    assert kind in error["message"]


def test_length_is_said_as_clients_look_for_it(http: httpx.Client) -> None:
    error = refused(http, 400, max_tokens=5000)
    assert "maximum context length is 1024 tokens" in error["message"]


def test_missing_field_is_named(http: httpx.Client) -> None:
    answer = http.post("/v1/messages", json={"model": "tiny", "messages": HELLO})
    assert answer.json()["error"] == {"type": "invalid_request_error", "message": "`max_tokens` is required"}


def test_broken_json_has_the_shape(http: httpx.Client) -> None:
    answer = http.post("/v1/messages", content=b'{"model": "tiny", ')
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


def test_count_refuses_too(http: httpx.Client) -> None:
    assert refused(http, 404, "/v1/messages/count_tokens", model="other")["type"] == "not_found_error"
    tools = [{"name": "f"}]
    assert refused(http, 400, "/v1/messages/count_tokens", tools=tools)["type"] == "invalid_request_error"


def test_clients_errors(served: Served, client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(messages=HELLO, **{**ASKED, "model": "other"})
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(messages=[], **ASKED)
    stranger = anthropic.Anthropic(base_url=served.url, api_key="wrong", max_retries=0, timeout=WAIT)
    with stranger, pytest.raises(anthropic.AuthenticationError):
        stranger.messages.create(messages=HELLO, **ASKED)


def test_error_in_a_stream_is_an_event(served: Served, client: anthropic.Anthropic) -> None:
    headers = {"X-Request-Id": "to-be-aborted"}
    with client.messages.stream(messages=HELLO, **{**ASKED, "max_tokens": 900}, extra_headers=headers) as stream:
        assert next(iter(stream)).type == "message_start"
        abort = httpx.post(
            f"{served.url}/abort_request", json={"rid": "to-be-aborted"}, headers={"x-api-key": KEY}, timeout=WAIT
        )
        assert abort.json() == {"aborted": 1}
        with pytest.raises(anthropic.APIStatusError) as caught:
            list(stream)
    body: Any = caught.value.body
    assert (body["type"], body["request_id"]) == ("error", "to-be-aborted")


# -- unknown fields


def test_unknown_fields_are_mentioned(http: httpx.Client) -> None:
    body = {**GREEDY, "messages": HELLO, "stop_sequence": ["x"], "metadata": {"user_id": "u"}}
    answer = http.post("/v1/messages", json=body)
    assert answer.status_code == 200
    assert "did you mean `stop_sequences`" in answer.headers["x-ramet-warnings"]
    assert "metadata" not in answer.headers["x-ramet-warnings"]


def test_thinking_is_mentioned(client: anthropic.Anthropic) -> None:
    raw = client.messages.with_raw_response.create(
        messages=HELLO, thinking={"type": "enabled", "budget_tokens": 1024}, **ASKED
    )
    assert "thinking" in raw.headers["x-ramet-warnings"]
    off = client.messages.with_raw_response.create(messages=HELLO, thinking={"type": "disabled"}, **ASKED)
    assert "x-ramet-warnings" not in off.headers


def test_unknown_fields_under_strict_requests() -> None:
    async def main() -> httpx.Response:
        async with in_process_client(strict_requests=True) as (http, _):
            return await http.post("/v1/messages", json={**GREEDY, "messages": HELLO, "foo": 1})

    answer = asyncio.run(main())
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert "`foo`" in answer.json()["error"]["message"]
