"""`benchmarks/reliability.py`: verdicts follow from figures and can be `broken`, clients that are lied to notice it,
the page has what the JSON has, and one row runs against a real server every day. No timing is asserted."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .scoreboard import KEYS, ROOT, SCRIPT, scoreboard

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def parts() -> Iterator[SimpleNamespace]:
    with scoreboard() as found:
        yield found


def run(*options: str, seconds: float = 280) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", str(SCRIPT), *options]
    return subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=seconds, check=False
    )


# -- verdicts

SIDES = {  # (value, least, most, error) → verdict
    "inside": ((1.0, None, 2.0, 0.0), "kept"),
    "at the bound": ((2.0, None, 2.0, 0.0), "kept"),
    "above": ((2.1, None, 2.0, 0.0), "broken"),
    "below": ((0.5, 0.9, None, 0.0), "broken"),
    "exactly": ((0.0, 0.0, 0.0, 0.0), "kept"),
    "not exactly": ((-9.0, 0.0, 0.0, 0.0), "broken"),
    "surely inside": ((1.0, None, 2.0, 0.4), "kept"),
    "perhaps inside": ((1.5, None, 2.0, 0.4), "not measured"),
    "perhaps outside": ((2.5, None, 2.0, 0.4), "not measured"),
    "surely outside": ((3.0, None, 2.0, 0.4), "broken"),
    "no figure": ((math.nan, None, 2.0, 0.0), "not measured"),
    "no error": ((1.0, None, 2.0, math.nan), "not measured"),
    "no bound": ((1.0, None, None, 0.0), None),
}


@pytest.mark.parametrize("name", SIDES)
def test_a_figure_has_a_verdict(parts, name: str) -> None:
    (value, least, most, error), verdict = SIDES[name]
    assert parts.board.Finding("x", value, "", least, most, error).verdict == verdict


def row_of(parts, *verdicts: str | None) -> Any:
    values = {"kept": 1.0, "broken": 3.0, "not measured": math.nan}
    finding = parts.board.Finding
    found = [finding("x", 1.0) if each is None else finding("x", values[each], most=2.0) for each in verdicts]
    return parts.board.Row("storm", "Storm", "a promise", findings=found)


ROWS = {
    ("kept", "kept", None): ("kept", 0),
    ("kept", "broken", "not measured"): ("broken", 1),
    ("kept", "not measured"): ("not measured", 0),
    (None,): ("not measured", 0),  # nothing promised, nothing kept
    (): ("not measured", 0),
}


@pytest.mark.parametrize("verdicts", ROWS, ids=str)
def test_a_row_has_the_worst_of_its_figures(parts, verdicts: tuple[str | None, ...]) -> None:
    row = row_of(parts, *verdicts)
    assert (row.verdict, parts.board.status([row_of(parts, "kept"), row])) == ROWS[verdicts]


@given(value=st.floats(-1e6, 1e6), bound=st.floats(-1e6, 1e6), error=st.floats(0, 1e3))
def test_no_figure_is_kept_and_broken(value: float, bound: float, error: float) -> None:
    with scoreboard() as parts:
        finding = parts.board.Finding
    most, least = (finding("x", value, most=bound, error=error), finding("x", value, least=bound, error=error))
    if most.verdict == least.verdict == "kept":
        assert value == bound and error == 0
    assert not most.verdict == least.verdict == "broken"


# -- a measurement that finds a fault: the whole command, from a row to the exit status


def raising(error: Exception) -> Callable[..., Any]:
    def measure(place: Any, size: Any) -> Any:
        raise error

    return measure


def seeded(parts, name: str) -> Callable[..., Any]:
    """Measurements with and without a fault."""
    finding = parts.board.Finding
    return {
        "right": lambda place, size: [finding("slots lost", 0, most=0)],
        "a slot is lost": lambda place, size: [finding("slots lost", 1, most=0)],
        "a client hangs": raising(parts.board.Violation("a client: nothing within 120 s")),
        "no such model": raising(parts.board.Unmeasured("the server did not start")),
        "a bug here": raising(ZeroDivisionError("division by zero")),
    }[name]


@pytest.mark.parametrize(
    ("name", "verdict", "status"),
    [
        ("right", "kept", 0),
        ("a slot is lost", "broken", 1),
        ("a client hangs", "broken", 1),
        ("no such model", "not measured", 0),
        ("a bug here", "not measured", 3),
    ],
)
def test_a_fault_is_shown(parts, monkeypatch, capsys, tmp_path, name: str, verdict: str, status: int) -> None:
    (storm,) = [promise for promise in parts.catalog.PROMISES if promise.key == "storm"]
    monkeypatch.setattr(parts.catalog, "PROMISES", (replace(storm, measure=seeded(parts, name)),))
    out, page = tmp_path / "board.json", tmp_path / "page.md"
    given = ["--only", "storm", "--json", "--out", str(out), "--page", str(page)]
    assert parts.main.main(given) == status
    (row,) = json.loads(out.read_text())["rows"]
    assert row["verdict"] == verdict
    assert json.loads(capsys.readouterr().out)["rows"] == [row]
    shown = "kept" if verdict == "kept" else f"**{verdict}**"
    assert f"| {shown} |" in page.read_text()
    if status:
        assert row["measured"].split(":")[0] in page.read_text()


# -- clients that are lied to


def answer(parts, path: str, *, stream: bool, **changes: Any) -> Any:
    """A right answer of "ab", with some of it changed."""
    if stream:
        deltas = [{"text": "a"}, {"text": "b"}]
        if path != "/generate":
            deltas = [{"choices": [{"delta": {"content": each["text"]}}]} for each in deltas]
        right = parts.wire.Heard(200, events=[*map(json.dumps, deltas), "[DONE]"], whole=True)
    else:
        value = {"text": "ab"} if path == "/generate" else {"choices": [{"message": {"content": "ab"}}]}
        right = parts.wire.Heard(200, body=bytearray(json.dumps(value).encode()), whole=True)
    return replace(right, **changes)


ERROR = json.dumps({"error": {"message": "the engine was lost"}})
DELTA = {"choices": [{"delta": {"content": "a"}}]}
TOLD = {"/generate": [json.dumps({"text": "a"}), ERROR], "/v1/chat/completions": [json.dumps(DELTA), ERROR]}
LIES: dict[str, tuple[bool, dict[str, Any]]] = {
    "cut": (True, {"whole": False}),
    "a whole answer that is cut": (False, {"whole": False}),
    "without [DONE]": (True, {"events": [json.dumps({"text": "a"})]}),
    "nothing at all": (True, {"events": []}),
    "an error, and [DONE] after it": (True, {"events": [ERROR, "[DONE]"]}),
    "another text": (False, {"body": bytearray(b'{"text": "ax", "choices": [{"message": {"content": "ax"}}]}')}),
    "503 without Retry-After": (False, {"status": 503}),
    "500": (False, {"status": 500}),
}


@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions"])
@pytest.mark.parametrize("name", LIES)
def test_an_answer_that_may_not_be_is_noticed(parts, path: str, name: str) -> None:
    stream, changes = LIES[name]
    assert parts.faults.judged(path, answer(parts, path, stream=stream), "ab", stream=stream) == "complete"
    with pytest.raises(parts.board.Violation):
        parts.faults.judged(path, answer(parts, path, stream=stream, **changes), "ab", stream=stream)


@pytest.mark.parametrize("path", TOLD)
def test_what_may_be(parts, path: str) -> None:
    told = answer(parts, path, stream=True, events=TOLD[path])
    assert parts.faults.judged(path, told, "ab", stream=True) == "told"
    refused = answer(parts, path, stream=True, status=503, headers={"retry-after": "2"})
    assert parts.faults.judged(path, refused, "ab", stream=True) == "refused"
    with pytest.raises(parts.board.Violation):  # told, but of other words than were to come
        parts.faults.judged(path, told, "xy", stream=True)


@contextlib.asynccontextmanager
async def speaking(said: bytes, *, reset: bool = False) -> AsyncIterator[str]:
    """A server that says one thing to everybody, and hangs up."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        await writer.drain()
        if reset:
            writer.transport.abort()
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNK = b'12\r\ndata: {"text":"a"}\n\r\n1\r\n\n\r\n'.replace(b"12", b"13")
WIRE = {
    "whole": (EVENTS + CHUNK + b"0\r\n\r\n", False, (200, True, 1)),
    "cut between pieces": (EVENTS + CHUNK, False, (200, False, 1)),
    "cut inside a piece": (EVENTS + CHUNK + b"13\r\ndata", False, (200, False, 1)),
    "cut inside the head": (EVENTS[:30], False, (0, False, 0)),
    "nothing": (b"", True, (0, False, 0)),
    "a short body": (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", False, (200, False, 0)),
    "no body": (b"HTTP/1.1 204 No Content\r\n\r\n", False, (204, True, 0)),
}


@pytest.mark.parametrize("name", WIRE)
def test_a_silent_end_is_not_an_end(parts, name: str) -> None:
    said, reset, wanted = WIRE[name]

    async def main() -> Any:
        async with speaking(said, reset=reset) as url:
            return await parts.wire.soon(parts.wire.ask(url, "/x", {}), "it", 20)

    heard = asyncio.run(main())
    assert (heard.status, heard.whole, len(heard.events)) == wanted


def test_a_hang_is_a_violation(parts) -> None:
    async def main() -> None:
        await parts.wire.soon(asyncio.Event().wait(), "a client", 0.01)

    with pytest.raises(parts.board.Violation, match=r"a client: nothing within 0.01 s"):
        asyncio.run(main())


# -- the page and the command line


def test_the_page_links_to_what_exists(parts, tmp_path) -> None:
    rows = []
    for number, promise in enumerate(parts.catalog.PROMISES):
        row = promise.row(quick=number == 0)
        row.findings = [parts.board.Finding("x | y", 1, most=2), parts.board.Finding("z", math.nan, "s", most=1)]
        row.run = {"date": str(number), "commit": "c", "command": "measure"}
        rows.append(row.as_json())
    options = SimpleNamespace(quick=False, model="default", seed=1)
    board = {**parts.main.facts(options, 700.0, ["--seed", "1", "--out", "x.json"]), "rows": rows, "date": "0"}
    text = parts.page.rendered(json.loads(json.dumps(board)), "benchmarks/results/reliability.json", ROOT)
    for target in re.findall(r"\]\(\.\./(tests/[^)#]+|benchmarks/[^)#]+\.py)\)", text):
        assert (ROOT / target).exists() or "anomalies" in target, target
    for anchor in re.findall(r"\]\(#(\w+)\)", text):
        assert f'<a id="{anchor}"></a>' in text
    table = [line for line in text.splitlines() if line.startswith("| [")]
    assert len(table) == len(KEYS) and all(len(re.findall(r"(?<!\\)\|", line)) == 5 for line in table)
    assert "Smaller than promised: storm." in text
    assert "--out" not in text and "{" not in text
    assert text.count("`measure`") == len(rows) - 1  # the first is of the board's own run


def test_a_row_is_measured_again_by_itself(parts, monkeypatch, tmp_path) -> None:
    out = tmp_path / "board.json"
    some = [promise for promise in parts.catalog.PROMISES if promise.key in ("storm", "soak")]
    for name, only in (("right", "storm,soak"), ("a slot is lost", "storm")):
        made = tuple(replace(promise, measure=seeded(parts, name)) for promise in some)
        monkeypatch.setattr(parts.catalog, "PROMISES", made)
        parts.main.main(["--only", only, "--out", str(out)])
    rows = {row["key"]: row for row in json.loads(out.read_text())["rows"]}
    assert [(key, row["verdict"]) for key, row in rows.items()] == [("storm", "broken"), ("soak", "kept")]
    assert [row["run"]["command"].split()[-1] for row in rows.values()] == ["storm", "storm,soak"]


def test_rows_are_the_promises(parts) -> None:
    assert tuple(promise.key for promise in parts.catalog.PROMISES) == KEYS
    for promise in parts.catalog.PROMISES:
        assert set(promise.small) >= set(promise.whole) - {"real"}
        assert all((ROOT / each).exists() for each in promise.tests if "anomalies" not in each), promise.tests


def test_the_committed_page_is_of_the_committed_figures(parts) -> None:
    results, page = ROOT / "benchmarks" / "results" / "reliability.json", ROOT / "docs" / "reliability.md"
    board = json.loads(results.read_text(encoding="utf-8"))
    text = page.read_text(encoding="utf-8")
    for row in board["rows"]:
        assert parts.page.line(row) in text
    assert board["date"] in text


def test_refusals() -> None:
    for options, said in ((["--only", "storm,bomb"], "--only bomb: must be some of"), (["--soak", "-1"], "at least 0")):
        done = run(*options)
        assert done.returncode == 2
        assert said in done.stderr


# -- against a real server

COUNTED = (
    "slots lost",
    "engines lost",
    "survivors",
    "answers",
    "5xx",
    "hangs",
    "traces",
    "under way",
    "processes left",
)


def checked(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The row of a quick run: all that is counted is kept; times are those of a busy machine."""
    assert done.returncode in (0, 1), done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    assert not row["whole"] and not row["failed"] and not row["reason"], row
    wrong = [each for each in row["findings"] if each["verdict"] == "broken" and each["what"].startswith(COUNTED)]
    assert not wrong, row
    assert any(each["verdict"] == "kept" for each in row["findings"])
    return row


def test_a_storm_on_a_real_server() -> None:
    row = checked(run("--quick", "--only", "storm", "--json"))
    found = {each["what"]: each["value"] for each in row["findings"]}
    assert found["survivors whose text is that of the request alone"] == 1
    assert found["clients that left"] > row["size"]["clients"] / 4


@pytest.mark.nightly
@pytest.mark.parametrize("key", KEYS[1:])
def test_every_row_runs(key: str) -> None:
    checked(run("--quick", "--only", key, "--json", seconds=600))
