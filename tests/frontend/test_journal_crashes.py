"""A program of 45 calls whose process dies at a commit, while sending, while receiving, inside a tool: the resumed run
gives what it would have given, and makes no call again that had finished.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from . import journaled
from .journaled import CALLS, KINDS, MUTATIONS, TOOLS, Log, Story, check, once

SPREAD = [("commit", 0), ("committed", 1), ("committed", 9), ("send", 3), ("sent", 5), ("receive", 30)]
SPREAD += [("received", 70), ("tool", 2), ("tool", 6), ("told", 7)]
# Where each broken rule shows.
CONTROLS = {
    "finished calls are forgotten": ("received", 60),
    "interrupted tools are called again": ("told", 6),
    "keys are drawn": ("told", 2),
    "values are cut": ("received", 60),
    "programs inside are new runs": ("received", 10**6),
}


def stories(folder: Path, points: list[tuple[str, int, str]]) -> list[tuple[str, int, str, Story]]:
    command = [sys.executable, "-P", str(Path(journaled.__file__)), str(folder), json.dumps(points)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr
    return [(kind, k, mutation, Story(**told)) for kind, k, mutation, told in map(json.loads, done.stdout.splitlines())]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What the program gives without a journal... but for the programs inside, whose seeds do not matter to a mock."""
    log = Log(tmp_path_factory.mktemp("expected") / "log")
    result = once(log, None)
    assert (len(log.all("call")), len(log.all("tool"))) == (CALLS, TOOLS)
    return json.loads(json.dumps(result))


def test_a_journal_changes_nothing(expected, tmp_path):
    log = Log(tmp_path / "log")
    assert json.loads(json.dumps(once(log, tmp_path / "runs.db"))) == expected
    [run] = log.all("run")
    again = Log(tmp_path / "again")
    assert json.loads(json.dumps(once(again, tmp_path / "runs.db", run))) == expected
    assert again.all("call") == again.all("tool") == []


def test_deaths_here_and_there(expected, tmp_path):
    told = stories(tmp_path, [(*point, "") for point in SPREAD])
    assert len(told) == len(SPREAD)
    for kind, k, _, story in told:
        assert story.died, (kind, k)
        assert check(story, expected) == [], (kind, k)
    assert any(story.settled for *_, story in told)


def test_the_check_sees_what_is_wrong(expected, tmp_path):
    """Positive controls: each rule switched off in the process that resumes."""
    assert set(CONTROLS) == set(MUTATIONS)
    for _, _, mutation, story in stories(tmp_path, [(*point, name) for name, point in CONTROLS.items()]):
        assert check(story, expected) != [], mutation


@pytest.mark.nightly
@pytest.mark.parametrize("kind", KINDS)
def test_deaths_everywhere(kind, expected, tmp_path):
    told = stories(tmp_path, [(kind, -1, "")])
    assert not told[-1][3].died
    assert len(told) > 8
    for _, k, _, story in told:
        assert check(story, expected) == [], (kind, k)
