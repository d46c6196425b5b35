"""What goes over the wire: strict JSON, notes about unknown fields, streams that end when they should."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import msgspec
import pytest
from fastapi import Request
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError
from starlette.types import Message

from ramet.runtime.server import strict_json, wire
from ramet.runtime.server.call import Caller
from ramet.runtime.server.failures import Failure
from ramet.runtime.server.settings import Settings

CALLER = Caller(label="one")
LENIENT, STRICT = Settings(), Settings(strict_requests=True)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


class Asked(wire.Body):
    temperature: float = 1.0
    ids: list[int] | list[list[int]] = Field(default_factory=list)
    inner: Asked | None = None


# -- in


@given(JSON)
def test_what_json_writes_is_read(value: Any):
    assert strict_json.parse(json.dumps(value).encode()) == value


@given(JSON, st.booleans())
def test_depth_is_counted_outside_strings(value: Any, ascii_only: bool):
    deep: Any = value
    for _ in range(strict_json.MAX_DEPTH + 1):
        deep = [deep]
    with pytest.raises(Failure, match="nested"):
        strict_json.parse(json.dumps(deep, ensure_ascii=ascii_only).encode())
    text = json.dumps(json.dumps(deep, ensure_ascii=ascii_only), ensure_ascii=ascii_only)
    assert strict_json.parse(text.encode()) == json.loads(text)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": "\\ud800"}',
        b'{"a": "\xed\xa0\x80"}',
        b'{"a": 1, "a": 1}',
        b'{"b": {"a": 1, "\\u0061": 1}}',
        b'{"a": 1' + b"0" * 5000 + b"}",
        b"[" * 100_000 + b"]" * 100_000,
        b"[" * 100_000,
        b"[" + b"[]," * strict_json.MAX_PARTS + b"[]]",
        b"{" + b",".join(b'"%d":1' % i for i in range(strict_json.MAX_PARTS + 1)) + b"}",
        b"[" + b",".join([b"1e308"] * (strict_json.MAX_EXPONENTS + 1)) + b"]",
        b'"' + b'\\"' * 2_000_000,
        b"{} {}",
        b"\xef\xbb\xbf\xef\xbb\xbf{}",
        b'{"a": [[1], {"b": [{}, {"c": 1, "c": 2}]}], "d": [1, 2]}',
        b'{"a": {"b": 1, "b": 2}, "d": [[0]]}',
        b"{'a': 1}",
        b"",
    ],
)
def test_other_texts_are_refused(raw: bytes):
    with pytest.raises(Failure) as refused:
        strict_json.parse(raw)
    assert (refused.value.status, refused.value.code) == (400, "invalid_json")
    assert len(refused.value.message) < 300


def test_a_byte_order_mark_in_front_is_no_part_of_a_text():
    assert strict_json.parse(b'\xef\xbb\xbf{"a": "\xef\xbb\xbf"}') == {"a": "\ufeff"}


def test_a_large_body_is_parsed_beside_the_loop(monkeypatch: pytest.MonkeyPatch):
    where: list[bool] = []
    parse = strict_json.parse

    def seen(raw: bytes) -> Any:
        where.append(threading.current_thread() is threading.main_thread())
        return parse(raw)

    monkeypatch.setattr(strict_json, "parse", seen)
    for size in (strict_json.LARGE - 2, strict_json.LARGE):
        assert asyncio.run(strict_json.parsed(b'"' + b"a" * (size - 2) + b'"')) == "a" * (size - 2)
    assert where == [True, False]
    with pytest.raises(Failure):
        asyncio.run(strict_json.parsed(b"[" * strict_json.LARGE))


def test_long_arrays_of_numbers_are_not_walked_for_keys():
    class Numbers(list[int]):
        def __iter__(self) -> Any:
            raise AssertionError("an array in which nothing is nested needs no look")

    assert strict_json._keys({"a": {"b": 1}, "ids": [Numbers(), Numbers()]}, 3) == 3


def test_words_are_not_exponents():
    value = [True, False] * 2 * strict_json.MAX_EXPONENTS
    assert strict_json.parse(json.dumps(value).encode()) == value


def test_one_wrong_item_ends_the_validation_of_a_list():
    for wrong in ({"ids": ["x"] * 100_000}, {"inner": {"ids": ["x"] * 100_000}}):
        with pytest.raises(ValidationError) as found:
            Asked(**wrong)
        assert len(found.value.errors()) <= 4


def test_unknown_fields_are_named():
    body = Asked(temprature=1.0, user="me")
    assert wire.noted(body, LENIENT, ignored=("user",)) == (
        "`temprature` is not known and was ignored; did you mean `temperature`?",
    )
    with pytest.raises(Failure) as refused:
        wire.noted(body, STRICT, ignored=("user",))
    assert (refused.value.code, refused.value.param) == ("unknown_parameter", "temprature")


class Chatted(wire.Body):
    max_completion_tokens: int | None = None
    max_tokens: int | None = None


class Nested(wire.Body):
    sampling_params: dict[str, int] | None = None


@pytest.mark.parametrize(
    ("body", "foreign", "right"),
    [
        (Chatted(max_new_tokens=4), "max_new_tokens", "max_completion_tokens"),
        (Chatted(max_tokens=4, num_predict=4), "num_predict", "max_completion_tokens"),
        (Nested(max_tokens=4), "max_tokens", "sampling_params.max_new_tokens"),
    ],
)
def test_a_limit_by_another_name_is_never_ignored(body: wire.Body, foreign: str, right: str):
    with pytest.raises(Failure) as refused:
        wire.noted(body, LENIENT)
    assert (refused.value.status, refused.value.param) == (400, foreign) and f"`{right}`" in refused.value.message


def test_a_limit_that_says_nothing_is_a_note():
    assert len(wire.noted(Chatted(max_new_tokens=None), LENIENT)) == 1
    assert len(wire.noted(Asked(max_tokens=3), LENIENT)) == 1  # it generates nothing: there is no limit to name


def test_many_unknown_fields_are_counted():
    notes = wire.noted(Asked(**{f"x{i}": 1 for i in range(5000)}), LENIENT)
    assert len(notes) == wire.MAX_NOTES + 1
    assert notes[-1].startswith(f"{5000 - wire.MAX_NOTES} more")


@given(st.text(min_size=1), st.text(min_size=1))
def test_headers_hold_printable_ascii_whatever_was_named(name: str, label: str):
    headers = wire.headers_of(Caller(label=label), [f"`{name}` is not known"])
    assert all(c.isascii() and c.isprintable() for value in headers.values() for c in value)


def test_logprobs_are_json():
    assert [wire.logprob(x) for x in (-1.5, float("-inf"), float("nan"))] == [-1.5, wire.LOWEST, None]


# -- out


class Channel:
    """An ASGI connection whose client leaves when `leave` is set."""

    def __init__(self) -> None:
        self.leave = asyncio.Event()
        self.sent: list[Message] = []
        self.body = b""
        self.came = asyncio.Event()

    async def receive(self) -> Message:
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        self.body += message.get("body", b"")
        self.came.set()

    def request(self) -> Request:
        return Request({"type": "http", "headers": [], "method": "POST", "path": "/"}, self.receive)


def driven(work: Callable[[Channel], Awaitable[None]]) -> Channel:
    async def main() -> Channel:
        channel = Channel()
        async with asyncio.timeout(20):
            await work(channel)
        return channel

    return asyncio.run(main())


async def answered(channel: Channel, events: AsyncGenerator[Any, None], **options: Any) -> None:
    response = await wire.sse(events, channel.request(), CALLER, **options)
    await response({"type": "http"}, channel.receive, channel.send)


def test_a_stream_of_events():
    async def events() -> AsyncGenerator[Any, None]:
        yield [{"a": 1}]
        yield [wire.Event("named", {"b": float("nan")})]
        yield ["text"]

    channel = driven(lambda channel: answered(channel, events()))
    assert channel.body == b'data: {"a":1}\n\nevent: named\ndata: {"b":null}\n\ndata: text\n\ndata: [DONE]\n\n'
    headers = dict(channel.sent[0]["headers"])
    assert headers[b"content-type"].startswith(b"text/event-stream") and b"content-length" not in headers
    assert headers[b"x-request-id"] == b"one"


def test_what_is_there_at_once_is_sent_at_once():
    async def events() -> AsyncGenerator[Any, None]:
        yield [{"a": 1}, {"b": 2}]
        yield [b'{"c":3}']

    channel = driven(lambda channel: answered(channel, events()))
    bodies = [message["body"] for message in channel.sent[1:]]
    assert bodies == [b'data: {"a":1}\n\ndata: {"b":2}\n\n', b'data: {"c":3}\n\n', b"data: [DONE]\n\n"]
    assert [message["more_body"] for message in channel.sent[1:]] == [True, True, False]


@given(st.dictionaries(st.text(), JSON, min_size=1), st.dictionaries(st.text(), JSON, min_size=1))
def test_a_head_is_extended(head: dict[str, Any], more: dict[str, Any]):
    more = {name: value for name, value in more.items() if name not in head} or {"".join(head) + "x": 1}
    assert json.loads(wire.extended(msgspec.json.encode(head), more)) == {**head, **more}


def test_a_failure_in_a_stream_is_its_last_event():
    async def events() -> AsyncGenerator[Any, None]:
        yield [{"a": 1}]
        raise ValueError("something private")

    body = driven(lambda channel: answered(channel, events())).body
    assert body.count(b"data: ") == 2 and b'"error"' in body and b"[DONE]" not in body and b"private" not in body


def test_a_failure_before_the_first_event_keeps_its_status():
    async def events() -> AsyncGenerator[Any, None]:
        raise Failure(429, "later", retry_after=3.0)
        yield [{}]

    async def work(channel: Channel) -> None:
        with pytest.raises(Failure) as refused:
            await wire.sse(events(), channel.request(), CALLER)
        assert (refused.value.status, refused.value.headers()["Retry-After"]) == (429, "3")

    assert driven(work).sent == []


def test_silence_is_broken_by_comments(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(wire, "KEEP_ALIVE", 0.001)
    heard = asyncio.Event()

    async def events() -> AsyncGenerator[Any, None]:
        yield [{"a": 1}]
        await heard.wait()
        yield [{"b": 2}]

    async def work(channel: Channel) -> None:
        sending = asyncio.ensure_future(answered(channel, events()))
        while channel.body.count(b": \n\n") < 3:
            channel.came.clear()
            await channel.came.wait()
        heard.set()
        await sending

    body = driven(work).body
    assert body.startswith(b'data: {"a":1}\n\n: \n\n') and body.endswith(b'data: {"b":2}\n\ndata: [DONE]\n\n')


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_a_client_that_leaves_ends_the_source(first: bool):
    """Before the first event as after it."""
    ended = asyncio.Event()

    async def events() -> AsyncGenerator[Any, None]:
        try:
            if not first:
                yield [{"a": 1}]
            await asyncio.Event().wait()
            yield [{}]
        finally:
            ended.set()

    async def work(channel: Channel) -> None:
        sending = asyncio.ensure_future(answered(channel, events()))
        if not first:
            await channel.came.wait()
        else:
            await asyncio.sleep(0)
        channel.leave.set()
        if first:
            with pytest.raises(Failure, match="went away"):
                await sending
        else:
            await sending
        assert ended.is_set()

    driven(work)


def test_work_is_cancelled_when_its_client_leaves():
    cancelled = asyncio.Event()

    async def long() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def work(channel: Channel) -> None:
        channel.leave.set()
        with pytest.raises(Failure) as refused:
            await wire.attended(channel.request(), long())
        assert refused.value.status == 499 and cancelled.is_set()

    driven(work)
