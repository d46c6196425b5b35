"""What a flight's results mean: sampled tokens extend sequences or end their ops, scored choices are decided.

In: `Samples` and the scheduler's notes about the batch. Out: longer sequences, values, news; the next ops begin in
the same call.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ramet.runtime import messages as m
from ramet.runtime.batch import F32, Samples
from ramet.runtime.boundary import blame
from ramet.runtime.choices import decide
from ramet.runtime.draft import Notes, Span, Trial
from ramet.runtime.grammar.base import Automaton
from ramet.runtime.jump import CONTEXT, Run, run
from ramet.runtime.lengths import site_of
from ramet.runtime.programs import Program, Programs
from ramet.runtime.scheduler import Scheduler
from ramet.runtime.sequence import Generating, Sequence, Task
from ramet.runtime.text import Tokenizer, cut


class Collector:
    """Reads flights back into programs. `generated` counts the tokens made so far, sampled or forced."""

    def __init__(
        self,
        programs: Programs,
        scheduler: Scheduler,
        *,
        tokenizer: Tokenizer | None,
        clock: Callable[[], float],
    ) -> None:
        self.generated = 0
        self._programs = programs
        self._scheduler = scheduler
        self._tokenizer = tokenizer
        self._clock = clock
        programs.foresee = self.foresee

    def collect(self, notes: Notes, samples: Samples, step: int) -> None:
        """Results of a flight: tokens become sequences' tokens, ended ops give way to the next ones. What arrives
        for an op that ended before is dropped."""
        touched: dict[Program, None] = {}
        ahead = dict(notes.constrained)
        drawn = zip(notes.drawn, notes.turns, notes.tasks, samples.tokens.tolist(), strict=True)
        for r, (seq, turn, task, token) in enumerate(drawn):
            if turn == seq.turn:
                try:
                    over = self._sampled(seq, task, token, r, samples, step, ahead.get(r, 0))
                except BaseException as error:  # noqa: BLE001 (the request boundary)
                    over = self._refused(seq, task, error)
                if over:
                    touched[seq.program] = None
        parts: list[Trial | Span] = [*notes.trials, *notes.spans]
        for part in parts:
            if part.turn == part.seq.turn:
                touched[part.seq.program] = None
                try:
                    if isinstance(part, Trial):
                        self._decided(part, samples, step)
                    else:
                        self._scored(part, samples, step)
                except BaseException as error:  # noqa: BLE001 (the request boundary)
                    self._refused(part.seq, part.task, error)
        for program in touched:
            self._programs.conclude(program)

    def _refused(self, seq: Sequence, task: Task, error: BaseException) -> bool:
        why = blame(error)
        self._programs.fail(seq, task.op.op, _kind(why), why)
        return True

    def _sampled(
        self, seq: Sequence, task: Generating, token: int, r: int, samples: Samples, step: int, ahead: int
    ) -> bool:
        """The op's next token, drawn behind `ahead` guessed ones, which were right; True when that was its end."""
        if not ahead:
            seq.flying -= 1
        if token < 0:
            why = task.trouble or "all are forbidden, or the logits are not finite"
            self._programs.fail(seq, task.op.op, _kind(why), f"no token can be sampled: {why}")
            return True
        seq.push(token)
        if task.first < 0:
            task.first = self._clock()
        task.made += 1
        self._count(seq, 1)
        if token in task.ends:
            self._done(seq, task, "stop", token, task.sent, [], step, _row(task, r, samples))
            return True
        task.sent += 1
        if task.automaton is not None:
            if self._constrained(seq, task, task.automaton, token, r, samples, step, ahead):
                return True
        elif task.plain:
            self._programs.news.append(m.Sampled(seq.program.id, task.op.op, (token,)))
        else:
            self._tell(seq, task, token, r, samples)
            if self._stopped(seq, task, [token], step):
                return True
        if task.made >= task.limit:
            self._done(seq, task, "length", None, task.sent, [], step)
            return True
        if seq.row is None:
            self._scheduler.wake(seq)
        return False

    def _count(self, seq: Sequence, tokens: int) -> None:
        seq.program.generated += tokens
        self.generated += tokens

    def _constrained(
        self,
        seq: Sequence,
        task: Generating,
        automaton: Automaton,
        token: int,
        r: int,
        samples: Samples,
        step: int,
        ahead: int,
    ) -> bool:
        """Follow the grammar over a token that was sampled, and over what it makes certain; True at the op's end."""
        automaton.advance((token,))
        if ahead < len(task.guess) and token == task.guess[ahead]:
            self._scheduler.cache.keep_guess(seq, task)
            task.forced += 1
            seq.program.forced += 1
            self._tell(seq, task, token, r, samples)
            if self._stopped(seq, task, [token], step):
                return True
            if automaton.complete:
                self._done(seq, task, "stop", None, task.sent, [], step)
            return seq.task is not task
        if ahead < len(task.guess):
            seq.turn += 1  # what was drawn behind the other guesses is void
        self._scheduler.cache.drop(seq)
        task.guess = []
        known = self._following(seq, task, fresh=True)
        if known.instead:
            seq.known -= 1
            task.made, task.sent, task.forced = task.made - 1, task.sent - 1, task.forced - 1
            self._count(seq, -1)
            seq.program.forced -= 1
        else:
            self._tell(seq, task, token, r, samples)
            if self._stopped(seq, task, [token], step):
                return True
        return self._force(seq, task, known, step)

    def _following(self, seq: Sequence, task: Generating, *, fresh: bool) -> Run:
        """What is known to follow the value by the grammar alone."""
        if self._tokenizer is None:
            return Run()
        end = task.start + task.sent
        return run(task, seq.tokens(max(task.start, end - CONTEXT), end).tolist(), self._tokenizer, fresh=fresh)

    def _force(self, seq: Sequence, task: Generating, known: Run, step: int) -> bool:
        """Append what is known to follow, and keep the guess; True at the op's end."""
        tokens = known.tokens[: task.limit - task.made]
        end = next((i for i, token in enumerate(tokens) if token in task.ends), len(tokens))
        matched = tokens[end] if end < len(tokens) else None
        tokens = tokens[:end]
        if tokens:
            seq.append(np.array(tokens, np.int32))
            task.made, task.sent, task.forced = (count + end for count in (task.made, task.sent, task.forced))
            self._count(seq, end)
            seq.program.forced += end
            self._tell_forced(seq, task, tokens)
            if self._stopped(seq, task, tokens, step):
                return True
        task.guess = known.guess
        assert task.automaton is not None, "only a grammar forces"
        if matched is not None or (end == len(known.tokens) and task.automaton.complete):
            self._done(seq, task, "stop", matched, task.sent, [], step)
            return True
        if task.made >= task.limit:
            self._done(seq, task, "length", None, task.sent, [], step)
            return True
        return False

    def foresee(self, seq: Sequence, task: Generating) -> None:
        """A constrained op begins: append what its grammar begins with, and end it if that is all."""
        news, now = self._programs.news, len(self._programs.news)
        task.began = self._clock()
        if self._force(seq, task, self._following(seq, task, fresh=False), -1):
            news.insert(now, m.Began(seq.program.id, task.op.op, task.prompt, task.cached))
        else:  # the client hears of it when the prompt is computed
            task.began = -1.0
            task.held, news[now:] = news[now:], []

    def _tell_forced(self, seq: Sequence, task: Generating, tokens: list[int]) -> None:
        wanted, count = task.op.sampling.logprobs, len(tokens)
        logprobs = (math.nan,) * count if wanted >= 0 else ()
        told = m.Sampled(seq.program.id, task.op.op, tuple(tokens), logprobs, ((),) * count if wanted > 0 else ())
        self._programs.news.append(told)

    def _stopped(self, seq: Sequence, task: Generating, tokens: list[int], step: int) -> bool:
        """True when the tokens completed a stop string: the op has ended before it."""
        if task.stops is None or task.detokenizer is None:
            return False
        matched = task.stops.push(task.detokenizer.push(tokens))[1]
        if matched is None:
            return False
        assert self._tokenizer is not None, "stop strings need a tokenizer"
        value = seq.tokens(task.start, task.start + task.sent).tolist()
        keep, tail = cut(self._tokenizer, value, task.stops.emitted)
        self._done(seq, task, "stop", matched, keep, list(tail), step)
        return True

    def _tell(self, seq: Sequence, task: Generating, token: int, r: int, samples: Samples) -> None:
        self._programs.news.append(m.Sampled(seq.program.id, task.op.op, (token,), *_row(task, r, samples)))

    def _done(
        self,
        seq: Sequence,
        task: Generating,
        reason: str,
        matched: str | int | None,
        keep: int,
        tail: list[int],
        step: int,
        row: m.Row = ((), ()),
    ) -> None:
        """A Generate ended: its value is its first `keep` tokens and `tail`; the rest of what was sampled stays
        cached only. `row` tells of the end token."""
        have, end = seq.known, task.start + keep
        self._scheduler.cache.drop(seq)
        self._scheduler.learned.calls.add(site_of(seq.program.name, task.op.op), task.made)
        seq.turn += 1
        seq.flying = 0
        self._scheduler.cache.settle(seq, end if tail else end - 1, known=have)
        seq.known = end
        seq.append(np.array(tail, np.int32))
        told = (seq.program.id, task.op.op, reason, keep, tuple(tail), matched, task.prompt)
        work, cost = self._work(seq, task), self._cost(seq, task, step)
        self._programs.news.append(m.Done(*told, *cost, task.forced, work, row))
        self._programs.finish(seq, seq.tokens(task.start, seq.known).copy())

    def _cost(self, seq: Sequence, task: Task, step: int) -> tuple[int, int, int, float, float]:
        """An op has ended: its cached tokens, its first and last step, seconds queued, seconds in all."""
        seq.program.cached += task.cached
        return (task.cached, task.first_step, step, task.began - task.arrived, self._clock() - task.arrived)

    def _work(self, seq: Sequence, task: Task) -> m.Work:
        first = (task.first if task.first >= 0 else self._clock()) - task.arrived
        return m.Work(seq.fresh + task.beside, seq.again, task.retractions, first, task.starved)

    def _scored(self, span: Span, samples: Samples, step: int) -> None:
        """A part of a Score's answer; the rest of it when it is the last."""
        seq, task = span.seq, span.task
        logprobs = samples.targets[span.first : span.first + span.count]
        if np.isnan(logprobs).any():
            message = "the tokens cannot be scored: the logits are not finite"
            self._programs.fail(seq, task.op.op, "generation", message)
            return
        self._tell_scores(span, logprobs, samples)
        if span.last:
            seq.turn += 1
            self._scheduler.cache.settle(seq, seq.known - 1)
            work, cost = self._work(seq, task), self._cost(seq, task, step)
            told = (seq.program.id, task.op.op, "stop", 0, (), None, task.prompt)
            self._programs.news.append(m.Done(*told, *cost, 0, work))
            self._programs.finish(seq, np.zeros(0, np.int32))

    def _tell_scores(self, span: Span, logprobs: F32, samples: Samples) -> None:
        seq, task, k = span.seq, span.task, span.task.op.top
        tokens, values = seq.tokens(span.start, span.start + span.count).tolist(), logprobs.tolist()
        tops: list[tuple[tuple[int, float], ...]] = []
        if k:
            part = slice(span.first, span.first + span.count)
            ids, likely = samples.target_ids[part, :k].tolist(), samples.target_logprobs[part, :k].tolist()
            tops = [
                tuple(pair for pair in zip(*row, strict=True) if pair[0] >= 0) for row in zip(ids, likely, strict=True)
            ]
        if task.told == 0:  # the first token follows nothing
            tokens, values, tops = [int(seq.buffer[0]), *tokens], [math.nan, *values], [(), *tops] if k else []
        task.told = span.start + span.count
        if tokens:
            told = m.Scored(seq.program.id, task.op.op, tuple(tokens), tuple(values), tuple(tops))
            self._programs.news.append(told)

    def _decided(self, trial: Trial, samples: Samples, step: int) -> None:
        seq, task = trial.seq, trial.task
        edges = samples.targets[trial.first : trial.first + len(task.trie.tokens)].astype(np.float64)
        rows = [edges[path].tolist() for path in task.trie.paths]
        bare: list[list[float]] = []
        if task.op.context:
            first = trial.first + len(task.trie.tokens)
            plain = samples.targets[first : first + len(task.trie.tokens)].astype(np.float64)
            bare = [plain[path].tolist() for path in task.trie.paths]
        if not np.isfinite(edges).all():
            message = "the choices cannot be scored: their logprobs are not finite"
            self._programs.fail(seq, task.op.op, "generation", message)
            return
        winner, scores = decide(task.op.method, rows, bare)
        value = np.array(task.op.choices[winner], np.int32)
        self._scheduler.cache.keep_trie(seq, task, task.trie.paths[winner])
        seq.append(value)
        seq.turn += 1
        self._scheduler.cache.settle(seq, seq.known - 1)
        logprobs = tuple(tuple(row) for row in rows)
        work, cost = self._work(seq, task), self._cost(seq, task, step)
        told = m.Chosen(seq.program.id, task.op.op, winner, scores, logprobs, task.prompt, *cost, work)
        self._programs.news.append(told)
        self._programs.finish(seq, value)


def _row(task: Generating, r: int, samples: Samples) -> m.Row:
    """What is told of the token that was drawn in row r."""
    wanted = task.op.sampling.logprobs
    if wanted < 0:
        return (), ()
    tops: tuple[tuple[tuple[int, float], ...], ...] = ()
    if wanted > 0:
        ids, values = samples.top_ids[r, :wanted].tolist(), samples.top_logprobs[r, :wanted].tolist()
        tops = (tuple(zip(ids, values, strict=True)),)
    return (float(samples.logprobs[r]),), tops


def _kind(why: str) -> str:
    """What a failure under a grammar is: the constraint's own where one of its limits was met (R4), if late."""
    return "constraint" if "(limit: " in why else "generation"
