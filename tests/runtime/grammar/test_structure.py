"""Structural tags: free text with constrained parts, each format with accepted and rejected texts."""

from __future__ import annotations

import itertools
import json
import pathlib
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.frontend.errors import ConstraintError
from ramet.runtime.grammar import structure

from .bytewise import accepts, prefix

DATA = pathlib.Path(__file__).parents[2] / "data" / "grammar"
CASES = [json.loads(line) for line in (DATA / "structural_tags.jsonl").read_text().splitlines()]
Json = dict[str, Any]


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_sample(case: Json) -> None:
    made = structure.translate(json.dumps(case["structural_tag"]))
    ask = accepts(made.lark)
    assert all(map(ask, case["match"]))
    assert not any(map(ask, case["nomatch"]))


def _spec(form: Any) -> str:
    return json.dumps({"type": "structural_tag", "format": form})


def _schema(*names: str) -> Json:
    properties = {name: {"type": "integer"} for name in names}
    value = {"type": "object", "properties": properties, "required": [*names], "additionalProperties": False}
    return {"type": "json_schema", "json_schema": value}


def _tag(begin: Any, content: Json, end: Any) -> Json:
    return {"type": "tag", "begin": begin, "content": content, "end": end}


def _const(text: str) -> Json:
    return {"type": "const_string", "value": text}


ANY: Json = {"type": "any_text"}
HERMES = [
    _tag(f'<tool_call>\n{{"name": "{name}", "arguments": ', _schema(argument), "}\n</tool_call>")
    for name, argument in (("f", "x"), ("get", "y"))
]
LLAMA = [_tag(f'{{"name": "{name}", "parameters": ', _schema(arg), "}") for name, arg in (("f", "x"), ("g", "y"))]
F = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
GET = '<tool_call>\n{"name": "get", "arguments": {"y": -20}}\n</tool_call>'


def _triggered(**options: Any) -> Json:
    return {"type": "triggered_tags", "triggers": ["<tool_call>"], "tags": HERMES, **options}


FORMATS: list[tuple[str, Json, list[str], list[str]]] = [
    (
        "triggered",
        _triggered(),
        ["", "hi", F, f"a <tool{F}{GET} b <tool_call"],
        [F[:-1], "<tool_call>", "<tool_call>x"],
    ),
    ("at least one", _triggered(at_least_one=True), [F, GET + "x", F + GET], ["", "hi", "a" + F]),
    ("stop after first", _triggered(stop_after_first=True), ["", "hi", "a" + F], [F + "x", F + GET]),
    ("exactly one", _triggered(at_least_one=True, stop_after_first=True), [F, GET], ["", "a" + F, F + "x", F + F]),
    ("excluded", _triggered(excludes=["!"]), ["a" + F + "b"], ["a!" + F, "!"]),
    (
        "separated",
        {"type": "tags_with_separator", "tags": HERMES, "separator": "\n", "at_least_one": True},
        [F, F + "\n" + GET],
        ["", F + GET, "a" + F, F + "\n"],
    ),
    (
        "separated, none",
        {"type": "tags_with_separator", "tags": HERMES, "separator": ", "},
        ["", F + ", " + F],
        [F + ", "],
    ),
    (
        "separated, first only",
        {"type": "tags_with_separator", "tags": HERMES, "separator": "", "stop_after_first": True},
        ["", F],
        [F + F],
    ),
    (
        "text or calls",
        {
            "type": "or",
            "elements": [
                {"type": "any_text", "excludes": ["{"]},
                {"type": "tags_with_separator", "tags": LLAMA, "separator": "; ", "at_least_one": True},
            ],
        },
        ["", "hello", '{"name": "f", "parameters": {"x": 3}}; {"name": "g", "parameters": {"y": 3}}'],
        ["{", "a{", 'x{"name": "f", "parameters": {"x": 3}}', '{"name": "f", "parameters": {"y": 3}}'],
    ),
    (
        "JSON triggers",
        {"type": "triggered_tags", "triggers": ['{"name": '], "tags": LLAMA},
        ["a { b", '{"name": "f", "parameters": {"x": 3}} {'],
        ['{"name": 1', '{"name": "h"'],
    ),
    (
        "reasoning, then calls",
        {"type": "sequence", "elements": [_tag("<think>", ANY, "</think>"), _triggered()]},
        ["<think></think>", f"<think>a<tool_call></t</think>b{F}"],
        ["<think>", "</think>", "<think></think><tool_call>", "hi"],
    ),
    (
        "calls inside a tag",
        _tag(
            "<r>", {"type": "triggered_tags", "triggers": ["<t>"], "tags": [_tag("<t>", _schema("x"), "</t>")]}, "</r>"
        ),
        ["<r>a</r>", '<r><t>{"x": 1}</t>b<t>{"x": 1}</t></r>'],
        ["<r>a</r>b", "<r><t></r>", "<r></r></r>", "<r>"],
    ),
    ("several ends", _tag("a", ANY, ["aa", "b"]), ["aaa", "axb", "axaa"], ["aaaa", "axbb", "aa", "ab "]),
    (
        "no end",
        {"type": "or", "elements": [_tag("a", _const("x"), ""), _tag("a", _const("y"), [""])]},
        ["ax", "ay"],
        ["a"],
    ),
    ("free text, then a constant", {"type": "sequence", "elements": [ANY, _const("x")]}, ["x", "axx"], ["a", ""]),
    (
        "grammars",
        {
            "type": "sequence",
            "elements": [
                {"type": "grammar", "grammar": 'root ::= "(" root ")" | a\na ::= [0-9]'},
                _const("!"),
                {"type": "grammar", "grammar": 'root ::= a "x"\na ::= [a-c]+'},
            ],
        },
        ["((1))!abx"],
        ["(1)!", "1!x", "a!ax"],
    ),
    (
        "repetitions",
        {
            "type": "sequence",
            "elements": [
                {"type": "optional", "content": {"type": "regex", "pattern": r"\d+"}},
                {"type": "plus", "content": _const("k")},
                {"type": "star", "content": _const("z")},
                {"type": "repeat", "min": 1, "max": 2, "content": _schema("x")},
                {"type": "repeat", "min": 0, "max": -1, "content": _const("e")},
            ],
        },
        ['k{"x": 1}', '1kkzz{"x": 1}{"x": 2}eee'],
        ["k", 'z{"x": 1}', 'k{"x": 1}{"x": 1}{"x": 1}'],
    ),
    (
        "dispatch",
        {
            "type": "dispatch",
            "rules": [["<f>", _schema("x")], ["<g>", {"type": "regex", "pattern": "[0-9]+;"}]],
            "excludes": ["!"],
        },
        ["hi", 'a<f>{"x": 1}<g>12;k'],
        ["a!", "<g>", "<f>x"],
    ),
    (
        "dispatch once",
        {"type": "dispatch", "rules": [["<g>", {"type": "regex", "pattern": "[0-9]+"}]], "loop": False},
        ["hi", "a<g>12"],
        ["<g>12k", "<g>"],
    ),
]


@pytest.mark.parametrize(
    ("form", "match", "nomatch"), [entry[1:] for entry in FORMATS], ids=[entry[0] for entry in FORMATS]
)
def test_formats(form: Json, match: list[str], nomatch: list[str]) -> None:
    made = structure.translate(_spec(form))
    ask = accepts(made.lark)
    assert [text for text in match if not ask(text)] == []
    assert [text for text in nomatch if ask(text)] == []
    assert made.shortest is None or ask(made.shortest)


def test_the_older_notation() -> None:
    value = _schema("x")["json_schema"]
    spec = {"structures": [{"begin": "<fn=f>", "schema": value, "end": "</fn>"}], "triggers": ["<fn="]}
    for text in (json.dumps(spec), json.dumps({"type": "structural_tag", **spec})):
        ask = accepts(structure.translate(text).lark)
        assert ask('a<fn=f>{"x": 1}</fn>b') and ask("<fn") and not ask("<fn=g>")


def test_free_text_is_text() -> None:
    ask = accepts(structure.translate(_spec(_triggered())).lark)
    assert ask("日本 \U0001f600\n\0") and not ask(b"\xff") and not ask(b"\xe6\x97") and not ask(b"\xed\xa0\x80")


def test_a_trigger_goes_on_as_one_of_its_tags() -> None:
    lark = structure.translate(_spec(_triggered())).lark
    assert prefix(lark, "x <tool_call>\n{") and prefix(lark, F[:40])
    assert not prefix(lark, "x <tool_call> ") and not prefix(lark, '<tool_call>\n{"name": "h')


def test_forty_tools() -> None:
    tags = [_tag(f"<f{number}>", _schema(f"a{number}"), "</f>") for number in range(40)]
    made = structure.translate(_spec({"type": "triggered_tags", "triggers": ["<f"], "tags": tags}))
    ask = accepts(made.lark)
    assert ask('a<f39>{"a39": 1}</f>b<f0>{"a0": 1}</f>') and not ask('<f3>{"a4": 1}</f>')


_STOPS = st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=3, unique=True)


@given(_STOPS, st.booleans())
@settings(max_examples=80, deadline=None)
def test_free_text_ends_with_the_first_end(ends: list[str], excluding: bool) -> None:
    content = {"type": "any_text", "excludes": ["c"]} if excluding else ANY
    ask = accepts(structure.translate(_spec(_tag("", content, ends))).lark)
    for size in range(6):
        for text in map("".join, itertools.product("abc", repeat=size)):
            found = [match.end() for end in ends for match in [re.search(re.escape(end), text)] if match]
            assert ask(text) == (bool(found) and min(found) == len(text) and not (excluding and "c" in text)), (
                ends,
                text,
            )


def _with(**fields: Any) -> str:
    return _spec({**_triggered(), **fields})


REFUSED: list[tuple[str, str]] = [
    ("{", "structure: is no JSON"),
    ("[" * 50_000, "structure: is no JSON"),
    ('"' + "a" * 70_000 + '"', "limit: 65536"),
    ("[]", '"#": expected an object'),
    ('{"type": "x", "format": {}}', '"#/type": \'x\' is not "structural_tag"'),
    ('{"type": "structural_tag"}', "\"#\": 'format' is missing"),
    ('{"type": "structural_tag", "format": {}, "foo": 1}', '"#/foo": unknown field'),
    (_spec({"type": "nope"}), "\"#/format\": unknown format 'nope'"),
    (_spec({"type": "token", "token": 1}), "text, not tokens"),
    (_spec({"type": "token_triggered_tags"}), "text, not tokens"),
    (_spec({"type": "const_string", "value": 1}), '"#/format/value": expected a str'),
    (_spec({**_const("a"), "foo": 1}), '"#/format/foo": unknown field'),
    (_spec(_const("\ud800")), "lone surrogate"),
    (_spec({**ANY, "max_tokens": 3}), '"#/format/max_tokens": bounds of free text'),
    (_spec({**ANY, "excludes": "a"}), '"#/format/excludes": expected a list'),
    (_spec({"type": "regex", "pattern": "("}), "\"#/format/pattern\": regex='\\('"),
    (_spec({"type": "grammar", "grammar": "root ::= x"}), '"#/format/grammar": line 1, column 1'),
    (_spec({"type": "json_schema", "json_schema": {"type": "foo"}}), '"#/format/json_schema": json_schema: '),
    (_spec({**_schema("a"), "style": "qwen_xml"}), '"#/format/style": only "json"'),
    (_spec({**_schema("a"), "any_order": True}), '"#/format/any_order"'),
    (_spec({"type": "sequence", "elements": []}), '"#/format/elements": expected a list of at least one'),
    (_spec({"type": "or", "elements": [ANY, {"type": "or", "elements": []}]}), '"#/format/elements/1/elements"'),
    (_spec({"type": "repeat", "min": 2, "max": 1, "content": ANY}), "are no bounds"),
    (_spec(_tag({"type": "token", "token": 1}, ANY, "b")), '"#/format/begin": expected a non-empty string'),
    (_spec(_tag("a", ANY, [])), '"#/format/end"'),
    (_with(triggers=["<x"]), "begins with 0 of the triggers"),
    (_with(triggers=["<tool_call>", "<tool"]), '"#/format/tags/0/begin": .*begins with 2 of the triggers'),
    (_with(triggers=["<tool_call>", "x"]), "no tag begins with the trigger 'x'"),
    (_with(tags=[]), '"#/format/tags": expected a list of at least one'),
    (_with(tags=[ANY]), '"#/format/tags/0": expected a format of type "tag"'),
    (_with(at_least_one="yes"), '"#/format/at_least_one": expected a bool'),
    (_with(excludes=["tool"]), "the trigger '<tool_call>' contains 'tool'"),
    (_spec(_tag("<", _triggered(), "</<tool_call>")), "contains a trigger"),
    (_spec({"type": "sequence", "elements": [ANY, _schema("x")]}), "free text may itself contain what follows it"),
    (
        _spec(
            {"type": "sequence", "elements": [{"type": "json_schema", "json_schema": {"type": "integer"}}, _const("1")]}
        ),
        "a JSON number is followed by",
    ),
]


@pytest.mark.parametrize(("spec", "said"), REFUSED, ids=[said[:50] for _, said in REFUSED])
def test_what_is_refused_says_where_and_why(spec: str, said: str) -> None:
    with pytest.raises(ConstraintError, match=r"^structure: ") as caught:
        structure.translate(spec)
    assert re.search(said, str(caught.value)), caught.value


def test_deep_nesting_is_refused() -> None:
    form: Json = ANY
    for _ in range(70):
        form = {"type": "optional", "content": form}
    with pytest.raises(ConstraintError, match="nested more than 64 levels"):
        structure.translate(_spec(form))
