"""Fourteen programs of many calls, each written by an expert against an OpenAI-style server and in our language.

In: a model. Out: a table, JSON, a picture: what each way sends, computes and takes, rung by rung
(programs_parts/session.py says what the rungs are; programs_parts/bodies.py and experts.py are the programs).

Lengths are fixed and end tokens ignored; texts come from seeded templates, others in each round; caches are emptied
before a workload. "sent" are submissions that ask for something; "computed" is counted by the engine (for llama.cpp:
prompt tokens that its answers do not report as cached, and decoded ones); "/distinct" is computed tokens over those
that any order of computing needs. Seconds are medians over rounds, p50 and p95 those of a program's end, "first" of its
first text, all from the workload's begin. "same" is the share of programs whose
results are those of "whole". "x expert" is the seconds of the expert client on ramet serve over the row's.

    python -P benchmarks/programs.py                          all of it, a round on two cores takes some ten minutes
    python -P benchmarks/programs.py --only W06,W11 --rungs expert,calls,whole,toggles --rounds 3
    python -P benchmarks/programs.py --check                  counts alone, on a random model: 1 when a gate is broken
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from ramet.frontend.errors import EngineError, ModelError
from ramet.runtime.models import hub
from ramet.runtime.models.fetch import cache_directory

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))  # for programs_parts and its neighbours: -P leaves it out

if TYPE_CHECKING:
    from programs_parts.report import Report

PACE = 0.005  # of tools beside a tiny model
STEADY = 0.25  # seconds that counted programs may pause while they record: a busy machine cuts no submission in two
CHECKED = ("calls", "whole", "plan", "toggles")


def arguments() -> argparse.Namespace:
    """The command line."""
    from programs_parts.catalog import WORKLOADS
    from programs_parts.session import RUNGS

    labels = [workload.label for workload in WORKLOADS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(labels), help="workloads: W03,W06")
    parser.add_argument("--rungs", default="", help=",".join(RUNGS))
    parser.add_argument("--scale", type=int, default=1, help="times as many programs of each kind")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--model", default="", help='"default"; with --check "random:tiny"')
    parser.add_argument(
        "--dtype", default="auto", help="of ours; llama.cpp has Q8_0 for int8, Q4_0 for int4, else BF16"
    )
    parser.add_argument("--threads", type=int, default=0, help="of each engine; 0 is one per core")
    parser.add_argument("--check", action="store_true", help="counts alone; the exit status is 1 when a gate is broken")
    parser.add_argument("--estimates", action="store_true", help="what plans expect of runs, and what those cost")
    parser.add_argument("--prepare", action="store_true", help="compile llama.cpp's server, measure nothing")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--quiet", action="store_true", help="say nothing on the way")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for programs.json and programs.png")
    options = parser.parse_args()
    options.rungs = options.rungs or ",".join(CHECKED if options.check else RUNGS)
    options.model = options.model or ("random:tiny" if options.check else "default")
    for name, known in (("only", labels), ("rungs", RUNGS)):
        given = [each.strip() for each in getattr(options, name).split(",") if each.strip()]
        wrong = [each for each in given if each not in known]
        if wrong or not given:
            parser.error(f"--{name} {','.join(wrong)}: must be some of {', '.join(known)}")
        setattr(options, name, given)
    for name in ("scale", "rounds"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)}: must be at least 1")
    if options.threads < 0:
        parser.error(f"--threads {options.threads}: must be at least 0")
    if options.check and {"llama.cpp", "expert", "sglang"} & set(options.rungs):
        parser.error(f"--check looks at counts of: {', '.join(CHECKED)}")
    return options


def measured(options: argparse.Namespace) -> Report:
    """The whole run. Raises `EngineError`, `ModelError`."""
    from programs_parts import llamaserver
    from programs_parts.catalog import WORKLOADS
    from programs_parts.places import ROOM, Places, Setting
    from programs_parts.report import Report
    from programs_parts.session import measure

    console = Console(stderr=True, highlight=False)
    say = (lambda text: None) if options.quiet or options.check else console.print
    workloads = [workload for workload in WORKLOADS if workload.label in options.only]
    source = hub.resolve(options.model)
    llama: Path | None = None
    absent = ""
    if "llama.cpp" in options.rungs:
        try:
            if source.kind != "gguf":
                raise llamaserver.NotInstalled(f"{source.name} is no .gguf file")
            llamaserver.ready(cache_directory(), options.dtype)
            llama = cache_directory()
        except llamaserver.NotInstalled as error:
            absent = str(error)
    facts = {"model": source.name, "dtype": options.dtype, "machine": _machine(), "rounds": options.rounds}
    facts |= {"scale": options.scale, "threads": options.threads, "python": platform.python_version()}
    report = Report(facts, workloads)
    rungs = [rung for rung in options.rungs if rung != "llama.cpp" or llama is not None]
    for workload in workloads if absent else ():
        report.lack(workload, "llama.cpp", absent)
    kv = ROOM * options.scale
    pace, steady = (PACE, STEADY) if options.check else (1.0, 0.0)
    setting = Setting(options.model, options.dtype, options.threads, options.check, kv, llama, pace, say, steady)

    def keep(unfinished: Report) -> None:
        if not options.check:
            written(unfinished, options.out)

    with Places(setting) as places:
        measure(places, rungs, options.rounds, options.scale, report, keep)
    return report


def estimated(options: argparse.Namespace) -> int:
    """What plans expect, beside what runs cost. The exit status: 1 when the median error is too large."""
    from programs_parts import estimates
    from programs_parts.catalog import WORKLOADS
    from programs_parts.places import ROOM, Places, Setting

    setting = Setting(options.model, options.dtype, options.threads, True, ROOM * options.scale, pace=PACE)
    with Places(setting) as places:
        found = [estimates.guessed(places, each, options.scale) for each in WORKLOADS if each.label in options.only]
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=160)
    console.print(estimates.table(found))
    return int(estimates.overall(found) > estimates.MOST)


def _machine() -> str:
    from cpu import processor

    return processor()


def written(report: Report, folder: Path) -> str:
    """The JSON of a report; also its file."""
    folder.mkdir(parents=True, exist_ok=True)
    found = json.dumps(report.as_json(), indent=2)
    (folder / "programs.json").write_text(found + "\n", encoding="utf-8")
    return found


def told(report: Report, options: argparse.Namespace) -> None:
    """The end of a run: the table or JSON, the files."""
    from programs_parts.report import draw

    facts = report.facts
    title = f"{facts['model']}, {facts['dtype']}, {facts['machine']}, medians of {facts['rounds']}"
    found = json.dumps(report.as_json(), indent=2)
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=220)
    if options.json:
        print(found)
    else:
        console.print(report.table(title))
        for (label, rung), why in report.lacks.items():
            console.print(f"no {rung} of {label}: {why}", markup=False)
        if report.control is not None:
            console.print(f"plain chat (W00): seconds whole / by calls: {report.control:.3f}; 0.95 to 1.05 is fair")
    if options.check:
        return
    written(report, options.out)
    drawn = draw(report, title, options.out / "programs.png")
    if not options.json:
        console.print(f"written to {options.out / 'programs.json'}" + (", and a picture" if drawn else ""))


def main() -> int:
    """Measure, print, write. The exit status: 1 when something is refused, or a gate of --check is broken."""
    options = arguments()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        if options.prepare:
            from programs_parts.llamaserver import NotInstalled, build

            try:
                print(build(cache_directory()))
            except NotInstalled as error:
                print(f"benchmarks/programs.py: {error}", file=sys.stderr)
                return 1
            return 0
        if options.estimates:
            return estimated(options)
        report = measured(options)
    except (EngineError, ModelError) as error:
        print(f"benchmarks/programs.py: {error}", file=sys.stderr)
        return 1
    told(report, options)
    if not options.check:
        return 0
    from programs_parts.gates import broken

    wrong = broken(report)
    for each in wrong:
        print(f"broken: {each}", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
