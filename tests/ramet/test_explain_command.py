"""`ramet explain`, as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .test_cli import ramet

PROGRAM = """
import ramet as rt

@rt.function(temperature=0)
def views(s, topic: str, branches: int = 2):
    s += f"About {topic}."
    forks = s.fork(branches)
    forks += rt.gen("view", max_tokens=4, ignore_eos=True)
    forks.join("concat")
    s += rt.select("verdict", ["good", "bad"])
    return s["verdict"]

@rt.function
def breaks(s, topic: str):
    s += f"About {topic}."
    raise ValueError("no " + topic)

@rt.function(budget=100)
def budgeted(s, topic: str):
    s += f"About {topic}."
    return s.gen(max_tokens=3, ignore_eos=True).get()
"""
TINY = ("--model", "random:tiny", "--threads", "1")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "programs.py"
    path.write_text(PROGRAM, encoding="utf-8")
    return path


def test_before(file: Path) -> None:
    done = ramet("explain", f"{file}:views", "trees", "--arg", "branches=3")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("EXPLAIN views")
    assert done.stdout.count("gen view") == 3
    assert "4 on the critical path" in done.stdout or "5 on the critical path" in done.stdout


def test_before_as_json(file: Path) -> None:
    done = ramet("explain", f"{file}:views", "trees", "--json")
    told = json.loads(done.stdout)
    assert (told["state"], told["totals"]["calls"], told["estimate"]["calls"]) == ("planned", 3, 3.0)


@pytest.mark.model
def test_after(file: Path, tmp_path: Path) -> None:
    done = ramet("explain", f"{file}:views", "trees", "--analyze", "--json", *TINY)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["state"], told["totals"]["bound"], told["totals"]["generated"]) == ("done", 5, 8)
    assert all(op["guess"]["generated"] == 4 for op in told["ops"] if op["var"] == "view")
    page = tmp_path / "run.html"
    done = ramet("explain", f"{file}:budgeted", "trees", "--analyze", "--html", str(page), *TINY)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "Timeline" in page.read_text(encoding="utf-8")


@pytest.mark.model
def test_a_program_that_fails_is_explained_too(file: Path) -> None:
    done = ramet("explain", f"{file}:breaks", "trees", "--analyze", *TINY)
    assert done.returncode == 1
    assert done.stdout.startswith("EXPLAIN ANALYZE breaks: failed")
    assert "ValueError: no trees" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("explain", "a prompt"), "is no FILE.py"),
        (("explain", "FILE:views", "x", "--model", "random:tiny"), "--analyze"),
        (("explain", "FILE:views", "x", "--json", "--html", "x.html"), "choose one"),
        (("explain", "FILE:views"), "missing topic"),
        (("explain", "FILE:views", "x", "--html", "nowhere/x.html"), "folder does not exist"),
    ],
)
def test_wrong_usage(file: Path, arguments: tuple[str, ...], said: str) -> None:
    done = ramet(*(argument.replace("FILE", str(file)) for argument in arguments))
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_what_cannot_be_planned(file: Path) -> None:
    done = ramet("explain", f"{file}:budgeted", "trees")
    assert done.returncode == 1
    assert "budget" in done.stderr and "--analyze" in done.stderr
