"""Prototypes built beside the step loop: a new grammar holds up nobody but those who asked for it.

In: compiled programs, and who needs each. Out: automata, and who may go on. Building takes 1 to 80 ms, in which
llguidance has released the interpreter: one thread of the engine's process does it.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from ramet.runtime.grammar.base import GrammarError

if TYPE_CHECKING:  # an engine starts without llguidance
    from llguidance import LLMatcher

    from ramet.runtime.grammar.automaton import GrammarCache, LLAutomaton

MOST_REFUSED = 256  # programs that could not be built and are remembered as such
AT_ONCE = 2  # programs that are told of in one step: beginning with one costs the step some milliseconds
NOBODY = ""  # wants what takes the place of a worn prototype, and waits for nothing


class Foundry:
    """`Grammars` that builds in a thread of its own, started when it is first needed; everything else belongs to the
    step loop. Owners take turns, so that one with many grammars does not hold up the others. `wake` is called from the
    thread whenever `built` has something to say."""

    def __init__(self, cache: GrammarCache | Callable[[], GrammarCache], wake: Callable[[], None]) -> None:
        self._source = cache
        self._cache: GrammarCache | None = None
        self._making = threading.Lock()
        self._wake = wake
        self._refused: OrderedDict[str, str] = OrderedDict()  # program → why it cannot be built
        self._turn = threading.Condition()  # guards the fields below
        self._wanted: dict[str, dict[str, None]] = {}  # program → owners
        self._queues: OrderedDict[str, deque[str]] = OrderedDict()  # owner → programs, in turn
        self._made: list[tuple[str, LLMatcher | str]] = []
        self._closed = False
        self._thread: threading.Thread | None = None

    def prepare(self, program: str, owner: str) -> bool:
        """As in the protocol. A worn prototype serves until another has taken its place."""
        if program in self._refused:
            return True
        known = self._cache.known(program) if self._cache is not None else None
        if known is None or (known.is_worn and program not in self._wanted):
            self._want(program, NOBODY if known is not None else owner)
        return known is not None

    def _want(self, program: str, owner: str) -> None:
        with self._turn:
            owners = self._wanted.setdefault(program, {})
            if owner not in owners and not self._closed:
                owners[owner] = None
                self._queues.setdefault(owner, deque()).append(program)
                self._turn.notify()
        self.warm()

    def warm(self) -> None:
        """As in the protocol: the vocabulary's tables take a quarter of a second."""
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(target=self._main, name="ramet-grammars", daemon=True)
            self._thread.start()

    def automaton(self, program: str) -> LLAutomaton:
        """As in the protocol; what was never prepared is built here and now."""
        if program in self._refused:
            self._refused.move_to_end(program)
            raise GrammarError(self._refused[program])
        return self._made_cache().automaton(program, worn=True)

    def _made_cache(self) -> GrammarCache:
        """The cache; whoever needs it first makes it."""
        with self._making:
            if self._cache is None:
                self._cache = self._source() if callable(self._source) else self._source
            return self._cache

    def built(self) -> list[str]:
        """As in the protocol. What nobody wants any more is dropped."""
        if not self._made:
            return []
        with self._turn:
            made, self._made = self._made[:AT_ONCE], self._made[AT_ONCE:]
            more = bool(self._made)
            waited = [(program, result, self._wanted.pop(program, {})) for program, result in made]
        if more:
            self._wake()
        owners: dict[str, None] = {}
        for program, result, wanted in waited:
            if not wanted:
                continue
            if isinstance(result, str):
                self._refuse(program, result)
            else:
                self._made_cache().keep(program, result)
            owners |= wanted
        owners.pop(NOBODY, None)
        return list(owners)

    def _refuse(self, program: str, why: str) -> None:
        self._refused[program] = why
        if len(self._refused) > MOST_REFUSED:
            self._refused.popitem(last=False)

    def forget(self, owner: str) -> None:
        """As in the protocol."""
        with self._turn:
            self._queues.pop(owner, None)
            for program, owners in list(self._wanted.items()):
                owners.pop(owner, None)
                if not owners:
                    del self._wanted[program]

    def close(self) -> None:
        """End the thread, after what it is building. Idempotent."""
        with self._turn:
            self._closed = True
            self._queues.clear()
            self._turn.notify()
        if self._thread is not None:
            self._thread.join()

    # -- the thread

    def _main(self) -> None:
        from ramet.runtime.grammar.automaton import begin

        with contextlib.suppress(Exception):  # it is told to the first who wants something
            self._made_cache()
        while (program := self._next()) is not None:
            result: LLMatcher | str
            try:
                result = begin(self._made_cache().lexicon, program)
            except GrammarError as error:
                result = str(error)
            except BaseException as error:  # noqa: BLE001 (the request boundary; a native extension's panic is no Exception)
                result = f"it cannot be built: {type(error).__name__}: {error}"
            with self._turn:
                self._made.append((program, result))
            del result  # the loop's alone from here on
            self._wake()

    def _next(self) -> str | None:
        """The next program that is still wanted and not made yet; None at the end."""
        with self._turn:
            while True:
                self._turn.wait_for(lambda: self._queues or self._closed)
                if self._closed:
                    return None
                owner, queue = self._queues.popitem(last=False)
                program = queue.popleft()
                if queue:
                    self._queues[owner] = queue
                if program in self._wanted and all(program != made for made, _ in self._made):
                    return program
