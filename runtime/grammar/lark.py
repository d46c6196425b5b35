r"""Grammars in Lark's notation, as rules.

In: the text of a grammar. Out: rules of `ramet.runtime.grammar.rules`, the first one `start`. Regular expressions are
Python's, as in Lark. Taken: rules, terminals, strings (`"x"i`), ranges (`"a".."z"`), `( ) [ ] | * + ? ~n..m {m,n}`,
aliases, `%ignore`, `%import common.NAME` and llguidance's `%json {...}`; a terminal is just a rule between whose parts
nothing is ignored. Whatever speaks to a tokeniser, a sampler or a file is refused by name.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from ramet.frontend import charsets, patterns
from ramet.frontend.errors import ConstraintError
from ramet.frontend.regular import Cat, Chars, Node, Times, Union, literal
from ramet.runtime.grammar.embed import json_part
from ramet.runtime.grammar.rules import Opaque, Ref, Rules, references
from ramet.runtime.grammar.scanner import MAX_DEPTH, Scanner

_BLANK = re.compile(r"(?:\s|//[^\n]*|#[^\n]*)*")
_NAME = re.compile(r"[!?]*_?[A-Za-z][A-Za-z0-9_\-]*")
_HEAD = re.compile(r"[!?]*_?[A-Za-z][A-Za-z0-9_\-]*\s*(?:::_|\{[^}\n]*\}|\.[+-]?[0-9]+|\[[^\]\n]*\])*\s*:(?!:)")
_REGEX = re.compile(r"/(?![/*?+])((?:\\.|[^/\\\n])+)/([imslux]*)")
_TILDE = re.compile(r"~\s*([0-9]{1,9})(?:\s*\.\.\s*([0-9]{1,9}))?")
_FLAGS = {"i": re.IGNORECASE, "m": re.MULTILINE, "s": re.DOTALL, "x": re.VERBOSE, "u": re.UNICODE}
_IGNORED, _START = "%ignore", "%start"  # names that no rule can have
_DIGITS, _EXPONENT = "[0-9]+", "[eE][+-]?[0-9]+"
_FLOAT = rf"[0-9]+{_EXPONENT}|(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:{_EXPONENT})?"
COMMON = {
    "DIGIT": "[0-9]",
    "HEXDIGIT": "[0-9A-Fa-f]",
    "INT": _DIGITS,
    "SIGNED_INT": "[+-]?[0-9]+",
    "DECIMAL": r"[0-9]+\.[0-9]*|\.[0-9]+",
    "FLOAT": _FLOAT,
    "SIGNED_FLOAT": f"[+-]?(?:{_FLOAT})",
    "NUMBER": f"{_FLOAT}|{_DIGITS}",
    "SIGNED_NUMBER": f"[+-]?(?:{_FLOAT}|{_DIGITS})",
    "ESCAPED_STRING": r'"(?:[^"\\\n]|\\[^\n])*"',
    "LCASE_LETTER": "[a-z]",
    "UCASE_LETTER": "[A-Z]",
    "LETTER": "[A-Za-z]",
    "WORD": "[A-Za-z]+",
    "CNAME": "[A-Za-z_][A-Za-z0-9_]*",
    "WS_INLINE": "[ \t]+",
    "WS": "[ \t\f\r\n]+",
    "CR": "\r",
    "LF": "\n",
    "NEWLINE": "(?:\r?\n)+",
    "SH_COMMENT": "#[^\n]*",
    "CPP_COMMENT": "//[^\n]*",
    "C_COMMENT": r"/\*(?:[^*]|\*+[^*/])*\*+/",
    "SQL_COMMENT": "--[^\n]*",
}
_REFUSED = {
    "%declare": "terminals without a definition",
    "%override": "overriding definitions",
    "%extend": "extending definitions",
    "%lark": "nested grammars",
    "%regex": "%regex",
    "%if": "conditions of parametric rules",
    "@": "references to other grammars",
    "<": "references to tokens (a grammar describes text)",
    "&": "intersection of terminals",
}


def read(text: str) -> tuple[Rules, str, tuple[str, ...]]:
    """The rules, the name of the first, and notes. Raises `ConstraintError` without a field's name."""
    reader = _Reader(Scanner(text, _BLANK), ignoring=_IGNORED in text)
    return reader.read(), _START if reader.ignoring else "start", tuple(reader.notes)


@dataclass
class _Reader:
    scan: Scanner
    ignoring: bool
    rules: Rules = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)
    ignored: list[Node] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    in_terminal: bool = False

    def read(self) -> Rules:
        while not self.scan.done():
            self._statement() if self.scan.peek("%") else self._definition()
        if "start" not in self.rules:
            raise ConstraintError("there is no rule 'start', with which a text begins")
        if self.ignoring:
            self.rules[_IGNORED] = Times(Union(tuple(self.ignored)), 0, None)
            self.rules[_START] = Cat((Ref(_IGNORED), Ref("start")))
        for name, body in self.rules.items():
            for unknown in sorted(references(body) - self.rules.keys()):
                self.scan.fail(f"{name!r} refers to {unknown!r}, which is not defined", self.places.get(name, 0))
        return self.rules

    def _define(self, name: str, body: Node, at: int) -> None:
        if name in self.rules:
            self.scan.fail(f"{name!r} is defined twice", at)
        self.rules[name], self.places[name] = body, at

    def _definition(self) -> None:
        scan, at = self.scan, self.scan.at
        found = scan.match(_NAME)
        if found is None:
            scan.fail(f"expected a rule, a terminal or a statement, not {scan.text[scan.at]!r}")
        name = found[0].lstrip("!?")
        for opening, what in (("::", "parameters"), ("{", "templates"), (".", "priorities"), ("[", "attributes")):
            if scan.peek(opening):
                detail = scan.text[scan.at : scan.at + 40].split("\n")[0].split("]")[0]
                scan.fail(f"{what} are not supported (here: {name}{detail})")
        if not scan.take(":"):
            scan.fail(f"expected : after {name!r}")
        self.in_terminal = name.lstrip("_")[:1].isupper()
        self._define(name, self._alternatives(1), at)

    def _statement(self) -> None:
        scan, at = self.scan, self.scan.at
        if scan.take("%ignore"):
            self.in_terminal = True
            self.ignored.append(self._alternatives(1))
        elif scan.take("%import"):
            self._import(at)
        elif scan.take("%llguidance"):
            scan.skip()
            if self._json() != {}:
                scan.fail("options of llguidance are not supported; leave the statement out", at)
        else:
            self._refuse_known()
            scan.fail("unknown statement")

    def _import(self, at: int) -> None:
        scan = self.scan
        if not scan.take("common"):
            scan.fail("only terminals of 'common' can be imported", at)
        names: list[str] = []
        if scan.take("."):
            names.append(self._imported())
        elif scan.take("("):
            names.append(self._imported())
            while scan.take(","):
                names.append(self._imported())
            if not scan.take(")"):
                scan.fail("expected )")
        else:
            scan.fail("expected the name of a terminal of 'common'")
        alias = self._imported() if len(names) == 1 and scan.take("->") else None
        for name in names:
            if name not in COMMON:
                scan.fail(f"'common' has no terminal {name!r}; it has {', '.join(COMMON)}", at)
            self._define(alias or name, patterns.parse(COMMON[name]), at)

    def _imported(self) -> str:
        found = self.scan.match(_NAME)
        if found is None:
            self.scan.fail("expected a name")
        return found[0]

    def _json(self) -> object:
        try:
            value, self.scan.at = json.JSONDecoder().raw_decode(self.scan.text, self.scan.at)
        except (ValueError, RecursionError) as error:
            self.scan.fail(f"expected JSON: {error}")
        return value

    def _alternatives(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            self.scan.fail(f"nested more than {MAX_DEPTH} levels deep; give parts names")
        options = [self._sequence(depth)]
        while self.scan.take("|"):
            options.append(self._sequence(depth))
        return options[0] if len(options) == 1 else Union(tuple(options))

    def _sequence(self, depth: int) -> Node:
        items: list[Node] = []
        while not self.scan.done() and not _HEAD.match(self.scan.text, self.scan.at):
            if self.scan.take("->"):
                self._imported()
                break
            item = self._item(depth)
            if item is None:
                break
            items.append(self._counted(item))
        return items[0] if len(items) == 1 else Cat(tuple(items))

    def _counted(self, item: Node) -> Node:
        while True:
            at, tilde = self.scan.at, self.scan.match(_TILDE)
            if tilde:
                low, high = int(tilde[1]), int(tilde[2] or tilde[1])
                if high < low:
                    self.scan.fail(f"~{low}..{high}: the second number is smaller than the first", at)
                item = Times(item, low, high)
            elif (bounds := self.scan.count()) is not None:
                item = Times(item, *bounds)
            else:
                return item

    def _item(self, depth: int) -> Node | None:
        scan = self.scan
        for opening, closing, low in (("(", ")", 1), ("[", "]", 0)):
            at = scan.at
            if scan.take(opening):
                inner = self._alternatives(depth + 1)
                if not scan.take(closing):
                    scan.fail("this group is not closed", at)
                return inner if low else Times(inner, 0, 1)
        if scan.take('"'):
            return self._token(self._string())
        if (found := scan.match(_REGEX)) is not None:
            return self._token(self._regex(found))
        at = scan.at
        if scan.take("%json"):
            return self._schema(at)
        self._refuse_known()
        if scan.peek("~"):
            scan.fail("complements of terminals are not supported")
        found = scan.match(_NAME)
        return self._reference(found[0].lstrip("!?"), found.start()) if found else None

    def _reference(self, name: str, at: int) -> Node:
        if self.scan.text.startswith(("::", "{"), self.scan.at) and not re.match(
            r"\{\s*[0-9,]", self.scan.text[self.scan.at : self.scan.at + 20]
        ):
            self.scan.fail(f"parameters and templates are not supported (here: of {name!r})", at)
        return self._token(Ref(name)) if name.lstrip("_")[:1].isupper() else Ref(name)

    def _refuse_known(self) -> None:
        for text, what in _REFUSED.items():
            if self.scan.peek(text):
                self.scan.fail(f"{what} are not supported" if not what.startswith("%") else f"{what} is not supported")

    def _schema(self, at: int) -> Opaque:
        if self.in_terminal:
            self.scan.fail("%json cannot stand in a terminal; use it in a rule", at)
        self.scan.skip()
        part, notes = json_part(json.dumps(self._json()))
        self.notes += notes
        return part

    def _string(self) -> Node:
        at, text = self.scan.at - 1, self.scan.literal('"')
        if self.scan.text.startswith("i", self.scan.at):
            self.scan.at += 1
            return patterns.parse(re.escape(text), flags=re.IGNORECASE)
        if not re.match(r"\s*\.\.\s*\"", self.scan.text[self.scan.at :]):
            return literal(text)
        self.scan.take("..")
        self.scan.take('"')
        end = self.scan.literal('"')
        if len(text) != 1 or len(end) != 1 or end < text:
            self.scan.fail("a range goes from one character to a later one", at)
        return Chars(charsets.of([(ord(text), ord(end))]))

    def _regex(self, found: re.Match[str]) -> Node:
        if "l" in found[2]:
            self.scan.fail("the flag l is not supported", found.start())
        try:
            return patterns.parse(found[1], flags=sum({_FLAGS[flag] for flag in found[2]}))
        except ConstraintError as error:
            self.scan.fail(error.message, found.start())

    def _token(self, node: Node) -> Node:
        """A terminal where a rule refers to it: with what may be ignored after it."""
        return node if self.in_terminal or not self.ignoring else Cat((node, Ref(_IGNORED)))
