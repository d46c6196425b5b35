"""Digits of pydantic's decimals and items of its sets: what the text is held to, or is refused."""

from __future__ import annotations

import enum
from decimal import Decimal
from typing import Any

import pydantic
import pytest

import ramet as rt
from ramet.frontend.types import json_type

WAIT = 60.0


class Price(pydantic.BaseModel):
    price: Decimal = pydantic.Field(max_digits=6, decimal_places=2)


class Share(pydantic.BaseModel):
    share: Decimal = pydantic.Field(ge=0, le=1, decimal_places=3)


class Count(pydantic.BaseModel):
    count: Decimal = pydantic.Field(max_digits=3, decimal_places=0)


class Loose(pydantic.BaseModel):
    value: Decimal = pydantic.Field(max_digits=4)


@pytest.mark.parametrize(
    ("type_", "field", "schema"),
    [
        (Price, "price", {"multipleOf": 0.01, "minimum": -9999.99, "maximum": 9999.99}),
        (Share, "share", {"multipleOf": 0.001, "minimum": 0, "maximum": 1}),
        (Count, "count", {"multipleOf": 1, "minimum": -999, "maximum": 999}),
    ],
)
def test_the_schema(type_: Any, field: str, schema: dict[str, float]) -> None:
    found = json_type(type_, "").schema["properties"][field]
    assert {key: found[key] for key in ("multipleOf", "minimum", "maximum")} == schema


def test_digits_without_places_are_refused() -> None:
    with pytest.raises(rt.ConstraintError, match=r"max_digits=4: .* give both"):
        json_type(Loose, "here")


class Small(enum.Enum):
    A = "a"
    B = "b"


class Chosen(pydantic.BaseModel):
    both: set[Small] = pydantic.Field(min_length=2, max_length=2)


class Flags(pydantic.BaseModel):
    flags: frozenset[bool] = pydantic.Field(min_length=2, max_length=2)


class Words(pydantic.BaseModel):
    words: set[str] = pydantic.Field(min_length=2)


def test_distinct_items_are_asked_for_where_they_can_be() -> None:
    schemas = [json_type(each, "").schema["properties"] for each in (Chosen, Flags, Words)]
    assert [next(iter(each.values())).get("uniqueItems", False) for each in schemas] == [True, True, False]


@pytest.mark.model
@pytest.mark.parametrize("type_", [Price, Share, Count, Chosen, Flags])
def test_what_an_engine_writes_is_one(type_: type[pydantic.BaseModel]) -> None:
    @rt.function(temperature=1.0)
    def body(s: rt.State) -> Any:
        s += "x"
        return s.gen(type_, name="x", max_tokens=60).get()

    found = 0
    with rt.Engine("random:tiny", threads=1) as engine:
        for seed in range(12):
            try:
                found += isinstance(body.run(backend=engine, seed=seed).result(WAIT), type_)
            except rt.TruncatedError:
                continue
    assert found > 3
