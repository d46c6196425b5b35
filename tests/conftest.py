"""What every test process needs before torch is loaded."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Generator

import pytest
from hypothesis import settings

# OpenMP threads that spin while they wait slow everything down as soon as two processes share two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# No timing is asserted: an example that takes longer on a busy machine is no failure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# A shell without job control starts what it sends to the background with SIGINT ignored, and what tests start would
# inherit that: their Ctrl-C would do nothing.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Eleven thousand tests are a million objects, which stay: no garbage is looked for among them, not while they are
    made, and not by any test's collection afterwards."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()
