"""Choices as a token trie: what a Select computes, and which choice wins.

In: the token ids of each choice. Out: a `Trie` whose inner nodes are computed in one forward pass (leaves need no
KV: their logprob comes from their parent), and from the logprob of every edge the scores and the winner. Pure
functions of plain data.
"""

from __future__ import annotations

from collections.abc import Sequence

from ramet.frontend.ir import SelectMethod


class Trie:
    """A prefix tree over choices. Node i has `tokens[i]`, `parents[i]` (-1: the prompt) and `depths[i]` (0 below the
    prompt); parents come before children. `inner` lists the nodes with children; `paths[c]` the nodes of choice c."""

    def __init__(self, choices: Sequence[Sequence[int]]) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.depths: list[int] = []
        self.paths: list[list[int]] = []
        index: dict[tuple[int, int], int] = {}
        for choice in choices:
            at, path = -1, []
            for depth, token in enumerate(choice):
                node = index.get((at, token))
                if node is None:
                    node = index[at, token] = len(self.tokens)
                    self.tokens.append(token)
                    self.parents.append(at)
                    self.depths.append(depth)
                path.append(node)
                at = node
            self.paths.append(path)
        has_child = set(self.parents)
        self.inner = [node for node in range(len(self.tokens)) if node in has_child]

    def chains(self) -> list[list[int]]:
        """Inner nodes as maximal runs, each one segment of a batch; a run's ancestors are in earlier runs."""
        inner = set(self.inner)
        below: dict[int, list[int]] = {}
        for node in self.inner:
            below.setdefault(self.parents[node], []).append(node)
        runs: list[list[int]] = []
        for node in self.inner:
            parent = self.parents[node]
            if parent in inner and len(below[parent]) == 1:
                continue  # continues its parent's run
            run = [node]
            while len(below.get(run[-1], ())) == 1:
                run.append(below[run[-1]][0])
            runs.append(run)
        return runs

    def ancestors(self, node: int) -> list[int]:
        """The nodes above `node`, from the top."""
        path: list[int] = []
        at = self.parents[node]
        while at >= 0:
            path.append(at)
            at = self.parents[at]
        return path[::-1]


def decide(
    method: SelectMethod,
    logprobs: Sequence[Sequence[float]],
    unconditional: Sequence[Sequence[float]] = (),
) -> tuple[int, tuple[float, ...]]:
    """The winner's index and every choice's score, from the logprobs of each choice's own tokens.

    token_length_normalized: their mean. unconditional_likelihood_normalized: the mean of what the prompt adds to them
    (log p(token | prompt) - log p(token | nothing), Holtzman et al. 2021's PMI per token). greedy_token_selection:
    step by step the choices whose token is most likely stay; a choice that has ended stands in with its mean; the
    score is the number of steps it survived plus its mean's rank within (0, 1]. Ties go to the earlier choice.
    """
    means = [sum(row) / len(row) for row in logprobs]
    if method == "token_length_normalized":
        scores = means
    elif method == "unconditional_likelihood_normalized":
        scores = [
            sum(a - b for a, b in zip(row, base, strict=True)) / len(row)
            for row, base in zip(logprobs, unconditional, strict=True)
        ]
    else:
        scores = _greedy(logprobs, means)
    return max(range(len(scores)), key=lambda i: scores[i]), tuple(scores)


def _greedy(logprobs: Sequence[Sequence[float]], means: Sequence[float]) -> list[float]:
    alive = list(range(len(logprobs)))
    survived = [0] * len(logprobs)
    for step in range(max(len(row) for row in logprobs)):
        values = {c: logprobs[c][step] if step < len(logprobs[c]) else means[c] for c in alive}
        best = max(values.values())
        alive = [c for c in alive if values[c] == best]
        for c in alive:
            survived[c] += 1
    order = sorted(set(means))
    return [survived[c] + (order.index(means[c]) + 1) / len(order) for c in range(len(means))]
