"""The keywords of JSON Schema with texts that they accept and reject, each checked against `jsonschema` too."""

from __future__ import annotations

from typing import Any

import jsonschema

OBJECT = {"type": "object", "additionalProperties": False}
NUMBERED = {"properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}

# Keyword, schema, texts that are accepted and valid, texts that are rejected and invalid.
CASES: list[tuple[str, Any, list[str], list[str]]] = [
    ("type", {"type": "integer"}, ["0", "-17", "12345678901234567890"], ["1.5", '"1"', "null"]),
    ("type", {"type": ["string", "null"]}, ["null", '""'], ["0", "[]"]),
    (
        "enum",
        {"enum": ["a", 1, None, [1], {"k": "v"}, 2.5]},
        ['"a"', "1", "null", "[1]", '{"k": "v"}', "2.5"],
        ['"b"', "[2]"],
    ),
    ("const", {"const": {"a": [1, {}]}}, ['{"a": [1, {}]}'], ['{"a": [1]}', '{"a": [1, {}], "b": 1}', "{}"]),
    (
        "const",
        {"const": 12345678901234567890},
        ["12345678901234567890"],
        ["12345678901234567891", "12345678901234567000"],
    ),
    ("minimum", {"type": "number", "minimum": -2.5}, ["-2.5", "-2.50", "0", "7.25"], ["-2.51", "-3", "-10"]),
    ("maximum", {"type": "integer", "maximum": 1000}, ["1000", "999", "-5"], ["1001", "10000"]),
    ("exclusiveMinimum", {"type": "number", "exclusiveMinimum": 0}, ["0.001", "3"], ["0", "0.0", "-1"]),
    ("exclusiveMaximum", {"type": "number", "exclusiveMaximum": 10.25}, ["10.2", "10.249"], ["10.25", "10.250", "11"]),
    ("multipleOf", {"type": "number", "multipleOf": 0.01}, ["1.23", "-4.5", "0"], ["1.234"]),
    ("multipleOf", {"type": "integer", "multipleOf": 7, "minimum": -30}, ["14", "-28", "0"], ["15", "-35"]),
    ("multipleOf", {"type": "integer", "multipleOf": 100}, ["0", "-300", "1200"], ["10", "120"]),
    (
        "minLength",
        {"type": "string", "minLength": 2},
        ['"ab"', '"é😀"', r'"\u00e9\ud83d\ude00"'],
        ['"a"', '"😀"', r'"\ud83d\ude00"'],
    ),
    ("maxLength", {"type": "string", "maxLength": 1}, ['""', '"😀"', r'"\n"', r'"\ud83d\ude00"'], ['"ab"', r'"\n\n"']),
    ("pattern", {"type": "string", "pattern": "b"}, ['"abc"', '"b"'], ['"a"', '""']),
    ("pattern", {"type": "string", "pattern": r"^\d+$"}, ['"12"'], ['"1a"', '""']),
    ("pattern", {"type": "string", "pattern": r'^["\\\n]$'}, [r'"\""', r'"\\"', r'"\n"'], ['"n"', r'"\t"']),
    ("format", {"type": "string", "format": "date"}, ['"2024-02-29"'], ['"2023-02-29"', '"2024-13-01"', '"x"']),
    ("format", {"type": "string", "format": "ipv6"}, ['"::1"', '"1:2:3:4:5:6:7:8"'], ['"1::2::3"', '"12345::"']),
    ("format", {"type": "string", "format": "uuid"}, ['"123e4567-e89b-12d3-a456-426614174000"'], ['"123e4567"']),
    ("items", {"type": "array", "items": {"type": "integer"}}, ["[]", "[1, 2]"], ['["a"]', "[1, null]"]),
    (
        "prefixItems",
        {"type": "array", "prefixItems": [{"type": "integer"}, {"const": "x"}], "items": False},
        ["[]", "[1]", '[1, "x"]'],
        ['["x"]', '[1, "x", 2]'],
    ),
    ("minItems", {"type": "array", "minItems": 2, "items": {"type": "null"}}, ["[null, null]"], ["[]", "[null]"]),
    ("maxItems", {"type": "array", "maxItems": 1, "items": {"type": "null"}}, ["[]", "[null]"], ["[null, null]"]),
    (
        "uniqueItems",
        {"type": "array", "uniqueItems": True, "items": {"enum": ["a", "b", 3]}, "minItems": 1},
        ['["b", "a"]', '[3, "a", "b"]', '["b"]'],
        ['["a", "a"]', "[3, 3]", "[]"],
    ),
    (
        "contains",
        {"type": "array", "contains": {"const": 1}, "items": {"type": "integer"}},
        ["[1]", "[2, 1, 3]"],
        ["[]", "[2]"],
    ),
    (
        "minContains",
        {"type": "array", "contains": {"const": 1}, "minContains": 2},
        ["[1, 1]", "[1, 0, 1, 1]"],
        ["[1]", "[]"],
    ),
    (
        "maxContains",
        {"type": "array", "contains": {"const": 1}, "maxContains": 1},
        ["[1]", "[2, 1]"],
        ["[1, 1]", "[2]"],
    ),
    ("properties", {**OBJECT, **NUMBERED}, ["{}", '{"a": 1}', '{"a": 1, "b": 2}'], ['{"a": "x"}', '{"c": 1}']),
    (
        "required",
        {"type": "object", **NUMBERED, "required": ["b"]},
        ['{"b": 1}', '{"a": 0, "b": 1}'],
        ["{}", '{"a": 1}'],
    ),
    (
        "additionalProperties",
        {**NUMBERED, "type": "object", "additionalProperties": {"type": "string"}},
        ['{"a": 1, "c": "x"}', '{"c": "x", "d": "y"}'],
        ['{"c": 1}', '{"a": "x"}'],
    ),
    (
        "patternProperties",
        {**OBJECT, "patternProperties": {"^s": {"type": "string"}, "e$": {"minLength": 2}}},
        ['{"s": "x"}', '{"she": "xx"}', '{"e": 1}'],
        ['{"she": "x"}', '{"she": 1}', '{"e": "x"}', '{"x": 1}'],
    ),
    ("propertyNames", {"type": "object", "propertyNames": {"maxLength": 2}}, ['{"ab": 1}', "{}"], ['{"abc": 1}']),
    ("minProperties", {"type": "object", "minProperties": 1}, ['{"x": 1}'], ["{}"]),
    ("minProperties", {**OBJECT, **NUMBERED, "minProperties": 2}, ['{"a": 1, "b": 2}'], ["{}", '{"a": 1}']),
    ("maxProperties", {"type": "object", "maxProperties": 1}, ["{}", '{"x": 1}'], ['{"x": 1, "y": 2}']),
    (
        "dependentRequired",
        {**NUMBERED, **OBJECT, "dependentRequired": {"a": ["b"]}},
        ["{}", '{"b": 1}', '{"a": 1, "b": 1}'],
        ['{"a": 1}'],
    ),
    (
        "dependentSchemas",
        {**NUMBERED, **OBJECT, "dependentSchemas": {"a": {"properties": {"b": {"minimum": 5}}}}},
        ['{"b": 1}', '{"a": 1, "b": 5}'],
        ['{"a": 1, "b": 4}'],
    ),
    ("allOf", {"allOf": [{"type": "integer"}, {"minimum": 3}, {"maximum": 4}]}, ["3", "4"], ["2", "5", '"x"']),
    ("anyOf", {"anyOf": [{"type": "integer"}, {"type": "number", "maximum": 0}]}, ["3", "-0.5"], ["0.5", '"x"']),
    ("oneOf", {"oneOf": [{"type": "integer"}, {"type": "number", "minimum": 3}]}, ["1", "4.5"], ["4", "2.5"]),
    (
        "oneOf",
        {**NUMBERED, **OBJECT, "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
        ['{"a": 1}', '{"b": 1}'],
        ["{}", '{"a": 1, "b": 1}'],
    ),
    ("not", {"type": "string", "not": {"pattern": "^a"}}, ['"ba"', '""'], ['"ab"', '"a"']),
    ("not", {"not": {"type": ["object", "array", "string"]}}, ["1", "null"], ["{}", '""', "[]"]),
    ("not", {"not": {"const": {"a": 1}}}, ["{}", '{"a": 2}', '{"b": 1}', "1"], ['{"a": 1}']),
    ("not", {"type": "integer", "not": {"enum": [1, 2]}}, ["0", "3", "12"], ["1", "2"]),
    (
        "not",
        {"type": "number", "multipleOf": 0.01, "not": {"type": "integer"}},
        ["0.5", "-1.23", "7.01"],
        ["0", "5", "-3", "1.234"],
    ),
    ("not", {"type": ["number", "null"], "multipleOf": 1, "not": {"type": "integer"}}, ["null"], ["0", "5", "1.5"]),
    (
        "if",
        {"type": "integer", "if": {"minimum": 10}, "then": {"multipleOf": 10}, "else": {"maximum": 5}},
        ["5", "20"],
        ["6", "15"],
    ),
    ("then", {"type": ["integer", "string"], "if": {"type": "integer"}, "then": {"minimum": 0}}, ["0", '"x"'], ["-1"]),
    (
        "else",
        {"if": {"type": "integer"}, "then": {"minimum": 100}, "else": {"type": "number", "multipleOf": 0.1}},
        ["100", "0.5", "-2.1"],
        ["5", "0", "0.25"],
    ),
    ("else", {"if": {"type": "integer"}, "else": {"type": "null"}}, ["0", "null"], ['"x"', "1.5"]),
    (
        "$ref",
        {"$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}}}, "$ref": "#/$defs/n"},
        ["[]", "[[], [[]]]"],
        ["[1]", "{}"],
    ),
    ("$defs", {"$defs": {"n": {"type": "null"}}, "$ref": "#/$defs/n"}, ["null"], ["1"]),
    ("definitions", {"definitions": {"n": {"type": "null"}}, "$ref": "#/definitions/n"}, ["null"], ["1"]),
    ("$anchor", {"$defs": {"n": {"$anchor": "x", "type": "null"}}, "$ref": "#x"}, ["null"], ["1"]),
    ("$id", {"$id": "http://a.example/r", "$defs": {"n": {"$id": "n", "type": "null"}}, "$ref": "n"}, ["null"], ["1"]),
]

# Older spellings, with the validator of their draft.
OLDER: list[tuple[str, Any, Any, list[str], list[str]]] = [
    (
        "exclusiveMinimum",
        jsonschema.Draft4Validator,
        {"type": "integer", "minimum": 3, "exclusiveMinimum": True},
        ["4"],
        ["3"],
    ),
    (
        "exclusiveMaximum",
        jsonschema.Draft4Validator,
        {"type": "integer", "maximum": 3, "exclusiveMaximum": False},
        ["3"],
        ["4"],
    ),
    (
        "items",
        jsonschema.Draft7Validator,
        {"type": "array", "items": [{"type": "integer"}]},
        ['[1, "x"]', "[]"],
        ['["x"]'],
    ),
    (
        "additionalItems",
        jsonschema.Draft7Validator,
        {"type": "array", "items": [{"type": "integer"}], "additionalItems": False},
        ["[1]", "[]"],
        ["[1, 2]"],
    ),
    (
        "dependencies",
        jsonschema.Draft7Validator,
        {**NUMBERED, **OBJECT, "dependencies": {"a": ["b"], "b": {"properties": {"b": {"minimum": 0}}}}},
        ['{"a": 1, "b": 1}', '{"b": 1}', "{}"],
        ['{"a": 1}', '{"b": -1}'],
    ),
]
