"""What one specification may cost before it is admitted (R4).

In: nothing. Out: the limits that the compiler and its processes hold a constraint to, and how messages name it. Those
of depth, nodes, values of an enum and repetitions are checked where a specification is read (frontend/patterns.py,
frontend/schemas.py, grammar/choices.py); what following it may cost is in grammar/automaton.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ramet.frontend import ir
from ramet.frontend.errors import ConstraintError


@dataclass(frozen=True)
class SpecLimits:
    """`spec_bytes` is the size of the specification as given, `program_bytes` of what it is translated to. The times
    `wall_seconds` and `cpu_seconds` and the address space are those of the process that compiles it; `answer_seconds`
    bounds the whole answer, from the request on: what has to wait for others so long that it cannot be compiled within
    them is put off, and never called too costly."""

    spec_bytes: int = 64 << 10
    program_bytes: int = 256 << 10
    wall_seconds: float = 1.5
    answer_seconds: float = 2.0
    cpu_seconds: int = 2
    memory_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if not getattr(self, name) > 0:
                raise ConstraintError(f"{name}={getattr(self, name)!r}: must be positive")


def label(constraint: ir.Constraint) -> str:
    """How messages begin: the field, and of a pattern its first characters."""
    match constraint:
        case ir.Regex(pattern):
            return f"regex={pattern[:77]!r}"
        case ir.JsonSchema():
            return "json_schema"
        case ir.Choices():
            return "choices"
        case ir.Grammar():
            return "grammar"
        case ir.Structure():
            return "structure"
        case ir.Calls():
            return "tools"


def check_size(constraint: ir.Constraint, limits: SpecLimits) -> None:
    """Before anything else is done with it. Raises `ConstraintError`."""
    size = 0
    for text in _texts(constraint):
        size += len(text)  # in characters, which are no fewer bytes
        if size > limits.spec_bytes:
            break
    else:
        try:
            size = sum(len(text.encode()) for text in _texts(constraint))
        except UnicodeEncodeError:
            raise ConstraintError(f"{label(constraint)}: holds a lone surrogate, which is no text") from None
    if size > limits.spec_bytes:
        raise ConstraintError(
            f"{label(constraint)}: has more than {limits.spec_bytes} bytes (limit: specification size); shorten it"
        )


def _texts(constraint: ir.Constraint) -> Iterator[str]:
    match constraint:
        case ir.Regex(text) | ir.JsonSchema(text) | ir.Grammar(text) | ir.Structure(text):
            yield text
        case ir.Choices(choices):
            yield from choices
        case ir.Calls(tools):
            for tool in tools:
                yield from (tool.name, tool.description, tool.parameters)
