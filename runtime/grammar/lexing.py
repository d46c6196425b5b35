"""Which parts of a grammar become terminals, so that a lexer that takes the longest match never takes a wrong one.

In: rules. Out: the same rules over `Leaf` nodes, each of which is one terminal (or an opaque language).

llguidance reads terminals greedily: after "a" a terminal "ab" that is possible here too goes on if it can, and the
alternative "a" "bc" is lost. So the largest regular parts are tried as terminals first; where one could overtake
another that is possible at the same place, it is taken apart one level, down to single characters, which cannot.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ramet.frontend import charsets
from ramet.frontend.charsets import Ranges
from ramet.frontend.errors import ConstraintError
from ramet.frontend.regular import Cat, Chars, Node, Text, Times, Union, single
from ramet.runtime.grammar import nfa
from ramet.runtime.grammar.rules import Avoid, Facts, Opaque, Ref, Rules, children, in_order, references, walk


@dataclass(frozen=True)
class Leaf(Node):
    """The terminal, or opaque language, of this number."""

    number: int


def regular_rules(rules: Rules) -> dict[str, Node]:
    """The rules whose language a terminal can hold, each after those that it refers to."""
    found: dict[str, Node] = {}
    for name in in_order(rules):
        body = rules[name]
        if references(body) <= found.keys() and not any(isinstance(one, Opaque) for one in walk(body)):
            found[name] = body
    return found


@dataclass
class Lexing:
    """Rules over leaves. `leaves[n]` is what leaf n stands for; `apart` are the regular parts that were taken apart."""

    rules: Rules
    start: str
    facts: Facts
    regular: dict[str, Node]
    apart: set[Node] = field(default_factory=set)
    leaves: list[Node] = field(default_factory=list)
    bodies: Rules = field(default_factory=dict)
    _automata: dict[Node, nfa.Automaton | None] = field(default_factory=dict)
    _known: dict[tuple[Node, Ranges | None, Node], bool] = field(default_factory=dict)

    def settle(self) -> None:
        """Take parts apart until no terminal can overtake another. Raises `ConstraintError` where that cannot be."""
        while True:
            self.leaves, self.bodies = [], {}
            pending = [self.start]
            while pending:
                name = pending.pop()
                if name not in self.bodies:
                    self.bodies[name] = self._expression(self.rules[name])
                    pending.extend(references(self.bodies[name]))
            wrong = self._overtaking()
            if not wrong:
                return
            self.apart |= wrong

    def _expression(self, node: Node) -> Node:
        if isinstance(node, Opaque) or (self._regular(node) and node not in self.apart):
            self.leaves.append(node)
            return Leaf(len(self.leaves) - 1)
        if isinstance(node, Times):
            return Times(self._expression(node.item), node.low, node.high)
        if isinstance(node, Text):
            return Cat(tuple(self._expression(single(char)) for char in node.text))
        if isinstance(node, (Cat, Union)):
            items = node.items if node in self.apart else self._grouped(node)
            return type(node)(tuple(map(self._expression, items)))
        return node

    def _regular(self, node: Node) -> bool:
        return all(one.name in self.regular for one in walk(node) if isinstance(one, Ref)) and not any(
            isinstance(one, Opaque) for one in walk(node)
        )

    def _grouped(self, node: Cat | Union) -> list[Node]:
        """The items, with neighbours that are regular (in a union: all of them) made into one."""
        groups: list[list[Node]] = []
        for one in node.items if isinstance(node, Cat) else sorted(node.items, key=self._regular):
            if groups and self._regular(one) and self._regular(groups[-1][0]):
                groups[-1].append(one)
            else:
                groups.append([one])
        return [group[0] if len(group) == 1 else type(node)(tuple(group)) for group in groups]

    def _overtaking(self) -> set[Node]:
        places = _Places(self)
        wrong: set[Node] = set()
        for one, other in places.together():
            first, second, follow = self.leaves[one], self.leaves[other], places.follow[one]
            if isinstance(first, Opaque) or isinstance(second, Opaque):
                self._check_opaque(first, second, follow)
            elif follow and self._ask(first, follow, second):
                if isinstance(second, Avoid):
                    raise ConstraintError("free text may itself contain what follows it; give it an end that it avoids")
                wrong.add(second)
        return wrong

    def _check_opaque(self, first: Node, second: Node, follow: Ranges) -> None:
        if isinstance(first, Opaque) and charsets.intersection(first.more, follow):
            raise ConstraintError("a JSON number is followed by what could be part of it; put a separator between them")
        mixed = not (isinstance(first, Opaque) and isinstance(second, Opaque))
        if mixed and charsets.intersection(self.facts.first(first), self.facts.first(second)):
            raise ConstraintError(
                "JSON and other text may begin alike at the same place; let the other begin differently"
            )

    def share_text(self, first: Node, second: Node) -> bool:
        """Whether two leaves may end at the same place. True where that is not found out."""
        if first == second or isinstance(first, Opaque) or isinstance(second, Opaque):
            return first == second or bool(charsets.intersection(self.facts.first(first), self.facts.first(second)))
        return self._ask(first, None, second)

    def _ask(self, first: Node, follow: Ranges | None, second: Node) -> bool:
        if not charsets.intersection(self.facts.first(first), self.facts.first(second)):
            return False
        if follow is not None and isinstance(second, Chars):
            return False  # one character cannot go on
        if isinstance(first, Text) and isinstance(second, Text):
            rest = second.text[len(first.text) :]
            begins = second.text.startswith(first.text)
            return begins and (not rest if follow is None else rest != "" and charsets.contains(follow, ord(rest[0])))
        key = (first, follow, second)
        if key not in self._known:
            self._known[key] = self._search(self._automaton(first), follow, self._automaton(second))
        return self._known[key]

    def _search(self, first: nfa.Automaton | None, follow: Ranges | None, second: nfa.Automaton | None) -> bool:
        try:
            if first is None or second is None:
                return True
            return nfa.share_text(first, second) if follow is None else nfa.overtakes(first, follow, second)
        except nfa.TooLarge:
            return True

    def _automaton(self, node: Node) -> nfa.Automaton | None:
        if node not in self._automata:
            try:
                self._automata[node] = nfa.build(node, self.regular)
            except (nfa.TooLarge, RecursionError):
                self._automata[node] = None
        return self._automata[node]


class _Places:
    """Where leaves stand: which may follow which, and which may be possible at the same place. Sets of leaves are bits
    of an integer. Rules are looked at without their callers, so what is found is at most too much."""

    def __init__(self, lexing: Lexing) -> None:
        self.lexing = lexing
        self.empty = [lexing.facts.nullable(leaf) for leaf in lexing.leaves]
        self.begins: dict[str, int] = dict.fromkeys(lexing.bodies, 0)
        self.after: dict[str, int] = dict.fromkeys(lexing.bodies, 0)
        self.next = [0] * len(lexing.leaves)
        self._fixpoint()
        chars = [lexing.facts.first(leaf) for leaf in lexing.leaves]
        self.follow = [charsets.union(*(chars[at] for at in _bits(found))) for found in self.next]

    def _fixpoint(self) -> None:
        before: object = None
        while before != (state := (dict(self.begins), dict(self.after), list(self.next))):
            before = state
            for name, body in reversed(self.lexing.bodies.items()):  # callees first, as far as there is an order
                self.begins[name] |= self._first(body)
            for name, body in self.lexing.bodies.items():
                self._follow(body, self.after[name])

    def _nullable(self, node: Node) -> bool:
        if isinstance(node, Leaf):
            return self.empty[node.number]
        if isinstance(node, Ref):
            return node.name in self.lexing.facts.empty
        if isinstance(node, Times):
            return node.low == 0 or self._nullable(node.item)
        return (any if isinstance(node, Union) else all)(map(self._nullable, children(node)))

    def _first(self, node: Node) -> int:
        if isinstance(node, Leaf):
            return 1 << node.number
        if isinstance(node, Ref):
            return self.begins[node.name]
        found = 0
        for one in children(node):
            found |= self._first(one)
            if isinstance(node, Cat) and not self._nullable(one):
                break
        return found

    def _follow(self, node: Node, after: int) -> None:
        if isinstance(node, Leaf):
            self.next[node.number] |= after
        elif isinstance(node, Ref):
            self.after[node.name] |= after
        elif isinstance(node, Times):
            self._follow(node.item, after | (self._first(node.item) if node.high != 1 else 0))
        elif isinstance(node, Cat):
            for one in reversed(node.items):
                self._follow(one, after)
                after = self._first(one) | (after if self._nullable(one) else 0)
        else:
            for one in children(node):
                self._follow(one, after)

    def together(self) -> list[tuple[int, int]]:
        """Pairs of leaves, in both orders and each with itself, that may be possible at the same place."""
        beside = [0] * len(self.next)
        pending = [(self.begins[self.lexing.start], self.begins[self.lexing.start])]
        found: list[tuple[int, int]] = []
        while pending:
            left, right = pending.pop()
            for one in _bits(left):
                new = right & ~beside[one]
                beside[one] |= new
                for other in _bits(new):
                    found.append((one, other))
                    if self.lexing.share_text(self.lexing.leaves[one], self.lexing.leaves[other]):
                        pending.append((self.next[one], self.next[other]))
        return found


def _bits(number: int) -> list[int]:
    found = []
    while number:
        low = number & -number
        found.append(low.bit_length() - 1)
        number ^= low
    return found
