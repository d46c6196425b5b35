"""What stands before each operation of a program, as one hash per sequence: whether a resumed run does what it did.

In: operations as they are sent. Out: per generation, choice and score the hash of itself and of all that its sequence
says before it. Values that are referred to count by the paths of their operations: what they are is recorded by itself,
or computed again.
"""

from __future__ import annotations

import hashlib
import json

import msgspec

from ramet.frontend.ir import ROOT, AnyOp, Close, Fork, Gen, Join, Put, Ref, Score, Select, Text

Call = Gen | Select | Score


class Digests:
    """The hashes of one program's sequences. With `budgeted`, how much a generation may produce does not count: that
    depends on what was finished when it was recorded."""

    def __init__(self, budgeted: bool, known: dict[str, bytes] | None = None) -> None:
        self._budgeted = budgeted
        self._known = {ROOT: b""} if known is None else known

    def copy(self) -> Digests:
        """Another one that goes on from here."""
        return Digests(self._budgeted, dict(self._known))

    def after(self, op: AnyOp) -> str:
        """Take an operation; the hash of a call, "" for any other."""
        if isinstance(op, Put | Close):
            return ""
        before = self._known[op.seq]
        if isinstance(op, Fork):
            self._known.update((path, _hash(before, "fork", path)) for path in op.into)
        elif isinstance(op, Join):
            self._known[op.seq] = _hash(before, "join", *(self._known[path].hex() for path in op.branches))
        elif isinstance(op, Text):
            parts = [["ref", part.op] if isinstance(part, Ref) else part for part in op.parts]
            self._known[op.seq] = _hash(before, "text", *parts)
        else:
            self._known[op.seq] = _hash(before, msgspec.to_builtins(self._bare(op)))
        return self._known[op.seq].hex() if isinstance(op, Call) else ""

    def _bare(self, op: AnyOp) -> AnyOp:
        if self._budgeted and isinstance(op, Gen):
            return msgspec.structs.replace(op, sampling=msgspec.structs.replace(op.sampling, max_tokens=None))
        return op


def _hash(before: bytes, *parts: object) -> bytes:
    return hashlib.blake2b(before + json.dumps(parts).encode(), digest_size=16).digest()
