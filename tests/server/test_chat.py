"""Chat completions: the engine's own answers, in the shapes of the `openai` package, through its own clients."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from ramet.frontend import ir
from ramet.runtime.server.call import Call, Chat, Message
from ramet.runtime.server.compose import layout

from .offline import finished
from .serving import WAIT, Served, serving

pytestmark = pytest.mark.model
PATH = "/v1/chat/completions"
ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why is the sky blue?"}]
CHAT = Chat((Message("system", "Be brief."), Message("user", "Why is the sky blue?")))
SEEDED: dict[str, Any] = {"temperature": 0.9, "max_tokens": 8, "seed": 11}
FIXED: dict[str, Any] = {**SEEDED, "ignore_eos": True}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(engine={"context": 384}) as made:
        yield made


@pytest.fixture(scope="module")
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=WAIT) as client:
        yield client


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", timeout=WAIT, max_retries=0) as made:
        yield made


def offline(served: Served, chat: Chat = CHAT, n: int = 1, **sampling: Any) -> list[ir.Finished]:
    """What the engine gives for the same chat, without a server."""
    return finished(served, *layout(chat, Call((chat,), ir.Sampling(**sampling), n=n)).ops)


def post(http: httpx.Client, **body: Any) -> httpx.Response:
    return http.post(PATH, json={"messages": ASKED, "model": "tiny", **body})


def ask(http: httpx.Client, **body: Any) -> ChatCompletion:
    answer = post(http, **body)
    assert answer.status_code == 200, answer.text
    return ChatCompletion.model_validate(answer.json(), strict=True)


def refused(http: httpx.Client, status: int, **body: Any) -> dict[str, Any]:
    answer = post(http, **body)
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


def stream(http: httpx.Client, **body: Any) -> list[dict[str, Any]]:
    with http.stream("POST", PATH, json={"messages": ASKED, "model": "tiny", "stream": True, **body}) as answer:
        assert answer.status_code == 200
        lines = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
    return chunks


def joined(chunks: list[dict[str, Any]], choice: int = 0) -> str:
    return "".join(c["delta"].get("content", "") for k in chunks for c in k["choices"] if c["index"] == choice)


# -- one answer


def test_it_is_the_engines_own_answer(served: Served, http: httpx.Client) -> None:
    (whole,) = offline(served, **SEEDED)
    answer = ask(http, **SEEDED)
    (choice,) = answer.choices
    assert choice.message.content == whole.value
    assert choice.finish_reason == whole.meta.finish_reason
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == whole.meta.prompt_tokens
    assert answer.usage.completion_tokens == whole.meta.completion_tokens
    assert answer.usage.total_tokens == whole.meta.prompt_tokens + whole.meta.completion_tokens


def test_cached_tokens_are_always_told(http: httpx.Client) -> None:
    messages = [{"role": "user", "content": "A question that nobody asked before, about herons."}]
    first, again = (ask(http, messages=messages, **FIXED).usage for _ in range(2))
    assert first is not None
    assert again is not None
    assert first.prompt_tokens_details is not None
    assert again.prompt_tokens_details is not None
    assert again.completion_tokens_details is not None
    assert again.prompt_tokens_details.cached_tokens == again.prompt_tokens - 1
    assert first.prompt_tokens_details.cached_tokens is not None
    assert first.prompt_tokens_details.cached_tokens < again.prompt_tokens - 1


def test_a_salt_has_a_cache_of_its_own(http: httpx.Client) -> None:
    ask(http, **FIXED)
    usage = ask(http, cache_salt="pepper", **FIXED).usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 0


def test_several_choices_share_the_prompt(served: Served, http: httpx.Client) -> None:
    wholes = offline(served, n=3, **FIXED)
    answer = ask(http, n=3, **FIXED)
    assert [c.message.content for c in answer.choices] == [w.value for w in wholes]
    assert [c.index for c in answer.choices] == [0, 1, 2]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 24
    assert answer.usage.prompt_tokens == wholes[0].meta.prompt_tokens


def test_logprobs_are_the_engines(served: Served, http: httpx.Client) -> None:
    (whole,) = offline(served, logprobs=3, **FIXED)
    (choice,) = ask(http, logprobs=True, top_logprobs=3, **FIXED).choices
    assert choice.logprobs is not None
    content = choice.logprobs.content or []
    assert [each.logprob for each in content] == [log.logprob for log in whole.meta.logprobs]
    assert [[top.logprob for top in each.top_logprobs] for each in content] == [
        [value for _, _, value in log.top] for log in whole.meta.logprobs
    ]
    raw = b"".join(bytes(each.bytes or []) for each in content)
    assert raw.decode("utf-8", "replace") == whole.value
    assert ask(http, **FIXED).choices[0].logprobs is None


def test_token_ids(served: Served, http: httpx.Client) -> None:
    (whole,) = offline(served, **FIXED)
    answer = post(http, return_token_ids=True, logprobs=True, return_tokens_as_token_ids=True, **FIXED).json()
    assert answer["choices"][0]["token_ids"] == list(whole.meta.tokens)
    assert len(answer["prompt_token_ids"]) == whole.meta.prompt_tokens
    named = [each["token"] for each in answer["choices"][0]["logprobs"]["content"]]
    assert named == [f"token_id:{token}" for token in whole.meta.tokens]
    chunks = stream(http, return_token_ids=True, **FIXED)
    assert chunks[0]["prompt_token_ids"] == answer["prompt_token_ids"]
    assert chunks[-1]["choices"][0]["token_ids"] == answer["choices"][0]["token_ids"]


def test_a_stop_is_cut_off_and_named(served: Served, http: httpx.Client) -> None:
    (whole,) = offline(served, **{**FIXED, "max_tokens": 24})
    stop = whole.value[4:7]
    long = {**FIXED, "max_tokens": 24, "stop": stop}
    answer = post(http, **long).json()["choices"][0]
    assert answer["message"]["content"] == whole.value[: whole.value.index(stop)]
    assert (answer["finish_reason"], answer["stop_reason"], answer["matched_stop"]) == ("stop", stop, stop)
    kept = post(http, include_stop_str_in_output=True, **long).json()["choices"][0]
    assert kept["message"]["content"] == answer["message"]["content"] + stop
    assert joined(stream(http, no_stop_trim=True, **long)) == kept["message"]["content"]


def test_without_a_limit_it_goes_on_to_the_end_of_the_context(served: Served, http: httpx.Client) -> None:
    answer = ask(http, seed=3, ignore_eos=True)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.total_tokens >= served.service.context


def test_parts_and_roles_are_the_same_chat(http: httpx.Client) -> None:
    parts = [{"type": "text", "text": "Why is "}, {"type": "text", "text": "the sky blue?"}]
    other = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    assert ask(http, messages=other, **FIXED).choices == ask(http, **FIXED).choices


def test_a_message_goes_on(served: Served, http: httpx.Client) -> None:
    begun = Chat((*CHAT.messages, Message("assistant", "Because of")), continue_final=True)
    (whole,) = offline(served, begun, **FIXED)
    messages = [*ASKED, {"role": "assistant", "content": "Because of"}]
    for more in ({"continue_final_message": True}, {"continue_final_message": True, "add_generation_prompt": False}):
        assert ask(http, messages=messages, **more, **FIXED).choices[0].message.content == whole.value
    messages[-1]["prefix"] = True  # type: ignore[assignment]
    assert ask(http, messages=messages, **FIXED).choices[0].message.content == whole.value
    bare = Chat(CHAT.messages, begin_reply=False)
    (plain,) = offline(served, bare, **FIXED)
    assert ask(http, add_generation_prompt=False, **FIXED).choices[0].message.content == plain.value


# -- streams


@pytest.mark.parametrize("more", [{}, {"n": 2}, {"logprobs": True, "top_logprobs": 5}])
def test_a_stream_is_the_whole_in_pieces(http: httpx.Client, more: dict[str, Any]) -> None:
    answer, chunks = ask(http, **more, **FIXED), stream(http, **more, **FIXED)
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert "usage" not in chunks[0]
    for choice in answer.choices:
        mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice.index]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert joined(chunks, choice.index) == choice.message.content
        assert [c["finish_reason"] for c in mine] == [None] * (len(mine) - 1) + [choice.finish_reason]
        if choice.logprobs is not None:
            logs = [log for c in mine for log in (c["logprobs"] or {}).get("content", [])]
            assert logs == choice.logprobs.model_dump()["content"]


def test_usage_comes_last_when_it_is_asked_for(http: httpx.Client) -> None:
    answer = ask(http, **FIXED)
    assert answer.usage is not None
    *chunks, last = stream(http, stream_options={"include_usage": True}, **FIXED)
    assert [chunk["usage"] for chunk in chunks] == [None] * len(chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == answer.usage.completion_tokens == 8
    assert last["usage"]["prompt_tokens_details"] == {"cached_tokens": answer.usage.prompt_tokens - 1}
    both = {"include_usage": True, "continuous_usage_stats": True}
    counts = [c["usage"]["completion_tokens"] for c in stream(http, stream_options=both, **FIXED)]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 8)


def test_the_openai_client(served: Served, client: openai.OpenAI) -> None:
    messages: Any = ASKED
    (whole,) = offline(served, **SEEDED)
    answer = client.chat.completions.create(model="tiny", messages=messages, **SEEDED)
    assert answer.choices[0].message.content == whole.value
    assert answer._request_id
    assert answer.id == f"chatcmpl-{answer._request_id}"
    with client.chat.completions.create(model="tiny", messages=messages, stream=True, **SEEDED) as chunks:
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.value
    with client.chat.completions.stream(model="tiny", messages=messages, stop=whole.value[4:7], **SEEDED) as helper:
        final = helper.get_final_completion()
    assert final.choices[0].message.content == whole.value[: whole.value.index(whole.value[4:7])]
    with pytest.raises(openai.NotFoundError, match="tiny"):
        client.chat.completions.create(model="gpt-4", messages=messages)


def test_the_async_client(served: Served) -> None:
    messages: Any = ASKED
    (whole,) = offline(served, **SEEDED)

    async def main() -> tuple[str | None, str]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", timeout=WAIT) as client:
            answer = await client.chat.completions.create(model="tiny", messages=messages, **SEEDED)
            chunks = await client.chat.completions.create(model="tiny", messages=messages, stream=True, **SEEDED)
            texts = [chunk.choices[0].delta.content or "" async for chunk in chunks]
        return answer.choices[0].message.content, "".join(texts)

    assert asyncio.run(main()) == (whole.value, whole.value)


def test_a_failure_is_told_in_the_stream(client: openai.OpenAI, served: Served) -> None:
    messages: Any = ASKED
    body: dict[str, Any] = {"rid": "to-be-aborted", "ignore_eos": True}
    chunks = client.chat.completions.create(model="tiny", messages=messages, stream=True, extra_body=body)
    next(chunks)
    httpx.post(f"{served.url}/abort_request", json={"rid": "to-be-aborted"}, timeout=WAIT)
    with pytest.raises(openai.APIError, match="aborted"):
        list(chunks)


def test_an_id_is_used_once_at_a_time(served: Served, http: httpx.Client, client: openai.OpenAI) -> None:
    messages: Any = ASKED
    body: dict[str, Any] = {"rid": "only-one", "ignore_eos": True}
    chunks = client.chat.completions.create(model="tiny", messages=messages, stream=True, extra_body=body)
    assert next(chunks).id == "chatcmpl-only-one"
    assert refused(http, 409, rid="only-one")["param"] == "rid"
    chunks.close()
    while served.service.running:  # a client that goes away ends its request, long before its last token
        assert http.get("/health").status_code == 200
    assert ask(http, rid="only-one", **FIXED).id == "chatcmpl-only-one"


# -- what is refused, what is told


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0]"),
        ({"n": 0}, "n"),
        ({"n": 10**9}, "n"),
        ({"logprobs": True, "top_logprobs": 10**6}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"timeout": 0}, "timeout"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"continue_final_message": True}, "messages"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "add_generation_prompt"),
        ({"priority": 1 << 40}, "priority"),
        ({"messages": [{"role": "user", "content": "x"}] * 2000}, "messages"),
    ],
)
def test_what_cannot_be_meant(http: httpx.Client, body: dict[str, Any], param: str) -> None:
    assert refused(http, 400, **body)["param"] == param


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("modalities", ["text", "audio"]),
        ("chat_template", "{{ x }}"),
        ("chat_template_kwargs", {"enable_thinking": True}),
        ("skip_special_tokens", False),
        ("prompt_logprobs", 0),
        ("lora_path", "x"),
    ],
)
def test_what_is_not_offered_is_never_ignored(http: httpx.Client, name: str, value: Any) -> None:
    error = refused(http, 400, **{name: value})
    assert (error["code"], error["param"]) == ("unsupported_parameter", name)


def test_content_that_is_not_text_is_refused(http: httpx.Client) -> None:
    image = [{"type": "image_url", "image_url": {"url": "https://example.org/x.png"}}]
    error = refused(http, 400, messages=[{"role": "user", "content": image}])
    assert (error["code"], error["param"]) == ("unsupported_parameter", "messages[0].content[0]")


def test_a_deadline_is_told(http: httpx.Client) -> None:
    for streamed in (False, True):
        assert refused(http, 504, timeout=1e-6, stream=streamed)["code"] == "deadline_exceeded"


def test_what_asks_for_nothing_is_taken(http: httpx.Client) -> None:
    nothing = {
        "tools": None,
        "tool_choice": "auto",
        "functions": [],
        "response_format": {"type": "text"},
        "user": "me",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
        "reasoning_effort": "low",
        "parallel_tool_calls": False,
        "modalities": ["text"],
        "stop": None,
        "logprobs": False,
        "top_logprobs": 0,
        "max_completion_tokens": 8,
        "chat_template_kwargs": {},
        "guided_json": None,
    }
    answer = post(http, **FIXED, **nothing)
    assert answer.json()["choices"] == post(http, **FIXED).json()["choices"]
    assert "warnings" not in answer.json()
    assert post(http, **{**FIXED, "tools": []}).json()["choices"] == answer.json()["choices"]


def test_what_is_not_known_is_told(http: httpx.Client) -> None:
    named = [{**ASKED[0], "name": "boss"}, ASKED[1]]
    answer = post(http, messages=named, temprature=1, **FIXED)
    told = answer.json()["warnings"]
    assert "temprature" in told[0]
    assert "temperature" in told[0]
    assert "messages[0].name" in told[1]
    assert "temprature" in answer.headers["X-Ramet-Warnings"]


def test_a_prompt_beyond_the_context_is_not_cut(http: httpx.Client, served: Served) -> None:
    long = [{"role": "user", "content": "word " * 2 * served.service.context}]
    for body in ({"messages": long}, {"messages": long, "stream": True}, {"max_tokens": served.service.context}):
        error = refused(http, 400, **body)
        assert error["code"] == "context_length_exceeded"
        assert f"maximum context length is {served.service.context} tokens. However, you requested" in error["message"]


def test_more_messages_than_a_template_may_render_are_the_clients_error(http: httpx.Client) -> None:
    error = refused(http, 400, messages=[{"role": "user", "content": "x"}] * 400)
    assert error["type"] == "invalid_request_error"
