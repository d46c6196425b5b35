"""An engine's process that is started before anybody has asked for it: who gets it, and that it ends otherwise."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ramet.frontend.backends.engine import Engine, early
from ramet.runtime import process
from ramet.runtime.config import Config
from ramet.runtime.launch import Early, launch, tell
from ramet.runtime.models import gguf, hub
from ramet.runtime.start import configure

from .engines import QUICK, WAIT, Ending, short_program

pytestmark = pytest.mark.model

GUESS: dict[str, str | int] = {"model": "random:tiny", **QUICK}


@contextlib.contextmanager
def started() -> Iterator[Early]:
    """In the test itself: pytest changes the environment between a test and its fixtures."""
    made = Early(GUESS)
    yield made
    made.close()


def pid_of(begun: Early) -> int:
    assert begun._process is not None
    return begun._process.pid


def test_it_is_the_engine_that_answers() -> None:
    with (
        started() as begun,
        Ending(pid := pid_of(begun)) as ending,
        Engine("random:tiny", early=begun, **QUICK) as engine,
    ):
        assert engine.process_id == pid
        short_program.using(backend=engine)().result(WAIT)
        begun.close()  # it is no longer this one's to end
        assert short_program.using(backend=engine)().result(WAIT) is not None
        engine.close()
        assert ending.within(WAIT)


def test_once_it_was_lost_another_is_started() -> None:
    with started() as begun, Engine("random:tiny", early=begun, **QUICK) as engine:
        first = engine.process_id
        assert engine._client.kill()
        while engine._client.alive:
            engine._client._made[1].join()  # type: ignore[index]
        assert short_program.using(backend=engine)().result(WAIT) is not None
        assert engine.process_id not in (None, first)


def test_a_wrong_guess_ends_it() -> None:
    other = {**QUICK, "context": 512}
    with (
        started() as begun,
        Ending(pid := pid_of(begun)) as ending,
        Engine("random:tiny", early=begun, **other) as engine,
    ):
        assert engine.process_id != pid and ending.within(WAIT)


CHANGES: dict[str, Callable[[pytest.MonkeyPatch, Path], None]] = {
    "nothing": lambda patch, folder: None,
    "the environment": lambda patch, folder: patch.setenv("RAMET_CACHE", str(folder)),
    "a variable less": lambda patch, folder: patch.delenv("HOME"),
    "the folder": lambda patch, folder: patch.chdir(folder),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_a_process_inherits_must_be_as_it_was(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure("random:tiny", QUICK)
    with started() as begun, Ending(pid_of(begun)) as ending:
        CHANGES[what](monkeypatch, tmp_path)
        taken = begun.take(config)
        assert (taken is not None) == (what == "nothing")
        assert begun.take(config) is None  # once
        if taken is None:
            assert ending.within(WAIT)
        else:
            taken.kill()
            taken.communicate()


@pytest.mark.parametrize("guess", [{"dtype": "int2"}, {"threads": "two"}, {"modell": "x", "model": "random:tiny"}])
def test_a_guess_that_no_engine_can_have_is_nobodys(guess: dict[str, str | int]) -> None:
    made = early(guess)
    with Ending(pid_of(made)) as ending:
        assert made.take(configure("random:tiny", QUICK)) is None
        assert ending.within(WAIT)
    made.close()


def test_closing_ends_it_and_frees_what_it_had() -> None:
    files = len(os.listdir("/proc/self/fd"))
    made = Early(GUESS)
    with Ending(pid_of(made)) as ending:
        made.close()
        made.close()
        assert ending.within(WAIT)
    assert len(os.listdir("/proc/self/fd")) == files


def test_it_ends_with_its_parent_before_it_was_told_where_to_speak() -> None:
    code = f"from ramet.runtime.launch import Early\nprint(Early({GUESS!r})._process.pid, flush=True)\ninput()"
    parent = subprocess.Popen([sys.executable, "-P", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    with Ending(int(parent.stdout.readline())) as ending:
        parent.kill()
        parent.communicate()
        assert ending.within(WAIT)


def test_nothing_is_fetched_before_it_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not on this disk is fetched by the client, which shows how far it is; the process waits for that."""
    monkeypatch.setenv("RAMET_CACHE", str(tmp_path / "empty"))
    assert not hub.at_hand("default") and not hub.at_hand("random:tiny") and not hub.at_hand("some/model")
    assert not hub.at_hand(str(tmp_path / "m.gguf")) and hub.at_hand(str(tmp_path))
    alone = launch(msgspec.json.encode(configure("default", {})), native=True)
    alone.communicate()  # nobody wanted it: it leaves, and has made nothing
    assert alone.returncode == 0 and list(tmp_path.iterdir()) == []


def test_a_model_that_cannot_be_loaded_is_told_once_there_is_somebody(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    made: dict[str, Any] = {"model": str(broken), "threads": 1}
    begun = Early(made)
    with pytest.raises(Exception, match="not a GGUF file"):
        Engine(str(broken), early=begun, threads=1)
    begun.close()
    alone = launch(msgspec.json.encode(configure(str(broken), {"threads": 1})), native=True)
    tell(alone, os.fsencode(tmp_path / "nowhere"))
    alone.communicate()  # its last word has nobody to go to: it leaves all the same
    assert alone.returncode == 0


def test_a_header_is_read_once_for_all_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    read, seen = gguf.read_gguf, list[Path]()

    def counted(path: Path) -> gguf.GGUFFile:
        seen.append(path)
        return read(path)

    monkeypatch.setattr(gguf, "read_gguf", counted)
    loaded = process.load(Config(threads=1, kv_tokens=256, context=256))
    assert len(seen) == 1 and loaded.runner.dtype_name == "int4"
    closed = getattr(loaded.runner, "close", None)
    assert closed is not None
    closed()
