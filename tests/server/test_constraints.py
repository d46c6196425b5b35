"""Every client's spelling of a constraint: one `ir.Constraint`, or a refusal that names the client's own field."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.frontend import ir
from ramet.frontend.errors import ConstraintError
from ramet.runtime.grammar.compiler import Compiler
from ramet.runtime.server.constraints import ANY_OBJECT, NAMES, concerns, constraint_of, jump_of, refused
from ramet.runtime.server.failures import Failure

from .serving import PATIENT

SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "string"}}, "required": ["b"]}
TEXT = json.dumps(SCHEMA)
NAMED = {"name": "thing", "schema": SCHEMA}
EBNF = 'root ::= "a" | "b"'
LARK = 'start: "a" | "b"'
TAG = {"type": "structural_tag", "format": {"type": "const_string", "value": "x"}}
OLD_TAG = {
    "type": "structural_tag",
    "structures": [{"begin": "<f>", "schema": SCHEMA, "end": "</f>"}],
    "triggers": ["<f>"],
}
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FORMATS = st.fixed_dictionaries(
    {"type": st.sampled_from(["json_schema", "json_object", "text", "structural_tag", "regex", "grammar"]) | JUNK},
    optional=dict.fromkeys(("json_schema", "schema", "name", "regex", "pattern", "grammar", "format"), JUNK),
)


@pytest.fixture(scope="module")
def compiler() -> Iterator[Compiler]:
    tokens = [bytes([byte]) for byte in range(256)] + [b""]
    made = Compiler(lambda: tokens, eos=[256], workers=1, limits=PATIENT)
    yield made
    made.close()


def of(**fields: Any) -> ir.Constraint | None:
    wanted = constraint_of(fields)
    return None if wanted is None else wanted.constraint


def failure(fields: dict[str, Any]) -> Failure:
    with pytest.raises(Failure) as caught:
        constraint_of(fields)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_schema", "json_schema": NAMED}},
        {"response_format": {"type": "json_schema", "json_schema": {**NAMED, "strict": False, "description": "x"}}},
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        {"text.format": {"type": "json_schema", **NAMED, "strict": True}},
        {"output_format": {"type": "json_schema", "schema": SCHEMA}},
        {"output_config.format": {"type": "json_schema", "schema": SCHEMA}},
        {"format": SCHEMA},
        {"guided_json": SCHEMA},
        {"guided_json": TEXT},
        {"json_schema": TEXT},
        {"json_schema": SCHEMA},
        {"structured_outputs": {"json": SCHEMA}},
        {"structured_outputs": {"json": TEXT, "disable_any_whitespace": True}},
    ],
)
def test_schemas(fields: dict[str, Any]) -> None:
    found = of(**fields)
    assert isinstance(found, ir.JsonSchema)
    assert found.whitespace == "fixed"
    assert json.loads(found.schema) == SCHEMA
    assert found.schema.index('"b"') < found.schema.index('"a"'), "properties keep their order"


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_object"}},
        {"text.format": {"type": "json_object"}},
        {"format": "json"},
        {"guided_json_object": True},
        {"json_schema": "$$ANY$$"},
        {"structured_outputs": {"json_object": True}},
    ],
)
def test_any_object(fields: dict[str, Any]) -> None:
    assert of(**fields) == ir.JsonSchema(ANY_OBJECT)


@pytest.mark.parametrize(
    ("fields", "want"),
    [
        ({"regex": "[0-9]+"}, ir.Regex("[0-9]+")),
        ({"guided_regex": "[0-9]+"}, ir.Regex("[0-9]+")),
        ({"structured_outputs": {"regex": "[0-9]+"}}, ir.Regex("[0-9]+")),
        ({"response_format": {"type": "regex", "pattern": "[0-9]+"}}, ir.Regex("[0-9]+")),
        ({"guided_choice": ["yes", "no", "yes"]}, ir.Choices(("yes", "no"))),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, ir.Choices(("yes", "no"))),
        ({"ebnf": EBNF}, ir.Grammar(EBNF, "ebnf")),
        ({"guided_grammar": EBNF}, ir.Grammar(EBNF, "ebnf")),
        ({"guided_grammar": LARK}, ir.Grammar(LARK, "lark")),
        ({"guided_grammar": 'start: "::="'}, ir.Grammar('start: "::="', "lark")),
        ({"grammar": EBNF}, ir.Grammar(EBNF, "ebnf")),
        ({"structured_outputs": {"grammar": LARK}}, ir.Grammar(LARK, "lark")),
        ({"response_format": {"type": "grammar", "grammar": EBNF}}, ir.Grammar(EBNF, "ebnf")),
        ({"guided_json": {}}, ir.JsonSchema("{}")),
        ({"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": False}}, ir.JsonSchema(TEXT, "flexible")),
    ],
)
def test_the_others(fields: dict[str, Any], want: ir.Constraint) -> None:
    assert of(**fields) == want


@pytest.mark.parametrize("tag", [TAG, OLD_TAG])
def test_structural_tags(tag: dict[str, Any]) -> None:
    for fields in (
        {"structural_tag": tag},
        {"structural_tag": json.dumps(tag)},
        {"structured_outputs": {"structural_tag": tag}},
        {"response_format": tag},
    ):
        found = of(**fields)
        assert isinstance(found, ir.Structure)
        assert json.loads(found.spec) == tag


@pytest.mark.parametrize(
    "fields",
    [
        {},
        dict.fromkeys(NAMES),
        {"regex": "", "json_schema": ""},
        {"response_format": {"type": "text"}},
        {"text.format": {"type": "text"}},
        {"structured_outputs": {}},
        {"structured_outputs": {"regex": None, "json_object": False, "disable_any_whitespace": True}},
        {"guided_json_object": False},
        {"temperature": 1},
    ],
)
def test_what_asks_for_nothing(fields: dict[str, Any]) -> None:
    assert constraint_of(fields) is None


def test_two_at_once_are_both_named() -> None:
    found = failure({"regex": "a", "response_format": {"type": "json_object"}})
    assert "`response_format`" in found.message
    assert "`regex`" in found.message
    found = failure({"structured_outputs": {"regex": "a", "choice": ["a"]}})
    assert "`structured_outputs.regex` and `structured_outputs.choice`" in found.message


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing_required_parameter"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
            "response_format.json_schema.name",
            "missing_required_parameter",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
            "missing_required_parameter",
        ),
        ({"text.format": {"type": "json_schema", "schema": {}}}, "text.format.name", "missing_required_parameter"),
        ({"response_format": {}}, "response_format.type", "missing_required_parameter"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        ({"response_format": "json"}, "response_format", "invalid_value"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {**NAMED, "name": "a b"}}},
            "response_format.json_schema.name",
            "invalid_value",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": NAMED, "regex": "a"}},
            "response_format.regex",
            "unknown_parameter",
        ),
        ({"structured_outputs": {"jsn": {}}}, "structured_outputs.jsn", "unknown_parameter"),
        (
            {"structured_outputs": {"json": {}, "whitespace_pattern": " "}},
            "structured_outputs.whitespace_pattern",
            "unsupported_parameter",
        ),
        ({"guided_json": "{"}, "guided_json", "invalid_constraint"),
        ({"guided_json": "NaN"}, "guided_json", "invalid_constraint"),
        ({"guided_json": "[" * 100_000}, "guided_json", "invalid_constraint"),
        ({"guided_json": 5}, "guided_json", "invalid_value"),
        ({"guided_choice": []}, "guided_choice", "invalid_value"),
        ({"guided_choice": ["a", ""]}, "guided_choice", "invalid_value"),
        ({"guided_choice": "ab"}, "guided_choice", "invalid_value"),
        ({"guided_choice": ["\ud800"]}, "guided_choice[0]", "invalid_value"),
        ({"guided_json": '{"enum": ["\\ud800"]}'}, "guided_json", "invalid_value"),
        ({"regex": 5}, "regex", "invalid_value"),
        ({"format": "yaml"}, "format", "invalid_value"),
    ],
)
def test_refusals(fields: dict[str, Any], param: str, code: str) -> None:
    found = failure(fields)
    assert (found.param, found.code) == (param, code)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"guided_regex": "("}, "guided_regex", "guided_regex"),
        ({"regex": "(?=a)a"}, "regex", "look"),
        ({"structured_outputs": {"regex": r"(a)\1"}}, "structured_outputs", "structured_outputs"),
        ({"json_schema": {"$ref": "http://example.com/a.json"}}, "json_schema", "#"),
        ({"guided_json": {"type": "strng"}}, "guided_json", "guided_json"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {**NAMED, "schema": {"unevaluatedX": 1, "$ref": "#/x"}},
                }
            },
            "response_format",
            "response_format",
        ),
    ],
)
def test_what_they_say_is_left_to_the_compilers_process(
    compiler: Compiler, fields: dict[str, Any], param: str, words: str
) -> None:
    wanted = constraint_of(fields)
    assert wanted is not None
    with pytest.raises(ConstraintError) as caught:
        compiler.compile(wanted.constraint)
    found = refused(caught.value, wanted.field)
    assert (found.param, found.code) == (param, "invalid_constraint")
    assert words in found.message


@pytest.mark.parametrize(
    "message",
    ["regex='(': nothing to close", 'json_schema: at "#/a": no', "grammar: undefined rule x", "choices: many"],
)
def test_a_compilers_error_under_the_clients_name(message: str) -> None:
    error = ConstraintError(message)
    assert concerns(error)
    found = refused(error, "response_format")
    assert found.message == "response_format" + message[len(message.partition("=")[0].partition(":")[0]) :]
    assert (found.status, found.param, found.code) == (400, "response_format", "invalid_constraint")
    assert not concerns(ConstraintError("logit_bias: 5 is not a token id"))


def test_jumps() -> None:
    assert [jump_of({"jump": jump}) for jump in (None, "canonical", "exact", "off")] == [
        "canonical",
        "canonical",
        "exact",
        "off",
    ]
    for value in ("no", True, 5, []):
        with pytest.raises(Failure, match="jump"):
            jump_of({"jump": value})


@given(st.dictionaries(st.sampled_from(sorted(NAMES)), JUNK | FORMATS, max_size=2))
def test_anything_is_a_constraint_or_names_a_field(fields: dict[str, Any]) -> None:
    try:
        wanted = constraint_of(fields)
    except Failure as failure:
        found = failure
    else:
        assert wanted is None or wanted.field in fields
        return
    assert found.status == 400
    assert found.param is not None
    assert found.param.partition(".")[0].partition("[")[0] in fields
