"""The rounds of a run. In: variants, a job, a Python for each peer. Out: figures in a report.

A round launches every variant as a process of its own, one after the other, and begins with another variant than the
round before it. Bandwidth is measured at the beginning of each round, when nothing else runs.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peers_parts.catalog import Peer, Variant
from peers_parts.launch import Told, launch
from peers_parts.report import Report
from peers_parts.venvs import NotInstalled, python_of

PREPARING = 1800.0  # seconds that a peer may take for its own format of the weights
_READY = ".ready"
Limits = Callable[[], dict[str, float]]


@dataclass(frozen=True, slots=True)
class Subject:
    """A variant that can run, and its job."""

    peer: Peer
    variant: Variant
    python: Path
    job: dict[str, Any]


def say(text: str) -> None:
    """What is being done, for whoever waits."""
    print(text, file=sys.stderr, flush=True)


def subjects(
    chosen: Sequence[tuple[Peer, Variant]], job: dict[str, Any], venvs: Path, models: Path, skipped: dict[str, str]
) -> list[Subject]:
    """Environments and weights of all peers, made where they are missing; why a peer is left out goes into `skipped`.
    `models`: the folder of this model, with one for each peer."""
    out: list[Subject] = []
    for peer in {peer.name: peer for peer, _ in chosen}.values():
        mine = [variant for each, variant in chosen if each is peer]
        folder = models / peer.name
        try:
            python = python_of(peer, venvs, say)
            _prepare(peer, python, job | {"folder": str(folder)}, folder)
        except NotInstalled as error:
            skipped[peer.name] = str(error)
            say(f"left out: {error}")
            continue
        for variant in mine:
            own = replace(peer, environment=peer.environment | variant.environment)
            out.append(Subject(own, variant, python, job | {"folder": str(folder), "options": variant.options}))
    return out


def measure(
    subjects: Sequence[Subject], columns: Sequence[str], rounds: int, seconds: float, report: Report, limits: Limits
) -> None:
    """All rounds. What was cut, or has failed, is not tried again."""
    for number in range(rounds):
        report.limits.append(limits())
        at = number % len(subjects)
        for subject in [*subjects[at:], *subjects[:at]]:
            label = subject.variant.label
            missing = {*subject.peer.lacks, *report.over.get(label, {})}
            wanted = [name for name in columns if name not in missing]
            if wanted:
                say(f"round {number + 1} of {rounds}: {label}")
                _round(subject, wanted, seconds, report)


def _round(subject: Subject, wanted: list[str], seconds: float, report: Report) -> None:
    label = subject.variant.label
    if "start" in wanted:
        told = launch(subject.peer, subject.python, subject.job | {"task": "start"}, seconds)
        _record(told, ["start"], label, seconds, report)
        if not told.failed and not told.cut:
            report.add(label, "start", told.first)
    todo = [name for name in wanted if name != "start"]
    while todo:
        told = launch(subject.peer, subject.python, subject.job | {"task": "run", "columns": todo}, seconds)
        for name, found in told.figures.items():
            report.add(label, name, found["seconds"], found["tokens"])
            if name == "decode 1":
                report.ids.setdefault(label, found.get("ids", []))
        rest = [name for name in todo if name not in told.figures]
        _record(told, rest, label, seconds, report)
        todo = rest[1:] if told.cut or told.failed else []


def _record(told: Told, rest: list[str], label: str, seconds: float, report: Report) -> None:
    """What went wrong, if anything, with the first of `rest`."""
    if told.version:
        report.versions[label] = told.version
    if rest and (told.cut or told.failed):
        why = f"> {seconds:.0f} s" if told.cut else told.failed
        report.over.setdefault(label, {})[rest[0]] = why
        say(f"  {label}, {rest[0]}: {why}")


def _prepare(peer: Peer, python: Path, job: dict[str, Any], folder: Path) -> None:
    """Raises `NotInstalled`."""
    variants = {variant.name: variant.options for variant in peer.variants}
    made = repr((peer.requirements, variants))
    wanted, ready = hashlib.sha256(made.encode()).hexdigest(), folder / _READY
    if ready.is_file() and ready.read_text(encoding="ascii") == wanted:
        return
    folder.mkdir(parents=True, exist_ok=True)
    say(f"preparing {peer.name}'s weights")
    told = launch(peer, python, job | {"task": "prepare", "variants": variants}, PREPARING, opening=PREPARING)
    if told.failed:
        raise NotInstalled(f"{peer.name}: its weights cannot be made: {told.failed}")
    ready.write_text(wanted, encoding="ascii")
