"""JSON schemas as grammars: each keyword against an independent validator, the public sample, what is refused."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from ramet.frontend.errors import ConstraintError
from ramet.frontend.schemas import KEYWORDS
from ramet.runtime.grammar.json_schema import translate

from .json_cases import CASES, NUMBERED, OBJECT, OLDER
from .json_texts import accepts, exact, matcher, schema_accepts, valid, walk

SAMPLE = Path(__file__).parents[2] / "data" / "grammar" / "schemas.jsonl"


@pytest.mark.parametrize("whitespace", ["fixed", "flexible"])
@pytest.mark.parametrize(("keyword", "schema", "good", "bad"), CASES)
def test_a_keyword_is_enforced(keyword: str, schema: Any, good: list[str], bad: list[str], whitespace: str) -> None:
    assert keyword in json.dumps(schema)
    assert [valid(json.dumps(schema), text) for text in [*good, *bad]] == [True] * len(good) + [False] * len(bad)
    found = schema_accepts(schema, *good, *bad, whitespace=whitespace)
    assert found == [True] * len(good) + [False] * len(bad), list(zip([*good, *bad], found, strict=True))


@pytest.mark.parametrize(("keyword", "validator", "schema", "good", "bad"), OLDER)
def test_older_spellings_are_enforced(
    keyword: str, validator: Any, schema: Any, good: list[str], bad: list[str]
) -> None:
    assert keyword in schema
    checker = validator(schema)
    assert [checker.is_valid(exact(text)) for text in [*good, *bad]] == [True] * len(good) + [False] * len(bad)
    start = matcher(translate(json.dumps(schema)))
    assert [accepts(start, text) for text in [*good, *bad]] == [True] * len(good) + [False] * len(bad)


def test_every_enforced_keyword_has_a_case() -> None:
    enforced = {name for name, keyword in KEYWORDS.items() if keyword.effect == "enforced"}
    assert enforced == {case[0] for case in CASES} | {case[0] for case in OLDER}


@pytest.mark.parametrize("keyword", [name for name, one in KEYWORDS.items() if one.effect == "annotation"])
def test_annotations_change_nothing(keyword: str) -> None:
    assert translate(json.dumps({"type": "integer", keyword: "x"})).lark == translate('{"type": "integer"}').lark


@pytest.mark.parametrize("whitespace", ["fixed", "flexible"])
@pytest.mark.parametrize("line", SAMPLE.read_text("utf-8").splitlines(), ids=lambda line: json.loads(line)["id"])
def test_the_public_sample(line: str, whitespace: Any) -> None:
    case = json.loads(line)
    start = matcher(translate(json.dumps(case["schema"]), whitespace))
    for value in case["valid"]:
        for ascii_only in (False, True):
            assert accepts(start, json.dumps(value, ensure_ascii=ascii_only)), value
    for value in case["invalid"]:
        assert not accepts(start, json.dumps(value["data"])), value
    checker = jsonschema.validators.validator_for(case["schema"], jsonschema.Draft202012Validator)(case["schema"])
    for seed in range(3):
        text = walk(start, seed)
        assert text is None or checker.is_valid(json.loads(text)), text


def test_json_text_is_held_to_what_every_reader_takes() -> None:
    good = ['"\\u0000"', '"\\ud83d\\ude00"', '"\x7f"', "-0.5e-10", "1E99", '{"a": [null, true]}', "[]"]
    bad = [
        '"\\ud83d"',
        '"\\ude00"',
        '"\n"',
        '"\\x"',
        "01",
        "1.",
        ".5",
        "+1",
        "1e999",
        "9" * 100,
        "tru",
        '{"a":1,}',
        " 1",
        "1 ",
    ]
    assert schema_accepts(True, *good, *bad) == [True] * len(good) + [False] * len(bad)


def test_declared_keys_never_repeat_nor_hide_behind_escapes() -> None:
    schema = {"type": "object", **NUMBERED, "required": ["a"]}
    bad = ['{"a": 1, "a": 2}', '{"a": 1, "b": 2, "b": 3}', '{"a": 1, "\\u0061": "x"}', '{"b": 1, "a": 2, "a": "x"}']
    assert schema_accepts(schema, *bad) == [False] * len(bad)
    optional = {"type": "object", **NUMBERED}
    assert schema_accepts(optional, '{"b": 1, "a": 2}', '{"x": 0, "b": 1}') == [True, True]
    assert schema_accepts(optional, '{"b": 1, "b": 2}', '{"a": 1, "x": 0, "a": "s"}') == [False, False]


def test_whitespace_is_bounded() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"}}}, "required": ["a"]}
    text = '{\n  "a" : [1,\n    2 ]\n}'
    assert schema_accepts(schema, text, '{"a":[1,2]}', '{"a": [1, 2]}', whitespace="flexible") == [True, True, True]
    assert schema_accepts(schema, '{"a": []}', '{"a":[]}', text) == [True, False, False]
    for space in ("  ", "\n\n", " \n", "\n" + " " * 65):
        texts = [f'{{{space}"a": []}}', f'{{"a":{space}[]}}', f'{{"a": [1{space}, 2]}}', f'{{"a": [1,{space}2]}}']
        assert schema_accepts(schema, *texts, whitespace="flexible") == [False] * 4


@pytest.mark.parametrize(
    "schema",
    [
        False,
        {"type": "integer", "minimum": 5, "maximum": 4},
        {"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 2},
        {"type": "number", "exclusiveMinimum": 1, "maximum": 1},
        {"type": "integer", "minimum": 1, "maximum": 6, "multipleOf": 7},
        {"enum": ["a", 1], "type": "boolean"},
        {"type": "string", "minLength": 3, "maxLength": 2},
        {"type": "string", "minLength": 3, "pattern": "^ab?$"},
        {"type": "string", "pattern": "^a", "allOf": [{"pattern": "^b"}]},
        {"type": "string", "pattern": "^x", "format": "date"},
        {"type": "string", "pattern": "a", "not": {"pattern": "a"}},
        {"type": "object", "required": ["a"], "properties": {"a": False}},
        {"type": "object", "required": ["a"], "additionalProperties": False},
        {"type": "object", "required": ["abc"], "propertyNames": {"maxLength": 2}},
        {"type": "object", "required": ["a", "b"], "maxProperties": 1},
        {"type": "array", "minItems": 1, "items": False},
        {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True, "minItems": 3},
        {"type": "array", "items": {"type": "string"}, "contains": {"type": "integer"}},
        {
            "$defs": {"n": {"type": "object", "required": ["n"], "properties": {"n": {"$ref": "#/$defs/n"}}}},
            "$ref": "#/$defs/n",
        },
    ],
)
def test_contradictions_are_refused(schema: Any) -> None:
    with pytest.raises(ConstraintError, match='json_schema: at "#": no value is valid under this schema'):
        translate(json.dumps(schema))


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (
            {"items": {"uniqueItems": True}},
            'at "#/items/uniqueItems": is supported for items with up to 60 known values',
        ),
        (
            {"type": "object", "minProperties": 2},
            'at "#/minProperties": 2 cannot be enforced for keys that are not declared',
        ),
        ({"oneOf": [{"minimum": 1}, {"multipleOf": 3}]}, 'at "#/oneOf": branches 0 and 1 may both hold'),
        ({"not": {"format": "date"}}, 'at "#/not/format": the opposite of format is needed here'),
        ({"not": {"additionalProperties": {"type": "string"}}}, 'at "#/not/additionalProperties": the opposite of'),
        ({"type": "string", "minLength": 2_000_000}, 'at "#/minLength": 2000000 is above 1000000 (limit: length)'),
        ({"type": "array", "minItems": 20_000}, 'at "#/minItems": 20000 is above 10000 (limit: items)'),
        (
            {"patternProperties": {f"{c}$": {"const": c} for c in "abcde"}},
            'at "#/patternProperties": at most 4 patterns',
        ),
        ({"pattern": r"a\bc"}, 'at "#/pattern": '),
        ({"pattern": "(?i)a"}, 'at "#/pattern": flags are not supported'),
        ({"pattern": r"(\w{1,200}\s){1,200}"}, 'at "#/pattern": '),
    ],
)
def test_what_cannot_be_enforced_is_refused_with_its_place(schema: Any, message: str) -> None:
    with pytest.raises(ConstraintError) as caught:
        translate(json.dumps(schema))
    assert str(caught.value).startswith(f"json_schema: {message}")


@pytest.mark.parametrize(
    "text", ["", "{", "[1, NaN]", '{"type": "string", "type": "integer"}', "[" * 100_000, '{"minimum": 1e999}']
)
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(ConstraintError, match=r"^json_schema: "):
        translate(text)


def bombs() -> dict[str, Any]:
    chain = {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(1500)}
    doubled = {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(60)}
    pair = {f"a{i}": {"type": "array", "minItems": 2, "items": {"$ref": f"#/$defs/a{i + 1}"}} for i in range(60)}
    return {
        "references": {"$defs": {**chain, "a1500": {}}, "$ref": "#/$defs/a0"},
        "doubled": {"$defs": {**doubled, "a60": {"type": "null"}}, "$ref": "#/$defs/a0"},
        "huge values": {"$defs": {**pair, "a60": {"type": "null"}}, "$ref": "#/$defs/a0"},
        "combinations": {"allOf": [{"anyOf": [{"required": [f"a{i}"]}, {"required": [f"b{i}"]}]} for i in range(30)]},
        "branches": {"oneOf": [{"const": i} for i in range(1500)]},
        "tagged": {
            "oneOf": [{"type": "object", "properties": {"t": {"const": i}}, "required": ["t"]} for i in range(300)]
        },
        "counted": {"type": "object", "properties": {f"k{i}": {} for i in range(500)}, "maxProperties": 250},
        "backtracking": {"type": "object", "properties": {"a" * 40: {}}, "patternProperties": {"^(a?){20}$": {}}},
        "wide": {"type": "object", "properties": {f"k{i}": {"type": "string"} for i in range(1000)}},
        "long": {"type": "array", "minItems": 9000, "items": {"type": "array", "minItems": 9000}},
    }


@pytest.mark.parametrize("name", bombs())
def test_bombs_are_compiled_or_refused_soon(name: str) -> None:
    began = time.process_time()
    try:
        translation = translate(json.dumps(bombs()[name]))
    except ConstraintError as error:
        refusal = str(error)
        assert "limit" in refusal
    else:
        assert not matcher(translation).is_error()
        assert translation.shortest is None or len(translation.shortest) < 100_000
    assert time.process_time() - began < 2


def test_what_is_less_than_the_schema_says_is_told() -> None:
    schema = {"type": "string", "format": "semver", "max": 3}
    translation = translate(json.dumps(schema))
    assert translation.notes == (
        "json_schema: formats that are not checked: semver",
        "json_schema: keywords without effect: max",
    )


def test_shortest_and_longest() -> None:
    bounded = {
        **OBJECT,
        "properties": {"a": {"type": "string", "maxLength": 2}, "b": {"type": "boolean"}},
        "required": ["b"],
    }
    translation = translate(json.dumps(bounded))
    assert translation.shortest == b'{"b": true}'
    longest = translation.longest
    assert longest is not None
    full = '{"a": "\\ud83d\\ude00\\ud83d\\ude00", "b": false}'
    assert schema_accepts(bounded, full) == [True]
    assert len(full) <= longest <= len(full) + 20
    assert translate('{"type": "array"}').longest is None
    assert translate('{"type": "string"}').longest is None


def test_several_schemas_fit_into_one_grammar() -> None:
    one = translate('{"type": "integer"}', prefix="left")
    other = translate('{"type": "object", "properties": {"a": {"enum": [1]}}}', prefix="right")
    joined = "\n".join(
        ['start: left_start "," right_start']
        + [f"left_{line}" if line.startswith("start:") else line for line in one.lark.splitlines()]
        + [f"right_{line}" if line.startswith("start:") else line for line in other.lark.splitlines()]
    )
    start = matcher(type(one)(joined))
    assert accepts(start, '3,{"a": 1}')
    assert not accepts(start, '3,{"a": 2}')
