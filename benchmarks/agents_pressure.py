"""Agents under memory pressure, by scheduling policy: in: a model. Out: tokens computed for each distinct one, and
mean completion.

Each agent has a text of its own and several turns, each a generation and a tool that takes time. The KV pool holds a
share of what all of them have in the end. What is distinct is what an engine with room for all computes. `pressure`
is one round on an engine; the second round on the same engine meets one that has learned how such programs grow. (The
virtual-time twin of this, with every answer checked, is in tests/sim.)
"""

from __future__ import annotations

import argparse
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

import ramet as rt

WORDS = ("tree", "river", "stone", "cloud", "night", "lamp", "paper", "road", "salt", "wind", "door", "glass", "field")
ACT = 24  # tokens of an act
POLICIES = ("lru-fcfs", "age", "peak")


@dataclass(frozen=True, slots=True)
class Round:
    """What one round of agents cost: tokens computed, and the mean of the agents' seconds."""

    computed: int
    mean: float


def words(seed: str, count: int) -> str:
    """So many words, the same ones for the same seed."""
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(count))


@rt.function
def agent(s: rt.State, number: str, turns: int, session: int, slowest: float, reads: bool = True) -> str:
    """A session's text, then turns of an act and a tool that takes it. Python `reads` each act before it goes on; else
    the engine has the whole program at once, with places for what the tools will say."""

    def tool(turn: int, act: str) -> str:
        rng = random.Random(f"{number} {turn}")
        time.sleep(rng.uniform(slowest / 6, slowest))
        return words(f"{number} {turn}", rng.randint(6, 16))

    s += f"Session {number}: {words(number, session)}\n"
    for turn in range(turns):
        s += "Act:"
        act = s.gen(name=f"act{turn}", max_tokens=ACT, ignore_eos=True, temperature=0)
        if reads:
            act.get()
        if turn + 1 < turns:
            s += "\nResult: "
            s += s.call(tool, turn, act)
            s += "\n"
    return s.text()


def pressure(
    engine: rt.Engine,
    *,
    agents: int = 12,
    turns: int = 6,
    session: int = 280,
    slowest: float = 0.3,
    reads: bool = True,
    label: str = "",
) -> Round:
    """One round of agents at once on an engine; `slowest`: seconds of a tool at most; `reads`: see `agent`. Rounds of
    another `label` have other texts."""

    def one(number: int) -> tuple[int, float]:
        began = time.perf_counter()
        run = agent.using(backend=engine)(f"{label}{number}", turns, session, slowest, reads)
        run.result()
        return run.usage.computed_tokens, time.perf_counter() - began

    with ThreadPoolExecutor(agents) as pool:
        done = list(pool.map(one, range(agents)))
    return Round(sum(computed for computed, _ in done), sum(seconds for _, seconds in done) / agents)


def compare(model: str, *, share: float, sizes: dict[str, Any], engine: dict[str, Any]) -> list[dict[str, Any]]:
    """Two rounds under each policy, in a pool of `share` of what they need. `sizes`: arguments of `pressure`; `engine`:
    options of `Engine`."""
    with rt.Engine(model, **engine) as roomy:
        distinct = pressure(roomy, **sizes).computed
    rows = []
    for policy in POLICIES:
        with rt.Engine(model, **{**engine, "kv_tokens": int(share * distinct), "policy": policy}) as tight:
            for which in ("first", "again"):
                found = pressure(tight, **sizes)
                tight.flush_cache()
                rows.append({"policy": policy, "round": which, **asdict(found), "waste": found.computed / distinct})
    return rows


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="default")
    parser.add_argument("--agents", type=int, default=12)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--session", type=int, default=280, help="words of an agent's own text")
    parser.add_argument("--slowest", type=float, default=0.3, help="seconds of a tool, at most")
    parser.add_argument("--share", type=float, default=0.45, help="of the sum of the agents' peaks: the KV pool")
    parser.add_argument("--threads", type=int, default=0, help="of the engine; 0 is one per core")
    parser.add_argument("--unread", action="store_true", help="no act is read: the engine knows all turns at once")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    sizes = {name: getattr(options, name) for name in ("agents", "turns", "session", "slowest")}
    sizes["reads"] = not options.unread
    rows = compare(options.model, share=options.share, sizes=sizes, engine={"threads": options.threads})
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    table = Table()
    for name in rows[0]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
