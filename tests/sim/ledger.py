"""A `Runner` that computes nothing and remembers everything: slots know which token of which prefix they hold.

In: batches. Out: tokens and logprobs of a `Law`. "Attention" checks that the slots a segment lists spell one prefix,
position by position, up to its new tokens; whatever breaks the contract of `runtime/batch.py` raises `LedgerError`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from typing import NoReturn, TypeVar

import numpy as np

from ramet.runtime.batch import F32, I32, U64, Batch, Flight, Masks, Samples

from .law import Law

T = TypeVar("T")
_NO_SCORES: F32 = np.zeros(0, np.float32)
GARBAGE = -1  # position of a slot that holds nothing
UNWRITTEN = -2  # entry of the token table that was never sampled


class LedgerError(AssertionError):
    """The engine broke the contract between scheduler and runner."""


class DeviceFaultError(RuntimeError):
    """The injected failure of a device."""


def _refuse(message: str) -> NoReturn:
    raise LedgerError(message)


@dataclass(slots=True)
class LedgerFlight:
    """A batch that was launched. `prefixes[t]` is the hash of the prefix that ends with the batch's token t."""

    batch: Batch
    prefixes: U64
    index: int
    samples: Samples | None = None
    done: bool = False  # read, or lost to a fault


class LedgerRunner:
    """See the module. `faults` says which calls (counted from 0, by kind: forward, sample, read) raise
    `DeviceFaultError`, after they have made a mess of what they should have written. `broken` keeps the first
    `LedgerError`, since the engine's own boundary around its runner would swallow it."""

    def __init__(
        self,
        law: Law,
        *,
        capacity: int,
        rows: int,
        context: int,
        faults: Mapping[str, Collection[int]] | None = None,
    ) -> None:
        self.law = law
        self.capacity = capacity
        self.rows = rows
        self.context = context
        self.vocab = law.vocab
        self.calls = {"forward": 0, "sample": 0, "read": 0}
        self.computed = 0  # tokens that went through `forward`
        self.broken: LedgerError | None = None
        self.faulted = 0
        self.struck: set[str] = set()  # programs that took part in a batch that failed
        self._faults = {kind: frozenset(calls) for kind, calls in (faults or {}).items()}
        self._hash = np.zeros(capacity, np.uint64)
        self._token = np.zeros(capacity, np.int32)
        self._position = np.full(capacity, GARBAGE, np.int32)
        self._table = np.full(rows, UNWRITTEN, np.int32)
        self._flights: list[LedgerFlight] = []  # those that are neither read nor lost, oldest first

    # -- the Runner protocol

    def forward(self, batch: Batch) -> LedgerFlight:
        """Write the batch's tokens, then attend."""
        return self._watched(lambda: self._forward(batch))

    def sample(self, flight: Flight, masks: Masks) -> None:
        """Draw tokens and put them into the token table."""
        assert isinstance(flight, LedgerFlight)
        self._watched(lambda: self._sample(flight, masks))

    def read(self, flight: Flight) -> Samples:
        """The results of a flight, in the order of launching, once."""
        assert isinstance(flight, LedgerFlight)
        return self._watched(lambda: self._read(flight))

    # -- what tests use

    def poison(self, slots: I32) -> None:
        """Mark slots (those that are free) as garbage, so that reading one is noticed."""
        self._position[slots] = GARBAGE

    def spells(self, slots: I32, tokens: I32) -> bool:
        """Whether `slots` hold exactly the prefix `tokens`, in order."""
        return bool(
            np.array_equal(self._position[slots], np.arange(len(tokens)))
            and np.array_equal(self._token[slots], tokens)
            and np.array_equal(self._hash[slots], self.law.chain(self.law.start, tokens, 0))
        )

    # -- forward

    def _forward(self, batch: Batch) -> LedgerFlight:
        if self._flights and self._flights[-1].samples is None:
            _refuse(f"step {batch.step}: launched before the batch before it was sampled")
        if self._fault("forward"):
            self._strike(batch)
            self.poison(batch.slots)
            raise DeviceFaultError("forward")
        _check_shape(batch, self)
        tokens = self._fed(batch)
        prefixes = self._write(batch, tokens)
        self._attend(batch)
        self.computed += len(batch)
        flight = LedgerFlight(batch, prefixes, self.calls["forward"])
        self._flights.append(flight)
        return flight

    def _fed(self, batch: Batch) -> I32:
        """The batch's tokens, those of the token table filled in."""
        tokens = batch.tokens.copy()
        if len(set(batch.feed.tolist())) != len(batch.feed) or not (tokens[batch.feed] == -1).all():
            _refuse(f"step {batch.step}: feed {batch.feed.tolist()} does not name each missing token once")
        fed = self._table[batch.feed_rows]
        if (fed == UNWRITTEN).any():
            _refuse(f"step {batch.step}: rows {batch.feed_rows[fed == UNWRITTEN].tolist()} were never sampled into")
        tokens[batch.feed] = np.maximum(fed, 0)  # -1: nothing could be sampled, which the host does not know yet
        if ((tokens < 0) | (tokens >= self.vocab)).any():
            _refuse(f"step {batch.step}: a token is outside the vocabulary, or missing and not fed")
        return tokens

    def _write(self, batch: Batch, tokens: I32) -> U64:
        """Store the new tokens; the hash of the prefix that ends with each."""
        if len(set(batch.slots.tolist())) != len(batch.slots):
            _refuse(f"step {batch.step}: a slot is written twice")
        prefixes = np.zeros(len(batch), np.uint64)
        starts = batch.positions[batch.qo_indptr[:-1]]
        starts, ends, seen = starts.tolist(), batch.qo_indptr.tolist(), batch.kv_indptr.tolist()
        for s in sorted(range(len(starts)), key=starts.__getitem__):
            first, end, start = ends[s], ends[s + 1], starts[s]  # what comes before it may be written by this batch,
            kv = batch.kv_indices[seen[s] : seen[s + 1]]  # and then its segment is shorter
            before = self._hash[kv[start - 1]] if start else self.law.start
            if end - first == 1:
                prefixes[first] = self.law.follow(int(before), int(tokens[first]), start)
            else:
                prefixes[first:end] = self.law.chain(before, tokens[first:end], start)
            self._hash[batch.slots[first:end]] = prefixes[first:end]
        self._token[batch.slots], self._position[batch.slots] = tokens, batch.positions
        return prefixes

    def _attend(self, batch: Batch) -> None:
        """After all writes, every segment's slots must hold positions 0, 1, 2, ... of one prefix. A slot that appears
        twice, is free, was taken away or was overwritten by another segment of this batch cannot."""
        kv, begins = batch.kv_indices, batch.kv_indptr[:-1]
        lengths = np.diff(batch.kv_indptr)
        places = np.arange(len(kv), dtype=np.int32) - np.repeat(begins, lengths)
        wrong = self._position[kv] != places
        if wrong.any():
            self._explain(batch, int(wrong.argmax()), "holds position {position}")
        hashes = self._hash[kv]
        before = np.empty_like(hashes)
        before[1:] = hashes[:-1]
        before[begins] = self.law.start  # the first one is covered here: every segment begins somewhere
        wrong = hashes != before + self.law.terms(self._token[kv], places)
        if wrong.any():
            self._explain(batch, int(wrong.argmax()), "holds a token of another prefix")

    def _explain(self, batch: Batch, at: int, what: str) -> NoReturn:
        segment = int(np.searchsorted(batch.kv_indptr, at, "right")) - 1
        slot, place = int(batch.kv_indices[at]), at - int(batch.kv_indptr[segment])
        written = np.flatnonzero(batch.slots == slot)
        by = int(np.searchsorted(batch.qo_indptr, written[0], "right")) - 1 if len(written) else -1
        origin = f"written in this step by segment {by}" if len(written) else "written earlier"
        found = what.format(position=int(self._position[slot]))
        _refuse(f"step {batch.step}: segment {segment} reads slot {slot} as position {place}, which {found} ({origin})")

    # -- sample and read

    def _sample(self, flight: LedgerFlight, masks: Masks) -> None:
        if not self._flights or flight is not self._flights[-1] or flight.samples is not None:
            _refuse(f"step {flight.batch.step}: sampled twice, or not the batch launched last")
        draws, targets = flight.batch.draws, flight.batch.targets
        if self._fault("sample"):
            self._strike(flight.batch)
            self._table[draws.into] = UNWRITTEN
            self._lose(flight)
            raise DeviceFaultError("sample")
        prefixes = flight.prefixes[draws.rows]
        tokens = self.law.draw(prefixes, draws, self._histories(flight, masks), dict(masks.allowed))
        self._table[draws.into] = tokens
        times = np.bincount(draws.into, minlength=self.rows)
        self._table[times > 1] = UNWRITTEN  # which of them is there is up to the device: nobody may be fed it
        wanted = np.flatnonzero(draws.logprobs >= 0)
        logprobs = np.full(len(draws), np.nan, np.float32)
        if len(wanted):
            logprobs[wanted] = self.law.logprob(prefixes[wanted], np.maximum(tokens[wanted], 0))
        top = self._alternatives(prefixes, draws.logprobs)
        ends = flight.prefixes[targets.rows]
        scored = self.law.logprob(ends, targets.tokens) if len(targets) else _NO_SCORES
        asked = targets.top if len(targets.top) else np.zeros(len(targets), np.int32)
        others = self._alternatives(ends, asked)
        flight.samples = Samples(tokens, logprobs, *top, scored, *others)

    def _alternatives(self, prefixes: U64, wanted: I32) -> tuple[I32, F32]:
        width = max(0, int(wanted.max(initial=0)))
        ids = np.full((len(wanted), width), -1, np.int32)
        logprobs = np.full((len(wanted), width), np.nan, np.float32)
        for n in np.flatnonzero(wanted > 0):
            best, values = self.law.top(prefixes[n], int(wanted[n]))
            ids[n, : len(best)], logprobs[n, : len(best)] = best, values
        return ids, logprobs

    def _histories(self, flight: LedgerFlight, masks: Masks) -> dict[int, int]:
        """How many tokens the op of each draw with penalties generated; the history must spell the draw's prefix. A
        draw without a history is one whose op has ended meanwhile: its token is dropped."""
        draws, step = flight.batch.draws, flight.batch.step
        generated: dict[int, int] = {}
        for r, tokens, count in masks.history:
            if not 0 <= count <= len(tokens) or self.law.prefix(tokens) != flight.prefixes[draws.rows[r]]:
                _refuse(f"step {step}: the history of draw {r} is not its sequence")
            if r in generated:
                _refuse(f"step {step}: draw {r} has two histories")
            generated[r] = count
        return generated

    def _read(self, flight: LedgerFlight) -> Samples:
        if flight.done or not self._flights or flight is not self._flights[0]:
            _refuse(f"step {flight.batch.step}: read twice, or before an older one")
        samples = flight.samples
        if samples is None:
            _refuse(f"step {flight.batch.step}: read before it was sampled")
        self._lose(flight)
        if self._fault("read"):
            self._strike(flight.batch)
            raise DeviceFaultError("read")
        return samples

    def _lose(self, flight: LedgerFlight) -> None:
        flight.done = True
        self._flights.remove(flight)

    def _strike(self, batch: Batch) -> None:
        self.faulted += 1
        self.struck |= {seq.program.id for seq in getattr(batch.owner, "members", ())}

    def _fault(self, kind: str) -> bool:
        call = self.calls[kind]
        self.calls[kind] += 1
        return call in self._faults.get(kind, ())

    def _watched(self, act: Callable[[], T]) -> T:
        try:
            return act()
        except LedgerError as error:
            self.broken = self.broken or error
            raise


def _check_shape(batch: Batch, runner: LedgerRunner) -> None:
    """Everything about a batch that does not depend on what the slots hold."""
    count, at = len(batch), f"step {batch.step}: "
    if not count or not batch.segments:
        _refuse(at + "nothing to compute")
    for name in ("tokens", "positions", "slots", "qo_indptr", "kv_indptr", "kv_indices", "feed", "feed_rows"):
        if getattr(batch, name).dtype != np.int32:
            _refuse(at + f"{name} is {getattr(batch, name).dtype}")
    news, olds = batch.qo_indptr[1:] - batch.qo_indptr[:-1], batch.kv_indptr[1:] - batch.kv_indptr[:-1]
    if batch.qo_indptr[0] or batch.qo_indptr[-1] != count or (news < 1).any():
        _refuse(at + f"qo_indptr {batch.qo_indptr.tolist()} does not divide {count} tokens into segments")
    if (
        batch.kv_indptr[0]
        or batch.kv_indptr[-1] != len(batch.kv_indices)
        or len(olds) != len(news)
        or (olds < news).any()
    ):
        _refuse(at + f"kv_indptr {batch.kv_indptr.tolist()} does not fit qo_indptr and kv_indices")
    if not len(batch.tokens) == len(batch.positions) == len(batch.slots):
        _refuse(at + "tokens, positions and slots differ in length")
    if batch.kv_indices.min() < 0 or batch.kv_indices.max() >= runner.capacity:
        _refuse(at + "a slot is outside the pool")
    first, tokens = batch.qo_indptr[:-1], np.arange(count, dtype=np.int32)
    if (batch.positions != np.repeat(olds - news - first, news) + tokens).any():
        _refuse(at + "positions are not those of the last tokens of the segments")
    if (batch.slots != batch.kv_indices[np.repeat(batch.kv_indptr[1:] - news - first, news) + tokens]).any():
        _refuse(at + "the slots to write are not the last that their segments list")
    if batch.positions.max() >= runner.context:
        _refuse(at + f"position {batch.positions.max()} is beyond the context of {runner.context}")
    if len(batch.feed) != len(batch.feed_rows) or _outside(batch.feed, count) or _outside(batch.feed_rows, runner.rows):
        _refuse(at + "feed does not fit the batch or the token table")
    _check_draws(batch, runner)


def _check_draws(batch: Batch, runner: LedgerRunner) -> None:
    draws, targets, at = batch.draws, batch.targets, f"step {batch.step}: "
    if _outside(draws.rows, len(batch)) or _outside(draws.into, runner.rows):
        _refuse(at + "a draw names a token or a row that does not exist")
    if len(set(zip(draws.into.tolist(), draws.positions.tolist(), strict=True))) != len(draws):
        _refuse(at + "two draws for one place of a row")
    if not np.array_equal(draws.positions, batch.positions[draws.rows] + 1):
        _refuse(at + "a draw's position does not follow that of its logits")
    if len({len(getattr(draws, f.name)) for f in fields(draws) if f.name != "bias"}) > 1:
        _refuse(at + "the fields of the draws differ in length")
    if any(not 0 <= r < len(draws) or _outside(tokens, runner.vocab) for r, tokens, _ in draws.bias):
        _refuse(at + "a bias names a draw or a token that does not exist")
    if len(targets.rows) != len(targets.tokens) or len(targets.top) not in (0, len(targets)):
        _refuse(at + "the fields of the targets differ in length")
    if _outside(targets.rows, len(batch)):
        _refuse(at + "a target names a token that does not exist")
    if _outside(targets.tokens, runner.vocab):
        _refuse(at + "a target is outside the vocabulary")


def _outside(values: I32, end: int) -> bool:
    return bool(len(values)) and not 0 <= int(values.min()) <= int(values.max()) < end
