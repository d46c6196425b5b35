"""The CPU's runners beside what its cores can do, in one run. In: a model. Out: a table, JSON, a picture.

Limits: read bandwidth (all threads, one thread, small pages) and products per second on registers, and `ramet_linear`
on operands that fit the caches (`cpu_parts/limits.py`). Then, in tokens/s and as a share of the floor:

    prefill  one prompt; its tokens / seconds
    decode   a step of a batch of sequences that share nothing; batch / seconds
    overhead milliseconds of the loop's CPU time in a step of one sequence beside the forward's one C call: planning,
             sampling, Python, messages over the sockets of an engine's process
    shared   one prefix, a fork, some text and a call in each branch, through `rt.Engine`, the call to the last token:
             tokens made / seconds

    floor of a forward = max(bytes / bandwidth, products / rate + attention / bf16 rate), cpu_parts/floors.py:
      bytes     = packed weights + 2 * layers * kv_heads * head_dim * 2 for every position whose K and V are read
      products  = 2 * weights for each token (the head: for each token whose logits are wanted)
      attention = 4 * layers * heads * head_dim for each pair of a token and a position that it sees

prefill and decode are calls of the runners (`NativeRunner`, and `TorchRunner` in bfloat16), greedy sampling included,
in one process with its threads pinned. shared is whole processes, unpinned, with text, planning and messages; the
engine has the dtypes int8 and int4 of the native kernels, and torch. `--only grouped` is apart: the decode step of a
fork's branches with their prefix read once, against the same step without; `native.PAYS` is taken from it.

The runners take turns, and each turn begins with another one; the first turn is a warm-up and is left out. 512-token
prompts, contexts of 128 and 1,024 tokens, batches of 1 to 64, and 64 x (1,000 shared + 50 own + 32 made) unless options
say otherwise. Two cores take 6 minutes, most of them for torch (`--runners`, `--turns`); four KV pools of 1.5 GB are
filled side by side:

    python -P benchmarks/cpu.py --out build/bench
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from ramet.frontend.errors import EngineError, ModelError
from ramet.kernels.cpu import library
from ramet.runtime import native
from ramet.runtime.models import hub
from ramet.runtime.sizing import cores

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))  # for cpu_parts and gpu_parts: -P leaves it out

if TYPE_CHECKING:
    from cpu_parts.session import Session


def arguments() -> argparse.Namespace:
    """The command line."""
    from cpu_parts import grouped
    from cpu_parts.runners import NAMES
    from cpu_parts.session import ALL, SECTIONS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default")
    parser.add_argument("--threads", type=int, default=0, help="0 is one per core")
    parser.add_argument("--turns", type=int, default=5, help="beside the one that warms up")
    parser.add_argument("--only", nargs="+", default=SECTIONS, choices=ALL, help="sections beside the limits")
    parser.add_argument("--runners", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prefill")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32, 64])
    parser.add_argument("--contexts", nargs="+", type=int, default=[128, 1024])
    parser.add_argument("--steps", type=int, default=4, help="of a decode figure in each turn")
    parser.add_argument("--branches", type=int, default=64, help="of the shared prefix, and:")
    parser.add_argument("--prefix", type=int, default=1000, help="its tokens")
    parser.add_argument("--own", type=int, default=50, help="tokens of a branch's own text")
    parser.add_argument("--made", type=int, default=32, help="tokens that a branch makes")
    parser.add_argument("--members", nargs="+", type=int, default=grouped.MEMBERS, help="of a group, and:")
    parser.add_argument("--prefixes", nargs="+", type=int, default=grouped.PREFIXES, help="tokens that it shares")
    parser.add_argument("--block", type=int, default=256, help="MiB that are read for the bandwidth")
    parser.add_argument("--pin", action=argparse.BooleanOptionalAction, default=True, help="a core for each thread")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--out", type=Path, help="folder for cpu.json and, with matplotlib, cpu.png")
    options = parser.parse_args()
    sizes = ("turns", "prompt", "steps", "branches", "prefix", "own", "made", "block")
    lists = ("batches", "contexts", "members", "prefixes")
    least = {**{name: [getattr(options, name)] for name in sizes}, **{name: getattr(options, name) for name in lists}}
    for name, values in least.items():
        if min(values) < 1:
            parser.error(f"--{name} {min(values)}: must be at least 1")
    return options


def processor() -> str:
    """The model of this machine's cores, for people."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def opened(options: argparse.Namespace) -> Session:
    """The session that the options ask for."""
    from cpu_parts.pins import can_pin
    from cpu_parts.report import Report
    from cpu_parts.session import Session

    source = hub.resolve(options.model)
    threads = options.threads or cores()
    facts = {
        "model": source.name,
        "processor": processor(),
        "threads": threads,
        "level": library.load().level,
        "pinned": bool(options.pin and can_pin()),
        "turns": options.turns,
        "python": platform.python_version(),
    }
    return Session(options, source, hub.load_spec(source), threads, Report(facts))


def told(session: Session) -> None:
    """The end of a run: the table or JSON, the files."""
    from cpu_parts import grouped
    from cpu_parts.report import draw

    options, report = session.options, session.report
    facts = report.facts
    title = (
        f"{facts['model']}, {facts['processor']}, {facts['threads']} threads, {facts['level']}, "
        f"{'pinned' if facts['pinned'] else 'not pinned'}, medians of {facts['turns']} turns"
    )
    found = json.dumps(report.as_json(), indent=2)
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=180)
    if options.json:
        print(found)
    else:
        if any(each.section != grouped.SECTION for each in report.figures):
            console.print(report.table(title))
        else:
            console.print(title)
        for name in dict.fromkeys(each.runner for each in report.figures if each.section == grouped.SECTION):
            console.print(grouped.table(report.figures, name, facts["threads"]))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "cpu.json").write_text(found + "\n", encoding="utf-8")
        drawn = draw(report.figures, title, options.out / "cpu.png")
        if not options.json:
            console.print(f"written to {options.out / 'cpu.json'}" + (", and a picture" if drawn else ""))


def main() -> int:
    """Measure, print, write. The exit status: 1 when the model or a size is refused, 2 without native kernels."""
    from cpu_parts.session import measure

    options = arguments()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # torch's threads must not take the cores from the others'
    if reason := native.available():
        print(f"benchmarks/cpu.py needs the native kernels: {reason}", file=sys.stderr)
        return 2
    try:
        session = opened(options)
        measure(session)
    except (EngineError, ModelError) as error:
        print(f"benchmarks/cpu.py: {error}", file=sys.stderr)
        return 1
    told(session)
    return 0


if __name__ == "__main__":
    sys.exit(main())
