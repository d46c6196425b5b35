"""Responses that are kept for a while, so that a later request can go on from them.

In: finished responses with their conversations, under the namespace of their caller. Out: the same, until they expire,
are deleted or make room for newer ones. In memory only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from ramet.runtime.server.call import Message

ENTRIES = 4096
CHARACTERS = 32 << 20  # of all responses and conversations together
SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Kept:
    """A response as it was answered (JSON), and the conversation that it ends: all messages but the instructions, its
    own last, and the calls that were made in it (id and tool)."""

    response: bytes
    messages: tuple[Message, ...]
    calls: tuple[tuple[str, str], ...] = ()

    def size(self) -> int:
        """Bytes and characters; what conversations share is counted each time."""
        calls = sum(128 + len(call) + len(tool) for call, tool in self.calls)
        return 256 + len(self.response) + calls + sum(64 + len(message.content) for message in self.messages)


class Recall:
    """Bounded in number, in size and in time. `clock` gives seconds. Used from one thread."""

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        entries: int = ENTRIES,
        characters: int = CHARACTERS,
        seconds: float = SECONDS,
    ) -> None:
        self._clock = clock
        self._entries, self._characters, self._seconds = entries, characters, seconds
        self._kept: OrderedDict[tuple[str, str], tuple[float, Kept]] = OrderedDict()  # oldest first
        self._size = 0

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, namespace: str, id: str, kept: Kept) -> None:
        """Keep a response; the oldest ones go when there are too many. One that is too large by itself is not kept."""
        self.forget(namespace, id)
        self._kept[namespace, id] = (self._clock() + self._seconds, kept)
        self._size += kept.size()
        now = self._clock()
        while self._kept:
            key, (expires, _) = next(iter(self._kept.items()))
            if expires > now and len(self._kept) <= self._entries and self._size <= self._characters:
                break
            self.forget(*key)

    def find(self, namespace: str, id: str) -> Kept | None:
        """The response of this id, if the namespace has it still."""
        found = self._kept.get((namespace, id))
        if found is None:
            return None
        if found[0] <= self._clock():
            self.forget(namespace, id)
            return None
        return found[1]

    def forget(self, namespace: str, id: str) -> bool:
        """Remove it; whether it was there."""
        found = self._kept.pop((namespace, id), None)
        if found is None:
            return False
        self._size -= found[1].size()
        return True
