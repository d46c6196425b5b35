"""What need not be timed, all at once, before the clock of the sections runs. In: what the run is going to launch.
Out: a full cache of compiled kernels on the disk, and the outcomes of the checks.

Children go through the sections side by side: some with models of one layer and few steps, so that the compiler has
been everywhere; some check what must be right, each with a part of the GPU's memory. Compiling uses one core each, and
one after the other all this would take as long as what is measured.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from gpu_parts.models import LLAMA8, MODELS, QWEN, SMOL
from gpu_parts.report import Row
from gpu_parts.saved import Saved, read
from gpu_parts.session import Session

SECONDS = 100.0
ENGINE = "decode,prefill,mix,forks,structured"
RIGHT = ("check", "ladder", "real")  # what children find about these counts


@dataclass(frozen=True, slots=True)
class Job:
    """What a child goes through; `model` empty: each section's own. `threads`: of torch on the host."""

    sections: str
    model: str = ""
    threads: int = 1


def jobs() -> list[Job]:
    """Those of most work first."""
    timed = [Job("kernels", model) for model in (LLAMA8, QWEN)]
    right = [*(Job("check", model) for model in MODELS), Job("ladder"), Job("real", threads=4)]
    plain = [Job(ENGINE, model) for model in MODELS]
    exact = [Job("deterministic", model) for model in (LLAMA8, QWEN)]
    return [*timed, *right, *plain, *exact]


def run(session: Session) -> None:
    """Wait for all children, at most `SECONDS`: what they did not do is done in its section."""
    began = time.monotonic()
    asked = [Job("check", SMOL), Job("ladder")] if session.scale.toy else jobs()
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / f"{number}" for number in range(len(asked))]
        children = [_start(session, job, place) for job, place in zip(asked, places, strict=True)]
        late = failed = 0
        for job, place, child in zip(asked, places, children, strict=True):
            try:
                child.wait(max(0.1, SECONDS - (time.monotonic() - began)))
            except subprocess.TimeoutExpired:
                late += 1
                child.kill()
                child.wait()
            if child.returncode:
                failed += 1
                said = place.with_suffix(".log").read_text(encoding="utf-8", errors="replace")
                session.say(f"-- {job.sections} {job.model}: status {child.returncode}; it said\n{said[-3000:]}")
            if (saved := read(place)) is not None:
                _take(session, saved)
    note = f"{len(children)} processes, {late} stopped at {SECONDS:.0f} s, {failed - late} failed (the log says why)"
    session.add(Row("rehearse", "compiling and checking", time.monotonic() - began, "s", note=note))


def _start(session: Session, job: Job, place: Path) -> subprocess.Popen[bytes]:
    script = str(Path(__file__).resolve().parent.parent / "gpu.py")
    command = [sys.executable, "-P", script, "--rehearse", "--only", job.sections, "--state", str(place)]
    command += ["--dry-run"] * session.scale.toy + ["--models", job.model] * bool(job.model)
    command += ["--real", str(session.real)] if session.real else []
    environment = os.environ | {"OMP_NUM_THREADS": str(job.threads)}
    with open(place.with_suffix(".log"), "w", encoding="utf-8") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)


def _take(session: Session, saved: Saved) -> None:
    """What a child found that is right or wrong, of sections that it ended."""
    ended = [outcome for outcome in saved.outcomes if outcome.name.partition(" ")[0] in RIGHT]
    for outcome in ended:
        session.say(f"== {outcome.name}: {outcome.status} in {outcome.seconds:.1f} s {outcome.note}".rstrip())
        session.end(outcome)
    kinds = {outcome.name.partition(" ")[0] for outcome in ended}
    for row in saved.rows:
        if row.section in kinds:
            session.add(row)
