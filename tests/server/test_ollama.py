"""Ollama's protocol: its own client, unmodified, gets the engine's own answers in its own types."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import ollama
import pytest

from .offline import finished, gen, said, text
from .serving import WAIT, Served, in_process_client, serving

pytestmark = pytest.mark.model
HELLO: list[dict[str, Any]] = [{"role": "user", "content": "Hello there"}]
GREEDY: dict[str, Any] = {"temperature": 0, "num_predict": 8}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving() as made:
        yield made


@pytest.fixture(scope="module")
def client(served: Served) -> ollama.Client:
    return ollama.Client(served.url, timeout=WAIT)


@pytest.fixture(scope="module")
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=WAIT) as made:
        yield made


def lines(http: httpx.Client, path: str, **body: Any) -> list[dict[str, Any]]:
    """A stream's lines as they came over the wire."""
    with http.stream("POST", path, json={"model": "tiny", "options": GREEDY, **body}) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/x-ndjson"
        return [json.loads(line) for line in answer.iter_lines()]


def refused(http: httpx.Client, status: int, path: str, **body: Any) -> str:
    answer = http.post(path, json={"model": "tiny", **body})
    assert answer.status_code == status, answer.text
    assert answer.headers["x-request-id"]
    whole = answer.json()
    assert list(whole) == ["error"]
    message: str = whole["error"]
    return message


# -- chat


def test_chat_is_the_engines_own(served: Served, client: ollama.Client) -> None:
    want = said(served, ("user", "Hello there"))
    answer = client.chat("tiny", HELLO, options=GREEDY)
    assert (answer.message.role, answer.message.content) == ("assistant", want.value)
    assert (answer.done, answer.done_reason, answer.model) == (True, "length", "tiny")
    assert (answer.prompt_eval_count, answer.eval_count) == (want.meta.prompt_tokens, 8)
    times = answer.total_duration, answer.prompt_eval_duration, answer.eval_duration
    assert all(isinstance(each, int) and each > 0 for each in times)
    assert sum(times[1:]) <= times[0]  # type: ignore[operator, arg-type]


def test_chat_streams_by_default(served: Served, http: httpx.Client) -> None:
    want = said(served, ("user", "Hello there"))
    found = lines(http, "/api/chat", messages=HELLO)
    assert "".join(line["message"]["content"] for line in found) == want.value
    assert [line["done"] for line in found] == [*[False] * (len(found) - 1), True]
    assert len(found) > 1
    last = found[-1]
    assert (last["message"]["content"], last["done_reason"], last["eval_count"]) == ("", "length", 8)
    assert last["cached_tokens"] == want.meta.prompt_tokens - 1 or last["cached_tokens"] == 0
    assert not {"done_reason", "eval_count"} & set(found[0])


def test_client_streams(served: Served, client: ollama.Client) -> None:
    parts = list(client.chat("tiny", HELLO, options=GREEDY, stream=True))
    assert "".join(part.message.content or "" for part in parts) == said(served, ("user", "Hello there")).value
    assert parts[-1].eval_count == 8


def test_async_client(served: Served) -> None:
    async def main() -> tuple[str, str]:
        client = ollama.AsyncClient(served.url, timeout=WAIT)
        whole = await client.chat("tiny", HELLO, options=GREEDY)
        stream = await client.generate("tiny", "Hello there", options=GREEDY, stream=True)
        text = "".join([part.response or "" async for part in stream])
        return whole.message.content or "", text

    whole, text = asyncio.run(main())
    assert whole == text == said(served, ("user", "Hello there")).value


def test_seed_and_defaults_of_sampling(served: Served, client: ollama.Client) -> None:
    sampling = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "seed": 11}
    want = said(served, ("user", "Hello there"), **sampling).value
    for _ in range(2):
        answer = client.chat("tiny", HELLO, options={"seed": 11, "num_predict": 8})
        assert answer.message.content == want


def test_all_options(served: Served, client: ollama.Client) -> None:
    sampling = {"temperature": 1.2, "top_k": 9, "top_p": 0.7, "min_p": 0.01, "seed": 5, "presence_penalty": 0.5}
    more = {"frequency_penalty": 0.25}
    want = said(served, ("user", "Hello there"), **sampling, **more, repetition_penalty=1.3).value
    options = {**sampling, **more, "repeat_penalty": 1.3, "num_predict": 8, "num_ctx": 1024, "num_gpu": 1}
    assert client.chat("tiny", HELLO, options=options).message.content == want
    off = client.chat("tiny", HELLO, options={**GREEDY, "repeat_penalty": 1.9, "repeat_last_n": 0})
    assert off.message.content == said(served, ("user", "Hello there")).value


def test_stop(served: Served, client: ollama.Client) -> None:
    text = said(served, ("user", "Hello there"), max_tokens=24).value
    stop = text[len(text) // 2 :][:2]
    answer = client.chat("tiny", HELLO, options={**GREEDY, "num_predict": 24, "stop": [stop]})
    assert (answer.message.content, answer.done_reason) == (text[: text.index(stop)], "stop")


def test_logprobs(served: Served, client: ollama.Client) -> None:
    want = said(served, ("user", "Hello there"), logprobs=2).meta.logprobs
    answer = client.chat("tiny", HELLO, options=GREEDY, logprobs=True, top_logprobs=2)
    assert [(log.token, log.logprob) for log in answer.logprobs or ()] == [(w.text, w.logprob) for w in want]
    tops = [[(top.token, top.logprob) for top in log.top_logprobs or ()] for log in answer.logprobs or ()]
    assert tops == [[(text, value) for _, text, value in w.top] for w in want]
    parts = client.chat("tiny", HELLO, options=GREEDY, logprobs=True, stream=True)
    assert [log.logprob for part in parts for log in part.logprobs or ()] == [w.logprob for w in want]


def test_history(served: Served, client: ollama.Client) -> None:
    want = said(
        served,
        ("system", "Be brief."),
        ("user", "What time is it?"),
        ("assistant", '<tool_call>\n{"name": "clock", "arguments": {"zone": "UTC"}}\n</tool_call>'),
        ("user", "<tool_response>\nnoon\n</tool_response>"),
    )
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What time is it?"},
        {
            "role": "assistant",
            "thinking": "hm",
            "tool_calls": [{"function": {"name": "clock", "arguments": {"zone": "UTC"}}}],
        },
        {"role": "tool", "content": "noon", "tool_name": "clock"},
    ]
    assert client.chat("tiny", messages, options=GREEDY).message.content == want.value


def test_last_message_of_the_assistant_goes_on(served: Served, client: ollama.Client) -> None:
    want = said(served, ("user", "Hello there"), ("assistant", "The answer is"), left_open=True)
    messages = [*HELLO, {"role": "assistant", "content": "The answer is"}]
    assert client.chat("tiny", messages, options=GREEDY).message.content == want.value


def test_without_a_limit_until_the_context_ends() -> None:
    with serving(engine={"context": 64}) as small:
        client = ollama.Client(small.url, timeout=WAIT)
        for options in (
            {"temperature": 0},
            {"temperature": 0, "num_predict": 0},
            {"temperature": 0, "num_predict": -1},
            {"temperature": 0, "num_predict": -2},
        ):
            answer = client.generate("tiny", "Hello", raw=True, options=options)
            assert answer.done_reason == "length"
            assert (answer.prompt_eval_count or 0) + (answer.eval_count or 0) == 64


# -- generate


def test_generate_uses_the_template(served: Served, client: ollama.Client) -> None:
    want = said(served, ("system", "Be brief."), ("user", "Hello there"))
    answer = client.generate("tiny", "Hello there", system="Be brief.", options=GREEDY)
    assert (answer.response, answer.done_reason) == (want.value, "length")
    assert len(answer.context or ()) == want.meta.prompt_tokens + 8


def test_raw_is_the_prompt_as_it_is(served: Served, client: ollama.Client) -> None:
    (want,) = finished(served, text("Once upon a time"), gen(temperature=0, max_tokens=8))
    answer = client.generate("tiny", "Once upon a time", raw=True, options=GREEDY)
    assert (answer.response, answer.context) == (want.value, None)


def test_context_goes_on_with_the_conversation(served: Served, http: httpx.Client, client: ollama.Client) -> None:
    first = lines(http, "/api/generate", prompt="Hello there")
    reply = "".join(line["response"] for line in first)
    second = client.generate("tiny", "And then?", context=first[-1]["context"], options=GREEDY)
    want = said(served, ("user", "Hello there"), ("assistant", reply), ("user", "And then?"))
    assert second.response == want.value
    assert second.prompt_eval_count == want.meta.prompt_tokens
    system = client.generate("tiny", "And then?", system="Be kind.", context=first[-1]["context"], options=GREEDY)
    turns = [("user", "Hello there"), ("assistant", reply), ("system", "Be kind."), ("user", "And then?")]
    assert system.response == said(served, *turns).value


def test_nothing_to_say_asks_whether_it_is_loaded(client: ollama.Client) -> None:
    loaded = client.generate("tiny", keep_alive="5m")
    assert (loaded.response, loaded.done, loaded.done_reason) == ("", True, "load")
    assert client.chat("tiny", []).done_reason == "load"
    for nothing in (0, "0", "0s", "0m0s", "-0.0h"):
        assert client.generate("tiny", keep_alive=nothing).done_reason == "unload"
        assert client.chat("tiny", [], keep_alive=nothing).done_reason == "unload"
    for some in (-1, 0.5, "1s", "10m", "-1m"):
        assert client.chat("tiny", [], keep_alive=some).done_reason == "load"
    assert client.generate("tiny", "Once", keep_alive=0, options=GREEDY).done_reason == "length"


# -- models


def test_models(served: Served, client: ollama.Client) -> None:
    (listed,) = client.list().models
    dtype = served.client.ready.dtype
    assert (listed.model, listed.details.quantization_level if listed.details else "") == ("tiny", dtype)
    (running,) = client.ps().models
    assert (running.name, running.context_length, running.digest) == ("tiny", 1024, listed.digest)
    shown = client.show("tiny:latest")
    info = shown.modelinfo or {}
    assert info[f"{info['general.architecture']}.context_length"] == 1024
    assert shown.capabilities == ["completion", "tools"]
    assert shown.template == served.service.template.source
    version = httpx.get(f"{served.url}/api/version", timeout=WAIT).json()["version"]
    assert tuple(int(part) for part in version.split(".")) >= (0, 6, 4)


def test_latest_is_a_name_too(client: ollama.Client) -> None:
    answer = client.chat("tiny:latest", HELLO, options=GREEDY)
    assert answer.model == "tiny:latest"
    assert answer.message.content == client.chat("tiny", HELLO, options=GREEDY).message.content


# -- what is refused, and how

BOTH: list[tuple[int, dict[str, Any]]] = [
    (404, {"model": "other"}),
    (400, {"format": "xml"}),
    (400, {"format": {"type": "strange"}}),
    (400, {"think": True}),
    (400, {"think": "high"}),
    (400, {"guided_regex": "(a"}),
    (400, {"logprobs": True, "top_logprobs": 21}),
    (400, {"options": {"temperature": -1}}),
    (400, {"options": {"temperature": "hot"}}),
    (400, {"options": {"num_predict": 10**6}}),
    (400, {"options": {"num_ctx": 1025}}),
    (400, {"options": {"mirostat": 2}}),
    (400, {"options": {"typical_p": 0.5}}),
    (400, {"options": {"grammar": "root ::= x"}}),
    (400, {"options": {"stop": [""]}}),
    (400, {"options": {"seed": 0.5}}),
    (400, {"options": []}),
]


@pytest.mark.parametrize(("status", "body"), BOTH)
def test_refused(http: httpx.Client, status: int, body: dict[str, Any]) -> None:
    for stream in (False, True):
        chat = refused(http, status, "/api/chat", **{"messages": HELLO, "stream": stream, **body})
        generate = refused(http, status, "/api/generate", **{"prompt": "Hello there", "stream": stream, **body})
        assert chat == generate


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/chat", {"tools": [{"type": "function", "function": {"name": "f f"}}]}),
        ("/api/chat", {"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}),
        ("/api/chat", {"messages": [{"role": "robot", "content": "x"}]}),
        ("/api/chat", {"messages": [{"role": "assistant", "tool_calls": [{"function": "f"}]}]}),
        ("/api/chat", {"messages": [{"role": "user", "content": "x " * 4000}]}),
        ("/api/generate", {"template": "{{ .Prompt }}"}),
        ("/api/generate", {"suffix": "after"}),
        ("/api/generate", {"images": ["aGk="]}),
        ("/api/generate", {"raw": True, "system": "Be brief."}),
        ("/api/generate", {"raw": True, "context": [1, 2]}),
        ("/api/generate", {"context": [10**9]}),
        ("/api/generate", {"context": [-1]}),
        ("/api/generate", {"prompt": "x " * 40000}),
        ("/api/generate", {"prompt": "x " * 2000, "raw": True}),
    ],
)
def test_refused_by_one(http: httpx.Client, path: str, body: dict[str, Any]) -> None:
    assert refused(http, 400, path, **{"messages": HELLO, "prompt": "x", **body})


def test_clients_error(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        client.chat("other", HELLO)
    assert (caught.value.status_code, "`other` is not served here" in caught.value.error) == (404, True)
    with pytest.raises(ollama.ResponseError, match="is required"):
        client._request_raw("POST", "/api/chat", json={"messages": []})


def test_error_in_a_stream_is_a_line(http: httpx.Client) -> None:
    body = {"model": "tiny", "messages": HELLO, "options": {"temperature": 0, "num_predict": 900}}
    with http.stream("POST", "/api/chat", json=body, headers={"X-Request-Id": "to-be-aborted"}) as answer:
        found = answer.iter_lines()
        assert not json.loads(next(found))["done"]
        assert http.post("/abort_request", json={"rid": "to-be-aborted"}).json() == {"aborted": 1}
        rest = [json.loads(line) for line in found]
    assert list(rest[-1]) == ["error"]
    assert not any(line.get("done") for line in rest)


def test_unknown_fields_are_mentioned(http: httpx.Client) -> None:
    body = {"model": "tiny", "messages": HELLO, "option": {}, "options": {**GREEDY, "num_predicted": 4, "num_keep": 2}}
    for stream in (False, True):
        answer = http.post("/api/chat", json={**body, "stream": stream})
        said = answer.headers["x-ramet-warnings"]
        assert "did you mean `options`" in said
        assert "did you mean `num_predict`" in said
        assert "num_keep" not in said


def test_unknown_options_under_strict_requests() -> None:
    async def main() -> httpx.Response:
        async with in_process_client(strict_requests=True) as (http, _):
            return await http.post("/api/generate", json={"model": "tiny", "prompt": "x", "options": {"foo": 1}})

    answer = asyncio.run(main())
    assert answer.status_code == 400
    assert "`foo`" in answer.json()["error"]
