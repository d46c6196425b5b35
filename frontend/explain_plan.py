"""EXPLAIN: what a plan's run will do and cost, before it runs.

In: a document, the texts of its arguments, what earlier runs showed. Out: an `Explanation` of the most likely path,
with what is expected of each call, and the expectation of the whole over all paths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from ramet.frontend.critical import longest
from ramet.frontend.entries import Entry, Seq
from ramet.frontend.estimate import Observed, estimated, outcomes_of
from ramet.frontend.explained import Branch, Cause, Explanation, Guess, Need, Op, Overall, Totals
from ramet.frontend.facts import said
from ramet.frontend.ir import ROOT, Close, Fork, Gen, Join, Ref, Select
from ramet.frontend.lineage import variable
from ramet.frontend.planned import Break, Decision, Document, Param, Part, Step, Use
from ramet.frontend.walk import site_of, walked


def planned(document: Document, texts: Mapping[str, str], observed: Observed) -> Explanation:
    """See `Plan.explain`."""
    path, notes = _likeliest(document, texts, observed)
    lay = _Layout(texts, observed, document, path)
    weights = {op.id: op.guess.end - op.guess.begin if op.guess is not None else 0.0 for op in lay.ops}
    steps, chain = longest(weights, {op.id: [cause.op for cause in op.causes] for op in lay.ops})
    critical = set(chain)
    calls = [op for op in lay.ops if op.guess is not None]
    end = document.nodes[path[-1]].end
    if isinstance(end, Break):
        notes.append(f"graph break at {end.where}: {end.reason}; what comes after it is not known")
    totals = Totals(
        len(calls), None, None, None, None, None, None, None, None, None, round(steps), lay.hosts, 0, None
    )  # fmt: skip
    return Explanation(
        document.name,
        "planned",
        tuple(msgspec.structs.replace(op, critical=op.id in critical) for op in lay.ops),
        tuple(Branch(path, parent, "", None, None) for path, parent in lay.parents.items()),
        tuple(op.id for op in calls if op.id in critical),
        totals,
        estimate=Overall(**msgspec.structs.asdict(estimated(document, texts, observed))),
        notes=tuple(notes),
    )


def _likeliest(document: Document, texts: Mapping[str, str], observed: Observed) -> tuple[tuple[int, ...], list[str]]:
    """The path that runs took most often at every decision, and what other ways there were."""
    path, notes = [0], list[str]()
    while isinstance(end := document.nodes[path[-1]].end, Decision):
        counts = outcomes_of(observed, end)
        if isinstance(end.on, Param):
            counts = {texts[end.on.name]: 1}
        outcomes = sorted(range(len(end.outcomes)), key=lambda k: -counts.get(end.outcomes[k], 0))
        taken = outcomes[0]
        path.append(end.nodes[taken])
        if isinstance(end.on, Use):
            total = sum(counts.get(outcome, 0) for outcome in end.outcomes)
            shown = f"{100 * counts.get(end.outcomes[taken], 0) / total:.0f} %" if total else "not yet seen, all alike"
            notes.append(
                f"decision at {end.where}: {end.outcomes[taken]!r:.40} ({shown}), one of {len(end.outcomes)} ways"
            )
    return tuple(path), notes


@dataclass
class _Place:
    """A branch so far: characters of it that some call has computed, when it is free, and its last operation."""

    covered: float = 0.0
    at: float = 0.0
    last: str = ""


@dataclass
class _Layout:
    """The operations of a path, one behind the other; `hosts` counts values of the host among them."""

    texts: Mapping[str, str]
    observed: Observed
    document: Document
    path: Sequence[int]
    ops: list[Op] = field(default_factory=list)
    parents: dict[str, str] = field(default_factory=lambda: {ROOT: ""})
    hosts: int = 0

    def __post_init__(self) -> None:
        walk = self._walk = walked(self.texts, self.observed, self.document, self.path, {}, {})
        self._prompts = {step.op.id: chars for step, chars in walk.prompts}
        self._bases = walk.bases
        self._places: dict[str, _Place] = {ROOT: _Place()}
        self._ends: dict[str, float] = {}
        self._read: list[str] = []
        for index in self.path:
            node = self.document.nodes[index]
            reads = sorted(node.reads, key=lambda read: read.after)
            for number, step in enumerate(node.steps):
                self._read += [read.op for read in reads if read.after == number]
                if not isinstance(step.op, Close):
                    self._take(step)
            self._read += [read.op for read in reads if read.after >= len(node.steps)]
            if isinstance(node.end, Decision) and isinstance(node.end.on, Use):
                self._read.append(node.end.on.op)

    def _take(self, step: Step) -> None:
        op, seq = step.op, step.op.seq
        entry = Entry(op.id, Seq(seq), "text", step.where, variable(step))
        entry.op = op
        kind = str(op.__struct_config__.tag)
        place = self._places.setdefault(seq, _Place())
        causes = self._causes(step, kind, place)
        place.at = max([place.at, *(self._ends.get(cause.op, 0.0) for cause in causes)])
        guess = self._call(step, place) if isinstance(op, Gen | Select) else None
        if isinstance(op, Fork):
            for number, path in enumerate(op.into):
                covered = place.covered if not number else self._bases.get(path, 0.0)  # the first one computes it
                self._places[path] = _Place(covered, place.at, op.id)
                self.parents[path] = seq
        self._ends[op.id] = place.at
        if kind != "put":
            place.last = op.id
        self.hosts += kind == "put"
        self.ops.append(
            Op(
                id=op.id,
                seq=seq,
                kind=kind,
                label=said(entry),
                var=entry.var,
                where=step.where,
                text=_shown(step.parts),
                status="planned",
                causes=causes,
                guess=guess,
            )
        )

    def _causes(self, step: Step, kind: str, place: _Place) -> tuple[Cause, ...]:
        op = step.op
        found: list[Cause] = []
        if place.last and kind != "put":
            mine: Need = "order" if place.last.rpartition(".")[0] == op.seq else "fork"
            found.append(Cause(mine, place.last))
        found += [Cause("value", part.op) for part in step.needs() if isinstance(part, Ref)]
        found += [Cause("read", part.op) for part in step.needs() if isinstance(part, Use)]
        found += [Cause("read", each) for each in self._read]
        if isinstance(op, Join):
            found += [Cause("join", self._places[path].last) for path in op.branches]
        return tuple(dict.fromkeys(found))

    def _call(self, step: Step, place: _Place) -> Guess:
        """What is expected of a call; the branch goes on behind it."""
        op, site, seen = step.op, site_of(step), self.observed
        ratio = seen.ratio(site)
        chars = float(self._prompts[op.id])
        if isinstance(op, Gen):
            made = seen.expected(site, op.sampling.max_tokens)
            written, taken = seen.written(site, made), max(made, 1.0)
        else:
            written = self._walk.written(op.id)
            made, taken = written * ratio, 1.0
        begin = place.at
        place.at = begin + taken
        guess = Guess(chars * ratio, min(place.covered, chars) * ratio, made, begin, place.at)
        place.covered = chars + written
        return guess


def _shown(parts: Sequence[Part]) -> str:
    return "".join(part if isinstance(part, str) else f"{{{getattr(part, 'name', '…')}}}" for part in parts)[:160]
