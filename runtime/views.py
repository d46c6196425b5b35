"""What a snapshot of the engine says: numbers, states and paths of the prefix tree and of the live programs.

In: nothing. Out: structs of the wire between engine and client (`messages` lists them among what crosses). There is
no text and no token in them: an edge of the tree is a number of tokens (R9, R12).
"""

from __future__ import annotations

from typing import Literal

import msgspec

State = Literal["decoding", "prompt", "queued", "waiting", "idle", "failed", "done"]
STATES: tuple[State, ...] = ("decoding", "prompt", "queued", "waiting", "idle", "failed", "done")


class OrderSnapshot(msgspec.Struct, frozen=True, tag="snapshot"):
    """Ask for a `Snapshot` with at most so many nodes, programs and branches (of all programs together); the answer
    carries the same `token`. `namespace` narrows it to one namespace; None sees all."""

    token: int
    nodes: int
    programs: int
    branches: int
    namespace: str | None = None


class TreeNode(msgspec.Struct, frozen=True, array_like=True):
    """A run of tokens in the prefix tree. `id` stays while the node's place in the tree does; `parent` is an index
    into `Snapshot.nodes`, -1 for a root (which has no tokens). `tokens`: of the edge; `depth`: from the root to its
    end; `below`: in all nodes under it. `refs`: live branches whose path includes it, `programs`: theirs. `age`:
    look-ups since it was last used, -1 for what is evicted before everything else. `hidden`, `hidden_tokens`: nodes
    and tokens of those children, with all under them, that are not in the snapshot."""

    id: int
    parent: int
    tokens: int
    depth: int
    below: int
    refs: int
    programs: int
    age: int
    hidden: int
    hidden_tokens: int


class BranchView(msgspec.Struct, frozen=True, array_like=True):
    """One sequence of a program. `op` is the kind of the operation that is under way or comes next ("" for none), `on`
    the path of the value or branch that it waits for. `tokens` known, `computed` of them with KV, `base` of them
    inherited at the fork; a Generate has made `made` of at most `limit` tokens. `node` is the id of the deepest shown
    tree node on its path, 0 for none."""

    name: str
    state: State
    op: str
    on: str
    tokens: int
    computed: int
    base: int
    made: int
    limit: int
    constrained: bool
    node: int


class ProgramView(msgspec.Struct, frozen=True, array_like=True):
    """One live program: `order` is its age among all (lower is older), `seconds` since it began; tokens so far;
    `states` counts all of its branches by state, in the order of `STATES`, also those that are not in `branches`."""

    id: str
    order: int
    seconds: float
    priority: int
    ended: bool
    calls: int
    prompt: int
    cached: int
    generated: int
    forced: int
    steps: int
    states: tuple[int, ...]
    branches: tuple[BranchView, ...]


class Snapshot(msgspec.Struct, frozen=True):
    """The engine between two steps. Parents come before children in `nodes`. `elsewhere`: tokens in the tree that
    belong to no shown node and to no `hidden` of one (other namespaces, and what a bounded walk did not reach);
    `namespaces`: of those that may be seen; `more`: programs that may be seen and are not in `programs`. `seconds`:
    what it took to make. `error`: why it is empty, if it could not be made."""

    token: int
    nodes: tuple[TreeNode, ...] = ()
    programs: tuple[ProgramView, ...] = ()
    elsewhere: int = 0
    namespaces: int = 0
    more: int = 0
    seconds: float = 0.0
    error: str = ""
