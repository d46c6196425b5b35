"""Every route that generates, with a body for it, streamed and whole, and how its stream tells of a failure."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Body = dict[str, Any]
USER = [{"role": "user", "content": "Name a river."}]
TEXT = {"type": "text", "id": "0.0", "seq": "0", "parts": ["Once upon a time"]}


@dataclass(frozen=True)
class Generating:
    """A route. `body(tokens, stream)` asks for so many tokens; `failed(events)`: the events of a stream (name and data)
    end in the error that this protocol's clients read, and nothing comes after it."""

    path: str
    body: Callable[[int, bool], Body]
    failed: Callable[[list[tuple[str, Any]]], bool]
    lines: bool = False  # lines of JSON in place of server-sent events


def openai_error(events: list[tuple[str, Any]]) -> bool:
    """Whether they end in OpenAI's error object."""
    return (
        isinstance(events[-1][1], dict)
        and set(events[-1][1]) == {"error"}
        and set(events[-1][1]["error"]) >= {"message", "type", "code", "param"}
    )


def _program(events: list[tuple[str, Any]]) -> bool:
    return events[-1][0] == "error" and openai_error(events)


def _anthropic(events: list[tuple[str, Any]]) -> bool:
    name, data = events[-1]
    return name == "error" and isinstance(data, dict) and data["type"] == "error" and bool(data["error"]["message"])


def _responses(events: list[tuple[str, Any]]) -> bool:
    (before, error), (name, data) = events[-2:]
    return (before, name) == ("error", "response.failed") and data["response"]["error"]["message"] == error["message"]


def _ollama(events: list[tuple[str, Any]]) -> bool:
    return set(events[-1][1]) == {"error"} and isinstance(events[-1][1]["error"], str)


def _generate(tokens: int, stream: bool) -> Body:
    return {"text": "Once", "sampling_params": {"max_new_tokens": tokens, "ignore_eos": True}, "stream": stream}


def _completions(tokens: int, stream: bool) -> Body:
    return {"model": "tiny", "prompt": "Once", "max_tokens": tokens, "ignore_eos": True, "stream": stream}


def _chat(tokens: int, stream: bool) -> Body:
    return {"model": "tiny", "messages": USER, "max_tokens": tokens, "ignore_eos": True, "stream": stream}


def _messages(tokens: int, stream: bool) -> Body:
    return {"model": "tiny", "messages": USER, "max_tokens": tokens, "ignore_eos": True, "stream": stream}


def _response(tokens: int, stream: bool) -> Body:
    return {
        "model": "tiny",
        "input": "Name a river.",
        "max_output_tokens": tokens,
        "ignore_eos": True,
        "stream": stream,
    }


def _ollama_chat(tokens: int, stream: bool) -> Body:
    return {"model": "tiny", "messages": USER, "options": {"num_predict": tokens, "ignore_eos": True}, "stream": stream}


def _ollama_generate(tokens: int, stream: bool) -> Body:
    return {"model": "tiny", "prompt": "Once", "options": {"num_predict": tokens, "ignore_eos": True}, "stream": stream}


def _ops(tokens: int, stream: bool) -> Body:
    sampling = {"max_tokens": tokens, "ignore_eos": True, "temperature": 1.0}
    return {"ops": [TEXT, {"type": "gen", "id": "0.1", "seq": "0", "var": "x", "sampling": sampling}], "stream": stream}


def _plan(tokens: int, stream: bool) -> Body:
    import ramet as rt

    def told(s: rt.State, topic: str) -> str:
        s += topic
        return s.gen(name="x", max_tokens=tokens, ignore_eos=True).get()

    plan = json.loads(rt.function(told, temperature=1.0).compile().dumps())
    return {"plan": plan, "args": {"topic": "Once"}, "stream": stream}


ROUTES: dict[str, Generating] = {
    "generate": Generating("/generate", _generate, openai_error),
    "completions": Generating("/v1/completions", _completions, openai_error),
    "chat": Generating("/v1/chat/completions", _chat, openai_error),
    "messages": Generating("/v1/messages", _messages, _anthropic),
    "responses": Generating("/v1/responses", _response, _responses),
    "ollama chat": Generating("/api/chat", _ollama_chat, _ollama, True),
    "ollama generate": Generating("/api/generate", _ollama_generate, _ollama, True),
    "program": Generating("/v1/programs", _ops, _program),
    "plan": Generating("/v1/programs", _plan, _program),
}


def events_of(route: Generating, body: bytes) -> list[tuple[str, Any]]:
    """The events of a stream, as (name, data); "[DONE]" is data too. Comments are left out."""
    if route.lines:
        return [("", json.loads(line)) for line in body.decode().splitlines() if line]
    found = []
    for block in body.decode().split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        fields = dict(line.split(": ", 1) for line in lines)
        if "data" in fields:
            data = fields["data"]
            found.append((fields.get("event", ""), data if data == "[DONE]" else json.loads(data)))
    return found
