"""Compiling: a program's body is run against symbols, once per path, and becomes a plan.

In: a function of a state and arguments, some of them left open. Out: a `Document`, and what only this process can
hold: how typed values are read, which dataclasses are returned. Every path is traced with several kinds of sentinels:
a body that records the same under all of them has not looked at them in a way that symbols cannot see; where it does
not, the plan ends in a graph break.
"""

from __future__ import annotations

import contextlib
import contextvars
import heapq
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import msgspec

from ramet.frontend.blanked import agrees, difference
from ramet.frontend.collecting import Collector
from ramet.frontend.endless import Lines, watched
from ramet.frontend.errors import ConstraintError
from ramet.frontend.eyes import table
from ramet.frontend.host import enter_backend, inside_async_body
from ramet.frontend.naming import NamingCore
from ramet.frontend.parameters import Opened
from ramet.frontend.planned import Break, Const, Decision, Document, Node, Read, Return, Returned, Step
from ramet.frontend.probes import Blank, Probe
from ramet.frontend.returned import Types, returned
from ramet.frontend.sights import seen
from ramet.frontend.state import State
from ramet.frontend.symbols import Symbol
from ramet.frontend.traced import Nowhere, TraceExecution, TraceState
from ramet.frontend.tracing import Choice, Found, Shared, Stop, Trace
from ramet.frontend.users import foreign, line_of
from ramet.frontend.watch import Watch, constants

_DIFFERS = (
    "the program does something else here when texts that only a run knows differ, or from one run to the next: it "
    "depends on such a text, on chance, on time or on the world outside"
)
_KEPT = (
    "the body keeps in {!r}, outside of itself, what it makes of arguments or values: a plan that runs without its "
    "Python would not"
)
Readers = dict[str, Callable[[str], Any]]


@dataclass(frozen=True)
class Job:
    """What is compiled. `call(state, arguments)` runs the body; `code` is the body's."""

    name: str
    where: str
    call: Callable[[State, Mapping[str, Any]], Any]
    code: Any
    is_async: bool
    sampling: Mapping[str, Any]
    opened: Sequence[Opened]
    static: Mapping[str, Any]
    max_paths: int


@dataclass
class Path:
    """One way through the program."""

    found: list[Found]
    end: Break | Return
    readers: Readers


@dataclass
class Compiled:
    """A document; per leaf node how typed values are read; the dataclasses that are returned, by name."""

    document: Document
    readers: dict[int, Readers] = field(default_factory=dict)
    types: Types = field(default_factory=dict)


def compiled(job: Job) -> Compiled:
    """Trace all paths, in a thread of their own, and merge them. Raises `PlanError` for a body that hangs."""
    results: list[Compiled | BaseException] = []

    explorer = _Explorer(job)
    context = contextvars.copy_context()

    def work() -> None:
        try:
            results.append(context.run(explorer.explore))
        except BaseException as error:  # noqa: BLE001 - it is raised in the caller's thread
            results.append(error)

    try:
        watched(job.name, work, explorer.progress, lambda: explorer.lines)
    finally:
        explorer.resume()
    [result] = results
    if isinstance(result, BaseException):
        raise result
    return result


class _Seeing(Lines):
    """Counts the lines of a traced body, and ends the trace at those that look at a text made of symbols."""

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Any:
        counting = super().__call__(frame, event, arg)
        known = table(frame.f_code) if counting is not None else None
        if counting is None or known is None or not known.lines:
            return counting

        def looking(frame: FrameType, event: str, arg: Any) -> Any:
            late = frame.f_lineno in known.late
            if self.trace.end is None and event in ("line", "opcode"):
                by_line = event == "line"
                looks = known.lines.get(frame.f_lineno) if by_line else known.ways.get(frame.f_lasti)
                look = seen(frame, looks) if looks and not (by_line and late) else ""
                if look:
                    self.trace.look(look)
                if by_line:
                    frame.f_trace_opcodes = late
            if event != "opcode" or not late or self.given_up:
                counting(frame, event, arg)
            return looking

        return looking


class _Explorer:
    """Finds every path: the outcomes so far are a script, and each new decision adds a script per further outcome."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._codes: set[Any] = {job.code}
        self._types: Types = {}
        self._shared = Shared()
        self._traces = 0
        self._collector = Collector()
        self.lines = Lines(Trace(Probe()))  # of the trace under way

    def progress(self) -> tuple[int, int]:
        """How far it has come: traces begun, and the moves of the latest. For any thread."""
        return self._traces, self.lines.trace.moves

    def resume(self) -> None:
        """Of a trace that is left behind: undo what it has changed."""
        self._collector.resume()

    def explore(self) -> Compiled:
        """See `compiled`."""
        paths: list[Path] = []
        scripts: list[tuple[int, ...]] = [()]
        while scripts and len(paths) < self._job.max_paths:
            script = heapq.heappop(scripts)
            path = self._path(script)
            paths.append(path)
            choices = [item for item in path.found if isinstance(item, Choice)]
            taken = tuple(choice.taken for choice in choices)
            for place in range(len(script), len(choices)):
                for other in range(1, len(choices[place].outcomes)):
                    heapq.heappush(scripts, (*taken[:place], other))
        return self._merged(paths, bool(scripts))

    def _path(self, script: Sequence[int]) -> Path:
        """A path, traced twice, and once more where it has sentinels."""
        probe = Probe()
        first = self._trace(probe, script)
        if isinstance(first.end, Break) and first.end.kind == "limit":
            return Path(first.found, first.end, first.readers)
        second = self._trace(Probe(constants(self._codes)), script)
        found, end = first.found, first.end
        assert end is not None and second.end is not None
        same = next((i for i, (a, b) in enumerate(zip(found, second.found, strict=False)) if a != b), None)
        if same is None and len(found) != len(second.found):
            shorter = min(first, second, key=lambda trace: len(trace.found))
            if isinstance(shorter.end, Break) and shorter.end.kind == "look":  # which the other has not seen
                return Path(shorter.found, shorter.end, first.readers)
            same = min(len(found), len(second.found))
        if same is not None:
            line = next((f.where for f in (*found[same : same + 1], *second.found[same : same + 1])), end.where)
            return Path(found[:same], Break("differs", _DIFFERS, line), first.readers)
        if end != second.end and not (isinstance(end, Break) and isinstance(second.end, Break)):
            broken = end if isinstance(end, Break) else second.end if isinstance(second.end, Break) else None
            end = broken or Break("differs", _DIFFERS, end.where)
        path = Path(found, end, first.readers)
        return self._blanked(path, script) if probe.used else path

    def _blanked(self, path: Path, script: Sequence[int]) -> Path:
        """The path, up to where it would be another one if all texts that only a run knows were empty."""
        blank = self._trace(Blank(), script)
        at = difference(path.found, blank.found, not blank.refused)
        if at is not None and at < len(path.found):
            return Path(path.found[:at], Break("differs", _DIFFERS, path.found[at].where), path.readers)
        if isinstance(path.end, Break) or (at is None and blank.refused):
            return path
        if at is None and isinstance(blank.end, Return) and agrees(path.end.value, blank.result):
            return path
        return Path(path.found, Break("differs", _DIFFERS, path.end.where), path.readers)

    def _trace(self, probe: Probe, script: Sequence[int]) -> Trace:
        if self.lines.given_up:
            raise Stop
        trace = Trace(probe, script, self._job.max_paths, self._shared)
        self.lines = Lines(trace) if probe.others else _Seeing(trace)
        self._traces += 1
        context = contextvars.copy_context()
        with self._collector:
            context.run(self._run, trace)
        if isinstance(trace.end, Break):
            trace.end = msgspec.structs.replace(trace.end, reason=trace.readable(trace.end.reason))
        return trace

    def _run(self, trace: Trace) -> None:
        job = self._job
        execution = TraceExecution(job.name, trace)
        enter_backend(Nowhere(trace, opened=True))
        state = TraceState(NamingCore(execution, execution.record.root, job.sampling))
        watch = Watch(trace, job.code, self._codes)
        before, tracer = sys.getprofile(), sys.gettrace()
        try:
            arguments = {**job.static, **{each.name: each.symbol(trace, job.where) for each in job.opened}}
            trace.unwatched.start(watch, self.lines if tracer is None else None)  # a debugger keeps its place
            value = job.call(state, arguments)
            if job.is_async:
                value = _driven(value, trace)
            self._unwatch(trace, None, tracer)
            execution.body_returned(None)
            if trace.end is None:
                where, kept = watch.returned or job.where, watch.outside.kept()
                trace.end = Break("differs", _KEPT.format(kept), where) if kept else None
                trace.end = trace.end or Return(self._returned(value, trace), where)
        except Stop:
            pass
        except BaseException as error:  # noqa: BLE001 - a body may raise whatever it likes: that is how the path ends
            self._unwatch(trace, None, tracer)
            _raised(error, trace, job.where)
        finally:
            self._unwatch(trace, before, tracer)
            trace.over = True
            if isinstance(trace.end, Break) and not trace.end.where:  # it has returned
                trace.end = msgspec.structs.replace(trace.end, where=watch.returned or job.where)
            trace.entered.forget()
            execution.forget()

    def _returned(self, value: Any, trace: Trace) -> Returned:
        if isinstance(trace.probe, Blank):  # its texts say nothing of where they are from
            trace.result = value
            return Const(None)
        return returned(value, trace, self._types)

    @staticmethod
    def _unwatch(trace: Trace, profiler: Any, tracer: Any) -> None:
        sys.setprofile(profiler)
        sys.settrace(tracer)
        trace.unwatched.watch = None

    def _merged(self, paths: Sequence[Path], truncated: bool) -> Compiled:
        nodes: list[Node | None] = [None]
        out = Compiled(Document(self._job.name, self._job.where, (), {}, ()), types=self._types)
        stack: list[tuple[int, Sequence[Path], int]] = [(0, paths, 0)]
        while stack:
            index, group, start = stack.pop()
            line, at = _line(group, start)
            end = group[0].end
            choice = group[0].found[at] if at < len(group[0].found) else None
            if not all(_agree(path, group[0], at) for path in group):
                node_end: Decision | Break | Return = Break("differs", _DIFFERS, getattr(choice, "where", end.where))
            elif isinstance(choice, Choice):
                node_end = self._decision(choice, group, at, nodes, stack)
            else:
                node_end = end
            out.readers[index] = group[0].readers
            nodes[index] = _node(line, node_end)
        out.document = Document(
            name=self._job.name,
            where=self._job.where,
            params=tuple(each.parameter for each in self._job.opened),
            static={name: _short(value) for name, value in self._job.static.items()},
            nodes=tuple(node for node in nodes if node is not None),
            truncated=truncated,
        )
        return out

    def _decision(
        self,
        choice: Choice,
        group: Sequence[Path],
        at: int,
        nodes: list[Node | None],
        stack: list[tuple[int, Sequence[Path], int]],
    ) -> Decision:
        children = range(len(nodes), len(nodes) + len(choice.outcomes))
        nodes.extend([None] * len(choice.outcomes))
        for outcome, child in enumerate(children):
            below = [path for path in group if _taken(path, at) == outcome]
            if below:
                stack.append((child, below, at + 1))
            else:
                reason = f"there are more paths than max_paths={self._job.max_paths}; compile with a larger number"
                nodes[child] = Node((), Break("limit", reason, choice.where))
        return Decision(choice.on, choice.outcomes, tuple(children), choice.where)


def _line(group: Sequence[Path], start: int) -> tuple[list[Found], int]:
    """What all paths have in common from `start` on, up to the next decision, and where that ends."""
    at = start
    first = group[0].found
    while at < len(first) and not isinstance(first[at], Choice) and all(_agree(path, group[0], at) for path in group):
        at += 1
    return first[start:at], at


def _agree(path: Path, other: Path, at: int) -> bool:
    mine = path.found[at] if at < len(path.found) else None
    its = other.found[at] if at < len(other.found) else None
    if isinstance(mine, Choice) and isinstance(its, Choice):
        return (mine.on, mine.outcomes) == (its.on, its.outcomes)
    return mine == its and (mine is not None or path.end == other.end)


def _taken(path: Path, at: int) -> int:
    choice = path.found[at]
    assert isinstance(choice, Choice)
    return choice.taken


def _node(found: Sequence[Found], end: Decision | Break | Return) -> Node:
    steps: list[Step] = []
    reads: list[Read] = []
    for item in found:
        if isinstance(item, Step):
            steps.append(item)
        elif isinstance(item, Read):
            reads.append(Read(item.op, len(steps), item.where))
    return Node(tuple(steps), end, tuple(reads))


def _driven(body: Any, trace: Trace) -> Any:
    """The result of a coroutine that waits for nothing but values, which are there."""
    inside_async_body.set(True)
    try:
        body.send(None)
    except StopIteration as done:
        return done.value
    where = _waiting(body)
    try:
        trace.stop("wait", "the body awaits something other than a value of the program", where)
    finally:
        body.close()


def _waiting(body: Any) -> str:
    where, inner = "", body
    while inner is not None:
        frame = getattr(inner, "cr_frame", None)
        if frame is not None and not foreign(frame.f_code.co_filename):
            where = line_of(frame)
        inner = getattr(inner, "cr_await", None)
    return where


def _raised(error: BaseException, trace: Trace, where: str) -> None:
    if trace.end is not None:
        return
    trace.refused = isinstance(error, ConstraintError)
    step = error.__traceback__
    while step is not None:
        name = str(step.tb_frame.f_globals.get("__name__", ""))
        if not name.startswith(("ramet.frontend", "ramet.runtime")) and not foreign(step.tb_frame.f_code.co_filename):
            where = line_of(step.tb_frame).rpartition(":")[0] + f":{step.tb_lineno}"
        step = step.tb_next
    said = _short(trace.readable(_message(error)))
    trace.end = Break("raises", f"the body raises {type(error).__name__}: {said}", where)


def _message(error: BaseException) -> str:
    """What an error says; of one that quotes symbols, which only a run could, what it was made from."""
    with contextlib.suppress(BaseException):  # a body's own __str__ may raise, or look
        if not any(isinstance(each, Symbol) for each in error.args):
            return str.__str__(str(error))
    return ", ".join(str.__str__(each) if isinstance(each, str) else type(each).__name__ for each in error.args)


def _short(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 200 else text[:197] + "..."
