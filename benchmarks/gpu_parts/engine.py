"""The engine's speed. In: models with random weights, workloads as token ids. Out: rows beside the chip's floor.

All of it goes through `EngineCore`: planning, graphs, sampling, results and their bookkeeping are in the figures; text
and processes are not. Prompts of decode figures are planted (see `loop`); those of prefill and the mix are computed.
"""

from __future__ import annotations

import statistics
from typing import Any

from gpu_parts import floors
from gpu_parts.floors import Request
from gpu_parts.loop import MARGIN, Loop, decoding
from gpu_parts.models import LLAMA1, LLAMA8, QWEN, spec_of
from gpu_parts.report import Row, Target
from gpu_parts.session import Session
from ramet.frontend.ir import Sampling
from ramet.runtime.models.spec import Spec

# the share of the floor that a decode step is to reach, by model and batch; of 1,024 tokens each
DECODE = {(LLAMA8, 1): 0.8, (LLAMA1, 1): 0.6, (QWEN, 1): 0.45, (LLAMA8, 128): 0.7, (LLAMA1, 128): 0.7, (QWEN, 128): 0.7}
PREFILL, DETERMINISTIC = 0.65, 1.25  # share of the matrix rate; times the time without


def decode(session: Session, name: str) -> None:
    """A step at every batch and context that the pool holds."""
    scale, model = session.scale, session.kept.get(name)
    for context in scale.contexts:
        for batch in scale.batches:
            label = f"{name}, batch {batch}, context {context:,}"
            if batch * (context + steps_of(session) + MARGIN) > model.runner.capacity:
                note = f"not run: the pool has {model.runner.capacity:,} slots"
                session.add(Row("decode", label, float("nan"), "ms/step", note=note))
                continue
            ms = step_ms(session, name, batch, context)
            seen = context + steps_of(session) / 2
            least = 1e3 * floors.decode_seconds(model.spec, session.limits, batch, seen)
            share = DECODE.get((name, batch)) if context == 1024 else None
            target = None if share is None else Target(least=share)
            note = f"{1e3 * batch / ms:,.0f} tok/s"
            session.add(Row("decode", label, ms, "ms/step", least, None, least / ms, target, note))


def steps_of(session: Session) -> int:
    """Tokens that a timed sequence makes."""
    return session.scale.steps * session.scale.repeats


def key(*what: object, **fields: object) -> str:
    """Names a measurement in `Session.known`."""
    return " ".join(map(str, (*what, *sorted(fields.items()))))


def step_ms(session: Session, name: str, batch: int, context: int, **fields: Any) -> float:
    """Milliseconds of a decode step of sequences that share nothing: median over repeats of many steps each. Measured
    once for each model and set of fields; a model that is not needed is not loaded."""
    timed = key("decode", name, batch, context, **fields)
    if timed not in session.known:
        scale, model = session.scale, session.kept.get(name, **fields)
        loop = decoding(model, batch, context, session.place, steps=scale.steps, repeats=scale.repeats)
        ms = session.place.wall_ms(lambda: loop.steps(scale.steps), repeats=scale.repeats)
        session.known[timed] = ms / scale.steps
    return session.known[timed]


def prefill(session: Session, name: str) -> None:
    """Prompts of which nothing is cached, one token each."""
    count, length = session.scale.prompts
    for many, target in ((1, None), (count, Target(least=PREFILL))):
        ms = prefill_ms(session, name, many, length)
        least = 1e3 * floors.prefill_flops(spec_of(name, session.scale), [length] * many) / session.limits.rate
        label = f"{name}, {many} x {length:,} tokens"
        note = f"{1e3 * many * length / ms:,.0f} tok/s"
        session.add(Row("prefill", label, ms, "ms", least, None, least / ms, target, note))


def prefill_ms(session: Session, name: str, many: int, length: int, **fields: Any) -> float:
    """Milliseconds from the first step to the end of all programs; median over fresh engines."""
    timed = key("prefill", name, many, length, **fields)
    if timed not in session.known:
        model, times = session.kept.get(name, **fields), []
        for _ in range(session.scale.repeats + 1):
            loop = Loop(model)
            for number in range(many):
                loop.completion(loop.prompt(length), Sampling(temperature=0, max_tokens=1), number)
            times.append(session.place.wall_ms(loop.finish, repeats=1))
        session.known[timed] = statistics.median(times[1:])  # the first one is a warm-up
    return session.known[timed]


def workload(session: Session, spec: Spec) -> list[Request]:
    """The offline mix, as far as the scale goes."""
    return floors.mix(*session.scale.mix, spec.vocab)


def mix(session: Session, name: str) -> None:
    """All requests at once, everything included."""
    spec = spec_of(name, session.scale)
    requests, seconds = workload(session, spec), mix_seconds(session, name)
    tokens = sum(request.tokens for request in requests)
    most = tokens / floors.mix_seconds(spec, session.limits, requests)
    label = f"{name}, {len(requests)} requests"
    note = f"{tokens:,} tokens in {seconds:.2f} s, greedy"
    rate = tokens / seconds
    session.add(Row("mix", label, rate, "tok/s", most, None, rate / most, Target(least=0.7), note))


def mix_seconds(session: Session, name: str, **fields: Any) -> float:
    """Seconds of the mix; measured once."""
    timed = key("mix", name, **fields)
    if timed not in session.known:
        model = session.kept.get(name, **fields)
        requests = workload(session, model.spec)
        for some in ([Request(r.prompt, 2) for r in requests[:16]], requests):  # the first few are a warm-up
            loop = Loop(model)
            for request in some:
                loop.completion(request.prompt, Sampling(temperature=0, ignore_eos=True, max_tokens=request.tokens))
            seconds = session.place.wall_ms(loop.finish, repeats=1) / 1e3
        wanted = sum(request.tokens for request in requests)
        if loop.made != wanted:
            raise RuntimeError(f"the mix made {loop.made} tokens, not {wanted}")
        session.known[timed] = seconds
    return session.known[timed]


def deterministic(session: Session, name: str) -> None:
    """Batch-invariant products, one kind of attention item, fixed spans: what they cost."""
    scale, context = session.scale, session.scale.contexts[0]
    batches = [b for b in scale.batches if b in (1, 32, 128)] or scale.batches[:1]
    count, length = scale.prompts
    free: dict[str, float] = {}
    bound: dict[str, float] = {}
    for found, fields in ((free, {}), (bound, {"deterministic": True})):
        for batch in batches:
            found[f"decode, batch {batch}, context {context:,}"] = step_ms(session, name, batch, context, **fields)
        found[f"prefill, {count} x {length:,}"] = prefill_ms(session, name, count, length, **fields)
        found["the mix"] = 1e3 * mix_seconds(session, name, **fields)
    for what, ms in bound.items():
        target, label = Target(most=DETERMINISTIC), f"{name}, {what}, deterministic / not"
        session.add(Row("deterministic", label, ms, "ms", None, free[what], ms / free[what], target))
