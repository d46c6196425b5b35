"""One turn of a conversation as a program.

In: messages, a backend. Out: the assistant's answer, shown as it comes, and what it took.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ramet.frontend.backends.base import Backend
from ramet.frontend.ir import Finished, Meta, Started, Token
from ramet.frontend.program import function
from ramet.frontend.run import Run
from ramet.frontend.state import State

TEMPERATURE = 0.7  # of a conversation that says nothing about it
Message = tuple[str, str]  # role, content


@function
def answer(s: State, messages: Sequence[Message]) -> str:
    """The assistant's next message."""
    for role, content in messages:
        s.role(role, content)
    return s.reply(name="answer").get()


class Turn:
    """An answer under way. `text` is what there is of it, `meta` how it went (None until it is whole), `first` and
    `seconds` the time to the first text and to the end."""

    def __init__(self, backend: Backend, messages: Sequence[Message], options: Mapping[str, Any]) -> None:
        chosen = {"temperature": TEMPERATURE, **{k: v for k, v in options.items() if v is not None}}
        self._began = time.monotonic()
        self.run: Run[str] = answer.using(backend=backend, **chosen)(messages)
        self.text = ""
        self.meta: Meta | None = None
        self.prompt_tokens = self.cached_tokens = 0
        self.first = self.seconds = 0.0

    def follow(self, show: Callable[[str], None]) -> str:
        """Show the answer as it comes; the whole of it. Raises what the run raises; Ctrl-C cancels it."""
        try:
            for event in self.run.events():
                if isinstance(event, Token):
                    self.first = self.first or time.monotonic() - self._began
                    self.text += event.text
                    show(event.text)
                elif isinstance(event, Started):
                    self.prompt_tokens, self.cached_tokens = event.prompt_tokens, event.cached_tokens
                elif isinstance(event, Finished):
                    self.meta = event.meta
            return self.run.result()
        except KeyboardInterrupt:
            self.run.cancel()
            raise
        finally:
            self.seconds = time.monotonic() - self._began

    def stats(self) -> str:
        """Tokens, how many were cached, the pace; in one line."""
        if self.meta is None:
            return f"stopped after {self.seconds:.1f} s, {len(self.text)} characters"
        prompt, cached, made = self.meta.prompt_tokens, self.meta.cached_tokens, self.meta.completion_tokens
        pace = f", {(made - 1) / left:.1f} tok/s" if made > 1 and (left := self.seconds - self.first) > 0 else ""
        return (
            f"{prompt} prompt tokens ({cached} cached), {made} generated in {self.seconds:.2f} s"
            f" (the first after {self.first:.2f} s){pace}"
        )

    def cut(self, max_tokens: int | None) -> str:
        """Why the answer ends before its end; "" when it does not."""
        if self.meta is None or self.meta.finish_reason != "length":
            return ""
        if max_tokens is not None and self.meta.completion_tokens >= max_tokens:
            return f"cut at --max-tokens {max_tokens}"
        return f"cut: the context is full after {self.meta.prompt_tokens + self.meta.completion_tokens} tokens"
