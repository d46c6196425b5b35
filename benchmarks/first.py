"""The first table: in: a model and this machine. Out: step time, prefill and decode rates by batch, the demo's ratio.

Each figure is the median of several repeats. Decode time per step is the difference between two runs of different
length, so that what both do (tokenising, the prompt, start and end of a program) cancels; prefill is a run of one token
over cold prompts. Prints a table and writes the same as JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

import ramet as rt
from ramet.examples.demo import tour

BATCHES = (1, 8, 32)
SHORT, LONG = 8, 40  # generated tokens of the two runs whose difference is timed
WORDS = 128  # of each prompt
COLUMNS = ("batch", "step ms", "decode tok/s", "prompt tokens", "prefill tok/s")


@rt.function(temperature=0, ignore_eos=True)
def decode(s: rt.State, branches: int, tokens: int) -> None:
    """`branches` generations of `tokens` tokens from one short prefix."""
    s += "Once upon a time"
    for branch in s.fork(branches):
        branch += f" number {branch.item}"
        branch += rt.gen("text", max_tokens=tokens)


@rt.function(temperature=0, ignore_eos=True)
def prefill(s: rt.State, prompts: list[str]) -> int:
    """One token after each prompt; the number of prompt tokens."""
    branches = s.fork(prompts)
    for branch in branches:
        branch += branch.item
        branch += rt.gen("token", max_tokens=1)
    return sum(branch.get_meta_info("token")["prompt_tokens"] for branch in branches)


def prompts_of(count: int, seed: int) -> list[str]:
    """`count` prompts without a common prefix, the same for the same seed."""
    rng = random.Random(seed)
    words = ["river", "stone", "green", "walks", "seven", "light", "under", "paper", "cold", "music"]
    return [f"{index} " + " ".join(rng.choices(words, k=WORDS)) for index in range(count)]


def seconds_of(act: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def measure(engine: rt.Backend, batch: int, repeats: int) -> dict[str, float]:
    """One row of the table."""
    steps, rates, tokens = [], [], 0
    generate, read = decode.using(backend=engine), prefill.using(backend=engine)
    generate(batch, 2).result()
    for repeat in range(repeats):
        short = seconds_of(lambda: generate(batch, SHORT).result())
        long = seconds_of(lambda: generate(batch, LONG).result())
        steps.append(max(long - short, 1e-9) / (LONG - SHORT))
        engine.flush_cache()
        start = time.perf_counter()
        tokens = read(prompts_of(batch, seed=repeat)).result()
        rates.append(tokens / (time.perf_counter() - start))
    step = statistics.median(steps)
    cells = (batch, 1e3 * step, batch / step, tokens, statistics.median(rates))
    return dict(zip(COLUMNS, cells, strict=True))


def ratio(engine: rt.Backend, repeats: int) -> dict[str, float]:
    """The demo: call by call over one program, in time, steps and computed tokens."""
    runs = [tour(engine, Console(file=io.StringIO())) for _ in range(repeats)]
    program, apart = runs[0]
    return {
        "seconds": statistics.median(apart.seconds / program.seconds for program, apart in runs),
        "steps": apart.steps / program.steps,
        "computed tokens": apart.computed_tokens / program.computed_tokens,
    }


def table(rows: list[dict[str, float]]) -> Table:
    """The rows for people."""
    out = Table()
    for name in COLUMNS:
        out.add_column(name, justify="right")
    for row in rows:
        out.add_row(*(f"{row[name]:.0f}" if name != "step ms" else f"{row[name]:.2f}" for name in COLUMNS))
    return out


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="default")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("build/bench/first.json"))
    options = parser.parse_args()

    console = Console()
    with rt.Engine(options.model, threads=options.threads) as engine:
        info = engine.info()
        rows = [measure(engine, batch, options.repeats) for batch in BATCHES]
        demo = ratio(engine, options.repeats)
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    console.print(f"{info['model']}, {info['dtype']}, {machine}, median of {options.repeats}", highlight=False)
    console.print(table(rows))
    parts = ", ".join(f"{value:.2f} x the {name}" for name, value in demo.items())
    console.print(f"demo, call by call over one program: {parts}", highlight=False, soft_wrap=True)

    result = {"model": info["model"], "dtype": info["dtype"], "machine": machine, "repeats": options.repeats}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({**result, "rows": rows, "demo": demo}, indent=2) + "\n", encoding="utf-8")
    console.print(f"written to {options.out}", highlight=False)


if __name__ == "__main__":
    main()
