"""The ladder of every workload, rung by rung, round by round. In: places, workloads, rungs. Out: a `Report`.

llama.cpp   the expert client → llama.cpp's server
expert      the expert client → ramet serve
sglang      the programs → ramet serve's /generate, a request per call, as SGLang's frontend sends them
calls       the programs → the engine, a program per call
whole       the programs → the engine, as they are
plan        the same compiled: no Python in the middle, as few submissions as there are decisions; of programs that need
            Python on their way, what comes before is sent at once, while the body runs and goes on from there
and what a workload's toggles turn off, all else being as in "whole".
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence

from programs_parts.catalog import Toggle, Workload
from programs_parts.client import NotExpressible
from programs_parts.counts import Forest, Listener
from programs_parts.llamaserver import NotInstalled
from programs_parts.places import Places
from programs_parts.report import Report
from programs_parts.rungs import Outcome, in_language, over_http
from programs_parts.scenes import Row, rows
from ramet.frontend import outbox
from ramet.frontend.errors import RametError
from ramet.frontend.plan import Plan
from ramet.runtime.config import Policy

RUNGS = ("llama.cpp", "expert", "sglang", "calls", "whole", "plan", "toggles")
EARLIER = 2  # rounds from which engines with a small pool learn what to expect


class NoPlan(Exception):
    """Why a workload has no plan that runs without Python."""


def measure(
    places: Places,
    rungs: Sequence[str],
    rounds: int,
    scale: int,
    report: Report,
    keep: Callable[[Report], None],
) -> None:
    """All of it. In every round the texts are others, so that nothing of an earlier one is of use; the rungs of a round
    have the same texts, and each round begins with another rung. `keep` is given the report after each workload."""
    for workload in report.workloads:
        slots = small(places, workload, rows(workload.number, 0, scale))
        if slots:
            _learn(places, workload, rungs, slots, scale)
        with steadily(places.setting.steady if not slots else 0.0):
            _rounds(places, workload, _rungs(workload, rungs), rounds, scale, slots, report)
        places.relax()
        keep(report)


def _rounds(
    places: Places, workload: Workload, todo: Sequence[str], rounds: int, scale: int, slots: int, report: Report
) -> None:
    for number in range(rounds) if todo else ():
        given = rows(workload.number, number, scale, places.setting.pace)
        turn = number % len(todo)
        for rung in [*todo[turn:], *todo[:turn]]:
            places.setting.say(f"{workload.label} {workload.name}: {rung}, round {number + 1} of {rounds}")
            _one(places, workload, rung, given, slots, report)


@contextlib.contextmanager
def steadily(seconds: float) -> Iterator[None]:
    """Programs that may pause for so long while they record, so that a busy machine cuts no submission in two and their
    count is exact; 0 changes nothing. What a tool has said waits as long: where the time that tools take decides what
    is computed (a small pool), this would change the figures."""
    was = outbox.QUIET, outbox.PATIENCE
    try:
        if seconds:
            outbox.QUIET = outbox.PATIENCE = seconds
        yield
    finally:
        outbox.QUIET, outbox.PATIENCE = was


def _rungs(workload: Workload, rungs: Sequence[str]) -> list[str]:
    toggles = [toggle.name for toggle in workload.toggles] if "toggles" in rungs else []
    return [rung for rung in RUNGS[:-1] if rung in rungs] + toggles


def small(places: Places, workload: Workload, given: Sequence[Row]) -> int:
    """KV slots of a small pool; 0 where it is to be large."""
    if not workload.share:
        return 0
    made = 24 * len(given[0].turns)
    peaks = [
        made + sum(map(places.tokens, row.texts)) + sum(places.tokens(f"Act:\nResult: {t.result}\n") for t in row.turns)
        for row in given
    ]
    return int(workload.share * sum(peaks))


def _learn(places: Places, workload: Workload, rungs: Sequence[str], slots: int, scale: int) -> None:
    """Rounds that are not counted: engines with a small pool expect of programs what earlier ones of the name did."""
    policies: list[Policy] = ["peak"] if {"whole", "plan"} & set(rungs) else []
    policies += [toggle.policy for toggle in workload.toggles] if "toggles" in rungs else []
    for policy, earlier in itertools.product(policies, range(EARLIER)):
        given = rows(workload.number, 1_000_000 + earlier, scale, places.setting.pace)
        places.setting.say(f"{workload.label} {workload.name}: {policy}, a round before")
        in_language(workload, given, places.engine(policy, slots), {})


def _one(places: Places, workload: Workload, rung: str, given: Sequence[Row], slots: int, report: Report) -> None:
    try:
        outcome = _outcome(places, workload, rung, given, slots)
    except (NotExpressible, NotInstalled, NoPlan, RametError) as error:
        report.lack(workload, rung, f"{error}")
        return
    report.add(workload, rung, outcome)


def _outcome(places: Places, workload: Workload, rung: str, given: Sequence[Row], slots: int) -> Outcome:
    if rung == "llama.cpp":
        return over_http(workload, given, places.llama(slots), ours=False)
    if rung == "expert":
        return over_http(workload, given, places.server(slots), ours=True)
    if rung == "sglang":
        with places.slashed(slots) as slashed:
            return in_language(workload, given, slashed, {})[0]
    if rung == "calls":
        with places.apart(slots=slots) as apart:
            return in_language(workload, given, apart, {})[0]
    toggle = next((each for each in workload.toggles if each.name == rung), Toggle(rung))
    plans = planned(workload, given) if rung == "plan" else []
    outcome, listener = in_language(workload, given, places.engine(toggle.policy, slots), toggle.arguments, plans=plans)
    outcome.distinct = distinct(places, listener)
    return outcome


def planned(workload: Workload, given: Sequence[Row]) -> list[Plan]:
    """The workload compiled, for each row; rows with the same static arguments share a plan. Raises `NoPlan` where one
    that is to run without Python does not."""
    plans: dict[str, Plan] = {}
    found: list[Plan] = []
    for row in given:
        static = workload.static(row)
        key = repr(static)
        if key not in plans:
            plans[key] = workload.program.compile(**static)
        found.append(plans[key])
    for plan in plans.values() if workload.planned else ():
        if plan.breaks or plan.document.truncated:
            raise NoPlan(plan.breaks[0].reason if plan.breaks else "it has too many paths")
    return found


def distinct(places: Places, listener: Listener) -> int:
    """Distinct tokens of all programs that passed."""
    forest = Forest(places.lowering)
    for told in listener.programs:
        forest.add(told)
    return forest.size
