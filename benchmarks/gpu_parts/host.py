"""What the host does in a step, and how long the GPU waits for it. In: a model that decodes. Out: rows."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch

from gpu_parts.compared import in_turn
from gpu_parts.engine import steps_of
from gpu_parts.loop import ENGINE, PARTS, Loop, decoding
from gpu_parts.models import Model
from gpu_parts.report import Row, Target
from gpu_parts.session import Session
from ramet.runtime.cuda import CudaRunner

IDLE, HOST = 0.03, {64: 0.3, 256: 1.0}  # share of a step; milliseconds of a step


def overhead(session: Session, name: str) -> None:
    """Both, at every batch that is of interest."""
    model = session.kept.get(name)
    for batch in session.scale.busy:
        _host(session, model, batch)
    for batch in session.scale.busy:
        _idle(session, model, batch)
    _gaps(session, model, session.scale.busy[0])


def _loop(session: Session, model: Model, batch: int) -> Loop:
    scale = session.scale
    return decoding(model, batch, scale.contexts[0], session.place, steps=scale.steps, repeats=2 * scale.repeats + 2)


def _host(session: Session, model: Model, batch: int) -> None:
    loop = _loop(session, model, batch)
    loop.watch()
    loop.steps(steps_of(session))
    parts = {part: 1e3 * statistics.median(loop.times[part]) for part in PARTS}
    label = f"{model.name}, batch {batch}, plan + masks + collect"
    note = ", ".join(f"{part} {ms:.2f}" for part, ms in parts.items())
    target = Target(most=HOST[batch]) if batch in HOST else None
    session.add(Row("host", label, sum(parts[part] for part in ENGINE), "ms/step", target=target, note=note))


class Replays:
    """The graphs of one step, without the engine: what the GPU does when nobody lets it wait."""

    def __init__(self, runner: CudaRunner, loop: Loop) -> None:
        self._runner, graphs = runner, runner.graphs
        assert graphs is not None, "steps are captured"
        keys, run = [], graphs._run

        def noted(key: object, act: object) -> None:
            keys.append(key)
            run(key, act)  # type: ignore[arg-type]

        graphs._run = noted  # type: ignore[assignment, method-assign]
        loop.steps(1)
        graphs._run = run  # type: ignore[method-assign]
        self.kinds = [key[0] for key in keys]
        self._graphs = [graphs._graphs[key] for key in keys]

    def steps(self, count: int) -> None:
        """As `Loop.steps`."""
        with torch.inference_mode(), self._runner.device.launching():
            for _ in range(count):
                for graph in self._graphs:
                    assert graph is not None, "there was memory for all graphs"
                    graph.replay()


def _idle(session: Session, model: Model, batch: int) -> None:
    """1 - device / wall: the graphs of a step, replayed without the engine, beside the engine's steps, in turn."""
    loop = _loop(session, model, batch)
    assert isinstance(model.runner, CudaRunner), "there are graphs"
    loop.steps(2)  # captured
    replays = Replays(model.runner, loop)
    assert replays.kinds == ["forward", "head", "sample"], f"a step is {replays.kinds}"
    times = in_turn(session, {"wall": loop, "device": replays}, lambda _: None)
    idle = 1 - times["device"] / times["wall"]
    note = f"its graphs alone take {times['device']:.3f} of {times['wall']:.3f} ms a step"
    label = f"{model.name}, batch {batch}, GPU idle between steps"
    session.add(Row("host", label, idle, "share", target=Target(most=IDLE), note=note))


def _gaps(session: Session, model: Model, batch: int) -> None:
    """1 - busy / wall: the union of all kernels of some steps under the profiler, which slows the host down, over the
    wall time of a step without it. The gaps between the kernels of one graph are in it."""
    steps, loop = session.scale.steps, _loop(session, model, batch)
    wall = session.place.wall_ms(lambda: loop.steps(steps), repeats=session.scale.repeats)
    busy = busy_ms(session, loop, steps)
    note = f"kernels take {busy / steps:.3f} of {wall / steps:.3f} ms a step, by the profiler"
    label = f"{model.name}, batch {batch}, GPU between kernels"
    session.add(Row("host", label, 1 - busy / wall, "share", note=note))


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
