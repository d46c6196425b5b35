"""The engine in a process of its own: how it starts, and what its end does to those who wait for it."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import ramet as rt
from ramet.frontend.backends.engine import Engine
from ramet.runtime import messages as m
from ramet.runtime.ports import ProcessLink
from ramet.runtime.start import configure

from .engines import QUICK, TINY, WAIT, Ending, assert_clean, link_of, long_program, short_program

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine("random:tiny", **TINY) as started:
        yield started


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def first_token(run: rt.Run[object]) -> None:
    next(event for event in run.events() if isinstance(event, rt.Token))


def script(text: str, tmp: Path) -> subprocess.Popen[str]:
    """A script in a process group of its own that keeps its temporary files in `tmp`."""
    prelude = f"import os, sys, threading\nimport ramet as rt\nTINY, QUICK = {TINY!r}, {QUICK!r}\n"
    return subprocess.Popen(
        [sys.executable, "-P", "-c", prelude + text],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
        env={**os.environ, "TMPDIR": str(tmp)},
    )


# -- killed


async def _awaits(engine: Engine) -> str:
    @rt.function
    async def endless(s: rt.State) -> str:
        s += "Once"
        return await s.gen(max_tokens=900, ignore_eos=True)

    return await endless.using(backend=engine)()


def test_killed_under_running_programs(engine: Engine) -> None:
    short_program.using(backend=engine)().result(WAIT)
    files, pid = open_files(), engine.process_id
    link, listener = link_of(engine), engine._client._made[1]  # type: ignore[index]
    assert pid is not None and not Path(link._directory).exists()  # both ends are connected: no name is left
    runs = [long_program.using(backend=engine)() for _ in range(2)]
    with ThreadPoolExecutor(3) as pool:
        awaited = pool.submit(lambda: asyncio.run(_awaits(engine)))
        events = pool.submit(lambda: list(runs[1].events()))
        reader = pool.submit(lambda: runs[0].value("never").get())
        for run in runs:
            first_token(run)
        os.kill(pid, signal.SIGKILL)
        for run in runs:
            with pytest.raises(rt.TransportError, match=r"the engine was lost.*SIGKILL") as caught:
                run.result(WAIT)
            assert caught.value.retryable
            assert caught.value.where.startswith("engines.py:")
        assert isinstance(events.exception(WAIT), rt.TransportError)
        assert isinstance(reader.exception(WAIT), rt.TransportError)
        assert isinstance(awaited.exception(WAIT), rt.TransportError)
    listener.join(WAIT)
    assert link.process.returncode == -signal.SIGKILL  # reaped
    assert not Path(link._directory).exists()
    again = short_program.using(backend=engine)()
    again.result(WAIT)
    assert again.usage.generated_tokens == 5
    assert engine.process_id not in (None, pid)
    assert open_files() == files
    assert_clean(engine)


def test_a_lost_engine_and_the_one_after_it(engine: Engine) -> None:
    """A lost engine says so, the next program starts another, and a seed means the same there."""

    @rt.function
    def story(s: rt.State) -> tuple[int, ...]:
        s += "Once"
        return s.gen(max_tokens=12, temperature=1.3, top_p=0.9, name="x").meta.tokens

    once = story.using(backend=engine, seed=11)().result(WAIT)
    listener = engine._client._made[1]  # type: ignore[index]
    os.kill(engine.process_id or 0, signal.SIGKILL)
    listener.join(WAIT)
    assert engine.process_id is None
    with pytest.raises(rt.TransportError, match="the next program starts another"):
        engine.info()
    assert story.using(backend=engine, seed=11)().result(WAIT) == once
    assert story.using(backend=engine, seed=12)().result(WAIT) != once
    assert_clean(engine)


# -- closed


def test_closed_while_programs_run_and_closed_again() -> None:
    Engine("random:tiny", **TINY).close()  # what a process opens once, and keeps
    files, threads = open_files(), set(threading.enumerate())
    engine = Engine("random:tiny", **TINY)
    link = link_of(engine)
    run = long_program.using(backend=engine)()
    first_token(run)
    with Ending(engine.process_id or 0) as ending:
        engine.close()
        assert ending.within(0)
    with pytest.raises(rt.TransportError, match=r"closed|stopped"):
        run.result(WAIT)
    engine.close()
    assert link.process.returncode == 0
    assert not Path(link._directory).exists()
    with pytest.raises(rt.TransportError, match="closed; make another"):
        short_program.using(backend=engine)()
    with pytest.raises(rt.TransportError, match="closed"):
        engine.info()
    assert open_files() == files
    assert {t for t in threading.enumerate() if t.name == "ramet-client"} <= threads


def test_garbage_collected() -> None:
    engine = Engine("random:tiny", **QUICK)
    short_program.using(backend=engine)().result(WAIT)
    directory = Path(link_of(engine)._directory)
    with Ending(engine.process_id or 0) as ending:
        del engine
        gc.collect()
        assert ending.within(WAIT)
    assert not directory.exists()


def test_a_parent_that_is_killed_takes_its_engine_along(tmp_path: Path) -> None:
    parent = script(
        "e = rt.Engine('random:tiny', **QUICK)\ne.info()\nprint(e.process_id, flush=True)\nthreading.Event().wait(60)",
        tmp_path,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    with Ending(pid) as ending:
        parent.kill()
        assert ending.within(WAIT)
    parent.communicate(timeout=WAIT)
    assert list(tmp_path.iterdir()) == []


def test_a_forked_child_leaves_the_engine_alone(tmp_path: Path) -> None:
    text = """
import warnings
warnings.simplefilter("ignore")
engine = rt.Engine("random:tiny", **QUICK)
@rt.function
def story(s):
    s += "Once"
    return s.gen(max_tokens=2, name="x").get()
story.using(backend=engine)().result(30)
child = os.fork()
if not child:
    try:
        story.using(backend=engine)().result(30)
    except rt.TransportError as error:
        print(error, flush=True)
    sys.exit(0)
print(os.waitpid(child, 0)[1], flush=True)
story.using(backend=engine)().result(30)
print("still here")
"""
    done = script(text, tmp_path)
    out, err = done.communicate(timeout=WAIT)
    assert (done.returncode, err) == (0, "")
    assert [line.split()[-2:] for line in out.splitlines()] == [["one", "here"], ["0"], ["still", "here"]]
    assert list(tmp_path.iterdir()) == []


# -- Ctrl-C


def test_ctrl_c_while_a_program_runs(tmp_path: Path) -> None:
    text = """
engine = rt.Engine("random:tiny", **TINY)
@rt.function
def story(s):
    s += "Once"
    return s.gen(max_tokens=1000, ignore_eos=True, name="x").get()
run = story.using(backend=engine)()
next(e for e in run.events() if isinstance(e, rt.Token))
print(engine.process_id, flush=True)
run.result()
story.using(backend=engine)().result()
run.value("x").get(); threading.Event().wait(60)
"""
    parent = script(text, tmp_path)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert os.getpgid(pid) == pid != os.getpgid(parent.pid)  # the terminal's Ctrl-C is not for it
    with Ending(pid) as ending:
        os.killpg(parent.pid, signal.SIGINT)
        _, err = parent.communicate(timeout=WAIT)
        assert ending.within(0)
    assert parent.returncode == -signal.SIGINT
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert err.count("Traceback") == 1 and "Exception ignored" not in err
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_the_engine_starts(tmp_path: Path) -> None:
    text = """
import ramet.runtime.ports as ports
spawn = ports._spawn
def told(*args):
    process = spawn(*args)
    print(process.pid, flush=True)
    return process
ports._spawn = told
rt.Engine("random:tiny", **QUICK)
threading.Event().wait(60)
"""
    parent = script(text, tmp_path)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert os.getpgid(pid) == pid != os.getpgid(parent.pid)  # the terminal's Ctrl-C is not for it
    with Ending(pid) as ending:
        os.killpg(parent.pid, signal.SIGINT)
        _, err = parent.communicate(timeout=WAIT)
        assert ending.within(WAIT)
    assert parent.returncode == -signal.SIGINT
    # one report, the parent's own; a module that was just being imported may have handled an error of its search
    assert err.count("\nKeyboardInterrupt") == 1 and err.rstrip().endswith("KeyboardInterrupt")
    assert "Exception ignored" not in err and "ramet.runtime.process" not in err
    assert list(tmp_path.iterdir()) == []


def test_orders_to_nobody_are_lost_without_a_word() -> None:
    files = open_files()
    link = ProcessLink(configure("random:tiny", QUICK))
    directory = Path(link._directory)
    link.send(m.OrderStats(1))  # it does not listen yet
    link.close()
    assert link.receive() is None
    link.send(m.OrderStats(2))  # it is gone
    link.release()
    link.send(m.OrderStats(3))
    link.post(lambda: None)
    assert link.ending() == "its process was killed by SIGKILL; the system may have run out of memory"
    assert not directory.exists()
    assert open_files() == files


# -- engines that cannot start


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"dtype": "int2"}, "dtype='int2': choose auto, float32 or bfloat16"),
        ({"dtype": "int4", "device": "cuda"}, "dtype='int4': is for device='cpu'; on cuda choose weights='int4'"),
        ({"dtype": "int8", "threads": 10**6}, "threads"),
        ({"kv_tokens": 10**10}, "kv_tokens=10000000000: .* ask for at most [0-9]+ tokens"),
        ({"kv_tokens": -1}, "kv_tokens=-1: must be an integer of at least 0"),
        ({"kv_token": 5}, "kv_token=5: no such engine option; did you mean kv_tokens"),
        ({"context": 10**6}, "context=1000000: .*2048; ask for less"),
        ({"threads": "two"}, "threads"),
        ({"batch_tokens": -1}, "batch_tokens=-1: must be at least 1, or 0 for what suits the device"),
        ({"device": "cuda"}, "device='cuda'"),
    ],
)
def test_options_that_cannot_be(
    options: dict[str, object],
    match: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    files = open_files()
    with pytest.raises(rt.EngineError, match=match):
        Engine("random:tiny", **{**QUICK, **options})
    assert capfd.readouterr() == ("", "")
    assert open_files() == files
    assert list(tmp_path.iterdir()) == []


def test_a_corrupt_model_file(tmp_path: Path) -> None:
    bad = tmp_path / "model.gguf"
    bad.write_bytes(b"GGUF" + b"\xff" * 100)
    with pytest.raises(rt.ModelError, match=r"model\.gguf"):
        Engine(str(bad))
    with pytest.raises(rt.ModelError, match=r"missing\.gguf"):
        Engine(str(tmp_path / "missing.gguf"))


def test_no_place_for_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("x" * 120)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    files = open_files()
    with pytest.raises(rt.EngineError, match="TMPDIR chooses another place"):
        Engine("random:tiny", **QUICK)
    assert list(deep.iterdir()) == []
    assert open_files() == files


@pytest.mark.parametrize(
    ("python", "match"), [("false", "ended with status 1"), ("no-such-python", "cannot be started")]
)
def test_a_process_that_cannot_run(python: str, match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "executable", python)
    files = open_files()
    with pytest.raises(rt.EngineError, match=match):
        Engine("random:tiny", **QUICK)
    assert list(tmp_path.iterdir()) == []
    assert open_files() == files


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"threads": "a"}, "threads='a': Expected `int`, got `str`"),
        ({"batch_tokens": 1.5}, "batch_tokens=1.5: Expected `int`, got `float`"),
        ({"kv_token": 5}, "kv_token=5: no such engine option; did you mean kv_tokens?"),
        ({"model": 5}, "model=5: Expected `str`, got `int`"),
    ],
)
def test_a_wrong_option_is_named_with_its_value(options: dict[str, object], says: str) -> None:
    with pytest.raises(rt.EngineError) as caught:
        rt.Engine(**({"model": "random:tiny"} | options))
    assert str(caught.value) == says


@pytest.mark.parametrize("in_process", [False, True])
def test_the_native_kernels_serve_whole_programs(in_process: bool) -> None:
    """Forks, choices, constraints and joins with weights in 8 bits."""

    @rt.function(temperature=0)
    def program(s: rt.State) -> tuple[list[str], str, str]:
        s += "A list of words:"
        branches = s.fork(3)
        for index, branch in enumerate(branches):
            branch += f" {index}"
            branch.gen(name="word", max_tokens=5)
        s += " and"
        number = s.gen(regex="[0-9]{3}")
        choice = s.select(["red", "green"])
        return branches.gather("word"), number.get(), choice.get()

    found = []
    for threads in (1, 2):
        with Engine("random:tiny", dtype="int8", threads=threads, kv_tokens=2048, in_process=in_process) as engine:
            assert engine.info()["dtype"] == "int8"
            found.append(program.using(backend=engine)().result(timeout=WAIT))
    assert found[0] == found[1]
    words, number, choice = found[0]
    assert len(words) == 3 and number.isdigit() and choice in ("red", "green")
