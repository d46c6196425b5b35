"""Automata of terminals, for one question: can a lexer that takes the longest match take the wrong one?

In: regular trees (rules inlined). Out: nondeterministic automata over characters, and searches in the product of two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ramet.frontend import charsets
from ramet.frontend.charsets import Ranges
from ramet.frontend.regular import Cat, Chars, Node, Text, Times, Union, single
from ramet.runtime.grammar.rules import Avoid, Ref, Rules

MAX_STATES, MAX_PAIRS = 4000, 60_000


class TooLarge(Exception):
    """The automaton, or the product of two, has more states than are looked at."""


@dataclass
class Automaton:
    """Character edges and empty edges per state; every state can reach `accept`, a state of its own."""

    edges: list[list[tuple[Ranges, int]]] = field(default_factory=list)
    empty: list[list[int]] = field(default_factory=list)
    start: int = 0
    accept: int = 0

    def state(self) -> int:
        """A new state."""
        if len(self.edges) >= MAX_STATES:
            raise TooLarge
        self.edges.append([])
        self.empty.append([])
        return len(self.edges) - 1

    def closure(self, states: set[int]) -> frozenset[int]:
        """All states that are reached without a character."""
        pending, found = list(states), set(states)
        while pending:
            for state in self.empty[pending.pop()]:
                if state not in found:
                    found.add(state)
                    pending.append(state)
        return frozenset(found)


def build(node: Node, rules: Rules) -> Automaton:
    """The automaton of a regular tree; references are followed into `rules`. Raises `TooLarge`."""
    made = Automaton()
    made.start, made.accept = made.state(), made.state()
    _add(made, node, rules, made.start, made.accept)
    return made


def _add(made: Automaton, node: Node, rules: Rules, begin: int, end: int) -> None:
    if isinstance(node, Chars):
        made.edges[begin].append((node.ranges, end))
    elif isinstance(node, Text):
        for char in node.text[:-1]:
            after = made.state()
            made.edges[begin].append((single(char).ranges, after))
            begin = after
        made.edges[begin].append((single(node.text[-1]).ranges, end))
    elif isinstance(node, Ref):
        _add(made, rules[node.name], rules, begin, end)
    elif isinstance(node, Union):
        for item in node.items:
            _add(made, item, rules, begin, end)
    elif isinstance(node, Cat):
        for item in node.items:
            after = made.state()
            _add(made, item, rules, begin, after)
            begin = after
        made.empty[begin].append(end)
    elif isinstance(node, Times):
        _times(made, node, rules, begin, end)
    elif isinstance(node, Avoid):
        _avoid(made, node, begin, end)


def _times(made: Automaton, node: Times, rules: Rules, begin: int, end: int) -> None:
    for _ in range(node.low):
        after = made.state()
        _add(made, node.item, rules, begin, after)
        begin = after
    if node.high is None:
        loop = made.state()
        made.empty[begin].append(loop)
        after = made.state()
        _add(made, node.item, rules, loop, after)
        made.empty[after].append(loop)
        made.empty[loop].append(end)
        return
    made.empty[begin].append(end)
    for _ in range(node.high - node.low):
        after = made.state()
        inner = made.state()
        made.empty[begin].append(inner)
        _add(made, node.item, rules, inner, after)
        made.empty[after].append(end)
        begin = after


def _avoid(made: Automaton, node: Avoid, begin: int, end: int) -> None:
    """The states are the beginnings of stops that the text may be in (Aho and Corasick, 1975)."""
    stops = node.avoid + node.end
    states = {"": made.state()}
    for stop in stops:
        for size in range(1, len(stop)):
            states.setdefault(stop[:size], -1)
    for prefix, state in states.items():
        states[prefix] = made.state() if state < 0 else state
    made.empty[begin].append(states[""])
    alphabet = sorted(set("".join(stops)))
    others = charsets.complement(charsets.characters("".join(alphabet)))
    for prefix, state in states.items():
        if not node.end:
            made.empty[state].append(end)
        made.edges[state].append((others, states[""]))
        for char in alphabet:
            text = prefix + char
            while text not in states and text not in stops:
                text = text[1:]
            target = states.get(text, end if text in node.end else -1)
            if target >= 0:
                made.edges[state].append((charsets.characters(char), target))


def overtakes(first: Automaton, follow: Ranges, second: Automaton) -> bool:
    """Whether a non-empty text of `first` and one more character of `follow` can begin a text of `second`. Raises
    `TooLarge`."""

    def found(left: frozenset[int], right: frozenset[int]) -> bool:
        if first.accept not in left:
            return False
        return any(charsets.intersection(ranges, follow) for state in right for ranges, _ in second.edges[state])

    return _search(first, second, found)


def share_text(first: Automaton, second: Automaton) -> bool:
    """Whether some non-empty text is in both. Raises `TooLarge`."""
    return _search(first, second, lambda left, right: first.accept in left and second.accept in right)


def _search(first: Automaton, second: Automaton, found: Callable[[frozenset[int], frozenset[int]], bool]) -> bool:
    """Walk all pairs of single states (with what they reach without a character) that one text leads to."""
    closures = {id(first): dict[int, frozenset[int]](), id(second): dict[int, frozenset[int]]()}

    def closed(automaton: Automaton, state: int) -> frozenset[int]:
        known = closures[id(automaton)]
        if state not in known:
            known[state] = automaton.closure({state})
        return known[state]

    seen = {(first.start, second.start)}
    pending = list(seen)
    while pending:
        a, b = pending.pop()
        left, right = closed(first, a), closed(second, b)
        if a != first.start and found(left, right):  # no edge leads back to the start: the text is not empty
            return True
        others = [edge for state in right for edge in second.edges[state]]
        for state in left:
            for ranges, target in first.edges[state]:
                for ranges2, target2 in others:
                    if (target, target2) not in seen and charsets.intersection(ranges, ranges2):
                        if len(seen) >= MAX_PAIRS:
                            raise TooLarge
                        seen.add((target, target2))
                        pending.append((target, target2))
    return False
