"""Regular expressions as constraints: exactly the texts that Python's `re.fullmatch` accepts.

In: a pattern. Out: a `Translation`. The pattern is read as Python reads it and written out again without dialect.
"""

from __future__ import annotations

from ramet.frontend import patterns, regular
from ramet.frontend.errors import ConstraintError
from ramet.runtime.grammar.terminals import Terminals
from ramet.runtime.grammar.translation import Translation

MAX_SHORTEST = 64 * 1024


def translate(pattern: str) -> Translation:
    """A pattern as rules. Raises `ConstraintError`, whose message begins `regex=...: `."""
    return of_tree(patterns.parse(pattern), f"regex={pattern[:77]!r}")


def of_tree(node: regular.Node, field: str) -> Translation:
    """A pruned tree as rules; errors name `field`."""
    terminals = Terminals()
    try:
        start = terminals.add(node)
    except ConstraintError as error:
        raise ConstraintError(f"{field}: {error.message}") from None
    return Translation(
        f"start: {start}\n" + "".join(terminals.lines),
        shortest=regular.shortest(node, MAX_SHORTEST),
        longest=regular.longest(node),
    )
