"""The prefix cache and the allocator against brute-force models; 10^5 rounds of this are part of `make sim`."""

from __future__ import annotations

import pytest

from .prefixes import rounds


@pytest.mark.parametrize("seed", range(3))
def test_rounds(seed: int) -> None:
    rounds(seed, 3_000)
