"""What an Idempotency-Key may look like, and which requests have none."""

from __future__ import annotations

import pytest

from .asgi import Client, Stage, driven, settled


@pytest.mark.parametrize(
    "key",
    [b"", b" ", b'"', b'""', b'"a', b'a b"', b"a b", b"\xc3\xa9", b"a\tb", b"x" * 256, b'"\\n"', b'"' + b"x" * 255],
)
def test_malformed_keys(key: bytes):
    async def work() -> None:
        stage = Stage()
        refused = await stage.ask(key)
        assert refused.status == 400, key
        assert refused.error["code"] == "invalid_idempotency_key"
        assert refused.task.done() and not stage.source.calls

    driven(work)


def test_a_key_twice_and_a_key_of_a_socket():
    async def work() -> None:
        stage = Stage()
        twice = Client(stage.app, (b"idempotency-key", b"a"), (b"idempotency-key", b"a"))
        socket = Client(stage.app, (b"idempotency-key", b"a"), kind="websocket")
        await settled()
        assert (twice.status, twice.error["code"]) == (400, "invalid_header")
        assert socket.failure is not None and socket.failure.status == 400
        assert not stage.source.calls

    driven(work)


def test_quotes_are_no_part_of_a_key():
    """The draft writes keys as strings of structured fields, clients mostly without quotes."""

    async def work() -> None:
        stage = Stage()
        await stage.answered(b"8e03978e-40d5")
        assert (await stage.ask(b'"8e03978e-40d5"')).replayed
        await stage.answered(rb'"a\"b\\c"')
        assert (await stage.ask(rb'a"b\c')).replayed

    driven(work)


def test_what_has_no_key_or_needs_none_passes():
    async def work() -> None:
        stage = Stage()
        plain = [Client(stage.app), Client(stage.app)]
        read = [Client(stage.app, (b"idempotency-key", b"k"), method="GET") for _ in range(2)]
        await settled()
        assert len(stage.source.calls) == 4
        assert "ramet.unfinished" not in stage.source.calls[0].scope
        for each in (*plain, *read):
            each.leave()
        await settled()
        assert all(call.gone for call in stage.source.calls)

    driven(work)


def test_a_client_that_leaves_in_its_body_begins_nothing():
    async def work() -> None:
        stage = Stage()
        client = Client(stage.app, (b"idempotency-key", b"k"))
        client._body.clear()
        client.leave()
        await settled()
        assert client.task.done() and not client.sent and not stage.source.calls

    driven(work)
