"""Requests under keys in any order of events: what is kept is what is counted, and everybody gets what was sent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from ramet.runtime.server import idempotency_records
from ramet.runtime.server.idempotency_records import Record, Shelf

from .asgi import ALICE, BOB, BOUNDS, Call, Client, Stage, driven, later, settled

KEYS = [(b"k%d" % n, who) for n in range(3) for who in (ALICE, BOB)]
STEPS = st.one_of(
    st.tuples(st.just("ask"), st.sampled_from(KEYS), st.sampled_from([b"{}", b"{}", b"[]"])),
    st.tuples(st.just("say"), st.integers(0, 9), st.integers(0, 1500)),
    st.tuples(st.just("end"), st.integers(0, 9), st.sampled_from(["whole", "error", "raise", "refuse"])),
    st.tuples(st.just("leave"), st.integers(0, 19)),
    st.tuples(st.just("later"), st.sampled_from([1.0, 6.0, 11.0])),
)


@settings(deadline=None)
@given(st.lists(STEPS, max_size=40))
def test_any_order_of_events(steps: list[Any]):
    """The shelf's figures are those of its records, within bounds; nobody gets bytes that its run did not send; of a
    key that is known there is one run."""
    driven(lambda: _any_order(steps))


@pytest.mark.nightly
@settings(deadline=None, max_examples=2_000)
@given(st.lists(STEPS, max_size=100))
def test_any_order_of_many_events(steps: list[Any]):
    driven(lambda: _any_order(steps))


def _count_upwards(self: Shelf, namespace: str, more: int) -> None:
    COUNT(self, namespace, max(0, more))


def _begin_at_will(self: Shelf, key: Any, wanted: bytes) -> Record:
    record = self._all[key] = Record(key, wanted, self)
    return record


async def _tell_from_now(self: Record, reader: int, send: Any, **options: Any) -> None:
    self._readers[reader] = len(self._data)
    await TELL(self, reader, send, **options)


COUNT, TELL = Shelf._count, Record.tell
WRONG = {
    "what is forgotten still counts": (Shelf, "_count", _count_upwards),
    "any number is kept": (Shelf, "begin", _begin_at_will),
    "runs outlive everybody": (Record, "_give_up", lambda record: None),
    "readers get what others have not read": (Record, "tell", _tell_from_now),
}


@pytest.mark.parametrize("fault", WRONG)
def test_any_order_finds_faults(monkeypatch: pytest.MonkeyPatch, fault: str):
    """The positive controls of the above."""
    monkeypatch.setattr(*WRONG[fault])

    @settings(deadline=None, max_examples=300, database=None, derandomize=True, phases=[Phase.generate])
    @given(st.lists(STEPS, min_size=10, max_size=40))
    def searched(steps: list[Any]) -> None:
        driven(lambda: _any_order(steps))

    with pytest.raises((AssertionError, ExceptionGroup)):
        searched()


async def _any_order(steps: list[Any]) -> None:
    stage = Stage(replace(BOUNDS, answers=2))
    clients: list[Client] = []
    said: list[bytes] = []
    begun: list[bool] = []
    for kind, *rest in steps:
        calls = stage.source.calls
        if kind == "ask":
            (key, who), body = rest
            clients.append(await stage.ask(key, who=who, body=body))
            said += [b""] * (len(calls) - len(said))
            begun += [False] * (len(calls) - len(begun))
        elif kind in ("say", "end") and calls:
            n = rest[0] % len(calls)
            if not calls[n].over:
                _order(calls[n], n, kind, rest[1], said, begun)
        elif kind == "leave" and clients:
            clients[rest[0] % len(clients)].leave()
        elif kind == "later":
            await later(rest[0])
        await settled()
        _consistent(stage, said)
    for client in clients:
        client.leave()
    await later(11.0)
    await later(11.0)
    assert (len(stage.app.shelf), stage.app.shelf.total) == (0, 0)
    assert all(call.over for call in stage.source.calls) and all(client.task.done() for client in clients)
    for client in clients:
        if client.status == 200:
            assert any(client.body == text if client.whole else text.startswith(client.body) for text in said)


def _order(call: Call, n: int, kind: str, what: Any, said: list[bytes], begun: list[bool]) -> None:
    """Tell a call what to do next, and note what its readers must get."""
    if not begun[n]:
        call.start(429 if what == "refuse" else 200)
        begun[n] = True
    if kind == "say":
        piece = bytes([65 + n % 26]) * what
        said[n] += piece
        call.say(piece)
    elif what == "raise":
        call.end(RuntimeError("unforeseen"))
    else:
        if what == "error":
            call.scope["ramet.unfinished"]()
        call.say(b"", more=False)
        call.end()


def _consistent(stage: Stage, said: list[bytes]) -> None:
    shelf = stage.app.shelf
    records = list(shelf._all.values())
    assert shelf.total == sum(record.size for record in records) == sum(shelf._held.values())
    assert len(shelf) <= shelf.bounds.answers
    assert shelf.total <= shelf.bounds.total + idempotency_records.WINDOW
    assert all(record.found for record in records)
    over = [record for known in shelf._over.values() for record in known.values()]
    assert {id(record) for record in over} == {id(record) for record in records if record.over}
    assert all(record._readers or record._timer or record.cut for record in records), "each has an end"
