"""`benchmarks/gpu.py` without a GPU: its floors, its table, its sections, and all of it at toy size in Triton's
interpreter. No timing is asserted."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from ramet.runtime.models.hub import PRESETS

SCRIPT = Path(__file__).resolve().parent.parent.parent / "benchmarks" / "gpu.py"
H100 = {"bandwidth": 3.0e12, "rate": 798e12}


@pytest.fixture(scope="module")
def parts() -> Iterator[SimpleNamespace]:
    """The script's modules, found as the script finds them."""
    import importlib

    sys.path.insert(0, str(SCRIPT.parent))
    names = ("floors", "report", "saved", "session", "plan", "host", "checks", "models", "picture", "supervise")
    yield SimpleNamespace(**{name: importlib.import_module(f"gpu_parts.{name}") for name in names})
    sys.path.remove(str(SCRIPT.parent))


@pytest.mark.parametrize(
    ("model", "batch", "context", "ms"),
    [
        ("llama-3.1-8b", 1, 1024, 5.05),
        ("llama-3.1-8b", 256, 1024, 16.5),
        ("llama-3.1-8b", 32, 8192, 16.5),
        ("llama-3.2-1b", 1, 1024, 0.84),
        ("qwen3-0.6b", 1, 1024, 0.44),
        ("qwen3-0.6b", 128, 1024, 5.43),
        ("smollm2-135m", 1, 1024, 0.10),
    ],
)
def test_decode_floors(parts, model, batch, context, ms):
    """Against figures that were computed by hand."""
    found = parts.floors.decode_seconds(PRESETS[model], parts.floors.Limits(**H100), batch, context)
    assert 1e3 * found == pytest.approx(ms, rel=0.03, abs=0.006)


def test_a_shared_prefix_is_read_once(parts):
    spec, limits = PRESETS["qwen3-0.6b"], parts.floors.Limits(**H100)
    apart = parts.floors.decode_seconds(spec, limits, 16, 8192)
    shared = parts.floors.decode_seconds(spec, limits, 16, 8192, shared=8192)
    assert 1e3 * apart == pytest.approx(5.56, rel=0.03)
    assert apart - shared == pytest.approx(15 * 8192 * parts.floors.kv_bytes(spec) / 3.0e12)


def test_prefill_and_mix_floors(parts):
    limits = parts.floors.Limits(**H100)
    flops = parts.floors.prefill_flops(PRESETS["llama-3.1-8b"], [1024])
    assert 1e3 * flops / limits.rate == pytest.approx(18.3, rel=0.03)
    spec = PRESETS["qwen3-0.6b"]
    requests = parts.floors.mix(256, 100, 1024, spec.vocab)
    assert requests == parts.floors.mix(256, 100, 1024, spec.vocab)
    assert all(100 <= len(r.prompt) <= 1024 and 100 <= r.tokens <= 1024 for r in requests)
    tokens = sum(request.tokens for request in requests)
    assert tokens / parts.floors.mix_seconds(spec, limits, requests) == pytest.approx(25_689, rel=0.05)


def test_the_table(parts):
    row, target = parts.report.Row, parts.report.Target
    rows = [
        row("decode", "batch 1", 5.6, "ms", 5.05, None, 5.05 / 5.6, target(least=0.8), "179 tok/s"),
        row("structured", "all masked", 1.2, "ms", None, 1.0, 1.2, target(most=1.1)),
        row("check", "attention", math.nan, "rel. error", target=target(most=0.01), must=True),
        row("limits", "copy", 3.0, "TB/s"),
    ]
    assert [r.met for r in rows] == [True, False, False, None]
    assert parts.report.cells(rows[0]) == (
        *("decode", "batch 1", "5.60", "ms", "5.05", "", "0.902", ">= 0.8", "yes", "179 tok/s"),
    )
    assert parts.report.cells(rows[2])[2] == "nan"
    made = parts.report.Report({}, rows=rows)
    assert made.broken == ["check: attention is nan, target <= 0.01"], "a slow figure is no defect"
    assert made.table("x").row_count == 4
    right = row("check", "norms", 0.0, "rel. error", target=target(most=0.01), must=True)
    made.rows += [right, right]
    assert made.table("x").row_count == 5, "what is right is one row"
    assert made.verdicts() == [
        "met      0.902 >= 0.8   decode: batch 1",
        "MISSED    1.20 <= 1.1   structured: all masked",
    ]
    values = (0, 0.0001234, 0.5, 12.345, 123456.7)
    assert [parts.report.figure(value) for value in values] == ["0", "0.00012", "0.500", "12.3", "123,457"]
    assert parts.report.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"


def test_what_was_found_is_on_the_disk_after_every_section(parts, tmp_path):
    """A failing section and one that would take too long are told, and the others run."""
    path = tmp_path / "gpu-x.json"
    report = parts.report.Report({"device": "x"}, path)
    place = SimpleNamespace(toy=True, answers=lambda: True)
    kept = parts.models.Models(place, parts.models.TOY)
    opened = parts.session.Session(place, parts.models.TOY, report, kept, tmp_path, deadline=time.monotonic() + 60.0)
    seen: list[dict[str, object]] = []

    def fine(session):
        session.add(parts.report.Row("a", "what", 1.0, "ms", note="n"))

    def fails(session):
        raise ValueError("no")

    def looks(session):
        seen.append(json.loads(path.read_text(encoding="utf-8")))

    section = parts.session.Section
    parts.session.run(
        opened,
        [
            section("a", "m", 1, fine),
            section("b", "", 1, fails),
            section("c", "", 1000, fine),
            section("d", "", 1, looks),
        ],
    )
    assert [(o.name, o.status) for o in report.outcomes] == [
        ("a m", "done"),
        ("b", "failed"),
        ("c", "skipped"),
        ("d", "done"),
    ]
    assert report.broken == ["b: ValueError: no"]
    assert [row["what"] for row in seen[0]["rows"]] == ["what"]
    assert [o["status"] for o in seen[0]["sections"]] == ["done", "failed", "skipped"]
    log = (tmp_path / "gpu.log").read_text(encoding="utf-8")
    assert "what | 1.00 | ms | n" in log
    assert "ValueError: no" in log
    assert re.search(r"c: skipped, \d+ s are left", log)


def test_words_in_brackets_are_words(parts, capsys):
    """A note may hold a pattern, or what a compiler said: neither is a style of the terminal's."""
    import importlib

    row = parts.report.Row("structured", "x", 1.0, "ms", note="follows [a-z] to [/the] end")
    report = parts.report.Report({"device": "x", "date": "y"}, rows=[row])
    outcome = parts.report.Outcome("peer", "failed", 1.0, "no [/closing] of this")
    report.outcomes.append(outcome)
    importlib.import_module("gpu").told(report, SimpleNamespace(dry_run=True))
    said = capsys.readouterr().out
    assert "follows [a-z] to [/the] end" in said
    assert said.count("no [/closing] of this") == 2


def test_a_lost_device_ends_the_process_and_the_next_one_goes_on(parts, tmp_path):
    """What an illegal access leaves is an error at every later call: the run must not go on in that process."""
    state, told = tmp_path / "state", []

    def opened(*, answers):
        place = SimpleNamespace(toy=True, answers=lambda: answers)
        kept = parts.models.Models(place, parts.models.TOY)
        report = parts.report.Report({"device": "x"})
        deadline = time.monotonic() + 60.0
        return parts.session.Session(place, parts.models.TOY, report, kept, None, deadline, state=state)

    def fine(session):
        told.append(session.limits.bandwidth)
        session.known["a"] = np.float64(3)
        session.limits = parts.floors.Limits(2.0, 1.0)
        session.add(parts.report.Row("a", "what", 1.0, "ms", target=parts.report.Target(least=2)))

    def fails(session):
        session.add(parts.report.Row("b", "half", 2.0, "ms"))
        raise RuntimeError("an illegal memory access was encountered")

    section = parts.session.Section
    sections = [section("a", "", 1, fine), section("b", "", 1, fails), section("c", "", 1, fine)]
    with pytest.raises(parts.session.DeviceLost):
        parts.session.run(opened(answers=False), sections)
    saved = parts.saved.read(state)
    assert [(o.name, o.status) for o in saved.outcomes] == [("a", "done"), ("b", "failed")]
    assert not saved.over
    second = opened(answers=True)
    second.resume(saved)
    parts.session.run(second, sections)
    assert [(o.name, o.status) for o in second.report.outcomes] == [("a", "done"), ("b", "failed"), ("c", "done")]
    assert [row.what for row in second.report.rows] == ["what", "half", "what"]
    assert second.report.rows[0].met is False
    assert [math.isnan(told[0]), told[1]] == [True, 2.0], "what was measured is known to the next process"
    assert parts.saved.read(state).over


WORKER = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from gpu_parts.report import Outcome, Row
from gpu_parts.saved import Saved, read
state, until = Path(sys.argv[sys.argv.index("--state") + 1]), float(sys.argv[sys.argv.index("--until") + 1])
assert 0 < until - time.monotonic() < 100
saved = read(state) or Saved({"device": "x"})
for name in ("one", "dies", "two", "HANGS", "three"):
    if any(outcome.name == name for outcome in saved.outcomes):
        continue
    saved.running = name, time.monotonic()
    saved.rows.append(Row("s", name, 1.0, "ms"))
    saved.write(state)
    if name == "dies":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "hangs":
        if os.fork():
            os.wait()
        signal.pause()
    saved.running = None
    saved.outcomes.append(Outcome(name, "done", 0.0))
    saved.write(state)
saved.over = True
saved.write(state)
"""


def test_a_process_that_dies_costs_one_section(parts, tmp_path):
    command = [sys.executable, "-c", WORKER, str(SCRIPT.parent)]
    saved, status = parts.supervise.run(command, tmp_path / "state", 90)
    assert status == 0
    assert [(o.name, o.status) for o in saved.outcomes] == [
        ("one", "done"), ("dies", "failed"), ("two", "done"), ("HANGS", "done"), ("three", "done"),
    ]  # fmt: skip
    assert "status -11" in saved.outcomes[1].note
    assert [row.what for row in saved.rows] == ["one", "dies", "two", "HANGS", "three"]


def test_a_run_that_does_not_end_is_killed_and_what_it_found_is_kept(parts, tmp_path, monkeypatch):
    """Its children too: nothing may be left on the GPU. Here the time is over as soon as the worker hangs."""
    state = tmp_path / "state"

    class Short(subprocess.Popen):
        def wait(self, timeout=None):
            while timeout is not None:
                try:
                    return super().wait(0.1)
                except subprocess.TimeoutExpired:
                    if (saved := parts.saved.read(state)) and saved.running and saved.running[0] == "hangs":
                        raise
            return super().wait()

    monkeypatch.setattr(parts.supervise.subprocess, "Popen", Short)
    command = [sys.executable, "-c", WORKER.replace("HANGS", "hangs"), str(SCRIPT.parent)]
    saved, _ = parts.supervise.run(command, state, 90)
    assert [(o.name, o.status) for o in saved.outcomes][-2:] == [("two", "done"), ("hangs", "stopped")]
    assert len(saved.rows) == 4


def test_a_process_that_cannot_start_is_not_started_for_ever(parts, tmp_path):
    assert parts.supervise.run([sys.executable, "-c", "raise SystemExit(2)"], tmp_path / "state", 60) == (None, 2)
    dies = "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from gpu_parts.saved import Saved\n"
    dies += "Saved({}).write(Path(sys.argv[3])); sys.exit(5)"
    saved, status = parts.supervise.run([sys.executable, "-c", dies, str(SCRIPT.parent)], tmp_path / "state", 60)
    assert (saved.outcomes, status) == ([], 5)


def test_sections_of_a_run(parts):
    every = parts.plan.sections((), (), toy=False)
    assert {section.kind for section in every} == set(parts.plan.KINDS)
    assert {section.model for section in every if section.kind == "mix"} == set(parts.models.MODELS)
    chosen = parts.plan.sections(("decode", "host"), ("llama-3.2-1b",), toy=False)
    assert [section.name for section in chosen] == ["limits", "decode llama-3.2-1b", "host llama-3.2-1b"]
    toy = parts.plan.sections((), (), toy=True)
    assert {section.kind for section in toy} == set(parts.plan.KINDS)


def test_busy_time_is_a_union(parts):
    assert parts.host.union([(5, 6), (0, 2), (1, 3), (1, 2)]) == 4
    assert parts.host.union([]) == 0


def test_a_wrong_token_is_seen(parts):
    """The check of sampling: the best token loses nothing, others do, one that is cut away is impossible."""
    from gpu_parts.ragged import draws

    from ramet.kernels.noise import gumbels
    from ramet.runtime.batch import Masks

    logits = torch.randn(50, generator=torch.Generator().manual_seed(0))
    greedy, cut = draws(1), draws(1, temperature=1.0, top_k=3)
    assert parts.checks.regret(logits, greedy, 0, Masks(), int(logits.argmax())) == 0
    assert parts.checks.regret(logits, greedy, 0, Masks(), int(logits.argmin())) > 1
    assert parts.checks.regret(logits, cut, 0, Masks(), int(logits.argmin())) == math.inf
    assert parts.checks.regret(logits, cut, 0, Masks(), -1) == math.inf
    best = logits.topk(3).indices.tolist()
    scores = logits.double().numpy() + gumbels(0, 9, 50)
    first, *others = sorted(best, key=lambda token: -scores[token])
    assert parts.checks.regret(logits, cut, 0, Masks(), first) == 0
    assert parts.checks.regret(logits, cut, 0, Masks(), others[0]) > 0
    forbidden = np.full(2, 0xFFFFFFFF, np.uint32)
    forbidden[first // 32] ^= np.uint32(1 << first % 32)
    assert parts.checks.regret(logits, cut, 0, Masks(allowed=((0, forbidden),)), first) == math.inf


def test_the_float64_attention_is_the_reference(parts):
    from gpu_parts.ragged import Span, batch

    from ramet.kernels import reference
    from ramet.kernels.ops import Layout
    from ramet.runtime.models.decoder import rope_angles
    from ramet.runtime.models.spec import Rope

    layout = Layout(4, 2, 16, 0.25, (30,))
    made, capacity = batch([Span(0, 20), Span(40, 41), Span(60, 61, shared=15)])
    cache = torch.randn(2, 2, capacity + 1, 16, generator=torch.Generator().manual_seed(1))
    q = torch.randn(len(made), 4, 16, generator=torch.Generator().manual_seed(2))
    plan = reference.plan(made, layout, rope_angles(Rope(), 16, 64, torch.device("cpu")), capacity)
    wanted = reference.attention(q, layout, plan, cache, 30, torch.float32)
    assert parts.checks.error(wanted, parts.checks.attend(q, made, layout, cache, 30)) < 1e-6


def test_random_weights_are_those_of_the_spec(parts):
    spec = replace(PRESETS["tiny"], layers=1, vocab=300)
    weights = parts.models.random_on(spec, torch.float32, torch.device("cpu"))
    assert {name: tuple(w.shape) for name, w in weights.items()} == spec.tensor_shapes()
    assert float(weights["layers.0.q"].std()) == pytest.approx(spec.hidden**-0.5, rel=0.1)


def test_the_picture(parts, tmp_path):
    pytest.importorskip("matplotlib")
    row, target = parts.report.Row, parts.report.Target
    report = parts.report.Report({"device": "x", "date": "y"})
    assert not parts.picture.draw(report, tmp_path / "none.png")
    report.rows += [
        row("decode", "batch 1", 5.6, "ms", 5.05, None, 0.9, target(least=0.8)),
        row("mix", "all", 1.0, "tok/s", None, 0.1, 10.0, target(least=2)),
        row("decode", "not run", math.nan, "ms", ratio=math.nan),
    ]
    assert parts.picture.draw(report, tmp_path / "some.png")
    assert (tmp_path / "some.png").read_bytes().startswith(b"\x89PNG")


def _run(*options: str, cwd: Path, seconds: float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", str(SCRIPT), *options]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=seconds, check=False
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_sentence(tmp_path):
    done = _run(cwd=tmp_path, seconds=60)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("benchmarks/gpu.py needs a GPU: ")
    assert done.stderr.count("\n") == 1


def test_an_unknown_section_is_named(tmp_path):
    done = _run("--dry-run", "--only", "decode,weather", cwd=tmp_path, seconds=60)
    assert done.returncode == 1
    assert "--only weather: choose of limits, " in done.stderr


@pytest.mark.triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="the host's device has no compiler")
def test_every_section_at_toy_size(parts, tmp_path):
    done = _run("--dry-run", cwd=tmp_path, seconds=280)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "NO MEASUREMENT" in done.stdout
    assert "WRONG" not in done.stdout
    ended = re.findall(r"^== (\w+)[^:\n]*: (\w+)", done.stdout, re.MULTILINE)
    assert {kind for kind, _ in ended} == set(parts.plan.KINDS)
    assert {status for _, status in ended} == {"done"}
    assert list(tmp_path.iterdir()) == []
    assert not list((SCRIPT.parent / "results").glob("gpu-interpreter*"))
