"""`ramet resume`: go on with a run that was interrupted, from the command line.

In: a journal, a run of it, the file of its program. Out: what `ramet run` gives; without a run the list of those that
are unfinished, without a file what is known of the one.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ramet.frontend import journal
from ramet.frontend.commands import WrongUsage, run
from ramet.frontend.commands.loading import split
from ramet.frontend.commands.screen import write
from ramet.frontend.journal_file import RunRow
from ramet.frontend.journal_text import read

SHOWN = 40  # characters of an argument


@dataclass(frozen=True)
class Options:
    """What the command line says. `target` is "FILE.py" or "FILE.py:name"; `again` are paths of host calls, `result`
    are "path=JSON"."""

    journal: str
    run: str = ""
    target: str = ""
    again: tuple[str, ...] = ()
    result: tuple[str, ...] = ()
    model: str = ""
    url: str = ""
    api_key: str = ""
    threads: int = 0
    dtype: str = "auto"
    json: bool = False


def resume(options: Options) -> int:
    """Resume it; the exit status, as `ramet run`'s. Raises `RametError`; `WrongUsage` for what cannot be meant."""
    if not options.run:
        if options.again or options.result:
            raise WrongUsage("--again and --result are about a call of one run: name the run")
        _list(options.journal)
        return 0
    row = journal.one(options.journal, options.run)
    _mark(options)
    if not options.target:
        _show(options.journal, row)
        return 0
    if split(options.target) is None:
        raise WrongUsage(f"{options.target}: is no .py file; name the one that has the program")
    return run.run(_as_before(options, row))


def _as_before(options: Options, row: RunRow) -> run.Options:
    """The command line of `ramet run`, with the sampling options that the run was begun with."""
    sampling: dict[str, Any] = {}
    for name in ("temperature", "max_tokens"):
        text = row.record.get("sampling", {}).get(name)
        sampling[name] = None if text is None else read(str(text))
    return run.Options(
        options.target,
        model=options.model,
        url=options.url,
        api_key=options.api_key,
        threads=options.threads,
        dtype=options.dtype,
        json=options.json,
        journal=options.journal,
        resume=options.run,
        **sampling,
    )


def _mark(options: Options) -> None:
    for op in options.again:
        journal.settle(options.journal, options.run, op, None)
    for each in options.result:
        op, separator, value = each.partition("=")
        if not separator:
            raise WrongUsage(f"--result {each}: write CALL=JSON")
        journal.settle(options.journal, options.run, op, value)


def _list(path: str) -> None:
    """The unfinished runs, a line each."""
    unfinished = [row for row in journal.runs(path) if row.state != "finished"]
    for row in unfinished:
        write(sys.stdout, f"{_line(row)}\n")
    if not unfinished:
        write(sys.stderr, f"{path}: every run has finished\n")


def _show(path: str, row: RunRow) -> None:
    """One run, and the host calls of it that were interrupted."""
    write(sys.stdout, f"{_line(row)}\n")
    for op, name in journal.uncertain(path, row.run).items():
        write(sys.stdout, f"  {op}  {name}: had begun, its result is unknown; --again {op}, or --result {op}=JSON\n")


def _line(row: RunRow) -> str:
    record: Mapping[str, Any] = row.record
    given = record.get("arguments", {})
    arguments = ", ".join(f"{name}={_short(str(text))}" for name, text in given.items())
    ended = f"  {read(row.outcome)}" if row.state == "failed" else ""
    return f"{row.run}  {row.state:8}  {record.get('began', '')}  {record.get('program', '')}({arguments}){ended}"


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
