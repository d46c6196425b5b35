"""Types that pydantic defines, as JSON: models, its dataclasses and fields, and whatever contains one of them.

In: such a type (pydantic is imported here, for programs that use it). Out: its JSON schema and a reader of texts.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pydantic
from pydantic.errors import PydanticUserError
from pydantic.json_schema import GenerateJsonSchema, JsonRef, JsonSchemaValue
from pydantic_core import SchemaError

from ramet.frontend.shapes import Unsupported, shown

_DISTINCT = 60  # values that items may have of which no two are equal
_LONGEST = 200  # characters of a message about a value


class _Closed(GenerateJsonSchema):
    """Pydantic's schemas, closed: a model writes the properties that are there, and no others unless the class allows
    them; numbers as numbers; sets as lists, which are read as sets."""

    def model_schema(self, schema: Any) -> JsonSchemaValue:
        return _closed(super().model_schema(schema))

    def dataclass_schema(self, schema: Any) -> JsonSchemaValue:
        return _closed(super().dataclass_schema(schema))

    def typed_dict_schema(self, schema: Any) -> JsonSchemaValue:
        return _closed(super().typed_dict_schema(schema))

    def decimal_schema(self, schema: Any) -> JsonSchemaValue:
        found = super().decimal_schema(schema)
        number = next((each for each in found.get("anyOf", ()) if each.get("type") == "number"), found)
        return _digits(number, schema.get("max_digits"), schema.get("decimal_places"))

    def set_schema(self, schema: Any) -> JsonSchemaValue:
        return self._set(super().set_schema(schema))

    def frozenset_schema(self, schema: Any) -> JsonSchemaValue:
        return self._set(super().frozenset_schema(schema))

    def _set(self, found: JsonSchemaValue) -> JsonSchemaValue:
        """Equal items make a set smaller: they are forbidden where that would be too small, and can be."""
        items = found.get("items", {})
        if "$ref" in items:
            items = self.get_schema_from_definitions(JsonRef(items["$ref"])) or {}
        few = items.get("type") == "boolean" or 0 < len(items.get("enum", ())) <= _DISTINCT
        return found if few and found.get("minItems", 0) > 1 else _without("uniqueItems", found)


def _digits(number: JsonSchemaValue, digits: int | None, places: int | None) -> JsonSchemaValue:
    """A number of at most so many digits, and of these so many behind the point."""
    if places is None:
        if digits is not None:
            raise Unsupported(f"max_digits={digits}: holds for a text only together with decimal_places; give both")
        return number
    step = Decimal(1).scaleb(-places)
    found = {"multipleOf": int(step) if places == 0 else float(step), **number}
    if digits is not None:
        most = float(Decimal(1).scaleb(digits - places) - step)
        found["minimum"] = max(found.get("minimum", -most), -most)
        found["maximum"] = min(found.get("maximum", most), most)
    return found


def _closed(schema: JsonSchemaValue) -> JsonSchemaValue:
    if schema.get("type") == "object" and "properties" in schema:
        schema.setdefault("additionalProperties", False)
    return schema


def _without(keyword: str, schema: JsonSchemaValue) -> JsonSchemaValue:
    return {key: value for key, value in schema.items() if key != keyword}


def schema_and_reader(type_: Any) -> tuple[dict[str, Any], Callable[[str], Any]]:
    """The schema of the type's JSON, and what reads a text as a value; it raises `ValueError`, which says where and
    what was wrong. Raises `Unsupported`."""
    try:
        adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(type_)
        schema = adapter.json_schema(schema_generator=_Closed)
    except (PydanticUserError, SchemaError, NameError) as error:
        raise Unsupported(f"{shown(type_)}: pydantic says: {str(error).splitlines()[0]}") from None

    def read(text: str) -> Any:
        try:
            return adapter.validate_json(text)
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            at = "/" + "/".join(map(str, first["loc"]))
            raise ValueError(f"at {at}: {first['msg'][:_LONGEST]}") from error

    return schema, read
