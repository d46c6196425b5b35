"""The GPU engine, checked and measured in one run of under 9 minutes: in: one GPU. Out: a table, JSON, a picture.

Correctness first (every kernel against float64, equality to the bit, a real model if there is one), then speed: the
chip's limits, decode, prefill, the offline mix, forks, constraints, the host's share, deterministic mode, transformers'
continuous batching, each kernel. On a machine with a GPU, from the repository's folder, with nothing installed but
torch, triton, transformers, tokenizers, safetensors, msgspec and rich:

    make types && export PYTHONPATH=$PWD/build/types:$PYTHONPATH PYTHONUNBUFFERED=1
    python3 -P benchmarks/gpu.py --out build/gpu

Ten minutes in all: what is right first (with pytest, hypothesis and pyzmq; processes compile side by side where
pytest-xdist is installed, else without -n), then speed in what is left:

    timeout 200 python3 -P -m pytest -q -n 8 --maxfail 20 -m "gpu and not model" -p no:cacheprovider \\
        tests/kernels tests/runtime/test_cuda_engine.py
    python3 -P benchmarks/gpu.py --seconds 370 --out build/gpu

Logs, gpu-<device>.json and .png are in --out (default: benchmarks/results) after every section. Exit status: 0; 1 when
a section failed or something that must be right is not; 2 without a GPU. `--dry-run` goes through everything at toy
size in Triton's interpreter: its figures mean nothing, and no file is written.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import shlex
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))  # for gpu_parts: -P leaves it out

if TYPE_CHECKING:
    from gpu_parts.session import Session

PACKAGES = ("torch", "triton", "transformers", "numpy")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for JSON, picture and logs")
    parser.add_argument("--seconds", type=float, default=530.0, help="budget; what would not end in it is skipped")
    parser.add_argument("--only", default="", help="kinds of sections, separated by commas")
    parser.add_argument("--models", default="", help="models, separated by commas")
    parser.add_argument("--real", type=Path, default=None, help="a .gguf file to compare with the CPU")
    parser.add_argument("--date", default="", help="of the run, for the JSON (default: this machine's)")
    parser.add_argument("--dry-run", action="store_true", help="toy sizes on the CPU, in Triton's interpreter")
    parser.add_argument("--rehearse", action="store_true", help="one layer, few steps, no files: fills Triton's cache")
    parser.add_argument("--peer", default="", help="be the peer's process for this model")
    return parser.parse_args()


def choice(value: str, known: tuple[str, ...], option: str) -> tuple[str, ...]:
    """The values of an option that takes several; ends the program for an unknown one."""
    found = tuple(part for part in value.split(",") if part)
    for part in found:
        if part not in known:
            sys.exit(f"{option} {part}: choose of {', '.join(known)}")
    return found


def facts(device: str, options: argparse.Namespace) -> dict[str, Any]:
    """What the figures hold for."""
    import torch

    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    found: dict[str, Any] = {"device": device, "cuda": torch.version.cuda, "versions": versions}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {"multiprocessors": properties.multi_processor_count, "memory": properties.total_memory}
    date = options.date or datetime.datetime.now(datetime.UTC).date().isoformat()
    return found | {
        "date": date,
        "command": shlex.join(["benchmarks/gpu.py", *sys.argv[1:]]),
        "budget": options.seconds,
    }


def opened(options: argparse.Namespace, models: tuple[str, ...]) -> Session:
    """The session that the options ask for."""
    from gpu_parts.models import FULL, REHEARSAL, TOY, Models
    from gpu_parts.place import Place
    from gpu_parts.report import Report, slug
    from gpu_parts.session import Session

    scale = TOY if options.dry_run else REHEARSAL if options.rehearse else FULL
    place = Place(toy=options.dry_run)
    out = None if options.dry_run or options.rehearse else options.out
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "gpu.log").unlink(missing_ok=True)
    path = None if out is None else out / f"gpu-{slug(place.name)}.json"
    report = Report(facts(place.name, options), path)
    deadline = time.monotonic() + options.seconds
    return Session(place, scale, report, Models(place, scale), out, deadline, models, options.real)


def main() -> int:
    """Run, print, write; the exit status."""
    options = arguments()
    if options.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    else:
        os.environ.pop("TRITON_INTERPRET", None)
        from ramet.runtime.device import look, unusable

        if reason := unusable(look()):
            print(f"benchmarks/gpu.py needs a GPU: {reason}; --dry-run goes through it without one", file=sys.stderr)
            return 2
    from gpu_parts import plan, session
    from gpu_parts.models import FULL, MODELS, TOY

    if options.peer:
        from gpu_parts.peer import serve

        serve(choice(options.peer, MODELS, "--peer")[0], TOY if options.dry_run else FULL)
    models = choice(options.models, MODELS, "--models")
    kinds = choice(options.only, plan.KINDS, "--only")
    opening = opened(options, models)
    session.run(opening, plan.sections(kinds, models, toy=options.dry_run, limits=not options.rehearse))
    return told(opening, options)


def told(session: Session, options: argparse.Namespace) -> int:
    """The end of a run: the table, the picture, what is wrong."""
    from gpu_parts.picture import draw
    from rich.console import Console

    report = session.report
    title = f"{report.facts['device']}, {report.facts['date']}"
    if options.dry_run or options.rehearse:
        title += ": NO MEASUREMENT, toy sizes" if options.dry_run else ": a rehearsal"
    console = Console(width=200, highlight=False, record=True)
    console.print(report.table(title))
    for outcome in report.outcomes:
        if outcome.status != "done":
            console.print(f"{outcome.name}: {outcome.status}: {outcome.note}", soft_wrap=True)
    for wrong in report.broken:
        console.print(f"WRONG: {wrong}", soft_wrap=True)
    if session.out is not None and report.path is not None:
        (session.out / "gpu.txt").write_text(console.export_text(), encoding="utf-8")
        drawn = draw(report, report.path.with_suffix(".png"))
        console.print(f"written to {report.path}" + (", and a picture" if drawn else ""), soft_wrap=True)
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
