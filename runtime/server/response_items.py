"""The output items of a response: messages, reasoning, calls of tools; as they are made, or all at once.

In: the parts of what a model says (`speech`). Out: OpenAI's items, and the events of their making, in OpenAI's order.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any

from ramet.frontend import ir
from ramet.runtime.server.speech import Part, Speech
from ramet.runtime.server.wire import Event

Named = Callable[..., Event]  # an event of a name, with its fields
Logs = Callable[[tuple[ir.Logprob, ...]], list[dict[str, Any]]]
_TEXTS = {"content": "output_text", "reasoning": "reasoning_text"}  # kind of a part → OpenAI's type of it
_CALLS = {False: ("function_call_arguments", "arguments"), True: ("custom_tool_call_input", "input")}


class Output:
    """Writes items. `eager` opens the message before anything was said, which is right where a message is all that can
    come; `logs` writes log-probabilities. `items` are those that are done, in order."""

    def __init__(self, event: Named, logs: Logs, *, eager: bool) -> None:
        self.items: list[dict[str, Any]] = []
        self._event = event
        self._logs = logs
        self._eager = eager
        self._open = ""  # the kind of the open item: content, reasoning or call
        self._item: dict[str, Any] = {}
        self._texts: list[str] = []
        self._rows: list[dict[str, Any]] = []

    def begin(self) -> list[Event]:
        """What stands in front of everything."""
        return self._begin_text("content") if self._eager else []

    def take(self, parts: Sequence[Part], speech: Speech, logprobs: tuple[ir.Logprob, ...]) -> list[Event]:
        """The events of new parts; `logprobs` belong to the text among them, if there is any."""
        events: list[Event] = []
        rows = self._logs(logprobs)
        for part in parts:
            if part.kind == "call":
                call = speech.said.calls[part.call]
                events += [*self.end("completed"), *self._begin_call(call.id, call.name, custom=call.custom)]
            elif part.kind == "arguments":
                events.append(self._argument(part.text))
            else:
                if self._open != part.kind:
                    events += [*self.end("completed"), *self._begin_text(part.kind)]
                events.append(self._text(part.text, rows if part.kind == "content" else []))
                rows = [] if part.kind == "content" else rows
        if rows and self._open == "content":
            events.append(self._text("", rows))
        return events

    def close(self, status: str) -> list[Event]:
        """The end of all; where nothing was said, an empty message."""
        opened = [] if self.items or self._open else self._begin_text("content")
        return [*opened, *self.end(status)]

    def end(self, status: str) -> list[Event]:
        """The end of the open item, if there is one."""
        kind, self._open = self._open, ""
        if not kind:
            return []
        text = "".join(self._texts)
        self._texts = []
        item = {**self._item, "status": status}
        events = self._end_call(item, text) if kind == "call" else self._end_text(kind, item, text)
        self.items.append(item)
        done = self._event("response.output_item.done", output_index=len(self.items) - 1, item=item)
        return [*events, done]

    # -- texts

    def _begin_text(self, kind: str) -> list[Event]:
        if kind == "content":
            self._item = {"id": f"msg_{secrets.token_hex(16)}", "type": "message", "role": "assistant"}
        else:
            self._item = {"id": f"rs_{secrets.token_hex(16)}", "type": "reasoning", "summary": []}
        self._open, self._rows = kind, []
        item = {**self._item, "status": "in_progress", "content": []}
        part = self._part(kind, "", [])
        return [
            self._event("response.output_item.added", output_index=len(self.items), item=item),
            self._event("response.content_part.added", **self._place(), content_index=0, part=part),
        ]

    def _text(self, text: str, rows: list[dict[str, Any]]) -> Event:
        self._texts.append(text)
        self._rows += rows
        more = {"logprobs": rows} if self._open == "content" else {}
        return self._event(f"response.{_TEXTS[self._open]}.delta", **self._place(), content_index=0, delta=text, **more)

    def _end_text(self, kind: str, item: dict[str, Any], text: str) -> list[Event]:
        part = self._part(kind, text, self._rows)
        more = {"logprobs": self._rows} if kind == "content" else {}
        item["content"] = [part]
        return [
            self._event(f"response.{_TEXTS[kind]}.done", **self._place(), content_index=0, text=text, **more),
            self._event("response.content_part.done", **self._place(), content_index=0, part=part),
        ]

    def _part(self, kind: str, text: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
        part: dict[str, Any] = {"type": _TEXTS[kind], "text": text}
        return {**part, "annotations": [], "logprobs": rows} if kind == "content" else part

    # -- calls

    def _begin_call(self, id: str, name: str, *, custom: bool) -> list[Event]:
        kind = "custom_tool_call" if custom else "function_call"
        made = f"{'ctc' if custom else 'fc'}_{secrets.token_hex(16)}"
        self._open = "call"
        self._item = {"id": made, "type": kind, "call_id": id, "name": name}
        item = {**self._item, "status": "in_progress", _CALLS[custom][1]: ""}
        return [self._event("response.output_item.added", output_index=len(self.items), item=item)]

    def _argument(self, text: str) -> Event:
        self._texts.append(text)
        kind, _ = _CALLS[self._custom]
        return self._event(f"response.{kind}.delta", **self._place(), delta=text)

    def _end_call(self, item: dict[str, Any], text: str) -> list[Event]:
        kind, field = _CALLS[self._custom]
        item[field] = text
        named = {} if self._custom else {"name": item["name"]}
        return [self._event(f"response.{kind}.done", **self._place(), **named, **{field: text})]

    @property
    def _custom(self) -> bool:
        return bool(self._item["type"] == "custom_tool_call")

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item["id"], "output_index": len(self.items)}
