"""JSON schemas at the user's line: places, limits, references, every refused keyword by name."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from ramet.frontend.errors import ConstraintError
from ramet.frontend.schema_refs import Document
from ramet.frontend.schemas import KEYWORDS, MOST_BYTES, MOST_DEPTH, check, examine, unknown


def refused(schema: Any) -> str:
    with pytest.raises(ConstraintError) as caught:
        check(schema)
    return str(caught.value)


@pytest.mark.parametrize("keyword", [name for name, one in KEYWORDS.items() if one.effect == "refused"])
def test_a_refused_keyword_is_named_with_its_place_and_a_remedy(keyword: str) -> None:
    message = refused({"properties": {"a/b": {keyword: {"type": "string"}}}})
    assert message.startswith(f'json_schema: at "#/properties/a~1b/{keyword}": {keyword} is not supported; ')
    assert KEYWORDS[keyword].remark in message


@pytest.mark.parametrize("keyword", [name for name, one in KEYWORDS.items() if one.effect == "annotation"])
def test_annotations_may_hold_anything(keyword: str) -> None:
    check({keyword: [{"$ref": "http://elsewhere.example/"}], "type": "string"})


def test_unevaluated_true_demands_nothing() -> None:
    check({"unevaluatedProperties": True, "unevaluatedItems": True})


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        (5, "#"),
        (None, "#"),
        ([], "#"),
        ({"type": "text"}, "#/type"),
        ({"type": []}, "#/type"),
        ({"type": ["string", "string"]}, "#/type"),
        ({"properties": []}, "#/properties"),
        ({"properties": {"a": 3}}, "#/properties"),
        ({"items": {"required": "a"}}, "#/items/required"),
        ({"required": True}, "#/required"),
        ({"required": ["a", "a"]}, "#/required"),
        ({"enum": []}, "#/enum"),
        ({"anyOf": []}, "#/anyOf"),
        ({"minLength": -1}, "#/minLength"),
        ({"minLength": 1.5}, "#/minLength"),
        ({"minItems": True}, "#/minItems"),
        ({"maximum": "3"}, "#/maximum"),
        ({"multipleOf": 0}, "#/multipleOf"),
        ({"pattern": 3}, "#/pattern"),
        ({"pattern": "("}, "#/pattern"),
        ({"anyOf": [{"pattern": "(?=a)"}]}, "#/anyOf/0/pattern"),
        ({"patternProperties": {"(": {}}}, "#/patternProperties/("),
        ({"additionalProperties": []}, "#/additionalProperties"),
        ({"dependentRequired": {"a": "b"}}, "#/dependentRequired"),
        ({"dependencies": {"a": 3}}, "#/dependencies"),
        ({"uniqueItems": "yes"}, "#/uniqueItems"),
        ({"const": {1}}, "#/const"),
        ({"const": {1: 2}}, "#/const"),
        ({"const": float("nan")}, "#/const"),
        ({"const": Decimal("1e-99999")}, "#/const"),
        ({"minimum": 2**2000}, "#/minimum"),
        ({"const": "\ud800"}, "#/const"),
        ({"$ref": 3}, "#/$ref"),
        ({"$ref": "http://example.com/schema"}, "#/$ref"),
        ({"$ref": "other.json#/a"}, "#/$ref"),
        ({"$ref": "#/$defs/missing"}, "#/$ref"),
        ({"$ref": "#missing"}, "#/$ref"),
        ({"$ref": "#/items", "items": 3}, "#/items"),
        ({"$ref": "#"}, "#"),
        ({"allOf": [{"$ref": "#"}]}, "#"),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}}}, "#/$defs/"),
        ({"if": {"not": {"$ref": "#"}}}, "#"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(schema: Any, place: str) -> None:
    assert refused(schema).startswith(f'json_schema: at "{place}')


def test_limits_are_named() -> None:
    deep: Any = {}
    for _ in range(100_000):
        deep = {"items": deep}
    assert f"deeper than {MOST_DEPTH} levels (limit: depth)" in refused(deep)
    wide = {f"p{i}": {} for i in range(11_000)}
    assert "(limit: nodes)" in refused({"properties": wide})
    assert "(limit: enum)" in refused({"enum": list(range(100_000))})
    assert f"at most {MOST_BYTES} (limit: specification size)" in refused({"description": "x" * MOST_BYTES})
    itself: dict[str, Any] = {}
    itself["properties"] = {"a": itself}
    assert "limit" in refused(itself)
    check({"enum": list(range(10_000))})


@pytest.mark.parametrize(
    "schema",
    [
        True,
        False,
        {},
        {"properties": {"next": {"$ref": "#"}}},
        {"items": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        {"$defs": {"n": {"type": "integer"}}, "$ref": "#/$defs/n"},
        {"$defs": {"n": {"$anchor": "here"}}, "items": {"$ref": "#here"}},
        {"$id": "http://example.com/root.json", "$defs": {"a": {"$id": "a.json"}}, "items": {"$ref": "a.json"}},
        {
            "$id": "http://example.com/root.json",
            "items": {"$ref": "http://example.com/root.json#/$defs/a"},
            "$defs": {"a": {}},
        },
        {"properties": {"a b%": {}, "x": {"$ref": "#/properties/a%20b%25"}}},
        {"components": {"thing/1": {"type": "string"}}, "items": {"$ref": "#/components/thing~11"}},
        {"$schema": "http://json-schema.org/draft-04/schema#", "id": "x", "minimum": 1, "exclusiveMinimum": True},
        {"items": [{"type": "string"}], "additionalItems": False},
        {"dependencies": {"a": ["b"], "c": {"required": ["d"]}}},
        {"enum": [{"$ref": "http://elsewhere.example/"}]},
        {"properties": {"$ref": {"type": "string"}, "id": {"type": "integer"}}},
    ],
)
def test_schemas_of_all_drafts_pass(schema: Any) -> None:
    check(schema)


def test_what_a_reference_leads_to_is_looked_at() -> None:
    assert 'at "#/extra/thing/type"' in refused({"items": {"$ref": "#/extra/thing"}, "extra": {"thing": {"type": "x"}}})


def test_keywords_that_no_draft_defines_are_told() -> None:
    document = Document(json.loads('{"min": 3, "properties": {"a": {"faker": "x", "title": "t"}}, "id": "x"}'))
    examine(document)
    assert unknown(document) == ["faker", "min"]
