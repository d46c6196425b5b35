"""Grammars: the automaton accepts a text if and only if the grammar derives it, whatever the lexer would prefer."""

from __future__ import annotations

import itertools
import json
import pathlib
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ramet.frontend.errors import ConstraintError
from ramet.runtime.grammar import ebnf

from .bytewise import accepts, prefix

DATA = pathlib.Path(__file__).parents[2] / "data" / "grammar"
CASES = [json.loads(line) for line in (DATA / "grammars.jsonl").read_text().splitlines()]

JSON = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws  # a comment
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""
CALCULATOR = """
start: expr
?expr: term (SP ADD SP term)* -> add   // left to right
    | term
term: factor (SP MUL SP factor)* -> mul
    | factor
factor: INT | "(" expr ")"
SP: " "
ADD: "+"
MUL: "*"
%import common.INT
"""


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_sample(case: dict[str, Any]) -> None:
    if case["expect"] == "refuse":
        with pytest.raises(ConstraintError, match=r"^grammar: no text can be derived from 'root'"):
            ebnf.translate(case["grammar"], "ebnf")
        return
    made = ebnf.translate(case["grammar"], "ebnf")
    ask = accepts(made.lark)
    assert all(map(ask, case["match"]))
    assert not any(map(ask, case["nomatch"]))
    assert made.shortest is not None and ask(made.shortest)


EXAMPLES = [
    (JSON, "ebnf", ["{}", '{"a": [1,-2.5e3,{"b":"x\\n"}], "c":true}'], ["{", "[]", '{"a":01}', '{"a":"\n"}']),
    (CALCULATOR, "lark", ["1", "1 + 2", "(1 + 2) * 3"], ["1+2", "1 +", "()"]),
    ('root ::= "a" "bc" | "ab" "d"', "ebnf", ["abc", "abd"], ["ab", "abcd"]),
    ('root ::= a "bc" | "ab" "d" | "(" root ")"\na ::= "a"', "ebnf", ["abc", "(abd)", "((abc))"], ["ab", "(ab)"]),
    ('root ::= [a-z]* "x"', "ebnf", ["x", "abx", "xx"], ["", "a"]),
    ('root ::= s "x"\ns ::= "" | "(" s ")" | [a-z]* "x"', "ebnf", ["x", "xx", "(abx)x"], ["ab", "(x", "ax)"]),
    (
        'root ::= "if" ws e | e\ne ::= id | id "(" e ")"\nid ::= [a-z]+\nws ::= " "+',
        "ebnf",
        ["if if", "if(x)"],
        ["if  "],
    ),
    ('root ::= root "a" | "b"', "ebnf", ["b", "baa"], ["", "ab"]),
    ('root ::= "" | "a" root', "ebnf", ["", "aaa"], ["b"]),
    ('root ::= x.y-z\nx.y-z ::= ["\\]\\-^a] . [^^]', "ebnf", ['"\na', "]ab", "-\u65e5a", "^aa"], ["aa^", "ba"]),
    (
        'root ::= "\\x41\\u00e9\\U0001F600\\t\\"" [\\x00-\\x1F]?',
        "ebnf",
        ['Aé\U0001f600\t"', 'Aé\U0001f600\t"\0'],
        ["A"],
    ),
    ('root ::= ("a"\n | "b"){2,}\n\n  "c"{,1} "d"{2}', "ebnf", ["abdd", "bbbcdd"], ["add", "abccdd", "abd"]),
    ('start: "a" b+\nb: /[0-9]+/ "x"i\n%ignore / +/', "lark", ["a1x", " a 1 X 2x "], ["1x", "a1 2x", "a 1\nx"]),
    (
        'start: A~2..3 [B] ("c".."e")?\nA: "a" | _D\n_D: /d/s\nB: A "b"',
        "lark",
        ["aa", "ddaab", "aadbe"],
        ["a", "aac d"],
    ),
    ('start: "(" start ")" | /[a-z]+/ -> name', "lark", ["abc", "((x))"], ["(", "()", "(a"]),
    (
        'start: "x" | NUMBER | ESCAPED_STRING\n%import common (NUMBER, ESCAPED_STRING)',
        "lark",
        ["1.5e3", '"a\\"b"'],
        ['"a"b"'],
    ),
    ("%llguidance {}\nstart: WORD\n%import common.CNAME -> WORD", "lark", ["_a1"], ["1a", "-"]),
]


@pytest.mark.parametrize(("text", "syntax", "match", "nomatch"), EXAMPLES, ids=[text[:40] for text, *_ in EXAMPLES])
def test_examples(text: str, syntax: Any, match: list[str], nomatch: list[str]) -> None:
    made = ebnf.translate(text, syntax)
    ask = accepts(made.lark)
    assert [one for one in match if not ask(one)] == []
    assert [one for one in nomatch if ask(one)] == []
    assert made.shortest is not None and ask(made.shortest)


def test_schemas_stand_in_rules() -> None:
    schema = '{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"],"additionalProperties":false}'
    made = ebnf.translate(f'start: "call(" %json {schema} ")" | "(" start ")"', "lark")
    ask = accepts(made.lark)
    assert ask('call({"a": 1})') and ask('((call({"a": -12})))')
    assert not any(map(ask, ["call()", 'call({"a": "x"})', '(call({"a": 1})']))


REFUSED = [
    ('root ::= "a" b', "ebnf", "line 1, column 1: rule 'root' refers to 'b', which is not defined"),
    ('a ::= "a"', "ebnf", "there is no rule 'root'"),
    ("", "ebnf", "there is no rule 'root'"),
    ('root ::= "a"\nroot ::= "b"', "ebnf", "line 2, column 1: rule 'root' is defined twice"),
    ('root ::= "a', "ebnf", "line 1, column 10: this text has no closing quote"),
    ("root ::= [a-z", "ebnf", "this class is not closed"),
    ("root ::= [z-a]", "ebnf", "is empty"),
    (r"root ::= [\d]", "ebnf", r"unknown escape \\d"),
    (r'root ::= "\x414"', "ebnf", "more than two hexadecimal digits"),
    (r'root ::= "\ud83d"', "ebnf", "lone surrogate"),
    ('root ::= ("a"', "ebnf", "this group is not closed"),
    ('root ::= "a"{3,2}', "ebnf", "the second number is smaller"),
    ('root ::= "a"{x}', "ebnf", "expected {m}"),
    ('root ::= "a" )', "ebnf", "unexpected '\\)'"),
    ('root = "a"', "ebnf", "expected ::= after 'root'"),
    ('root ::= "a" (= "b")', "ebnf", "look-ahead is not supported"),
    ("root ::= <|im_end|>", "ebnf", "tokens cannot be referred to"),
    ("root ::= TagDispatch((x, y))", "ebnf", "the macro 'TagDispatch' is not supported"),
    ('root[lazy] ::= "a"', "ebnf", "options of rules"),
    ("root ::= " + "(" * 100 + '"a"' + ")" * 100, "ebnf", "nested more than 64 levels"),
    ('root ::= ("a"{1,1000}){1,1000}', "ebnf", "multiply to 1000000"),
    ("root ::= a\na ::= b\nb ::= a", "ebnf", "no text can be derived from 'root'"),
    ("root ::= [^\\x00-\\U0010FFFF]", "ebnf", "no text can be derived"),
    ("root ::= " + '"a" ' * 20_000, "ebnf", "limit: 65536"),
    ("root ::= r0\n" + "".join(f"r{n} ::= r{n + 1}\n" for n in range(3000)) + 'r3000 ::= "a"', "ebnf", "limit: 2000"),
    ("root ::= r0\n" + "".join(f'r{n} ::= "a" r{n + 1}\n' for n in range(1000)) + 'r1000 ::= "a"', "ebnf", "chain"),
    ('start[lazy]: "a"', "lark", r"attributes are not supported \(here: start\[lazy"),
    ("start[max_tokens=3]: /a/", "lark", "attributes are not supported"),
    ('start[stop="x", temperature=0.5]: /a/', "lark", "attributes are not supported"),
    ("start: a::0", "lark", "parameters and templates"),
    ("start: x{a}", "lark", "parameters and templates"),
    ('a{b}: "x"', "lark", "templates are not supported"),
    ('A.2: "x"\nstart: A', "lark", "priorities are not supported"),
    ("start: <[12]>", "lark", "references to tokens"),
    ("start: <|im_end|>", "lark", "references to tokens"),
    ("start: @other", "lark", "references to other grammars"),
    ("%import python.NAME\nstart: NAME", "lark", "only terminals of 'common'"),
    ("%import .local.NAME\nstart: NAME", "lark", "only terminals of 'common'"),
    ("%import common.NOPE\nstart: NOPE", "lark", "'common' has no terminal 'NOPE'"),
    ('%llguidance {"no_forcing": true}\nstart: "a"', "lark", "options of llguidance"),
    ("%declare X\nstart: X", "lark", "terminals without a definition"),
    ("start: %lark { }", "lark", "nested grammars"),
    ('start: %regex {"substring_chars": "ab"}', "lark", "%regex is not supported"),
    ('start: "a" & "b"', "lark", "intersection of terminals"),
    ('start: ~"a"', "lark", "complements of terminals"),
    ("start: /a(?=b)/", "lark", "look-ahead"),
    ('start: "a"\nstart: "b"', "lark", "'start' is defined twice"),
    ('expr: "a"', "lark", "there is no rule 'start'"),
    ("start: missing", "lark", "'start' refers to 'missing'"),
    ('start: %json {"type": "integer"} "0"', "lark", "a JSON number is followed by"),
    ('start: %json {"type": "integer"} | "1a"', "lark", "may begin alike"),
    ('start: T\nT: %json {"type": "integer"}', "lark", "%json cannot stand in a terminal"),
    ('start: %json {"type": "integer", "foo', "lark", "expected JSON"),
]


@pytest.mark.parametrize(("text", "syntax", "said"), REFUSED, ids=[text[:40] for text, *_ in REFUSED])
def test_what_is_refused_says_where_and_why(text: str, syntax: Any, said: str) -> None:
    with pytest.raises(ConstraintError, match=f"^grammar: (.|\n)*{said}"):
        ebnf.translate(text, syntax)


# Random grammars against their languages, worked out by fixpoint over sets of texts up to a length.

_MOST = 5
_TEXTS = ["".join(text) for size in range(_MOST + 1) for text in itertools.product("abx", repeat=size)]
_NAMES = ["root", "p", "q"]
_Tree = tuple[Any, ...]


def _tree() -> st.SearchStrategy[_Tree]:
    leaf = st.one_of(
        st.sampled_from(["a", "b", "ab", "ba", "abx", "x", ""]).map(lambda text: ("text", text)),
        st.sampled_from(["ab", "ax", "abx"]).map(lambda chars: ("class", chars)),
        st.sampled_from(_NAMES).map(lambda name: ("rule", name)),
    )
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.lists(inner, min_size=2, max_size=3).map(lambda items: ("cat", *items)),
            st.lists(inner, min_size=2, max_size=3).map(lambda items: ("or", *items)),
            st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,2}"])).map(lambda pair: ("times", *pair)),
        ),
        max_leaves=5,
    )


def _written(tree: _Tree) -> str:
    kind, *parts = tree
    if kind == "text":
        return f'"{parts[0]}"'
    if kind == "class":
        return f"[{parts[0]}]"
    if kind == "rule":
        return str(parts[0])
    if kind == "times":
        return f"({_written(parts[0])}){parts[1]}"
    return "(" + (" " if kind == "cat" else " | ").join(map(_written, parts)) + ")"


def _joined(left: frozenset[str], right: frozenset[str]) -> frozenset[str]:
    return frozenset(a + b for a in left for b in right if len(a) + len(b) <= _MOST)


def _texts(tree: _Tree, known: dict[str, frozenset[str]]) -> frozenset[str]:
    kind, *parts = tree
    if kind == "text":
        return frozenset(parts)
    if kind == "class":
        return frozenset(parts[0])
    if kind == "rule":
        return known[parts[0]]
    if kind == "or":
        return frozenset().union(*(_texts(part, known) for part in parts))
    if kind == "cat":
        found = frozenset(("",))
        for part in parts:
            found = _joined(found, _texts(part, known))
        return found
    once = _texts(parts[0], known)
    low, high = {"*": (0, _MOST), "+": (1, _MOST + 1), "?": (0, 1), "{2}": (2, 2), "{1,2}": (1, 2)}[parts[1]]
    powers = [frozenset(("",))]
    for _ in range(high):
        powers.append(_joined(powers[-1], once))
    return frozenset().union(*powers[low:])


def _language(rules: dict[str, _Tree]) -> frozenset[str]:
    known: dict[str, frozenset[str]] = {name: frozenset() for name in rules}
    while True:
        after = {name: _texts(tree, known) for name, tree in rules.items()}
        if after == known:
            return known["root"]
        known = after


_TEXT = ("text", "a")


@given(st.tuples(_tree(), _tree(), _tree()))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example((("or", ("cat", ("rule", "p"), ("text", "b")), ("text", "ab")), ("or", ("text", "a"), ("rule", "q")), _TEXT))
@example((("or", ("cat", _TEXT, ("rule", "root"), ("text", "b")), ("times", ("class", "ab"), "*")), _TEXT, _TEXT))
@example((("cat", ("rule", "p"), ("rule", "p")), ("or", ("cat", ("rule", "p"), _TEXT), ("text", "ab")), _TEXT))
def test_random_grammars(trees: tuple[_Tree, _Tree, _Tree]) -> None:
    rules = dict(zip(_NAMES, trees, strict=True))
    text = "\n".join(f"{name} ::= {_written(tree)}" for name, tree in rules.items())
    expected = _language(rules)
    if not expected:
        try:
            made = ebnf.translate(text, "ebnf")
        except ConstraintError:
            return
        assert len(made.shortest or b"") > _MOST, text
    made = ebnf.translate(text, "ebnf")
    ask = accepts(made.lark)
    assert {one for one in _TEXTS if ask(one)} == expected, text
    assert made.shortest is not None and ask(made.shortest)
    if expected:
        assert len(made.shortest) == min(map(len, expected)), text
    assert made.longest is None or all(len(one) <= made.longest for one in expected)


@given(st.tuples(_tree(), _tree(), _tree()))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_only_beginnings_of_texts_are_begun(trees: tuple[_Tree, _Tree, _Tree]) -> None:
    rules = dict(zip(_NAMES, trees, strict=True))
    expected = _language(rules)
    try:
        made = ebnf.translate("\n".join(f"{name} ::= {_written(tree)}" for name, tree in rules.items()), "ebnf")
    except ConstraintError:
        return
    beginnings = {text[:at] for text in expected for at in range(len(text) + 1)}
    short = [text for text in _TEXTS if len(text) <= 3]
    begun = {text for text in short if prefix(made.lark, text)}
    assert begun >= {text for text in short if text in beginnings}
    if made.longest is not None and made.longest <= _MOST:  # all texts are known: nothing else may be begun
        assert begun == {text for text in short if text in beginnings}
