"""Checks that need a backend: its model's context, its tokens, its compiler of constraints, its chat template.

In: the paths of a plan, a backend. Out: diagnostics. For each distinct constraint, and each distinct order of
messages, a program is started there, and stopped when its generation begins; lengths of prompts are estimates.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from ramet.frontend.backends.base import Backend
from ramet.frontend.checks_calls import label
from ramet.frontend.diagnostics import Diagnostic
from ramet.frontend.errors import ProgramTimeout, RametError
from ramet.frontend.ir import (
    ROOT,
    AnyOp,
    Constraint,
    Ended,
    Event,
    Failed,
    Finished,
    Gen,
    Header,
    Role,
    Sampling,
    Select,
    Started,
    Text,
    Token,
)
from ramet.frontend.lineage import Lineage, inherit
from ramet.frontend.planned import Step
from ramet.frontend.walk import Lengths, walked

_MOST = 256  # programs that one check starts
SECONDS = 120.0  # for one of them
_ONE = Sampling(temperature=0.0, max_tokens=1)


def against(lines: Sequence[Lineage], lengths: Lengths, backend: Backend) -> Iterator[Diagnostic]:
    """What this backend would refuse or cut."""
    context = backend.info().get("context_length")
    if isinstance(context, int) and context > 0:
        for line in lines:
            yield from _overflows(line, lengths, context)
    yield from _constraints(lines, backend)
    yield from _orders(lines, backend)


# --- the context ---


def _overflows(line: Lineage, lengths: Lengths, context: int) -> Iterator[Diagnostic]:
    for step, chars in walked({}, lengths, line.document, line.path, {}, {}).prompts:
        tokens = round(chars * lengths.ratio())
        most = step.op.sampling.max_tokens if isinstance(step.op, Gen) else 1
        if tokens >= context:
            message = f"the prompt of {label(step)} has about {tokens} tokens, and the context holds {context}"
            yield line.found(
                "context-overflow", "error", step, message, "shorten it, or take a model of longer context"
            )
        elif most is not None and tokens + most > context:
            message = (
                f"about {tokens} tokens of prompt, arguments not counted, and max_tokens={most} of {label(step)} "
                f"exceed the context of {context}: the generation is cut there"
            )
            yield line.found("context-overflow", "warning", step, message, "lower max_tokens, or shorten the prompt")


# --- constraints ---


def _constraints(lines: Sequence[Lineage], backend: Backend) -> Iterator[Diagnostic]:
    sites: dict[tuple[Constraint, int | None], tuple[Lineage, Step]] = {}
    for line in lines:
        for step in line.calls.values():
            if isinstance(step.op, Gen) and step.op.constraint is not None:
                sites.setdefault((step.op.constraint, step.op.sampling.max_tokens), (line, step))
    asked = [(key, _Asked(backend, [_text("x"), _gen(*key)])) for key in list(sites)[:_MOST]]
    for key, each in asked:
        line, step = sites[key]
        failure = each.failure()
        if failure is None or failure[0] != "constraint":
            continue
        if failure[1].startswith("max_tokens="):
            message = f"the backend cannot hold {label(step)}: {failure[1]}"
            yield line.found("max-tokens-too-small", "error", step, message, "raise max_tokens, or ask for less")
        else:
            message = f"the backend refuses the constraint of {label(step)}: {failure[1]}"
            yield line.found("bad-constraint", "error", step, message, "see the message, or choose another backend")


# --- chat templates ---


def _orders(lines: Sequence[Lineage], backend: Backend) -> Iterator[Diagnostic]:
    """Each order of messages, with a word for what they say."""
    sites: dict[tuple[str, ...], tuple[Lineage, Step]] = {}
    for line in lines:
        said: dict[str, tuple[str, ...]] = {}
        for step in line.steps:
            inherit(said, step)
            op = step.op
            if isinstance(op, Role) and op.edge == "begin":
                said[op.seq] = (*said.get(op.seq, ()), op.role)
            elif isinstance(op, Gen | Select) and said.get(op.seq):
                sites.setdefault(said[op.seq], (line, step))
    longest = [roles for roles in sites if not any(_begins(other, roles) for other in sites)]
    asked = [(roles, _Asked(backend, _conversation(roles))) for roles in longest[:_MOST]]
    for roles, each in asked:
        line, step = sites[roles]
        if (failure := each.failure()) is not None and failure[0] in ("generation", "constraint"):
            message = f"the backend's chat template refuses messages in the order {', '.join(roles)}: {failure[1]}"
            yield line.found("role-order", "error", step, message, "put them in the order that the template wants")


def _begins(other: tuple[str, ...], roles: tuple[str, ...]) -> bool:
    return len(other) > len(roles) and other[: len(roles)] == roles


def _conversation(roles: Sequence[str]) -> list[AnyOp]:
    ops: list[AnyOp] = []
    for role in roles:
        ops += [
            Role(id=f"{ROOT}.{len(ops)}", seq=ROOT, role=role, edge="begin"),
            Text(id=f"{ROOT}.{len(ops) + 1}", seq=ROOT, parts=("x",)),
            Role(id=f"{ROOT}.{len(ops) + 2}", seq=ROOT, role=role, edge="end"),
        ]
    ops.pop()
    return [*ops, Gen(id=f"{ROOT}.{len(ops)}", seq=ROOT, var="_", sampling=_ONE)]


# --- asking ---


def _text(text: str) -> AnyOp:
    return Text(id=f"{ROOT}.0", seq=ROOT, parts=(text,))


def _gen(constraint: Constraint, most: int | None) -> AnyOp:
    sampling = Sampling(temperature=0.0, max_tokens=most)
    return Gen(id=f"{ROOT}.1", seq=ROOT, var="_", sampling=sampling, constraint=constraint)


class _Asked:
    """A program at the backend, started at once and stopped as soon as its generation has begun; its answers are waited
    for."""

    def __init__(self, backend: Backend, ops: Sequence[AnyOp]) -> None:
        self._events: list[Event] = []
        self._begun = threading.Event()
        self._refused: RametError | None = None
        self._session = backend.open(Header(name="check"), self._deliver)
        try:
            self._session.send(ops)
            self._session.end()
        except RametError as error:
            self._refused = error
            self._session.cancel()
        except BaseException:
            self._session.cancel()
            raise

    def _deliver(self, event: Event) -> None:
        self._events.append(event)
        if isinstance(event, Started | Token | Finished | Failed | Ended):  # it has begun, or never will
            self._begun.set()

    def failure(self) -> tuple[str, str] | None:
        """Kind and message of what went wrong. Raises `ProgramTimeout`."""
        if self._refused is not None:
            return "constraint", str(self._refused)
        answered = self._begun.wait(SECONDS)
        self._session.cancel()
        if not answered:
            raise ProgramTimeout(f"the backend has not begun a generation in {SECONDS:.0f} s; check without it")
        for event in list(self._events):
            if isinstance(event, Failed):
                return event.kind, event.message
            if isinstance(event, Ended) and event.kind:
                return event.kind, event.message
        return None
