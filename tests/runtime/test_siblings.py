"""Siblings of a fork stay in one set of steps, so that attention can read what they share once for all of them."""

from __future__ import annotations

from collections import defaultdict

import pytest

from ramet.frontend.ir import Sampling
from ramet.runtime import messages as m
from ramet.runtime.batch import Batch
from ramet.runtime.config import POLICIES

from ..sim.law import Law
from ..sim.ledger import LedgerRunner
from .driving import Drive

BRANCHES, TOKENS = 8, 12
PROMPT = tuple(k % 10 for k in range(40))


class Watched(LedgerRunner):
    """Keeps the slots of the prompts' last tokens that each batch reads: one for each program, once for each branch."""

    def __init__(self, rows: int) -> None:
        super().__init__(Law(12), capacity=4000, rows=rows, context=300)
        self.reads: list[dict[int, int]] = []

    def forward(self, batch: Batch):
        read: dict[int, int] = defaultdict(int)
        for k in range(batch.segments):
            slots = batch.kv_indices[batch.kv_indptr[k] : batch.kv_indptr[k + 1]]
            if len(slots) > len(PROMPT) and batch.qo_indptr[k + 1] - batch.qo_indptr[k] == 1:  # decodes
                read[int(slots[len(PROMPT) - 1])] += 1
        self.reads.append(dict(read))
        return super().forward(batch)


def forked(d: Drive, first: int) -> str:
    into = tuple(f"0.1.b{k}" for k in range(BRANCHES))
    sampling = Sampling(max_tokens=TOKENS, ignore_eos=True, temperature=1.0)
    gens = [m.Generate(f"{seq}.0", seq, sampling, k) for k, seq in enumerate(into)]
    return d.program(m.Append("0.0", "0", ((first, *PROMPT[1:]),)), m.Fork("0.1", "0", into), *gens)


def counts(rows: int, policy: str) -> list[int]:
    """How many siblings read their prompt in each step in which any decode, for two forks."""
    runner = Watched(rows)
    d = Drive(runner, policy=policy)
    names = [forked(d, first) for first in (3, 4)]
    d.run()
    assert set(names) == set(d.over)
    assert all(result.failure is None for result in d.results.values())
    return [count for each in runner.reads for count in each.values()]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("rows", [64, BRANCHES])
def test_they_are_decoded_in_the_same_steps(policy: str, rows: int) -> None:
    assert counts(rows, policy) == [BRANCHES] * (2 * (TOKENS - 1))


@pytest.mark.parametrize("policy", POLICIES)
def test_those_of_the_older_fork_are_where_places_are_left_over(policy: str) -> None:
    found = counts(BRANCHES + 3, policy)
    assert found.count(BRANCHES) >= TOKENS - 1
    assert sum(found) == 2 * BRANCHES * (TOKENS - 1)


def test_the_counts_show_it_where_places_are_too_few() -> None:
    assert BRANCHES not in counts(3, "peak")
