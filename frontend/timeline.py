"""When each operation did what: stretches of waiting and of work, and what was waited for.

In: the facts of a run. Out: per operation its end and its segments, in seconds since the run began; the path that
decided the run's end, and what its time was spent on.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable, Mapping, Sequence
from typing import get_args

from ramet.frontend.critical import binding, ordered
from ramet.frontend.explained import Phase, Segment, Share
from ramet.frontend.facts import CALLS, Fact, Facts, told
from ramet.frontend.readings import Actor, Reading

_BEHIND = ("order", "fork")
_SEEN = ("read", "assumed")
SHORTEST = 1e-5  # seconds of a stretch that is worth a mention


class Timeline:
    """`ends` and `segments` by operation; `critical` is the path that decided the end."""

    def __init__(self, run: Facts) -> None:
        self._run = run
        self._reads = _by_actor(run.reads)
        self.ends: dict[str, float] = {}
        self._work: dict[str, str] = {}
        self.segments: dict[str, list[Segment]] = {}
        needs = {fact.id: [cause.op for cause in fact.causes] for fact in run.facts.values()}
        for op in ordered(run.facts, needs):
            self._lay(run.facts[op])
        working = [op for op in self.ends if run.facts[op].kind in (*CALLS, "put")]
        last = max(working, key=self.ends.__getitem__, default="")
        self.critical = binding(self.ends, needs, last) if last else []

    def _lay(self, fact: Fact) -> None:
        """Its segments, and its end."""
        free = fact.recorded if fact.kind == "put" else 0.0
        line = _Line(max((self.ends.get(c.op, 0.0) for c in fact.causes if c.kind in _BEHIND), default=free))
        arrived = _arrival(fact)
        latest = arrived if arrived is not None else self._run.now
        for cause in sorted(fact.causes, key=lambda c: self.ends.get(c.op, 0.0)):
            if cause.kind not in (*_BEHIND, *_SEEN):
                line.to(min(self.ends.get(cause.op, 0.0), latest), "wait", self._work.get(cause.op, cause.op))
        self._python(fact, min(fact.recorded, latest), line)
        if fact.kind == "put":
            self._host(fact, line)
        elif fact.kind in CALLS:
            line.to(min(fact.sent if fact.sent is not None else fact.recorded, latest), "send")
            self._call(fact, line, arrived)
        self.ends[fact.id] = line.at
        self._work[fact.id] = fact.id if fact.kind in (*CALLS, "put") else self._behind(fact)
        self.segments[fact.id] = line.segments

    def _behind(self, fact: Fact) -> str:
        """The call or host call that an operation without work of its own comes behind."""
        found = [cause.op for cause in fact.causes if cause.op in self._work and cause.kind not in _SEEN]
        return self._work[max(found, key=self.ends.__getitem__)] if found else fact.id

    def _python(self, fact: Fact, until: float, line: _Line) -> None:
        """The branch is free, and Python has not recorded the operation yet: it waits for values, or computes."""
        reads = self._reads.get(fact.actor, ())
        for index in range(bisect(reads, line.at, key=lambda read: read.ended), len(reads)):
            if reads[index].began >= until:
                break
            line.to(min(reads[index].began, until), "python")
            line.to(min(reads[index].ended, until), "wait", self._last(reads[index]))
        line.to(until, "python")

    def _last(self, read: Reading) -> str:
        return max(read.ops, key=lambda op: self.ends.get(op, 0.0), default=read.what)

    def _host(self, fact: Fact, line: _Line) -> None:
        if fact.host_began is None:  # a value from elsewhere, or one that has not begun
            line.to(fact.done if fact.done is not None else self._run.now, "wait")
            return
        line.to(fact.host_began, "python")
        line.to(fact.done if fact.done is not None else self._run.now, "host")

    def _call(self, fact: Fact, line: _Line, arrived: float | None) -> None:
        done = fact.done if fact.done is not None else self._run.now
        meta = fact.meta
        if arrived is None or meta is None:
            first = fact.first
            if first is not None and done - first > SHORTEST:
                line.to(first, "busy")
                line.to(done, "decode")
            line.to(done, "busy")
            return
        line.to(arrived, "send")
        starved = min(meta.memory_seconds or 0.0, meta.queued_seconds) if not meta.retractions else 0.0
        line.to(arrived + meta.queued_seconds - starved, "queue")
        line.to(arrived + meta.queued_seconds, "memory")
        first = arrived + meta.first_token_seconds if meta.first_token_seconds is not None else done
        line.to(min(first, done), "prefill")
        line.to(done, "decode")

    def python(self) -> list[Segment]:
        """What the body did: waited for values, or computed."""
        line = _Line(0.0)
        end = self._run.body if self._run.body is not None else self._run.now
        if self._run.actor is None:
            return []
        for read in self._reads.get(self._run.actor, ()):
            line.to(min(read.began, end), "python")
            line.to(min(read.ended, end), "wait", self._last(read))
        line.to(end, "python")
        return line.segments

    def shares(self) -> list[Share]:
        """What the critical path's time was spent on (in sum the whole time), and all operations' time."""
        path = dict.fromkeys(get_args(Phase), 0.0)
        at = 0.0
        for op in self.critical:
            for segment in self.segments[op]:
                begin = max(segment.begin, at)
                if segment.end > begin:
                    path["python"] += begin - at
                    path[segment.phase] += segment.end - begin
                    at = segment.end
        path["python"] += max(self._run.now - at, 0.0)
        total = dict.fromkeys(get_args(Phase), 0.0)
        for segments in self.segments.values():
            for segment in segments:
                total[segment.phase] += segment.seconds
        return [Share(phase, path[phase], total[phase]) for phase in path if path[phase] or total[phase]]


class _Line:
    """Segments one behind the other."""

    def __init__(self, at: float) -> None:
        self.at = at
        self.segments: list[Segment] = []

    def to(self, until: float, phase: Phase, on: str = "") -> None:
        """Up to `until` it is this."""
        if until - self.at > SHORTEST:
            self.segments.append(Segment(phase, self.at, until, on))
        self.at = max(self.at, until)


def _arrival(fact: Fact) -> float | None:
    """When the engine had the operation in its turn, where it says how long it took."""
    if fact.meta is None or fact.done is None or not told(fact.meta) or not fact.meta.seconds:
        return None
    return max(fact.done - fact.meta.seconds, 0.0)


def _by_actor(reads: Iterable[Reading]) -> Mapping[Actor | None, Sequence[Reading]]:
    found: dict[Actor | None, list[Reading]] = {}
    for read in sorted(reads, key=lambda read: read.ended):  # one actor's reads follow each other
        found.setdefault(read.actor, []).append(read)
    return found
