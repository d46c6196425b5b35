"""Following a path of a plan with lengths in place of texts.

In: steps, lengths of arguments, of values, of role edges (known, learned or guessed). Out: per call the characters of
its prompt; totals of tokens and steps.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from ramet.frontend.ir import ROOT, Fork, Gen, Join, Ref, Role, Select
from ramet.frontend.lineage import variable
from ramet.frontend.planned import Decision, Document, Param, Part, Step, Use

_RATIO = 0.25  # tokens per character, before anything was observed
_GUESS = 64  # tokens of a generation, before anything was observed
_EDGE = 12  # characters of a role edge
_KEPT = 64


class Lengths(msgspec.Struct, kw_only=True):
    """What was seen: per call site tokens and characters of what it generated and of its prompts; characters of role
    edges."""

    generated: dict[str, list[int]] = msgspec.field(default_factory=dict)
    chars: dict[str, list[int]] = msgspec.field(default_factory=dict)
    prompt_tokens: dict[str, list[int]] = msgspec.field(default_factory=dict)
    prompt_chars: dict[str, list[int]] = msgspec.field(default_factory=dict)
    edges: dict[str, int] = msgspec.field(default_factory=dict)

    def add(self, table: dict[str, list[int]], site: str, value: int) -> None:
        """Remember a length; the oldest are forgotten."""
        kept = table.setdefault(site, [])
        kept.append(value)
        del kept[:-_KEPT]

    def ratio(self, site: str = "") -> float:
        """Tokens per character of prompts at a call, else over all calls."""
        tokens, chars = self.prompt_tokens.get(site), self.prompt_chars.get(site)
        if not tokens or not chars:
            tokens = [n for each in self.prompt_tokens.values() for n in each]
            chars = [n for each in self.prompt_chars.values() for n in each]
        return sum(tokens) / sum(chars) if tokens and sum(chars) else _RATIO

    def expected(self, site: str, most: int | None) -> float:
        """Tokens of a generation."""
        seen = self.generated.get(site)
        guess = statistics.fmean(seen) if seen else float(_GUESS)
        return guess if most is None else min(guess, most)

    def written(self, site: str, tokens: float) -> float:
        """Characters of a generation of so many tokens."""
        seen, chars = self.generated.get(site), self.chars.get(site)
        return statistics.fmean(chars) if seen and chars else tokens / _RATIO


class Totals(msgspec.Struct):
    """Of one path. `resident`: tokens that are computed once each; `width`: calls at a time."""

    calls: float = 0.0
    prompt: float = 0.0
    shared: float = 0.0
    generated: float = 0.0
    generated_max: int | None = 0
    resident: float = 0.0
    steps: float = 0.0
    width: int = 0


def site_of(step: Step) -> str:
    """The call site: the line, and the variable where it has a name."""
    return f"{step.where} {variable(step)}"


class Walk:
    """A path, step by step."""

    def __init__(
        self,
        texts: Mapping[str, str],
        lengths: Lengths,
        chars: Mapping[str, int],
        tokens: Mapping[str, int],
    ) -> None:
        self._texts = texts
        self._lengths = lengths
        self._known_chars = chars
        self._known_tokens = tokens
        self._chars: dict[str, float] = {ROOT: 0.0}  # of each sequence
        self._base: dict[str, float] = {ROOT: 0.0}
        self._time: dict[str, float] = {ROOT: 0.0}  # when each sequence is free
        self._values: dict[str, tuple[float, float]] = {}  # characters, and when it is there
        self._floor = 0.0  # no step before the last decision was made
        self._spans: list[tuple[float, float]] = []
        self._totals = Totals()
        self.prompts: list[tuple[Step, int]] = []

    def decided(self, on: Use | Param) -> None:
        """What follows depends on a value."""
        if isinstance(on, Use):
            self._floor = max(self._floor, self._values.get(on.op, (0.0, 0.0))[1])

    def take(self, step: Step) -> None:
        """One step."""
        op, seq = step.op, step.op.seq
        self._time[seq] = max(self._time.get(seq, 0.0), self._floor)
        if isinstance(op, Gen | Select):
            self._call(step, op)
        elif isinstance(op, Fork):
            for path in op.into:
                self._chars[path] = self._base[path] = self._chars[seq]
                self._time[path] = self._time[seq]
        elif isinstance(op, Join):
            for path in op.branches:
                self._say(seq, self._chars[path] - self._base[path])
                self._time[seq] = max(self._time[seq], self._time[path])
        elif isinstance(op, Role):
            self._say(seq, self._lengths.edges.get(f"{op.role} {op.edge}", _EDGE))
        elif step.parts:
            said = sum(self._part(part, seq) for part in step.parts)
            if op.__struct_config__.tag == "put":
                self._values[op.id] = (said, self._time[seq])
            else:
                self._say(seq, said)

    def _part(self, part: Part, seq: str) -> float:
        if isinstance(part, str):
            return len(part)
        if isinstance(part, Param):
            return len(self._texts.get(part.name, ""))
        chars, ready = self._values.get(part.op, (0.0, 0.0))
        assert isinstance(part, Use | Ref)
        self._time[seq] = max(self._time[seq], ready)
        return chars

    def _say(self, seq: str, chars: float) -> None:
        self._chars[seq] += chars
        self._totals.resident += chars * self._lengths.ratio()

    def _call(self, step: Step, op: Gen | Select) -> None:
        site, seq, totals = site_of(step), op.seq, self._totals
        prompt = self._chars[seq]
        self.prompts.append((step, round(prompt)))
        totals.calls += 1
        totals.prompt += prompt * self._lengths.ratio(site)
        if isinstance(op, Gen):
            most = op.sampling.max_tokens
            made = float(self._known_tokens.get(op.id, self._lengths.expected(site, most)))
            chars = float(self._known_chars.get(op.id, self._lengths.written(site, made)))
            totals.generated += made
            totals.generated_max = None if most is None or totals.generated_max is None else totals.generated_max + most
            taken = max(made, 1.0)
        else:
            chars = float(self._known_chars.get(op.id, self._longest(step, op)))
            made, taken = chars * self._lengths.ratio(), 1.0
        self._chars[seq] += chars
        totals.resident += made
        begin = self._time[seq]
        self._time[seq] = begin + taken
        self._spans.append((begin, begin + taken))
        self._values[op.id] = (chars, begin + taken)

    def _longest(self, step: Step, op: Select) -> float:
        """Characters of the longest choice; those that are made of arguments and values stand in `step`."""
        said = [sum(self._part(part, op.seq) for part in choice) for choice in step.choices]
        return max(said or map(len, op.choices), default=0.0)

    def written(self, op: str) -> float:
        """Characters of the value of an operation that was taken."""
        return self._values[op][0]

    @property
    def bases(self) -> Mapping[str, float]:
        """Characters that each sequence has from the one that it was forked from."""
        return self._base

    def totals(self) -> Totals:
        """Of what was taken."""
        totals = self._totals
        totals.steps = max((end for _, end in self._spans), default=0.0)
        totals.shared = max(0.0, totals.prompt + totals.generated - totals.resident)
        edges = sorted([(begin, 1) for begin, _ in self._spans] + [(end, -1) for _, end in self._spans])
        now = 0
        for _, change in edges:
            now += change
            totals.width = max(totals.width, now)
        return totals


def walked(
    texts: Mapping[str, str],
    lengths: Lengths,
    document: Document,
    path: Sequence[int],
    chars: Mapping[str, int],
    tokens: Mapping[str, int],
) -> Walk:
    """A walk along a path. `chars` and `tokens` of values that are known."""
    walk = Walk(texts, lengths, chars, tokens)
    for index in path:
        node = document.nodes[index]
        _all(walk, node.steps)
        if isinstance(node.end, Decision):
            walk.decided(node.end.on)
    return walk


def _all(walk: Walk, steps: Iterable[Step]) -> None:
    for step in steps:
        walk.take(step)
