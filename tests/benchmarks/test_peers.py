"""`benchmarks/peers.py`: its adapters' headers, the work, launches of adapters written here, its ratios, the peers'
weights, and all of it on a small random model beside such an adapter. No timing is asserted, no peer is installed."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from ramet.frontend.errors import ModelError
from ramet.runtime.models import hub
from ramet.runtime.models.tokenizer import load_tokenizer

from ..runtime.natives import needs_native

SCRIPT = Path(__file__).resolve().parent.parent.parent / "benchmarks" / "peers.py"
COUNTING = """
# /// script
# dependencies = []
#
# [tool.peer]
# name = "counting"
# reads_weights = false
# lacks = {lacks}
#
# [tool.peer.variants]
# up = {{bits = 16, step = 1}}
# down = {{bits = 4, step = -1}}
# ///
import json, os, threading, time
from protocol import made, serve, told

clock = [0.0]
time.perf_counter = lambda: clock[0]  # whether a machine is busy says nothing of the script

def compute(tokens):
    clock[0] += 0.01 * tokens

class Counter:
    def __init__(self, job):
        self.step = job["options"]["step"]
    def generate(self, prompts, tokens):
        {generate}
        return made([[p["ids"][-1] + self.step * (n + 1) for n in range(tokens)] for p in prompts])
    def prefixed(self, prefix, own, tokens):
        return self.generate(own, tokens)
    def forget(self):
        pass

def prepare(job):
    with open(os.path.join(job["folder"], "made.json"), "w") as file:
        json.dump(sorted(job["variants"]), file)

if __name__ == "__main__":
    serve(prepare, lambda job: told(), Counter, "7.0")
"""


@pytest.fixture(scope="module")
def parts() -> Iterator[SimpleNamespace]:
    """The script's modules, found as the script finds them."""
    sys.path.insert(0, str(SCRIPT.parent))
    names = ("catalog", "launch", "report", "session", "venvs", "weights", "work")
    yield SimpleNamespace(**{name: importlib.import_module(f"peers_parts.{name}") for name in names})
    sys.path.remove(str(SCRIPT.parent))


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(hub.resolve("default"))


def adapter(folder: Path, generate: str = "compute(tokens)", lacks: str = "{}") -> Path:
    """An adapter's file: it counts from the last token of a prompt."""
    folder.mkdir(exist_ok=True)
    script = folder / "counting.py"
    script.write_text(COUNTING.format(generate=generate, lacks=lacks), encoding="utf-8")
    return script


def small(parts):
    sizes = {"prompt": 6, "batches": (1, 3), "context": 4, "tokens": 5, "branches": 3, "prefix": 9, "own": 2, "made": 4}
    return parts.work.Sizes(**sizes)


def test_every_adapter_has_a_header(parts):
    known = parts.catalog.peers()
    assert [peer.name for peer in known] == ["ramet", "llama.cpp", "openvino", "transformers", "vllm"]
    assert known[0].requirements == ()
    assert all(peer.requirements for peer in known[1:])
    labels = [variant.label for peer in known for variant in peer.variants]
    assert len(set(labels)) == len(labels)
    assert {variant.bits for peer in known for variant in peer.variants} == {4, 8, 16}


def test_what_is_measured(parts):
    known = parts.catalog.peers()

    def labels(*wanted: str) -> list[str]:
        return [variant.label for _, variant in parts.catalog.chosen(known, wanted)]

    assert not any(label.startswith("vllm") for label in labels())
    assert labels("llama.cpp:Q4_0", "ramet:int8") == ["llama.cpp Q4_0", "ramet int8"]
    assert labels("openvino:int8", "openvino:int8")[-1] == "openvino int8"
    assert labels("openvino:int8")[0] == "ramet int8"
    with pytest.raises(ModelError, match=r"'exllama': not known.*llama\.cpp \(Q4_0.*vllm"):
        parts.catalog.chosen(known, ["exllama"])
    with pytest.raises(ModelError, match="openvino:int2"):
        parts.catalog.chosen(known, ["openvino:int2"])


@pytest.mark.model
def test_the_work_is_the_same_in_text_and_in_ids(parts, tokenizer):
    sizes = small(parts)
    job = parts.work.job(tokenizer, sizes)
    calls = [[prompt] for prompt in job["prefill"]]
    for batch, work in job["decode"].items():
        for name in ("short", "long"):
            assert len(work[name]) == (int(batch) if int(batch) > 1 else parts.work.REPEATS)
            calls.append(work[name])
    calls += [job["shared"]["whole"], job["prefixed"]["own"]]
    assert [len(call[0]["ids"]) for call in calls] == [6, 6, 6, 4, 4, 4, 4, 11, 2]
    assert all(tokenizer.encode(prompt["text"]) == prompt["ids"] for call in calls for prompt in call)
    for name in ("shared", "prefixed"):
        prefix, own, whole = (job[name][key] for key in ("prefix", "own", "whole"))
        assert [prompt["ids"] for prompt in whole] == [prefix["ids"] + each["ids"] for each in own]
    assert job["shared"]["prefix"] != job["prefixed"]["prefix"]
    assert sizes.columns == ["start", "prefill", "decode 1", "decode 3", "prefixed", "shared"]
    assert parts.work.job(tokenizer, sizes) == job


def launched(parts, tokenizer, script: Path, columns: list[str], seconds: float = 60.0, task: str = "run"):
    peer = parts.catalog.read(script)
    job = parts.work.job(tokenizer, small(parts)) | {"threads": 1, "weights": {}, "folder": str(script.parent)}
    job |= {"task": task, "columns": columns, "options": peer.variants[0].options, "variants": {"up": {}, "down": {}}}
    return parts.launch.launch(peer, Path(sys.executable), job, seconds)


@pytest.mark.model
def test_a_launch(parts, tokenizer, tmp_path):
    columns = ["prefill", "decode 1", "decode 3", "prefixed", "shared"]
    told = launched(parts, tokenizer, adapter(tmp_path), columns)
    assert (told.failed, told.cut, told.version, list(told.figures)) == ("", "", "7.0", columns)
    assert [told.figures[name]["tokens"] for name in columns] == [6, 5, 15, 12, 12]
    first = parts.work.job(tokenizer, small(parts))["decode"]["1"]["long"][0]["ids"][-1]
    assert told.figures["decode 1"]["ids"] == [first + at for at in range(1, parts.work.SHORT + 5 + 1)]
    assert launched(parts, tokenizer, tmp_path / "counting.py", [], task="start").first > 0
    launched(parts, tokenizer, tmp_path / "counting.py", [], task="prepare")
    assert json.loads((tmp_path / "made.json").read_text(encoding="utf-8")) == ["down", "up"]


@pytest.mark.model
@pytest.mark.parametrize(
    ("generate", "seconds", "cut", "words"),
    [
        ("tokens > 1 and len(prompts) > 1 and tokens > 4 and threading.Event().wait()", 2.0, "decode 3", ""),
        ("tokens = min(tokens, 4)", 60.0, "", "in decode 1: RuntimeError: asked for 1 x 13 tokens, got 1 x [4]"),
        ("os._exit(9)", 60.0, "", "ended with status 9"),
        ("raise ValueError('no such weights')", 60.0, "", "ValueError: no such weights"),
    ],
    ids=["too slow", "too few", "dead", "broken"],
)
def test_a_launch_that_goes_wrong_is_told(parts, tokenizer, tmp_path, generate, seconds, cut, words):
    done = "compute(tokens)\n        " + generate
    told = launched(parts, tokenizer, adapter(tmp_path, done), ["prefill", "decode 1", "decode 3"], seconds)
    assert told.cut == cut
    assert words in told.failed
    assert bool(told.failed) == bool(words)
    assert list(told.figures) == (["prefill", "decode 1"] if cut else ["prefill"] if "asked" in words else [])


def test_a_peer_that_does_not_install_is_a_reason(parts, tmp_path):
    missing = str(tmp_path / "missing-1.0-py3-none-any.whl")
    peer = parts.catalog.Peer("missing", tmp_path / "missing.py", (missing,), (), constrained=False)
    said: list[str] = []
    with pytest.raises(parts.venvs.NotInstalled, match="missing"):
        parts.venvs.python_of(peer, tmp_path / "venvs", said.append)
    assert "installing missing" in said[0]
    assert not (tmp_path / "venvs" / "missing" / ".ramet-stamp").exists()


def test_ratios(parts, tmp_path):
    variant = parts.catalog.Variant
    ours, quick = variant("ramet", "int8", 8, {}), variant("a", "q4", 4, {})
    alike, late = variant("b", "q8", 8, {}), variant("c", "bf16", 16, {})
    report = parts.report.Report({"model": "m"}, [ours, quick, alike, late], ["start", "decode 1", "shared"])
    for number in range(3):
        report.add("ramet int8", "decode 1", 1.0, 100 + number)
        report.add("a q4", "decode 1", 1.0, 50 + number)
        report.add("b q8", "decode 1", 2.0, 40)
        for label, seconds in (("ramet int8", 2.0), ("a q4", 1.0), ("b q8", 4.0)):
            report.add(label, "start", seconds)
    report.over["c bf16"] = {"decode 1": "> 90 s"}
    report.lacks["c"] = {"shared": "has no such thing"}
    report.ids = {"ramet int8": [1, 2, 3, 9], "c bf16": [1, 2, 3, 4], "ramet torch-bf16": [1, 2, 3, 4]}
    found = report.as_json()
    start, decode, shared = found["ratios"]
    assert (start["best"], start["over_best"], start["best_of_same_bits"]) == ("a q4", 0.5, "b q8")
    assert start["over_best_of_same_bits"] == 2.0
    assert (decode["best"], decode["over_best"]) == ("a q4", pytest.approx(101 / 51))
    assert decode["over"] == {"a q4": pytest.approx(101 / 51), "b q8": pytest.approx(101 / 20)}
    assert (shared["best"], shared["over_best"], shared["over"]) == (None, None, {})
    missing = {(row["peer"], row["column"]): row["missing"] for row in found["rows"]}
    assert (missing["c", "decode 1"], missing["c", "shared"], missing["a", "start"]) == (
        "> 90 s",
        "has no such thing",
        "",
    )
    assert found["same_ids"]["ramet int8"] == 3
    assert (report.table("t").row_count, report.ratio_table().row_count) == (4, 3)
    pytest.importorskip("matplotlib")
    assert parts.report.draw(report, "t", tmp_path / "some.png")
    assert (tmp_path / "some.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.nightly
@pytest.mark.model
def test_the_peers_weights_are_ours(parts, tmp_path):
    import torch

    from ramet.runtime.models.load import load_weights

    source = hub.resolve("default")
    spec = hub.load_spec(source)
    place = parts.weights.directory(source, spec, tmp_path)
    assert parts.weights.directory(source, spec, tmp_path) == place
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    again = hub.resolve(str(place))
    found = hub.load_spec(again)
    for name in (
        "layers",
        "hidden",
        "heads",
        "kv_heads",
        "head_dim",
        "intermediate",
        "vocab",
        "context",
        "tied",
        "rope",
    ):
        assert getattr(found, name) == getattr(spec, name), name
    assert (found.eos, found.bos) == (spec.eos, spec.bos)
    mine, theirs = (load_weights(each, spec, torch.bfloat16) for each in (source, again))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    text = "Once upon a time, 1234 cafés 世界\n\n  <|im_end|>"
    one, other = load_tokenizer(source), load_tokenizer(again)
    assert one.encode(text) == other.encode(text)
    assert one.encode_template(text) == other.encode_template(text)


def run(*options: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", str(SCRIPT), *options]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=240, check=False
    )


@needs_native
@pytest.mark.model
@pytest.mark.nightly  # times real engines: nothing that a busy machine should fail on
def test_the_whole_run(tmp_path, monkeypatch):
    adapter(tmp_path / "more", lacks='{shared = "no"}')
    cached = hub.resolve("default").path
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / cached.name).symlink_to(cached)
    monkeypatch.setenv("RAMET_CACHE", str(tmp_path / "cache"))
    sizes = "--model random:tiny --threads 1 --rounds 2 --prompt 16 --batches 1 3 --context 8 --tokens 96"
    shape = "--branches 3 --prefix 40 --own 5 --made 3 --peers ramet:int8 counting --adapters more"
    done = run(*sizes.split(), *shape.split(), "--json", "--out", "made", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == json.loads((tmp_path / "made" / "peers.json").read_text(encoding="utf-8"))
    columns = ["start", "prefill", "decode 1", "decode 3", "prefixed", "shared"]
    rows = {(row["peer"], row["variant"], row["column"]): row for row in found["rows"]}
    assert list(rows) == [
        (*who, name) for who in (("ramet", "int8"), ("counting", "up"), ("counting", "down")) for name in columns
    ]
    assert all(len(row["rounds"]) == 2 for row in rows.values() if row["missing"] == ""), done.stderr
    assert [key for key, row in rows.items() if row["missing"]] == [
        ("counting", "up", "shared"),
        ("counting", "down", "shared"),
    ], done.stderr
    assert [row["column"] for row in found["ratios"]] == columns
    assert all(row["over_best"] > 0 for row in found["ratios"][:-1])
    assert len(found["limits"]) == 2 and found["limits"][0]["read"] > 0


@pytest.mark.model
@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--peers", "exllama"], 1, "--peers 'exllama': not known"),
        (["--rounds", "0"], 2, "--rounds 0: must be at least 1"),
        (["--seconds", "nan"], 2, "--seconds nan: must be at least 1"),
        (["--model", "random:tiny", "--peers", "llama.cpp"], 1, "made from a .gguf file"),
        (["--prefix", "9000", "--peers", "ramet"], 1, "too small for sequences of 9082"),
    ],
)
def test_bad_input_is_a_sentence(tmp_path, options, status, words):
    done = run(*options, cwd=tmp_path)
    assert done.returncode == status
    assert words in done.stderr
    assert "Traceback" not in done.stderr
