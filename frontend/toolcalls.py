"""How tool calls are written in a model's text, and how they are read back.

In: a notation and text, whole or as it is generated. Out: the content beside the calls, and the calls: the tool's name
and its arguments as JSON text. Pure text: no schema is looked at here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from ramet.frontend.errors import ConstraintError
from ramet.frontend.ir import ToolCall

LONGEST_NAME = 128  # characters of a tool's name


@dataclass(frozen=True, slots=True)
class Notation:
    """The fixed parts of `begin NAME CALL (separator NAME CALL)* last`; a CALL is `between ARGUMENTS close`, or for a
    tool that takes text `text INPUT \\n close`. `trigger`, a beginning of `begin`, is what text that is no call never
    contains. A notation without `text` has no such tools."""

    name: str
    trigger: str
    begin: str
    between: str
    close: str
    separator: str
    last: str = ""
    text: str = ""

    @property
    def next(self) -> str:
        """From the arguments of a call to the name of the next one."""
        return self.close + self.separator

    @property
    def end(self) -> str:
        """What follows the arguments of the last call."""
        return self.close + self.last


HERMES = Notation(
    name="hermes",
    trigger="<tool_call>",
    begin='<tool_call>\n{"name": "',
    between='", "arguments": ',
    close="}\n</tool_call>",
    separator='\n<tool_call>\n{"name": "',
    text='", "input":\n',
)
LLAMA = Notation(
    name="llama",
    trigger='{"name":',
    begin='{"name": "',
    between='", "parameters": ',
    close="}",
    separator='; {"name": "',
)
MISTRAL = Notation(
    name="mistral",
    trigger='[{"name":',
    begin='[{"name": "',
    between='", "arguments": ',
    close="}",
    separator=', {"name": "',
    last="]",
)
NEMOTRON = Notation(
    name="nemotron",
    trigger="<TOOLCALL>",
    begin='<TOOLCALL>[{"name": "',
    between='", "arguments": ',
    close="}",
    separator=', {"name": "',
    last="]</TOOLCALL>",
)


@dataclass(frozen=True, slots=True)
class Delta:
    """What a piece of text adds: `content` (index -1), the begin of call `index` (with its name; `custom`: the tool
    takes text), or more of that call's `arguments`."""

    content: str = ""
    index: int = -1
    name: str = ""
    arguments: str = ""
    custom: bool = False


class CallReader:
    """Reads one text in pieces. However it is cut, the deltas add up to the same. Text is held back as long as it may
    be the begin of a call, white space as long as a call may follow it: before a call and after the last one it is
    left out."""

    def __init__(self, notation: Notation = HERMES) -> None:
        self._notation = notation
        self._buffer = ""
        self._state = self._text
        self._held = ""  # white space at the end of the content
        self._before = notation.begin  # the fixed text in front of the name that is read
        self._calls = 0
        self._closed = False  # nothing but white space has come since the last call
        self._depth = 0
        self._quoted = self._escaped = False
        self._out: list[Delta] = []

    @property
    def calls(self) -> int:
        """Calls that have begun."""
        return self._calls

    def push(self, text: str) -> list[Delta]:
        """Take a piece of the text; what is certain now."""
        self._buffer += text
        while self._buffer and self._state():
            pass
        return self._take()

    def finish(self) -> list[Delta]:
        """The text is over, complete or cut off. A call whose arguments have not begun is left out."""
        if self._state == self._text:
            self._content(self._buffer)
            if self._held and not self._closed:
                self._out.append(Delta(content=self._held))
        elif self._state == self._input and self._buffer:
            self._give(len(self._buffer))
        self._buffer = self._held = ""
        return self._take()

    def _take(self) -> list[Delta]:
        out, self._out = self._out, []
        return out

    # Each state takes what it can from the buffer; False: it needs more text.

    def _text(self) -> bool:
        trigger, text = self._notation.trigger, self._buffer
        at = text.find(trigger)
        if at >= 0:
            self._content(text[:at])
            self._buffer, self._state = text[at:], self._begin
            return True
        certain = len(text) - _begun(text, trigger)
        self._content(text[:certain])
        self._buffer = text[certain:]
        return False

    def _begin(self) -> bool:
        begin = self._notation.begin
        if self._buffer.startswith(begin):
            return self._enter(begin)
        return False if begin.startswith(self._buffer) else self._give_up()

    def _enter(self, before: str) -> bool:
        self._before, self._buffer, self._state = before, self._buffer[len(before) :], self._name
        return True

    def _name(self) -> bool:
        name, quote, _ = self._buffer.partition('"')
        wrong = not name if quote else len(name) > LONGEST_NAME
        if wrong or "\\" in name or "\n" in name:
            return self._give_up()
        if not quote:
            return False
        rest = self._buffer[len(name) :]
        forms = [(self._notation.between + "{", self._arguments, 1)]
        forms += [(self._notation.text, self._input, 0)] if self._notation.text else []
        for expected, state, kept in forms:
            if rest.startswith(expected):
                self._start(name, custom=state == self._input)
                self._buffer, self._state = rest[len(expected) - kept :], state
                return True
        return False if any(expected.startswith(rest) for expected, _, _ in forms) else self._give_up()

    def _start(self, name: str, *, custom: bool) -> None:
        self._held = ""
        self._out.append(Delta(index=self._calls, name=name, custom=custom))
        self._calls += 1

    def _arguments(self) -> bool:
        for size, character in enumerate(self._buffer, 1):
            if self._quoted:
                self._quoted = self._escaped or character != '"'
                self._escaped = not self._escaped and character == "\\"
            elif character == '"':
                self._quoted = True
            elif character in "{[":
                self._depth += 1
            elif character in "]}":
                self._depth -= 1
                if not self._depth:
                    self._give(size)
                    self._state = self._after
                    return True
        self._give(len(self._buffer))
        return False

    def _input(self) -> bool:
        end, text = "\n" + self._notation.close, self._buffer
        at = text.find(end)
        self._give(at if at >= 0 else len(text) - _begun(text, end))
        if at < 0:
            return False
        self._buffer, self._state = self._buffer[1:], self._after
        return True

    def _give(self, size: int) -> None:
        if not size:
            return
        self._out.append(Delta(index=self._calls - 1, arguments=self._buffer[:size]))
        self._buffer = self._buffer[size:]

    def _after(self) -> bool:
        text, end, following = self._buffer, self._notation.end, self._notation.next
        if text.startswith(following):
            return self._enter(following)
        if following.startswith(text) or (end.startswith(text) and text != end):
            return False
        self._buffer = text.removeprefix(end)
        self._state, self._closed = self._text, True
        return bool(self._buffer)

    def _give_up(self) -> bool:
        """It looked like a call and is none: it is content."""
        if self._state == self._name:
            self._buffer = self._before.removeprefix(self._notation.end) + self._buffer
            self._closed = self._closed or self._before != self._notation.begin
        first, self._buffer, self._state = self._buffer[:1], self._buffer[1:], self._text
        self._content(first)
        return True

    def _content(self, text: str) -> None:
        said = text.rstrip()
        if said:
            self._closed = False
            self._out.append(Delta(content=self._held + said))
            self._held = ""
        self._held += text[len(said) :]


def _begun(text: str, word: str) -> int:
    """How many of its last characters may be the begin of `word`."""
    return next(size for size in range(len(word) - 1, -1, -1) if text.endswith(word[:size]))


def folded(deltas: Sequence[Delta]) -> tuple[str | None, tuple[ToolCall, ...]]:
    """What deltas add up to: the content (None when there is none beside calls), and the calls."""
    content = "".join(delta.content for delta in deltas)
    begun = [delta for delta in deltas if delta.name]
    arguments: list[list[str]] = [[] for _ in begun]
    for delta in deltas:
        if delta.index >= 0:
            arguments[delta.index].append(delta.arguments)
    written = zip(begun, arguments, strict=True)
    calls = tuple(ToolCall(delta.name, "".join(parts), delta.custom) for delta, parts in written)
    return (content or None) if calls else content, calls


def parse(text: str, notation: Notation = HERMES) -> tuple[str | None, tuple[ToolCall, ...]]:
    """The content and the calls of a whole text. Of a text that was cut off, the last call's arguments may be cut off
    too."""
    reader = CallReader(notation)
    return folded([*reader.push(text), *reader.finish()])


def call_text(calls: Sequence[ToolCall], notation: Notation = HERMES) -> str:
    """The calls as a model would have written them, for the messages of a history. Raises `ConstraintError` for a name
    or arguments that cannot have been a call's."""
    if not calls:
        return ""
    bodies = []
    for n, call in enumerate(calls):
        if not 1 <= len(call.name) <= LONGEST_NAME or any(c in call.name for c in '"\\\n'):
            raise ConstraintError(f"calls[{n}].name={call.name[:80]!r}: no name of a tool")
        bodies.append(call.name + _arguments_text(call, notation, f"calls[{n}]"))
    return notation.begin + notation.separator.join(bodies) + notation.last


def message_text(content: str | None, calls: Sequence[ToolCall], notation: Notation = HERMES) -> str:
    """An assistant's message: its content, then its calls."""
    written = call_text(calls, notation)
    return "\n".join(part for part in (content, written) if part)


def _arguments_text(call: ToolCall, notation: Notation, place: str) -> str:
    """From the end of a call's name to its own end."""
    if not call.custom:
        return notation.between + _object_text(call.arguments, f"{place}.arguments") + notation.close
    if not notation.text:
        raise ConstraintError(
            f"{place}: a call with text as its input cannot be written in the {notation.name} notation"
        )
    if "\n" + notation.close in call.arguments:
        raise ConstraintError(f"{place}.arguments: contains {notation.close!r}, which ends a call")
    return notation.text + call.arguments + "\n" + notation.close


def _object_text(arguments: str, place: str) -> str:
    """Arguments as they stand, or {} for none."""
    if not arguments.strip():
        return "{}"
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        raise ConstraintError(f"{place}={arguments[:80]!r}: must be the JSON text of an object") from None
    if not isinstance(value, dict):
        raise ConstraintError(f"{place}={arguments[:80]!r}: must be the JSON text of an object")
    return arguments.strip()
