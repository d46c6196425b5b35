"""`durable`: the run that fails, and the one that goes on with it."""

from __future__ import annotations

import pytest

import ramet as rt
from ramet.examples.durable import LETTERS, interrupted


def test_durable_answers_each_letter_once(tmp_path):
    mock = rt.Mock(lambda prompt, var: f"sorry {len(prompt)}")
    first, again = interrupted(mock, tmp_path / "runs.db")
    with pytest.raises(rt.ToolError, match="the post office is closed"):
        first.result()
    receipts = again.result(30)
    assert [receipt.split(" -> ")[0] for receipt in receipts] == list(LETTERS)
    assert len(mock.prompts) == len(LETTERS)
