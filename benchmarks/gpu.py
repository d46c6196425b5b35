"""The GPU engine, checked and measured in one run of under 9 minutes: in: one GPU. Out: a table, JSON, a picture.

Correctness first (every kernel against float64, equality to the bit, a real model if there is one), all of it side by
side while the compiler works; then speed, one thing at a time: the chip's limits, decode, prefill, the offline mix,
forks, constraints, the host's share, deterministic mode, transformers' continuous batching, each kernel. On a machine
with a GPU, from the repository's folder, with nothing installed but torch, triton, transformers, tokenizers,
safetensors, msgspec, llguidance and rich:

    make types && export PYTHONPATH=$PWD/build/types:$PYTHONPATH PYTHONUNBUFFERED=1
    python3 -P benchmarks/gpu.py --out build/gpu

Ten minutes in all: what is right first (with pytest, hypothesis and pyzmq; processes compile side by side where
pytest-xdist is installed, else without -n), then speed in what is left:

    timeout 200 python3 -P -m pytest -q -n 8 --maxfail 20 -m "gpu and not model" -p no:cacheprovider \\
        tests/kernels/triton tests/runtime/test_cuda_engine.py
    python3 -P benchmarks/gpu.py --seconds 370 --out build/gpu

The work is done in a process of its own (`gpu_parts/supervise.py`): one that dies, or hangs, costs the section it was
at, and after --seconds everything ends. Logs, gpu-<device>.json and .png are in --out (default: benchmarks/results)
after every section. Exit status: 0; 1 when a section failed or something that must be right is not; 2 without a GPU.
`--dry-run` goes through everything at toy size in Triton's interpreter: its figures mean nothing, and no file is
written.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))  # for gpu_parts: -P leaves it out

if TYPE_CHECKING:
    from gpu_parts.report import Report
    from gpu_parts.session import Session

PACKAGES = ("torch", "triton", "transformers", "numpy", "llguidance")
HIDDEN = argparse.SUPPRESS  # for the processes that a run consists of


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
    parser.add_argument("--commit", default="", help="of the tree, for the JSON (default: git's)")
    parser.add_argument("--peer-options", default="{}", help="fields of the peer's ContinuousBatchingConfig, as JSON")
    parser.add_argument("--peer", default="", help=HIDDEN)
    parser.add_argument("--peer-seconds", type=float, default=60.0, help=HIDDEN)
    parser.add_argument("--state", type=Path, default=None, help=HIDDEN)
    parser.add_argument("--until", type=float, default=0.0, help=HIDDEN)
    return parser.parse_args()


def choice(value: str, known: tuple[str, ...], option: str) -> tuple[str, ...]:
    """The values of an option that takes several; ends the program for an unknown one."""
    found = tuple(part for part in value.split(",") if part)
    for part in found:
        if part not in known:
            sys.exit(f"{option} {part}: choose of {', '.join(known)}")
    return found


def output(*command: str) -> str:
    """What a program prints; nothing where it is missing or fails."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=HERE, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


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
        found |= {"l2": properties.L2_cache_size}
        found["driver"] = output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    date = options.date or datetime.datetime.now(datetime.UTC).date().isoformat()
    return found | {
        "date": date,
        "commit": options.commit or output("git", "rev-parse", "--short=12", "HEAD"),
        "cores": os.cpu_count(),
        "command": shlex.join(["benchmarks/gpu.py", *asked()]),
        "budget": options.seconds,
    }


def asked() -> list[str]:
    """The options that a user gave: without those of the processes."""
    given = sys.argv[1:]
    return given[: given.index("--state")] if "--state" in given else given


def opened(options: argparse.Namespace, models: tuple[str, ...]) -> Session:
    """The session that the options ask for, or the rest of one that another process began."""
    from gpu_parts.models import FULL, REHEARSAL, TOY, Models
    from gpu_parts.place import Place
    from gpu_parts.report import Report
    from gpu_parts.saved import read
    from gpu_parts.session import Session

    scale = TOY if options.dry_run else REHEARSAL if options.rehearse else FULL
    place = Place(toy=options.dry_run)
    report = Report(facts(place.name, options), written(options, place.name))
    deadline = options.until or time.monotonic() + options.seconds
    out = None if report.path is None else options.out
    session = Session(place, scale, report, Models(place, scale), out, deadline, models, options.real)
    session.state, session.peer_options = options.state, options.peer_options
    if (saved := options.state and read(options.state)) is not None:
        session.resume(saved)
    return session


def written(options: argparse.Namespace, device: str) -> Path | None:
    """Where a run's JSON goes; None: nowhere."""
    from gpu_parts.report import slug

    return None if options.dry_run or options.rehearse else options.out / f"gpu-{slug(device)}.json"


def main() -> int:
    """Run, print, write; the exit status."""
    options = arguments()
    if options.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    else:
        os.environ.pop("TRITON_INTERPRET", None)
    return worked(options) if options.state or options.rehearse or options.peer else supervised(options)


def worked(options: argparse.Namespace) -> int:
    """Be one of the processes of a run: the one that measures, one that rehearses, or the peer's."""
    if not options.dry_run:
        from ramet.runtime.device import look, unusable

        if reason := unusable(look()):
            print(f"benchmarks/gpu.py needs a GPU: {reason}; --dry-run goes through it without one", file=sys.stderr)
            return 2
    from gpu_parts import plan, session
    from gpu_parts.models import FULL, MODELS, TOY

    if options.peer:
        from gpu_parts.peer import serve

        name, scale = choice(options.peer, MODELS, "--peer")[0], TOY if options.dry_run else FULL
        serve(name, scale, options.peer_seconds, json.loads(options.peer_options))
    models = choice(options.models, MODELS, "--models")
    kinds = choice(options.only, plan.KINDS, "--only")
    opening = opened(options, models)
    try:
        chosen = plan.sections(kinds, models, toy=options.dry_run, limits=not options.rehearse)
        session.run(opening, chosen, watched=bool(options.until))
    except session.DeviceLost as error:
        print(f"the device does not answer any more, the next process goes on: {error}", file=sys.stderr, flush=True)
        os._exit(session.LOST)  # an orderly end would ask the device
    return 1 if opening.report.broken else 0


def supervised(options: argparse.Namespace) -> int:
    """A whole run: processes that measure, then the table, the picture, what is wrong."""
    from gpu_parts import supervise
    from gpu_parts.report import Report

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started must end too
    if written(options, "") is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "gpu.log").unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-P", str(HERE / "gpu.py"), *sys.argv[1:]]
        saved, status = supervise.run(command, Path(folder) / "state", options.seconds)
    if saved is None:
        return status
    path = written(options, str(saved.facts["device"]))
    report = Report(saved.facts, path, saved.rows, saved.outcomes)
    report.flush()
    told(report, options)
    return 1 if report.broken or (status and not saved.over) else 0


def told(report: Report, options: argparse.Namespace) -> None:
    """The end of a run."""
    from gpu_parts.picture import draw
    from rich.console import Console

    title = f"{report.facts['device']}, {report.facts['date']}"
    if options.dry_run:
        title += ": NO MEASUREMENT, toy sizes"
    console = Console(width=200, highlight=False, markup=False, record=True)
    console.print(report.table(title))
    for verdict in report.verdicts():  # last, where a terminal, and the end of a log, show them
        console.print(verdict, soft_wrap=True)
    for outcome in report.outcomes:
        if outcome.status != "done":
            console.print(f"{outcome.name}: {outcome.status}: {outcome.note}", soft_wrap=True)
    for wrong in report.broken:
        console.print(f"WRONG: {wrong}", soft_wrap=True)
    if report.path is not None:
        (options.out / "gpu.txt").write_text(console.export_text(), encoding="utf-8")
        drawn = draw(report, report.path.with_suffix(".png"))
        console.print(f"written to {report.path}" + (", and a picture" if drawn else ""), soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
