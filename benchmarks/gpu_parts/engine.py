"""The engine's speed. In: models with random weights, workloads as token ids. Out: rows beside the chip's floor.

All of it goes through `EngineCore`: planning, graphs, sampling, results and their bookkeeping are in the figures; text
and processes are not. Prompts of decode figures are planted (see `loop`); those of prefill and the mix are computed.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from gpu_parts import floors
from gpu_parts.floors import Request
from gpu_parts.loop import ENGINE, MARGIN, PARTS, Loop, decoding
from gpu_parts.models import LLAMA1, LLAMA8, QWEN, Model
from gpu_parts.report import Row, Target
from gpu_parts.session import Session
from ramet.frontend.ir import Sampling
from ramet.runtime.batch import U32

# the share of the floor that a decode step is to reach, by model and batch; of 1,024 tokens each
DECODE = {(LLAMA8, 1): 0.8, (LLAMA1, 1): 0.6, (QWEN, 1): 0.45, (LLAMA8, 128): 0.7, (LLAMA1, 128): 0.7, (QWEN, 128): 0.7}
PREFILL, IDLE, HOST = 0.65, 0.03, {64: 0.3, 256: 1.0}  # share of the matrix rate; of a step; milliseconds of a step
STRUCTURED, DETERMINISTIC, GROUPED, EVEN = 1.1, 1.25, 1.5, 0.98


def decode(session: Session, name: str) -> None:
    """A step at every batch and context that the pool holds."""
    scale, model = session.scale, session.kept.get(name)
    for context in scale.contexts:
        for batch in scale.batches:
            label = f"{name}, batch {batch}, context {context:,}"
            if batch * (context + steps_of(session) + MARGIN) > model.runner.capacity:
                session.add(
                    Row(
                        "decode",
                        label,
                        float("nan"),
                        "ms",
                        note=f"not run: the pool has {model.runner.capacity:,} slots",
                    )
                )
                continue
            ms = step_ms(session, model, batch, context)
            seen = context + steps_of(session) / 2
            least = 1e3 * floors.decode_seconds(model.spec, session.limits, batch, seen)
            share = DECODE.get((name, batch)) if context == 1024 else None
            target = None if share is None else Target(least=share)
            note = f"{1e3 * batch / ms:,.0f} tok/s"
            session.add(Row("decode", label, ms, "ms/step", least, None, least / ms, target, note))


def steps_of(session: Session) -> int:
    """Tokens that a timed sequence makes."""
    return session.scale.steps * session.scale.repeats


def step_ms(session: Session, model: Model, batch: int, context: int, **fields: Any) -> float:
    """Milliseconds of a decode step of sequences that share nothing; measured once for each model and set of fields."""
    key = ("decode", model.name, batch, context, *sorted(fields.items()))
    if key not in session.known:
        scale = session.scale
        loop = decoding(model, batch, context, session.place, steps=scale.steps, repeats=scale.repeats)
        session.known[key] = timed(session, loop)
    return session.known[key]


def timed(session: Session, loop: Loop) -> float:
    """Milliseconds of a step of a settled loop: median over repeats of many steps each."""
    steps = session.scale.steps
    return session.place.wall_ms(lambda: loop.steps(steps), repeats=session.scale.repeats) / steps


def prefill(session: Session, name: str) -> None:
    """Prompts of which nothing is cached, one token each."""
    model = session.kept.get(name)
    count, length = session.scale.prompts
    for many, target in ((1, None), (count, Target(least=PREFILL))):
        ms = prefill_ms(session, model, many, length)
        least = 1e3 * floors.prefill_flops(model.spec, [length] * many) / session.limits.rate
        label = f"{name}, {many} x {length:,} tokens"
        note = f"{1e3 * many * length / ms:,.0f} tok/s"
        session.add(Row("prefill", label, ms, "ms", least, None, least / ms, target, note))


def prefill_ms(session: Session, model: Model, many: int, length: int, **fields: Any) -> float:
    """Milliseconds from the first step to the end of all programs; median over fresh engines."""
    key = ("prefill", model.name, many, length, *sorted(fields.items()))
    if key not in session.known:
        times = []
        for _ in range(session.scale.repeats + 1):
            loop = Loop(model)
            for number in range(many):
                loop.completion(loop.prompt(length), Sampling(temperature=0, max_tokens=1), number)
            times.append(session.place.wall_ms(loop.finish, repeats=1))
        session.known[key] = statistics.median(times[1:])  # the first one is a warm-up
    return session.known[key]


def workload(session: Session, model: Model) -> list[Request]:
    """The offline mix, as far as the scale goes."""
    count, low, high = session.scale.mix
    return floors.mix(count, low, high, model.spec.vocab)


def mix(session: Session, name: str) -> None:
    """All requests at once, everything included."""
    model = session.kept.get(name)
    requests = workload(session, model)
    seconds = mix_seconds(session, model)
    tokens = sum(request.tokens for request in requests)
    most = tokens / floors.mix_seconds(model.spec, session.limits, requests)
    label = f"{name}, {len(requests)} requests"
    note = f"{tokens:,} tokens in {seconds:.2f} s, greedy"
    rate = tokens / seconds
    session.add(Row("mix", label, rate, "tok/s", most, None, rate / most, Target(least=0.7), note))


def mix_seconds(session: Session, model: Model, **fields: Any) -> float:
    """Seconds of the mix; measured once."""
    key = ("mix", model.name, *sorted(fields.items()))
    if key not in session.known:
        requests = workload(session, model)
        for some in ([Request(r.prompt, 2) for r in requests[:16]], requests):  # the first few are a warm-up
            loop = Loop(model)
            for request in some:
                loop.completion(request.prompt, Sampling(temperature=0, ignore_eos=True, max_tokens=request.tokens))
            seconds = session.place.wall_ms(loop.finish, repeats=1) / 1e3
        wanted = sum(request.tokens for request in requests)
        if loop.made != wanted:
            raise RuntimeError(f"the mix made {loop.made} tokens, not {wanted}")
        session.known[key] = seconds
    return session.known[key]


def forks(session: Session, name: str) -> None:
    """Branches over one prefix, whose KV is read once or by each; and what grouping costs where nothing is shared."""
    model = session.kept.get(name)
    try:
        for shared in session.scale.shared:
            for count in session.scale.forks:
                _fork(session, model, count, shared)
        batch, context = session.scale.busy[0], session.scale.contexts[0]
        times = {}
        for on in (False, True):
            model.group(on)
            times[on] = _apart_ms(session, model, batch, context)
        label = f"{name}, {batch} that share nothing, grouping on / off"
        target = Target(least=EVEN)
        session.add(Row("forks", label, times[True], "ms/step", None, times[False], times[False] / times[True], target))
    finally:
        model.group(True)


def _fork(session: Session, model: Model, count: int, shared: int) -> None:
    times = {}
    for on in (False, True):
        model.group(on)
        scale = session.scale
        loop = Loop(model)
        prompt = loop.prompt(shared)
        loop.plant(prompt)
        most = steps_of(session) + MARGIN
        loop.forks(prompt, [Sampling(temperature=0.6, ignore_eos=True, max_tokens=most)] * min(count, scale.rows))
        loop.settle(min(count, scale.rows))
        times[on] = timed(session, loop)
    own = steps_of(session) / 2
    least = 1e3 * floors.decode_seconds(model.spec, session.limits, count, shared + own, shared=shared)
    ratio = times[False] / times[True]
    wanted = GROUPED if (model.name, count, shared) == (QWEN, 32, 4096) else EVEN
    label = f"{model.name}, {count} over {shared:,}, grouping on / off"
    note = f"{least / times[True]:.2f} of the floor with grouping"
    session.add(Row("forks", label, times[True], "ms/step", least, times[False], ratio, Target(least=wanted), note))


def _apart_ms(session: Session, model: Model, batch: int, context: int) -> float:
    scale = session.scale
    return timed(session, decoding(model, batch, context, session.place, steps=scale.steps, repeats=scale.repeats))


def structured(session: Session, name: str) -> None:
    """Every draw masked, beside none."""
    scale, model = session.scale, session.kept.get(name)
    batch, context = scale.busy[0], scale.contexts[0]
    plain = step_ms(session, model, batch, context)
    loop = decoding(model, batch, context, session.place, steps=scale.steps + 8, repeats=scale.repeats)
    loop.constrain(bitmasks(model.spec.vocab, batch))
    loop.steps(4)  # the graph with masks is captured
    masked = timed(session, loop)
    label = f"{name}, batch {batch}, all draws masked / none"
    note = "random bitmasks (half of the tokens): no grammar is compiled or advanced"
    ratio = masked / plain
    session.add(Row("structured", label, masked, "ms/step", None, plain, ratio, Target(most=STRUCTURED), note))


def bitmasks(vocab: int, count: int) -> U32:
    """Random ones `[count, V/32]`; about half of the tokens are allowed."""
    rng = np.random.default_rng(5)
    return rng.integers(0, 1 << 32, (count, -(-vocab // 32)), dtype=np.uint64).astype(np.uint32)


def overhead(session: Session, name: str) -> None:
    """What the host does in a step, and how long the GPU waits for it."""
    model = session.kept.get(name)
    for batch in session.scale.busy:
        _host(session, model, batch)
    _idle(session, model, session.scale.busy[0])


def _host(session: Session, model: Model, batch: int) -> None:
    scale = session.scale
    loop = decoding(model, batch, scale.contexts[0], session.place, steps=scale.steps, repeats=scale.repeats)
    loop.watch()
    loop.steps(steps_of(session))
    parts = {part: 1e3 * statistics.median(loop.times[part]) for part in PARTS}
    label = f"{model.name}, batch {batch}, plan + masks + collect"
    note = ", ".join(f"{part} {ms:.2f}" for part, ms in parts.items())
    target = Target(most=HOST[batch]) if batch in HOST else None
    session.add(Row("host", label, sum(parts[part] for part in ENGINE), "ms/step", target=target, note=note))


def _idle(session: Session, model: Model, batch: int) -> None:
    """1 - busy / wall: the union of all device work of some steps under the profiler, over the wall time of a step
    without it (the profiler slows the host down, hardly the device)."""
    scale, context = session.scale, session.scale.contexts[0]
    wall = step_ms(session, model, batch, context)
    loop = decoding(model, batch, context, session.place, steps=scale.steps, repeats=1)
    busy = busy_ms(session, loop, scale.steps) / scale.steps
    label = f"{model.name}, batch {batch}, GPU idle"
    note = f"busy {busy:.3f} of {wall:.3f} ms a step"
    session.add(Row("host", label, 1 - busy / wall, "share", target=Target(most=IDLE), note=note))


def busy_ms(session: Session, loop: Loop, steps: int) -> float:
    """Milliseconds in which the device did anything, by the profiler; nan where it saw nothing."""
    place = session.place
    if place.toy:
        loop.steps(steps)
        return float("nan")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        loop.steps(steps)
        place.sync()
    events = [event for event in profile.events() or () if str(event.device_type).endswith("CUDA")]
    spans = [(event.time_range.start, event.time_range.end) for event in events]
    return union(spans) / 1e3 if spans else float("nan")


def union(spans: Sequence[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def deterministic(session: Session, name: str) -> None:
    """Batch-invariant products, one kind of attention item, fixed spans: what they cost."""
    scale, context = session.scale, session.scale.contexts[0]
    batches = [b for b in scale.batches if b in (1, 32, 128)] or scale.batches[:1]
    count, length = scale.prompts
    free: dict[str, float] = {}
    bound: dict[str, float] = {}
    for found, fields in ((free, {}), (bound, {"deterministic": True})):
        model = session.kept.get(name, **fields)
        for batch in batches:
            found[f"decode, batch {batch}, context {context:,}"] = step_ms(session, model, batch, context, **fields)
        found[f"prefill, {count} x {length:,}"] = prefill_ms(session, model, count, length, **fields)
        found["the mix"] = 1e3 * mix_seconds(session, model, **fields)
    for what, ms in bound.items():
        target, label = Target(most=DETERMINISTIC), f"{name}, {what}, deterministic / not"
        session.add(Row("deterministic", label, ms, "ms", None, free[what], ms / free[what], target))
