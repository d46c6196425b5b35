"""When Python looks for cyclic garbage while bodies are traced: after each trace, and not in the middle of it.

A trace makes some ten objects per operation that live as long as it does; the collector would look at all of them, and
at everything else in the process, again and again, which was measured to cost 40 % of compiling a wide program.
"""

from __future__ import annotations

import gc


class Collector:
    """`with collector:` around a trace. How much a trace makes is bounded by its steps and lines (`tracing`,
    `endless`). A collector that was off stays off."""

    def __init__(self) -> None:
        self._paused = False

    def __enter__(self) -> None:
        self._paused = gc.isenabled()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        self.resume()

    def resume(self) -> None:
        """Go on; the young objects are looked at soon. For any thread, once or more often."""
        if self._paused:
            self._paused = False
            gc.enable()
