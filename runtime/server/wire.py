"""What goes over the wire: strict JSON in, JSON and event streams out.

In: requests of FastAPI, dictionaries and async generators of protocol modules. Out: bodies that are valid or a
`Failure`, and ASGI responses. A client that goes away cancels what was done for it, whether it was streaming or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import math
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, TypeVar

import msgspec
from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from ramet.runtime.server.call import Caller
from ramet.runtime.server.failures import Failure, of
from ramet.runtime.server.nested import Known, Stranger, strangers
from ramet.runtime.server.settings import Settings
from ramet.runtime.server.strict_json import parsed

GONE = "the client went away"
KEEP_ALIVE = 15.0  # seconds without an event after which a comment is sent
LOWEST = -9999.0  # what -inf becomes in JSON
MAX_NOTES = 8  # unknown fields that are spoken of one by one
NOWHERE: Mapping[str, Known] = {}
_CONTROL = re.compile(r"[^\x20-\x7e]")
Payload = str | bytes | Mapping[str, Any] | list[Any]
Answer = TypeVar("Answer")


def _impatient(schema: Any) -> Any:
    """A pydantic schema whose lists stop at the first error."""
    if isinstance(schema, dict):
        walked = {key: part if key in ("default", "metadata") else _impatient(part) for key, part in schema.items()}
        return walked | {"fail_fast": True} if walked.get("type") in ("list", "tuple") else walked
    return [_impatient(part) for part in schema] if isinstance(schema, list) else schema


class Body(BaseModel):
    """A request's body, or an object in one. Unknown fields are kept, so that `noted` can speak of them. Values are
    of the types that are asked for: "3" is no number, true is not 1; a whole number may stand for any number. The first
    wrong item of a list ends its validation: a million complaints about a million items take seconds and gigabytes."""

    model_config = ConfigDict(extra="allow", protected_namespaces=(), strict=True)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema: CoreSchema = _impatient(handler(source))
        return schema


@dataclass(frozen=True, slots=True)
class Event:
    """A server-sent event with a name."""

    name: str
    data: Payload


_LIMITS = ("max_completion_tokens", "max_output_tokens", "max_tokens", "max_new_tokens", "num_predict")
_PLACES: Mapping[str, str] = {  # a field of a body → where the limit of an answer's length stands
    **{name: name for name in _LIMITS},
    "sampling_params": "sampling_params.max_new_tokens",
    "options": "options.num_predict",
}


def noted(
    body: Body, settings: Settings, *, ignored: Collection[str] = (), inside: Mapping[str, Known] = NOWHERE
) -> tuple[str, ...]:
    """A sentence about each field of `body` that is not known (of the first `MAX_NOTES` of them), also `inside` the
    values of some; `ignored` are fields that have no effect here and need no word. Raises `Failure` under
    `settings.strict_requests`, and in any case for a limit by another protocol's name: to ignore it would change the
    answer."""
    known = frozenset(type(body).model_fields).union(ignored)
    unknown = [name for name in body.model_extra or {} if name not in known]
    right = next((_PLACES[name] for name in type(body).model_fields if name in _PLACES), "")
    foreign = next((name for name in unknown if name in _LIMITS and (body.model_extra or {})[name] is not None), "")
    if right and foreign:
        message = f"`{foreign}` is not a field of this request; its limit is `{right}`"
        raise Failure(400, message, code="unknown_parameter", param=foreign)
    found = chain(
        (Stranger(name[:64], name[:64], known) for name in unknown),
        *(strangers(getattr(body, name, None), here, name) for name, here in inside.items()),
    )
    notes = []
    for place, name, names in islice(found, MAX_NOTES):
        if settings.strict_requests:
            message = f"`{place}` is not a field of this request{_hint(name, names)}"
            raise Failure(400, message, code="unknown_parameter", param=place)
        notes.append(f"`{place}` is not known and was ignored{_hint(name, names)}")
    more = sum(1 for _ in found)
    return (*notes, f"{more} more fields are not known and were ignored") if more else tuple(notes)


def _hint(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean `{near[0]}`?" if near else ""


def caller_in(scope: Scope) -> Caller:
    """Who asks; the guard has found it out."""
    caller = scope["ramet.caller"]
    assert isinstance(caller, Caller), "the guard stands in front of every route"
    return caller


async def caller_of(request: Request) -> Caller:
    """Who asks, as a dependency: async, since FastAPI runs others in threads, two switches for each request."""
    return caller_in(request.scope)


async def admin_of(request: Request) -> Caller:
    """Who asks, on routes of control. Raises `Failure` 403 without the admin key, whatever the path looked like."""
    caller = caller_in(request.scope)
    if not caller.admin:
        raise Failure(403, "this needs the admin key", type="permission_error", code="admin_only")
    return caller


def logprob(value: float) -> float | None:
    """A logprob as JSON has it: -inf is `LOWEST`, nan is null."""
    return None if math.isnan(value) else max(value, LOWEST)


# -- in


_FORMS = ("multipart/", "image/", "audio/", "video/")
_PROMPTS = ("messages", "input", "prompt", "text", "input_ids")  # fields that hold what the model reads


class StrictRoute(APIRoute):
    """A route whose body is JSON by our own strict parser, whatever content type names it: `curl -d` calls it a form,
    and the guard keeps browsers of foreign pages out. What says that it is something else is refused. A prompt that is
    too long is answered with the name of the field that it came in."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        """The handler that FastAPI calls."""
        inner = super().get_route_handler()
        if self.body_field is None:
            return inner

        async def handler(request: Request) -> Response:
            kind = request.headers.get("content-type", "").lower()
            if kind.startswith(_FORMS):
                raise Failure(415, "forms are not accepted; send JSON", code="unsupported_media_type")
            try:
                raw = await request.body()
            except ClientDisconnect:
                raise Failure(499, GONE, type="aborted", code="client_closed_request") from None
            value = await parsed(raw) if raw.strip() else {}
            headers = [(k, v) for k, v in request.scope["headers"] if k != b"content-type"]
            scope = {**request.scope, "headers": [*headers, (b"content-type", b"application/json")]}
            strict = Request(scope, request.receive)
            strict._body, strict._json = raw if raw.strip() else b"{}", value
            try:
                response: Response = await inner(strict)
            except Failure as failure:
                if failure.code == "context_length_exceeded" and failure.param is None:
                    failure.param = next((name for name in _PROMPTS if value.get(name)), None)
                raise
            return response

        return handler


async def attended(request: Request, work: Awaitable[Answer]) -> Answer:
    """The result of `work`, which is cancelled when the client goes away first."""
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(gone(request.receive))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            leaving.result()  # why the body could not be read, if that is it
            raise Failure(499, GONE, type="aborted", code="client_closed_request")
        return task.result()
    finally:
        for each in (task, leaving):
            if not each.done():
                each.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await each


async def gone(receive: Receive) -> None:
    """Wait until the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        continue


# -- out


def unfinished(scope: Scope) -> None:
    """Say that an answer with status 200 breaks off: it is not given again under its Idempotency-Key."""
    scope.get("ramet.unfinished", lambda: None)()


def headers_of(caller: Caller, notes: Sequence[str] = ()) -> dict[str, str]:
    """Headers of every answer."""
    headers = {"X-Request-Id": _CONTROL.sub("?", caller.label)[:256]} if caller.label else {}
    if notes:
        headers["X-Ramet-Warnings"] = _CONTROL.sub("?", "; ".join(notes))[:2048]
    return headers


def reply(payload: object, caller: Caller, notes: Sequence[str] = (), status: int = 200) -> Response:
    """A JSON answer. `notes` go into the header and, where the payload is an object, into its `warnings`."""
    if notes and isinstance(payload, dict):
        payload = {**payload, "warnings": list(notes)}
    return Response(msgspec.json.encode(payload), status, headers_of(caller, notes), "application/json")


def _described(media: str) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of routes whose answer may be a stream."""
    return {200: {"content": {media: {"schema": {"type": "string"}}}}}


SSE, NDJSON = _described("text/event-stream"), _described("application/x-ndjson")
Batch = Sequence[Payload | Event]  # what was ready at once, and is sent at once
Batches = AsyncGenerator[Batch, None]
Frame = Callable[[Payload | Event], bytes]


def sse_frame(item: Payload | Event) -> bytes:
    """One server-sent event."""
    if isinstance(item, Event):
        return b"event: %b\ndata: %b\n\n" % (item.name.encode(), _encoded(item.data))
    return b"data: %b\n\n" % _encoded(item)


def ndjson_frame(item: Payload | Event) -> bytes:
    """One line of JSON."""
    return _encoded(item.data if isinstance(item, Event) else item) + b"\n"


def _encoded(data: Payload) -> bytes:
    if isinstance(data, bytes):
        return data
    return data.encode() if isinstance(data, str) else msgspec.json.encode(data)


def extended(head: bytes, more: object) -> bytes:
    """The JSON object `head` with the fields of `more` behind its own: what all chunks of a stream have in common is
    encoded once. Both have a field at least."""
    return b"%b,%b" % (head[:-1], msgspec.json.encode(more)[1:])


async def sse(
    events: Batches,
    request: Request,
    caller: Caller,
    *,
    done: Payload | None = "[DONE]",
    failed: Callable[[Failure], Payload | Event] = Failure.body,
    notes: Sequence[str] = (),
) -> Response:
    """A stream of server-sent events, closed by `done`, or after a failure by what `failed` makes of it (and no
    `done`). Waits for the first ones, so that what fails before them is answered with its own status."""
    head = await _first(events, request)
    return Stream(
        head,
        events,
        frame=sse_frame,
        headers=headers_of(caller, notes),
        media_type="text/event-stream",
        done=done,
        failed=failed,
        keep_alive=b": \n\n",
    )


async def ndjson(
    events: Batches,
    request: Request,
    caller: Caller,
    *,
    failed: Callable[[Failure], Payload | Event],
) -> Response:
    """A stream of JSON lines; otherwise as `sse`."""
    head = await _first(events, request)
    headers = headers_of(caller)
    return Stream(head, events, frame=ndjson_frame, headers=headers, media_type="application/x-ndjson", failed=failed)


async def _first(events: Batches, request: Request) -> Batch:
    try:
        return await attended(request, anext(events))
    except StopAsyncIteration:
        return ()
    except BaseException:
        await events.aclose()
        raise


class Stream(Response):
    """An answer that is sent as it is made, each batch in one piece. Ends its source when the client goes away, at
    once. What a token costs here, it costs for each stream at each step: there is no task and no timer per batch.

    `frame` writes each event of `head` and `events`; `done` follows the last one, or what `failed` makes of an error.
    `keep_alive` is sent into silence; empty: nothing is.
    """

    def __init__(
        self,
        head: Batch,
        events: Batches,
        *,
        frame: Frame,
        headers: Mapping[str, str],
        media_type: str,
        failed: Callable[[Failure], Payload | Event],
        done: Payload | None = None,
        keep_alive: bytes = b"",
    ) -> None:
        super().__init__(None, 200, {**headers, "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}, media_type)
        del self.headers["content-length"]
        self._head, self._events, self._frame = head, events, frame
        self._done, self._failed, self._keep_alive = done, failed, keep_alive
        self._last = 0.0  # when something was sent, by the loop's clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the source ends or the client is gone."""
        tasks: list[asyncio.Future[None]] = []
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            tasks += map(asyncio.ensure_future, (self._send(send, scope), gone(receive), self._beat(send)))
            sender, leaving, _ = tasks
            await asyncio.wait({sender, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if sender.done():
                sender.result()
        finally:
            for each in tasks:
                if not each.done():
                    each.cancel()
                    with contextlib.suppress(asyncio.CancelledError, Exception):
                        await each
            await self._events.aclose()

    async def _send(self, send: Send, scope: Scope) -> None:
        clock = asyncio.get_running_loop().time
        frame = self._frame
        try:
            if self._head:
                self._last = clock()
                await _body(send, b"".join(map(frame, self._head)))
            async for batch in self._events:
                self._last = clock()
                await _body(send, frame(batch[0]) if len(batch) == 1 else b"".join(map(frame, batch)))
            last: Payload | Event | None = self._done
        except Exception as error:  # noqa: BLE001 (the request boundary: the client is told, the server goes on)
            last = self._failed(of(error))
            unfinished(scope)
        self._keep_alive = b""  # nothing may follow the end
        await _body(send, b"" if last is None else frame(last), more=False)

    async def _beat(self, send: Send) -> None:
        """Comments into silence. Wakes once in `KEEP_ALIVE` seconds, whatever is sent meanwhile."""
        clock = asyncio.get_running_loop().time
        self._last = clock()
        while self._keep_alive:
            left = self._last + KEEP_ALIVE - clock()
            if left > 0:
                await asyncio.sleep(left)
            else:
                self._last = clock()
                await _body(send, self._keep_alive)


async def _body(send: Send, data: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})
