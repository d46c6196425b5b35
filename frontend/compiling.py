"""From a `Program` to a `Plan`: what of its arguments is open, what runs its body.

In: a program and static arguments. Out: a plan that keeps the program, to go on in Python at graph breaks.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ramet.frontend.compile import Job, compiled
from ramet.frontend.errors import ConstraintError
from ramet.frontend.options import hint
from ramet.frontend.parameters import hints_of, split
from ramet.frontend.plan import Plan
from ramet.frontend.state import State

if TYPE_CHECKING:
    from ramet.frontend.program import Program


def compile_program(program: Program[..., Any], max_paths: int, static: Mapping[str, Any], where: str) -> Plan:
    """See `Program.compile`."""
    if isinstance(max_paths, bool) or not isinstance(max_paths, int) or not 1 <= max_paths <= 4096:
        raise ConstraintError(f"max_paths={max_paths!r}: must be an integer from 1 to 4096", where=where)
    if "budget" in program._options:
        raise ConstraintError(
            "budget: what a program with a budget may generate depends on what it has generated; compile it without, "
            "and look at estimate().generated_max",
            where=where,
        )
    if "journal" in program._options or "resume" in program._options:
        raise ConstraintError(
            "journal: runs of a plan are not recorded; compile the program without, or call it itself", where=where
        )
    signature = program._signature
    unknown = [name for name in static if name not in signature.parameters]
    if unknown:
        raise ConstraintError(
            f"compile({unknown[0]}=...): no such parameter; {hint(unknown[0], signature.parameters)}", where=where
        )
    opened, fixed = split(signature, hints_of(program._fn), {**program._bound, **static}, where)
    code = inspect.unwrap(program._fn).__code__
    settings: dict[str, Any] = {
        name: program._options[name] for name in ("backend", "seed", "timeout") if name in program._options
    }
    runner = program._clone()
    runner._options.pop("backend", None)

    def arguments(given: Mapping[str, Any]) -> inspect.BoundArguments:
        bound = signature.bind_partial()
        bound.arguments.update({**fixed, **given})
        return bound

    def call(state: State, given: Mapping[str, Any]) -> Any:
        bound = arguments(given)
        return program._fn(*program._instance, state, *bound.args, **bound.kwargs)

    def start(given: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
        bound = arguments(given)
        return runner._start(bound.args, bound.kwargs, options)

    job = Job(
        name=program.__name__,
        where=f"{os.path.basename(code.co_filename)}:{code.co_firstlineno}",
        call=call,
        code=code,
        is_async=program._is_async,
        sampling={k: v for k, v in program._options.items() if k not in ("backend", "seed", "timeout", "stream")},
        opened=opened,
        static=fixed,
        max_paths=max_paths,
    )
    return Plan(compiled(job), start=start, settings=settings)
