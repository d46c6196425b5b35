"""Small grammars and a small tokenizer for the simulation: random automata over three letters and the space.

In: the number of a grammar. Out: an `Automaton` by brute force, and a tokenizer whose tokens never cross a space.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

from ramet.runtime.batch import U32
from ramet.runtime.grammar.base import GrammarError

TOKENS = (b"", b"a", b"b", b"c", b" ", b"ab", b"ca", b"abc", b" a", b" ab", b"bc", b"aa", b"cab", b" b", b"bca", b" ca")
VOCAB = len(TOKENS)
_WORD = re.compile("(?: ?[abc]+)| ")
_IDS = {text: i for i, text in enumerate(TOKENS) if text}


class Words:
    """What jumps ask of a tokenizer: greedy, the longest token first, inside each word."""

    vocab_size = VOCAB

    def token_bytes(self, token: int) -> bytes:
        """The bytes of an id."""
        return TOKENS[token]

    def encode(self, text: str) -> list[int]:
        """The ids of a text of a, b, c and spaces."""
        ids = []
        for word in _WORD.findall(text):
            left = word.encode()
            while left:
                size = next(n for n in (3, 2, 1) if left[:n] in _IDS)
                ids.append(_IDS[left[:size]])
                left = left[size:]
        return ids

    def stable_split(self, text: str) -> tuple[str, str]:
        """Before the last space."""
        cut = max(text.rfind(" "), 0)
        return text[:cut], text[cut:]


Steps = dict[int, int]  # byte → state


@lru_cache
def maze(number: int) -> tuple[tuple[Steps, ...], frozenset[int]]:
    """Transitions of each state, and the accepting ones; state 0 is the first, and the end can be reached from all.
    Most states have one way out, so that much is forced."""
    rng = random.Random(number)
    while True:
        count = rng.randint(2, 14)
        steps: list[Steps] = []
        for _ in range(count):
            ways = rng.choice((1, 1, 1, 2, 3))
            steps.append({byte: rng.randrange(count) for byte in rng.sample(b"abc ", ways)})
        accepting = set(rng.sample(range(count), rng.randint(1, 2)))
        for state in accepting:
            if rng.random() < 0.6:
                steps[state] = {}
        alive = set(accepting)
        while more := {s for s in range(count) if s not in alive and alive & set(steps[s].values())}:
            alive |= more
        if 0 in alive:
            kept = tuple({b: s for b, s in row.items() if s in alive} for row in steps)
            return kept, frozenset(accepting)


class Maze:
    """An `Automaton` that looks at every token."""

    def __init__(self, number: int, states: Iterable[int] = (0,)) -> None:
        self._number = number
        self._steps, self._accepting = maze(number)
        self._states = list(states)

    def _walk(self, text: bytes) -> int | None:
        state = self._states[-1]
        for byte in text:
            if byte not in self._steps[state]:
                return None
            state = self._steps[state][byte]
        return state

    def allowed(self) -> set[int]:
        """The tokens that may follow; 0 is the end."""
        found = {i for i, text in enumerate(TOKENS) if text and self._walk(text) is not None}
        return found | ({0} if self.accepting else set())

    def mask(self, out: U32) -> None:
        """As in the protocol."""
        out[:] = 0
        for token in self.allowed():
            out[token >> 5] |= 1 << (token & 31)

    def advance(self, tokens: Sequence[int]) -> None:
        """As in the protocol."""
        for token in tokens:
            state = self._walk(TOKENS[token]) if token else None
            if state is None:
                raise GrammarError(f"{TOKENS[token]!r} cannot follow")
            self._states.append(state)

    def rollback(self, count: int) -> None:
        """As in the protocol."""
        if count:
            del self._states[-count:]

    def forced(self) -> bytes:
        """As in the protocol."""
        state, out = self._states[-1], bytearray()
        while state not in self._accepting and len(self._steps[state]) == 1:
            ((byte, state),) = self._steps[state].items()
            out.append(byte)
        return bytes(out)

    @property
    def accepting(self) -> bool:
        """As in the protocol."""
        return self._states[-1] in self._accepting

    @property
    def complete(self) -> bool:
        """As in the protocol."""
        return self.accepting and not self._steps[self._states[-1]]

    def copy(self) -> Maze:
        """As in the protocol."""
        return Maze(self._number, self._states)


class PanicError(BaseException):
    """What a native extension raises when it panics: no `Exception`."""


class Trap(Maze):
    """One that fails once, at the `fuse`-th question, and says so: `sprung`."""

    def __init__(self, number: int, fuse: int, sprung: Callable[[], None]) -> None:
        super().__init__(number)
        self._fuse = fuse
        self._sprung = sprung

    def _burn(self) -> None:
        self._fuse -= 1
        if self._fuse == 0:
            self._sprung()
            raise (GrammarError, ValueError, PanicError)[self._number % 3]("a trap")

    def mask(self, out: U32) -> None:
        """As in the protocol."""
        self._burn()
        super().mask(out)

    def advance(self, tokens: Sequence[int]) -> None:
        """As in the protocol."""
        self._burn()
        super().advance(tokens)

    def forced(self) -> bytes:
        """As in the protocol."""
        self._burn()
        return super().forced()


def number_of(grammar: str) -> int:
    """The number of a grammar, whose text may go on with a fuse and an owner: "17", or "17@3@p5/0.2"."""
    return int(grammar.partition("@")[0])


class Mazes:
    """`Grammars` of these. With `late` some have to be built first, which takes up to so many steps. `sprung`: the
    owners of grammars that have failed."""

    def __init__(self, late: int = 0) -> None:
        self.sprung: set[str] = set()
        self._late = late
        self._steps = 0
        self._ready: dict[str, int] = {}
        self._owners: dict[str, int] = {}

    def prepare(self, program: str, owner: str) -> bool:
        """As in the protocol."""
        ready = self._ready.setdefault(program, self._steps + number_of(program) % (self._late + 1))
        if self._steps < ready:
            self._owners[owner] = min(ready, self._owners.get(owner, ready))
        return self._steps >= ready

    def automaton(self, program: str) -> Maze:
        """The grammar of that number."""
        assert self._steps >= self._ready.get(program, 0), "asked for before it was built"
        number, _, rest = program.partition("@")
        fuse, _, owner = rest.partition("@")
        if owner and fuse == "0":
            self.sprung.add(owner)
            raise GrammarError("a trap")
        return Trap(int(number), int(fuse), lambda: self.sprung.add(owner)) if owner else Maze(int(number))

    def built(self) -> list[str]:
        """As in the protocol; called once a step. What was built is forgotten after a while."""
        self._steps += 1
        self._ready = {program: step for program, step in self._ready.items() if self._steps <= step + self._late}
        told = [owner for owner, step in self._owners.items() if self._steps >= step]
        for owner in told:
            del self._owners[owner]
        return told

    def forget(self, owner: str) -> None:
        """As in the protocol."""
        self._owners.pop(owner, None)

    def close(self) -> None:
        """Nothing runs."""
