"""Context-free grammars as trees: what EBNF, Lark and structural tags are read into.

In: nodes of `ramet.frontend.regular` and the ones defined here. Out: what can be said of the rules without a parser:
which have no text at all, which may be empty, how they may begin, a shortest text, the most bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from ramet.frontend import charsets
from ramet.frontend.charsets import Ranges
from ramet.frontend.regular import Cat, Chars, Node, Text, Times, Union, single

MAX_SHORTEST = 64 * 1024


@dataclass(frozen=True)
class Ref(Node):
    """A text of the rule of this name."""

    name: str


@dataclass(frozen=True)
class Avoid(Node):
    """Free text in which none of `avoid` occurs. With `end`: it ends with the first occurrence of one of these. No
    string of `avoid` and `end` is part of another."""

    avoid: tuple[str, ...]
    end: tuple[str, ...] = ()


@dataclass(frozen=True)
class Opaque(Node):
    """A language that is not looked into: `lark` are its rules (with `start`), `first` the characters that it may begin
    with, `more` those that could go on after a complete text. Its texts are never empty."""

    lark: str
    first: Ranges
    more: Ranges
    shortest: bytes | None = None
    longest: int | None = None


Rules = dict[str, Node]


def children(node: Node) -> tuple[Node, ...]:
    """The nodes right below."""
    if isinstance(node, (Cat, Union)):
        return node.items
    return (node.item,) if isinstance(node, Times) else ()


def walk(node: Node) -> Iterator[Node]:
    """The node and everything below, rules that it refers to excepted."""
    pending = [node]
    while pending:
        node = pending.pop()
        yield node
        pending.extend(children(node))


def renamed(node: Node, prefix: str) -> Node:
    """The tree with `prefix` before the names of all rules that it refers to."""
    if isinstance(node, Ref):
        return Ref(prefix + node.name)
    if isinstance(node, Times):
        return Times(renamed(node.item, prefix), node.low, node.high)
    if isinstance(node, (Cat, Union)):
        return type(node)(tuple(renamed(item, prefix) for item in node.items))
    return node


def references(node: Node) -> frozenset[str]:
    """The rules that a tree refers to directly."""
    return frozenset(part.name for part in walk(node) if isinstance(part, Ref))


def reachable(rules: Rules, start: str) -> Rules:
    """The rules that a text of `start` can need, in the order of `rules`."""
    found, pending = {start}, [start]
    while pending:
        for name in references(rules[pending.pop()]) - found:
            found.add(name)
            pending.append(name)
    return {name: body for name, body in rules.items() if name in found}


def in_order(rules: Rules) -> list[str]:
    """The rules that need neither themselves nor a rule that does, each after those that it refers to."""
    needed = {name: set(references(body)) for name, body in rules.items()}
    users = callers(rules)
    order = [name for name, names in needed.items() if not names]
    for name in order:  # grows while it is walked
        for user in users[name]:
            needed[user].discard(name)
            if not needed[user]:
                order.append(user)
    return order


def callers(rules: Rules) -> dict[str, list[str]]:
    """For each rule those that refer to it."""
    users: dict[str, list[str]] = {name: [] for name in rules}
    for name, body in rules.items():
        for used in references(body):
            users[used].append(name)
    return users


@dataclass
class Facts:
    """What is known of each rule, by fixpoints over all of them. `shortest` has no entry where nothing is known."""

    rules: Rules
    productive: set[str] = field(default_factory=set)
    empty: set[str] = field(default_factory=set)
    begins: dict[str, Ranges] = field(default_factory=dict)
    shortest: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        users, order = callers(self.rules), in_order(self.rules)
        pending = deque([*order, *(name for name in self.rules if name not in set(order))])
        waiting = set(pending)
        while pending:
            name = pending.popleft()
            waiting.discard(name)
            if self._update(name, self.rules[name]):
                fresh = [user for user in users[name] if user not in waiting]
                pending.extend(fresh)
                waiting.update(fresh)

    def _update(self, name: str, body: Node) -> bool:
        before = (name in self.productive, name in self.empty, self.begins.get(name), self.shortest.get(name))
        if self.has_text(body):
            self.productive.add(name)
        if self.nullable(body):
            self.empty.add(name)
        self.begins[name] = self.first(body)
        text = self.short(body)
        if text is not None and len(text) < len(self.shortest.get(name, bytes(MAX_SHORTEST + 1))):
            self.shortest[name] = text
        return before != (name in self.productive, name in self.empty, self.begins[name], self.shortest.get(name))

    def has_text(self, node: Node) -> bool:
        """Whether there is any text at all."""
        if isinstance(node, Ref):
            return node.name in self.productive
        if isinstance(node, Chars):
            return bool(node.ranges)
        if isinstance(node, Union):
            return any(map(self.has_text, node.items))
        if isinstance(node, Times):
            return node.low == 0 or self.has_text(node.item)
        return all(map(self.has_text, children(node)))

    def nullable(self, node: Node) -> bool:
        """Whether the empty text is one of its texts."""
        if isinstance(node, Ref):
            return node.name in self.empty
        if isinstance(node, Avoid):
            return not node.end
        if isinstance(node, Union):
            return any(map(self.nullable, node.items))
        if isinstance(node, Times):
            return node.low == 0 or self.nullable(node.item)
        return isinstance(node, Cat) and all(map(self.nullable, node.items))

    def first(self, node: Node) -> Ranges:
        """The characters that its texts may begin with."""
        if isinstance(node, Ref):
            return self.begins.get(node.name, charsets.NOTHING)
        if isinstance(node, (Chars, Text)):
            return node.ranges if isinstance(node, Chars) else single(node.text[0]).ranges
        if isinstance(node, Opaque):
            return node.first
        if isinstance(node, Cat):
            found: list[Ranges] = []
            for item in node.items:
                found.append(self.first(item))
                if not self.nullable(item):
                    break
            return charsets.union(*found)
        return charsets.ALL if isinstance(node, Avoid) else charsets.union(*map(self.first, children(node)))

    def short(self, node: Node) -> bytes | None:
        """A short text: a shortest one as far as is known, None where none is."""
        if isinstance(node, Ref):
            return self.shortest.get(node.name)
        if isinstance(node, Chars):
            return chr(node.ranges[0][0]).encode() if node.ranges else None
        if isinstance(node, Text):
            return node.text.encode()
        if isinstance(node, Opaque):
            return node.shortest
        if isinstance(node, Avoid):
            return min(node.end, key=len).encode() if node.end else b""
        if isinstance(node, Times):
            once = self.short(node.item) if node.low else b""
            return None if once is None or len(once) * node.low > MAX_SHORTEST else once * node.low
        known = [self.short(item) for item in children(node)]
        if isinstance(node, Union):
            return min((text for text in known if text is not None), key=len, default=None)
        parts = [text for text in known if text is not None]
        return b"".join(parts) if len(parts) == len(known) and sum(map(len, parts)) <= MAX_SHORTEST else None


def pruned(node: Node, facts: Facts) -> Node | None:
    """The same texts without parts that have none; None where there is none at all."""
    if not facts.has_text(node):
        return None
    if isinstance(node, Union):
        kept = tuple(part for part in (pruned(item, facts) for item in node.items) if part is not None)
        return kept[0] if len(kept) == 1 else Union(kept)
    if isinstance(node, Cat):
        return Cat(tuple(part for part in (pruned(item, facts) for item in node.items) if part is not None))
    if isinstance(node, Times):
        inner = pruned(node.item, facts) if node.high != 0 else None
        return Cat(()) if inner is None else Times(inner, node.low, node.high)
    return node


def longest(rules: Rules, start: str) -> int | None:
    """The number of bytes that no text of `start` exceeds, None where there is none or it is unknown."""
    done: dict[str, int | None] = {}

    def of_node(node: Node) -> int | None:
        if isinstance(node, Ref):
            return done[node.name]
        if isinstance(node, (Chars, Text)):
            return len((node.text if isinstance(node, Text) else chr(node.ranges[-1][1])).encode())
        if isinstance(node, (Avoid, Opaque)):
            return node.longest if isinstance(node, Opaque) else None
        sizes = [of_node(item) for item in children(node)]
        known = [size for size in sizes if size is not None]
        if len(known) < len(sizes):
            return None
        if isinstance(node, Times):
            return 0 if known == [0] else None if node.high is None else known[0] * node.high
        return max(known) if isinstance(node, Union) else sum(known)

    for name in in_order(rules):
        done[name] = of_node(rules[name])
    return done.get(start)
