"""The quality benchmark on a few tokens: a dtype equals itself, fewer bits differ a little."""

from __future__ import annotations

import math
import runpy
from pathlib import Path

import pytest

from ..runtime.natives import needs_native

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "quality.py"


@needs_native
@pytest.mark.model
def test_rows_of_the_table() -> None:
    measure = runpy.run_path(str(BENCHMARK), run_name="quality")["measure"]
    same, fewer = measure("default", ["bfloat16", "int8"], 120, 1, None)
    assert (same.kl_mean, same.greedy_agreement, same.perplexity_change, same.gate) == (0, 1, 0, True)
    assert (same.tokens, fewer.dtype) == (120, "int8")
    assert 0 < fewer.kl_mean < 0.05
    assert fewer.greedy_agreement > 0.85
    assert math.isfinite(fewer.perplexity)
