"""What a run of a plan will cost, before it runs; learned from the runs before.

In: a document, the texts of its arguments, what earlier runs showed. Out: an `Estimate` in tokens and steps; the
prefix that all runs share; advice. Lengths of texts are counted in characters, and become tokens by the ratio that was
seen at the same call (a quarter of a token per character, before anything was).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future

import msgspec

from ramet.frontend.backends.base import Backend
from ramet.frontend.course import Course
from ramet.frontend.errors import FAILURES, GenerationError
from ramet.frontend.ir import (
    ROOT,
    AnyOp,
    Close,
    Ended,
    Event,
    Finished,
    Gen,
    Header,
    Rendered,
    Role,
    Sampling,
    Text,
    Usage,
)
from ramet.frontend.ir import Select as SelectOp
from ramet.frontend.ir import Tools as ToolsOp
from ramet.frontend.planned import Break, Decision, Document, Param, Part, Step, Use
from ramet.frontend.walk import Lengths, Totals, site_of, walked

_KEPT = 64  # runs whose work beyond a graph break is remembered
_WORTH = 8  # tokens below which advice is not worth a line


class Observed(Lengths, kw_only=True, forbid_unknown_fields=True):
    """What runs of a plan have shown: lengths per call, outcomes per decision; per graph break what Python did behind
    it: calls, prompt, shared and generated tokens of each run."""

    runs: int = 0
    outcomes: dict[str, dict[str, int]] = msgspec.field(default_factory=dict)
    beyond: dict[str, list[tuple[int, int, int, int]]] = msgspec.field(default_factory=dict)


class Estimate(msgspec.Struct, frozen=True):
    """Expected cost of one run. `prompt`: tokens of all calls' whole prompts, as a client without programs would send
    them; `shared`: those of them that another call of the run has computed; `generated`; `generated_max`: if every call
    ran to its max_tokens (None: no limit); `peak_kv`: tokens of KV if nothing were freed before the end;
    `critical_path`: decode steps, if everything that can overlap does; `width`: calls at a time. `learned`: runs it
    knows; `complete`: no path that may be taken ends in a graph break, after which only what earlier runs did is known,
    and nothing of their steps, width and limits."""

    calls: float
    prompt: int
    shared: int
    generated: int
    generated_max: int | None
    peak_kv: int
    critical_path: int
    width: int
    learned: int
    complete: bool


class Prefix(msgspec.Struct, frozen=True):
    """A constant beginning: its operations, the characters of its text, and (once counted on a backend) its tokens."""

    ops: tuple[AnyOp, ...]
    chars: int
    tokens: int | None = None


class Advice(msgspec.Struct, frozen=True):
    """A suggestion: the line that it is about, what to do, and the tokens that each run would save."""

    where: str
    message: str
    tokens: int = 0


# --- learning ---


def observe(observed: Observed, document: Document, course: Course, events: Sequence[Event]) -> None:
    """Take in what a run showed."""
    finished: dict[str, Finished] = {}
    for event in events:
        if isinstance(event, Rendered):
            step = course.step_of(event.op)
            if step is not None and isinstance(step.op, Role):
                observed.edges[f"{step.op.role} {step.op.edge}"] = len(event.text)
        elif isinstance(event, Finished) and (step := course.step_of(event.op)) is not None:
            finished[step.op.id] = event
    for index in course.path:
        end = document.nodes[index].end
        if isinstance(end, Decision) and (text := course.known(end.on)) is not None:
            for place in _places(end):
                counts = observed.outcomes.setdefault(place, {})
                counts[text] = counts.get(text, 0) + 1
    _learn(observed, document, course, finished)
    if isinstance(course.end, Break):
        usage = next((event.usage for event in events if isinstance(event, Ended)), Usage())
        _look_beyond(observed, course.end, usage, finished.values())
    observed.runs += 1


def _places(end: Decision) -> tuple[str, ...]:
    """Under what the outcomes of a decision are kept: the line, and the line with the operation that is decided on,
    for lines with several decisions."""
    return (end.where, f"{end.where} {end.on.op}") if isinstance(end.on, Use) else (end.where,)


def outcomes_of(observed: Observed, end: Decision) -> Mapping[str, int]:
    """How often runs went which way at a decision; where none has come there, at its line (another turn of a loop)."""
    return next((found for place in reversed(_places(end)) if (found := observed.outcomes.get(place))), {})


def _look_beyond(observed: Observed, end: Break, usage: Usage, inside: Iterable[Finished]) -> None:
    """What a run did where the plan knows nothing: all that it did, without what the plan knows. Calls that were cut
    off count as far as they came."""
    metas = [event.meta for event in inside]
    prompt = usage.prompt_tokens - sum(meta.prompt_tokens for meta in metas)
    shared = usage.cached_tokens - sum(meta.cached_tokens for meta in metas)
    made = usage.generated_tokens - sum(meta.completion_tokens for meta in metas)
    kept = observed.beyond.setdefault(end.where, [])
    kept.append((max(usage.calls - len(metas), 0), max(prompt, 0), max(shared, 0), max(made, 0)))
    del kept[:-_KEPT]


def _learn(observed: Observed, document: Document, course: Course, finished: Mapping[str, Finished]) -> None:
    chars = {op: len(event.value) for op, event in finished.items()}
    tokens = {op: event.meta.completion_tokens for op, event in finished.items()}
    walk = walked(course.texts, observed, document, course.path, chars, tokens)
    for step, prompt_chars in walk.prompts:
        event = finished.get(step.op.id)
        if event is None:
            continue
        site = site_of(step)
        if isinstance(step.op, Gen):
            observed.add(observed.generated, site, event.meta.completion_tokens)
            observed.add(observed.chars, site, len(event.value))
        if event.meta.prompt_tokens and prompt_chars:
            observed.add(observed.prompt_tokens, site, event.meta.prompt_tokens)
            observed.add(observed.prompt_chars, site, prompt_chars)


# --- estimating ---


def estimated(document: Document, texts: Mapping[str, str], observed: Observed) -> Estimate:
    """See `Plan.estimate`: the mean over paths by how often they were taken; the widest path's peak and width."""
    found: list[tuple[float, Totals]] = []
    complete = True
    for weight, path in _weighted(document, texts, observed):
        totals, end = walked(texts, observed, document, path, {}, {}).totals(), document.nodes[path[-1]].end
        if isinstance(end, Break):
            _go_beyond(totals, observed.beyond.get(end.where, ()))
        found.append((weight, totals))
        complete = complete and not isinstance(end, Break)
    limits = [totals.generated_max for _, totals in found]
    return Estimate(
        calls=sum(weight * totals.calls for weight, totals in found),
        prompt=round(sum(weight * totals.prompt for weight, totals in found)),
        shared=round(sum(weight * totals.shared for weight, totals in found)),
        generated=round(sum(weight * totals.generated for weight, totals in found)),
        generated_max=None if any(most is None for most in limits) else max((m for m in limits if m), default=0),
        peak_kv=round(max((totals.resident for _, totals in found), default=0)),
        critical_path=round(sum(weight * totals.steps for weight, totals in found)),
        width=max((totals.width for _, totals in found), default=0),
        learned=observed.runs,
        complete=complete,
    )


def _go_beyond(totals: Totals, seen: Sequence[tuple[int, int, int, int]]) -> None:
    """Add what runs did behind a graph break, in the mean."""
    if not seen:
        return
    calls, prompt, shared, generated = (sum(each) / len(seen) for each in zip(*seen, strict=True))
    totals.calls += calls
    totals.prompt += prompt
    totals.shared += shared
    totals.generated += generated
    totals.resident += prompt + generated - shared


def _weighted(
    document: Document, texts: Mapping[str, str], observed: Observed
) -> Iterator[tuple[float, tuple[int, ...]]]:
    stack: list[tuple[float, tuple[int, ...]]] = [(1.0, (0,))]
    while stack:
        weight, path = stack.pop()
        end = document.nodes[path[-1]].end
        if not isinstance(end, Decision):
            yield weight, path
            continue
        counts = outcomes_of(observed, end)
        if isinstance(end.on, Param):
            counts = {texts[end.on.name]: 1}
        seen = sum(counts.get(outcome, 0) for outcome in end.outcomes)
        for outcome, child in zip(end.outcomes, end.nodes, strict=True):
            share = counts.get(outcome, 0) / seen if seen else 1 / len(end.outcomes)
            if share:
                stack.append((weight * share, (*path, child)))


# --- the prefix ---


def prefix_of(document: Document) -> Prefix:
    """See `Plan.prefix`."""
    lines = [_constant(document, path) for path in document.paths()]
    ops = lines[0]
    for other in lines[1:]:
        ops = _common(ops, other)
    return Prefix(
        tuple(ops), sum(len(part) for op in ops if isinstance(op, Text) for part in op.parts if type(part) is str)
    )


def _constant(document: Document, path: tuple[int, ...]) -> list[AnyOp]:
    """The operations on the first sequence that depend on nothing."""
    ops: list[AnyOp] = []
    for step in document.steps(path):
        if step.op.seq != ROOT:
            continue
        if isinstance(step.op, Text):
            text = step.parts[0] if step.parts and isinstance(step.parts[0], str) else ""
            if text:
                ops.append(Text(id=step.op.id, seq=ROOT, parts=(text,)))
            if len(step.parts) > 1 or not text:
                return ops
        elif isinstance(step.op, Role | ToolsOp):
            ops.append(step.op)
        elif isinstance(step.op, Gen | SelectOp) or not isinstance(step.op, Close):
            return ops
    return ops


def _common(one: list[AnyOp], other: list[AnyOp]) -> list[AnyOp]:
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a == b:
            continue
        if isinstance(a, Text) and isinstance(b, Text):
            left, right = str(a.parts[0]), str(b.parts[0])
            same = next(
                (i for i, (x, y) in enumerate(zip(left, right, strict=False)) if x != y), min(len(left), len(right))
            )
            return [*one[:index], *([Text(id=a.id, seq=ROOT, parts=(left[:same],))] if same else [])]
        return one[:index]
    return one[: min(len(one), len(other))]


def warmed(prefix: Prefix, backend: Backend, name: str) -> Prefix:
    """The prefix, computed on a backend (one token is generated after it and thrown away), and its tokens."""
    if not prefix.ops:
        return Prefix((), 0, 0)
    done: Future[Ended] = Future()
    counted: list[int] = []

    def deliver(event: Event) -> None:
        if isinstance(event, Finished):
            counted.append(event.meta.prompt_tokens)
        elif isinstance(event, Ended):
            done.set_result(event)

    session = backend.open(Header(name=f"{name} (prefix)"), deliver)
    ops = [msgspec.structs.replace(op, id=f"{ROOT}.{index}") for index, op in enumerate(prefix.ops)]
    try:
        last = Gen(id=f"{ROOT}.{len(ops)}", seq=ROOT, var="_", sampling=Sampling(temperature=0.0, max_tokens=1))
        session.send([*ops, last])
        session.end()
        ended = done.result()
    except BaseException:
        session.cancel()
        raise
    if not counted:
        raise FAILURES.get(ended.kind, GenerationError)(
            f"the prefix of {name!r} could not be computed: {ended.message}"
        )
    return Prefix(prefix.ops, prefix.chars, counted[0])


# --- advice ---


def advised(document: Document, observed: Observed) -> list[Advice]:
    """See `Plan.advice`."""
    found: dict[tuple[str, str], Advice] = {}
    for path in document.paths():
        for advice in (*_hoisted(document.steps(path), observed), *_spliced(document.steps(path))):
            found.setdefault((advice.where, advice.message), advice)
    return list(found.values())


def _hoisted(steps: Iterator[Step], observed: Observed) -> Iterator[Advice]:
    """Constant text on the first sequence that stands behind an argument: it is computed anew for each run."""
    behind = ""
    for step in steps:
        if step.op.seq != ROOT or isinstance(step.op, Gen | SelectOp):
            return
        constant = sum(len(part) for part in _after(step.parts, bool(behind)) if isinstance(part, str))
        variable = next((part.name for part in step.parts if isinstance(part, Param)), "")
        behind = behind or variable
        tokens = round(constant * observed.ratio())
        if behind and tokens >= _WORTH:
            message = (
                f"constant text stands behind the argument {behind!r}: before it, it would be computed once for all"
            )
            yield Advice(step.where, f"{message} runs; about {tokens} tokens less per run", tokens)


def _after(parts: Sequence[Part], behind: bool) -> Sequence[Part]:
    if behind:
        return parts
    first = next((index for index, part in enumerate(parts) if isinstance(part, Param)), len(parts))
    return parts[first:]


def _spliced(steps: Iterator[Step]) -> Iterator[Advice]:
    for step in steps:
        if any(isinstance(part, Use) for part in step.parts):
            yield Advice(
                step.where,
                "a value is read and written into later text: append its handle (s += value) instead, and the engine "
                "goes on without a wait, with the value's own tokens",
            )
