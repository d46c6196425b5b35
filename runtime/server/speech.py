"""A completion's text told apart, as it comes: what the model thinks, what it says, what it calls.

In: the text of one choice, cut anywhere. Out: `Part`s, which the protocols write in their own shapes; put together
(`Speech.said`) they are the same however the text was cut, so that a stream and a whole answer agree.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ramet.frontend import ir
from ramet.frontend.toolcalls import CallReader, Delta
from ramet.runtime.server.call import Chat
from ramet.runtime.server.constraints import Wanted
from ramet.runtime.server.reasoning import Thinking, Thoughts, thought_tokens, thoughts_of
from ramet.runtime.server.toolcalls import NOTHING, Offer, bound
from ramet.runtime.server.toolhistory import Told
from ramet.runtime.template import ChatTemplate
from ramet.runtime.text import Tokenizer
from ramet.runtime.tools import ToolFormat

Kind = Literal["reasoning", "content", "call", "arguments"]
NO_THOUGHTS = Thoughts("outside", separate=False)


@dataclass(frozen=True, slots=True)
class Part:
    """New text of one kind. A "call" begins call number `call`, of the tool `name` (its text is empty); "arguments" are
    of call number `call`: JSON text, or, where `custom`, the text that the tool takes."""

    kind: Kind
    text: str = ""
    call: int = 0
    name: str = ""
    custom: bool = False


@dataclass(slots=True)
class MadeCall:
    """A call as it is being written. `id` is made here."""

    id: str
    name: str
    custom: bool
    pieces: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> str:
        """JSON text, or the text that a custom tool takes; not to its end where the length cut it."""
        return "".join(self.pieces)


@dataclass(slots=True)
class Said:
    """All that was said so far."""

    thoughts: list[str] = field(default_factory=list)
    contents: list[str] = field(default_factory=list)
    calls: list[MadeCall] = field(default_factory=list)

    def take(self, part: Part, id: Callable[[], str]) -> None:
        """Add a part; `id` makes the id of a new call."""
        if part.kind == "content":
            self.contents.append(part.text)
        elif part.kind == "reasoning":
            self.thoughts.append(part.text)
        elif part.kind == "call":
            self.calls.append(MadeCall(id(), part.name, part.custom))
        else:
            self.calls[part.call].pieces.append(part.text)

    @property
    def reasoning(self) -> str:
        """What was thought."""
        return "".join(self.thoughts)

    @property
    def content(self) -> str:
        """What was said."""
        return "".join(self.contents)

    @property
    def tool_calls(self) -> tuple[ir.ToolCall, ...]:
        """The calls as a history has them."""
        return tuple(ir.ToolCall(call.name, call.arguments, call.custom) for call in self.calls)


class Speech:
    """One choice. `calls` reads calls (None: none can be made), `thoughts` is what becomes of reasoning, `id`
    makes ids of calls. `said` is what came so far."""

    def __init__(
        self,
        calls: CallReader | None = None,
        thoughts: Thoughts = NO_THOUGHTS,
        id: Callable[[], str] | None = None,
    ) -> None:
        self.said = Said()
        self._calls = calls
        self._thoughts = thoughts.splitter()
        self._shown = thoughts.shown
        self._id = id or call_id

    def push(self, text: str, *, last: bool = False) -> list[Part]:
        """The parts of new text; `last`: nothing follows."""
        if self._calls is None and self._thoughts is None:
            parts = [Part("content", text)] if text else []
        else:
            parts = [part for part in self._told(text, last) if part.text or part.kind == "call"]
        for part in parts:
            self.said.take(part, self._id)
        return parts

    def _told(self, text: str, last: bool) -> list[Part]:
        split: list[tuple[Literal["thought", "answer"], str]] = [("answer", text)]
        if self._thoughts is not None:
            split = [*self._thoughts.push(text), *(self._thoughts.finish() if last else ())]
        parts: list[Part] = []
        for kind, more in split:
            if kind == "thought":
                parts += [Part("reasoning", more)] if self._shown else []
            elif self._calls is None:
                parts.append(Part("content", more))
            else:
                parts += _parts(self._calls.push(more))
        return parts + (_parts(self._calls.finish()) if last and self._calls is not None else [])


def _parts(deltas: Sequence[Delta]) -> list[Part]:
    """What a reader of calls found, in our words."""
    found = []
    for delta in deltas:
        if delta.content:
            found.append(Part("content", delta.content))
        if delta.name:
            found.append(Part("call", "", delta.index, delta.name, delta.custom))
        if delta.arguments:
            found.append(Part("arguments", delta.arguments, delta.index))
    return found


@dataclass(frozen=True, slots=True)
class Hearing:
    """How the completions of one request are read: by which notation the calls that can be made, and what becomes of
    thoughts. The whole text of each is held to `constraint`, which was asked for in `field`."""

    format: ToolFormat = field(default_factory=ToolFormat)
    offer: Offer = NOTHING
    thoughts: Thoughts = NO_THOUGHTS
    constraint: ir.Constraint | None = None
    field: str = ""

    @property
    def held(self) -> dict[str, Any]:
        """What a `Call` says of it."""
        return {"constraint": self.constraint, "field": self.field, "places": self.offer.called}

    @property
    def plain(self) -> bool:
        """Whether nothing but text can come."""
        return not self.offer.callable and not (self.thoughts.separate and self.thoughts.begin != "outside")

    def speech(self, id: Callable[[], str] | None = None) -> Speech:
        """What reads one of them."""
        calls = self.format.reader(self.offer.tools) if self.offer.callable else None
        return Speech(calls, self.thoughts, id)

    def reasoning(self, tokenizer: Tokenizer, meta: ir.Meta) -> int:
        """Tokens of a completion that were thoughts."""
        begin = self.thoughts.begin
        return 0 if begin == "outside" else thought_tokens(tokenizer, meta.tokens, begin)


@dataclass(frozen=True, slots=True)
class Manner:
    """How the served model speaks, as its chat template shows: its notation of calls, its thoughts."""

    format: ToolFormat
    thinking: Thinking | None

    @classmethod
    def of(cls, template: ChatTemplate) -> Manner:
        """From the template."""
        return cls(template.tool_format, Thinking.of(template))

    def told(self) -> Told:
        """What writes the calls and results of one history."""
        return Told(self.format)

    def hearing(
        self, chat: Chat, offer: Offer, wanted: Wanted | None, fields: Mapping[str, object]
    ) -> tuple[Chat, Hearing]:
        """The chat with its tools, and how its completions are read and held. `fields` say what becomes of thoughts.
        Raises `Failure` 400."""
        chat, thoughts = thoughts_of(self.thinking, replace(chat, tools=offer.tools), fields)
        constraint, name = bound(offer, wanted, self.format, thoughts.begin)
        return chat, Hearing(self.format, offer, thoughts, constraint, name)


def call_id() -> str:
    """An id of a call as OpenAI's look."""
    return f"call_{secrets.token_hex(12)}"


def use_id() -> str:
    """An id of a call as Anthropic's look."""
    return f"toolu_{secrets.token_hex(12)}"
