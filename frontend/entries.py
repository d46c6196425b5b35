"""What a run remembers of its program: sequences and the operations recorded on them.

In: operations as they are recorded, and what their events say. Out: texts, in order, for readers and for the trace.
Plain data: every change happens under the lock of the `Execution` that owns it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Literal

from ramet.frontend.ir import AnyOp, Meta
from ramet.frontend.readings import actor

Kind = Literal["text", "role", "gen", "select", "fork", "join", "put", "close"]
TAIL = 80  # characters of the prompt that an error shows


class Entry:
    """One recorded operation.

    `pieces` is the text that it adds, as far as known: constants, streamed text, and entries whose values are
    referred to. `complete` says that no piece will follow. `future` is done with the text that the backend (or the
    host) gives it. `root` is the earliest failed operation that its failure comes from (itself, if it is the first).

    `actor` recorded it, at `recorded_at`; it left at `sent_at`. Of a host call `needs` are the operations whose values
    are among its arguments, `begun` holds when it began, `done_at` is when it ended. Times are seconds of
    `time.monotonic`, 0.0 is not yet.
    """

    __slots__ = (
        "actor",
        "begun",
        "complete",
        "done_at",
        "error",
        "future",
        "id",
        "kind",
        "meta",
        "needs",
        "op",
        "pieces",
        "read",
        "recorded_at",
        "refs",
        "root",
        "sent",
        "sent_at",
        "seq",
        "status",
        "var",
        "where",
    )

    def __init__(
        self,
        op_id: str,
        seq: Seq,
        kind: Kind,
        where: str,
        var: str = "",
        refs: tuple[Entry, ...] = (),
        future: Future[str] | None = None,
    ) -> None:
        self.id = op_id
        self.seq = seq
        self.kind: Kind = kind
        self.where = where
        self.var = var
        self.refs = list(refs)
        self.op: AnyOp | None = None
        self.pieces: list[str | Entry] = []
        self.complete = kind in ("fork", "put", "close")
        self.future: Future[str] = Future() if future is None else future
        self.meta: Meta | None = None
        self.status: Literal["recorded", "running", "done", "failed"] = "recorded"
        self.error: BaseException | None = None
        self.root: Entry | None = None
        self.read = False
        self.sent = False
        self.actor = actor()
        self.recorded_at = time.monotonic()
        self.sent_at = 0.0
        self.done_at = 0.0
        self.begun: list[float] = []
        self.needs: tuple[str, ...] = ()

    def known_text(self) -> str:
        """The text that it adds, as far as it is known now."""
        if self.kind in ("fork", "put", "close"):
            return ""
        return "".join(piece if isinstance(piece, str) else piece.value_text() for piece in self.pieces)

    def value_text(self) -> str:
        """The text of its value, for references to it (a Put has a value and adds nothing)."""
        return "".join(piece for piece in self.pieces if isinstance(piece, str))

    def waits_for(self) -> list[Future[str]]:
        """The futures that must be done before its text is known."""
        if self.kind == "text":
            return [piece.future for piece in self.pieces if isinstance(piece, Entry)]
        return [] if self.kind in ("fork", "put", "close") else [self.future]


class Seq:
    """One sequence: a branch of the program. It goes on from `parent` after its first `mark` entries.

    `dead` is set when an operation on it failed in this process, so that nothing later on it can be sent.
    """

    __slots__ = (
        "closed",
        "count",
        "dead",
        "entries",
        "failed",
        "failed_at",
        "item",
        "mark",
        "open_text",
        "parent",
        "path",
    )

    def __init__(self, path: str, parent: Seq | None = None, item: object = None) -> None:
        self.path = path
        self.parent = parent
        self.mark = len(parent.entries) if parent else 0
        self.item = item
        self.entries: list[Entry] = []
        self.count = 0
        self.open_text: Entry | None = None
        self.closed = ""
        self.dead: Entry | None = None
        self.failed: Entry | None = None
        self.failed_at = 0

    def next_id(self) -> str:
        """The path of the next operation on it."""
        self.count += 1
        return f"{self.path}.{self.count - 1}"

    def timeline(self) -> list[Entry]:
        """All entries whose text it consists of, from the root of the program on."""
        chain: list[list[Entry]] = [self.entries]
        seq: Seq | None = self.parent
        mark = self.mark
        while seq is not None:
            chain.append(seq.entries[:mark])
            mark, seq = seq.mark, seq.parent
        return [entry for entries in reversed(chain) for entry in entries]

    def earlier_failure(self) -> Entry | None:
        """The first failed operation that everything recorded on it from now on depends on."""
        if self.failed is not None:
            return self.failed
        seq: Seq | None = self.parent
        mark = self.mark
        while seq is not None:
            if seq.failed is not None and seq.failed_at < mark:
                return seq.failed
            mark, seq = seq.mark, seq.parent
        return None

    def tail_before(self, entry: Entry) -> str:
        """The last characters of the known text before `entry`."""
        tail = ""
        for earlier in self._backwards(entry):
            tail = earlier.known_text() + tail
            if len(tail) >= TAIL:
                break
        return tail[-TAIL:]

    def _backwards(self, entry: Entry) -> Iterator[Entry]:
        index = self.entries.index(entry) if entry in self.entries else len(self.entries)
        yield from reversed(self.entries[:index])
        seq: Seq | None = self.parent
        mark = self.mark
        while seq is not None:
            yield from reversed(seq.entries[:mark])
            mark, seq = seq.mark, seq.parent


def merged(pieces: list[str | Entry]) -> list[str | Entry]:
    """The pieces with adjacent constants joined and empty ones left out: a segment boundary exists only at a value."""
    out: list[str | Entry] = []
    for piece in pieces:
        if isinstance(piece, str) and out and isinstance(out[-1], str):
            out[-1] += piece
        elif piece:
            out.append(piece)
    return out
