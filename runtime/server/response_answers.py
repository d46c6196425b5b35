"""A response as it is written: whole, or by the events of its making.

In: the pieces of a call. Out: OpenAI's `response` object in its states, its numbered events, and what is kept of it.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ramet.frontend import ir
from ramet.frontend.errors import ConstraintError
from ramet.runtime.server import forms
from ramet.runtime.server.call import Answer, Begun, Call, Caller, Chat, Message, Piece
from ramet.runtime.server.failures import Failure
from ramet.runtime.server.recall import Kept, Recall
from ramet.runtime.server.response_items import Named, Output
from ramet.runtime.server.service import Service
from ramet.runtime.server.speech import Hearing, Said, Speech
from ramet.runtime.server.wire import Batches, Event
from ramet.runtime.text import Tokenizer


@dataclass(frozen=True, slots=True)
class Asked:
    """A request understood: the call, how what it says is read, the conversation without its instructions and the calls
    that were made in it (id and tool), and what all states of the response have in common."""

    call: Call
    hearing: Hearing
    said: tuple[Message, ...]
    calls: tuple[tuple[str, str], ...]
    base: dict[str, Any]
    tokenizer: Tokenizer
    logprobs: bool

    def state(self, status: str, **more: Any) -> dict[str, Any]:
        """The response in a state."""
        return {**self.base, "status": status, **more}

    def logs(self, logs: tuple[ir.Logprob, ...]) -> list[dict[str, Any]]:
        """Logprobs of tokens, where they were asked for."""
        return forms.token_logprobs(self.tokenizer, logs) if self.logprobs else []

    def output(self, event: Named) -> Output:
        """What writes its items."""
        return Output(event, self.logs, eager=self.hearing.plain)

    def finished(self, output: Sequence[dict[str, Any]], meta: ir.Meta, usage: dict[str, Any]) -> dict[str, Any]:
        """The response, complete or cut by a limit."""
        cut = meta.finish_reason == "length"
        return self.state(
            _status(meta),
            completed_at=None if cut else int(time.time()),
            incomplete_details={"reason": "max_output_tokens"} if cut else None,
            output=list(output),
            usage=usage,
        )

    def kept(self, response: dict[str, Any], text: str, said: Said) -> Kept:
        """What a later request goes on from: the text as it was generated, but for thoughts."""
        chat = self.call.prompts[0]
        assert isinstance(chat, Chat), "a response has one prompt, a chat"
        before = self.said
        if said.thoughts:
            with contextlib.suppress(ConstraintError):  # of a call that was cut off: the text as it is
                text = self.hearing.format.message_text(said.content, said.tool_calls)
        if chat.continue_final:
            before, text = before[:-1], before[-1].content + text
        calls = (*self.calls, *((call.id, call.name) for call in said.calls))
        return Kept(msgspec.json.encode(response), (*before, Message("assistant", text)), calls)

    def usage(self, prompt: int, cached: int, meta: ir.Meta) -> dict[str, Any]:
        """In OpenAI's shape."""
        reasoning = self.hearing.reasoning(self.tokenizer, meta)
        return forms.response_usage(prompt, meta.completion_tokens, cached, meta.forced_tokens, reasoning)


def _status(meta: ir.Meta) -> str:
    return "incomplete" if meta.finish_reason == "length" else "completed"


def whole(answer: Answer, asked: Asked) -> tuple[dict[str, Any], Kept]:
    """The response to a call, and what is kept of it."""
    (completion,) = answer.prompts[0].completions
    speech = asked.hearing.speech()
    output = asked.output(lambda name, /, **fields: Event(name, fields))
    output.begin()
    output.take(speech.push(completion.text, last=True), speech, completion.meta.logprobs)
    output.close(_status(completion.meta))
    usage = asked.usage(answer.prompt_tokens, answer.cached_tokens, completion.meta)
    response = asked.finished(output.items, completion.meta, usage)
    return response, asked.kept(response, completion.text, speech.said)


# -- a stream


@dataclass(slots=True)
class _Made:
    """What is known of a response that is being made."""

    speech: Speech
    output: Output
    begun: Begun | None = None
    texts: list[str] = field(default_factory=list)
    meta: ir.Meta = field(default_factory=ir.Meta)


async def events(
    service: Service, asked: Asked, caller: Caller, recall: Recall | None, unfinished: Callable[[], None]
) -> Batches:
    """The events of a response, in OpenAI's order. What fails before the first is raised; later failures are told by
    `error` and `response.failed`, after `unfinished` was called. `recall` keeps the response when it is whole."""
    number = itertools.count()

    def event(name: str, /, **fields: Any) -> Event:
        return Event(name, {"type": name, "sequence_number": next(number), **fields})

    made = _Made(asked.hearing.speech(), asked.output(event))
    try:
        async with contextlib.aclosing(service.stream(asked.call, caller)) as stream:
            async for outs in stream:
                told = [each for out in outs for each in _told(out, asked, made, event)]
                if told:
                    yield told
    except Failure as failure:
        if made.begun is None:
            raise
        unfinished()
        error = {"code": "server_error", "message": failure.message}
        yield [
            event("error", code=failure.code, message=failure.message, param=failure.param),
            event("response.failed", response=asked.state("failed", error=error)),
        ]
        return
    assert made.begun is not None, "a call that ends well has begun"
    ended = made.output.close(_status(made.meta))
    usage = asked.usage(made.begun.prompt_tokens, made.meta.cached_tokens, made.meta)
    response = asked.finished(made.output.items, made.meta, usage)
    if recall is not None:
        recall.keep(caller.namespace, response["id"], asked.kept(response, "".join(made.texts), made.speech.said))
    yield [*ended, event(f"response.{response['status']}", response=response)]


def _told(out: Begun | Piece, asked: Asked, made: _Made, event: Named) -> list[Event]:
    """The events that tell of the response's begin, or of what is new in it."""
    if isinstance(out, Begun):
        made.begun = out
        return [
            event("response.created", response=asked.state("in_progress")),
            event("response.in_progress", response=asked.state("in_progress")),
            *made.output.begin(),
        ]
    made.texts.append(out.text)
    made.meta = out.meta or made.meta
    return made.output.take(made.speech.push(out.text, last=out.meta is not None), made.speech, out.logprobs)
