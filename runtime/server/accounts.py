"""What happened, for whoever keeps figures. In: the pieces and ends of requests, as the service sees them. Out: calls
of an observer, `on_event(name, value)`, on the loop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from ramet.frontend import ir
from ramet.runtime.server.call import Begun, Piece
from ramet.runtime.server.compose import Reading
from ramet.runtime.server.failures import Failure

Observer = Callable[[str, float], None]


class Accounts:
    """Tells `note` of requests, of their pace and of their tokens; `now` is the loop's clock (seconds)."""

    def __init__(self, note: Observer, now: Callable[[], float]) -> None:
        self.note = note
        self._now = now

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Around one request: how it ended, and after how long."""
        began = self._now()
        try:
            yield
        except Failure as failure:
            self.note("request_failed", float(failure.status))
            raise
        except BaseException:
            self.note("aborted", 1.0)
            raise
        self.note("request_ok", 1.0)
        self.note("request_seconds", self._now() - began)

    def paced(self, outs: Sequence[Begun | Piece], began: float, last: float) -> float:
        """A batch of text; when it came, or `last` when there was none in it."""
        for out in outs:
            if isinstance(out, Begun):
                self.spent(out.prompt_tokens, out.cached_tokens, 0)
            elif out.meta is not None:
                self.spent(0, 0, out.meta.completion_tokens)
        if not any(isinstance(out, Piece) for out in outs):
            return last
        now = self._now()
        self.note("inter_token_seconds" if last else "first_token_seconds", now - (last or began))
        return now

    @contextlib.contextmanager
    def given(self, reading: Reading) -> Iterator[None]:
        """A stream: what was given out of completions that it left before their end is told when it is left."""
        try:
            yield
        finally:
            self.spent(0, 0, reading.unfinished)

    def ended(self, ended: ir.Ended) -> None:
        """A whole program's tokens."""
        self.spent(ended.usage.prompt_tokens, ended.usage.cached_tokens, ended.usage.generated_tokens)

    def spent(self, prompt: int, cached: int, generated: int) -> None:
        """Tokens, each once known."""
        for name, tokens in (("prompt_tokens", prompt), ("cached_tokens", cached), ("generated_tokens", generated)):
            if tokens:
                self.note(name, float(tokens))
