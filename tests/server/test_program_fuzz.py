"""Damaged plans and bodies of programs, through all that reads them before the engine does: each is carried on with, or
refused with an error that says so. No HTTP, no engine.

A finding names its seed and number. `make fuzz` runs longer, with a fresh seed that it prints.
"""

from __future__ import annotations

import copy
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import msgspec
import pytest

import ramet as rt
from ramet.frontend import plan_file
from ramet.frontend.course import Course
from ramet.frontend.errors import ConstraintError, PlanError
from ramet.runtime.server import program_body as body
from ramet.runtime.server import strict_json
from ramet.runtime.server.failures import Failure
from ramet.runtime.server.plans import _texts, _weighed
from ramet.runtime.server.settings import Settings

DAILY, LONG = 300, 5_000
SLOW = 5.0  # seconds of one round after which something takes more than linear time; they take milliseconds
LIMITS = body.limits_of(Settings())
ARGS = {"text": "A fine day.", "language": "English"}
WEIRD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**40, 0.5, -0.0, 1e308),
    *("", "0", "0.0", "\x00", "a" * 5000, "é\u2028", "__class__", "../..", "type", [], {}, [[]], [None] * 50),
    *({"": {}}, {"type": "text"}, {"type": "fork", "into": ["0"] * 40}, {"op": "0.0"}, [[[[[[1]]]]]]),
]
OPS = [
    {"type": "text", "id": "0.0", "seq": "0", "parts": ["Once upon a time", {"type": "ref", "op": "0.0"}]},
    {"type": "tokens", "id": "0.9", "seq": "0", "ids": [1, 2, 3]},
    {"type": "role", "id": "0.8", "seq": "0", "role": "user", "edge": "begin"},
    {"type": "fork", "id": "0.1", "seq": "0", "into": ["0.1.b0", "0.1.b1"]},
    {"type": "gen", "id": "0.1.b0.0", "seq": "0.1.b0", "var": "x", "sampling": {"max_tokens": 16, "stop": ["."]}},
    {"type": "gen", "id": "0.1.b1.0", "seq": "0.1.b1", "var": "y", "constraint": {"type": "regex", "pattern": "a+"}},
    {"type": "select", "id": "0.2", "seq": "0", "var": "z", "choices": ["yes", "no"]},
    {"type": "join", "id": "0.3", "seq": "0", "branches": ["0.1.b0", "0.1.b1"]},
    {"type": "close", "id": "0.4", "seq": "0", "now": True},
]
PROGRAM = {
    "version": 1,
    "header": {"name": "n", "seed": 7, "priority": 0},
    "ops": OPS,
    "limits": {"ops": 100},
    "timeout": 5,
}


@rt.function(temperature=0)
def classify(s: rt.State, text: str, language: str) -> dict[str, str]:
    """Two calls, a decision and a fork."""
    s.user(f"Text in {language}: {text}\nIs it good?")
    good = s.reply(bool, name="good")
    s.user("Why?" if good.get() else "Why not?")
    return {"why": s.reply(name="why", max_tokens=5).get(), "language": language}


@pytest.fixture(scope="module")
def plan() -> Any:
    return json.loads(classify.compile().dumps())


def damaged(value: Any, rng: random.Random) -> Any:
    """A copy of a JSON value with one to three of its parts replaced, removed, doubled or exchanged."""
    made = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_places(made))
        holder, key = rng.choice(places)
        match rng.randrange(5):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, list):
                holder.insert(key, copy.deepcopy(holder[key]))
            case 2 if isinstance(holder, dict):
                holder[rng.choice(("type", "id", "seq", "x", "", "parts"))] = holder.pop(key)
            case 3:
                other, name = rng.choice(places)
                holder[key] = copy.deepcopy(other[name])
            case _:
                holder[key] = copy.deepcopy(rng.choice(WEIRD))
        if not list(_places(made)):
            return made
    return made


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every holder and key in a JSON value."""
    found: list[tuple[Any, Any]] = []
    stack = [value]
    while stack:
        each = stack.pop()
        keys: list[Any] = (
            list(each) if isinstance(each, dict) else list(range(len(each))) if isinstance(each, list) else []
        )
        found += [(each, key) for key in keys]
        stack += [each[key] for key in keys]
    return found


def read_plan(data: Any) -> None:
    """What is done with a plan before a program is opened: it is read, metered over its paths, and begun."""
    document, _ = plan_file.from_data(data, 8 * LIMITS.ops)
    for path in document.paths():
        body.Meter(LIMITS, 1024).take([_weighed(step) for step in document.steps(path)])
    if not document.breaks():
        Course(document, _texts(document, ARGS), 1 << 20).begin()


def read_right_plan(data: Any) -> None:
    """The same behind the digest, which is made right: nothing else may rely on it."""
    if isinstance(data, dict) and "content" in data:
        try:
            data["digest"] = plan_file._digest(data["content"])
        except msgspec.MsgspecError:
            return
        data |= {"format": plan_file.FORMAT, "ramet": metadata.version("ramet")}
    read_plan(data)


def read_program(data: Any) -> None:
    """A body with operations, from its bytes on."""
    parsed = strict_json.parse(msgspec.json.encode(data))
    if not isinstance(parsed, dict):
        return
    fields = {name: parsed.get(name) for name in ("version", "header", "limits", "timeout")}
    opening = body.opening_of(**fields, most=LIMITS)
    body.Meter(opening.limits, 1024).take(body.operations(parsed.get("ops")))


def finding(good: Any, read: Callable[[Any], None], seed: int, number: int) -> str:
    """What one damaged value did that it may not; empty when nothing."""
    data = damaged(good, random.Random(f"{seed}/{number}"))
    began, where = time.monotonic(), f"seed={seed} number={number}"
    try:
        read(data)
    except (Failure, PlanError, ConstraintError) as error:
        if isinstance(error, Failure) and error.status >= 500:
            return f"{where}: {error.status}: {error}"
    except Exception as error:  # noqa: BLE001 (whatever else comes is the finding)
        return f"{where}: {type(error).__name__}: {error}"
    return f"{where}: took long" if time.monotonic() - began > SLOW else ""


def search(good: Any, read: Callable[[Any], None], seed: int, rounds: int) -> Iterator[str]:
    """The findings of `rounds` damaged values, as they are made."""
    return (found for number in range(rounds) if (found := finding(good, read, seed, number)))


def test_what_is_damaged_is_right_before() -> None:
    """Else everything would be refused for another reason."""
    read_program(PROGRAM)
    read_plan(json.loads(classify.compile().dumps()))


@pytest.mark.parametrize("read", [read_plan, read_right_plan])
def test_plans(plan: Any, read: Callable[[Any], None]) -> None:
    assert list(search(plan, read, 1, DAILY)) == []


def test_programs() -> None:
    assert list(search(PROGRAM, read_program, 1, DAILY)) == []


def test_control_a_fault_is_found(plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(plan_file, "check", lambda document, most: None)
        assert next(search(plan, read_right_plan, 1, LONG), None)
    monkeypatch.setattr(body, "_known", lambda given, fields, where: None)
    monkeypatch.setattr(
        body, "_converted", lambda raw, kind, where: kind(**{k: v for k, v in raw.items() if k != "type"})
    )
    assert next(search(PROGRAM, read_program, 1, LONG), None)


@pytest.mark.nightly
@pytest.mark.parametrize("read", [read_plan, read_right_plan, read_program])
def test_longer(plan: Any, read: Callable[[Any], None], capsys: pytest.CaptureFixture[str]) -> None:
    seed = int.from_bytes(os.urandom(4), "little")
    with capsys.disabled():
        print(f"\nfuzzing {read.__name__}: seed={seed}, {LONG} values", flush=True)  # noqa: T201
    assert list(search(PROGRAM if read is read_program else plan, read, seed, LONG)) == []
