"""A look at the prefix tree and the programs between two steps, bounded in size and in work.

In: an `OrderSnapshot`, and the engine's own structures, which it only reads. Out: a `views.Snapshot`. What does not
fit is summed up, never dropped without a number: what running programs hold is shown first, then what is largest.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from itertools import islice

from ramet.runtime.program import Program
from ramet.runtime.programs import Programs
from ramet.runtime.radix import Node, RadixTree
from ramet.runtime.scheduler import Scheduler
from ramet.runtime.sequence import Generating, Sequence
from ramet.runtime.views import STATES, BranchView, OrderSnapshot, ProgramView, Snapshot, State, TreeNode

VISITED = 20_000  # tree nodes that a snapshot looks at: about 20 ms; the others count as `elsewhere`
NAME = 96  # characters of a branch's or an operation's path, which clients choose
_RANK = {state: rank for rank, state in enumerate(STATES)}
Shape = dict[int, tuple[int, int]]  # of nodes, by identity: tokens and nodes in the subtree, its top included


class Snapshots:
    """Makes snapshots of one engine. Nothing happens, and nothing is kept, between two of them."""

    def __init__(self, tree: RadixTree, programs: Programs, scheduler: Scheduler, clock: Callable[[], float]) -> None:
        self._tree = tree
        self._programs = programs
        self._scheduler = scheduler
        self._clock = clock
        self._secret = secrets.token_bytes(16)  # node ids are keyed hashes: they tell nothing of tokens

    def take(self, order: OrderSnapshot) -> Snapshot:
        """The engine now. Looking must not end it: an error becomes the snapshot's `error`."""
        began = self._clock()
        try:
            return self._take(order, began)
        except Exception as error:  # noqa: BLE001 (the boundary of this request)
            return Snapshot(order.token, error=type(error).__name__)

    def _take(self, order: OrderSnapshot, began: float) -> Snapshot:
        live = [p for p in self._programs.live.values() if order.namespace in (None, p.namespace)]
        walked = list(islice(self._tree.nodes(), VISITED))
        if order.namespace is not None:
            walked = [node for node in walked if node.namespace == order.namespace]
        shape = _shape(walked)
        roots = [node for node in walked if node.parent is None]
        shown = _chosen(roots, shape, order.nodes)
        ids = self._ids(shown)
        nodes = _drawn(shown, shape, ids, _owners(shown, live), max((node.used for node in walked), default=0))
        views, left = [], order.branches
        for program in live[: order.programs]:
            views.append(self._program(program, ids, left))
            left -= len(views[-1].branches)
        return Snapshot(
            order.token,
            nodes,
            tuple(views),
            elsewhere=self._tree.size - sum(shape[id(node)][0] for node in shown if node.parent is None),
            namespaces=len(roots),
            more=max(0, len(live) - order.programs),
            seconds=self._clock() - began,
        )

    def _ids(self, shown: list[Node]) -> dict[int, int]:
        """48-bit ids by identity. A node's follows from its parent's and its first token, and so survives growth,
        splits further down, and the going of its siblings."""
        ids: dict[int, int] = {}
        for node in shown:
            above = 0 if node.parent is None else ids[id(node.parent)]
            head = node.namespace.encode("utf-8", "surrogatepass") if node.parent is None else node.key[:4]
            digest = hashlib.blake2b(above.to_bytes(8, "big") + head, key=self._secret, digest_size=6).digest()
            ids[id(node)] = int.from_bytes(digest, "big") or 1
        return ids

    # -- programs

    def _program(self, program: Program, ids: dict[int, int], most: int) -> ProgramView:
        on = {seq: key for key, seqs in program.waiters.items() for seq in seqs}
        states = {seq: self._state(seq, seq in on) for seq in program.sequences.values()}
        counts = dict.fromkeys(STATES, 0)
        for state in states.values():
            counts[state] += 1
        chosen = set(sorted(states, key=lambda seq: (seq.name != "0", _RANK[states[seq]], seq.order))[: max(0, most)])
        return ProgramView(
            id=program.id,
            order=program.order,
            seconds=self._clock() - program.began,
            priority=program.priority,
            ended=program.ended,
            calls=program.calls,
            prompt=program.prompt,
            cached=program.cached,
            generated=program.generated,
            forced=program.forced,
            steps=program.steps,
            states=tuple(counts.values()),
            branches=tuple(_branch(s, states[s], on.get(s, ""), ids) for s in states if s in chosen),
        )

    def _state(self, seq: Sequence, blocked: bool) -> State:
        if seq.failed is not None:
            return "failed"
        if seq.closed:
            return "done"
        if seq.task is not None or seq.wants_work():
            if seq.row is None:
                return "queued"
            return "decoding" if seq.is_sampling() else "prompt"
        return "waiting" if blocked else "idle"


def _branch(seq: Sequence, state: State, on: str, ids: dict[int, int]) -> BranchView:
    op = seq.task.op if seq.task is not None else seq.ops[0] if seq.ops else None
    task = seq.task if isinstance(seq.task, Generating) else None
    node = seq.node
    while node is not None and id(node) not in ids:
        node = node.parent
    return BranchView(
        name=seq.name[:NAME],
        state=state,
        op="" if op is None else str(op.__struct_config__.tag),
        on=on[:NAME] if state == "waiting" else "",
        tokens=seq.known,
        computed=min(seq.computed, seq.known),
        base=seq.base,
        made=task.made if task is not None else 0,
        limit=task.limit if task is not None else 0,
        constrained=task is not None and task.automaton is not None,
        node=0 if node is None else ids[id(node)],
    )


# -- the tree


def _shape(walked: list[Node]) -> Shape:
    """What hangs together under each node, of those that were walked (parents before children)."""
    shape: Shape = {}
    for node in reversed(walked):
        tokens, count = shape.get(id(node), (0, 0))
        shape[id(node)] = mine = (tokens + len(node.tokens), count + 1)
        if node.parent is not None:
            tokens, count = shape.get(id(node.parent), (0, 0))
            shape[id(node.parent)] = (tokens + mine[0], count + mine[1])
    return shape


def _chosen(roots: Iterable[Node], shape: Shape, most: int) -> list[Node]:
    """At most `most` nodes, each with its parent in front of it: what is held first, then what is largest."""
    queue: list[tuple[bool, int, int, Node]] = []
    serial = 0
    shown: list[Node] = []
    ready: Iterable[Node] = roots
    while True:
        for node in ready:
            if id(node) in shape:
                serial += 1  # nodes are never compared
                heappush(queue, (not node.refs, -shape[id(node)][0], serial, node))
        if not queue or len(shown) >= most:
            return shown
        shown.append(heappop(queue)[3])
        ready = shown[-1].children.values()


def _owners(shown: list[Node], live: list[Program]) -> dict[int, set[int]]:
    """By identity of a node: the programs that have a live branch through it."""
    owners: dict[int, set[int]] = {id(node): set() for node in shown}
    for program in live:
        for seq in program.sequences.values():
            node = seq.node
            while node is not None and id(node) not in owners:
                node = node.parent
            if node is not None:
                owners[id(node)].add(program.order)
    for node in reversed(shown):
        if node.parent is not None:
            owners[id(node.parent)] |= owners[id(node)]
    return owners


def _drawn(
    shown: list[Node], shape: Shape, ids: dict[int, int], owners: dict[int, set[int]], newest: int
) -> tuple[TreeNode, ...]:
    index = {id(node): place for place, node in enumerate(shown)}
    return tuple(
        TreeNode(
            id=ids[id(node)],
            parent=-1 if node.parent is None else index[id(node.parent)],
            tokens=len(node.tokens),
            depth=node.depth,
            below=shape[id(node)][0] - len(node.tokens),
            refs=node.refs,
            programs=len(owners[id(node)]),
            age=-1 if node.used < 0 else newest - node.used,
            **_hidden(node, shape, index),
        )
        for node in shown
    )


def _hidden(node: Node, shape: Shape, index: dict[int, int]) -> dict[str, int]:
    hidden = [shape[id(child)] for child in node.children.values() if id(child) not in index and id(child) in shape]
    return {"hidden": sum(count for _, count in hidden), "hidden_tokens": sum(tokens for tokens, _ in hidden)}
