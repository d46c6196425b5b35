"""The boundary around everything that is derived from one request: a fault there ends that request alone.

In: what was raised. Out: what its request is told. Native extensions raise beside `Exception` too: a panic of Rust
code is pyo3's `PanicException`, a `BaseException`; so boundaries catch that, and ask here whose the fault is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")
_OURS = (KeyboardInterrupt, SystemExit, GeneratorExit)  # said to the process or to a generator, whatever it was doing


def blame(error: BaseException) -> str:
    """A sentence about the fault of a request. Raises `error` again when it is no request's."""
    if isinstance(error, _OURS):
        raise error
    return f"{type(error).__name__}: {error}"


class Fault(Exception):
    """What a native extension raised beside `Exception`, in its words."""


def contained(work: Callable[[], Result]) -> Result:
    """`work()`. What it raises beside `Exception` comes out as `Fault`, which whoever awaits it survives."""
    try:
        return work()
    except Exception:
        raise
    except BaseException as error:
        raise Fault(blame(error)) from error
