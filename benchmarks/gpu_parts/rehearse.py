"""The compiler's work, done before the clock of the sections runs. In: what the run is going to launch. Out: a full
cache of compiled kernels on the disk.

Children go through the sections with models of one layer and few steps, all at once: compiling uses one core each, and
one after the other it would take longer than everything that is measured.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from gpu_parts.models import LLAMA8, MODELS, QWEN, SMOL
from gpu_parts.report import Row
from gpu_parts.session import Session

SECONDS = 100.0
ENGINE = "decode,prefill,mix,forks,structured"


def jobs() -> list[tuple[str, str]]:
    """(sections, model) of each child; those of most work first."""
    plain = [(ENGINE, model) for model in MODELS]
    exact = [("deterministic", model) for model in (LLAMA8, QWEN)]
    checks = [("check", model) for model in MODELS]
    timed = [("kernels", model) for model in (LLAMA8, QWEN)]
    return [*timed, *checks, *plain, *exact, ("ladder", SMOL)]


def run(session: Session) -> None:
    """Wait for all children, at most `SECONDS`: what they did not compile is compiled in its section."""
    began = time.monotonic()
    script = str(Path(__file__).resolve().parent.parent / "gpu.py")
    asked = [("limits", SMOL)] if session.scale.toy else jobs()
    children = []
    for number, (sections, model) in enumerate(asked):
        flag = "--dry-run" if session.scale.toy else "--rehearse"
        command = [sys.executable, "-P", script, flag, "--only", sections, "--models", model]
        log = os.devnull if session.out is None else str(session.out / f"rehearsal-{number}.log")
        with open(log, "w", encoding="utf-8") as stream:
            children.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    env=os.environ | {"OMP_NUM_THREADS": "1"},
                )
            )
    late = 0
    for child in children:
        try:
            child.wait(max(0.1, SECONDS - (time.monotonic() - began)))
        except subprocess.TimeoutExpired:
            late += 1
            child.kill()
            child.wait()
    failed = sum(child.returncode != 0 for child in children) - late
    note = f"{len(children)} processes, {late} stopped at {SECONDS:.0f} s, {failed} failed (their logs say why)"
    session.add(Row("rehearse", "compiling", time.monotonic() - began, "s", note=note))
