"""What a Join appends: the texts of its branches, in their order, each as soon as it and those before it have ended.

In: a sequence whose next op is a Join. Out: a longer sequence, or why it fails. A text that is there is computed while
later branches still decode; what the Join says in the end is the same.
"""

from __future__ import annotations

from ramet.runtime import messages as m
from ramet.runtime.sequence import Sequence

Failure = tuple[str, str]  # kind and message


def begin(seq: Sequence, op: m.Join, longest: int) -> None:
    """Append the texts of leading branches that have ended, as far as sequences of `longest` tokens allow."""
    for name in op.branches[seq.joined :]:  # pragma: no branch (one at least has not ended)
        branch = seq.program.sequences.get(name)
        if branch is None or branch.failed is not None or not branch.closed:
            return
        tokens = branch.tokens(branch.base, branch.known)
        if seq.known + len(tokens) > longest:
            return
        seq.append(tokens)
        seq.joined += 1


def failure(seq: Sequence, op: m.Join) -> Failure | None:
    """Why a Join whose branches have all ended cannot be carried out."""
    for name in op.branches:
        branch = seq.program.sequences.get(name)
        if branch is None:
            return "generation", f"branch {name} does not exist"
        if branch.failed is not None:
            kind, message = branch.failed
            return kind, f"branch {name} failed: {message}"
    return None


def tokens_of(seq: Sequence, op: m.Join, first: int = 0) -> list[int]:
    """The texts of the branches from the `first` on."""
    branches = [seq.program.sequences[name] for name in op.branches[first:]]
    return [token for branch in branches for token in branch.tokens(branch.base, branch.known).tolist()]
