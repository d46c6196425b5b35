"""How long admission was shut for want of memory, and how long a call waited for it."""

from __future__ import annotations

from ramet.runtime.lack import Lack
from ramet.runtime.sequence import Call


def test_it_runs_while_somebody_is_kept_out() -> None:
    lack = Lack()
    assert lack.total(5.0) == 0.0
    lack.note(True, 5.0)
    assert lack.total(6.5) == 1.5
    lack.note(True, 7.0)
    lack.note(False, 8.0)
    assert lack.total(100.0) == 3.0
    lack.note(False, 101.0)
    lack.note(True, 102.0)
    assert lack.total(103.0) == 4.0


def test_a_call_counts_its_own_wait() -> None:
    lack = Lack()
    lack.note(True, 1.0)
    call = Call(10, now=2.0)
    call.lack = lack.total(2.0)
    lack.note(False, 4.0)
    call.seated(lack, 6.0)
    assert call.starved == 2.0
    call.away = 7.0  # retracted: it waits until it is seated again, whatever else happens
    call.seated(lack, 9.5)
    assert call.starved == 4.5
    call.seated(lack, 20.0)
    assert call.starved == 4.5
