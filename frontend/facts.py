"""What a run's record says of each operation: what it needed, and when what happened to it.

In: the record of a run, or of a plan's run, at any time. Out: facts with times in seconds since the run began.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ramet.frontend.entries import Entry, Seq
from ramet.frontend.execution import Execution
from ramet.frontend.explained import Cause, Need
from ramet.frontend.ir import (
    AnyOp,
    Close,
    Ended,
    Event,
    Failed,
    Finished,
    Forked,
    Joined,
    Meta,
    Put,
    Ref,
    Rendered,
    Started,
    Text,
    Token,
)
from ramet.frontend.plan_run import PlanRun
from ramet.frontend.readings import Actor, Reading
from ramet.frontend.trace import label

CALLS = ("gen", "select", "score")
MANY = 8  # values that an operation is said to have been recorded after
IDLE = 0.005  # seconds without recording, after which Python is taken to have waited for something


@dataclass
class Fact:
    """One operation. Times are None for what did not happen. `tokens`: the length of its branch, where a fork says it;
    `winner`: tokens of a choice's value."""

    id: str
    seq: str
    kind: str
    label: str
    var: str
    where: str
    text: str
    status: str
    error: str
    recorded: float
    sent: float | None = None
    actor: Actor | None = None
    causes: list[Cause] = field(default_factory=list)
    host_began: float | None = None
    started: float | None = None
    first: float | None = None
    done: float | None = None
    prompt: int = 0
    meta: Meta | None = None
    into: tuple[str, ...] = ()
    branches: tuple[str, ...] = ()
    tokens: int | None = None
    winner: int = 0
    characters: int = 0

    def need(self, kind: Need, *ops: str) -> None:
        """It needs these operations."""
        self.causes += [Cause(kind, op) for op in ops if op != self.id]


@dataclass
class Facts:
    """A run. `parents` are the branches' parents, `items` their titles; `now` is its end, or the present; `body` when
    its Python ended, `ended` the backend's last word."""

    name: str
    seed: int
    state: str
    error: str
    facts: dict[str, Fact]
    parents: dict[str, str]
    items: dict[str, str]
    now: float
    body: float | None = None
    ended: Ended | None = None
    reads: Sequence[Reading] = ()
    actor: Actor | None = None


def of_run(run: Execution) -> Facts:
    """The facts of a program's run, as far as it has come."""
    record = run.record
    zero = record.began
    entries = [entry for entry in list(record.entries.values()) if entry.kind != "close"]
    facts = {entry.id: _fact(entry, zero) for entry in entries}
    events = list(record.events)
    ended = _take(facts, events, [moment - zero for moment in record.times[: len(events)]])
    reads = [r._replace(began=r.began - zero, ended=r.ended - zero) for r in list(record.reads)]
    order(facts)
    _read_before(facts, reads)
    over, cause = run.outcome.done(), record.cause
    error = run.outcome.exception() if over else cause
    seqs = list(record.seqs.values())
    return Facts(
        run.name,
        run.header.seed,
        state_of(over, error),
        str(error) if error is not None else "",
        facts,
        {seq.path: seq.parent.path if seq.parent is not None else "" for seq in seqs},
        {seq.path: "" if seq.item is None else str(seq.item) for seq in seqs},
        _end(facts, ended, record.times, record.body_ended, zero),
        record.body_ended - zero if record.body_ended else None,
        ended,
        reads,
        record.actor,
    )


def of_plan(run: PlanRun[Any]) -> Facts:
    """The facts of a plan's run, as far as it has come."""
    zero, facts = run.began, dict[str, Fact]()
    parents, places = {"0": ""}, dict[str, str]()
    for moment, trigger, ops in list(run.sent):
        for op in ops:
            step = run.course.step_of(op.id)
            if isinstance(op, Close):
                continue
            fact = facts[op.id] = _planned(op, step.where if step is not None else "", moment - zero)
            parents.update((path, op.seq) for path in fact.into)
            if trigger:
                places[op.id] = trigger
    events = run.told
    ended = _take(facts, events, [moment - zero for moment in run.times[: len(events)]])
    order(facts)
    for place, trigger in places.items():
        facts[place].need("read", trigger)
    over, error = run.done, run.future.exception() if run.done else None
    now = _end(facts, ended, run.times, 0.0, zero)
    items = dict.fromkeys(parents, "")
    return Facts(run.name, run.seed, state_of(over, error), str(error or ""), facts, parents, items, now, None, ended)


def told(meta: Meta) -> bool:
    """The backend tells how it computed the call: its zeros are zeros."""
    return meta.first_step >= 0 or meta.computed_tokens is not None


def state_of(over: bool, error: BaseException | None) -> str:
    """How a run is."""
    if not over:
        return "running"
    return "done" if error is None else "cancelled" if type(error).__name__ == "Aborted" else "failed"


def _end(facts: Mapping[str, Fact], ended: Ended | None, times: Sequence[float], body: float, zero: float) -> float:
    if ended is None:
        return time.monotonic() - zero
    hosts = [fact.done for fact in facts.values() if fact.kind == "put" and fact.done is not None]
    return max(times[-1] - zero, body - zero if body else 0.0, *hosts)


def _planned(op: AnyOp, where: str, at: float) -> Fact:
    """An operation that a plan has sent."""
    var = getattr(op, "var", "")
    entry = Entry(op.id, Seq(op.seq), "text", where, "" if var == f"_{op.id}" else var)
    entry.op = op
    kind = str(op.__struct_config__.tag)
    fact = Fact(op.id, op.seq, kind, said(entry), entry.var, where, "", "recorded", "", at, at)
    if isinstance(op, Text):
        fact.text = "".join(part for part in op.parts if isinstance(part, str))
        fact.need("value", *(part.op for part in op.parts if isinstance(part, Ref)))
        fact.status = "done"
    elif isinstance(op, Put):
        fact.text, fact.status, fact.done = op.value, "done", at
    fact.into, fact.branches = getattr(op, "into", ()), getattr(op, "branches", ())
    fact.characters = len(fact.text)
    return fact


def said(entry: Entry) -> str:
    """What the operation is, in a few words."""
    kind = entry.kind if entry.op is None else str(entry.op.__struct_config__.tag)
    return f"{kind} {entry.var}".strip() if kind in ("gen", "text", "score") else label(entry)


def _fact(entry: Entry, zero: float) -> Fact:
    text = entry.value_text() if entry.kind == "put" else entry.known_text()
    fact = Fact(
        entry.id,
        entry.seq.path,
        str(entry.op.__struct_config__.tag) if entry.op is not None else entry.kind,
        said(entry),
        entry.var,
        entry.where,
        text,
        entry.status,
        str(entry.error) if entry.error is not None else "",
        entry.recorded_at - zero,
        entry.sent_at - zero if entry.sent_at else None,
        entry.actor,
        meta=entry.meta,
        characters=len(text),
    )
    fact.need("value", *(ref.id for ref in entry.refs if ref.kind != "put"))
    fact.need("host", *(ref.id for ref in entry.refs if ref.kind == "put"), *entry.needs)
    if entry.kind == "put":
        fact.host_began = entry.begun[0] - zero if entry.begun else None
        fact.done = entry.done_at - zero if entry.done_at else None
        fact.status = "running" if entry.begun and not entry.done_at else fact.status
    fact.into, fact.branches = getattr(entry.op, "into", ()), getattr(entry.op, "branches", ())
    return fact


def _take(facts: Mapping[str, Fact], events: Sequence[Event], times: Sequence[float]) -> Ended | None:
    """Bring the facts up to date with what happened; the terminal event."""
    ended: Ended | None = None
    for event, at in zip(events, times, strict=False):
        if isinstance(event, Ended):
            ended = event
            continue
        fact = facts.get(event.op)
        if fact is None or (isinstance(event, Token) and fact.first is not None):
            continue
        match event:
            case Started(prompt_tokens=prompt):
                fact.started, fact.prompt, fact.status = at, prompt, _later(fact.status)
            case Token():
                fact.first = at
            case Finished(value=value, meta=meta):
                fact.done, fact.meta, fact.status = at, meta, "done"
                fact.text, fact.prompt, fact.characters = value, meta.prompt_tokens, len(value)
                fact.winner = _scored(meta)
            case Forked(tokens=tokens):
                fact.done, fact.tokens, fact.status = at, tokens, "done"
            case Joined(text=text, tokens=tokens):
                fact.tokens = tokens
                fact.done, fact.text, fact.status, fact.characters = at, text, "done", len(text)
            case Rendered(text=text):
                fact.done, fact.text, fact.status, fact.characters = at, text, "done", len(text)
            case Failed(message=message):
                fact.done, fact.status, fact.error = at, "failed", fact.error or message
    return ended


def _later(status: str) -> str:
    return "running" if status == "recorded" else status


def _scored(meta: Meta) -> int:
    """Tokens of the choice that won."""
    if not meta.scores or len(meta.scores) != len(meta.choice_logprobs):
        return 0
    return len(meta.choice_logprobs[max(range(len(meta.scores)), key=meta.scores.__getitem__)])


def order(facts: Mapping[str, Fact]) -> None:
    """What the order of a branch, forks and joins make operations need."""
    last: dict[str, str] = {}
    forks = {path: fact.id for fact in facts.values() for path in fact.into}
    for fact in facts.values():
        if fact.kind == "put":
            continue
        if fact.seq in last:
            fact.need("order", last[fact.seq])
        elif fact.seq in forks:
            fact.need("fork", forks[fact.seq])
        last[fact.seq] = fact.id
    for fact in facts.values():
        fact.need("join", *(last.get(path, forks.get(path, fact.id)) for path in fact.branches))


def _read_before(facts: Mapping[str, Fact], reads: Sequence[Reading]) -> None:
    """What Python had read when it recorded each operation."""
    moments: list[tuple[float, int, Fact | Reading]] = [(fact.recorded, 1, fact) for fact in facts.values()]
    moments += [(read.ended, 0, read) for read in reads]
    moments.sort(key=lambda moment: moment[:2])
    known: dict[Actor | None, list[str]] = {}
    guessed: dict[Actor | None, list[str]] = {}
    fresh: set[Actor | None] = set()  # whose last deed was a read
    active: dict[Actor | None, float] = {}
    for at, _, moment in moments:
        who = moment.actor
        if isinstance(moment, Reading):
            before = known.get(who, []) if who in fresh else _latest(known.get(who, []), facts, 1)
            known[who] = _latest([*before, *(op for op in moment.ops if op in facts)], facts, MANY)
            guessed[who] = [] if moment.ops else _ended_between(facts.values(), moment.began, at)
            fresh.add(who)
        else:
            if who not in known and at - active.get(who, 0.0) > IDLE:
                guessed[who] = _ended_between(facts.values(), active.get(who, 0.0), at)
            moment.need("read", *known.get(who, ()))
            moment.need("assumed", *guessed.get(who, ()))
            fresh.discard(who)
        active[who] = at


def _latest(ops: Iterable[str], facts: Mapping[str, Fact], most: int) -> list[str]:
    return sorted(dict.fromkeys(ops), key=lambda op: -(facts[op].done or 0.0))[:most]


def _ended_between(facts: Iterable[Fact], begin: float, end: float) -> list[str]:
    found = [fact for fact in facts if fact.kind in (*CALLS, "put") and fact.done and begin < fact.done <= end]
    return [max(found, key=lambda fact: fact.done or 0.0).id] if found else []
