"""Typed values on the real engine: a model that knows nothing and is asked at high temperature still writes values."""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, Literal
from uuid import UUID

import jsonschema
import pytest
from annotated_types import Interval, Len, MaxLen
from pydantic import BaseModel, Field

import ramet as rt
from ramet.frontend.backends.engine import Engine
from ramet.frontend.types import schema_of

from ..runtime.engines import WAIT, assert_clean, checked_engine
from ..server.serving import serving

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with checked_engine(dtype="auto", context=1024, kv_tokens=8192) as started:
        yield started


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class City:
    name: Annotated[str, MaxLen(8)]
    people: Annotated[int, Interval(ge=0, le=10**7)]
    color: Color
    river: Annotated[str, MaxLen(4)] | None = None


class Order(BaseModel):
    number: Annotated[int, Field(ge=1, le=99)]
    lines: Annotated[list[Literal["bread", "milk"]], Field(min_length=1, max_length=2)]


TYPES: list[Any] = [
    int,
    float,
    City,
    Order,
    Annotated[list[Annotated[int, Interval(ge=0, le=999)]], Len(1, 3)],
    tuple[Color, bool],
    date | None,
    UUID,
    Annotated[str, Len(1, 6)],
]


def asked(engine: Engine, seed: int, *types: Any, **options: Any) -> rt.Value[Any]:
    @rt.function
    def program(s: rt.State) -> rt.Value[Any]:
        s.user("Say it.")
        return s.reply(*types, **{"temperature": 3.0, "max_tokens": 300, **options})

    return program.using(backend=engine, seed=seed)().result(WAIT)


@pytest.mark.parametrize("type_", TYPES, ids=str)
def test_every_text_is_a_value(engine: Engine, type_: Any) -> None:
    validator = jsonschema.Draft202012Validator(schema_of(type_, "here"))
    for seed in range(6):
        value = asked(engine, seed, type_)
        found = value.get()
        text = "".join(value.entry.pieces)  # type: ignore[union-attr, arg-type]
        validator.validate(json.loads(text))
        assert isinstance(found, type_ if isinstance(type_, type) else object)
    assert_clean(engine)


def test_numbers_stand_bare_and_end_at_white_space(engine: Engine) -> None:
    @rt.function
    def program(s: rt.State) -> int:
        s += "Age: "
        age = s.gen(int, name="age", temperature=2.0, max_tokens=40)
        s += " years"
        return age.get()

    for seed in range(4):
        run = program.using(backend=engine, seed=seed)()
        assert re.fullmatch(r"Age: -?\d+ years", run.text())
        assert f"Age: {run.result(WAIT)} years" == run.text()


def test_texts_keep_their_constraint(engine: Engine) -> None:
    for seed in range(4):
        assert re.fullmatch(r"\d{3}-[a-z]{2,4}", asked(engine, seed, regex=r"\d{3}-[a-z]{2,4}").get())
        assert asked(engine, seed, choices=["one", "onerous", "two"]).get() in ("one", "onerous", "two")
        assert re.fullmatch(r"a+b", asked(engine, seed, grammar='start: "a"+ "b"').get()) or seed
        json.loads(asked(engine, seed, json_schema=City, json_whitespace="flexible").get())
    assert_clean(engine)


def test_jumps_change_no_value_of_a_greedy_run(engine: Engine) -> None:
    texts = {}
    for jump in ("exact", "off"):
        value = asked(engine, 1, City, jump=jump, temperature=0)
        value.get()
        texts[jump] = "".join(value.entry.pieces)  # type: ignore[union-attr, arg-type]
        assert value.meta.forced_tokens == 0 or jump == "exact"
    assert texts["exact"] == texts["off"]
    value = asked(engine, 1, City, temperature=0)
    value.get()
    assert value.meta.forced_tokens > 0


def test_samples_and_branches(engine: Engine) -> None:
    @rt.function
    def program(s: rt.State) -> Any:
        s.user("Say it.")
        branches = s.fork(8)
        for branch in branches:
            branch.reply(City, name="city", temperature=2.0, max_tokens=300)
        with s.assistant():
            samples = s.gen(Order, n=3, temperature=2.0, max_tokens=300)
        return branches.gather("city"), samples.get()

    cities, orders = program.using(backend=engine, seed=3)().result(WAIT)
    assert [type(city) for city in cities] == [City] * 8
    assert [type(order) for order in orders] == [Order] * 3
    assert len({city.name for city in cities}) > 1
    assert_clean(engine)


def test_what_max_tokens_cuts(engine: Engine) -> None:
    with pytest.raises(rt.TruncatedError) as caught:
        asked(engine, 0, dict[str, str], max_tokens=3).get()
    assert caught.value.partial == "" or caught.value.partial.startswith("{")
    assert caught.value.__cause__ is None  # a trace of a JSON parser would say nothing more
    assert caught.value.where.startswith("test_typed_on_engine.py:")
    assert_clean(engine)


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (lambda s: s.gen(regex=r"[^\s\S]"), "regex="),
        (lambda s: s.gen(Annotated[str, Len(3, 2)]), "json_schema"),
        (lambda s: s.gen(grammar="start: nowhere"), "grammar"),
        (lambda s: s.gen(json_schema={"enum": [1], "type": "string"}), "json_schema"),
    ],
)
def test_what_only_compiling_finds(engine: Engine, body: Callable[[rt.State], Any], match: str) -> None:
    def program(s: rt.State) -> Any:
        s += "x"
        return body(s).get()

    with pytest.raises(rt.ConstraintError, match=match) as caught:
        rt.function(program).using(backend=engine)().result(WAIT)
    assert caught.value.where.startswith("test_typed_on_engine.py:")
    assert_clean(engine)


@rt.function(temperature=2.0, max_tokens=200)
def conversation(s: rt.State) -> tuple[City, int, str, str]:
    s.user("Name a city.")
    city = s.reply(City)
    s.user("How many?")
    number = s.reply(int)
    s.user("Which?")
    picked = s.reply(choices=["one", "two"], temperature=1.0)
    s.user("Which code?")
    code = s.reply(regex=r"[A-Z]{2}\d{2}")
    return city.get(), number.get(), picked.get(), code.get()


def test_a_ramet_server_as_an_endpoint_and_as_chats() -> None:
    with serving(engine={"kv_tokens": 8192}) as served:
        here = conversation.using(backend=served.offline(), seed=5)().result(WAIT)
        with rt.Endpoint(served.url) as endpoint:
            assert conversation.using(backend=endpoint, seed=5)().result(WAIT) == here
        with rt.OpenAI("tiny", served.url + "/v1", "any") as chats:
            city, number, picked, code = conversation.using(backend=chats, seed=5)().result(WAIT)
    assert isinstance(city, City)
    assert isinstance(number, int)
    assert picked in ("one", "two")
    assert re.fullmatch(r"[A-Z]{2}\d{2}", code)
