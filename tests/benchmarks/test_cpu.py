"""`benchmarks/cpu.py`: its floors against figures made by hand, its batches against a runner, its table, and all of it
on a small random model. No timing is asserted."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ramet.kernels.cpu import library
from ramet.runtime.batch import Masks
from ramet.runtime.models.hub import PRESETS

from ..runtime.natives import native, needs_native, packed

SCRIPT = Path(__file__).resolve().parent.parent.parent / "benchmarks" / "cpu.py"
SMOL = PRESETS["smollm2-135m"]


@pytest.fixture(scope="module")
def parts() -> Iterator[SimpleNamespace]:
    """The script's modules, found as the script finds them."""
    sys.path.insert(0, str(SCRIPT.parent))
    names = ("floors", "grouped", "limits", "pins", "report", "runners", "session", "shared")
    yield SimpleNamespace(**{name: importlib.import_module(f"cpu_parts.{name}") for name in names})
    sys.path.remove(str(SCRIPT.parent))


def zen4(parts: SimpleNamespace):
    """The limits of two cores."""
    return parts.limits.Limits(bandwidth=59e9, bf16=468e9, int8=938e9)


@needs_native
@pytest.mark.parametrize(
    ("dtype", "batch", "rate", "binds"),
    [
        ("bfloat16", 1, 219, "bytes"),  # 269 MB
        ("int8", 1, 425, "bytes"),  # 139 MB with scales
        ("bfloat16", 4096, 1740, "operations"),
        ("int8", 4096, 3490, "operations"),
        ("int4", 4096, 3490, "operations"),
    ],
)
def test_decode_floors(parts, dtype, batch, rate, binds):
    """Without context: what the weights alone allow."""
    shape = parts.floors.shape(SMOL, dtype, library.load())
    floor = parts.floors.decode(shape, zen4(parts), batch, 0)
    assert batch / floor.seconds == pytest.approx(rate, rel=0.01)
    assert floor.binds == binds


@needs_native
def test_prefill_floors(parts):
    """The head is multiplied once; attention costs a few percent of a short prompt."""
    limits = zen4(parts)
    dense = parts.floors.shape(SMOL, "bfloat16")
    assert dense.layers + dense.head == pytest.approx(269e6, rel=0.01)
    assert 512 / parts.floors.prefill(dense, limits, 512).seconds == pytest.approx(2204, rel=0.1)
    packed8 = parts.floors.shape(SMOL, "int8", library.load())
    assert 512 / parts.floors.prefill(packed8, limits, 512).seconds == pytest.approx(4420, rel=0.2)


def test_a_shared_prefix_is_read_once_and_computed_once(parts):
    limits, shape = zen4(parts), parts.floors.shape(SMOL, "bfloat16")
    slow = replace(limits, bf16=1e18)
    apart = parts.floors.decode(shape, slow, 64, 1000)
    shared = parts.floors.decode(shape, slow, 64, 1000, shared=900)
    assert apart.seconds - shared.seconds == pytest.approx(63 * 900 * 23_040 / 59e9)
    alone = parts.floors.forked(shape, limits, 1, 1000, 50, 1)
    assert alone.seconds == pytest.approx(parts.floors.prefill(shape, limits, 1050).seconds)
    many = parts.floors.forked(shape, limits, 64, 1000, 50, 32)
    fresh = 64 * parts.floors.prefill(shape, limits, 1050).seconds
    assert alone.seconds < many.seconds < 0.2 * fresh


@needs_native
def test_batches_continue_a_prompt(parts):
    """A prompt and a step that is fed what was drawn draw what the longer prompt draws."""
    spec = replace(PRESETS["tiny"], vocab=300)
    runner = native(packed(spec, "int8"))
    tokens = np.arange(7, 27, dtype=np.int32)

    def drawn(batch) -> int:
        flight = runner.forward(batch)
        runner.sample(flight, Masks())
        return int(runner.read(flight).tokens[0])

    first = drawn(parts.runners.prompt(tokens))
    second = drawn(parts.runners.step(np.zeros(3, np.int32), len(tokens), 40, feed=True))
    assert drawn(parts.runners.prompt(np.append(tokens, np.int32(first)))) == second
    step = parts.runners.step(np.zeros(3, np.int32), 9, 40, feed=False)
    assert (len(step), step.segments, len(set(step.kv_indices.tolist()))) == (3, 3, 30)
    assert step.slots.tolist() == [9, 49, 89] == step.kv_indices[9::10].tolist()


@needs_native
@pytest.mark.parametrize("compilers", [(), None], ids=["without a compiler", "as it is"])
def test_limits(parts, monkeypatch, compilers):
    if compilers is not None:
        monkeypatch.setattr(parts.limits, "COMPILERS", compilers)
    monkeypatch.setattr(parts.limits, "ROUNDS", 1000)
    meter = parts.limits.Meter(library.load(), 2, (), 1 << 20)
    found, products = meter()
    meter.close()
    assert min(found.bandwidth, found.bf16, found.int8, *products.values()) > 0
    assert products.keys() == {"bf16", "int8", "int4"}
    if compilers == ():
        assert set(meter.how.values()) == {"ramet_linear"}
        assert (found.bf16, found.int8) == (products["bf16"], products["int8"])


def test_pinning_ends(parts):
    if not parts.pins.can_pin():
        pytest.skip("threads cannot be pinned here")
    before, done, seen = os.sched_getaffinity(0), threading.Event(), []
    with parts.pins.pinned(True) as cores:
        assert (os.sched_getaffinity(0), list(cores)) == ({min(before)}, sorted(before))
        with parts.pins.workers(cores):
            thread = threading.Thread(target=done.wait)
            thread.start()
        seen.append(os.sched_getaffinity(thread.native_id))
        done.set()
        thread.join()
    assert seen == [{cores[1 % len(cores)]}]
    assert os.sched_getaffinity(0) == before
    with parts.pins.pinned(False) as cores:
        assert (list(cores), os.sched_getaffinity(0)) == ([], before)


def test_runners_take_turns(parts):
    session = SimpleNamespace(options=SimpleNamespace(turns=3))
    found = list(parts.session.turns(session, ["a", "b"]))
    assert [keep for keep, _ in found] == [False, True, True, True]
    assert [order for _, order in found[1:]] == [["a", "b"], ["b", "a"], ["a", "b"]]


def test_the_table(parts, tmp_path):
    report = parts.report.Report({"model": "m"})
    for values in ((90.0, 100.0, 30.0), (100.0, 200.0, 50.0), (80.0, 100.0, 20.0)):
        for runner, rate, limit in (("int8", values[0], values[1]), ("torch", values[2], 200.0)):
            figure = report.of("decode", "batch 1", runner, "tok/s", batch=1)
            figure.values.append(rate)
            figure.limits.append(limit)
    report.of("limits", "read", "", "GB/s").values += [50.0]
    first, second, limit = report.as_json()["rows"]
    assert (first["median"], first["lowest"], first["highest"], first["batch"]) == (90, 80, 100, 1)
    assert (first["limit"], first["share"], first["over_torch"]) == (100, 0.8, 3)
    assert (second["over_torch"], limit["limit"], limit["share"], limit["over_torch"]) == (None, None, None, None)
    assert report.table("t").row_count == 3
    pytest.importorskip("matplotlib")
    assert parts.report.draw(report.figures, "t", tmp_path / "some.png")
    assert (tmp_path / "some.png").read_bytes().startswith(b"\x89PNG")


def run(*options: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", str(SCRIPT), *options]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=180, check=False
    )


@needs_native
@pytest.mark.model
def test_the_whole_run(tmp_path):
    sizes = "--threads 1 --turns 1 --prompt 16 --batches 1 3 --contexts 8 70 --steps 2 --block 2"
    fork = "--branches 3 --prefix 40 --own 5 --made 3 --runners int8 torch"
    done = run("--model", "random:tiny", *sizes.split(), *fork.split(), "--json", "--out", "made", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == json.loads((tmp_path / "made" / "cpu.json").read_text(encoding="utf-8"))
    rows = {(row["section"], row["what"], row["runner"]): row for row in found["rows"]}
    cells = [("prefill", "16 tokens"), *(("decode", f"batch {b}, context {c}") for c in (8, 70) for b in (1, 3))]
    cells.append(("shared", "3 x (40 shared + 5 + 3 made)"))
    beside = {row["what"]: row for row in found["rows"] if row["section"] == "overhead"}
    assert beside.keys() == {"batch 1, greedy", "batch 1, sampled"}
    assert {(row["runner"], row["unit"]) for row in beside.values()} == {("int8", "ms/step")}
    timed = [row for row in found["rows"] if row["section"] not in ("limits", "overhead")]
    assert {(row["section"], row["what"], row["runner"]) for row in timed} == {
        (*cell, runner) for cell in cells for runner in ("int8", "torch")
    }
    assert all(row["median"] > 0 and row["limit"] > 0 and row["share"] > 0 for row in timed)
    assert all((row["over_torch"] is None) == (row["runner"] == "torch") for row in timed)
    assert "computed / distinct tokens 1.000" in rows["shared", "3 x (40 shared + 5 + 3 made)", "int8"]["note"]
    assert ("limits", "products, int8", "") in rows


@needs_native
@pytest.mark.parametrize(
    ("options", "status", "words"),
    [(["--steps", "0"], 2, "--steps 0: must be at least 1"), (["--model", "random:none"], 1, "random:none")],
)
def test_bad_input_is_a_sentence(tmp_path, options, status, words):
    done = run(*options, cwd=tmp_path)
    assert done.returncode == status
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_the_break_even_is_where_grouping_is_never_slower_again(parts):
    found = {(2, 64): 0.9, (2, 128): 1.1, (2, 256): 0.9, (2, 512): 0.99, (2, 1024): 1.2, (3, 64): 1.0, (3, 128): 0.5}
    assert parts.grouped.even_from(found, 2) == 512
    assert parts.grouped.even_from(found, 3) is None


@needs_native
def test_the_rule_beside_the_break_even(parts):
    """Six block reads a thread: of 64 positions, for all members but one."""
    prefixes = (16, 64, 128, 256, 512)
    found = [parts.grouped.ruled_from(members, prefixes, threads) for threads in (1, 2) for members in (2, 3, 7, 13)]
    assert found == [512, 256, 64, 64, None, 512, 128, 64]


@needs_native
@pytest.mark.model
def test_grouped_against_ungrouped_steps(tmp_path):
    """Ratios of every cell, the noise beside each; 16 shared tokens are less than a block."""
    sizes = "--threads 1 --turns 1 --steps 2 --block 2 --members 2 3 --prefixes 16 128 --runners int8"
    done = run("--model", "random:tiny", "--only", "grouped", *sizes.split(), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    cells = [(row["members"], row["prefix"], "twice" in row) for row in rows]
    assert sorted(cells) == [(m, p, twice) for m in (2, 3) for p in (16, 128) for twice in (False, True)]
    assert all(row["section"] == "grouped" and row["runner"] == "int8" and row["median"] > 0 for row in rows)
