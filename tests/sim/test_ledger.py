"""The ledger runner itself: it accepts what the contract allows, and every way of breaking the contract is noticed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from ramet.frontend.ir import Sampling
from ramet.runtime import messages as m
from ramet.runtime.batch import I32, Batch, Draws, Masks, Samples, Targets

from .law import Law
from .ledger import DeviceFaultError, LedgerError, LedgerRunner
from .oracle import Oracle

LAW = Law(12, eos=(0,), eos_rate=0.05, seed=3)
GREEDY = Sampling(temperature=0)
NO_MASKS = Masks()


def ids(*values: int) -> I32:
    return np.array(values, np.int32)


@dataclass
class Segment:
    """New tokens (-1: fed from `row`) at the end of the sequence whose slots are `kv`; draws into `row` if not None."""

    tokens: list[int]
    kv: list[int]
    row: int | None = None


@dataclass
class Make:
    """A batch in plain lists."""

    segments: list[Segment]
    targets: list[tuple[int, int]] = field(default_factory=list)
    sampling: Sampling = GREEDY
    seed: int = 7

    def batch(self, step: int = 0) -> Batch:
        news = [len(s.tokens) for s in self.segments]
        qo = np.concatenate(([0], np.cumsum(news))).astype(np.int32)
        tokens = ids(*(t for s in self.segments for t in s.tokens))
        starts = [len(s.kv) - len(s.tokens) for s in self.segments]
        positions = ids(*(b + i for b, n in zip(starts, news, strict=True) for i in range(n)))
        drawn = [i for i, s in enumerate(self.segments) if s.row is not None]
        rows = ids(*(int(qo[i + 1]) - 1 for i in drawn))
        fed = np.flatnonzero(tokens == -1).astype(np.int32)
        owners = [self.segments[int(np.searchsorted(qo, t, "right")) - 1].row for t in fed]
        return Batch(
            step=step,
            tokens=tokens,
            positions=positions,
            slots=ids(*(slot for s, n in zip(self.segments, news, strict=True) for slot in s.kv[len(s.kv) - n :])),
            qo_indptr=qo,
            kv_indptr=np.concatenate(([0], np.cumsum([len(s.kv) for s in self.segments]))).astype(np.int32),
            kv_indices=ids(*(slot for s in self.segments for slot in s.kv)),
            feed=fed,
            feed_rows=ids(*(row for row in owners if row is not None)),
            draws=self._draws(rows, ids(*(r for s in self.segments if (r := s.row) is not None)), positions),
            targets=Targets(ids(*(t[0] for t in self.targets)), ids(*(t[1] for t in self.targets))),
        )

    def _draws(self, rows: I32, into: I32, positions: I32) -> Draws:
        s = self.sampling
        return Draws.of(
            rows=rows,
            into=into,
            positions=(positions[rows] + 1).astype(np.int64),
            seeds=self.seed,
            temperature=s.temperature,
            top_p=s.top_p,
            top_k=s.top_k,
            min_p=s.min_p,
            frequency=s.frequency_penalty,
            presence=s.presence_penalty,
            repetition=s.repetition_penalty,
            logprobs=s.logprobs,
        )


def runner(**options: object) -> LedgerRunner:
    return LedgerRunner(LAW, **{"capacity": 64, "rows": 4, "context": 32, **options})  # type: ignore[arg-type]


def once(ledger: LedgerRunner, make: Make, masks: Masks = NO_MASKS) -> Samples:
    flight = ledger.forward(make.batch())
    ledger.sample(flight, masks)
    return ledger.read(flight)


def decode(ledger: LedgerRunner, prompt: list[int], count: int, op: Sampling, first_slot: int = 0) -> list[int]:
    """One sequence alone, chunks of three, one step late: the simplest correct engine."""
    kv: list[int] = []
    for at in range(0, len(prompt), 3):
        chunk = prompt[at : at + 3]
        kv += range(first_slot + len(kv), first_slot + len(kv) + len(chunk))
        last = at + 3 >= len(prompt)
        flight = ledger.forward(Make([Segment(chunk, list(kv), 1 if last else None)], sampling=op).batch())
        ledger.sample(flight, _history(prompt, [], op) if last else Masks())
        if not last:
            ledger.read(flight)
    made: list[int] = []
    while len(made) < count - 1:
        kv.append(first_slot + len(kv))
        following = ledger.forward(Make([Segment([-1], list(kv), 1)], sampling=op).batch())
        made.append(int(ledger.read(flight).tokens[0]))
        ledger.sample(following, _history(prompt, made, op))
        flight = following
    return [*made, int(ledger.read(flight).tokens[0])]


def _history(prompt: list[int], made: list[int], op: Sampling) -> Masks:
    penalties = op.repetition_penalty != 1 or op.presence_penalty or op.frequency_penalty
    return Masks(history=((0, ids(*prompt, *made), len(made)),)) if penalties else Masks()


SAMPLINGS = [
    Sampling(temperature=0, ignore_eos=True, max_tokens=9),
    Sampling(temperature=0.7, ignore_eos=True, max_tokens=9, top_p=0.5, top_k=3, min_p=0.1),
    Sampling(temperature=0, ignore_eos=True, max_tokens=9, presence_penalty=0.5, repetition_penalty=1.5),
]


@pytest.mark.parametrize("op", SAMPLINGS)
def test_oracle_and_ledger_agree(op: Sampling) -> None:
    prompt = [1, 2, 3, 4, 5, 6, 7]
    ops = [m.Append("0.0", "0", (tuple(prompt),)), m.Generate("0.1", "0", op, 7)]
    expected = Oracle(LAW, 32).run(ops)["0.1"]
    assert expected.reason == "length"
    assert len(expected.tokens) == 9
    assert decode(runner(), prompt, 9, op) == list(expected.tokens)
    assert decode(runner(), prompt, 9, op, first_slot=20) == list(expected.tokens)


def test_every_parameter_matters() -> None:
    """Mixed-up parameters cannot go unnoticed: each changes the tokens."""
    base = Sampling(temperature=1, ignore_eos=True)
    changes = [{"top_p": 0.9}, {"top_k": 4}, {"min_p": 0.2}, {"temperature": 0.5}, {"presence_penalty": 1.0}]
    results = [decode(runner(), [1, 2], 12, op) for op in [base, *(_changed(base, c) for c in changes)]]
    assert len({tuple(tokens) for tokens in results}) == len(results)


def _changed(base: Sampling, change: dict[str, float]) -> Sampling:
    return Sampling(**{"temperature": base.temperature, "ignore_eos": True, **change})  # type: ignore[arg-type]


def test_eos_comes_at_its_rate() -> None:
    law = Law(12, eos=(3,), eos_rate=0.25)
    prefixes = np.arange(4000, dtype=np.uint64)
    draws = Make([Segment([1], [0], 0)]).batch().draws
    many = replace(draws, **{f: np.repeat(getattr(draws, f), 4000, axis=0) for f in Draws.__slots__ if f != "bias"})
    tokens = law.draw(prefixes, many, {})
    assert 0.22 < float((tokens == 3).mean()) < 0.28
    assert len(np.unique(tokens)) == 12


def test_logprobs_tops_and_targets() -> None:
    ledger = runner()
    make = Make([Segment([1, 2, 3], [0, 1, 2], 0)], [(1, 5), (2, 6)], Sampling(temperature=0, logprobs=3))
    got = once(ledger, make)
    prefix = LAW.prefix(ids(1, 2, 3))
    assert got.logprobs[0] == LAW.logprob(np.array([prefix]), got.tokens)[0]
    assert got.top_ids.shape == (1, 3)
    assert (np.diff(got.top_logprobs[0]) <= 0).all()
    assert got.targets[0] == LAW.logprob(np.array([LAW.prefix(ids(1, 2))]), ids(5))[0]
    assert got.targets[1] == LAW.logprob(np.array([prefix]), ids(6))[0]


def test_bias_and_masks_are_honoured() -> None:
    make = Make([Segment([1], [0], 0)])
    free = int(once(runner(), make).tokens[0])
    batch = make.batch()
    banned = replace(batch, draws=replace(batch.draws, bias=((0, ids(free), np.full(1, -np.inf, np.float32)),)))
    ledger = runner()
    flight = ledger.forward(banned)
    ledger.sample(flight, Masks())
    assert ledger.read(flight).tokens[0] != free
    only = np.array([1 << 5], np.uint32)
    assert once(runner(), make, Masks(allowed=((0, only),))).tokens[0] == 5
    assert once(runner(), make, Masks(allowed=((0, only * 0),))).tokens[0] == -1


def test_a_trie_in_one_batch() -> None:
    """Segments that read what others of the batch write, longer ones listed first."""
    ledger = runner()
    make = Make(
        [Segment([8], [0, 1, 2, 3]), Segment([9], [0, 1, 2, 4]), Segment([7], [0, 1, 2]), Segment([1, 2], [0, 1])]
    )
    ledger.forward(make.batch())
    assert ledger.spells(ids(0, 1, 2, 3), ids(1, 2, 7, 8))
    assert ledger.spells(ids(0, 1, 2, 4), ids(1, 2, 7, 9))
    assert not ledger.spells(ids(0, 1, 2, 3), ids(1, 2, 7, 9))
    assert ledger.computed == 5


# -- what must be noticed

PREFILL = Make([Segment([1, 2, 3], [0, 1, 2], 0), Segment([4, 5], [3, 4], 1)])

WRONG_READS: dict[str, Segment] = {
    "another sequence's slot": Segment([6], [0, 4, 2, 9]),
    "swapped slots": Segment([6], [1, 0, 2, 9]),
    "a slot twice": Segment([6], [0, 1, 1, 9]),
    "a slot left out": Segment([6], [0, 2, 9]),
    "never written": Segment([6], [0, 1, 2, 30, 9]),
    "begins in the middle": Segment([6], [1, 2, 9]),
    "overwrites what it reads": Segment([6], [0, 1, 2, 1]),
}


@pytest.mark.parametrize("name", WRONG_READS)
def test_a_wrong_read_is_noticed(name: str) -> None:
    ledger = runner()
    once(ledger, PREFILL)
    with pytest.raises(LedgerError, match="slot"):
        ledger.forward(Make([WRONG_READS[name]]).batch())
    assert ledger.broken is not None


def test_overwriting_what_another_segment_reads_is_noticed() -> None:
    ledger = runner()
    once(ledger, PREFILL)
    with pytest.raises(LedgerError, match="written in this step by segment 1"):
        ledger.forward(Make([Segment([6], [0, 1, 2, 9]), Segment([7], [3, 4, 1])]).batch())


def test_reading_a_freed_slot_is_noticed() -> None:
    ledger = runner()
    once(ledger, PREFILL)
    ledger.poison(ids(1))
    with pytest.raises(LedgerError, match="reads slot 1 as position 1"):
        ledger.forward(Make([Segment([6], [0, 1, 2, 9])]).batch())


Break = Callable[[Batch], Batch]


def _set(name: str, *values: int) -> Break:
    return lambda b: replace(b, **{name: ids(*values)})


def _draw(name: str, *values: int) -> Break:
    return lambda b: replace(b, draws=replace(b.draws, **{name: np.array(values, getattr(b.draws, name).dtype)}))


WRONG_BATCHES: dict[str, Break] = {
    "int64": lambda b: replace(b, slots=b.slots.astype(np.int64)),
    "qo does not end": _set("qo_indptr", 0, 3, 4),
    "empty segment": _set("qo_indptr", 0, 5, 5),
    "kv shorter than the new tokens": _set("kv_indptr", 0, 2, 5),
    "positions": _set("positions", 0, 1, 3, 0, 1),
    "slots not at the end": _set("slots", 0, 2, 1, 3, 4),
    "slot outside": _set("kv_indices", 0, 1, 2, 3, 64),
    "missing token": _set("tokens", 1, -1, 3, 4, 5),
    "token outside": _set("tokens", 1, 12, 3, 4, 5),
    "lengths": _set("slots", 0, 1, 2),
    "a slot written twice": lambda b: replace(b, slots=ids(0, 1, 2, 2, 4), kv_indices=ids(0, 1, 2, 2, 4)),
    "feed of a given token": lambda b: replace(b, feed=ids(2), feed_rows=ids(0)),
    "feed outside": lambda b: replace(b, feed=ids(5), feed_rows=ids(0)),
    "nothing": lambda b: replace(b, tokens=ids()),
    "draw position": _draw("positions", 3, 3),
    "draw row": _draw("rows", 2, 5),
    "two draws for one place": lambda b: replace(
        b, draws=replace(b.draws, into=ids(1, 1), rows=ids(2, 2), positions=np.array([3, 3], np.int64))
    ),
    "draw into no row": _draw("into", 1, 4),
    "draw words": lambda b: replace(b, draws=replace(b.draws, words=b.draws.words[:1])),
    "bias": lambda b: replace(b, draws=replace(b.draws, bias=((2, ids(1), np.zeros(1, np.float32)),))),
    "target row": lambda b: replace(b, targets=Targets(ids(5), ids(1))),
    "target tops": lambda b: replace(b, targets=Targets(ids(0), ids(1), ids(1, 1))),
    "target token": lambda b: replace(b, targets=Targets(ids(0), ids(12))),
}


@pytest.mark.parametrize("name", WRONG_BATCHES)
def test_a_malformed_batch_is_noticed(name: str) -> None:
    ledger = runner()
    with pytest.raises(LedgerError):
        ledger.forward(WRONG_BATCHES[name](PREFILL.batch()))


def test_beyond_the_context_is_noticed() -> None:
    with pytest.raises(LedgerError, match="context"):
        runner(context=2).forward(PREFILL.batch())


def test_feeding_from_a_row_that_was_never_sampled_is_noticed() -> None:
    with pytest.raises(LedgerError, match="never sampled"):
        runner().forward(Make([Segment([1, -1], [0, 1], 2)]).batch())


def test_the_order_of_calls_is_checked() -> None:
    ledger = runner()
    first = ledger.forward(PREFILL.batch())
    with pytest.raises(LedgerError, match="before the batch before"):
        ledger.forward(PREFILL.batch())
    with pytest.raises(LedgerError, match="before it was sampled"):
        ledger.read(first)
    ledger.sample(first, Masks())
    with pytest.raises(LedgerError, match="sampled twice"):
        ledger.sample(first, Masks())
    second = ledger.forward(PREFILL.batch())
    ledger.sample(second, Masks())
    with pytest.raises(LedgerError, match="before an older one"):
        ledger.read(second)
    ledger.read(first)
    with pytest.raises(LedgerError, match="read twice"):
        ledger.read(first)


def test_a_history_of_another_sequence_is_noticed() -> None:
    ledger = runner()
    flight = ledger.forward(PREFILL.batch())
    with pytest.raises(LedgerError, match="history of draw 1"):
        ledger.sample(flight, Masks(history=((0, ids(1, 2, 3), 0), (1, ids(1, 2, 3), 0))))


@pytest.mark.parametrize("kind", ["forward", "sample", "read"])
def test_injected_faults_make_a_mess_and_are_survived(kind: str) -> None:
    ledger = runner(faults={kind: {1}})
    once(ledger, PREFILL)
    with pytest.raises(DeviceFaultError, match=kind):
        once(ledger, PREFILL)
    if kind == "forward":
        assert not ledger.spells(ids(0), ids(1))
    once(ledger, PREFILL)
    assert ledger.broken is None


# -- the oracle's own rules


def test_the_oracle_runs_a_program_with_branches() -> None:
    op = Sampling(temperature=0, ignore_eos=True, max_tokens=3)
    ops: list[m.AnyOp] = [
        m.Append("0.0", "0", ((1, 2),)),
        m.Fork("0.1", "0", ("0.1.b0", "0.1.b1")),
        m.Join("0.2", "0", ("0.1.b1", "0.1.b0")),
        m.Append("0.1.b0.0", "0.1.b0", ("0.1.b1.0", (9,))),
        m.Generate("0.1.b1.0", "0.1.b1", op, 1),
        m.Choose("0.3", "0", ((4,), (4, 5), (6, 7)), "token_length_normalized"),
    ]
    got = Oracle(LAW, 100).run(ops)
    value = got["0.1.b1.0"].tokens
    assert got["0.1.b0.0"].tokens == (*value, 9)
    assert got["0.2"].tokens == (*value, *value, 9)
    best = max(range(3), key=lambda i: got["0.3"].scores[i])
    assert got["0.3"].winner == best
    assert got["0.3"].prompt == 2 + 7


def test_the_oracle_poisons_what_depends_and_nothing_else() -> None:
    op = Sampling(temperature=0, max_tokens=3, ignore_eos=True)
    ops: list[m.AnyOp] = [
        m.Append("0.0", "0", (tuple([1] * 8),)),
        m.Fork("0.1", "0", ("a", "b")),
        m.Append("a.0", "a", (tuple([1] * 9),)),
        m.Generate("a.1", "a", op, 1),
        m.Append("b.0", "b", ("a.1",)),
        m.Generate("0.2", "0", op, 1),
        m.Join("0.3", "0", ("a",)),
        m.Append("c.0", "c", ((1,),)),
        m.Fork("b.1", "b", ("d",)),
        m.Generate("d.0", "d", op, 1),
    ]
    got = {name: outcome.kind for name, outcome in Oracle(LAW, 16).run(ops).items()}
    assert got == {
        "0.0": "",
        "0.1": "",
        "a.0": "context",
        "a.1": "context",
        "b.0": "context",
        "0.2": "",
        "0.3": "context",
        "c.0": "generation",
        "b.1": "context",
        "d.0": "context",
    }


def test_the_oracle_ends_circular_waits() -> None:
    ops: list[m.AnyOp] = [
        m.Append("0.0", "0", ((1,),)),
        m.Fork("0.1", "0", ("a",)),
        m.Append("a.0", "a", ("0.3",)),
        m.Join("0.2", "0", ("a",)),
        m.Put("0.9", "0", (1,)),
    ]
    got = {name: outcome.kind for name, outcome in Oracle(LAW, 16).run(ops).items()}
    assert got == {"0.0": "", "0.1": "", "a.0": "generation", "0.2": "generation", "0.9": ""}
