"""The content blocks of a message of Anthropic's: text, thinking, uses of tools; as they are made, or all at once.

In: the parts of what a model says (`speech`). Out: blocks, and the events of their making.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ramet.runtime.server.speech import MadeCall, Part, Said, Speech
from ramet.runtime.server.wire import Event


def named(type: str, **fields: Any) -> Event:
    """An event, which says its name in its data too."""
    return Event(type, {"type": type, **fields})


def blocks(said: Said) -> list[dict[str, Any]]:
    """The blocks of a whole message; an empty text where nothing was said."""
    found: list[dict[str, Any]] = []
    if said.thoughts:
        found.append({"type": "thinking", "thinking": said.reasoning, "signature": ""})
    if said.contents or not (said.thoughts or said.calls):
        found.append({"type": "text", "text": said.content})
    return found + [_use(call, arguments_of(call)) for call in said.calls]


def arguments_of(call: MadeCall) -> dict[str, Any]:
    """The arguments of a call as a value; {} for those that the length cut, which the reason of the end tells."""
    try:
        value = msgspec.json.decode(call.arguments)
    except msgspec.DecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _use(call: MadeCall, input: dict[str, Any]) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": input}


class Blocks:
    """Writes the events of blocks. `eager` opens the text before anything was said, which is right where text is all
    that can come."""

    def __init__(self, *, eager: bool) -> None:
        self._eager = eager
        self._index = -1  # of the last block
        self._open = ""  # the kind of the open block: content, reasoning or call

    def begin(self) -> list[Event]:
        """What stands in front of everything."""
        return [*(self._start({"type": "text", "text": ""}, "content") if self._eager else ()), named("ping")]

    def take(self, parts: Sequence[Part], speech: Speech) -> list[Event]:
        """The events of new parts."""
        events: list[Event] = []
        for part in parts:
            if part.kind == "call":
                events += self._start(_use(speech.said.calls[part.call], {}), "call")
            elif part.kind == "arguments":
                events.append(self._delta({"type": "input_json_delta", "partial_json": part.text}))
            elif part.kind == "reasoning":
                if self._open != "reasoning":
                    events += self._start({"type": "thinking", "thinking": "", "signature": ""}, "reasoning")
                events.append(self._delta({"type": "thinking_delta", "thinking": part.text}))
            else:
                if self._open != "content":
                    events += self._start({"type": "text", "text": ""}, "content")
                events.append(self._delta({"type": "text_delta", "text": part.text}))
        return events

    def close(self) -> list[Event]:
        """The end of all; where nothing was said, an empty text."""
        opened = self._start({"type": "text", "text": ""}, "content") if self._index < 0 else []
        return [*opened, *self._stop()]

    def _start(self, block: dict[str, Any], kind: str) -> list[Event]:
        ended = self._stop()
        self._index += 1
        self._open = kind
        return [*ended, named("content_block_start", index=self._index, content_block=block)]

    def _stop(self) -> list[Event]:
        if not self._open:
            return []
        ended = [named("content_block_stop", index=self._index)]
        if self._open == "reasoning":  # there is nothing to sign
            ended.insert(0, self._delta({"type": "signature_delta", "signature": ""}))
        self._open = ""
        return ended

    def _delta(self, delta: dict[str, Any]) -> Event:
        return named("content_block_delta", index=self._index, delta=delta)
