"""A vote that is over as soon as its outcome is.

In: the votes of n voters, in any order. Out: whose vote wins, once no vote that is still to come can change it.
"""

from __future__ import annotations

from collections.abc import Hashable


class Ballot:
    """The votes of `n` voters, 0 to n - 1. Most votes win; of equals, the answer whose first voter comes first. The
    winner is that first voter: it depends on the votes alone and not on the order in which they come."""

    def __init__(self, n: int) -> None:
        self._open = set(range(n))
        self._voters: dict[Hashable, list[int]] = {}

    def cast(self, voter: int, answer: Hashable) -> None:
        """The voter's answer; equal answers are the same one."""
        self._open.remove(voter)
        self._voters.setdefault(answer, []).append(voter)

    def abstain(self, voter: int) -> None:
        """The voter has no answer."""
        self._open.remove(voter)

    @property
    def winner(self) -> int | None:
        """The winner, if it is the same whatever the votes to come are; None when it is not, or without any vote."""
        if not self._voters:
            return None
        ranked = sorted(self._voters.values(), key=lambda voters: (-len(voters), min(voters)))
        count, first, left = len(ranked[0]), min(ranked[0]), len(self._open)
        if any(voter < first for voter in self._open):  # it may give this answer, or another one, an earlier voter
            return None
        for rival in ranked[1:]:
            if (len(rival) + left, -min(rival)) > (count, -first):
                return None
        return first if left <= count else None  # an answer that nobody gave yet begins later: it must be ahead
