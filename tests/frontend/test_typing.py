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
    return [branch.item for branch in branches]


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


plain(5)  # E: arg-type
rt.State.gen(rt.State.__new__(rt.State), jump="up")  # E: call-overload
plain()  # E: call-arg
plain("q", wrong=1)  # E: call-arg
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
