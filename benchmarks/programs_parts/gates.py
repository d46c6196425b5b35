"""What counts must hold at any pace. In: a report with "whole", "plan" and toggles. Out: what is broken."""

from __future__ import annotations

from programs_parts.catalog import Workload
from programs_parts.report import Report

EXCESS = 1.02  # computed over distinct tokens
THRASHING = 2.0  # the same in a small pool, at least, where nothing is known of programs
# and at most that much of it where programs are known (0.21 on an idle machine, 0.24 beside six busy processes on two
# cores: how long tools really take decides whose KV is given up); tests/sim/test_agents.py bounds it in virtual time
PRESSED = 0.4
GUESSED = {7: 1.05}  # the same where forced text ends in guesses: wrong ones are computed and count
JUMPS = {6: 1.2, 7: 3.0}  # tokens that are sampled where no text is forced over those where it is, at least


def broken(report: Report) -> list[str]:
    """One sentence for each gate that does not hold."""
    found: list[str] = []
    for workload in report.workloads:
        for rung in ("whole", "plan"):
            if (workload.label, rung) in report.cells:
                found += _counts(report, workload, rung)
        found += _toggled(report, workload) + _same(report, workload)
    return found


def _counts(report: Report, workload: Workload, rung: str) -> list[str]:
    name, outcomes = f"{workload.label} {workload.name}, {rung}", report.cells[workload.label, rung]
    most = GUESSED.get(workload.number, EXCESS)
    found = list[str]()
    for outcome in outcomes:
        ratio = (outcome.computed or 0) / (outcome.distinct or 1)
        if ratio > most and not workload.share:
            found.append(f"{name}: computes {ratio:.3f} x the distinct tokens; at most {most}")
        programs = len(outcome.values)
        if rung == "whole" and not workload.share and outcome.submissions != workload.submissions * programs:
            found.append(
                f"{name}: {outcome.submissions} submissions of {programs} programs; {workload.submissions} each"
            )
    return found


def _toggled(report: Report, workload: Workload) -> list[str]:
    found = list[str]()
    whole = report.cells.get((workload.label, "whole"), [])
    for outcome, off in zip(whole, report.cells.get((workload.label, "jump off"), []), strict=False):
        ratio = off.decoded / max(1, outcome.decoded - outcome.forced)
        if ratio < JUMPS[workload.number]:
            least = JUMPS[workload.number]
            found.append(f"{workload.label} {workload.name}: without jumps {ratio:.2f} x the sampled tokens; {least}")
    for outcome, off in zip(whole, report.cells.get((workload.label, "lru-fcfs"), []), strict=False):
        ratio, share = (off.computed or 0) / (off.distinct or 1), (outcome.computed or 0) / (off.computed or 1)
        if share > PRESSED:
            found.append(f"{workload.label} {workload.name}: computes {share:.2f} x what lru-fcfs does; {PRESSED}")
        if ratio < THRASHING:
            found.append(
                f"{workload.label} {workload.name}: lru-fcfs computes only {ratio:.2f} x: there is no pressure"
            )
    for outcome, off in zip(whole, report.cells.get((workload.label, "early stop off"), []), strict=False):
        if outcome.decoded > off.decoded or outcome.values != off.values:
            found.append(f"{workload.label} {workload.name}: an early stop decodes more, or changes the outcome")
    return found


def _same(report: Report, workload: Workload) -> list[str]:
    """A plan says what its program says, token by token and with the same noise."""
    whole = report.cells.get((workload.label, "whole"), [])
    plan = report.cells.get((workload.label, "plan"), [])
    if all(a.values == b.values for a, b in zip(whole, plan, strict=False)):
        return []
    return [f"{workload.label} {workload.name}: the plan's results differ from the program's"]
