"""News about token ids into events about text, for one program.

In: the engine's news, in order. Out: events of `frontend.ir`: whole characters, each once, never one that a stop
string may take back.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ramet.frontend import ir
from ramet.runtime import messages as m
from ramet.runtime.text import Detokenizer, StopMatcher, Tokenizer
from ramet.runtime.tools import ToolFormat


@dataclass(slots=True)
class Pending:
    """An op whose end was not delivered yet; for a Gen, its text so far."""

    op: ir.Gen | ir.Select | ir.Score | ir.Fork | ir.Join
    detokenizer: Detokenizer | None = None
    stops: StopMatcher | None = None
    tokens: list[int] = field(default_factory=list)
    sent: str = ""
    made: int = 0  # characters of all tokens, those that are held back included
    told: int = 0  # tokens whose text was given out to its end
    ends: list[int] = field(default_factory=list)  # where the text of each of the others ends, once it is known
    waiting: list[ir.Logprob] = field(default_factory=list)  # of the others, where asked for
    logprobs: list[ir.Logprob] = field(default_factory=list)
    total: float = 0.0


class Translator:
    """One program's events. `expect` is told of ops before they are sent; `news` and `lost` are called from the
    reading thread."""

    def __init__(
        self, program: str, tokenizer: Tokenizer, deliver: Callable[[ir.Event], None], tools: ToolFormat | None = None
    ) -> None:
        self._program = program
        self._tools = tools or ToolFormat()
        self._tokenizer = tokenizer
        self._deliver = deliver
        self._pending: dict[str, Pending] = {}
        self._over = False

    def expect(self, ops: Sequence[ir.AnyOp]) -> None:
        """Remember ops that will be answered."""
        for op in ops:
            if isinstance(op, ir.Gen):
                stops = StopMatcher(op.sampling.stop) if op.sampling.stop else None
                self._pending[op.id] = Pending(op, Detokenizer(self._tokenizer), stops)
            elif isinstance(op, (ir.Select, ir.Score, ir.Fork, ir.Join)):
                self._pending[op.id] = Pending(op)

    def deliver_all(self, events: Sequence[ir.Event]) -> None:
        """Deliver events that need no translation."""
        if not self._over:
            for event in events:
                self._deliver(event)

    def lost(self, kind: str, message: str) -> None:
        """The program ended without the engine's word: fail what is open."""
        self._end(ir.Ended(ir.Usage(), kind, message), retryable=True)

    def news(self, news: m.AnyNews) -> None:
        """Translate and deliver one piece of news."""
        if isinstance(news, m.Over):
            usage = ir.Usage(
                calls=news.calls,
                prompt_tokens=news.prompt,
                cached_tokens=news.cached,
                forced_tokens=news.forced,
                generated_tokens=news.generated,
                computed_tokens=news.computed,
                steps=news.steps,
                seconds=news.seconds,
            )
            self._end(ir.Ended(usage, news.kind, news.message), retryable=False)
            return
        pending = self._pending.get(news.op)
        if isinstance(news, m.Failure):
            self._failed(news, pending)
        elif pending is not None:
            self._about(news, pending)

    def _about(self, news: m.AnyNews, pending: Pending) -> None:
        op = pending.op
        if isinstance(news, m.Sampled) and isinstance(op, ir.Gen):
            self._sampled(news, pending, op)
        elif isinstance(news, m.Began) and isinstance(op, (ir.Gen, ir.Select, ir.Score)):
            self._deliver(ir.Started(op.id, op.seq, op.var, news.prompt, news.cached))
        elif isinstance(news, m.Scored):
            pending.logprobs += self._logprobs(news.tokens, news.logprobs, news.tops)
        elif isinstance(news, m.Done) and isinstance(op, ir.Score):
            self._scored(news, pending, op)
        elif isinstance(news, m.Done) and isinstance(op, ir.Gen):
            self._done(news, pending, op)
        elif isinstance(news, m.Chosen) and isinstance(op, ir.Select):
            self._chosen(news, op)
        elif isinstance(news, m.Branched) and isinstance(op, ir.Fork):
            del self._pending[op.id]
            self._deliver(ir.Forked(op.id, op.seq, op.into, news.known))
        elif isinstance(news, m.Merged) and isinstance(op, ir.Join):
            del self._pending[op.id]
            text = self._tokenizer.decode(list(news.tokens))
            self._deliver(ir.Joined(op.id, op.seq, op.branches, text, len(news.tokens)))

    def _sampled(self, news: m.Sampled, pending: Pending, op: ir.Gen) -> None:
        assert pending.detokenizer is not None, "a Gen has one"
        pending.tokens += news.tokens
        pending.waiting += self._logprobs(news.tokens, news.logprobs, news.tops)
        text = pending.detokenizer.push(list(news.tokens))
        pending.made += len(text)
        if text:
            pending.ends += [pending.made] * (len(pending.tokens) - pending.told - len(pending.ends))
        if pending.stops is not None:
            text, matched = pending.stops.push(text)
            if matched is not None:
                return  # what is left of it, and how much of it is kept, comes with the op's end
        if text:
            self._emit(text, pending, op)

    def _logprobs(
        self, tokens: Sequence[int], logprobs: Sequence[float], tops: Sequence[Sequence[tuple[int, float]]]
    ) -> list[ir.Logprob]:
        """Of tokens with logprobs: none where none were asked for."""
        found = []
        for i, logprob in enumerate(logprobs):
            others = tuple((t, self._text(t), p) for t, p in tops[i]) if tops else ()
            found.append(ir.Logprob(tokens[i], self._text(tokens[i]), logprob, others))
        return found

    def _unrated(self, tokens: Sequence[int]) -> list[ir.Logprob]:
        return [ir.Logprob(token, self._text(token), math.nan) for token in tokens]

    def _emit(self, text: str, pending: Pending, op: ir.Gen) -> None:
        """Give text out, with the tokens whose text is out to its end: a stop string may yet cut the others."""
        pending.sent += text
        told = bisect_right(pending.ends, len(pending.sent))
        tokens = pending.tokens[pending.told : pending.told + told]
        pending.told += told
        logprobs, pending.waiting = pending.waiting[:told], pending.waiting[told:]
        del pending.ends[:told]
        pending.logprobs += logprobs
        self._deliver(ir.Token(op.id, op.seq, text, op.var, tuple(logprobs), tuple(tokens)))

    def _done(self, news: m.Done, pending: Pending, op: ir.Gen) -> None:
        del self._pending[op.id]
        tokens = [*pending.tokens[: news.keep], *news.tail]
        value = self._tokenizer.decode(tokens)
        rows = [*pending.logprobs, *pending.waiting]
        sampled, ending = rows[: news.keep], rows[news.keep :] or self._unrated(pending.tokens[news.keep :])
        if isinstance(news.matched, int):
            ending += self._logprobs([news.matched], *news.end) or self._unrated([news.matched])
        pending.waiting = pending.waiting[: max(0, news.keep - len(pending.logprobs))]
        made, pending.tokens = len(pending.tokens), tokens
        pending.ends = [0] * (len(tokens) - pending.told)  # all of them belong to the text that is left
        if len(value) > len(pending.sent):
            self._emit(value[len(pending.sent) :], pending, op)
        content: str | None = None
        calls: tuple[ir.ToolCall, ...] = ()
        if isinstance(op.constraint, ir.Calls) and op.constraint.choice != "none":
            content, calls = self._tools.parse(value, op.constraint.tools)
        meta = ir.Meta(
            finish_reason="length" if news.reason == "length" else "stop",
            matched=news.matched,
            prompt_tokens=news.prompt,
            cached_tokens=news.cached,
            forced_tokens=news.forced,
            completion_tokens=made,
            logprobs=tuple(sampled),
            mean_logprob=_mean(sampled),
            tokens=tuple(tokens),
            ending=tuple(ending),
            respelt=len(news.tail),
            calls=calls,
            content=content,
            first_step=news.first_step,
            last_step=news.last_step,
            queued_seconds=news.queued,
            seconds=news.seconds,
            **_work(news.work),
        )
        self._deliver(ir.Finished(op.id, op.seq, value, meta, op.var))

    def _scored(self, news: m.Done, pending: Pending, op: ir.Score) -> None:
        del self._pending[op.id]
        meta = ir.Meta(
            prompt_tokens=news.prompt,
            cached_tokens=news.cached,
            logprobs=tuple(pending.logprobs),
            mean_logprob=_mean(pending.logprobs),
            first_step=news.first_step,
            last_step=news.last_step,
            queued_seconds=news.queued,
            seconds=news.seconds,
            **_work(news.work),
        )
        self._deliver(ir.Finished(op.id, op.seq, "", meta, op.var))

    def _chosen(self, news: m.Chosen, op: ir.Select) -> None:
        del self._pending[op.id]
        meta = ir.Meta(
            prompt_tokens=news.prompt,
            cached_tokens=news.cached,
            scores=news.scores,
            choice_logprobs=news.logprobs,
            mean_logprob=sum(news.logprobs[news.winner]) / len(news.logprobs[news.winner]),
            first_step=news.first_step,
            last_step=news.last_step,
            queued_seconds=news.queued,
            seconds=news.seconds,
            **_work(news.work),
        )
        self._deliver(ir.Finished(op.id, op.seq, op.choices[news.winner], meta, op.var))

    def _failed(self, news: m.Failure, pending: Pending | None) -> None:
        self._pending.pop(news.op, None)
        seq = pending.op.seq if pending is not None else news.op.rpartition(".")[0]
        self._deliver(ir.Failed(news.op, seq, news.kind, news.message))

    def _end(self, ended: ir.Ended, *, retryable: bool) -> None:
        if self._over:
            return
        self._over = True
        kind, message = ended.kind or "generation", ended.message or "the program ended before this operation did"
        try:
            for pending in list(self._pending.values()):  # another thread may add some: to these the end is the answer
                self._deliver(ir.Failed(pending.op.id, pending.op.seq, kind, message, retryable))
        finally:
            self._pending.clear()
            self._deliver(ended)

    def _text(self, token: int) -> str:
        return self._tokenizer.decode([token])


def _work(work: m.Work | None) -> dict[str, Any]:
    """The fields of `ir.Meta` for it."""
    if work is None:
        return {}
    return {
        "computed_tokens": work.computed,
        "recomputed_tokens": work.recomputed,
        "retractions": work.retractions,
        "first_token_seconds": work.first,
        "memory_seconds": work.starved,
    }


def _mean(logprobs: Sequence[ir.Logprob]) -> float | None:
    """The mean of those that were computed: neither of a sequence's first token nor of forced ones."""
    known = [p.logprob for p in logprobs if not math.isnan(p.logprob)]
    return sum(known) / len(known) if known else None
