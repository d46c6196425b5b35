r"""Regular expressions as Python's `re` reads them, taken apart into a tree that has no dialect left.

In: a pattern. Out: a `Node` whose texts are exactly those that `re.fullmatch` accepts: character sets, sequences,
alternatives and repetitions. Flags are applied, groups are gone; `^ $ \A \Z \b \B` are decided where the pattern around
them decides them. What no automaton can keep (look-around, back-references) is refused by name.
"""

from __future__ import annotations

import re
import re._compiler as compiler  # type: ignore[import-not-found]
import re._constants as constants  # type: ignore[import-not-found]
import re._parser as parser  # type: ignore[import-not-found]
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ramet.frontend import charsets
from ramet.frontend.anchors import Anchor, Edge, resolve
from ramet.frontend.errors import ConstraintError
from ramet.frontend.regular import Cat, Chars, Node, Times, Union, prune

MAX_BYTES, MAX_DEPTH, MAX_NODES, MAX_REPETITION = 64 * 1024, 64, 10_000, 10_000
_CATEGORIES = {
    constants.CATEGORY_DIGIT: (r"\d", False),
    constants.CATEGORY_NOT_DIGIT: (r"\d", True),
    constants.CATEGORY_SPACE: (r"\s", False),
    constants.CATEGORY_NOT_SPACE: (r"\s", True),
    constants.CATEGORY_WORD: (r"\w", False),
    constants.CATEGORY_NOT_WORD: (r"\w", True),
}
_REFUSED = {
    constants.ASSERT: "look-ahead or look-behind",
    constants.ASSERT_NOT: "negative look-ahead or look-behind",
    constants.GROUPREF: "a back-reference",
    constants.GROUPREF_EXISTS: "a conditional group",
    constants.ATOMIC_GROUP: "an atomic group",
    constants.POSSESSIVE_REPEAT: "a possessive quantifier",
}
_ANCHORS = {
    constants.AT_BEGINNING: "begin",
    constants.AT_BEGINNING_STRING: "begin",
    constants.AT_END: "end or final newline",
    constants.AT_END_STRING: "end",
    constants.AT_BOUNDARY: "boundary",
    constants.AT_NON_BOUNDARY: "no boundary",
}
_LINES = {constants.AT_BEGINNING: "line begin", constants.AT_END: "line end"}


def check(pattern: str) -> None:
    """Raise `ConstraintError` for a pattern that cannot be a constraint; the message begins `regex=...: `."""
    parse(pattern)


def parse(pattern: str, *, flags: int = 0) -> Node:
    """The texts that a pattern matches, as a tree without empty sets in it.

    `flags` are Python's. Raises `ConstraintError` for what is no pattern, what is refused, what exceeds a limit (64 kB,
    64 levels, 10,000 nodes, 10,000 repetitions in repetitions) and what no text matches.
    """
    if not isinstance(pattern, str):
        raise ConstraintError(f"regex={pattern!r}: must be a string")
    size = len(pattern.encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        raise _refusal(pattern, f"has {size} bytes (limit: {MAX_BYTES}); simplify it")
    reader = _Reader(pattern)
    raw = reader.read(_parsed(pattern, flags))
    if reader.anchored:
        raw = _resolved(pattern, raw)
    node = prune(raw)
    if node is None:
        raise _refusal(pattern, "no text matches it")
    return node


def _resolved(pattern: str, raw: Node) -> Node:
    outside = Edge(True, charsets.NOTHING)
    try:
        return resolve(raw, outside, outside)
    except ValueError as undecided:
        raise _refusal(pattern, f"{undecided}; write it without the anchor") from None


def _parsed(pattern: str, flags: int) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return parser.parse(pattern, flags)
    except re.error as error:
        raise _refusal(pattern, f"is no regular expression: {error}") from None
    except (OverflowError, RecursionError) as error:
        limit = "a repetition count" if isinstance(error, OverflowError) else "nesting"
        raise _refusal(pattern, f"{limit} is beyond any limit; simplify it") from None


def _refusal(pattern: str, reason: str) -> ConstraintError:
    shown = pattern if len(pattern) <= 80 else pattern[:77] + "..."
    return ConstraintError(f"regex={shown!r}: {reason}")


@dataclass
class _Reader:
    """Turns `re`'s parse tree into nodes; anchors stay in it as leaves. Counts what the limits are about."""

    pattern: str
    nodes: int = 0
    anchored: bool = False

    def read(self, parsed: Any) -> Node:
        return self._sequence(parsed, parsed.state.flags, depth=1, product=1)

    def _sequence(self, parsed: Any, flags: int, depth: int, product: int) -> Node:
        if depth > MAX_DEPTH:
            raise _refusal(self.pattern, f"is nested more than {MAX_DEPTH} levels deep; simplify it")
        items = tuple(self._item(op, value, flags, depth, product) for op, value in parsed)
        return items[0] if len(items) == 1 else Cat(items)

    def _item(self, op: Any, value: Any, flags: int, depth: int, product: int) -> Node:
        if op in (constants.LITERAL, constants.NOT_LITERAL, constants.IN, constants.ANY, constants.RANGE):
            return Chars(_characters(op, value, flags))
        self._count()
        if op in _REFUSED:
            raise _refusal(self.pattern, f"{_REFUSED[op]} is not supported; it is not a property of the text alone")
        if op is constants.AT:
            return self._anchor(value, flags)
        if op is constants.SUBPATTERN:
            _, added, removed, inner = value
            return self._sequence(inner, _combined(flags, added, removed), depth + 1, product)
        if op is constants.BRANCH:
            return Union(tuple(self._sequence(one, flags, depth + 1, product) for one in value[1]))
        if op in (constants.MAX_REPEAT, constants.MIN_REPEAT):
            return self._repeat(value, flags, depth, product)
        if op is constants.FAILURE:
            return Chars(charsets.NOTHING)
        raise _refusal(self.pattern, f"{str(op).lower()} is not supported")

    def _count(self) -> None:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise _refusal(self.pattern, f"has more than {MAX_NODES} parts; simplify it")

    def _repeat(self, value: Any, flags: int, depth: int, product: int) -> Node:
        low, high, inner = value
        bound = None if high is constants.MAXREPEAT or high == constants.MAXREPEAT else int(high)
        product *= max(1, int(low) if bound is None else bound)
        if product > MAX_REPETITION:
            raise _refusal(
                self.pattern,
                f"repetitions multiply to {product} (limit: {MAX_REPETITION}); use smaller counts, or * or +",
            )
        return Times(self._sequence(inner, flags, depth + 1, product), int(low), bound)

    def _anchor(self, value: Any, flags: int) -> Node:
        self.anchored = True
        kind = _LINES.get(value) if flags & re.MULTILINE else None
        kind = kind or _ANCHORS[value]
        return Anchor(kind, bool(flags & re.ASCII))


def _combined(flags: int, added: int, removed: int) -> int:
    if added & parser.TYPE_FLAGS:
        flags &= ~parser.TYPE_FLAGS
    return int((flags | added) & ~removed)


def _characters(op: Any, value: Any, flags: int) -> charsets.Ranges:
    """The set that one item matches: by the algebra of sets, and by asking `re` where case is ignored."""
    base = _written(op, value, flags)
    if not flags & re.IGNORECASE or op is constants.ANY:
        return base
    if op is constants.LITERAL and not charsets.contains(charsets.cased()[1], value):
        return base
    alone = parser.SubPattern(parser.State(), [(op, value)])  # without the groups of the pattern that it stands in
    single: Callable[[Any, int], re.Pattern[str]] = compiler.compile
    return charsets.ignoring_case(base, single(alone, flags & ~re.DEBUG))


def _written(op: Any, value: Any, flags: int) -> charsets.Ranges:
    if op is constants.LITERAL:
        return charsets.of([(value, value)])
    if op is constants.NOT_LITERAL:
        return charsets.complement(charsets.of([(value, value)]))
    if op is constants.RANGE:
        return charsets.of([value])
    if op is constants.ANY:
        return charsets.ALL if flags & re.DOTALL else charsets.complement(charsets.NEWLINE)
    if op is constants.CATEGORY:
        source, negated = _CATEGORIES[value]
        found = charsets.category(source, bool(flags & re.ASCII))
        return charsets.complement(found) if negated else found
    return _class(value, flags)


def _class(items: Iterable[tuple[Any, Any]], flags: int) -> charsets.Ranges:
    listed = list(items)
    negated = bool(listed) and listed[0][0] is constants.NEGATE
    found = charsets.union(*(_written(op, value, flags) for op, value in listed[negated:]))
    return charsets.complement(found) if negated else found
