"""Where answers are written: long ones beside the loop, which has streams to serve."""

from __future__ import annotations

import asyncio
import threading

import pytest

from ramet.runtime.server import raw


@pytest.mark.parametrize(("rows", "beside"), [(0, False), (raw.MANY - 1, False), (raw.MANY, True)])
def test_only_long_answers_are_written_in_a_thread(rows: int, beside: bool) -> None:
    wrote = asyncio.run(raw.written(rows, threading.get_ident))
    assert (wrote != threading.get_ident()) == beside


def test_what_writing_raises_is_raised() -> None:
    def write() -> None:
        raise ValueError("no")

    for rows in (0, raw.MANY):
        with pytest.raises(ValueError, match="no"):
            asyncio.run(raw.written(rows, write))
