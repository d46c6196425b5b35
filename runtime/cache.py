"""The KV cache as sequences see it: the tree of shared prefixes, the pool of slots and the table of rows, moved
together.

In: sequences. Out: rows of slots for the scheduler. This is the only place that frees a slot (`_free`) and the only
one that moves a sequence's lock. Freed slots may still be read by a batch in the air: that is safe, since every
later batch runs after it.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ramet.runtime.batch import I32
from ramet.runtime.radix import Node, RadixTree
from ramet.runtime.sequence import NO_SLOTS, Choosing, Generating, Sequence
from ramet.runtime.slots import Rows, Slots


class Cache:
    """KV slots of one engine. Sequences are seated (they have a row and may hold private slots), resting (no row,
    but a lock: a lease on their prefix) or parked (neither: what they computed may be evicted)."""

    def __init__(self, capacity: int, rows: int, context: int) -> None:
        self.capacity = capacity
        self.tree = RadixTree()
        self.slots = Slots(capacity)
        self.rows = Rows(rows, context)
        self.evicted = 0

    # -- locks and rows

    def attach(self, seq: Sequence) -> None:
        """Give the sequence a lock on the longest prefix of it that is cached below its goal."""
        if seq.node is None:
            seq.node = self.tree.root(seq.program.namespace)
            self.tree.lock(seq.node)
            seq.computed = 0
            self.advance(seq, seq.reach())

    def advance(self, seq: Sequence, limit: int) -> None:
        """Move the lock down along what others have computed of positions below `limit`; private slots must be none."""
        assert seq.node is not None and seq.computed == seq.depth, "only a settled sequence follows the tree"
        start = seq.depth
        if limit <= start:
            return
        node, matched = self.tree.match(seq.node, seq.tokens(start, limit))
        if matched:
            self._move(seq, node)
            seq.computed = node.depth
            if seq.row is not None:
                self.rows.table[seq.row, start : node.depth] = self.tree.path_slots(node, start)

    def seat(self, seq: Sequence) -> bool:
        """Give the sequence a row that lists its slots; False when there is none left."""
        if seq.row is not None:
            return True
        row = self.rows.alloc()
        if row is None:
            return False
        self.attach(seq)
        assert seq.node is not None, "attached"
        seq.row = row
        self.rows.table[row, : seq.depth] = self.tree.path_slots(seq.node)
        return True

    def settle(self, seq: Sequence, keep: int, known: int | None = None) -> None:
        """Move private slots into the tree, and the lock to position `keep` or as far as tokens are computed.

        `known` is the number of tokens of the buffer whose id is certain (default: the known ones). Tokens from
        `keep` on stay in the tree unlocked: whoever appends the same tokens again finds them. Slots of positions
        with unknown tokens are freed.
        """
        if seq.row is None:
            return
        assert seq.node is not None, "a seated sequence has a lock"
        end = min(seq.computed, seq.known if known is None else known)
        cut = max(min(keep, end), 0)
        row = self.rows.table[seq.row]
        depth = seq.depth
        if cut >= depth:
            self._move(seq, self._adopt(seq.node, seq.buffer[depth:cut], row[depth:cut]))
        if end > max(cut, depth):
            low = max(cut, depth)
            self._adopt(seq.node, seq.buffer[low:end], row[low:end])
        if cut < depth:
            self._withdraw(seq, cut)
        low = max(end, depth)
        if seq.computed > low:
            self._free(row[low : seq.computed])
        had, seq.computed = seq.computed, seq.depth
        row[seq.computed : had] = -1

    def retreat(self, seq: Sequence, keep: int) -> None:
        """Let go of what is computed from position `keep` on, which stays in the tree: it is to be computed again."""
        if seq.row is not None:
            self.settle(seq, keep)
        elif seq.depth > keep:
            self._withdraw(seq, keep)
            seq.computed = keep

    def rest(self, seq: Sequence) -> None:
        """Give up the row, keep the lock."""
        if seq.row is not None:
            self.settle(seq, seq.known - 1)
            self.rows.release(seq.row)
            seq.row = None

    def park(self, seq: Sequence, *, cold: bool = False) -> None:
        """Give up row and lock; what was computed stays in the tree (first to go when `cold`)."""
        self.rest(seq)
        if seq.node is not None:
            self.tree.unlock(seq.node, cold=cold)
            seq.node = None
            seq.computed = 0

    def discard(self, seq: Sequence) -> None:
        """Give up everything and trust none of it: private slots are freed, nothing enters the tree."""
        self.drop(seq)
        if seq.row is not None:
            self._free(self.rows.table[seq.row, seq.depth : seq.computed])
            self.rows.release(seq.row)
            seq.row = None
        if seq.node is not None:
            self.tree.unlock(seq.node)
            seq.node = None
        seq.computed = 0

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """The child shares all that is computed of its parent, by a lock on the same node; nothing is copied."""
        self.settle(parent, parent.known - 1)
        if parent.node is not None:
            child.node = parent.node
            self.tree.lock(child.node)
            child.computed = child.depth

    # -- slots

    def take(self, count: int, after: int = -1) -> I32 | None:
        """`count` slots `int32`, evicting what nobody holds if need be; None when that is not enough."""
        missing = count - self.slots.free
        if missing > 0:
            if missing > self.tree.size - self.tree.locked:
                return None
            evicted = self.tree.evict(missing)
            self.evicted += len(evicted)
            self._free(evicted)
        return self.slots.alloc(count, after)

    def extend(self, seq: Sequence, slots: I32) -> None:
        """New slots for the sequence's next positions."""
        assert seq.row is not None, "only a seated sequence grows"
        self.rows.table[seq.row, seq.computed : seq.computed + len(slots)] = slots
        seq.computed += len(slots)

    def publish(self, seq: Sequence) -> bool:
        """Insert at launch: put the computed tokens into the tree, whose ids the host must know. False, and nothing
        changes, when the tree has one of them already (its last prompt token, computed again for its logits)."""
        assert seq.node is not None and seq.row is not None and seq.computed <= seq.known, "published tokens are known"
        start = seq.depth
        tokens = seq.tokens(start, seq.computed)
        if not len(tokens) or seq.node.children.get(int(tokens[0])) is not None:
            return False
        self._move(seq, self._adopt(seq.node, tokens, self.rows.table[seq.row, start : seq.computed]))
        return True

    def keep_trie(self, seq: Sequence, task: Choosing, path: list[int]) -> None:
        """The choice along `path` won: its computed nodes become the sequence's, the slots of the others go."""
        assert seq.row is not None, "a scored sequence is seated"
        where = {node: i for i, node in enumerate(task.trie.inner)}
        mine = [where[node] for node in path if node in where]
        kept = task.slots[mine]
        self.rows.table[seq.row, seq.computed : seq.computed + len(kept)] = kept
        seq.computed += len(kept)
        self._free(np.delete(task.slots, mine))
        self._free(task.extra)
        task.slots = task.extra = NO_SLOTS

    def keep_guess(self, seq: Sequence, task: Generating) -> None:
        """The first guessed token was right: its slot becomes the sequence's next one."""
        self.extend(seq, task.lent[:1])
        task.lent = task.lent[1:]

    def drop(self, seq: Sequence) -> None:
        """Free the slots of a token trie, or of guessed tokens, that nobody needs any more."""
        task = seq.task
        if isinstance(task, Choosing):
            self._free(task.slots)
            self._free(task.extra)
            task.slots = task.extra = NO_SLOTS
        elif isinstance(task, Generating):
            self._free(task.lent)
            task.lent = NO_SLOTS

    def flush(self) -> int:
        """Evict everything that is not locked; the number of tokens evicted."""
        gone = self.tree.clear()
        self._free(gone)
        return len(gone)

    def _adopt(self, node: Node, tokens: I32, slots: I32) -> Node:
        """Insert a run below `node`; where the tree had a token already, its slot replaces ours in place and ours is
        freed."""
        if not len(tokens):
            return node
        mine = slots.copy()
        below, theirs = self.tree.insert(node, tokens.copy(), mine)
        twice = mine[mine != theirs]
        if len(twice):
            slots[:] = theirs
            self._free(twice)
        return below

    def _move(self, seq: Sequence, node: Node) -> None:
        assert seq.node is not None, "a lock moves only when there is one"
        if node is not seq.node:
            self.tree.lock(node)
            self.tree.unlock(seq.node)
            seq.node = node

    def _withdraw(self, seq: Sequence, cut: int) -> None:
        """Move the lock up to position `cut`."""
        node, matched = self.tree.match(self.tree.root(seq.program.namespace), seq.buffer[:cut])
        assert matched == cut, "a locked path is in the tree"
        self._move(seq, node)

    def _free(self, slots: I32) -> None:
        if len(slots):
            self.slots.release(slots)

    # -- invariants

    def check(self, sequences: Iterable[Sequence]) -> None:
        """Invariants 1 to 4 of the KV cache over all live sequences; AssertionError names the broken one."""
        self.slots.check()
        private: list[I32] = []
        holders: list[Node] = []
        for seq in sequences:
            if seq.row is None:
                assert seq.node is None or seq.computed == seq.depth, f"{seq.name}: private slots without a row"
            else:
                assert seq.node is not None, f"{seq.name}: a row without a lock"
                row = self.rows.table[seq.row, : seq.computed]
                path = self.tree.path_slots(seq.node)
                assert np.array_equal(row[: seq.depth], path), f"{seq.name}: row and tree path differ"
                private.append(row[seq.depth :])
            if isinstance(seq.task, Choosing):
                private += [seq.task.slots, seq.task.extra]
            elif isinstance(seq.task, Generating):
                private.append(seq.task.lent)
            if seq.node is not None:
                assert seq.node.namespace == seq.program.namespace, f"{seq.name}: reads another namespace"
                holders.append(seq.node)
        held = np.sort(np.concatenate([*private, NO_SLOTS]))
        assert not (held[1:] == held[:-1]).any(), "a slot is private to two branches"
        assert not self.slots.is_free(held).any(), "a private slot is free"
        total = self.slots.free + self.tree.size + len(held)
        assert total == self.capacity, (
            f"free {self.slots.free} + tree {self.tree.size} + private {len(held)} != {self.capacity}"
        )
        self.tree.check(holders)
