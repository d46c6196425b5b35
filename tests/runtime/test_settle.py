"""Processes of ramet's own leave what they made while starting out of the collector's walks."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import threading

import pytest

from ramet.runtime import settle

SETTLED = """
import gc, json, sys
from ramet.runtime import process
before = gc.get_freeze_count(), len(gc.get_objects())
told = []
process._settled(told.append)("hello")
print(json.dumps([before, [gc.get_freeze_count(), len(gc.get_objects())], told, sys.getswitchinterval()]))
"""


def run(code: str) -> list:
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return json.loads(done.stdout)


def test_an_engine_says_that_it_is_ready_when_it_has_settled() -> None:
    (frozen, walked), (after, left), told, seconds = run(SETTLED)
    assert frozen < 1000  # some of Python 3.12's own
    assert after > 0.8 * walked > 10_000
    assert left < 1000
    assert told == ["hello"]
    assert seconds <= 0.002


UNCOLLECTED = """
import gc, json
gc.disable()
from ramet.runtime import process
still = gc.isenabled()
process._settled(lambda hello: None)("hello")
print(json.dumps([still, gc.isenabled(), gc.get_freeze_count()]))
"""


def test_a_collector_that_was_off_while_the_engine_started_is_on_when_it_serves() -> None:
    still, after, frozen = run(UNCOLLECTED)
    assert (still, after) == (False, True) and frozen > 10_000


def test_importing_the_engine_leaves_the_collector_alone() -> None:
    assert run("import gc, json\nfrom ramet.runtime import process\nprint(json.dumps([gc.isenabled()]))") == [True]


KEPT = """
import json, sys
from ramet.runtime.settle import give_back

def resident():
    with open("/proc/self/smaps_rollup") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1024

told = give_back() if sys.argv[1] == "told" else None
bytearray(b"x") * (24 << 20)  # freed at once: from here on glibc keeps what is smaller, unless it was told
before = resident()
large = [(bytearray(1 << 20), bytearray(100 << 10)) for _ in range(64)]
between = [small for _, small in large]
most = resident() - before
del large
print(json.dumps([told, most, resident() - before]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries cannot be told")
@pytest.mark.parametrize(("how", "left"), [("told", range(4, 16)), ("left alone", range(60, 90))])
def test_large_blocks_go_back_to_the_system(how: str, left: range) -> None:
    """64 MiB in blocks of one, between small ones that stay (6 MiB); the control is glibc left to itself."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", KEPT, how], capture_output=True, text=True, timeout=60, check=True
    )
    told, most, rest = json.loads(done.stdout)
    assert told is (True if how == "told" else None)
    assert most > 64
    assert round(rest) in left


RECEIVED = """
import ctypes, json, random, sys
from ramet.runtime.settle import settle

if sys.argv[1] == "settled":
    settle()
bytearray(b"x") * (24 << 20)  # as above
top = ctypes.CDLL(None).sbrk
top.restype = ctypes.c_void_p
rng, held, tops = random.Random(1), {}, []
for turn in range(6_000):
    if turn in (3_000, 5_999):
        tops.append(top(0))
    received = bytearray(256 << 10)  # as asyncio does it: a large block, of which a request fills little
    del received[rng.randrange(600, 6_000) :]
    for ended in [key for key in held if key <= turn]:
        del held[ended]
    held[turn + rng.randrange(1, 400)] = received, bytes(rng.randrange(600, 9_000))
print(json.dumps([tops[1] - tops[0], "torch" in sys.modules]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries cannot be told")
def test_what_is_received_leaves_no_holes() -> None:
    """Bytes by which the heap grew while requests came and went; the control is glibc left to itself."""

    def growth(how: str) -> int:
        done = subprocess.run(
            [sys.executable, "-P", "-c", RECEIVED, how], capture_output=True, text=True, timeout=60, check=True
        )
        grown, torch = json.loads(done.stdout)
        assert not torch
        return grown

    assert abs(growth("settled")) < 1 << 19  # it breathes
    assert growth("left alone") > 1 << 20


BURST = """
import json, sys, threading
from ramet.runtime.settle import settle

def resident():
    with open("/proc/self/smaps_rollup") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1024

def burst():
    kept = [bytes(20_000) for _ in range(400)]
    del kept

bytearray(b"x") * (24 << 20)  # as above
if sys.argv[1] == "settled":
    settle()
done, end = threading.Event(), threading.Event()
before = resident()
thread = threading.Thread(target=lambda: (burst(), done.set(), end.wait()))
thread.start()
done.wait()
burst()
print(json.dumps(resident() - before))
end.set()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries cannot be told")
@pytest.mark.parametrize(("how", "left"), [("settled", range(5)), ("left alone", range(8, 20))])
def test_a_burst_leaves_nothing_behind(how: str, left: range) -> None:
    """8 MiB in a thread, and as much in the main one; the control is glibc left to itself."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", BURST, how], capture_output=True, text=True, timeout=60, check=True
    )
    assert round(json.loads(done.stdout)) in left


HELD = """
import json, sys, threading
from ramet.runtime.settle import settle, trim

def resident():
    with open("/proc/self/smaps_rollup") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1024

settle()
kept, done, end = [], threading.Event(), threading.Event()

def work():
    burst = [bytearray(20_000) for _ in range(400)]
    kept.extend(bytearray(900) for _ in range(64))  # of those, some lie above
    del burst
    done.set()
    end.wait()

before = resident()
threading.Thread(target=work).start()
done.wait()
told = trim() if sys.argv[1] == "trimmed" else None
print(json.dumps([told, resident() - before]))
end.set()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries cannot be told")
@pytest.mark.parametrize(("how", "left"), [("trimmed", range(3)), ("not trimmed", range(7, 12))])
def test_what_is_free_below_something_goes_back(how: str, left: range) -> None:
    """8 MiB are freed that lie beneath blocks that stay; the control is a heap that gives back its end alone."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", HELD, how], capture_output=True, text=True, timeout=60, check=True
    )
    told, rest = json.loads(done.stdout)
    assert told is (True if how == "trimmed" else None)
    assert round(rest) in left


def test_heaps_are_trimmed_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the mean time, and not after; where torch computes, never."""
    turns, thrice = list[str](), threading.Event()

    def counted() -> bool:
        turns.append(threading.current_thread().name)
        if len(turns) == 3:
            thrice.set()
        return True

    monkeypatch.setattr(settle, "trim", counted)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    with settle.Trimming(seconds=0.001):
        assert thrice.wait(60)
    assert set(turns) == {"ramet-trim"}
    assert "ramet-trim" not in {thread.name for thread in threading.enumerate()}
    monkeypatch.setitem(sys.modules, "torch", sys)
    with settle.Trimming(seconds=0.001):
        assert "ramet-trim" not in {thread.name for thread in threading.enumerate()}


def test_a_process_without_torch_gives_back() -> None:
    code = """
import json, sys
from ramet.runtime import settle
asked = []
settle.give_back = lambda: asked.append("torch" in sys.modules)
settle.settle()
sys.modules["torch"] = sys
settle.settle()
print(json.dumps(asked))
"""
    assert run(code) == [False]
