"""The engine looks at its invariants while it serves, and says so when one is broken."""

from __future__ import annotations

import logging

import pytest

from ramet.runtime import audit
from ramet.runtime.audit import BUSY_STEPS, IDLE_STEPS, MOST_TOLD, Audit

from ..sim.law import Law
from ..sim.ledger import LedgerRunner
from .driving import Drive
from .small import generate, text


def refuse(words: str = "a slot is in two places") -> None:
    raise AssertionError(words)


def test_it_looks_when_there_is_nothing_to_do_and_rarely_else() -> None:
    looks: list[int] = []
    found = Audit(lambda: looks.append(step))
    for step in range(2 * BUSY_STEPS + 1):
        found.after(step, idle=False)
    assert looks == [BUSY_STEPS, 2 * BUSY_STEPS]
    found.after(step + IDLE_STEPS - 1, idle=True)
    assert found.checks == 2
    found.after(step + IDLE_STEPS, idle=True)
    found.after(step + IDLE_STEPS, idle=True)
    assert (found.checks, found.broken) == (3, 0)


def test_what_is_broken_is_counted_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    words = iter(["a slot is in two places"] * 2 + [f"slot {k}" for k in range(2 * MOST_TOLD)])
    found = Audit(lambda: refuse(next(words)))
    with caplog.at_level(logging.ERROR, "ramet.engine"):
        for look in range(2 * MOST_TOLD):
            found.after((look + 1) * IDLE_STEPS, idle=True)
    assert (found.checks, found.broken) == (2 * MOST_TOLD, 2 * MOST_TOLD)
    assert len(caplog.messages) == MOST_TOLD
    assert "a slot is in two places" in caplog.messages[0]


@pytest.mark.parametrize("leak", [False, True])
def test_an_engine_notices_a_leak_and_goes_on(monkeypatch: pytest.MonkeyPatch, leak: bool) -> None:
    monkeypatch.setattr(audit, "IDLE_STEPS", 5)
    d = Drive(LedgerRunner(Law(12), capacity=400, rows=8, context=300))
    first = d.program(text("0.0", 20), generate("0.1", 8))
    d.run()
    before = d.core.stats()
    assert before.checks >= 1
    assert before.broken == 0
    if leak:
        d.core.cache.slots.alloc(1)
    second = d.program(text("0.0", 20), generate("0.1", 8))
    for _ in range(30):
        d.core.step()  # without the checks of `Drive`
    after = d.core.stats()
    assert after.checks > before.checks
    assert bool(after.broken) == leak
    assert first in d.over
    assert any(
        isinstance(news, type(d.over[first])) and news.program == second for s in d.port.steps for news in s.news
    )
