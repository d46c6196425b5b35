"""ramet beside other engines on a CPU, in one run. In: a model. Out: figures, ratios, JSON, a picture.

Peers (`--peers`): llama.cpp, OpenVINO GenAI, transformers, and vLLM's CPU build where it is named. Each has a virtual
environment of its own and weights in its own format, made from the same file on the first run and kept in the cache.
A peer that cannot be installed is named with the reason and left out. Every figure is taken by a process that is
launched anew in each round; the engines take turns, and each round begins with another one.

    start      process to first token: text in, text out
    prefill    tokens of one prompt / seconds until the token after it
    decode N   tokens / seconds of N sequences that share nothing, without their prompts
    prefixed   one prefix, then N texts after it; the user says what is shared: a fork with us, what the library offers
               with the peers (the prefix sent first, its cache copied); to the last token
    shared     the same as N whole prompts given at once, for the engines that find by themselves what is shared

Prompts are the same tokens everywhere, greedy, end tokens ignored. Ours is `rt.Engine`, with text, scheduler, sampling
and messages; peers get token ids, so that their tokenizers are in "start" only. All have as many threads, and huge
pages where their allocator can ask for them. `bits` are those of a weight: compare rows of the same bits for equal
precision; all were made from one file with blocks of 4 bits. "same ids": how many greedy tokens of one sequence equal
those of transformers in bfloat16. Everything takes some 15 minutes a round on two cores; a choice that takes six:

    python -P benchmarks/peers.py --rounds 3 --out build/bench --peers ramet:int8 ramet:int4 llama.cpp:Q4_0 \\
        llama.cpp:bf16 openvino:int8 transformers:bf16
"""

from __future__ import annotations

import argparse
import json
import platform
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from ramet.frontend.errors import EngineError, ModelError
from ramet.kernels.cpu import library
from ramet.runtime import native
from ramet.runtime.models import hub
from ramet.runtime.models.fetch import cache_directory
from ramet.runtime.models.tokenizer import load_tokenizer
from ramet.runtime.sizing import cores

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))  # for peers_parts and its neighbours: -P leaves it out

if TYPE_CHECKING:
    from peers_parts.report import Report
    from peers_parts.work import Sizes

KINDS = ("start", "prefill", "decode", "prefixed", "shared")
_FULL = {"prompt": 512, "context": 32, "tokens": 64, "branches": 64, "prefix": 1000, "own": 50, "made": 32}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default")
    parser.add_argument("--peers", nargs="+", default=[], metavar="NAME[:SETTING]", help="beside ours")
    parser.add_argument("--only", nargs="+", default=KINDS, choices=KINDS, help="columns")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=90.0, help="that one figure may take; then it is cut")
    parser.add_argument("--threads", type=int, default=0, help="0 is one per core")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32, 64], help="of decode")
    helps = ("of the prefill", "before a decode figure", "made for it", "of the shared prefix, and:", "its tokens",
             "tokens of a branch's own text", "tokens that a branch makes")  # fmt: skip
    for (name, value), text in zip(_FULL.items(), helps, strict=True):
        parser.add_argument(f"--{name}", type=int, default=value, help=text)
    parser.add_argument("--adapters", type=Path, help="folder with further adapters")
    parser.add_argument("--venvs", type=Path, help="folder of the peers' environments; the cache has them by default")
    parser.add_argument("--prepare", action="store_true", help="install and convert what is missing, measure nothing")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for peers.json and peers.png")
    options = parser.parse_args()
    least = {name: getattr(options, name) for name in ("rounds", "seconds", *_FULL)}
    for name, value in {**least, "batches": min(options.batches)}.items():
        if not value >= 1:
            parser.error(f"--{name} {value}: must be at least 1")
    if options.threads < 0:
        parser.error(f"--threads {options.threads}: must be at least 0")
    return options


def measured(options: argparse.Namespace) -> Report | None:
    """The whole run; None when nothing was to be measured. Raises `ModelError`, `EngineError`."""
    from peers_parts import session, weights, work
    from peers_parts.catalog import ADAPTERS, OURS, chosen, peers
    from peers_parts.report import Report

    folders = [ADAPTERS] + ([options.adapters] if options.adapters else [])
    picked = chosen(peers(folders), options.peers)
    source = hub.resolve(options.model)
    spec = hub.load_spec(source)
    sizes = work.Sizes(batches=tuple(options.batches), **{name: getattr(options, name) for name in _FULL})
    _fits(sizes, spec.context)
    cache = cache_directory() / "peers"
    files = {"model": options.model, "gguf": str(source.path)}
    models = cache / "models" / "random"
    if any(peer.reads_weights for peer, _ in picked):
        models = cache / "models" / weights.key(source)
        files["hf"] = str(weights.directory(source, spec, models))
    threads = options.threads or cores()
    job = work.job(load_tokenizer(source), sizes) | {"threads": threads, "weights": files}
    facts = {"model": source.name, "processor": _processor(), "threads": threads, "rounds": options.rounds}
    facts |= {"python": platform.python_version(), "sizes": {name: getattr(options, name) for name in _FULL}}
    columns = [name for name in sizes.columns if name.partition(" ")[0] in options.only]
    report = Report(facts, [variant for _, variant in picked], columns)
    ready = session.subjects(picked, job, options.venvs or cache / "venvs", models, report.skipped)
    report.variants = [subject.variant for subject in ready]
    report.lacks = {subject.peer.name: subject.peer.lacks for subject in ready}
    if options.prepare:
        return None
    if not any(variant.peer == OURS for variant in report.variants):
        raise EngineError(f"ramet itself: {report.skipped[OURS]}")
    limits, close = _meter(threads)
    session.measure(ready, columns, options.rounds, options.seconds, report, limits)
    close()
    return report


def _fits(sizes: Sizes, context: int) -> None:
    if sizes.longest > context:
        raise ModelError(f"--model: its context of {context} tokens is too small for sequences of {sizes.longest}")


def _processor() -> str:
    from cpu import processor

    return processor()


def _meter(threads: int) -> tuple[Callable[[], dict[str, float]], Callable[[], None]]:
    """What measures this machine's limits, in GB/s and Gop/s, and what ends it; nothing without native kernels."""
    if native.available():
        return dict, lambda: None
    from cpu_parts.limits import Meter

    meter = Meter(library.load(), threads, (), 256 << 20)

    def limits() -> dict[str, float]:
        found, _ = meter()
        huge, small = found.bandwidth / 1e9, found.small_pages / 1e9
        return {"read": huge, "read_small_pages": small, "bf16": found.bf16 / 1e9, "int8": found.int8 / 1e9}

    return limits, meter.close


def told(report: Report, options: argparse.Namespace) -> None:
    """The end of a run: tables or JSON, the files."""
    from peers_parts.report import draw

    facts = report.facts
    read = sorted(each["read"] for each in report.limits if each)
    bandwidth = f", reading {read[len(read) // 2]:.0f} GB/s" if read else ""
    title = (
        f"{facts['model']}, {facts['processor']}, {facts['threads']} threads{bandwidth}, medians of {facts['rounds']}"
    )
    found = json.dumps(report.as_json(), indent=2)
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=200)
    if options.json:
        print(found)
    else:
        console.print(report.table(title))
        console.print(report.ratio_table())
        for name, why in report.skipped.items():
            console.print(f"left out: {name}: {why}", markup=False)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "peers.json").write_text(found + "\n", encoding="utf-8")
    drawn = draw(report, title, options.out / "peers.png")
    if not options.json:
        console.print(f"written to {options.out / 'peers.json'}" + (", and a picture" if drawn else ""))


def main() -> int:
    """Measure, print, write. The exit status: 1 when something that was asked for is refused."""
    options = arguments()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # what was launched ends with us
    try:
        report = measured(options)
    except (EngineError, ModelError) as error:
        print(f"benchmarks/peers.py: {error}", file=sys.stderr)
        return 1
    if report is not None:
        told(report, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
