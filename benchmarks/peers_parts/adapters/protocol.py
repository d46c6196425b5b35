"""What every adapter does alike. In: a job, JSON on standard input. Out: one line of JSON for each figure.

An adapter gives three functions to `serve`:

    prepare(job)  make the peer's own format of the weights in job["folder"]
    start(job)    one prompt; `told()` as soon as there is a token
    opened(job)   a `Session`, ready

Runs in the peer's environment: nothing of ramet, nor of other adapters, can be imported here. Figures are seconds of
whole calls. A decode figure is the difference between two calls of different length over different prompts of one
length, so that prompts, start and end of a call cancel.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

Ids = list[int]
Job = dict[str, Any]
Made = tuple[list[int], Ids]  # how many ids each sequence got; those of the first one, or none
_OUT = os.dup(1)  # a library's own prints go to standard error


class Session(Protocol):
    """A model that is loaded. Every call makes exactly `tokens` ids after each prompt, greedy, beyond end tokens, and
    returns what it made."""

    def generate(self, prompts: Sequence[Any], tokens: int) -> Made:
        """All prompts given at once. A prompt has "ids" and "text"."""

    def prefixed(self, prefix: Any, own: Sequence[Any], tokens: int) -> Made:
        """Each of `own` after the one `prefix`, shared by whatever means the library has for its users."""

    def forget(self) -> None:
        """Drop what is remembered of earlier calls."""


def tell(**found: object) -> None:
    """A line to the parent."""
    os.write(_OUT, (json.dumps(found) + "\n").encode())


def told() -> None:
    """There is a token."""
    tell(first=time.time())


def serve(
    prepare: Callable[[Job], None], start: Callable[[Job], None], opened: Callable[[Job], Session], version: str
) -> None:
    """Do the job on standard input."""
    os.dup2(2, 1)
    job: Job = json.load(sys.stdin)
    if job["task"] == "prepare":
        prepare(job)
    elif job["task"] == "start":
        start(job)
    else:
        _measure(job, opened(job))
    tell(done=job["task"], version=version)
    os._exit(0)  # libraries' threads end with the process, not before


def made(sequences: Sequence[Ids]) -> Made:
    """From the ids of all."""
    return [len(ids) for ids in sequences], list(sequences[0])


def _measure(job: Job, session: Session) -> None:
    """The columns that are wanted; a small call before, as a warm-up."""
    warm = job["warm"]
    session.generate(warm[:1], 4)
    session.generate(warm, 4)
    for column in job["columns"]:
        tell(begin=column)
        kind, _, batch = column.partition(" ")
        tell(column=column, **_FIGURES[kind](job, session, batch))


def _timed(session: Session, act: Callable[[], Made]) -> tuple[float, Made]:
    session.forget()
    start = time.perf_counter()
    found = act()
    return time.perf_counter() - start, found


def _prefill(job: Job, session: Session, batch: str) -> dict[str, Any]:
    """One token after a long prompt."""
    prompts = job["prefill"]
    spans = [_timed(session, lambda prompt=prompt: session.generate([prompt], 1))[0] for prompt in prompts]
    return {"seconds": statistics.median(spans), "tokens": len(prompts[0]["ids"])}


def _decode(job: Job, session: Session, batch: str) -> dict[str, Any]:
    """The median of several pairs of calls where one is over soon: there are prompts for so many."""
    work, short, long, size = job["decode"][batch], job["short"], job["long"], int(batch)
    spans, first = [], []
    for at in range(0, len(work["long"]), size):
        before, _ = _timed(session, lambda at=at: session.generate(work["short"][at : at + size], short))
        after, (counts, ids) = _timed(session, lambda at=at: session.generate(work["long"][at : at + size], long))
        _check(counts, size, long)
        spans.append(after - before)
        first = first or ids
    seconds = statistics.median(spans)
    if seconds <= 0:
        raise RuntimeError(f"{long} tokens took no longer than {short}: this machine is busy, or --tokens too small")
    return {"seconds": seconds, "tokens": size * (long - short), "ids": first}


def _shared(job: Job, session: Session, batch: str) -> dict[str, Any]:
    """All at once, each with the whole prefix: what a library shares, it finds by itself."""
    work = job["shared"]
    span, (counts, _) = _timed(session, lambda: session.generate(work["whole"], work["tokens"]))
    _check(counts, len(work["whole"]), work["tokens"])
    return {"seconds": span, "tokens": sum(counts)}


def _prefixed(job: Job, session: Session, batch: str) -> dict[str, Any]:
    """The user says what is shared."""
    work = job["prefixed"]
    span, (counts, _) = _timed(session, lambda: session.prefixed(work["prefix"], work["own"], work["tokens"]))
    _check(counts, len(work["own"]), work["tokens"])
    return {"seconds": span, "tokens": sum(counts)}


def _check(counts: Sequence[int], sequences: int, tokens: int) -> None:
    if list(counts) != [tokens] * sequences:
        raise RuntimeError(f"asked for {sequences} x {tokens} tokens, got {len(counts)} x {sorted(set(counts))}")


_FIGURES = {"prefill": _prefill, "decode": _decode, "shared": _shared, "prefixed": _prefixed}
