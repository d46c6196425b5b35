"""What one rendering of a chat template may cost: seconds of its thread, characters and elements that it builds.

In: values that a template is about to build, or has built. Out: nothing, or an error once it is too much.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

from jinja2.exceptions import SecurityError

from ramet.frontend.errors import ModelError

SECONDS = 2.0  # R3: the longest that a rendering may take
BUILT = 1 << 24  # characters and elements that a rendering may build, intermediate values included


class Meter(threading.local):
    """The account of the rendering that runs in this thread."""

    def __init__(self) -> None:
        self.left, self.end = BUILT, float("inf")

    def begin(self) -> None:
        """A rendering starts."""
        self.left, self.end = BUILT, time.thread_time() + SECONDS

    def afford(self, amount: int) -> None:
        """Raise `SecurityError` if `amount` is more than may still be built."""
        if amount > self.left:
            raise SecurityError(f"a chat template may not build more than {BUILT} characters")

    def spend(self, amount: int) -> None:
        """Book `amount`. Raises `SecurityError`, and `ModelError` when the time is over."""
        self.afford(amount)
        self.left -= amount
        self.check()

    def check(self) -> None:
        """Raise `ModelError` when the time is over."""
        if time.thread_time() > self.end:
            raise ModelError(f"the chat template takes more than {SECONDS:.0f} s to render: it is refused")

    def paced(self, values: Iterable[Any]) -> Iterator[Any]:
        """The values, as long as there is time."""
        for value in values:
            self.check()
            yield value


def letters(value: Any) -> int:
    """At least the length of a value as text, but for what quotes and escapes add: containers count with all that is in
    them, as often as it is. Stops at `BUILT`."""
    if isinstance(value, str):
        return len(value)
    return _counted(value, True)


def elements(value: Any) -> int:
    """Characters of a text; of a container the elements, at every depth, as often as they are in it."""
    if isinstance(value, str):
        return len(value)
    return _counted(value, False)


def _counted(value: Any, texts: bool) -> int:
    total, stack = 0, [value]
    while stack and total <= BUILT:
        each = stack.pop()
        total += 1
        if isinstance(each, (str, bytes)):
            total += len(each) if texts else 0
        elif isinstance(each, dict):
            stack += [*each.keys(), *each.values()]
        elif isinstance(each, (list, tuple, set, frozenset)):
            stack += each
        elif isinstance(each, int):
            total += each.bit_length() // 3 if texts else 0
    return total
