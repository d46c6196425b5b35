"""The end of a program whose operations are still being recorded, and whose reader fails."""

from __future__ import annotations

from typing import Any

import pytest

from ramet.frontend import ir
from ramet.runtime import messages as m
from ramet.runtime.translate import Translator


def fork(number: int) -> ir.Fork:
    return ir.Fork(id=f"0.{number}", seq="0", into=(f"0.{number}.b0",))


def begun(deliver: Any) -> Translator:
    no_tokens: Any = None
    translator = Translator("p", no_tokens, deliver)
    translator.expect([fork(1), fork(2)])
    return translator


def lost(translator: Translator) -> None:
    translator.lost("transport", "the engine was lost")


def over(translator: Translator) -> None:
    translator.news(m.Over("p", "", "generation", "gone", 0, 0, 0, 0, 0, 0, 0, 0.0))


@pytest.mark.parametrize("end", [lost, over])
def test_operations_that_come_while_a_program_ends_do_not_keep_its_end(end: Any) -> None:
    """The thread that records is another than the one that reads: between two events it adds operations."""
    told: list[ir.Event] = []

    def deliver(event: ir.Event) -> None:
        told.append(event)
        translator.expect([fork(10 + len(told)), fork(20 + len(told))])

    translator = begun(deliver)
    end(translator)
    assert [type(event) for event in told] == [ir.Failed, ir.Failed, ir.Ended]
    end(translator)
    assert len(told) == 3


def test_a_reader_that_fails_still_hears_the_end() -> None:
    told: list[ir.Event] = []

    def deliver(event: ir.Event) -> None:
        told.append(event)
        if isinstance(event, ir.Failed):
            raise ValueError("cannot read")

    with pytest.raises(ValueError, match="cannot read"):
        lost(begun(deliver))
    assert [type(event) for event in told] == [ir.Failed, ir.Ended]
