"""What plans check, learn, expect and draw, also where several things stand on one line, or share an id."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import ramet as rt
from ramet.frontend.ir import Event, Header

WAIT = 20.0


@rt.function
def asked(s: rt.State, q: str) -> str:
    s += q
    return s.gen(name="a", max_tokens=2).get()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": "x"}, "seed='x'"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 1 << 70}, "seed="),
        ({"timeout": 0}, "timeout=0"),
        ({"timeout": True}, "timeout=True"),
        ({"backend": "x"}, "backend='x'"),
    ],
)
def test_options_of_runs_are_checked(options: dict[str, Any], message: str) -> None:
    plan, backend = asked.compile(), {"backend": rt.Mock("x")}
    for start in (lambda **all: plan.run("q", **all), lambda **all: plan.batch(["q"], **all)):
        with pytest.raises((rt.ConstraintError, rt.EngineError), match=re.escape(message)):
            start(**{**backend, **options})


def test_a_batch_takes_no_sampling() -> None:
    with pytest.raises(rt.ConstraintError, match=r"temperature=0: is no option of a plan"):
        asked.compile().batch(["q"], backend=rt.Mock("x"), temperature=0)


class Gone:
    """A backend whose engine is lost: nothing is told any more."""

    def open(self, header: Header, deliver: Callable[[Event], None]) -> Gone:
        return self

    def send(self, ops: Any) -> None:
        """Nobody is there."""

    def end(self) -> None:
        """Nobody is there."""

    def cancel(self) -> None:
        raise rt.TransportError("the engine is gone")

    def info(self) -> dict[str, object]:
        return {}

    def flush_cache(self) -> bool:
        return False

    def close(self) -> None:
        """Nothing is held."""


def test_events_end_where_nothing_can_be_told_any_more() -> None:
    run = asked.compile().run("q", backend=Gone())
    heard: list[Event] = []
    reader = threading.Thread(target=lambda: heard.extend(run.events()), daemon=True)
    reader.start()
    run.cancel()
    reader.join(WAIT)
    assert not reader.is_alive() and heard == []


@rt.function
def twice(s: rt.State) -> str:
    a, b = s.select(["yes", "no"], name="a"), s.select(["yes", "no"], name="b")
    if a.get() == "yes" and b.get() == "no":
        s.gen(name="long", max_tokens=50)
        return "both"
    return "other"


def test_decisions_of_one_line_are_told_apart() -> None:
    plan = twice.compile()
    for _ in range(4):
        plan.run(backend=rt.Mock({"a": "yes", "b": "no", "long": "w " * 50})).result(WAIT)
    estimate = plan.estimate()
    assert (estimate.calls, estimate.generated) == (3.0, 50)
    assert [op.var for op in plan.explain().ops if op.kind in ("gen", "select")] == ["a", "b", "long"]


@rt.function
def turns(s: rt.State) -> int:
    count = 0
    while count < 4 and s.select(["more", "over"], name="next").get() == "more":
        count += 1
    return count


def test_a_turn_of_a_loop_that_no_run_has_come_to_goes_by_its_line() -> None:
    plan = turns.compile()
    plan.run(backend=rt.Mock({"next": ["more", "over"]})).result(WAIT)
    assert plan.estimate().calls == 2.0, "each turn by what was seen there"
    plan.observed.outcomes = {place: seen for place, seen in plan.observed.outcomes.items() if " " not in place}
    assert plan.estimate().calls == 1 + 1 / 2 + 1 / 4 + 1 / 8, "as a plan that was kept in a file says it"


@rt.function
def underscored(s: rt.State) -> None:
    s += "q"
    _, _ = s.gen(name="_a", max_tokens=60), s.gen(name="_b", max_tokens=60)


def test_a_variable_may_begin_with_an_underscore() -> None:
    plan = underscored.compile()
    plan.run(backend=rt.Mock({"_a": " ".join(["w"] * 40), "_b": "w"})).result(WAIT)
    calls = [op for op in plan.explain().ops if op.guess is not None]
    assert [(op.var, op.guess.generated) for op in calls if op.guess] == [("_a", 40.0), ("_b", 1.0)]


@rt.function
def beyond(s: rt.State, q: str) -> str:
    s += q
    x = s.gen(name="a", max_tokens=3).get()
    if x.strip() == "more":
        s.gen(name="b", max_tokens=3).get()
    return x


def test_calls_behind_a_break_are_a_mean() -> None:
    plan = beyond.compile()
    for answer in ("more", "none"):
        plan.run("q", backend=rt.Mock({"a": answer, "b": "x y z"})).result(WAIT)
    assert plan.estimate("q").calls == 1.5


@rt.function
def chosen(s: rt.State, a: str, b: str) -> str:
    pick = s.select([a, b, a + " and " + b], name="pick")
    s += f"/{pick.get()}/"
    return s.gen(name="x", max_tokens=4).get()


def test_choices_made_of_arguments_have_a_length() -> None:
    plan, texts = chosen.compile(), ("a" * 40, "b" * 40)
    (gen,) = [op for op in plan.explain(*texts).ops if op.kind == "gen"]
    assert gen.guess is not None and gen.guess.prompt == pytest.approx((85 * 2 + 2) / 4, abs=0.5)
    assert plan.estimate(*texts).prompt == pytest.approx(gen.guess.prompt, abs=1)


@rt.function
def apart(s: rt.State) -> str:
    """Ids are the same on both paths: what B's branch says is made after the branch."""
    if s.select(["A", "B"], name="which").get() == "A":
        first, second = s.gen(name="fromA", max_tokens=3), s.gen(name="fromA2", max_tokens=3)
        return first.get() + second.get()
    [branch] = s.fork(1)
    value = s.gen(name="fromB", max_tokens=3)
    branch += "see "
    branch += value
    return branch.gen(name="z", max_tokens=3).get()


def test_dotted_arrows_come_from_values_of_the_same_path() -> None:
    chart = apart.compile().mermaid()
    nodes = dict(re.findall(r'^  (n\d+)[^"]*"(.*?)"', chart, re.MULTILINE))
    dotted = {(nodes[a], nodes[b]) for a, b in re.findall(r"^  (n\d+) -\.-> (n\d+)$", chart, re.MULTILINE)}
    into = {source for source, target in dotted if "fromB" in target}
    assert [source.partition("<br>")[0] for source in into] == ["gen fromB"]
    assert not any("fromA" in source and "return" not in target for source, target in dotted)


@rt.function
def judges(s: rt.State) -> list[str]:
    s += "q"
    parts = s.fork(2)
    inner = []
    for part in parts:
        [deep] = part.fork(1)
        inner.append(deep.gen(name="x", max_tokens=2, temperature=1.0))
    ends = s.fork(2)
    for end, value in zip(ends, inner, strict=True):
        end += "judge: "
        end += value
        end.gen(name="verdict", max_tokens=2)
    return ends.gather("verdict")


def test_branches_that_say_other_values_are_not_alike() -> None:
    shown = judges.compile().show()
    assert "{b0.b0.x}" in shown and "{b1.b0.x}" in shown
    assert shown.count("2 alike") == 1, "the two that generate x, and say nothing of each other"


def test_a_kept_plan_has_the_programs_seed_and_timeout() -> None:
    plan = rt.Plan.loads(asked.using(seed=5, timeout=9.0).compile().dumps())
    run = plan.run("q", backend=rt.Mock("x"))
    assert (run.result(WAIT), run.seed) == ("x", 5)
    late = rt.Plan.loads(asked.using(timeout=0.01).compile().dumps()).run("q", backend=rt.Mock({"a": rt.Mock.PENDING}))
    with pytest.raises(rt.ProgramTimeout):
        late.result(WAIT)


@pytest.mark.parametrize("settings", [{"seed": -1}, {"seed": 1 << 63}, {"timeout": 0}, {"timeout": -1.0}])
def test_settings_of_a_file_are_checked(settings: dict[str, float]) -> None:
    file = msgspec.json.decode(asked.compile().dumps())
    file["content"]["settings"].update(settings)
    content = msgspec.json.encode(file["content"], order="sorted")
    file["digest"] = hashlib.sha256(b"ramet plan\n" + content).hexdigest()
    with pytest.raises(rt.PlanError, match="content: Expected"):
        rt.Plan.loads(msgspec.json.encode(file))


def test_a_text_that_no_file_can_hold() -> None:
    @rt.function
    def odd(s: rt.State) -> None:
        s.gen(max_tokens=1)
        s += "x\ud800"
        s.gen(max_tokens=1)

    line = f"{Path(__file__).name}:{odd.__wrapped__.__code__.co_firstlineno + 3}"
    said = rf"^odd: a text at {line} has a lone surrogate, '\\ud800', .*errors='replace'"
    with pytest.raises(rt.PlanError, match=said):
        odd.compile().dumps()


def test_an_option_that_no_file_can_hold() -> None:
    @rt.function
    def odd(s: rt.State) -> None:
        s.gen(max_tokens=1, stop="\ud800")

    [found] = odd.compile().breaks
    assert found.kind == "feature"
    assert found.reason == "an option of this Gen has a lone surrogate, '\\ud800', which is no text"


@rt.function
def deep(s: rt.State) -> int:
    for turn in range(150):
        if s.select(["on", "over"], name="next").get() == "over":
            return turn
    return 150


def test_a_page_of_many_decisions_says_where_it_ends() -> None:
    plan = deep.compile(max_paths=200)
    page = plan.html()
    assert "and so on" in page and page.count("<details") < 150
    assert plan.show().count("next?") == 150


@dataclasses.dataclass
class Own:
    a: str
    more: str = ""

    def __init__(self, text: str) -> None:
        self.a = text + "!"


@dataclasses.dataclass
class Plain:
    a: str


class Undecorated(Plain):
    def __init__(self, text: str) -> None:
        super().__init__(text)


class Inheriting(Plain):
    """It has the constructor of its base."""


@dataclasses.dataclass(init=False)
class Halved(Plain):
    b: str = ""


class Slotted(Plain):
    __slots__ = ("c",)

    def said(self) -> str:
        return f"{self.a} {getattr(self, 'c', '')}"


@dataclasses.dataclass
class Louder:
    a: str

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, f"{value}!")


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    a: str


def _slotted(text: str) -> Slotted:
    made = Slotted(text)
    made.c = text  # type: ignore[attr-defined]
    return made


def _more(text: str) -> Plain:
    made = Plain(text)
    made.b = text  # type: ignore[attr-defined]
    return made


@pytest.mark.parametrize(
    "make",
    [Own, Undecorated, _more, Halved, _slotted, Louder, Plain, Inheriting, Frozen],
    ids=lambda make: make.__name__,
)
def test_only_what_its_fields_make_is_returned_by_a_plan(make: Callable[[str], Any]) -> None:
    @rt.function
    def body(s: rt.State, q: str) -> Any:
        s += q
        return make(s.gen(name="x", max_tokens=2).get())

    plan = body.compile()
    assert plan.whole == (make in (Plain, Inheriting, Frozen))
    want = body.using(backend=rt.Mock("z"))("q").result(WAIT)
    got = plan.run("q", backend=rt.Mock("z")).result(WAIT)
    assert type(got) is type(want)
    for name in ("a", "b", "c"):
        assert getattr(got, name, None) == getattr(want, name, None)
