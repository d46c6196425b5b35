"""A program's calls, taken apart: what a client without programs would have sent, one request after the other.

In: a backend, and a program that ran through a `Recorder` of it. Out: each Gen, Select and Score of it as a program of
its own (the whole prefix as constant text and role edges, as many tokens to generate), and what running those one by
one, without sharing and without batching, costs: the measured baseline of `ramet demo` and of the benchmarks.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import msgspec

from ramet.frontend.backends.base import Backend, Deliver, Session
from ramet.frontend.backends.through import Through
from ramet.frontend.errors import FAILURES, GenerationError, StateError
from ramet.frontend.ir import (
    ROOT,
    AnyOp,
    Ended,
    Event,
    Finished,
    Fork,
    Gen,
    Header,
    Join,
    Put,
    Ref,
    Role,
    Score,
    Select,
    Text,
    Tokens,
    Tools,
    Usage,
)

Item = Text | Tokens | Role | Tools | Gen | Select | Score | Join


@dataclass
class _Branch:
    """A sequence: its own items, and what it went on from: `parent`'s first `shared` items and all before them."""

    parent: str
    shared: int
    items: list[Item] = field(default_factory=list)


@dataclass
class Recording:
    """One program: its operations in the order in which they were sent, its results in the order in which they came."""

    header: Header
    ops: list[AnyOp] = field(default_factory=list)
    finished: list[Finished] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)

    def calls(self) -> list[tuple[AnyOp, ...]]:
        """Every finished Gen, Select and Score as a program of one sequence, in the order in which they finished."""
        return _Calls(self).all()


class Recorder(Through):
    """A backend that remembers the programs that pass through it to another."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self.programs: list[Recording] = []

    def open(self, header: Header, deliver: Deliver) -> Session:
        """Begin a program and its recording."""
        recording = Recording(header)
        self.programs.append(recording)

        def remember(event: Event) -> None:
            if isinstance(event, Finished):
                recording.finished.append(event)
            elif isinstance(event, Ended):
                recording.usage = event.usage
            deliver(event)

        return _RecordedSession(self.backend.open(header, remember), recording.ops)


class _RecordedSession:
    def __init__(self, session: Session, ops: list[AnyOp]) -> None:
        self._session = session
        self._ops = ops

    def send(self, ops: Sequence[AnyOp]) -> None:
        self._session.send(ops)
        self._ops.extend(ops)  # what was refused is no part of the program

    def end(self) -> None:
        self._session.end()

    def cancel(self) -> None:
        self._session.cancel()


class _Calls:
    """Rebuilds each call's prefix from a recording."""

    def __init__(self, recording: Recording) -> None:
        self._results = {event.op: event for event in recording.finished}
        self._values = {event.op: event.value for event in recording.finished}
        self._branches = {ROOT: _Branch("", 0)}
        self._places: dict[str, tuple[str, int]] = {}
        for op in recording.ops:
            self._note(op)

    def _note(self, op: AnyOp) -> None:
        branch = self._branches[op.seq]
        if isinstance(op, Fork):
            self._branches.update((name, _Branch(op.seq, len(branch.items))) for name in op.into)
        elif isinstance(op, Put):
            self._values[op.id] = op.value
        elif isinstance(op, Item):
            self._places[op.id] = (op.seq, len(branch.items))
            branch.items.append(op)

    def all(self) -> list[tuple[AnyOp, ...]]:
        """See `Recording.calls`."""
        return [self._call(op) for op in self._results]

    def _call(self, op: str) -> tuple[AnyOp, ...]:
        name, index = self._places[op]
        last = self._branches[name].items[index]
        ops = [made for item in self._before(name, index) for made in self._constant(item)]
        if isinstance(last, Gen):
            ops.append(msgspec.structs.replace(last, sampling=self._exactly(last)))
        else:
            ops.append(last)
        return tuple(msgspec.structs.replace(one, id=f"{ROOT}.{k}", seq=ROOT) for k, one in enumerate(ops))

    def _before(self, name: str, index: int) -> list[Item]:
        branch = self._branches[name]
        earlier = self._before(branch.parent, branch.shared) if branch.parent else []
        return earlier + branch.items[:index]

    def _constant(self, item: Item) -> Iterable[AnyOp]:
        """An item of a prefix with every value in it written out."""
        if isinstance(item, Role | Tokens | Tools):
            yield item
        elif isinstance(item, Score):
            return  # it appended nothing
        elif isinstance(item, Join):
            for name in item.branches:
                for inner in self._branches[name].items:
                    yield from self._constant(inner)
        elif isinstance(item, Text):
            parts = [self._values[part.op] if isinstance(part, Ref) else part for part in item.parts]
            yield msgspec.structs.replace(item, parts=("".join(parts),))
        else:
            yield Text(id=item.id, seq=item.seq, parts=(self._values[item.id],))

    def _exactly(self, gen: Gen) -> object:
        """The sampling that generates as many tokens as the recorded call did: its end token counts."""
        meta = self._results[gen.id].meta
        count = max(1, meta.completion_tokens + isinstance(meta.matched, int))
        return msgspec.structs.replace(
            gen.sampling, max_tokens=count, min_tokens=0, ignore_eos=True, stop=(), stop_token_ids=()
        )


def one_by_one(backend: Backend, recording: Recording) -> Usage:
    """Run every call of `recording` by itself, after forgetting all cached prefixes, and add up what it cost.

    `seconds` is the wall time of the calls alone, without the flushes between them. Raises `GenerationError` when one
    fails.
    """
    total = Usage()
    for ops in recording.calls():
        backend.flush_cache()
        start = time.perf_counter()
        usage = _run(backend, recording.header, ops)
        seconds = time.perf_counter() - start
        fields = (name for name in Usage.__struct_fields__ if name != "seconds")
        total = Usage(
            **{name: getattr(total, name) + getattr(usage, name) for name in fields}, seconds=total.seconds + seconds
        )
    return total


def _run(backend: Backend, header: Header, ops: Sequence[AnyOp]) -> Usage:
    ended: Future[Ended] = Future()

    def deliver(event: Event) -> None:
        if isinstance(event, Ended):
            ended.set_result(event)

    session = backend.open(header, deliver)
    try:
        session.send(ops)
        session.end()
        end = ended.result()
    except BaseException:
        session.cancel()
        raise
    if end.kind:
        raise FAILURES.get(end.kind, GenerationError)(f"a replayed call failed: {end.message}")
    if end.usage.calls != 1:
        raise StateError(f"a replayed call counted as {end.usage.calls} calls: its operation failed")
    return end.usage
