"""What `benchmarks/reliability.py` makes of answers, samples and times: it must see a fault that is there."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .scoreboard import scoreboard

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def parts() -> Iterator[SimpleNamespace]:
    with scoreboard() as found:
        yield found


@pytest.mark.parametrize(
    ("status", "body", "sent", "wrong"),
    [
        (200, b"{}", b"{}", (0, 0)),
        (400, b"no", b"{", (0, 0)),
        (500, b"oh", b"{}", (1, 0)),
        (503, b"oh", b"{}", (1, 0)),
        (504, b"late", b'{"timeout": 1}', (0, 0)),
        (504, b"late", b"{}", (1, 0)),
        (400, b"Traceback (most recent call last)", b"{}", (0, 1)),
        (400, b"not known: Traceback", b'{"Traceback": 1}', (0, 0)),  # its own words
    ],
)
def test_nonsense_is_answered_by_the_rules(
    parts, status: int, body: bytes, sent: bytes, wrong: tuple[int, int]
) -> None:
    answers = parts.hostile.Answers()
    answers.add(parts.wire.Heard(status, body=bytearray(body), whole=True), "request 1", sent)
    assert (answers.errors, answers.traces) == wrong
    assert bool(answers.bad) == any(wrong)


def test_nonsense_is_repeatable_and_of_all_kinds(parts) -> None:
    fields = {"text": {"type": "string"}, "n": {"type": "integer"}, "deep": {"$ref": "#/components/schemas/D"}}
    schema = {"type": "object", "properties": fields, "required": ["text"]}
    deep = {"type": "array", "items": {"$ref": "#/components/schemas/D"}}
    post = {"post": {"requestBody": {"content": {"application/json": {"schema": schema}}}}}
    api = {"paths": {"/g": post, "/m/{name}": {"get": {}}}, "components": {"schemas": {"D": deep}}}
    first, second, other = (parts.nonsense.Nonsense(api, "h", seed) for seed in (1, 1, 2))
    made = [first.request(n) for n in range(300)]
    assert made == [second.request(n) for n in range(300)] != [other.request(n) for n in range(300)]
    assert [first.raw(n) for n in range(50)] == [second.raw(n) for n in range(50)]
    bodies = [each.partition(b"\r\n\r\n")[2] for each in made if each.startswith(b"POST /g ")]
    read = [whole_json(body) for body in bodies]
    assert 0.4 < sum(read) / len(read) < 0.98  # most are JSON, not all
    for each in made:  # the frame is right, so that the connection can go on
        head, _, body = each.partition(b"\r\n\r\n")
        declared = re.search(rb"Content-Length: (\d+)", head)
        assert int(declared[1]) == len(body) if declared else not body


def whole_json(body: bytes) -> bool:
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True


@pytest.mark.parametrize("leak", [0.0, 0.5, 5.0])
def test_a_slope_is_found_with_its_error(parts, leak: float) -> None:
    """Of noisy samples of 100 MiB that grow by `leak` % an hour, over ten hours."""
    rng = random.Random(1)
    samples = parts.soak.Samples()
    for n in range(2400):
        hours = n / 240
        samples.at.append(hours)
        samples.memory.append(2**20 * (100 + leak * hours + rng.gauss(0, 0.2)))
        samples.files.append(30 + n % 2)
    memory, *_ = parts.soak.slopes("server", samples)
    assert abs(memory.value - leak) < 5 * memory.error + 0.2 * leak
    assert memory.verdict == ("broken" if leak > 1 else "kept")
    short = parts.soak.Samples(samples.at[:24], samples.memory[:24], samples.files[:24])
    assert parts.soak.slopes("server", short)[0].verdict == "not measured"  # a few minutes cannot tell


def test_a_file_that_stays_open_is_found(parts) -> None:
    samples = parts.soak.Samples()
    for n in range(240):
        samples.at.append(n / 240)
        samples.memory.append(1e8)
        samples.files.append(30 + n // 60)
    (growth,) = [each for each in parts.soak.slopes("server", samples) if each.what.startswith("growth")]
    assert growth.verdict == "broken"


@given(st.lists(st.floats(0.001, 1), min_size=5, max_size=20))
def test_times_that_differ_are_told_apart(times: list[float]) -> None:
    with scoreboard() as parts:
        separation = parts.tenants.separation
    assert separation(times, times) == 0.5
    assert separation([each + 1 for each in times], times) == 1.0
    assert separation(times, [each + 1 for each in times]) == 0.0


def test_a_summary_of_the_simulation_is_believed_only_when_it_is_new(parts, tmp_path) -> None:
    (tmp_path / "runtime").mkdir()
    source = tmp_path / "runtime" / "x.py"
    source.write_text("")
    assert parts.suites.summary(tmp_path) is None
    file = tmp_path / parts.suites.SUMMARY
    parts.main.write(file, json.dumps({"steps": 1_000_001, "failures": 0, "rounds": 100_000, "worlds": 9}))
    found = parts.suites.summary(tmp_path)
    assert {each.verdict for each in parts.suites.told(found, 1e6, 1e5)} == {"kept", None}
    for field, value in (("rounds", 99_999), ("failures", 1), ("steps", 999_999)):
        assert "broken" in {each.verdict for each in parts.suites.told({**found, field: value}, 1e6, 1e5)}
    later = file.stat().st_mtime + 1
    os.utime(source, (later, later))
    assert parts.suites.summary(tmp_path) is None


def test_lateness_is_told_against_a_step(parts) -> None:
    def told(loud: list[list[float]]) -> dict[str, tuple[float, float, float | None]]:
        quiet = [[5.0] * 999 + [9.0], [5.0] * 999 + [9.5]]
        return {each.what: (each.value, each.error, each.most) for each in parts.grammars.lateness(quiet, loud, 1001)}

    usual, rare = (f"the bystander's gaps, percentile {percent}, grow by" for percent in ("99", "99.9"))
    every_bomb = told([[5.0] * 960 + [12.0] * 40] * 2)  # the delays of forty bombs of a turn
    assert every_bomb[usual] == (7.0, 0.0, 5.0)
    one_kind = told([[5.0] * 998 + [25.0] * 2] * 2)
    assert one_kind[usual][0] == 0.0
    assert one_kind[rare][0] == 16.0
    assert one_kind["a step"][0] == 5.0
    hiccup = told([[5.0] * 1000, [5.0] * 999 + [80.0]])  # the machine's, once
    assert hiccup[usual][0] == 0.0
    assert hiccup["longest gap with bombs, median of turns"][0] == 42.5


def test_a_stream_that_was_read_in_large_pieces_tells_nothing(parts) -> None:
    def verdicts(pieces: int) -> set[str | None]:
        found = parts.grammars.lateness([[5.0] * 1000] * 2, [[5.0] * 1000, [5.0] * (pieces - 1)], 1000)
        return {each.verdict for each in found if each.what.endswith("grow by")}

    assert verdicts(251) == {"kept"}
    assert verdicts(250) == {"not measured"}
