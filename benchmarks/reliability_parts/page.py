"""The page: in: the scoreboard's JSON. Out: docs/reliability.md, all of it from the JSON and the catalog."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reliability_parts.catalog import PROMISES

HEAD = """# Reliability: what is promised, and what was measured

This page is written by a program, from [the last run](../{results}):

```
{command} --page docs/reliability.md
```

{date}, commit `{commit}`, {machine}, {cores} cores, {memory}, Python {python}; models `{tiny}` and `{real}`;
{seconds} in all, load average {load:.1f} at its end. {whole}

A row is **kept** when every figure with a bound is inside it, by two standard errors where a figure has an error;
**broken** when one is outside; **not measured** when the run cannot tell. Servers are real processes
(`ramet serve`), clients real sockets on the loopback interface, on the same machine.

| | promise | measured | verdict |
|---|---|---|---|
{rows}

## How

{how}

## The rules

Each rule of safety has tests that carry its number, and for each of them a positive control: the rule switched off, or
a fault seeded, and the same check fails.

| rule | what | tests |
|---|---|---|
{rules}

## What is not promised

{unpromised}
"""

RULES: Mapping[str, str] = {
    "R1": "no pickle, no eval, one listening socket; between processes only schema-checked messages",
    "R2": "weights: safetensors and GGUF, every offset, size and count checked before anything is allocated",
    "R3": "chat templates: sandboxed, from the operator or the model, never from a request, bounded at start",
    "R4": "grammars: limits first, compiled in a process that can be killed",
    "R5": "sampling: one struct, bounds on every field; programs: bounds on operations, forks, tokens, time",
    "R6": "bodies: counted as they arrive, no compression, time-outs, bounded connections and nesting",
    "R7": "no tensors from clients",
    "R8": "no outbound connection, no path that a client names",
    "R9": "prefix caches apart by key and salt",
    "R10": "ids made by the server, aborts exact, buffers rewritten",
    "R11": "authentication: deny by default (`/health`, `/ready` and `/ping` are open, `/metrics` with "
    "`--metrics-public`), constant time, no open address without a key",
    "R12": "text: no surrogates, bounded prompts, control tokens typed by a user are text, logs without prompts",
    "R13": "the journal: JSON in SQLite, hashed, 0600",
}

UNPROMISED = (
    "**Pace beside large bodies.** A body above 256 kB is parsed beside the one event loop, and checked against its "
    "request's fields in it: one of 4 MB, the default limit, costs the loop up to a tenth of a second of its "
    "processor. `--max-body` lowers the limit.",
    "**The first constraint.** What compiles constraints is loaded after the server is ready: one that comes in those "
    "first seconds waits for it, and its 2 s count from then; a stream that runs then pauses once, for up to 0.4 s.",
    "**More than two tenants' timing.** The probe compares two keys on an idle machine. Tenants share cores and "
    "batches, so that one can see how busy the server is, though not with what.",
    "**Secret constraints.** Compiled constraints are kept for all tenants together: by the time to a first token one "
    "can tell whether anybody has sent the very same pattern or schema before.",
    "**15 s on a choked machine.** An engine whose own answers took more than 0.65 s lately is given 20 times as long "
    "as the slowest of them before it counts as standing still.",
    "**Several machines.** One server, one engine, one machine: when the machine is lost, so is what was under way, "
    "unless a journal was kept.",
    "**GPUs.** These rows were measured on a CPU; the scheduler, the server and the watchman are the same code.",
    "**Hours.** A soak of minutes bounds a slope only as well as its error says; smaller leaks are below it.",
    "**The kernel's mercy.** When the system kills the server's own process (out of memory, kill -9), its engine "
    "ends with it and clients see their connections close; whoever supervises it has to start it again.",
)


def rendered(board: Mapping[str, Any], results: str, root: Path) -> str:
    """The page of a scoreboard as JSON. `results` is the JSON's path inside the repository, `root` the repository."""
    rows = board["rows"]
    by_key = {promise.key: promise for promise in PROMISES}
    how = [
        f"- {anchor(row)}**{row['title']}.** {by_key[row['key']].how} {links(row)}{apart(row, board)}" for row in rows
    ]
    facts = {
        name: board[name]
        for name in ("command", "date", "commit", "machine", "cores", "python", "tiny", "real", "load")
    }
    small = [row["key"] for row in rows if not row["whole"]]
    missing = [promise.key for promise in PROMISES if promise.key not in {row["key"] for row in rows}]
    whole = "Every row is at its promised size." if not small else f"Smaller than promised: {', '.join(small)}."
    whole += f" Rows that were left out: {', '.join(missing)}." if missing else ""
    return HEAD.format(
        results=results,
        **facts,
        memory=f"{board['memory_gib']:.0f} GiB",
        seconds=spoken(board["seconds"]),
        whole=whole,
        rows="\n".join(line(row) for row in rows),
        how="\n".join(how),
        rules="\n".join(rule(name, what, root) for name, what in RULES.items()),
        unpromised="\n".join(f"- {each}" for each in UNPROMISED),
    )


def line(row: Mapping[str, Any]) -> str:
    """A row of the table."""
    verdict = row["verdict"] if row["verdict"] == "kept" else f"**{row['verdict']}**"
    size = "" if row["whole"] else " (smaller than promised)"
    cells = (f"[{row['title']}](#{row['key']})", row["promise"], row["measured"].replace("; ", "<br>"), verdict + size)
    return "| " + " | ".join(escaped(cell) for cell in cells) + " |"


def escaped(text: str) -> str:
    """Inside a cell."""
    return text.replace("|", "\\|").replace("\n", " ")


def anchor(row: Mapping[str, Any]) -> str:
    """What the table's link goes to."""
    return f'<a id="{row["key"]}"></a>'


def links(row: Mapping[str, Any]) -> str:
    """The rules and tests of a row."""
    tests = ", ".join(f"[{Path(each).stem}](../{each})" for each in row["tests"])
    return f"({row['rules']}; {tests})"


def apart(row: Mapping[str, Any], board: Mapping[str, Any]) -> str:
    """Of a row that was measured by itself: when and how."""
    run = row["run"]
    if run["date"] == board["date"]:
        return ""
    return f" Measured {run['date']}, commit `{run['commit']}`: `{run['command']}`."


def rule(name: str, what: str, root: Path) -> str:
    """A rule's row: its files, found by their names."""
    files = sorted((root / "tests" / "security").glob(f"test_r{int(name[1:]):02}_*.py"))
    listed = ", ".join(f"[{path.stem}](../{path.relative_to(root).as_posix()})" for path in files)
    return f"| {name} | {what} | {listed or '**none yet**'} |"


def spoken(seconds: float) -> str:
    """A duration in words."""
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.0f} seconds"


def unknown(keys: Sequence[str]) -> list[str]:
    """Of some names, those that no row has."""
    known = {promise.key for promise in PROMISES}
    return [key for key in keys if key not in known]
