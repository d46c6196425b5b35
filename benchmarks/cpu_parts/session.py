"""The turns of a run. In: a session with its options. Out: figures in its report.

The runners take turns, and each turn begins with another one; the first turn is a warm-up and is left out. Limits are
measured at the beginning of each turn, and a turn's rates are compared with that turn's limits.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

import ramet as rt
from cpu_parts import floors, grouped, overhead, runners, shared
from cpu_parts.limits import Limits, Meter
from cpu_parts.pins import pinned, workers
from cpu_parts.report import Report
from cpu_parts.runners import TORCH, Subject
from ramet.kernels.cpu import library
from ramet.runtime.config import NATIVE, Config
from ramet.runtime.models import hub
from ramet.runtime.models.spec import Spec
from ramet.runtime.models.tokenizer import load_tokenizer

SECTIONS = ("prefill", "decode", "overhead", "shared")
ALL = (*SECTIONS, grouped.SECTION)  # the last only when it is asked for: it is about a constant, not about a release
Name = TypeVar("Name")


@dataclass(frozen=True, slots=True)
class Session:
    """What a run is about."""

    options: argparse.Namespace
    source: hub.ModelSource
    spec: Spec
    threads: int
    report: Report


def measure(session: Session) -> None:
    """All sections that were asked for."""
    options = session.options
    with pinned(options.pin) as cores:
        with workers(cores):
            meter = Meter(library.load(), session.threads, cores, options.block << 20)
        if {"prefill", "decode", "overhead"} & set(options.only):
            forwards(session, meter, cores)
        if grouped.SECTION in options.only:
            breaks_even(session, cores)
    gc.collect()  # the runners' pools
    if "shared" in options.only:
        forks(session, meter)
    meter.close()


def measured_limits(session: Session, meter: Meter, *, keep: bool) -> Limits:
    """The limits of this turn."""
    found, products = meter()
    if not keep:
        return found
    threads, how = f"{session.threads} threads", meter.how["bandwidth"]
    pages = {f"read, {threads}, huge pages": found.bandwidth, "read, 1 thread, huge pages": found.one_thread}
    for what, rate in {**pages, f"read, {threads}, small pages": found.small_pages}.items():
        if rate == rate:  # what cannot be measured here is nan
            figure = session.report.of("limits", what, "", "GB/s", threads=1 if "1 thread" in what else session.threads)
            figure.values.append(rate / 1e9)
            figure.note = how
    for name, rate in (("bf16", found.bf16), ("int8", found.int8)):
        figure = session.report.of("limits", f"products, {name}", "", "Gop/s", threads=session.threads)
        figure.values.append(rate / 1e9)
        figure.note = meter.how[name]
    for name, rate in products.items():
        figure = session.report.of("limits", f"products, {name}, in caches", "", "Gop/s", threads=session.threads)
        figure.values.append(rate / 1e9)
        figure.limits.append((found.bf16 if name == "bf16" else found.int8) / 1e9)
        figure.note = "ramet_linear"
    return found


def turns(session: Session, names: Sequence[Name]) -> Iterator[tuple[bool, list[Name]]]:
    """Whether a turn counts, and its order: each begins with another one."""
    for turn in range(session.options.turns + 1):
        print(f"turn {turn} of {session.options.turns}" + ("" if turn else ", a warm-up"), file=sys.stderr, flush=True)
        at = (turn - 1) % len(names)
        yield turn > 0, [*names[at:], *names[:at]]


def record(
    session: Session, cell: tuple[str, str, str], rate: float, floor: floors.Floor, work: float, **sizes: int
) -> None:
    """One turn's rate beside its limit: `work` tokens in the floor's seconds."""
    section, what, runner = cell
    figure = session.report.of(section, what, runner, "tok/s", **sizes)
    figure.values.append(rate)
    figure.limits.append(work / floor.seconds)
    figure.binds = floor.binds


def forwards(session: Session, meter: Meter, cores: Sequence[int]) -> None:
    """prefill, decode and overhead of all runners, in turns."""
    options, spec = session.options, session.spec
    longest = max(options.prompt, *(context + options.steps + 1 for context in options.contexts))
    slots = max(options.prompt, max(options.batches) * (max(options.contexts) + options.steps + 1))
    config = Config(
        model=options.model,
        device="cpu",
        dtype="bfloat16",  # of torch; a native runner is told its own
        context=longest,
        kv_tokens=slots,
        max_running=max(options.batches),
        threads=session.threads,
    )
    subjects = [runners.opened(name, session.source, spec, config, cores) for name in options.runners]
    for keep, order in turns(session, subjects):
        limits = measured_limits(session, meter, keep=keep)
        if "prefill" in options.only:
            for subject in order:
                _prefill(session, subject, limits, keep=keep)
        if "decode" in options.only:
            for context in options.contexts:
                for batch in options.batches:
                    for subject in order:
                        _decode(session, subject, limits, batch, context, keep=keep)
        if "overhead" in options.only:
            for subject in order:
                overhead.turn(session.report, subject, keep=keep)


def _prefill(session: Session, subject: Subject, limits: Limits, *, keep: bool) -> None:
    length = session.options.prompt
    seconds = runners.prefill_seconds(subject.runner, length, session.spec.vocab)
    if keep:
        cell = ("prefill", f"{length:,} tokens", subject.name)
        record(session, cell, length / seconds, floors.prefill(subject.shape, limits, length), length, prompt=length)


def _decode(session: Session, subject: Subject, limits: Limits, batch: int, context: int, *, keep: bool) -> None:
    steps = session.options.steps
    seconds = runners.decode_seconds(subject.runner, batch, context, steps, session.spec.vocab)
    if keep:
        floor = floors.decode(subject.shape, limits, batch, context + 1 + (steps + 1) / 2)
        cell = ("decode", f"batch {batch}, context {context:,}", subject.name)
        record(session, cell, batch / seconds, floor, batch, batch=batch, context=context)


def breaks_even(session: Session, cores: Sequence[int]) -> None:
    """Grouped against ungrouped steps of the native runners, in turns."""
    options = session.options
    config = Config(
        model=options.model,
        device="cpu",
        dtype="bfloat16",
        context=max(options.prefixes) + grouped.OWN,
        kv_tokens=grouped.slots(options.members, options.prefixes),
        max_running=max(options.members),
        threads=session.threads,
    )
    names = [name for name in options.runners if name != TORCH]  # which has no grouped attention on a CPU
    if not names:
        return
    subjects = [runners.opened(name, session.source, session.spec, config, cores) for name in names]
    for keep, order in turns(session, subjects):
        for subject in order:
            grouped.turn(session.report, subject, options.members, options.prefixes, options.steps, keep=keep)


def forks(session: Session, meter: Meter) -> None:
    """The shared prefix through the engines, in turns; nothing where there is no engine for any of the runners."""
    options = session.options
    sizes = shared.Sizes(options.branches, options.prefix, options.own, options.made)
    names = [name for name in options.runners if name in NATIVE or name == TORCH]
    if not names:
        return
    tokenizer = load_tokenizer(session.source)
    with contextlib.ExitStack() as stack:
        engines = {name: stack.enter_context(engine(session, name, sizes)) for name in names}
        for number, (keep, order) in enumerate(turns(session, names)):
            with pinned(options.pin):  # as the meter's own threads are; the engines stay free
                limits = measured_limits(session, meter, keep=keep)
            for name in order:
                outcome = shared.run(engines[name], tokenizer, sizes, number)
                if keep:
                    _record_fork(session, name, limits, sizes, outcome)


def engine(session: Session, name: str, sizes: shared.Sizes) -> rt.Engine:
    """A process that serves the model as `name` computes it."""
    return rt.Engine(
        session.options.model,
        device="cpu",
        dtype="bfloat16" if name == TORCH else name,
        threads=session.threads,
        context=sizes.prefix + sizes.own + sizes.made + 64,
        kv_tokens=sizes.slots,
        max_running=max(sizes.branches, 8),
    )


def _record_fork(session: Session, name: str, limits: Limits, sizes: shared.Sizes, outcome: shared.Outcome) -> None:
    lib = None if name == TORCH else library.load()
    shape = floors.shape(session.spec, "bfloat16" if name == TORCH else name, lib)
    floor = floors.forked(shape, limits, sizes.branches, outcome.prefix, outcome.own, sizes.made)
    what = f"{sizes.branches} x ({sizes.prefix:,} shared + {sizes.own} + {sizes.made} made)"
    cell = ("shared", what, name)
    record(session, cell, outcome.made / outcome.seconds, floor, outcome.made, **asdict(sizes))
    figure = session.report.of(*cell, "tok/s")
    figure.note = f"{outcome.made / figure.median:.2f} s; computed / distinct tokens {outcome.excess:.3f}"
