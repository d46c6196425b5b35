"""Types as JSON: every value of a type is valid under its schema and read back as it was; nothing else is read."""

from __future__ import annotations

import collections
import collections.abc
import enum
import json
import typing
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, NewType, NotRequired, Required, TypedDict
from uuid import UUID

import annotated_types as at
import jsonschema
import pydantic
import pytest
import typing_extensions
from hypothesis import given
from hypothesis import strategies as st

import ramet as rt
from ramet.frontend.schemas import check
from ramet.frontend.types import json_type, schema_of


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Weird(enum.Enum):
    TUPLE = (1, 2)
    NUMBER = 7


@dataclass
class City:
    name: str
    people: Annotated[int, at.Ge(0)]
    color: Color = Color.RED
    tags: list[str] = field(default_factory=list)
    computed: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.name == "Atlantis":
            raise ValueError("it sank")


@dataclass
class Tree:
    value: int
    children: list[Tree]
    city: City | None = None


class Row(TypedDict, total=False):
    a: Required[int]
    b: str


class Whole(TypedDict):
    a: int
    b: NotRequired[Tree]


class Older(typing_extensions.TypedDict):
    a: int


class Pair(NamedTuple):
    left: int
    right: float = 0.5


class Model(pydantic.BaseModel):
    name: Annotated[str, pydantic.Field(min_length=1)]
    price: Decimal
    tags: set[str] = set()
    child: Model | None = None

    @pydantic.field_validator("name")
    @classmethod
    def not_atlantis(cls, name: str) -> str:
        if name == "Atlantis":
            raise ValueError("it sank")
        return name


@pydantic.dataclasses.dataclass
class Checked:
    x: int


Name = NewType("Name", str)
TEXT = st.text(st.characters(codec="utf-8"), max_size=5)
INTEGER = st.integers(-(10**15), 10**15)
FLOAT = st.floats(allow_nan=False, allow_infinity=False)
CITY = st.builds(City, TEXT, st.integers(0, 10**9), st.sampled_from(Color), st.lists(TEXT, max_size=2))
TREE = st.recursive(
    st.builds(Tree, INTEGER, st.just([]), st.none() | CITY),
    lambda inner: st.builds(Tree, INTEGER, st.lists(inner, max_size=2), st.none() | CITY),
    max_leaves=4,
)
VALUES: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (str, TEXT),
    (int, INTEGER),
    (float, FLOAT),
    (bool, st.booleans()),
    (None, st.none()),
    (Name, TEXT),
    (Color, st.sampled_from(Color)),
    (Weird, st.sampled_from(Weird)),
    (Literal["a", 1, True, None, Color.RED], st.sampled_from(["a", 1, True, None, Color.RED])),
    (City, CITY),
    (Tree, TREE),
    (Row, st.fixed_dictionaries({"a": INTEGER}, optional={"b": TEXT})),
    (Whole, st.fixed_dictionaries({"a": INTEGER}, optional={"b": TREE})),
    (Older, st.fixed_dictionaries({"a": INTEGER})),
    (Pair, st.builds(Pair, INTEGER, FLOAT)),
    (list[City], st.lists(CITY, max_size=2)),
    (collections.abc.Sequence[int], st.lists(INTEGER)),
    (tuple[int, str], st.tuples(INTEGER, TEXT)),
    (tuple[int, ...], st.lists(INTEGER).map(tuple)),
    (set[int], st.sets(INTEGER)),
    (frozenset[str], st.frozensets(TEXT)),
    (dict[str, list[int]], st.dictionaries(TEXT, st.lists(INTEGER, max_size=2), max_size=3)),
    (collections.abc.Mapping[str, Pair], st.dictionaries(TEXT, st.builds(Pair, INTEGER, FLOAT), max_size=2)),
    (int | str | None, INTEGER | TEXT | st.none()),
    (City | Tree | list[City], CITY | TREE | st.lists(CITY, max_size=2)),
    (typing.Optional[Color], st.none() | st.sampled_from(Color)),  # noqa: UP045
    (Annotated[int, at.Interval(ge=1, lt=5)], st.integers(1, 4)),
    (Annotated[float, at.MultipleOf(0.5)], st.integers(-9, 9).map(lambda n: n / 2)),
    (Annotated[str, at.Len(1, 3)], st.text("ab", min_size=1, max_size=3)),
    (Annotated[list[int], at.MinLen(1), "a remark"], st.lists(INTEGER, min_size=1)),
    (Annotated[int | None, at.Gt(0)], st.none() | st.integers(1, 9)),
    (date, st.dates()),
    (datetime, st.datetimes(timezones=st.just(UTC))),
    (UUID, st.uuids()),
    (Decimal, st.decimals(-(10**6), 10**6, places=3)),
    (Model, st.builds(Model, name=st.just("n"), price=st.decimals(0, 9, places=2), tags=st.sets(TEXT, max_size=2))),
    (list[Checked], st.lists(st.builds(Checked, INTEGER), max_size=2)),
]


def encoded(value: Any) -> Any:
    """The value as JSON, written without the code that is tested."""
    if isinstance(value, enum.Enum):
        return value.value if isinstance(value.value, str | int) else value.name
    if isinstance(value, City):
        return {"name": value.name, "people": value.people, "color": value.color.value, "tags": value.tags}
    if isinstance(value, Tree):
        children = [encoded(child) for child in value.children]
        return {"value": value.value, "children": children, "city": encoded(value.city)}
    if isinstance(value, pydantic.BaseModel):
        return json.loads(value.model_dump_json()) | {"price": float(value.price)}
    if isinstance(value, Checked):
        return asdict(value)
    if isinstance(value, Pair):
        return value._asdict()
    if isinstance(value, dict):
        return {key: encoded(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [encoded(each) for each in value]
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    return str(value) if isinstance(value, UUID) else float(value) if isinstance(value, Decimal) else value


@given(st.data())
@pytest.mark.parametrize(("type_", "values"), VALUES, ids=lambda each: str(each)[:40])
def test_values_are_valid_and_read_back(type_: Any, values: st.SearchStrategy[Any], data: st.DataObject) -> None:
    value = data.draw(values)
    read = json_type(type_, "here")
    written = encoded(value)
    jsonschema.Draft202012Validator(read.schema).validate(written)
    found = read.read(json.dumps(written))
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("type_", [type_ for type_, _ in VALUES], ids=lambda each: str(each)[:40])
def test_schemas_can_be_kept(type_: Any) -> None:
    schema = schema_of(type_, "here")
    jsonschema.Draft202012Validator.check_schema(schema)
    check(schema)
    assert json.loads(json.dumps(schema)) == schema


@pytest.mark.parametrize(
    ("type_", "text", "says"),
    [
        (City, '{"name": "P", "people": -3}', "at /people: -3 is not ge 0"),
        (City, '{"name": "P"}', "at /: City lacks 'people'"),
        (City, '{"name": "P", "people": 1, "x": 1}', "at /: City has no 'x'"),
        (City, '{"name": "Atlantis", "people": 1}', "City refuses it: it sank"),
        (City, "[1]", r"at /: expected City, got \[1\]"),
        (City, '{"name": "P"', "delimiter"),
        (
            Tree,
            '{"value": 1, "children": [{"value": true, "children": []}]}',
            "at /children/0/value: expected an integer",
        ),
        (City | Tree, "{}", "expected one of City, Tree"),
        (Color, '"green"', "expected one of 'red', 'blue', got 'green'"),
        (Literal[1] | None, "true", "expected one of 1, got True"),
        (int | None, '"1"', "expected an integer, got '1'"),
        (tuple[int, int], "[1]", "expected a list of 2, got 1"),
        (set[Any], "[[1]]", "unhashable"),
        (date, '"2024-02-30"', "expected a date, got '2024-02-30'"),
        (UUID, '"x"', "expected a uuid"),
        (Annotated[str, at.Predicate(str.isupper)], '"a"', "'a' does not satisfy isupper"),
        (Annotated[str, at.MaxLen(1)], '"ab"', "at most 1"),
        (Annotated[list[int], at.MinLen(1)], "[]", "at least 1"),
        (Annotated[str, at.Gt(1)], '"a"', "not supported between"),
        (list[str], "[" * 100_000, "nested too deeply"),
        (Model, '{"name": "Atlantis", "price": 1}', "at /name: Value error, it sank"),
        (Model, '{"name": "", "price": 1}', "at /name: String should have at least 1"),
        (Model, '{"name"', "at /: Invalid JSON"),
    ],
    ids=str,
)
def test_what_is_no_value_is_said_with_its_place(type_: Any, text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        json_type(type_, "here").read(text)


def test_records_are_closed_and_shared() -> None:
    schema = schema_of(City, "here")
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["name", "people"]
    assert list(schema["properties"]) == ["name", "people", "color", "tags"]
    assert "$defs" not in schema
    wide = schema_of(tuple[City, City, Tree], "here")
    assert sorted(wide["$defs"]) == ["City", "Tree"]
    assert schema_of(Model, "here")["$defs"]["Model"]["additionalProperties"] is False


def test_two_records_of_one_name() -> None:
    def another() -> type:
        @dataclass
        class City:
            zip: int

        return City

    there = another()
    read = json_type(tuple[City, there], "here")
    assert len(read.schema["$defs"]) == 2
    assert read.read('[{"name": "P", "people": 1}, {"zip": 5}]') == (City("P", 1), there(5))


def test_pydantic_refuses_in_words() -> None:
    class Odd:
        pass

    with pytest.raises(rt.ConstraintError, match=r"type=.*pydantic says: Unable to generate"):
        json_type(tuple[Model, Odd], "here")


def test_numbers_keep_their_digits_and_any_is_plain() -> None:
    assert json_type(Decimal, "here").read("1.100000000000000000001") == Decimal("1.100000000000000000001")
    found = json_type(dict[str, Any], "here").read('{"a": [1.5, {"b": 2.5}]}')
    assert found == {"a": [1.5, {"b": 2.5}]}
    assert type(found["a"][0]) is float
    assert json_type(int, "here").read("1.0") == 1
    assert json_type(Annotated[float, at.MultipleOf(0.1)], "here").read("0.3") == 0.3
