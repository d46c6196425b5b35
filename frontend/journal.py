"""Runs that outlive their process: beginning one, resuming one, what a journal knows of them.

In: a program about to start, and the path of a journal. Out: its setting, in which everything it does is recorded; for
`ramet resume`, the runs of a file, and marks on calls of which nobody knows whether they were made.

A journaled program's body runs again from its beginning when it is resumed. What it records has the same paths as
before, so that every call which had finished is answered from the journal, and every other one is made, with the noise
that its path and the run's seed give it (durable execution by replay, as workflow engines do it).
"""

from __future__ import annotations

import inspect
import json
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ramet.frontend.callers import caller, inside_call
from ramet.frontend.errors import ConstraintError, JournalError, JournalHeld
from ramet.frontend.host import HOST
from ramet.frontend.journal_file import JournalFile, Mark, RunRow, calling, forgetting
from ramet.frontend.journal_identity import child_name, compare, identity, place
from ramet.frontend.journal_run import Recording, Scope
from ramet.frontend.journal_text import written
from ramet.frontend.journal_writer import Journal, opened
from ramet.frontend.run import Setting
from ramet.frontend.waiting import running_loop
from ramet.frontend.where import user_line

PATIENCE = 5.0  # seconds that a resumed run waits for the last host calls of what it goes on with


def recorded(
    name: str,
    fn: Callable[..., Any],
    arguments: inspect.BoundArguments,
    setting: Setting,
    options: Mapping[str, Any],
) -> Setting:
    """The setting of a program that is recorded: `options` name a journal, and perhaps a run of it to resume; or a
    journaled program calls it, and it is a part of that one's run. Raises `JournalError`."""
    full = inspect.BoundArguments(arguments.signature, OrderedDict(arguments.arguments))
    full.apply_defaults()
    path, resume, parent = options.get("journal"), options.get("resume"), caller()
    if parent is not None and parent.journal is not None:
        if path is not None or resume is not None:
            raise ConstraintError(
                f"journal={path!r}: {name!r} is called by {parent.name!r}, whose run it is a part of; leave it out",
                where=user_line(),
            )
        of, budgeted = child_name(name, full.arguments), setting.budget is not None
        scope = parent.journal.child(of, inside_call(), setting.backend, setting.seed, budgeted)
        return replace(setting, journal=scope, seed=scope.seed)
    if path is None:
        raise ConstraintError(f"resume={resume!r}: say of which journal: journal=...", where=user_line())
    now = identity(name, fn, full.arguments, setting.sampling, setting.budget)
    now.update(backend=place(setting.backend), seed=setting.seed)
    recording = _begun(os.fspath(path), now) if resume is None else _resumed(os.fspath(path), resume, now)
    seed = int(recording.row.record["seed"])
    scope = Scope(recording, setting.backend, seed, setting.budget is not None)
    return replace(setting, journal=scope, seed=seed)


def _begun(path: str, record: dict[str, Any]) -> Recording:
    run = secrets.token_hex(8)
    seed = secrets.randbits(63) if record["seed"] is None else record["seed"]
    record = {**record, "seed": seed, "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}

    def take(journal: Journal) -> int:
        number = journal.file.add(run, record)
        journal.locks.hold(number, run)
        return number

    journal, number = opened(path, take)
    return Recording(journal, RunRow(number, run, "running", record, written(None)), {})


def _resumed(path: str, run: str, now: Mapping[str, Any]) -> Recording:
    _there(path)

    def check(row: RunRow) -> None:
        try:
            compare(run, row.record, now)
        except (AttributeError, TypeError, KeyError) as error:
            raise JournalError(f"the journal's row of run {run} cannot be read: {error}") from None

    journal, row = _held(path, run, check)
    try:
        calls = journal.file.calls(run)
        if row.state == "failed":
            journal.file.write([Mark(run, "running", written(None))])
    except BaseException:
        journal.release(row.number)
        raise
    return Recording(journal, row, calls)


def _held(path: str, run: str, check: Callable[[RunRow], None]) -> tuple[Journal, RunRow]:
    """A run of a journal, held by this process. Raises `JournalHeld`, and what `check` raises. For the last host calls
    of a run that has ended here it waits for a moment, unless that would block an event loop."""
    deadline = time.monotonic() + PATIENCE
    with HOST.sharing:
        while True:
            try:
                return _taken(path, run, check)
            except JournalHeld as held:
                left = deadline - time.monotonic()
                if not held.over or left <= 0 or running_loop() is not None:
                    raise
                HOST.sharing.wait(left)


def _taken(path: str, run: str, check: Callable[[RunRow], None]) -> tuple[Journal, RunRow]:
    found: list[RunRow] = []

    def take(journal: Journal) -> int:
        row = journal.file.run(run)
        journal.locks.hold(row.number, run)
        try:
            found.append(journal.file.run(run))  # as it is now that nobody else writes it
            check(found[0])
        except BaseException:
            journal.locks.drop(row.number)
            raise
        return row.number

    journal, _ = opened(path, take)
    return journal, found[0]


def _there(path: str) -> None:
    if not os.path.exists(path):
        raise JournalError(f"{path}: no such journal")


def runs(path: str) -> list[RunRow]:
    """The runs of a journal, in the order in which they began."""
    _there(path)
    file = JournalFile(path)
    try:
        return file.runs()
    finally:
        file.close()


def one(path: str, run: str) -> RunRow:
    """A run of a journal. Raises `JournalError` when there is none such."""
    _there(path)
    file = JournalFile(path)
    try:
        return file.run(run)
    finally:
        file.close()


def uncertain(path: str, run: str) -> dict[str, str]:
    """Host calls of a run that had begun and have no result: their paths, and the names of their functions."""
    _there(path)
    file = JournalFile(path)
    try:
        return {op: str(call.record.get("name")) for op, call in file.calls(run).items() if call.state == "begun"}
    finally:
        file.close()


def settle(path: str, run: str, op: str, result: str | None) -> None:
    """Say what became of a host call that was interrupted: its `result` (JSON text), or (None) that it is to be made
    again. Raises `JournalError` when the run has no such call, `JournalHeld` while the run is under way."""
    _there(path)
    try:
        value = json.loads(result) if result is not None else None
        written(value)
    except ValueError as error:
        raise JournalError(f"{op}={result}: is not JSON ({error})") from None
    journal, row = _held(path, run, lambda _: None)
    try:
        call = journal.file.calls(run).get(op)
        if call is None or call.state != "begun":
            raise JournalError(f"{op}: no interrupted host call of run {run} has this path")
        done = calling(run, op, call.kind, "done", {**call.record, "value": value})
        journal.file.write([forgetting(run, op) if result is None else done])
    finally:
        journal.release(row.number)
