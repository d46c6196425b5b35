"""Smoke test of an installed ramet: in: the installed package, no repository. Out: "smoke: ok", or an exception.

A program on the Mock backend, then real tokens of a small random model on the engine.
"""

from __future__ import annotations

import shutil
import sys
from importlib.metadata import files
from pathlib import Path

import ramet as rt


@rt.function(temperature=0)
def smoke(s: rt.State, question: str) -> list[str]:
    """One question, two branches."""
    s += "Question: " + question + "\nAnswer:"
    branches = s.fork(2)
    for branch in branches:
        branch += rt.gen("answer", max_tokens=4)
    return [str(answer) for answer in branches.gather("answer")]


def main() -> None:
    """Run it in both places."""
    where = Path(rt.__file__).resolve()
    if "site-packages" not in where.parts:
        raise SystemExit(f"not the installed package: {where}")
    names = {str(name) for name in files("ramet") or []}
    if "ramet/py.typed" not in names:
        raise SystemExit("the wheel lacks ramet/py.typed")
    answers = smoke.using(backend=rt.Mock({"answer": "yes"}))("Is it there?").result(timeout=30)
    if answers != ["yes", "yes"]:
        raise SystemExit(f"Mock answered {answers!r}")
    with rt.Engine("random:tiny") as engine:
        run = smoke.using(backend=engine)("Is it there?")
        answers = run.result(timeout=120)
        generated = run.usage.generated_tokens
    if len(answers) != 2 or not 2 <= generated <= 8:
        raise SystemExit(f"the engine answered {answers!r} with {generated} tokens")
    native = "ramet/kernels/cpu/_ramet_cpu.so" in names
    if native:
        with rt.Engine("random:tiny", dtype="int8") as engine:
            smoke.using(backend=engine)("Is it there?").result(timeout=120)
    elif shutil.which("c++"):
        raise SystemExit("the wheel lacks the native kernels, and there is a compiler")
    sys.stdout.write(f"smoke: ok{'' if native else ' (without native kernels: no compiler)'}\n")


if __name__ == "__main__":
    main()
