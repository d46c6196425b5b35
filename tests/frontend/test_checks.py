"""What `Plan.check` finds: each kind of diagnostic once where it is right, and not where it is not."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import pytest

import ramet as rt
import ramet.examples
from ramet.examples.map_reduce_summary import TEXT
from ramet.examples.subproblem_graph import GRAPH
from ramet.frontend.backends.engine import Engine
from ramet.frontend.diagnostics import ordered
from ramet.frontend.estimate import Observed
from ramet.frontend.ir import Choices, JsonSchema, Regex
from ramet.frontend.plan_file import written
from ramet.frontend.program import Program

from .checking import Found, check, codes, one

# --- a program that nothing is wrong with ---


def sound(s: rt.State, text: str) -> dict[str, str]:
    s.system("You judge.")
    s.user(text)
    branches = s.fork(["price", "quality"])
    for branch in branches:
        branch.assistant(rt.gen("said", max_tokens=8))
    s.assistant(rt.select("label", choices=["good", "bad"]))
    if s["label"] == "bad":
        s.user("Why?")
        s.reply(name="why", max_tokens=8)
        return {"why": s["why"], "price": branches[0]["said"], "quality": branches[1]["said"]}
    return {"price": branches[0]["said"], "quality": branches[1]["said"]}


def test_nothing_is_found_where_nothing_is_wrong():
    assert [each for each in check(sound) if each.code != "branch-alike"] == []
    assert rt.function(sound).compile().check() == []


# --- constraints and arguments ---


def bad_regex(s: rt.State) -> None:
    s += "x"
    s.gen(regex="(a", max_tokens=4)


def empty_language(s: rt.State) -> None:
    s.gen(regex="[^\\s\\S]", max_tokens=4)


def bad_schema(s: rt.State) -> None:
    s.gen(json_schema={"type": "strung"}, max_tokens=4)


def bad_choices(s: rt.State) -> None:
    s.select(["a", "b", "a"])


def empty_choice(s: rt.State) -> None:
    s.select(["a", ""])


def bad_option(s: rt.State) -> None:
    s.gen(max_tokens=0)


@pytest.mark.parametrize(
    ("body", "code", "message", "line"),
    [
        (bad_regex, "bad-constraint", "is no regular expression", 2),
        (empty_language, "bad-constraint", "no text matches", 1),
        (bad_schema, "bad-constraint", "strung", 1),
        (empty_choice, "bad-constraint", "non-empty", 1),
        (bad_choices, "duplicate-choices", "'a' twice", 1),
        (bad_option, "bad-argument", "max_tokens=0", 1),
    ],
)
def test_what_the_run_would_refuse(body, code, message, line):
    one(body, code, "error", message, line=line)


def test_on_which_path():
    def sometimes(s: rt.State) -> None:
        if s.select(["a", "b"]).get() == "b":
            s.gen(regex="(", max_tokens=1)

    found = one(sometimes, "bad-constraint", "error", "regex", line=2)
    assert found.when.endswith("is 'b'")
    assert found.path == (0, 2)
    assert "(when " in str(found)


def same_filled(s: rt.State, a: str) -> str:
    return s.select([f"{a}!", f"{a}!", "c"]).get()


def open_filled(s: rt.State, a: str, b: Literal["x", "y"]) -> str:
    return s.select([a, b]).get()


def fixed_filled(s: rt.State, a: str) -> str:
    return s.select([f"1 {a}", f"2 {a}"]).get()


def test_choices_that_arguments_fill():
    one(same_filled, "duplicate-choices", "error", "contain '{a}!' twice", line=1)
    one(open_filled, "duplicate-choices", "note", r"'\{a\}' .*only in a run", line=1)
    assert codes(check(fixed_filled)) == []


def numbers(s: rt.State) -> str:
    return s.select(["1", "2", "10"], name="score").get()


def ended(s: rt.State) -> str:
    return s.select(["1\n", "2\n", "10\n"], name="score").get()


def test_a_choice_that_another_begins_with():
    one(numbers, "choice-prefix", "warning", "'score', '1' is the beginning of '10'", line=1)
    assert codes(check(ended)) == []

    def sampled(s: rt.State) -> str:
        return s.gen(choices=["yes", "yes, but"], temperature=1.0).get()

    one(sampled, "choice-prefix", "warning", "'yes'", line=1)


# --- bounds ---


@dataclass
class Small:
    yes: bool
    size: Literal["s", "m"]


@dataclass
class Wide:
    names: list[str]


def unbounded(s: rt.State) -> str:
    return s.gen(name="text").get()


@pytest.mark.parametrize(
    ("options", "bounded"),
    [
        ({}, False),
        ({"max_tokens": 4}, True),
        ({"stop": "\n"}, True),
        ({"regex": "a+"}, False),
        ({"regex": "a{3}|b?"}, True),
        ({"type": Small}, True),
        ({"type": Wide}, False),
        ({"choices": ["a", "b"], "temperature": 1.0}, True),
        ({"json_schema": {"type": "string", "maxLength": 3}}, True),
        ({"json_schema": {"type": "string"}}, False),
        ({"json_schema": {"type": "array", "items": {"enum": [1]}, "maxItems": 3}}, True),
        ({"json_schema": {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"type": "null"}, {"const": 3}]}}}}, True),
        ({"json_schema": {"$defs": {"a": {"type": "array", "maxItems": 1, "items": {"$ref": "#/$defs/a"}}},
                          "$ref": "#/$defs/a"}}, False),
        ({"json_schema": {"type": "integer", "minimum": 0, "maximum": 9}}, True),
        ({"json_schema": {"type": "number", "minimum": 0, "maximum": 9}}, False),
    ],
)  # fmt: skip
def test_what_ends_a_generation(options, bounded):
    def body(s: rt.State) -> Any:
        return s.gen(name="x", **options).get()

    assert ("gen-without-bound" in codes(check(body))) == (not bounded)
    if not bounded:
        one(body, "gen-without-bound", "warning", "'x' has no max_tokens", line=1)


@pytest.mark.parametrize(
    ("options", "fits"),
    [
        ({"type": Wide, "max_tokens": 2}, False),
        ({"type": Wide, "max_tokens": 12}, True),
        ({"regex": "[a-z]{100}", "max_tokens": 10}, False),
        ({"regex": "[a-z]{100}|", "max_tokens": 10}, True),
        ({"json_schema": {"type": "array", "minItems": 40, "items": {"type": "integer"}}, "max_tokens": 10}, False),
        ({"json_schema": {"const": "x" * 90}, "max_tokens": 9}, False),
        ({"json_schema": {"anyOf": [{"const": "x" * 90}, {"type": "null"}]}, "max_tokens": 9}, True),
        ({"json_schema": {"allOf": [{"type": "string"}, {"type": "string", "minLength": 90}]}, "max_tokens": 9}, False),
        ({"json_schema": {"type": "object", "required": ["a", "b"], "properties": {"a": {"format": "date-time",
          "type": "string"}, "b": {"type": "array", "prefixItems": [{"type": "boolean"}], "minItems": 9}}},
          "max_tokens": 12}, False),
    ],
)  # fmt: skip
def test_what_max_tokens_can_hold(options, fits):
    def body(s: rt.State) -> Any:
        return s.gen(name="x", **options).get()

    assert ("max-tokens-too-small" not in codes(check(body))) == fits
    if not fits:
        one(body, "max-tokens-too-small", "warning", f"max_tokens={options['max_tokens']} cannot hold", line=1)


# --- stop strings ---


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"json_schema": {"type": "object"}, "stop": "}"}, "stop-cuts-constraint"),
        ({"type": Wide, "stop": '"names"'}, "stop-cuts-constraint"),
        ({"regex": r"\d+ items", "stop": "item"}, "stop-cuts-constraint"),
        ({"choices": ["a b", "c"], "temperature": 1.0, "stop": " "}, "stop-cuts-constraint"),
        ({"type": Wide, "stop": "\n"}, "stop-never-comes"),
        ({"regex": r"\d{1,4}", "stop": "."}, "stop-never-comes"),
        ({"regex": r"\d{1,4}\.?", "stop": "."}, ""),
        ({"type": Wide, "stop": "\n", "json_whitespace": "flexible"}, ""),
        ({"type": Wide, "stop": "names of"}, ""),
        ({"type": int}, ""),
    ],
)
def test_stops_and_constraints(options, code):
    def body(s: rt.State) -> Any:
        return s.gen(name="x", max_tokens=20, **options).get()

    assert codes(check(body)) == ([code] if code else [])
    if code:
        one(body, code, "note" if code == "stop-never-comes" else "warning", "stop=", line=1)


# --- the whole ---


STATIC: dict[str, dict[str, Any]] = {
    "map_reduce_summary": {"text": TEXT},
    "subproblem_graph": {"graph": GRAPH},
    "multi_turn_chat": {"questions": ["Why?", "How?", "When?"]},
}


def examples() -> Iterator[Program[..., Any]]:
    for module in pkgutil.iter_modules(ramet.examples.__path__):
        if module.name not in ("__init__",):
            loaded = importlib.import_module(f"ramet.examples.{module.name}")
            yield from (value for value in vars(loaded).values() if isinstance(value, Program))


def test_the_examples_raise_no_alarm():
    seen = set()
    for program in examples():
        for static in ({}, STATIC.get(program.__name__, {})):
            found = program.compile(**static).check()
            assert [each for each in found if each.severity != "note"] == [], program.__name__
            seen.add(program.__name__)
    assert len(seen) >= 12


def test_a_plan_from_a_file_is_checked_alike():
    for body in (unbounded, numbers, same_filled, bad_regex):
        plan = rt.function(temperature=0)(body).compile()
        assert rt.Plan.loads(plan.dumps()).check() == plan.check() != []


@pytest.mark.parametrize("constraint", [Regex("("), JsonSchema("{"), JsonSchema('{"type": 3}'), Choices(("a", "a"))])
def test_a_constraint_that_no_body_has_recorded(constraint):
    document = rt.function(unbounded).compile().document
    [step] = document.nodes[0].steps
    step = msgspec.structs.replace(step, op=msgspec.structs.replace(step.op, constraint=constraint))
    nodes = (msgspec.structs.replace(document.nodes[0], steps=(step,)),)
    plan = rt.Plan.loads(written(msgspec.structs.replace(document, nodes=nodes), Observed()))
    assert codes(plan.check()) == ["bad-constraint"]
    assert plan.show() and plan.mermaid() and plan.html()


def test_the_worst_comes_first_and_once():
    def both(s: rt.State, text: str) -> None:
        for _ in range(2):
            s += text
            s.gen()
        s.gen(regex="(")

    found = check(both)
    assert codes(found) == ["bad-constraint", "gen-without-bound"]
    assert ordered([*found, *found]) == found
    assert msgspec.json.decode(msgspec.json.encode(found), type=Found) == found


# --- against a backend ---


def test_the_context():
    mock = rt.Mock("x", context_length=40)

    def long(s: rt.State) -> str:
        s += "word " * 60
        s += "end"
        return s.gen(max_tokens=2).get()

    def full(s: rt.State) -> str:
        s += "word"
        return s.gen(name="a", max_tokens=60).get()

    for body, severity in ((long, "error"), (full, "warning")):
        plan = rt.function(body).compile()
        assert codes(plan.check()) == []
        [found] = plan.check(mock)
        assert (found.code, found.severity) == ("context-overflow", severity)
    assert rt.function(ended).compile().check(mock) == []


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine("random:tiny", in_process=True, threads=1, kv_tokens=8192) as started:
        yield started


@pytest.mark.model
def test_the_engine_compiles_constraints_and_counts_tokens(engine):
    def empty(s: rt.State) -> str:
        s += "x"
        return s.gen(json_schema={"type": "integer", "minimum": 3, "maximum": 2}, max_tokens=9).get()

    def tight(s: rt.State) -> str:
        s += "x"
        return s.gen(regex="[xqzj]{24}", max_tokens=7).get()

    def fits(s: rt.State) -> str:
        s += "x"
        return s.gen(regex="[xqzj]{24}", max_tokens=40).get()

    plans = [rt.function(body).compile() for body in (empty, tight, fits)]
    assert [codes(plan.check()) for plan in plans] == [[], [], []]
    assert [codes(plan.check(engine)) for plan in plans] == [["bad-constraint"], ["max-tokens-too-small"], []]
    assert plans[0].check(engine)[0].where.startswith("test_checks.py:")


@pytest.mark.model
def test_the_engine_says_what_its_chat_template_refuses(engine):
    @rt.function
    def asks(s: rt.State) -> str:
        s.user("a")
        return s.reply(max_tokens=2).get()

    plan = asks.compile()
    assert plan.check(engine) == []
    document = plan.document
    begin = document.nodes[0].steps[0]
    begin = msgspec.structs.replace(begin, op=msgspec.structs.replace(begin.op, role="nobody"))
    steps = (begin, *document.nodes[0].steps[1:])
    node = msgspec.structs.replace(document.nodes[0], steps=steps)
    plan = rt.Plan.loads(written(msgspec.structs.replace(document, nodes=(node,)), Observed()))
    [found] = [each for each in plan.check(engine) if each.severity == "error"]
    assert found.code == "role-order"
    assert "in the order nobody, assistant: role='nobody': unknown" in found.message
