"""`ramet serve` as a process: what it prints, how it is refused, how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ramet.runtime.config import Config
from ramet.runtime.messages import Ready
from ramet.runtime.models.hub import PRESETS
from ramet.runtime.server.banner import ready_block, url_of
from ramet.runtime.server.command import settings_of
from ramet.runtime.server.settings import Settings

from .serving import WAIT

pytestmark = pytest.mark.model
ENGINE = ("random:tiny", "--threads", "1", "--kv-tokens", "4096", "--context", "2048")
TOKENS = 1900  # of a stream that outlasts a few questions
GREEDY = {"max_new_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
LONG = {"text": "go", "stream": True, "sampling_params": GREEDY}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "ramet", *arguments]


def ramet(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=120, check=False, env=env)


class Server:
    """A server in a process, ready."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None and process.stderr is not None
        self.process = process
        self.block: list[str] = []
        self.errors: list[str] = []
        stream = process.stderr
        self._reader = threading.Thread(target=lambda: self.errors.extend(stream), daemon=True)
        self._reader.start()
        for line in process.stdout:
            self.block.append(line.rstrip("\n"))
            if line.startswith("  ramet chat "):
                break
        assert self.block, self.errors
        found = re.search(r" at (http\S+) ", self.block[0])
        assert found is not None
        self.url = found[1]

    def ended(self) -> tuple[int, str]:
        """Its exit status, and what it printed after the block."""
        assert self.process.stdout is not None
        rest = self.process.stdout.read()
        status = self.process.wait(WAIT)
        self._reader.join(WAIT)
        return status, rest

    def engines(self) -> list[int]:
        """Its child processes."""
        listed = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [int(pid) for file in listed for pid in file.read_text().split()]


@contextlib.contextmanager
def serve(*arguments: str) -> Iterator[Server]:
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command("serve", *ENGINE, "--port", "0", *arguments), stdout=pipe, stderr=pipe, text=True
    )
    with process:
        try:
            yield Server(process)
        finally:
            process.kill()


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def first_line(answer: httpx.Response) -> Iterator[str]:
    lines = answer.iter_lines()
    next(lines)
    return lines


def test_it_serves_and_ends():
    """Ready block, an answer, SIGTERM under load: what runs ends whole, newcomers are told to come back, exit 0, and no
    engine is left."""
    with serve("--drain-timeout", "60", "--log-format", "json") as server:
        assert len(server.block) <= 12 and "4,096 tokens x" in "\n".join(server.block)
        engines = server.engines()
        assert len(engines) in (1, 2)  # the engine, and what compiles constraints if it is there already
        with (
            httpx.Client(base_url=server.url, timeout=WAIT) as http,
            httpx.Client(base_url=server.url, timeout=WAIT) as other,
        ):
            assert other.get("/ready").status_code == 200
            with http.stream("POST", "/generate", json=LONG) as answer:
                lines = first_line(answer)
                server.process.send_signal(signal.SIGTERM)
                while (ready := other.get("/ready")).status_code == 200:
                    continue
                newcomer = other.post("/generate", json={"text": "x"})
                assert other.get("/health").status_code == 200
                last = [line for line in lines if line][-2:]
        assert (ready.status_code, newcomer.status_code) == (503, 503)
        assert int(ready.headers["retry-after"]) >= 1 and int(newcomer.headers["retry-after"]) >= 1
        assert last[1] == "data: [DONE]"
        assert json.loads(last[0][6:])["meta_info"]["completion_tokens"] == TOKENS
        assert server.ended() == (0, "")
        assert not any(alive(pid) for pid in engines)
        log = [json.loads(line) for line in server.errors if line.strip()]  # no line that is no record
        assert any("draining" in line["message"] for line in log)
        assert {line["status"] for line in log if "status" in line} == {503}


def threads(pid: int) -> set[str]:
    """What the system calls them."""
    return {file.read_text().strip() for file in Path(f"/proc/{pid}/task").glob("*/comm")}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_heaps_of_the_server_and_of_its_engine_are_trimmed():
    latest = time.monotonic() + WAIT  # a thread takes its name once it runs
    with serve() as server:
        while "ramet-trim" not in threads(server.process.pid):
            assert time.monotonic() < latest
        while not any("ramet-trim" in threads(pid) for pid in server.engines()):
            assert time.monotonic() < latest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(number: signal.Signals):
    """Streams are told so, by an error and without [DONE]."""
    with serve() as server, httpx.Client(base_url=server.url, timeout=WAIT) as http:
        engines = server.engines()
        with http.stream("POST", "/generate", json=LONG) as answer:
            lines = first_line(answer)
            server.process.send_signal(number)
            with httpx.Client(base_url=server.url, timeout=WAIT) as other:
                while other.get("/ready").status_code == 200:
                    continue
            server.process.send_signal(number)
            last = [line for line in lines if line][-1]
        assert "error" in json.loads(last[6:])
        assert server.ended()[0] == 0
        assert not any(alive(pid) for pid in engines)


def test_a_signal_while_the_model_is_loaded():
    with subprocess.Popen(
        command("serve", *ENGINE, "--port", "0"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None and process.stdout is not None
        assert b"loading" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT) == 0
        assert process.stdout.read() == b""


def test_a_port_in_use_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = ramet("serve", *ENGINE, "--port", str(port))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1 and f"port={port}" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("--host", "0.0.0.0"), 1, "without a key"),
        (("--port", "x"), 1, "--port"),
        (("--prot", "1"), 2, "did you mean --port"),
        (("--dtype", "float7"), 1, "dtype"),
        (("--host", "no.such.host.invalid"), 1, "host="),
        (("--config", "nowhere.toml"), 1, "nowhere.toml"),
        (("--model", "/nowhere/at/all", "--port", "0"), 1, "/nowhere/at/all"),
        (("random:nothing", "--port", "0"), 1, "nothing"),
    ],
)
def test_wrong_usage_is_one_line(arguments: tuple[str, ...], status: int, words: str):
    done = ramet("serve", *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert words in done.stderr and "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1


def test_config_says_where_values_come_from(tmp_path: Path):
    file = tmp_path / "serve.toml"
    file.write_text("port = 31000\n")
    done = ramet(
        *("config", "--explain", "--config", str(file), "--max-queue", "5", "--api-key", "hush"),
        RAMET_LOG_FORMAT="json",
    )
    assert done.returncode == 0 and "hush" not in done.stdout
    rows = {line.split()[0]: line.split()[-1] for line in done.stdout.splitlines()}
    wanted = {"port": str(file), "max_queue": "--max-queue", "log_format": "RAMET_LOG_FORMAT", "host": "default"}
    assert {name: rows[name] for name in wanted} == wanted


def test_config_writes_a_file_that_can_be_read(tmp_path: Path):
    file = tmp_path / "serve.toml"
    arguments = ("--served-model-name", 'a "b" \\c', "--port", "31000", "--strict-requests", "--header-timeout", "2.5")
    file.write_text(ramet("config", *arguments).stdout)
    before, after = settings_of("x", arguments, {}), settings_of("x", ("--config", str(file)), {})
    assert (before.settings, before.config) == (after.settings, after.config)


def test_help_of_both():
    for name in ("serve", "config"):
        done = ramet(name, "--help")
        assert done.returncode == 0 and "--kv-tokens" in done.stdout


@pytest.mark.parametrize(
    ("options", "url"),
    [
        ({}, "http://127.0.0.1:7"),
        ({"host": "::1"}, "http://[::1]:7"),
        ({"host": "0.0.0.0", "insecure": True}, "http://127.0.0.1:7"),
        ({"ssl_certfile": "c", "ssl_keyfile": "k", "root_path": "/llm"}, "https://127.0.0.1:7/llm"),
    ],
)
def test_urls(options: dict[str, Any], url: str):
    assert url_of(Settings(**options), 7) == url


@pytest.mark.parametrize("keys", [(), ("hush",)])
def test_the_block_says_what_led_to_the_kv_tokens(keys: tuple[str, ...]):
    ready, spec = Ready("m", "bfloat16", 2048, 1000, 2, 1.5), PRESETS["tiny"]
    each = 2 * spec.layers * spec.kv_heads * spec.head_dim * 2
    for config, why in (
        (Config(), "default share"),
        (Config(kv_share=0.5), "0.5"),
        (Config(kv_tokens=1000), "--kv-tokens"),
    ):
        text = "\n".join(ready_block("http://h:1", Settings(api_key=keys), config, ready, spec, "m"))
        assert f"1,000 tokens x {each / 1024:,.1f} KiB" in text and why in text
        assert "hush" not in text and ("RAMET_API_KEY" in text) == bool(keys)
        assert [text.count(f"  {word} ") for word in ("curl", "python -c", "ramet chat")] == [1, 1, 1]
