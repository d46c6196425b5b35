"""Keys, records and their bounds, on an application that does what it is told: each check, and faults that it finds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from ramet.runtime.server import idempotency, idempotency_records
from ramet.runtime.server.idempotency_records import Record, Shelf

from .asgi import ALICE, BOB, BOUNDS, Stage, driven, later, settled

Check = Callable[[], Awaitable[None]]


# -- checks, which the faults below must fail


async def once() -> None:
    """A request again: the recorded answer, and no second call."""
    stage = Stage()
    first = await stage.answered()
    again = await stage.ask()
    assert len(stage.source.calls) == 1
    assert again.body == first.body == b"answer" and again.whole
    assert (first.replayed, again.replayed) == (False, True)
    assert again.headers[b"x-made"] == b"once"
    assert stage.source.calls[0].body == b"{}"


async def while_it_runs() -> None:
    """Whoever comes later gets everything from the first byte on, and then the same as the first."""
    stage = Stage()
    first = await stage.ask()
    call = stage.source.calls[0]
    call.start()
    call.say(b"one ")
    await settled()
    second = await stage.ask()
    assert second.body == b"one " and second.replayed
    call.say(b"two")
    await settled()
    assert first.body == second.body == b"one two" and not second.whole
    call.say(b"", more=False)
    call.end()
    await settled()
    assert first.whole and second.whole and first.task.done() and second.task.done()
    assert len(stage.source.calls) == 1


async def one_leaves() -> None:
    """The first client hangs up, the second is attached: the run goes on."""
    stage = Stage()
    first = await stage.ask()
    second = await stage.ask()
    first.leave()
    await settled()
    call = stage.source.calls[0]
    call.answer(b"late")
    await settled()
    assert first.task.done() and not call.gone
    assert second.whole and second.body == b"late"


async def all_leave() -> None:
    """Nobody is there: the run goes on, and its answer is there for who comes again."""
    stage = Stage()
    first = await stage.ask()
    first.leave()
    await settled()
    await later(9.0)
    call = stage.source.calls[0]
    assert not call.gone
    call.answer(b"late")
    await settled()
    again = await stage.ask()
    assert again.body == b"late" and len(stage.source.calls) == 1


async def nobody_comes() -> None:
    """The run of those who never come again is given up after its time."""
    stage = Stage()
    first = await stage.ask()
    first.leave()
    await settled()
    await later(10.5)
    assert stage.source.calls[0].gone and len(stage.app.shelf) == 0


async def forgotten_in_time() -> None:
    """A record lives for its time after the end, and no longer."""
    stage = Stage()
    await stage.answered()
    await later(9.0)
    assert (await stage.ask()).replayed
    await later(1.5)
    assert (len(stage.app.shelf), stage.app.shelf.total) == (0, 0)
    assert not (await stage.answered()).replayed


async def tenants() -> None:
    """The same key of another API key, or of who may control the server, is another key."""
    stage = Stage()
    mine = await stage.answered(data=b"mine")
    for who in (BOB, replace(ALICE, admin=True)):
        other = await stage.answered(data=b"other", who=who)
        assert other.body == b"other" and not other.replayed
    assert mine.body == b"mine" and len(stage.source.calls) == 3


async def another_request() -> None:
    """A key stands for one body and one path."""
    stage = Stage()
    await stage.answered()
    for options in ({"body": b"[]"}, {"path": "/v1/completions"}):
        refused = await stage.ask(**options)
        assert refused.status == 422
        assert refused.error["code"] == "idempotency_key_reused"
    running = await stage.ask(b"r")
    assert (await stage.ask(b"r", body=b"[]")).status == 422, "while it runs too"
    running.leave()


async def refusals() -> None:
    """What was refused is told to all who wait, and not kept."""
    stage = Stage()
    first, second = await stage.ask(), await stage.ask()
    stage.source.calls[0].answer(b"later", status=429)
    await settled()
    assert (first.status, second.status) == (429, 429) and len(stage.app.shelf) == 0
    assert not (await stage.answered()).replayed
    assert len(stage.source.calls) == 2


async def broken_off() -> None:
    """An answer that ends by an error in its stream is not kept; its readers have all of it."""
    stage = Stage()
    first = await stage.ask()
    call = stage.source.calls[0]
    call.start()
    call.say(b"half ")
    await settled()
    call.scope["ramet.unfinished"]()
    call.say(b"error", more=False)
    call.end()
    await settled()
    assert first.body == b"half error" and first.whole and len(stage.app.shelf) == 0
    assert not (await stage.answered()).replayed


async def dies() -> None:
    """An application that ends without an end of its answer: the connection is cut for all, and the key is free."""
    stage = Stage()
    for error in (None, RuntimeError("unforeseen")):
        first, second = await stage.ask(), await stage.ask()
        stage.source.calls[-1].start()
        stage.source.calls[-1].say(b"half")
        stage.source.calls[-1].end(error)
        await settled()
        for each in (first, second):
            assert each.task.done() and not each.whole and each.body == b"half"
        assert len(stage.app.shelf) == 0


async def number() -> None:
    """So many keys and no more: the oldest answers go; what runs is not displaced."""
    stage = Stage()
    running = [await stage.ask(b"run%d" % n) for n in range(2)]
    for n in range(6):
        await stage.answered(b"k%d" % n)
        assert len(stage.app.shelf) <= BOUNDS.answers
    assert (await stage.ask(b"k5")).replayed
    assert (await stage.answered(b"k0")).replayed is False
    more = [await stage.ask(b"more%d" % n) for n in range(2)]
    refused = await stage.ask(b"last")
    assert (refused.status, refused.headers[b"retry-after"]) == (429, b"1")
    for each in (*running, *more):
        each.leave()


async def bytes_in_all() -> None:
    """So many bytes and no more; who keeps much loses its own answers, not those of others."""
    stage = Stage(replace(BOUNDS, answers=100))
    await stage.answered(b"small", b"s" * 100, who=BOB)
    for n in range(8):
        await stage.answered(b"k%d" % n, b"x" * 900)
        assert stage.app.shelf.total <= BOUNDS.total
    assert (await stage.ask(b"small", who=BOB)).body == b"s" * 100
    assert (await stage.ask(b"k7")).replayed
    assert (await stage.answered(b"k0")).replayed is False


async def too_large() -> None:
    """An answer larger than may be kept reaches its reader whole, at the reader's pace; later ones are told."""
    stage = Stage()
    slow = await stage.ask(slow=True)
    call = stage.source.calls[0]
    call.start()
    size = 64 << 10
    for _ in range(40):
        call.say(b"z" * size)
    await settled()
    ahead = idempotency_records.WINDOW + size
    assert 0 < call.sent <= ahead and stage.app.shelf.total <= ahead, "the source waits for the reader"
    late = await stage.ask()
    assert late.status == 409
    assert late.error["code"] == "idempotency_answer_not_kept"
    slow.hurry()
    call.say(b"", more=False)
    call.end()
    for _ in range(10):
        await settled()
    assert slow.whole and slow.body == b"z" * size * 40
    assert (await stage.ask()).status == 409, "it is not run again either"
    assert (stage.app.shelf.total, len(stage.app.shelf)) == (0, 1)


async def too_large_for_nobody() -> None:
    """Nobody could ever read it from its beginning: its run is stopped."""
    stage = Stage()
    first = await stage.ask()
    first.leave()
    await settled()
    call = stage.source.calls[0]
    call.start()
    call.say(b"z" * 3000)
    await settled()
    assert call.gone and len(stage.app.shelf) == 0 and stage.app.shelf.total == 0


async def deadlines() -> None:
    """A later request's deadline ends its own wait and nothing else; the first one's is the run's business."""
    stage = Stage()
    now = asyncio.get_running_loop().time()
    first = await stage.ask(who=replace(ALICE, deadline=now + 1))
    second = await stage.ask(who=replace(ALICE, deadline=now + 1))
    await later(2.0)
    assert second.status == 504 and second.task.done()
    assert not first.task.done()
    stage.source.calls[0].answer()
    await settled()
    assert first.whole and first.status == 200


async def kept_for_no_time() -> None:
    """With 0 seconds a request still attaches to what runs; nothing is kept behind it, and hanging up ends it."""
    stage = Stage(replace(BOUNDS, seconds=0.0))
    first, second = await stage.ask(), await stage.ask()
    stage.source.calls[0].answer()
    await settled()
    assert first.body == second.body == b"answer" and len(stage.app.shelf) == 0
    third = await stage.ask()
    assert len(stage.source.calls) == 2
    third.leave()
    await settled()
    assert stage.source.calls[1].gone


CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        *(once, while_it_runs, one_leaves, all_leave, nobody_comes, forgotten_in_time, tenants, another_request),
        *(refusals, broken_off, dies, number, bytes_in_all, too_large, too_large_for_nobody, deadlines),
        kept_for_no_time,
    )
}


@pytest.mark.parametrize("name", CHECKS)
def test_the_rules(name: str):
    driven(CHECKS[name])


# -- faults that the checks must find


def _never(*_: Any, **__: Any) -> None:
    return None


def _anyones(given: list[bytes], scope: Any) -> Any:
    return "", False, given[0]


def _blind_to_admin(given: list[bytes], scope: Any) -> Any:
    return scope["ramet.caller"].namespace, False, given[0]


def _oldest_of_all(self: Shelf) -> bool:
    over = [record for records in self._over.values() for record in records.values()]
    if not over:
        return False
    self.forget(min(over, key=list(self._all.values()).index))
    return True


async def _tell_from_now(self: Record, reader: int, send: Any, **options: Any) -> None:
    self._readers[reader] = len(self._data)
    await TELL(self, reader, send, **options)


async def _tell_unmarked(self: Record, reader: int, send: Any, **options: Any) -> None:
    await TELL(self, reader, send, **{**options, "replayed": False})


async def _tell_late(self: Record, reader: int, send: Any, **options: Any) -> None:
    await TELL(self, reader, send, **{**options, "deadline": None})


async def _take_without_pause(self: Record, message: Any) -> None:
    if message["type"] == "http.response.body" and self.cut:
        self._data += message["body"]
        self._whole = not message["more_body"]
        self._shelf.grown(self, len(message["body"]))
        self._wake()
    else:
        await TAKE(self, message)


async def _take_refusals(self: Record, message: Any) -> None:
    await TAKE(self, {**message, "status": 200} if "status" in message else message)


TELL, TAKE = Record.tell, Record.take
FAULTS: dict[str, tuple[str, Any, str, Any]] = {  # the fault → the check that finds it, and what is changed where
    "records are not found": ("once", Shelf, "find", _never),
    "an attached client is not told so": ("once", Record, "tell", _tell_unmarked),
    "an attached client misses the beginning": ("while_it_runs", Record, "tell", _tell_from_now),
    "the run ends with its first client": ("one_leaves", Record, "_left", lambda self: self.stopped.set()),
    "the run ends with its last client": ("all_leave", Record, "_left", lambda self: self._after(0.0)),
    "a run without clients is never given up": ("nobody_comes", Record, "_left", _never),
    "records are kept for ever": ("forgotten_in_time", Record, "_after", _never),
    "keys are shared by all tenants": ("tenants", idempotency, "_key", _anyones),
    "keys are shared by users and admins": ("tenants", idempotency, "_key", _blind_to_admin),
    "bodies are not compared": ("another_request", idempotency, "_fingerprint", lambda scope, body: b""),
    "refusals are kept": ("refusals", Record, "take", _take_refusals),
    "broken answers are kept": ("broken_off", Record, "unfinished", _never),
    "cut answers are kept": ("dies", Shelf, "forget", _never),
    "nothing is displaced by number": ("number", Shelf, "_displace", lambda self: False),
    "nothing is displaced by size": ("bytes_in_all", Shelf, "grown", _never),
    "others lose their answers first": ("bytes_in_all", Shelf, "_displace", _oldest_of_all),
    "a source overruns its reader": ("too_large", Record, "take", _take_without_pause),
    "a large answer is kept whole": ("too_large", Record, "cut_off", _never),
    "a large answer is made for nobody": ("too_large_for_nobody", Record, "_give_up", _never),
    "an attached client waits for ever": ("deadlines", Record, "tell", _tell_late),
    "a finished record stays for no time": ("kept_for_no_time", Record, "_after", _never),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found(monkeypatch: pytest.MonkeyPatch, fault: str):
    """The positive controls: the very same checks, with one rule switched off."""
    name, owner, attribute, wrong = FAULTS[fault]
    monkeypatch.setattr(owner, attribute, wrong)
    with pytest.raises((AssertionError, IndexError, KeyError)):
        driven(CHECKS[name])


def test_every_check_has_a_fault_that_it_finds():
    assert set(CHECKS) == {name for name, *_ in FAULTS.values()}
