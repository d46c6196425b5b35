"""The course of one run of a plan: which operations can go now.

In: a document, the texts of its arguments, events as they come. Out: operations, all that are ready in one list: at
the start everything up to the first decision, then whatever an event sets free. It talks to nobody: whoever owns it
(`plan_run`, the server) sends what it returns. Not thread-safe: one caller at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import msgspec

from ramet.frontend.errors import ParseError, PlanError, TruncatedError
from ramet.frontend.ir import ROOT, AnyOp, Choices, Event, Failed, Finished, Fork, Gen, Join, Put, Ref, Select, Text
from ramet.frontend.planned import Break, Decision, Document, Param, Part, Return, Step, Use
from ramet.frontend.types import check_choices

_SHOWN = 200  # characters of a text that an error shows


class UnreadError(ParseError, PlanError):
    """A value that the plan needs, or decides by, is not of its type."""


class CutError(TruncatedError, PlanError):
    """max_tokens ended a value that the plan needs, or decides by, before it could be read."""


class Course:
    """Where a run of a plan has come to. `texts` are those of its arguments; `values` those of its operations, by the
    ids of the trace. `end` is known once the last decision is; `over`: every operation of the path has gone, or
    `failed` (the event) says why it cannot go on. `most_chars` limits all texts together."""

    def __init__(self, document: Document, texts: Mapping[str, str], most_chars: int = 1 << 30) -> None:
        self._document = document
        self._chars = most_chars
        self.texts = dict(texts)
        self._queues: dict[str, deque[tuple[int, Step]]] = {}  # by sequence of the trace, in the order of recording
        self._retry: list[str] = []  # sequences whose next step may be able to go
        self._waiters: dict[str, list[str]] = {}  # what is lacking → sequences that wait for it
        self._total = self._left = 0  # steps seen, and of them those that have not gone
        self._ids: dict[str, str] = {}  # of the trace → of this run
        self._seqs = {ROOT: ROOT}
        self._counts: dict[str, int] = {}
        self._steps: dict[str, Step] = {}  # by ids of this run
        self._decision: Decision | None = None
        self._failures: dict[str, Failed] = {}
        self.values: dict[str, str] = {}
        self.path: list[int] = []
        self.cut: set[str] = set()  # values that max_tokens ended
        self.end: Break | Return | None = None
        self.failed: Failed | None = None
        self._enter(0)

    @property
    def over(self) -> bool:
        """Nothing more will come."""
        return self.failed is not None or (self.end is not None and not self._left)

    def begin(self) -> list[AnyOp]:
        """Everything that needs no value. Raises `ConstraintError` for choices that arguments make invalid."""
        return self._go()

    def take(self, event: Event) -> list[AnyOp]:
        """What can go now that this has happened. Raises `UnreadError` or `CutError` for a value that cannot be
        read."""
        if isinstance(event, Failed):
            return self._lose(event)
        if not isinstance(event, Finished):
            return []
        step = self._steps.get(event.op)
        if step is None:
            return []
        self.values[step.op.id] = event.value
        if event.meta.finish_reason == "length":
            self.cut.add(step.op.id)
        self._wake(step.op.id)
        return self._go()

    def step_of(self, op: str) -> Step | None:
        """The step behind an operation of this run."""
        return self._steps.get(op)

    def known(self, part: Part) -> str | None:
        """The text of a part; None while it is unknown."""
        return self._text(part)

    def render(self, parts: Sequence[Part]) -> str:
        """The text of parts whose values are known."""
        return "".join(self._text(part) or "" for part in parts)

    # --- inside ---

    def _enter(self, node: int) -> None:
        """Go on with a node, and with all that arguments decide after it."""
        while True:
            self.path.append(node)
            here = self._document.nodes[node]
            for step in here.steps:
                self._queues.setdefault(step.op.seq, deque()).append((self._total, step))
                self._retry.append(step.op.seq)
                self._total += 1
            self._left += len(here.steps)
            if not isinstance(here.end, Decision):
                self._decision, self.end = None, here.end
                return
            text = self._text(here.end.on)
            if text is None:
                self._decision = here.end
                if isinstance(here.end.on, Use):
                    self.failed = self.failed or self._failures.get(here.end.on.op)
                return
            node = self._next(here.end, text)

    def _next(self, decision: Decision, text: str) -> int:
        if text not in decision.outcomes:
            if isinstance(decision.on, Use):
                raise self._unread(decision.on.op, text, f"it must be one of {', '.join(map(repr, decision.outcomes))}")
            raise PlanError(f"{text!r} is none of the outcomes that the plan knows at {decision.where}")
        return decision.nodes[decision.outcomes.index(text)]

    def _go(self) -> list[AnyOp]:
        ready: list[AnyOp] = []
        while True:
            ready += self._pass()
            text = self._text(self._decision.on) if self._decision is not None else None
            if self._decision is None or text is None:
                return ready
            self._enter(self._next(self._decision, text))

    def _pass(self) -> list[AnyOp]:
        """Everything that can go, in the order of recording; what must wait holds up its sequence."""
        ready: list[tuple[int, AnyOp]] = []
        while self._retry and self.failed is None:
            seq = self._retry.pop()
            queue = self._queues.get(seq)
            while queue:
                index, step = queue[0]
                lack = self._lack(step, index)
                if lack is not None:
                    self._waiters.setdefault(lack, []).append(seq)
                    break
                queue.popleft()
                self._left -= 1
                ready += ((index, op) for op in self._made(step))
                self._wake(step.op.id)
            self._wake(_moved(seq))
        return [op for _, op in sorted(ready, key=lambda each: each[0])]

    def _wake(self, key: str) -> None:
        self._retry += self._waiters.pop(key, ())

    def _lack(self, step: Step, index: int) -> str | None:
        """What a step at the head of its sequence waits for: an operation, or a sequence that must move on."""
        if step.op.seq not in self._seqs:
            return step.op.seq.rpartition(".b")[0]  # the fork that makes it
        for part in step.needs():
            if isinstance(part, Ref):
                if part.op not in self._ids:
                    return part.op
            elif self._text(part) is None:
                assert isinstance(part, Use)
                self.failed = self.failed or self._failures.get(part.op)
                return part.op
        for path in step.op.branches if isinstance(step.op, Join) else ():
            if path not in self._seqs:
                return path.rpartition(".b")[0]
            queue = self._queues.get(path)
            if queue and queue[0][0] < index:
                return _moved(path)
        return None

    def _text(self, part: Part) -> str | None:
        if isinstance(part, str):
            return part
        if isinstance(part, Param):
            return self.texts[part.name]
        value = self.values.get(part.op)
        return value if value is None or isinstance(part, Ref) else self._read(part, value)

    def _read(self, use: Use, value: str) -> str:
        """What a program would say of a value that it has read. Raises `UnreadError` or `CutError`."""
        if use.read in ("int", "float"):
            try:
                return str(int(value) if use.read == "int" else float(value))
            except ValueError:
                raise self._unread(use.op, value, f"it is no {use.read}") from None
        op = self._steps[self._ids[use.op]].op
        if use.read == "json" and isinstance(op, Gen) and isinstance(op.constraint, Choices):
            choices = op.constraint.choices
            if value not in choices:
                raise self._unread(use.op, value, f"it must be one of {', '.join(map(repr, choices))}")
        return value

    def _unread(self, op: str, text: str, why: str) -> ParseError:
        """The error of reading a value."""
        step = self._steps[self._ids[op]]
        tail = text if len(text) <= _SHOWN else "..." + text[-_SHOWN:]
        where, branch = step.where, self._seqs[step.op.seq]
        if op in self.cut:
            message = f"{tail!r}: max_tokens ended it; raise max_tokens, or ask for less"
            return CutError(message, text=text, where=where, branch=branch)
        return UnreadError(f"{tail!r}: {why}", text=text, where=where, branch=branch)

    def _made(self, step: Step) -> list[AnyOp]:
        """The operation itself, numbered as a body that runs would: a text that is empty is none."""
        op = step.op
        if (
            isinstance(op, Text)
            and not any(isinstance(part, Ref) for part in step.parts)
            and not self.render(step.parts)
        ):
            return []
        seq = self._seqs[op.seq]
        count = self._counts.get(seq, 0)
        self._counts[seq] = count + 1
        name = f"{seq}.{count}"
        self._ids[op.id], self._steps[name] = name, step
        return [self._filled(step, name, seq)]

    def _filled(self, step: Step, name: str, seq: str) -> AnyOp:
        op = step.op
        if isinstance(op, Text):
            self._count(step.parts)
            return Text(id=name, seq=seq, parts=self._merged(step.parts))
        if isinstance(op, Put):
            self._count(step.parts)
            return Put(id=name, seq=seq, var=op.var, value=self.render(step.parts))
        if isinstance(op, Fork):
            into = tuple(f"{name}.b{index}" for index in range(len(op.into)))
            self._seqs.update(zip(op.into, into, strict=True))
            return Fork(id=name, seq=seq, into=into)
        if isinstance(op, Join):
            return Join(id=name, seq=seq, branches=tuple(self._seqs[path] for path in op.branches))
        changed: dict[str, object] = {"id": name, "seq": seq}
        if isinstance(op, Gen | Select) and op.var == f"_{op.id}":
            changed["var"] = f"_{name}"
        if step.choices:
            changed["choices"] = check_choices([self.render(choice) for choice in step.choices], step.where)
        made: AnyOp = msgspec.structs.replace(op, **changed)
        return made

    def _count(self, parts: Sequence[Part]) -> None:
        self._chars -= sum(len(self._text(part) or "") for part in parts if not isinstance(part, Ref))
        if self._chars < 0:
            raise PlanError("the texts of the plan, with its arguments and values in them, are longer than allowed")

    def _merged(self, parts: Sequence[Part]) -> tuple[str | Ref, ...]:
        out: list[str | Ref] = []
        for part in parts:
            if isinstance(part, Ref):
                out.append(Ref(op=self._ids[part.op]))
            elif text := self._text(part):
                if out and isinstance(out[-1], str):
                    out[-1] += text
                else:
                    out.append(text)
        return tuple(out)

    def _lose(self, event: Failed) -> list[AnyOp]:
        """An operation failed. What only refers to its tokens fails by itself; what needs its text cannot go on."""
        step = self._steps.get(event.op)
        if step is None:
            return []
        self._failures[step.op.id] = event
        on = self._decision.on if self._decision is not None else None
        decides = isinstance(on, Use) and on.op == step.op.id
        if self.failed is None and (decides or (step.op.id in self._waiters and step.op.id not in self.values)):
            self.failed = event
        return []


def _moved(seq: str) -> str:
    """The key of those that wait for a sequence to move on."""
    return f"{seq} "


def broken(name: str, end: Break) -> PlanError:
    """What a plan without its Python raises at a graph break."""
    return PlanError(
        f"the plan {name!r} ends in a graph break at {end.where}: {end.reason}; only its program can go on: compile it "
        "in this process and run that plan, or run the program"
    )
