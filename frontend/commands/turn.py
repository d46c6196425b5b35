"""One turn of a conversation as a program.

In: messages, a backend. Out: the assistant's answer, shown as it comes, and what it took.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ramet.frontend.backends.base import Backend
from ramet.frontend.commands import WrongUsage
from ramet.frontend.errors import FAILURES, ConstraintError, GenerationError, ProgramError
from ramet.frontend.ir import Failed, Finished, Meta, Started, Token
from ramet.frontend.program import Program, function
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


def configured(program: Program[..., Any], options: Mapping[str, Any]) -> Program[..., Any]:
    """`program` with the options of the command line that were given. Raises `WrongUsage` for values that cannot be
    meant."""
    try:
        return program.using(**{name: value for name, value in options.items() if value is not None})
    except ConstraintError as error:
        raise WrongUsage(error.message) from None


def conversing(options: Mapping[str, Any]) -> Program[..., str]:
    """The program of one turn, with these options."""
    return configured(answer.using(temperature=TEMPERATURE), options)


class Turn:
    """An answer under way. `text` is what there is of it, `meta` how it went (None until it is whole), `first` and
    `seconds` the time to the first text and to the end."""

    def __init__(self, backend: Backend, messages: Sequence[Message], program: Program[..., str]) -> None:
        self._began = time.monotonic()
        self.run: Run[str] = program.using(backend=backend)(messages)
        self.text = ""
        self.meta: Meta | None = None
        self.prompt_tokens = self.cached_tokens = 0
        self.first = self.seconds = 0.0
        self._failed: Failed | None = None

    def follow(self, show: Callable[[str], None]) -> str:
        """Show the answer as it comes; the whole of it. Raises what failed first, without places of a program that the
        person has not written; Ctrl-C cancels the run."""
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
                elif isinstance(event, Failed):
                    self._failed = self._failed or event
            return self.run.result()
        except ProgramError as error:
            raise self._plainly(error) from None
        except KeyboardInterrupt:
            self.run.cancel()
            raise
        finally:
            self.seconds = time.monotonic() - self._began

    def _plainly(self, error: ProgramError) -> ProgramError:
        if self._failed is not None:
            return FAILURES.get(self._failed.kind, GenerationError)(self._failed.message)
        while isinstance(error.__cause__, ProgramError):  # refused before it was sent: no event says so
            error = error.__cause__
        error.where = error.branch = error.prompt_tail = ""
        return error

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
