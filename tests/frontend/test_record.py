"""What a run records, read by one thread while another adds to it."""

from __future__ import annotations

from typing import Any

from ramet.frontend.entries import Entry, Seq
from ramet.frontend.record import Record


def test_a_reader_of_an_error_may_meet_operations_that_are_being_recorded() -> None:
    record, error = Record("p", None), ValueError("bad")
    seq = Seq("0.0.b0", record.root)

    def entry(name: str, kind: type[Entry] = Entry) -> Entry:
        made = kind(name, seq, "gen", "here.py:1", "", ())
        record.entries[name] = made
        return made

    class Looked(Entry):
        """As soon as it is looked at, somebody else records."""

        __slots__ = ()

        def __getattribute__(self, name: str) -> Any:
            if name == "error":
                entry(f"new{len(record.entries)}")
            return super().__getattribute__(name)

    entry("first", Looked)
    failed = entry("failed")
    failed.error, failed.root = error, failed
    assert not failed.read
    record.saw(error)
    assert failed.read and len(record.entries) == 3
