"""How a command ends.

In: what it raised. Out: one line on standard error, an exit status: 1 for an error that ramet raised on purpose, 2 for
wrong usage, 130 after Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from ramet.frontend.commands import WrongUsage
from ramet.frontend.errors import RametError

INTERRUPTED = 130


def refused(error: RametError) -> int:
    """Say an error in one line; its status."""
    sys.stdout.flush()
    line = " ".join(str(error).split())  # messages quote what others wrote
    sys.stderr.write("error: " + "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line) + "\n")
    return 2 if isinstance(error, WrongUsage) else 1


def interrupted() -> int:
    """Say that Ctrl-C came; its status."""
    sys.stderr.write("interrupted\n")
    return INTERRUPTED


def outcome(command: Callable[[], int]) -> int:
    """Run a command; its exit status. That nobody reads its output any more is status 1, and no traceback."""
    try:
        return command()
    except RametError as error:
        return refused(error)
    except KeyboardInterrupt:
        return interrupted()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to flush at exit goes nowhere
        return 1
