"""Context-free grammars, written as rules and terminals of llguidance's Lark dialect.

In: rules. Out: a `Translation` whose texts are exactly those of the grammar. A grammar that is regular after all
becomes one terminal; rules that only repeat themselves become repetitions; see `lexing` for how the rest is divided.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ramet.frontend.errors import ConstraintError
from ramet.frontend.regular import Cat, Node, Times, Union, literal
from ramet.runtime.grammar.lexing import Leaf, Lexing, regular_rules
from ramet.runtime.grammar.rules import (
    Avoid,
    Facts,
    Opaque,
    Ref,
    Rules,
    children,
    longest,
    pruned,
    reachable,
    references,
    walk,
)
from ramet.runtime.grammar.terminals import Terminals, count, source
from ramet.runtime.grammar.translation import Translation

MAX_RULES, MAX_NODES, MAX_DEPTH, MAX_REPETITION, MAX_CHAIN = 2000, 20_000, 64, 10_000, 800


def translate(rules: Rules, start: str, field: str, notes: tuple[str, ...] = ()) -> Translation:
    """A grammar as rules of llguidance. Raises `ConstraintError` whose message begins with `field`."""
    try:
        return _translate(rules, start, notes)
    except ConstraintError as error:
        raise ConstraintError(f"{field}: {error.message}") from None


def _translate(rules: Rules, start: str, notes: tuple[str, ...]) -> Translation:
    check_limits(rules)
    rules = reachable(rules, start)
    facts = Facts(rules)
    if start not in facts.productive:
        raise ConstraintError(f"no text can be derived from {start!r}; every rule needs a way to end")
    kept = {name: pruned(body, facts) for name, body in rules.items()}
    rules = reachable({name: _repeated(name, body) for name, body in kept.items() if body is not None}, start)
    _check_chain(rules, start)
    writer = _Writer(rules, regular_rules(rules))
    if start in writer.regular:
        lark = f"start: {writer.terminal_of_rule(start)}\n"
    else:
        lark = writer.rules_from(start, Facts(rules))
    return Translation(lark + "".join(writer.terminals.lines), facts.shortest.get(start), longest(rules, start), notes)


def check_limits(rules: Rules) -> None:
    """Raise `ConstraintError` for grammars that are too large to look at."""
    if len(rules) > MAX_RULES:
        raise ConstraintError(f"has {len(rules)} rules (limit: {MAX_RULES}); simplify it")
    nodes = 0
    for name, body in rules.items():
        nodes += sum(not isinstance(one, Cat) for one in walk(body))
        if nodes > MAX_NODES * 8:
            raise ConstraintError(f"has more than {MAX_NODES * 8} parts; simplify it")
        _check_depth(name, body)


def _check_depth(name: str, body: Node) -> None:
    level, depth, product = [(body, 1)], 0, 1
    while level:
        depth += 1
        if depth > 2 * MAX_DEPTH:
            raise ConstraintError(f"rule {name!r} is nested more than {MAX_DEPTH} levels deep; give its parts names")
        below = []
        for node, times in level:
            if isinstance(node, Times):
                times *= max(1, node.low if node.high is None else node.high)
                product = max(product, times)
            below += [(one, times) for one in children(node)]
        if product > MAX_REPETITION:
            raise ConstraintError(f"rule {name!r}: repetitions multiply to {product} (limit: {MAX_REPETITION})")
        level = below


def _check_chain(rules: Rules, start: str) -> None:
    """Refuse rules that refer to each other in long chains: llguidance reads them recursively, on a bounded stack."""
    heights = {name: _height(body) for name, body in rules.items()}
    seen, depth = {start}, heights[start]
    path = [(start, iter(_mentions(rules[start])))]
    while path:
        name = next((one for one in path[-1][1] if one not in seen), None)
        if name is None:
            depth -= heights[path.pop()[0]]
            continue
        seen.add(name)
        depth += heights[name]
        if depth > MAX_CHAIN:
            raise ConstraintError(f"rules refer to each other in a chain of more than {MAX_CHAIN}; shorten it")
        path.append((name, iter(_mentions(rules[name]))))


def _mentions(node: Node) -> list[str]:
    return [one.name for one in walk(node) if isinstance(one, Ref)][::-1]


def _height(node: Node) -> int:
    """How many rules one after the other a body becomes: itself, and one for each level of groups."""
    level, height = [node], 0
    while level:
        height += 1
        level = [one for above in level for one in children(above) if children(one)]
    return height


def _repeated(name: str, body: Node) -> Node:
    """A rule that refers to itself only at the end (or only at the beginning) of its alternatives, as a repetition."""
    options = _options(body)
    again = [option for option in options if name in references(Cat(option))]
    if not again:
        return body
    base = [Cat(option) for option in options if option not in again]
    for at, rest in ((-1, slice(None, -1)), (0, slice(1, None))):
        steps = [Cat(option[rest]) for option in again if option[at] == Ref(name)]
        if len(steps) == len(again) and not any(name in references(step) for step in steps):
            loop, once = Times(_any_of(steps), 0, None), _any_of(base)
            return Cat((loop, once) if at else (once, loop))
    return body


def _any_of(options: list[Cat]) -> Node:
    return options[0] if len(options) == 1 else Union(tuple(options))


def _options(node: Node) -> list[tuple[Node, ...]]:
    """The alternatives of a body, each as the items of a sequence."""
    if isinstance(node, Union):
        return [option for one in node.items for option in _options(one)]
    if isinstance(node, Times) and (node.low, node.high) == (0, 1):
        return [*_options(node.item), ()]
    if isinstance(node, Cat) and len(node.items) == 1:
        return _options(node.items[0])
    return [tuple(_items(node))]


def _items(node: Node) -> list[Node]:
    return [part for one in node.items for part in _items(one)] if isinstance(node, Cat) else [node]


@dataclass
class _Writer:
    """Writes terminals and rules. Rules are named r0, r1, ...; names of the user's grammar do not appear."""

    rules: Rules
    regular: dict[str, Node]
    lines: list[str] = field(default_factory=list)
    _rule_terminals: dict[str, str] = field(default_factory=dict)
    _names: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.terminals = Terminals(others=self._other)

    def terminal_of_rule(self, name: str) -> str:
        """The terminal of a regular rule; those that it refers to come first."""
        pending = [] if name in self._rule_terminals else [name]
        while pending:
            needed = references(self.regular[pending[-1]]) - self._rule_terminals.keys()
            if needed:
                pending.extend(needed)
                continue
            done = pending.pop()
            self._rule_terminals[done] = self.terminals.add(self.regular[done])
        return self._rule_terminals[name]

    def _other(self, node: Node) -> str:
        if isinstance(node, Ref):
            return self.terminal_of_rule(node.name)
        assert isinstance(node, Avoid), f"{type(node).__name__} is no terminal"
        return self.terminals.define(_free(node))

    def rules_from(self, start: str, facts: Facts) -> str:
        """The rules that `start` needs, as text."""
        lexing = Lexing(self.rules, start, facts, self.regular)
        lexing.settle()
        self._names = {name: f"r{number}" for number, name in enumerate(lexing.bodies)}
        for name, body in lexing.bodies.items():
            self.lines.append(f"{self._names[name]}: {self._body(body, lexing)}\n")
        return f"start: {self._names[start]}\n" + "".join(self.lines)

    def _body(self, node: Node, lexing: Lexing) -> str:
        if isinstance(node, Union):
            return " | ".join(self._atom(one, lexing) for one in node.items)
        if isinstance(node, Cat):
            return " ".join(self._atom(one, lexing) for one in node.items) or '""'
        return self._atom(node, lexing)

    def _atom(self, node: Node, lexing: Lexing) -> str:
        if isinstance(node, Ref):
            return self._names[node.name]
        if isinstance(node, Times):
            inner = self._atom(node.item, lexing)
            return (self._helper(inner) if isinstance(node.item, Times) else inner) + count(node.low, node.high)
        if isinstance(node, Leaf):
            leaf = lexing.leaves[node.number]
            if not isinstance(leaf, Opaque):
                return self.terminals.add(leaf)
            return self._helper(f"%lark {{\n{leaf.lark}\n}}")
        return self._helper(self._body(node, lexing))

    def _helper(self, body: str) -> str:
        name = f"h{len(self.lines)}"
        self.lines.append(f"{name}: {body}\n")
        return name


def _free(node: Avoid) -> str:
    """Free text as a terminal. In its complement any bytes may stand, so it is cut with all text."""
    stops = [source(literal(stop)) for stop in (*node.avoid, *node.end)]
    if not stops:
        return "/(?s:.*)/"
    some = "(?:" + "|".join(stops) + ")"
    if not node.end:
        return f"/(?s:.*)/ & ~/(?s:.*){some}(?s:.*)/"
    ends = "(?:" + "|".join(source(literal(end)) for end in node.end) + ")"
    return f"/(?s:.*){ends}/ & ~/(?s:.*){some}(?s:.)+/"
