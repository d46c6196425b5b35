"""Names and constraints that a traced body makes of what only a run knows.

In: names of variables, and what a generation must be, as a body gives them. Out: the same, where it is plain text; one
text per path for what has few; for all other symbols the trace ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ramet.frontend.constraints import Wanted
from ramet.frontend.entries import Seq
from ramet.frontend.ir import SelectMethod
from ramet.frontend.probes import marked
from ramet.frontend.symbols import settled
from ramet.frontend.traced import TraceCore, TraceExecution
from ramet.frontend.tracing import Trace
from ramet.frontend.values import Value


def plain_name(trace: Trace, name: Any) -> Any:
    """The name of a variable. Ends the trace where it may be any text."""
    name = settled(name, "names a variable by")
    if isinstance(name, str) and marked(name):
        trace.look("names a variable by a text that only a run knows")
    return name


class _Variables(dict[str, Value[Any]]):
    """The variables of a traced state, by plain names."""

    def __init__(self, trace: Trace, variables: Mapping[str, Value[Any]]) -> None:
        super().__init__(variables)
        self._trace = trace

    def __contains__(self, name: object) -> bool:
        return super().__contains__(plain_name(self._trace, name))

    def get(self, name: str, default: Any = None) -> Any:
        """See `dict.get`."""
        return super().get(plain_name(self._trace, name), default)


class NamingCore(TraceCore):
    """A traced core whose names and constraints are plain."""

    def __init__(
        self, execution: TraceExecution, seq: Seq, defaults: Mapping[str, Any], parent: TraceCore | None = None
    ) -> None:
        super().__init__(execution, seq, defaults, parent)
        self.variables = _Variables(execution.trace, self.variables)

    def define(self, name: str, value: Value[Any]) -> None:
        """See `Core.define`."""
        super().define(plain_name(self.execution.trace, name), value)

    def gen(
        self,
        name: str | None,
        options: Mapping[str, Any],
        n: int,
        timeout: float | None,
        where: str,
        want: Wanted,
        method: SelectMethod = "token_length_normalized",
    ) -> Value[Any]:
        """See `Core.gen`."""
        return super().gen(plain_name(self.execution.trace, name), options, n, timeout, where, want, method)

    def select(self, name: str | None, choices: Sequence[str], method: SelectMethod, where: str) -> Value[str]:
        """See `Core.select`."""
        return super().select(plain_name(self.execution.trace, name), choices, method, where)

    def wanted(self, type_: Any, arguments: Mapping[str, Any], where: str) -> Wanted:
        """See `Core.wanted`."""
        return super().wanted(type_, {name: self._constraint(value) for name, value in arguments.items()}, where)

    def _constraint(self, value: Any) -> Any:
        value = settled(value, "makes a constraint of")
        if isinstance(value, str) and marked(value):
            self.execution.trace.look("makes a constraint of a text that only a run knows")
        return value
