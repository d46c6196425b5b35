"""`benchmarks/programs.py`: its counts on a small random model keep their gates, the expert's texts are the programs'
texts, its functions read any text, its gates can fail. No timing is asserted."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.frontend import outbox

from ..runtime.engines import checked_engine

pytestmark = pytest.mark.model
SCRIPT = Path(__file__).resolve().parent.parent.parent / "benchmarks" / "programs.py"
NAMES = ("catalog", "counts", "gates", "places", "report", "rungs", "scenes", "session", "texts")


@pytest.fixture(scope="module")
def parts() -> Iterator[SimpleNamespace]:
    """The script's modules, found as the script finds them."""
    sys.path.insert(0, str(SCRIPT.parent))
    yield SimpleNamespace(**{name: importlib.import_module(f"programs_parts.{name}") for name in NAMES})
    sys.path.remove(str(SCRIPT.parent))


def _run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", str(SCRIPT), "--threads", "1", "--quiet", *options],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=280,
        check=False,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
    )


def test_counts_keep_their_gates() -> None:
    done = _run("--check", "--json")
    assert done.returncode == 0, done.stderr
    found = {(row["workload"][:3], row["rung"]): row for row in json.loads(done.stdout)["rows"]}
    assert len({label for label, _ in found}) == 14
    assert found["W11", "lru-fcfs"]["/distinct"] > 2
    assert found["W11", "whole"]["computed"] < 0.4 * found["W11", "lru-fcfs"]["computed"]
    whole = found["W07", "whole"]
    assert found["W07", "jump off"]["decoded"] > 3 * (whole["decoded"] - whole["forced"])
    assert found["W04", "whole"]["sent"] == 9  # one for each of three levels of each of three problems
    assert found["W12", "whole"]["decoded"] < found["W12", "early stop off"]["decoded"]
    for (label, rung), row in found.items():
        if rung in ("whole", "plan") and label != "W11":  # of which tests/sim/test_agents.py knows more
            assert row["computed"] < 1.06 * row["distinct"], label
        if rung == "plan" and row["same"] is not None:
            assert row["same"] == 1


@pytest.mark.nightly
def test_the_expert_client_says_what_the_programs_say(tmp_path) -> None:
    """Over HTTP, on a model whose answers follow from the prompt alone; texts that are sent again may be cut into other
    tokens, so this is of single calls."""
    done = _run(
        *("--model", "random:tiny", "--only", "W00,W02,W07", "--rungs", "expert,sglang,whole", "--json"),
        *("--dtype", "float32", "--out", str(tmp_path)),
    )
    assert done.returncode == 0, done.stderr
    found = {(row["workload"][:3], row["rung"]): row for row in json.loads(done.stdout)["rows"]}
    assert len(found) == 9
    assert json.loads(done.stdout)["lacks"] == []
    for (label, rung), row in found.items():
        assert row["same"] == 1, (label, rung)
        assert row["calls"] >= found[label, "whole"]["calls"]
    assert found["W07", "expert"]["forced"] > 100
    assert (tmp_path / "programs.json").read_text(encoding="utf-8").strip() == done.stdout.strip()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--rungs", "fast"), "must be some of llama.cpp"),
        (("--scale", "0"), "must be at least 1"),
        (("--check", "--rungs", "expert"), "calls, whole, plan, toggles"),
    ],
)
def test_refusals(
    parts, options: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module("programs").main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_refusal_is_status_2() -> None:
    done = _run("--only", "W00,W14")
    assert (done.returncode, done.stdout) == (2, "")
    assert "W14" in done.stderr


def test_the_same_seed_gives_the_same_rows(parts) -> None:
    for workload in parts.catalog.WORKLOADS:
        rows = parts.scenes.rows(workload.number, 3, 1)
        assert rows == parts.scenes.rows(workload.number, 3, 1)
        assert rows != parts.scenes.rows(workload.number, 4, 1)
        assert len(parts.scenes.rows(workload.number, 3, 2)) == 2 * len(rows)
        for row in rows:
            workload.program.bind(**workload.arguments(row))  # it has parameters of these names


@given(st.text(), st.integers(1, 9))
def test_any_text_is_read(text: str, count: int) -> None:
    sys.path.insert(0, str(SCRIPT.parent))
    texts = importlib.import_module("programs_parts.texts")
    sys.path.remove(str(SCRIPT.parent))
    found = texts.points(text, count)
    assert len(found) == count
    assert all(found) and not any("\n" in each for each in found)
    assert 1 <= texts.integer(text, 1, count) <= count
    assert texts.answer(text) in (0, 1, 2)


def test_lists_are_read_as_lists(parts) -> None:
    assert parts.texts.points("1. One\n2. Two\n3. Three", 2) == ["One", "Two"]
    assert parts.texts.integer("I say 7 of 9", 1, 9) == 7


@pytest.mark.parametrize("number", [4, 5, 9, 10, 13])
def test_distinct_tokens_are_those_that_an_idle_engine_computes(
    parts, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One program alone on an engine that checks itself: nothing is computed twice, so its counter is
    the count that is made up here from what was sent."""
    monkeypatch.setattr(outbox, "QUIET", 0.25)  # a busy machine cuts no submission in two
    monkeypatch.setattr(outbox, "PATIENCE", 0.25)
    workload = parts.catalog.WORKLOADS[number]
    rows = parts.scenes.rows(number, 5, 1)[:1]
    setting = parts.places.Setting("random:tiny", "auto", 1, True)
    with checked_engine(dtype="auto", context=2048) as engine, parts.places.Places(setting) as places:
        outcome, listener = parts.rungs.in_language(workload, rows, engine, {})
        assert outcome.computed == parts.session.distinct(places, listener)
    assert outcome.calls > 1
    assert outcome.submissions == workload.submissions


def test_gates_can_break(parts) -> None:
    workload = parts.catalog.WORKLOADS[7]
    good = parts.rungs.Outcome(1.0, [1.0], ["{}"], 1, 1, 90, 0, 10, computed=100, distinct=100, steps=10)
    slow = replace(good, decoded=40)

    def broken(whole=good, plan=good, off=slow) -> list[str]:
        report = parts.report.Report({}, [workload])
        for rung, outcome in (("whole", whole), ("plan", plan), ("jump off", off)):
            report.add(workload, rung, outcome)
        return parts.gates.broken(report)

    assert broken() == []
    assert "1.100 x the distinct" in broken(whole=replace(good, computed=110))[0]
    assert "2 submissions of 1 programs" in broken(whole=replace(good, submissions=2))[0]
    assert "1.10 x the sampled tokens" in broken(off=replace(good, decoded=11))[0]
    assert "differ" in broken(plan=replace(good, values=["[]"]))[0]


def test_gates_of_a_small_pool_can_break(parts) -> None:
    workload = parts.catalog.WORKLOADS[11]
    good = parts.rungs.Outcome(1.0, [1.0], ["a"], 1, 1, 90, 0, 10, computed=120, distinct=100, steps=10)

    def broken(whole: int, calls: int) -> list[str]:
        report = parts.report.Report({}, [workload])
        for rung, computed in (("whole", whole), ("plan", whole), ("lru-fcfs", calls)):
            report.add(workload, rung, replace(good, computed=computed))
        return parts.gates.broken(report)

    assert broken(120, 400) == []
    assert "0.75 x what lru-fcfs does" in broken(300, 400)[0]
    assert "there is no pressure" in broken(100, 190)[-1]


def test_the_table_and_the_picture(parts, tmp_path) -> None:
    workloads = parts.catalog.WORKLOADS[:2]
    report = parts.report.Report({"model": "m"}, workloads)
    fast = parts.rungs.Outcome(1.0, [0.5, 1.0], ["a", "b"], 2, 2, 90, 0, 10, computed=100, distinct=80, steps=10)
    for rung, seconds in (("expert", 2.0), ("calls", 1.1), ("whole", 1.0)):
        report.add(workloads[0], rung, replace(fast, seconds=seconds))
    report.lack(workloads[1], "plan", "no")
    told = report.as_json()
    assert told["control"] == pytest.approx(1 / 1.1)
    assert [row["x expert"] for row in told["rows"]] == pytest.approx([1.0, 2 / 1.1, 2.0])
    assert told["rows"][0]["/distinct"] == pytest.approx(1.25)
    assert told["lacks"] == [{"workload": "W01", "rung": "plan", "why": "no"}]
    assert report.table("title").row_count == 3
    pytest.importorskip("matplotlib")
    assert parts.report.draw(report, "title", tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000
