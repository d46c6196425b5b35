"""What type checkers infer."""

import os
import subprocess
import sys
from pathlib import Path

import ramet

SNIPPET = """
import enum
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypedDict, assert_type

from pydantic import BaseModel

import ramet as rt


class Grade(enum.Enum):
    A = "A"


@dataclass
class City:
    name: str


class Row(TypedDict):
    name: str


class Pair(NamedTuple):
    left: int


class Order(BaseModel):
    name: str


@rt.function
def plain(s: rt.State, question: str, n: int = 1) -> list[str]:
    s += "x" + rt.gen("y") + s.gen()
    s += rt.assistant("Sure: " + rt.gen("z"))
    assert_type(s.gen(), rt.Value[str])
    assert_type(s.gen(name="a", max_tokens=5), rt.Value[str])
    assert_type(s.gen(bool), rt.Value[bool])
    assert_type(s.gen(Grade), rt.Value[Grade])
    assert_type(s.gen(int), rt.Value[int])
    assert_type(s.gen(float, n=2), rt.Value[list[float]])
    assert_type(s.gen(City, name="c", jump="exact"), rt.Value[City])
    assert_type(s.gen(City).get().name, str)
    assert_type(s.gen(Row), rt.Value[Row])
    assert_type(s.gen(Pair), rt.Value[Pair])
    assert_type(s.gen(Order).get(), Order)
    assert_type(s.gen(list[str]), rt.Value[list[str]])
    assert_type(s.gen(list[City]).get()[0], City)
    assert_type(s.gen(dict[str, float]), rt.Value[dict[str, float]])
    assert_type(s.gen(tuple[int, str]), rt.Value[tuple[int, str]])
    assert_type(s.gen(City | None), rt.Value[Any])
    assert_type(s.gen(regex="a+"), rt.Value[str])
    assert_type(s.gen(choices=["a", "b"], temperature=1), rt.Value[str])
    assert_type(s.gen(json_schema=City, json_whitespace="flexible"), rt.Value[str])
    assert_type(s.gen(json_schema={"type": "object"}), rt.Value[str])
    assert_type(s.gen(grammar="root ::= [a-z]"), rt.Value[str])
    assert_type(s.reply(City, max_tokens=9).get(), City)
    assert_type(s.gen(n=3), rt.Value[list[str]])
    assert_type(s.gen(Literal["a"]), rt.Value[Any])
    assert_type(s.reply(), rt.Value[str])
    assert_type(s.reply(tools=[len], tool_choice="required", max_tokens=9), rt.Value[rt.ToolReply])
    assert_type(s.run_tools(s.reply(tools=[len]).get()), list[rt.Value[str]])
    assert_type(s.reply(Grade, prefix="Grade: ").get(), Grade)
    assert_type(s.select(["a", "b"]), rt.Value[str])
    assert_type(s.gen().map(len), rt.Value[int])
    assert_type(rt.gather(s.gen(bool), s.gen(bool)), list[bool])
    branches = s.fork(["a", "b"])
    branches += "x"
    branches += lambda i: str(i) + rt.gen("x")
    with s.user():
        s += "x"
    assert_type(rt.vote(s, lambda b: b.gen(), n=3), str)
    assert_type(rt.vote(s, lambda b: b.gen().map(len), n=3, key=lambda size: size % 2), int)
    assert_type(rt.best_of(s, lambda b: b.gen(City), n=2, score=lambda city: len(city.name)), rt.Best[City])
    assert_type(rt.best_of(s, lambda b: b.gen(), n=2, judge=lambda b: b.select(["1", "2"])).value, str)
    assert_type(rt.best_of(s, lambda b: later("Paris"), n=2, judge=lambda b: b.gen(int)), rt.Best[Grade])
    assert_type(rt.cascade(s, [counted, counted], accept=lambda number: number > 3), rt.Settled[int])
    assert_type(
        rt.refine_until(
            s, lambda s: s.gen(Grade), critique=lambda b: b.gen(bool), accept=lambda fine: fine, revise=regrade
        ).value,
        Grade,
    )
    assert_type(rt.beam(s, lambda b, level: b.gen(), n=2, width=1, depth=3).values, tuple[str, ...])
    assert_type(rt.tree_search(s, thought, n=2, depth=3, keep=2, score=len), rt.BestPath[int])
    return [branch.item for branch in branches]


async def thought(branch: rt.State, level: int) -> int:
    return await branch.gen(int)


def counted(branch: rt.State) -> rt.Value[int]:
    return branch.gen(int)


def known(branch: rt.State) -> str:
    return "text"


def regrade(s: rt.State) -> rt.Value[Grade]:
    return s.gen(Grade)


@rt.function(temperature=0)
async def later(s: rt.State, city: str) -> Grade:
    return await s.gen(Grade)


class Asker:
    @rt.function
    def ask(self, s: rt.State, question: str) -> int:
        return 1


assert_type(plain("q"), rt.Run[list[str]])
assert_type(plain("q", n=2).result(), list[str])
assert_type(later("Paris"), rt.Run[Grade])
assert_type(Asker().ask("q").result(), int)
assert_type(plain.using(temperature=0.5)("q").result(), list[str])
assert_type(plain.batch([("q",)]).result(), list[list[str]])


async def main() -> None:
    assert_type(await later("Paris"), Grade)
    assert_type(await rt.agather(plain("q").value("x")), list[Any])


async def voting(s: rt.State) -> None:
    assert_type(await rt.avote(s, lambda b: b.gen(Grade), n=3), Grade)
    assert_type(await rt.atree_search(s, thought, n=2, depth=3, score=len), rt.BestPath[int])


plain(5)  # E: arg-type
rt.State.gen(rt.State.__new__(rt.State), jump="up")  # E: call-overload
plain()  # E: call-arg
plain("q", wrong=1)  # E: call-arg
rt.vote(rt.State.__new__(rt.State), known, n=3)  # E: arg-type
rt.vote(rt.State.__new__(rt.State), regrade)  # E: call-arg
"""


def test_mypy_infers_values_and_runs(tmp_path):
    links = tmp_path / "types" / "ramet"
    links.mkdir(parents=True)
    # The language alone: what needs the runtime (Engine) is Any here, and need not be read.
    (links / "frontend").symlink_to(Path(ramet.frontend.__path__[0]))
    for name in ("__init__.py", "py.typed"):
        (links / name).symlink_to(Path(ramet.__file__).parent / name)
    snippet = tmp_path / "snippet.py"
    snippet.write_text(SNIPPET)
    checked = subprocess.run(
        [
            sys.executable,
            "-P",
            "-m",
            "mypy",
            "--strict",
            "--config-file=",
            "--cache-dir",
            str(tmp_path / "cache"),
            "snippet.py",
        ],
        env={**os.environ, "MYPYPATH": str(tmp_path / "types")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    lines = SNIPPET.splitlines()
    expected = [(number, line.split("# E: ")[1]) for number, line in enumerate(lines, 1) if "# E: " in line]
    found = []
    for line in checked.stdout.splitlines():
        if line.startswith("snippet.py:") and ": error: " in line:
            found.append((int(line.split(":")[1]), line.rsplit("[", 1)[1].rstrip("]")))
    assert found == expected, checked.stdout + checked.stderr
