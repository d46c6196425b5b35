"""The answers of SGLang's native protocol, whole or as they grow.

In: the prompts of a request, with what is asked of each, and the calls that they make up. Out: SGLang's dictionaries:
`text`, `output_ids`, `meta_info`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ramet.frontend import ir
from ramet.runtime.server import raw
from ramet.runtime.server.call import Answered, Begun, Call, Caller, Outs, Piece, Prompt, Scoring
from ramet.runtime.server.constraints import Wanted
from ramet.runtime.server.service import Service
from ramet.runtime.server.shapes import generated
from ramet.runtime.server.wire import Batches, logprob


@dataclass(frozen=True, slots=True)
class Shown:
    """What the answer to one prompt shows, besides its text. `rid` is its id; of several choices a part."""

    rid: str
    many: bool
    logprobs: bool
    tops: bool
    texts: bool
    special: bool
    untrimmed: bool


@dataclass(frozen=True, slots=True)
class One:
    """One prompt of a request. Prompts of equal `kind` (and the same caller) go into one call."""

    prompt: Prompt
    shown: Shown
    sampling: ir.Sampling
    generate: bool
    scoring: Scoring | None
    salt: str
    label: str
    wanted: Wanted | None = None
    jump: ir.Jump = "canonical"

    @property
    def kind(self) -> tuple[object, ...]:
        """What must be equal for two prompts to be one call."""
        return (self.sampling, self.generate, self.scoring, self.salt, self.label, self.wanted, self.jump)

    @property
    def nothing(self) -> bool:
        """An empty prefix to be cached: SGLang's frontend asks for it at the begin of a program."""
        return not self.generate and not self.prompt


@dataclass(frozen=True, slots=True)
class Job:
    """A call, and the numbers of its prompts in the request."""

    call: Call
    caller: Caller
    places: tuple[int, ...]


@dataclass(slots=True)
class Line:
    """What is known of one choice so far, and how much of it was written (`sent`)."""

    one: One
    index: int  # in the answer
    choice: int
    begun: Begun = field(default_factory=lambda: Begun(0, 0, 0))
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[ir.Logprob] = field(default_factory=list)
    made: int = 0  # tokens, those of a stop included
    forced: int = 0  # of these, known without a decode step of their own; told at the end
    over: dict[str, Any] | None = None
    sent: tuple[int, int, int, int] = (0, 0, 0, 0)  # characters, tokens, logprobs, logprobs of the prompt

    def written(self, service: Service, seconds: float | None, *, deltas: bool = False) -> dict[str, Any]:
        """SGLang's answer; with `deltas` what is new in it. `seconds` since the request came, at its end."""
        shown = self.one.shown
        chars, tokens, logs, scored = self.sent if deltas else (0, 0, 0, 0)
        self.sent = (len(self.text), len(self.tokens), len(self.logprobs), len(self.begun.scores))
        meta: dict[str, Any] = {
            "id": shown.rid if self.choice == 0 else f"{shown.rid}_{self.choice}",
            "finish_reason": self.over,
            "prompt_tokens": self.begun.prompt_tokens,
            "completion_tokens": self.made,
            "cached_tokens": self.begun.cached_tokens,
            "forced_tokens": self.forced,
            "weight_version": "default",
        }
        if seconds is not None:
            meta["e2e_latency"] = seconds
        inputs, outputs = self.begun.scores[scored:], self.logprobs[logs:]
        if shown.logprobs:
            meta["input_token_logprobs"] = [self._row(service, each) for each in inputs]
            meta["output_token_logprobs"] = [self._row(service, each) for each in outputs]
        if shown.tops:
            meta["input_top_logprobs"] = [self._tops(service, each) for each in inputs]
            meta["output_top_logprobs"] = [self._tops(service, each) for each in outputs]
        answer = {"text": self.text[chars:], "output_ids": self.tokens[tokens:], "meta_info": meta}
        return {**answer, "index": self.index} if shown.many else answer

    def _row(self, service: Service, each: ir.Logprob) -> list[Any]:
        text = raw.name_of(service.tokenizer, each.token) if self.one.shown.texts else None
        return [logprob(each.logprob), each.token, text]

    def _tops(self, service: Service, each: ir.Logprob) -> list[list[Any]] | None:
        if not each.top:
            return None
        return [self._row(service, ir.Logprob(token, text, value)) for token, text, value in each.top]

    def close(self, service: Service, text: str, meta: ir.Meta | None) -> None:
        """All of it is known: `text` the whole, `meta` of the completion, None where nothing was generated."""
        if meta is None:
            self.over = {"type": "length", "length": 0}
            return
        shown = self.one.shown
        self.text = raw.completed(service.tokenizer, text, meta, special=shown.special, untrimmed=shown.untrimmed)
        self.tokens, self.logprobs = list(generated(meta)), [*meta.logprobs, *meta.ending]
        self.made = len(self.tokens)
        self.forced = meta.forced_tokens
        kept = {"type": "stop", "matched": meta.matched}
        self.over = {"type": "length", "length": self.made} if meta.finish_reason == "length" else kept


def _lines(ones: Sequence[One], n: int) -> list[list[Line]]:
    """Lines of each prompt."""
    choices = [range(n if one.generate else 1) for one in ones]
    firsts = [sum(len(before) for before in choices[:i]) for i in range(len(ones))]
    return [[Line(one, firsts[i] + k, k) for k in choices[i]] for i, one in enumerate(ones)]


async def answered(service: Service, ones: Sequence[One], jobs: Sequence[Job], n: int) -> list[dict[str, Any]]:
    """The answers to a whole request, prompt by prompt."""
    lines = _lines(ones, n)
    began = asyncio.get_running_loop().time()
    answers = await raw.all_of([service.complete(job.call, job.caller) for job in jobs])
    seconds = asyncio.get_running_loop().time() - began
    found: dict[int, Answered] = {}
    for job, answer in zip(jobs, answers, strict=True):
        found |= zip(job.places, answer.prompts, strict=True)
    for i, mine in enumerate(lines):
        known = found.get(i, Answered(Begun(i, 0, 0), ()))
        for line in mine:
            line.begun = known.begun
            done = known.completions[line.choice] if known.completions else None
            line.close(service, done.text if done else "", done.meta if done else None)
    every = [line for mine in lines for line in mine]
    rows = sum(len(line.begun.scores) + len(line.logprobs) for line in every)
    return await raw.written(rows, lambda: [line.written(service, seconds) for line in every])


async def streamed(service: Service, ones: Sequence[One], jobs: Sequence[Job], *, n: int, deltas: bool) -> Batches:
    """The answers as they grow: each event has all of its choice so far or, with `deltas`, what is new."""
    lines = _lines(ones, n)
    clock = asyncio.get_running_loop().time
    began = clock()
    for mine in lines:
        if mine[0].one.nothing:
            mine[0].close(service, "", None)
            yield [mine[0].written(service, 0.0)]
    async with contextlib.aclosing(raw.merged([service.stream(job.call, job.caller) for job in jobs])) as feed:
        async for number, outs in feed:
            grown = _taken(service, lines, jobs[number].places, outs)
            made = [
                line.written(service, None if line.over is None else clock() - began, deltas=deltas) for line in grown
            ]
            if made:
                yield made


def _taken(service: Service, lines: Sequence[Sequence[Line]], places: Sequence[int], outs: Outs) -> Iterator[Line]:
    """The lines of which these tell something that is to be written."""
    for out in outs:
        mine = lines[places[out.prompt]]
        if isinstance(out, Piece):
            _grown(service, mine[out.choice], out)
            yield mine[out.choice]
            continue
        for line in mine:
            line.begun = out
        if not mine[0].one.generate:
            mine[0].close(service, "", None)
            yield mine[0]


def _grown(service: Service, line: Line, piece: Piece) -> None:
    line.text += piece.text
    line.tokens += piece.tokens
    line.logprobs += piece.logprobs
    line.made = len(line.tokens)
    if piece.meta is not None:
        line.close(service, line.text, piece.meta)
