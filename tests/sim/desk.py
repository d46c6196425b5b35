"""The wire between a real `EngineClient` and a simulated engine, step by step, and what the two need to understand
text.

In: a core that is made when the client connects. Out: a `Desk`, a `Link` whose reading thread runs only while the
simulation waits for it, so that a run is a function of its seed.
"""

from __future__ import annotations

import queue
import tempfile
import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer as Core
from tokenizers import decoders, models, pre_tokenizers

import ramet as rt
from ramet.runtime import messages as m
from ramet.runtime.client import EngineClient
from ramet.runtime.config import Config
from ramet.runtime.ports import Call
from ramet.runtime.template import ChatTemplate
from ramet.runtime.text import Tokenizer

CONTEXT = 160
END = "<end>"
WAIT = 60.0  # seconds for which the reading thread may be at work: a bound for what has broken, not a measure


@lru_cache(1)
def language() -> tuple[Tokenizer, ChatTemplate]:
    """A tokenizer of single bytes, whose id 0 ends a text, and a template."""
    names = [END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Core(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([END])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        core.save(str(path))
        return Tokenizer.from_file(path, {"eos_token": END}), ChatTemplate(None, context=CONTEXT)


class Desk:
    """One engine's end of the wire. `orders` are those that have arrived and were not read."""

    def __init__(self, ready: m.Ready) -> None:
        self.orders: list[m.Order] = []
        self.gone = False
        self.released = threading.Event()
        self._items: queue.SimpleQueue[list[m.Report | Call] | None] = queue.SimpleQueue()
        self._items.put([ready])

    # -- the client's side: `runtime.ports.Link`

    def send(self, order: m.Order) -> None:
        """As in the protocol."""
        if not self.gone:
            self.orders.append(order)

    def post(self, call: Call) -> None:
        """As in the protocol."""
        self._items.put([call])

    def receive(self) -> list[m.Report | Call] | None:
        """As in the protocol."""
        return self._items.get()

    def close(self) -> None:
        """As in the protocol."""
        self.end()

    def kill(self) -> bool:
        """As in the protocol."""
        self.end()
        return True

    def release(self) -> None:
        """As in the protocol."""
        self.released.set()

    def ending(self) -> str:
        """As in the protocol."""
        return "it was killed"

    def is_current_thread(self) -> bool:
        """As in the protocol."""
        return False

    # -- the engine's side

    def give(self, item: m.Report) -> None:
        """Hand a report over, and wait until it was read."""
        self._items.put([item])
        self.settle()

    def settle(self) -> None:
        """Wait until all that was handed over has been dealt with."""
        if not self.gone:
            done = threading.Event()
            self._items.put([done.set])
            assert done.wait(WAIT), "the reading thread does not come back"

    def end(self) -> None:
        """The engine is gone; what it had not read is lost."""
        if not self.gone:
            self.gone = True
            self.orders.clear()
            self._items.put(None)


class SimulatedClient(EngineClient):
    """The real client, connected to desks that `make` opens."""

    def __init__(self, make: Callable[[], Desk]) -> None:
        self._make = make
        super().__init__(Config(), language, in_process=True)

    def _connect(self) -> Desk:
        return self._make()

    def info(self) -> dict[str, object]:
        """As `frontend.backends.base.Backend` asks."""
        return {"model": self.ready.model, "context_length": self.ready.context}

    def flush_cache(self) -> bool:
        """As `frontend.backends.base.Backend` asks."""
        self.flush()
        return True


@rt.function(temperature=0.7)
def triage(s: rt.State, text: str) -> str:
    """A plan with branches: what is asked next depends on what was chosen, and on the argument."""
    s += "case " + text + ": "
    kind = s.select(["red", "green", "grey"], name="kind").get()
    if kind == "red":
        s.gen(name="why", max_tokens=4)
        return str(s["why"])
    if kind == "green":
        for part in s.fork(2):
            part += " part "
            part.gen(name="said", max_tokens=3)
        return "green"
    s += " then "
    return s.select(["yes", "no"], name="again").get()


@rt.function(temperature=0.7)
def climb(s: rt.State, text: str) -> int:
    """A plan with a loop that ends when the model says so."""
    s += text
    for turn in range(4):
        s += " go on? "
        if s.select(["on", "stop"], name=f"step{turn}").get() == "stop":
            return turn
    return -1


@lru_cache(1)
def plans() -> tuple[rt.Plan, ...]:
    """Both, compiled."""
    return triage.compile(), climb.compile()
