"""Processes of ramet's own leave what they made while starting out of the collector's walks."""

from __future__ import annotations

import json
import subprocess
import sys

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
