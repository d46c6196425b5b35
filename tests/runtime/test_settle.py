"""Processes of ramet's own leave what they made while starting out of the collector's walks."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

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
    assert frozen == 0
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


def test_an_engine_without_torch_gives_back() -> None:
    code = """
import json, sys
from ramet.runtime import process
asked = []
process.give_back = lambda: asked.append("torch" in sys.modules)
process._settled(lambda hello: None)("hello")
sys.modules["torch"] = sys
process._settled(lambda hello: None)("hello")
print(json.dumps(asked))
"""
    assert run(code) == [False]
