r"""Grammars in EBNF (`root ::= ...`, as llama.cpp's GBNF and XGrammar write it) or in Lark's notation, as constraints.

In: the text of a grammar. Out: a `Translation`. EBNF here: literals and classes with escapes, `.` for any character,
groups, `|`, `* + ? {m,n}`, comments from `#`; a rule ends where the next one begins, so line breaks mean nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from ramet.frontend import charsets
from ramet.frontend.errors import ConstraintError
from ramet.frontend.regular import Cat, Chars, Node, Times, Union, literal
from ramet.runtime.grammar import emit, lark
from ramet.runtime.grammar.rules import Ref, Rules, references
from ramet.runtime.grammar.scanner import MAX_DEPTH, Scanner
from ramet.runtime.grammar.translation import Translation

_BLANK = re.compile(r"(?:\s|#[^\n]*)*")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]*")
_DEFINED = re.compile(r"(?:\s|#[^\n]*)*::=")
_OPTIONS = re.compile(r"\[[^\]\n]*\](?:\s|#[^\n]*)*::=")
_IN_CLASS = "^$\\.*+?()[]{}|/-\"'"


def translate(text: str, syntax: Literal["lark", "ebnf"]) -> Translation:
    """A grammar as rules of llguidance. Raises `ConstraintError`: `grammar: line 2, column 7: ...`."""
    try:
        rules, start, notes = read(text, syntax)
    except ConstraintError as error:
        raise ConstraintError(f"grammar: {error.message}") from None
    return emit.translate(rules, start, "grammar", notes)


def read(text: str, syntax: Literal["lark", "ebnf"]) -> tuple[Rules, str, tuple[str, ...]]:
    """The rules of a grammar, the name of the first, and notes. Raises `ConstraintError` without a field's name."""
    if syntax == "lark":
        return lark.read(text)
    rules = _Reader(Scanner(text, _BLANK)).read()
    if "root" not in rules:
        raise ConstraintError("there is no rule 'root', with which a text begins")
    return rules, "root", ()


@dataclass
class _Reader:
    scan: Scanner

    def read(self) -> Rules:
        rules: Rules = {}
        places: dict[str, int] = {}
        while not self.scan.done():
            at, name = self.scan.at, self._head()
            if name in rules:
                self.scan.fail(f"rule {name!r} is defined twice", at)
            rules[name] = self._alternatives(1)
            places[name] = at
            if not self.scan.done() and self._name_here() is None:
                self.scan.fail(f"unexpected {self.scan.text[self.scan.at]!r}")
        for name, body in rules.items():
            for unknown in sorted(references(body) - rules.keys()):
                self.scan.fail(f"rule {name!r} refers to {unknown!r}, which is not defined", places[name])
        return rules

    def _head(self) -> str:
        found = self.scan.match(_NAME)
        if found is None:
            self.scan.fail("expected the name of a rule")
        if _OPTIONS.match(self.scan.text, self.scan.at):
            self.scan.fail(f"options of rules (here: of {found[0]!r}) are not supported")
        if not self.scan.take("::="):
            self.scan.fail(f"expected ::= after {found[0]!r}")
        return found[0]

    def _name_here(self) -> re.Match[str] | None:
        self.scan.skip()
        return _NAME.match(self.scan.text, self.scan.at)

    def _rule_begins(self) -> bool:
        found = self._name_here()
        if found is None:
            return False
        text = self.scan.text
        return bool(_DEFINED.match(text, found.end()) or _OPTIONS.match(text, found.end()))

    def _alternatives(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            self.scan.fail(f"nested more than {MAX_DEPTH} levels deep; give parts names")
        options = [self._sequence(depth)]
        while self.scan.take("|"):
            options.append(self._sequence(depth))
        return options[0] if len(options) == 1 else Union(tuple(options))

    def _sequence(self, depth: int) -> Node:
        items: list[Node] = []
        while not self.scan.done() and not self._rule_begins():
            item = self._item(depth)
            if item is None:
                break
            while (bounds := self.scan.count()) is not None:
                item = Times(item, *bounds)
            items.append(item)
        return items[0] if len(items) == 1 else Cat(tuple(items))

    def _item(self, depth: int) -> Node | None:
        scan = self.scan
        if scan.take('"'):
            return literal(scan.literal('"'))
        if scan.take("["):
            return self._class()
        if scan.take("."):
            return Chars(charsets.ALL)
        if scan.take("("):
            at = scan.at
            if scan.peek("="):
                scan.fail("look-ahead is not supported")
            inner = self._alternatives(depth + 1)
            if not scan.take(")"):
                scan.fail("this group is not closed", at - 1)
            return inner
        if scan.peek("<"):
            scan.fail("tokens cannot be referred to; a grammar describes text")
        found = scan.match(_NAME)
        if found and re.match(r"[A-Z]\w*\(", scan.text[found.start() :]) and not self._defined(found[0]):
            scan.fail(f"the macro {found[0]!r} is not supported", found.start())
        return Ref(found[0]) if found else None

    def _defined(self, name: str) -> bool:
        return re.search(rf"(?m)^\s*{re.escape(name)}\s*::=", self.scan.text) is not None

    def _class(self) -> Node:
        scan, start = self.scan, self.scan.at - 1
        negated = scan.text.startswith("^", scan.at)
        scan.at += negated
        ranges: list[tuple[int, int]] = []
        while not self._class_ends(start):
            low = high = ord(scan.character(_IN_CLASS))
            after = scan.text[scan.at : scan.at + 2]
            if after.startswith("-") and after != "-]" and len(after) == 2:
                scan.at += 1
                high = ord(scan.character(_IN_CLASS))
                if high < low:
                    scan.fail(f"the range {chr(low)!r} to {chr(high)!r} is empty", start)
            ranges.append((low, high))
        found = charsets.of(ranges)
        return Chars(charsets.complement(found) if negated else found)

    def _class_ends(self, start: int) -> bool:
        if self.scan.at >= len(self.scan.text) or self.scan.text[self.scan.at] == "\n":
            self.scan.fail("this class is not closed", start)
        ends = self.scan.text[self.scan.at] == "]"
        self.scan.at += ends
        return ends
