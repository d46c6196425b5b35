"""Checks of single generations and choices: bounds, stop strings, constraints, choices.

In: a path of a plan. Out: diagnostics. Each check looks at one step at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from ramet.frontend.diagnostics import Diagnostic
from ramet.frontend.errors import ConstraintError
from ramet.frontend.extents import always, finite, never, shortest
from ramet.frontend.ir import Choices, Constraint, Gen, JsonSchema, Regex, Select
from ramet.frontend.lineage import Lineage, alike, variable
from ramet.frontend.patterns import check as check_pattern
from ramet.frontend.planned import Part, Step
from ramet.frontend.schemas import check as check_schema
from ramet.frontend.types import check_choices

_RATIO = 0.25  # tokens per character of a text that no tokeniser has seen


def calls(line: Lineage, seen: set[object]) -> Iterator[Diagnostic]:
    """Everything that can be said of each call by itself; those that are like one in `seen` are not looked at again."""
    for step in line.calls.values():
        key = (step.where, *alike(step))
        if key in seen:
            continue
        seen.add(key)
        if isinstance(step.op, Gen):
            if step.op.constraint is not None and (wrong := _refused(step.op.constraint)):
                yield line.found("bad-constraint", "error", step, wrong, "see the message; no backend would compile it")
                continue
            if step.op.constraint is not None:
                yield from _too_small(line, step, step.op, step.op.constraint)
                yield from _stops(line, step, step.op, step.op.constraint)
            yield from _unbounded(line, step, step.op)
            if isinstance(step.op.constraint, Choices):
                yield from _prefixes(line, step, step.op.constraint.choices)
        elif isinstance(step.op, Select):
            yield from _prefixes(line, step, step.op.choices)
            yield from _filled(line, step)


def _refused(constraint: Constraint) -> str:
    """What the language says against a constraint (in a plan from a file, which no body has recorded)."""
    try:
        if isinstance(constraint, Regex):
            check_pattern(constraint.pattern)
        elif isinstance(constraint, JsonSchema):
            check_schema(json.loads(constraint.schema))
        elif isinstance(constraint, Choices):
            check_choices(constraint.choices, "")
    except ConstraintError as error:
        return error.message
    except (ValueError, RecursionError) as error:
        return f"json_schema: is no JSON: {error}"
    return ""


def label(step: Step) -> str:
    """What a message calls a generation or a choice."""
    kind = "choice" if isinstance(step.op, Select) else "generation"
    return f"the {kind} {variable(step)!r}" if variable(step) else f"this {kind}"


def _unbounded(line: Lineage, step: Step, op: Gen) -> Iterator[Diagnostic]:
    sampling = op.sampling
    if sampling.max_tokens is not None or sampling.stop or sampling.stop_token_ids:
        return
    if op.constraint is not None and finite(op.constraint):
        return
    yield line.found(
        "gen-without-bound",
        "warning",
        step,
        f"{label(step)} has no max_tokens, no stop and no constraint with a longest text: it may go on to the end of "
        "the context",
        "give max_tokens=",
    )


def _too_small(line: Lineage, step: Step, op: Gen, constraint: Constraint) -> Iterator[Diagnostic]:
    most, text = op.sampling.max_tokens, shortest(constraint)
    if most is None or text is None:
        return
    needs = round(len(text) * _RATIO)
    if needs > most:
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        message = f"max_tokens={most} cannot hold {label(step)}: its shortest text, {shown!r}, has about {needs} tokens"
        yield line.found("max-tokens-too-small", "warning", step, message, "raise max_tokens, or ask for less")


def _stops(line: Lineage, step: Step, op: Gen, constraint: Constraint) -> Iterator[Diagnostic]:
    for stop in op.sampling.stop:
        if always(constraint, stop):
            message = (
                f"stop={stop!r} stands in every text that the constraint of {label(step)} allows, and cuts it there"
            )
            yield line.found(
                "stop-cuts-constraint", "warning", step, message, "leave the stop out: the constraint ends"
            )
        elif isinstance(constraint, Choices) and (cut := [c for c in constraint.choices if stop in c]):
            message = f"stop={stop!r} stands in the choice {cut[0]!r} of {label(step)}, which can never be chosen whole"
            yield line.found("stop-cuts-constraint", "warning", step, message, "leave the stop out: the choice ends")
        elif never(constraint, stop):
            message = f"stop={stop!r} can never come: no text that the constraint of {label(step)} allows contains it"
            yield line.found("stop-never-comes", "note", step, message, "leave the stop out")


def _prefixes(line: Lineage, step: Step, choices: Sequence[str]) -> Iterator[Diagnostic]:
    known = sorted(choices)
    for short, long in pairwise(known):
        if short and long.startswith(short):
            yield line.found(
                "choice-prefix",
                "warning",
                step,
                f"of {label(step)}, {short!r} is the beginning of {long!r}: the shorter one's probability contains the "
                "longer one's",
                "end both with the text that follows (such as a newline), or name them differently",
            )
            return


def _filled(line: Lineage, step: Step) -> Iterator[Diagnostic]:
    """Choices that are known only when arguments and values are."""
    if not step.choices:
        return
    domains = {parameter.name: parameter.domain for parameter in line.document.params}
    fixed = [_fixed(choice, domains) for choice in step.choices]
    if len(set(step.choices)) < len(step.choices):
        again = next(choice for choice in step.choices if step.choices.count(choice) > 1)
        yield line.found(
            "duplicate-choices",
            "error",
            step,
            f"of {label(step)}, two choices are the same text whatever the arguments: {_shown(again)}",
            "make them distinct",
        )
    elif sum(not known for known in fixed):
        which = next(choice for choice, known in zip(step.choices, fixed, strict=True) if not known)
        yield line.found(
            "duplicate-choices",
            "note",
            step,
            f"the choice {_shown(which)} of {label(step)} is known only in a run: it fails there when it is empty, or "
            "equal to another",
            "check the arguments before the program starts",
        )


def _fixed(choice: Sequence[Part], domains: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether a choice has text of its own, or can only be one of few texts."""
    return any(isinstance(part, str) or domains.get(getattr(part, "name", "")) for part in choice)


def _shown(choice: Sequence[Part]) -> str:
    return repr("".join(part if isinstance(part, str) else f"{{{getattr(part, 'name', 'value')}}}" for part in choice))
