"""Compiled programs over HTTP: a saved plan and its arguments in place of operations.

In: the JSON of `Plan.save`, arguments. Out: events as of any program, and the plan's result. The plan is checked and
metered over its worst path before it is admitted; decisions are made here, next to the engine, without a round trip.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from ramet.frontend import errors, ir
from ramet.frontend.course import Course, broken
from ramet.frontend.parameters import text_of
from ramet.frontend.plan_file import from_data
from ramet.frontend.planned import Document, Return, Step
from ramet.frontend.rebuilt import rebuilt
from ramet.runtime.server.call import Caller
from ramet.runtime.server.failures import Failure, bad
from ramet.runtime.server.program_body import Meter, Opening
from ramet.runtime.server.service import Service
from ramet.runtime.server.settings import Settings

PATHS = 8  # times the operations of one program: the most that all paths of a plan have together


@dataclass(frozen=True)
class Result:
    """What a plan returned, as JSON data; or why it could not be read."""

    value: Any = None
    error: str = ""

    def told(self) -> dict[str, Any]:
        """As the client sees it."""
        return {"error": self.error} if self.error else {"value": self.value}


def prepared(
    plan: object, args: Mapping[str, Any], opening: Opening, service: Service, settings: Settings
) -> PlannedRun:
    """A run of a plan, checked. Raises `Failure` 400."""
    try:
        document, _ = from_data(plan, PATHS * settings.max_program_ops)
    except errors.PlanError as error:
        raise bad(f"`plan`: {error}", "plan") from None
    breaks = document.breaks()
    if breaks:
        raise bad(f"`plan`: {broken(document.name, breaks[0])}", "plan")
    for path in document.paths():
        Meter(opening.limits, service.context).take([_weighed(step) for step in document.steps(path)])
    try:
        return PlannedRun(document, args, _texts(document, args), settings.max_body)
    except errors.PlanError as error:
        raise bad(f"`args`: {error}", "args") from None


def _weighed(step: Step) -> ir.AnyOp:
    """The operation with as many choices as it will have."""
    if not step.choices:
        return step.op
    choices = tuple(str(index) for index in range(len(step.choices)))
    weighed: ir.AnyOp = msgspec.structs.replace(step.op, choices=choices)
    return weighed


def _texts(document: Document, args: Mapping[str, Any]) -> dict[str, str]:
    names = [parameter.name for parameter in document.params]
    for name in args:
        if name not in names:
            raise errors.PlanError(
                f"{str(name)[:64]}: no open parameter of the plan; it has {', '.join(names) or 'none'}"
            )
    for name in names:
        if name not in args:
            raise errors.PlanError(f"{name}: is missing")
    return {parameter.name: text_of(parameter, args[parameter.name]) for parameter in document.params}


class PlannedRun:
    """One run of a plan at the server."""

    def __init__(self, document: Document, args: Mapping[str, Any], texts: Mapping[str, str], most_chars: int) -> None:
        self._args = dict(args)
        self._course = Course(document, texts, most_chars)

    async def events(
        self, service: Service, opening: Opening, caller: Caller
    ) -> AsyncGenerator[ir.Event | Result, None]:
        """The program's events; its result before the last one. Raises `Failure`."""
        async with await service.duplex(opening.header, caller, timeout=opening.limits.seconds) as duplex:
            ops = self._ready(None)
            failed = False
            while True:
                if ops:
                    await duplex.send(ops)
                if self._course.over:
                    duplex.end()
                event = await anext(duplex)
                if isinstance(event, ir.Ended):
                    if not failed and not event.kind:
                        yield self._result()
                    yield event
                    return
                failed = failed or isinstance(event, ir.Failed)
                ops = self._ready(event)
                yield event

    def _ready(self, event: ir.Event | None) -> list[ir.AnyOp]:
        try:
            return self._course.begin() if event is None else self._course.take(event)
        except (errors.PlanError, errors.ConstraintError) as error:
            raise Failure(400, f"`plan`: {error}", param="plan") from None

    def _result(self) -> Result:
        end = self._course.end
        assert isinstance(end, Return), "a plan with graph breaks is not admitted"
        try:
            return Result(rebuilt(end.value, self._course, self._args, {}, {}))
        except errors.ParseError as error:
            return Result(error=str(error))
