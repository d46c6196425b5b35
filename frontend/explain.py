"""EXPLAIN ANALYZE: what a run did, what it cost, what it waited for, and which operations decided how long it took.

In: a run of a program or of a plan, at any time. Out: an `Explanation`. What the backend did not tell is None.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ramet.frontend.critical import longest
from ramet.frontend.execution import Execution
from ramet.frontend.explain_text import total
from ramet.frontend.explained import Explanation, Guess, Op, Overall, Totals
from ramet.frontend.facts import CALLS, Fact, Facts, of_plan, of_run, told
from ramet.frontend.ir import Meta
from ramet.frontend.plan_run import PlanRun
from ramet.frontend.prefixes import branches_of
from ramet.frontend.timeline import Timeline

TEXT = 160  # characters of a text that are kept


def explain_run(run: Execution, before: Explanation | None = None, model: str = "") -> Explanation:
    """A program's run, as far as it has come; `before` is what was expected of it (`Plan.explain`)."""
    return explained(of_run(run), before, model)


def explain_plan_run(run: PlanRun[Any], before: Explanation | None = None, model: str = "") -> Explanation:
    """A plan's run, as far as it has come."""
    return explained(of_plan(run), before, model)


def explained(run: Facts, before: Explanation | None = None, model: str = "") -> Explanation:
    """The facts of a run, put together."""
    timeline = Timeline(run)
    guesses = _guesses(run.facts.values(), before)
    critical = set(timeline.critical)
    costs = {fact.id: _cost(fact) for fact in run.facts.values()}
    ops = tuple(
        _op(fact, costs[fact.id], timeline, critical=fact.id in critical, guess=guesses.get(fact.id))
        for fact in run.facts.values()
    )
    unit, branches = branches_of(run)
    return Explanation(
        run.name,
        run.state,
        ops,
        branches,
        tuple(op for op in timeline.critical if run.facts[op].kind in (*CALLS, "put", "join")),
        _totals(run, ops, unit, sum((b.length or 0) - (b.shared or 0) for b in branches)),
        tuple(timeline.python()),
        tuple(timeline.shares()),
        before.estimate if before is not None else None,
        run.seed,
        model,
        run.error,
        unit,
        before.notes if before is not None else (),
    )


@dataclass(frozen=True)
class _Cost:
    """An operation's figures."""

    prompt: int | None = None
    cached: int | None = None
    forced: int | None = None
    generated: int | None = None
    steps: int | None = None
    first: int | None = None
    last: int | None = None
    queued: float | None = None


def _cost(fact: Fact) -> _Cost:
    meta = fact.meta
    if fact.kind not in CALLS:
        return _Cost()
    if meta is None:
        return _Cost(prompt=fact.prompt or None)
    tells = told(meta)
    made = meta.completion_tokens if fact.kind != "select" else fact.winner
    known = tells or meta.completion_tokens > 0 or not fact.text
    return _Cost(
        prompt=meta.prompt_tokens if tells else meta.prompt_tokens or None,
        cached=meta.cached_tokens if tells else meta.cached_tokens or None,
        forced=meta.forced_tokens if tells else meta.forced_tokens or None,
        generated=made if known or made else None,
        steps=decode_steps(fact.kind, meta) if tells else None,
        first=meta.first_step if meta.first_step >= 0 else None,
        last=meta.last_step if meta.last_step >= 0 else None,
        queued=meta.queued_seconds if tells else None,
    )


def decode_steps(kind: str, meta: Meta) -> int:
    """Steps that a call's tokens need one after the other: one per token that is drawn, the end token among them; one
    for a choice, whose tokens are scored together; none for what a grammar forces altogether."""
    if kind != "gen":
        return 1
    ended = isinstance(meta.matched, int) and meta.matched not in meta.tokens[-1:]
    drawn = meta.completion_tokens - meta.forced_tokens + ended
    return max(drawn, 1 if meta.first_step >= 0 else 0)


def _op(fact: Fact, cost: _Cost, timeline: Timeline, *, critical: bool, guess: Guess | None) -> Op:
    meta = fact.meta
    timed = meta is not None and meta.seconds > 0
    segments = tuple(timeline.segments[fact.id])
    since = fact.host_began if fact.kind == "put" else fact.sent
    here = fact.done - since if fact.done is not None and since is not None else None
    first = meta.first_token_seconds if meta is not None else None
    if first is None and fact.first is not None and fact.sent is not None:
        first = fact.first - fact.sent
    works = fact.kind in (*CALLS, "put")
    return Op(
        id=fact.id,
        seq=fact.seq,
        kind=fact.kind,
        label=fact.label,
        var=fact.var,
        where=fact.where,
        text=fact.text[:TEXT],
        status=fact.status,
        error=fact.error,
        finish=meta.finish_reason if meta is not None and fact.kind == "gen" else "",
        causes=tuple(fact.causes),
        segments=segments,
        prompt=cost.prompt,
        cached=cost.cached,
        forced=cost.forced,
        generated=cost.generated,
        computed=meta.computed_tokens if meta is not None else None,
        recomputed=meta.recomputed_tokens if meta is not None else None,
        retractions=meta.retractions if meta is not None else None,
        steps=cost.steps,
        first_step=cost.first,
        last_step=cost.last,
        began=segments[0].begin if segments else None,
        ended=timeline.ends[fact.id] if fact.done is not None or not works else None,
        queued=cost.queued,
        memory=meta.memory_seconds if meta is not None else None,
        first_token=first if fact.kind in CALLS else None,
        seconds=meta.seconds if meta is not None and timed else here if works else None,
        critical=critical,
        guess=guess,
    )


def _totals(run: Facts, ops: tuple[Op, ...], unit: str, distinct: float) -> Totals:
    """Sums; where the backend gave its own, those."""
    calls = [op for op in ops if op.kind in CALLS]
    done = [op for op in calls if op.status == "done"]
    usage = run.ended.usage if run.ended is not None and run.ended.usage.calls else None
    bound: int | None = None
    if done and all(op.steps is not None for op in done):
        sure = {op.id: [c.op for c in op.causes if c.kind != "assumed"] for op in ops}
        bound = round(longest({op.id: float(op.steps or 0) for op in ops}, sure)[0])
    return Totals(
        calls=usage.calls if usage is not None else len(calls),
        prompt=total(done, lambda op: op.prompt),
        cached=total(done, lambda op: op.cached),
        forced=total(done, lambda op: op.forced),
        generated=total([op for op in done if op.kind == "gen"], lambda op: op.generated),
        computed=usage.computed_tokens if usage is not None and usage.computed_tokens else None,
        recomputed=total(done, lambda op: op.recomputed),
        retractions=total(done, lambda op: op.retractions),
        distinct=round(distinct) if unit == "tokens" and done else None,
        steps=usage.steps if usage is not None and usage.steps else None,
        bound=bound,
        hosts=sum(op.kind == "put" for op in ops),
        failed=sum(op.status == "failed" for op in ops),
        seconds=run.now,
    )


# --- what was expected ---


def _guesses(facts: Iterable[Fact], before: Explanation | None) -> Mapping[str, Guess]:
    """The n-th call at a line was expected to be as the plan's n-th there, or as its last."""
    if before is None:
        return {}
    planned: dict[tuple[str, str], list[Guess]] = {}
    for op in before.ops:
        if op.guess is not None:
            planned.setdefault((op.where, op.var), []).append(op.guess)
    seen: dict[tuple[str, str], int] = {}
    found: dict[str, Guess] = {}
    for fact in facts:
        site = (fact.where, fact.var)
        if fact.kind in CALLS and site in planned:
            index = seen.get(site, 0)
            seen[site] = index + 1
            found[fact.id] = planned[site][min(index, len(planned[site]) - 1)]
    return found


def unknown(why: str) -> Explanation:
    """What stands for an estimate where there is none."""
    totals = Totals(0, None, None, None, None, None, None, None, None, None, None, 0, 0, None)
    return Explanation("", "planned", (), (), (), totals, estimate=Overall(trouble=why))
