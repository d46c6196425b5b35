"""Arrays of JSON schemas as rules.

In: an array shape whose items are states. Out: rules. Plain arrays are a row of items and a tail; those with `contains`
or `uniqueItems` become a small graph that counts, whose nodes are rules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Final, Protocol

from ramet.runtime.grammar.json_keywords import listed
from ramet.runtime.grammar.json_layout import Layout, Rules
from ramet.runtime.grammar.json_shapes import NOTHING, Arr, Shape, State, Unenforced, unite

MOST_ITEMS: Final = 10_000
MOST_TEXT: Final = 100_000
MOST_NODES: Final = 4_096
MOST_UNIQUE: Final = 60  # they are bits of a parameter of 64


class Writer(Protocol):
    """What rules of arrays and objects need of the emitter."""

    layout: Layout
    rules: Rules

    def alive(self, state: State) -> bool:
        """Whether a state has texts."""

    def text(self, state: State) -> str | None:
        """A short text of a state that has texts."""

    def value(self, state: State) -> str:
        """The rule of a state that has texts."""


@dataclass(frozen=True)
class Graph:
    """Nodes 0 (the start) to n: where the array may end, and what items lead where."""

    ends: tuple[bool, ...]
    edges: tuple[tuple[tuple[State, int], ...], ...]


@dataclass(frozen=True)
class Unique:
    """The values of an array each of which may occur once, as states."""

    values: tuple[State, ...]


def plain(shape: Arr) -> Arr:
    """The shape without demands that bounds already fulfil."""
    if shape.low > MOST_ITEMS:
        raise Unenforced("minItems", f"{shape.low} is above {MOST_ITEMS} (limit: items)", shape.low)
    if shape.high is not None and shape.high > MOST_ITEMS:
        shape = replace(shape, high=MOST_ITEMS)
    return replace(shape, unique=False) if shape.high is not None and shape.high <= 1 else shape


def graph(shape: Arr, shapes: Callable[[State], Sequence[Shape]]) -> Graph | Unique | None:
    """The graph of an array that counts; None for a plain one."""
    if shape.unique:
        if shape.contains:
            raise Unenforced("uniqueItems", "is not supported together with contains")
        return _unique(shape, shapes)
    return _counting(shape) if shape.contains else None


def _walked(
    start: tuple[int, ...],
    ends: Callable[[tuple[int, ...]], bool],
    edges: Callable[[tuple[int, ...]], list[tuple[State, tuple[int, ...]]]],
) -> Graph:
    """Number what can be reached from `start`."""
    numbers, order = {start: 0}, [start]
    found: list[tuple[tuple[State, int], ...]] = []
    for here in order:
        row = []
        for state, there in edges(here):
            if state == NOTHING:
                continue
            if there not in numbers:
                numbers[there] = len(order)
                order.append(there)
            row.append((state, numbers[there]))
        found.append(tuple(row))
        if len(order) > MOST_NODES:
            raise Unenforced("contains", "the bounds beside it are too high (limit: combinations)")
    return Graph(tuple(ends(node) for node in order), tuple(found))


def _counting(shape: Arr) -> Graph:
    """Nodes are how many items there are, and for each `contains` how many of them it counts."""
    far = max(1, shape.prefix, shape.low, shape.high or 0)  # only the start has no item before it
    caps = [one.low if one.high is None else one.high for one in shape.contains]

    def edges(node: tuple[int, ...]) -> list[tuple[State, tuple[int, ...]]]:
        count, seen = node[0], node[1:]
        if shape.high is not None and count >= shape.high:
            return []
        found = []
        for hits in product((False, True), repeat=len(seen)):
            states, after = [shape.at(count)], list(seen)
            for i, (hit, one) in enumerate(zip(hits, shape.contains, strict=True)):
                if hit and seen[i] >= caps[i]:
                    break
                after[i] += hit
                states += [one.state] if hit else [one.rest] if one.high is not None else []
            else:
                found.append((unite(states), (min(count + 1, far), *after)))
        return found

    def ends(node: tuple[int, ...]) -> bool:
        return node[0] >= shape.low and all(n >= one.low for n, one in zip(node[1:], shape.contains, strict=True))

    return _walked((0, *(0 for _ in caps)), ends, edges)


def _unique(shape: Arr, shapes: Callable[[State], Sequence[Shape]]) -> Unique:
    if shape.prefix:
        raise Unenforced("uniqueItems", "is not supported together with prefixItems")
    values: dict[str, None] = {}
    for one in shapes(shape.at(0)):
        texts = listed(one)
        if texts is None or len(values := values | dict.fromkeys(texts)) > MOST_UNIQUE:
            raise _endless()
    return Unique(tuple(frozenset({("is", text, True)}) for text in values))


def _endless() -> Unenforced:
    return Unenforced(
        "uniqueItems",
        f"is supported for items with up to {MOST_UNIQUE} known values (enum, const) or with maxItems=1; leave it out "
        "and check the value, or list the values",
    )


def unique_text(shape: Arr, found: Unique, writer: Writer) -> tuple[bool, str | None]:
    """Whether there are values enough, and the shortest array of them."""
    alive = [state for state in found.values if writer.alive(state)]
    texts = sorted((writer.text(state) or "?" for state in alive), key=len)[: shape.low]
    return len(alive) >= shape.low, None if "?" in texts else "[" + ", ".join(texts) + "]"


def graph_text(found: Graph, writer: Writer) -> tuple[bool, str | None]:
    """Whether a graph leads to an end through items that have texts, and the shortest such array."""
    best: list[list[str] | None] = [[] if end else None for end in found.ends]
    for _ in range(len(found.ends)):
        changed = False
        for here, row in enumerate(found.edges):
            for state, there in row:
                rest = best[there]
                if rest is None or not writer.alive(state):
                    continue
                texts = [writer.text(state) or "?", *rest]
                mine = best[here]
                if mine is None or len(", ".join(texts)) < len(", ".join(mine)):
                    best[here], changed = texts, True
        if not changed:
            break
    found_texts = best[0]
    if found_texts is None:
        return False, None
    return True, None if "?" in found_texts else "[" + ", ".join(found_texts) + "]"


def plain_text(shape: Arr, writer: Writer) -> tuple[bool, str | None]:
    """Whether a plain array has texts, and the shortest."""
    states = [shape.at(i) for i in range(min(shape.low, shape.prefix))]
    more = shape.low - len(states)
    if more > 0:
        states.append(shape.at(shape.prefix))
    if not all(writer.alive(state) for state in states):
        return False, None
    texts = [writer.text(state) for state in states]
    if texts and more * len(texts[-1] or "") > MOST_TEXT:
        return True, None
    texts += texts[-1:] * max(0, more - 1)
    known = [text for text in texts if text is not None]
    return True, "[" + ", ".join(known) + "]" if len(known) == len(texts) else None


def array_rules(writer: Writer, shape: Arr, found: Graph | Unique | None) -> list[str]:
    """What a rule offers for an array."""
    layout = writer.layout
    if isinstance(found, Unique):
        inside = _subsets(writer, shape, found)
    else:
        inside = _row(writer, shape) if found is None else _nodes(writer, found)
    return [f"{layout.open_array} {inside} {layout.close_array}"]


def _row(writer: Writer, shape: Arr) -> str:
    """The items of a plain array: those that must be there, then each optional one around the next, then the tail."""
    high = shape.high
    for i in range(shape.prefix):
        if not writer.alive(shape.at(i)):
            high = i if high is None else min(high, i)
            break
    size = shape.prefix if high is None else min(shape.prefix, high)
    comma = writer.layout.separator
    rest = ""
    if (high is None or high > size) and writer.alive(shape.at(shape.prefix)) and size == shape.prefix:
        rest = _tail(writer, shape, high)
    for i in reversed(range(size)):
        item = f"{comma} {writer.value(shape.at(i))}" if i else writer.value(shape.at(i))
        rest = f"{item} {rest}"
        if i >= shape.low:
            rest = writer.rules.define(writer.rules.fresh(), ['""', rest])
    return rest


def _tail(writer: Writer, shape: Arr, high: int | None) -> str:
    item, comma = writer.value(shape.at(shape.prefix)), writer.layout.separator
    low = max(0, shape.low - shape.prefix)
    most = None if high is None else high - shape.prefix
    if shape.prefix:
        return times(f"({comma} {item})", low, most)
    rest = f"{item} " + times(f"({comma} {item})", max(0, low - 1), None if most is None else most - 1)
    return rest if low else writer.rules.define(writer.rules.fresh(), ['""', rest])


def times(piece: str, low: int, high: int | None) -> str:
    """A piece of a rule `low` to `high` times."""
    if high == 0:
        return ""
    return f"{piece}*" if low == 0 and high is None else f"{piece}{{{low},{'' if high is None else high}}}"


def _subsets(writer: Writer, shape: Arr, found: Unique) -> str:
    """A rule whose parameter has a bit for each value that has been used."""
    name, comma = writer.rules.fresh(), writer.layout.separator
    most = len(found.values) if shape.high is None else min(shape.high, len(found.values))
    if not most or not any(writer.alive(state) for state in found.values):
        return ""
    options = [f'"" %if bit_count_ge(_, {shape.low})']
    for bit, state in enumerate(found.values):
        if writer.alive(state):
            item, fresh = writer.value(state), f"bit_clear({bit})"
            options.append(f"{item} {name}::set_bit({bit}) %if is_zeros(_)")
            more = f"and(not(is_zeros(_)), and({fresh}, bit_count_lt(_, {most})))"
            options.append(f"{comma} {item} {name}::set_bit({bit}) %if {more}")
    writer.rules.define(f"{name}::_", options)
    return f"{name}::0x0"


def _nodes(writer: Writer, found: Graph) -> str:
    """A rule for each node from which an end can be reached."""
    useful = _useful(writer, found)
    names = {i: writer.rules.fresh() for i in useful}
    comma = writer.layout.separator
    for i, name in names.items():
        options = ['""'] if found.ends[i] else []
        for state, there in found.edges[i]:
            if there in names and writer.alive(state):
                options.append(f"{'' if i == 0 else comma} {writer.value(state)} {names[there]}")
        writer.rules.define(name, list(dict.fromkeys(options)))
    return names[0]


def _useful(writer: Writer, found: Graph) -> list[int]:
    good = {i for i, end in enumerate(found.ends) if end}
    changed = True
    while changed:
        before = len(good)
        good |= {i for i, row in enumerate(found.edges) if any(t in good and writer.alive(state) for state, t in row)}
        changed = len(good) > before
    return sorted(good)
