"""A chat completion as it is written: whole, or in chunks.

In: the pieces of a call's choices. Out: OpenAI's `chat.completion` and `chat.completion.chunk`s: text, reasoning, calls
of tools, log-probabilities, usage.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ramet.frontend import ir
from ramet.runtime.server import forms
from ramet.runtime.server.call import Answer, Begun, Call, Caller, Completion, Piece
from ramet.runtime.server.raw import ending
from ramet.runtime.server.service import Service
from ramet.runtime.server.shapes import generated, usage
from ramet.runtime.server.speech import Hearing, MadeCall, Part, Speech
from ramet.runtime.server.wire import Batches, extended
from ramet.runtime.text import Tokenizer


@dataclass(frozen=True, slots=True)
class Shown:
    """What an answer shows besides text, and what all its chunks have in common. `hearing` reads the text."""

    id: str
    model: str
    created: int
    n: int
    fingerprint: str
    tokenizer: Tokenizer
    logprobs: bool = False
    as_ids: bool = False
    untrimmed: bool = False
    prompt_ids: tuple[int, ...] | None = None
    usage: bool = False
    continuous: bool = False
    hearing: Hearing = field(default_factory=Hearing)

    def head(self, kind: str) -> dict[str, Any]:
        """The fields that every answer and chunk begins with."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    def logs(self, logs: tuple[ir.Logprob, ...]) -> dict[str, Any] | None:
        """A choice's `logprobs`."""
        if not self.logprobs:
            return None
        content = forms.token_logprobs(self.tokenizer, logs, as_ids=self.as_ids)
        return {"content": content, "refusal": None}

    def end(self, meta: ir.Meta, *, called: bool) -> dict[str, Any]:
        """How a choice ended. `stop_reason` (vLLM's) is null for an end token, `matched_stop` (SGLang's) is its id."""
        is_eos = isinstance(meta.matched, int) and meta.matched in self.tokenizer.eos
        stop = ("function_call" if self.hearing.offer.legacy else "tool_calls") if called else "stop"
        ended: dict[str, Any] = {
            "finish_reason": "length" if meta.finish_reason == "length" else stop,
            "stop_reason": None if is_eos else meta.matched,
            "matched_stop": meta.matched,
        }
        return ended if self.prompt_ids is None else {**ended, "token_ids": list(generated(meta))}

    def ending(self, meta: ir.Meta) -> tuple[ir.Logprob, ...]:
        """The tokens of the stop, for those who want ids: they have a row for each."""
        return () if self.prompt_ids is None else meta.ending

    def tail(self, meta: ir.Meta) -> str:
        """The stop itself, for those who want it in the text."""
        return ending(self.tokenizer, meta, special=False) if self.untrimmed else ""


# -- one answer


def whole(answer: Answer, shown: Shown) -> dict[str, Any]:
    """A `chat.completion`."""
    (answered,) = answer.prompts
    payload = {
        **shown.head("chat.completion"),
        "choices": [_choice(k, each, shown) for k, each in enumerate(answered.completions)],
        "usage": usage(
            answer.prompt_tokens,
            answer.completion_tokens,
            answer.cached_tokens,
            answer.forced_tokens,
            sum(shown.hearing.reasoning(shown.tokenizer, each.meta) for each in answered.completions),
        ),
    }
    return payload if shown.prompt_ids is None else {**payload, "prompt_token_ids": list(shown.prompt_ids)}


def _choice(index: int, completion: Completion, shown: Shown) -> dict[str, Any]:
    speech = shown.hearing.speech()
    speech.push(completion.text + shown.tail(completion.meta), last=True)
    said = speech.said
    message: dict[str, Any] = {"role": "assistant", "content": said.content, "refusal": None}
    if shown.hearing.thoughts.separate:
        message |= dict.fromkeys(("reasoning_content", "reasoning"), said.reasoning or None)
    if said.calls:
        message["content"] = said.content or None
        message |= _called(said.calls, shown)
    return {
        "index": index,
        "message": message,
        "logprobs": shown.logs((*completion.meta.logprobs, *shown.ending(completion.meta))),
        **shown.end(completion.meta, called=bool(said.calls)),
    }


def _called(calls: list[MadeCall], shown: Shown) -> dict[str, Any]:
    """The calls of a message."""
    if shown.hearing.offer.legacy:
        return {"function_call": {"name": calls[0].name, "arguments": calls[0].arguments}}
    return {"tool_calls": [_call(call.id, call.name, call.arguments, custom=call.custom) for call in calls]}


def _call(id: str, name: str, text: str, *, custom: bool) -> dict[str, Any]:
    if custom:
        return {"id": id, "type": "custom", "custom": {"name": name, "input": text}}
    return {"id": id, "type": "function", "function": {"name": name, "arguments": text}}


# -- a stream


@dataclass(slots=True)
class _Spent:
    """Usage so far."""

    shown: Shown
    prompt: int = 0
    cached: int = 0
    forced: int = 0
    reasoning: int = 0
    hits: list[int] = field(default_factory=list)  # cached tokens of each finished choice
    generated: list[int] = field(default_factory=list)  # tokens of each choice

    def take(self, out: Begun | Piece) -> None:
        """Count an event. Until a choice ends, only tokens that came with logprobs are counted."""
        if isinstance(out, Begun):
            self.prompt, self.cached = out.prompt_tokens, out.cached_tokens
        elif out.meta is None:
            self.generated[out.choice] += len(out.logprobs)
        else:
            self.generated[out.choice] = out.meta.completion_tokens
            self.forced += out.meta.forced_tokens
            self.reasoning += self.shown.hearing.reasoning(self.shown.tokenizer, out.meta)
            self.hits.append(out.meta.cached_tokens)
            if len(self.hits) == len(self.generated):
                self.cached = min(self.hits)  # the choice that computed the prompt says what it found

    def usage(self) -> dict[str, Any]:
        """In OpenAI's shape."""
        return usage(self.prompt, sum(self.generated), self.cached, self.forced, self.reasoning)


async def chunks(service: Service, call: Call, caller: Caller, shown: Shown) -> Batches:
    """`chat.completion.chunk`s: the role of each choice, then text and calls as they come, the last chunk of a choice
    with its finish reason, and the usage at the very end where it was asked for."""
    head = msgspec.json.encode(shown.head("chat.completion.chunk"))
    spent = _Spent(shown, generated=[0] * call.n)
    speeches = [shown.hearing.speech() for _ in range(call.n)]

    def chunk(*choices: dict[str, Any], **more: Any) -> bytes:
        if shown.usage or shown.continuous:
            more["usage"] = spent.usage() if shown.continuous else None
        return extended(head, {"choices": choices, **more})

    async with contextlib.aclosing(service.stream(call, caller)) as stream:
        async for outs in stream:
            made: list[bytes] = []
            for out in outs:
                spent.take(out)
                if isinstance(out, Begun):
                    made += [chunk(_role(k, shown), **_known(k, shown)) for k in range(call.n)]
                else:
                    made += [chunk(delta) for delta in _deltas(out, shown, speeches[out.choice])]
            if made:
                yield made
    if shown.usage:
        yield [extended(head, {"choices": (), "usage": spent.usage()})]


def _role(index: int, shown: Shown) -> dict[str, Any]:
    return _delta(index, {"role": "assistant", "content": None if shown.hearing.offer.required else ""})


def _known(index: int, shown: Shown) -> dict[str, Any]:
    """What the first chunk of all tells of the prompt."""
    return {} if index or shown.prompt_ids is None else {"prompt_token_ids": shown.prompt_ids}


def _deltas(piece: Piece, shown: Shown, speech: Speech) -> list[dict[str, Any]]:
    """The choices that tell of a piece: what is new in it, then its end."""
    meta = piece.meta
    parts = speech.push(piece.text + (shown.tail(meta) if meta else ""), last=meta is not None)
    found = [_delta(piece.choice, _new(part, shown, speech)) for part in parts]
    rows = (*piece.logprobs, *(shown.ending(meta) if meta else ()))
    logs = shown.logs(rows) if rows else None
    if logs:
        found = found or [_delta(piece.choice, {"content": ""})]
        found[0]["logprobs"] = logs
    if meta is not None:
        found.append(_delta(piece.choice, {}, **shown.end(meta, called=bool(speech.said.calls))))
    return found


def _new(part: Part, shown: Shown, speech: Speech) -> dict[str, Any]:
    """The `delta` of a part. A call begins with its id and name; its arguments follow."""
    if part.kind == "content":
        return {"content": part.text}
    if part.kind == "reasoning":
        return {"reasoning_content": part.text, "reasoning": part.text}
    call = speech.said.calls[part.call]
    begins = part.kind == "call"
    if shown.hearing.offer.legacy:
        return {"function_call": {"name": call.name, "arguments": ""} if begins else {"arguments": part.text}}
    if begins:
        return {"tool_calls": [{"index": part.call, **_call(call.id, call.name, "", custom=call.custom)}]}
    inner = {"custom": {"input": part.text}} if call.custom else {"function": {"arguments": part.text}}
    return {"tool_calls": [{"index": part.call, **inner}]}


def _delta(index: int, delta: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **more}
