"""R10: a client's id is a label, found exactly and inside its own namespace; what is under way elsewhere is safe."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from ..server.serving import WAIT, Served, serving

pytestmark = pytest.mark.model
LONG: dict[str, Any] = {"max_new_tokens": 900, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(api_key=("alice", "bob")) as made:
        yield made


def client(served: Served, key: str) -> httpx.Client:
    return httpx.Client(base_url=served.url, headers={"x-api-key": key}, timeout=WAIT)


@contextmanager
def running(http: httpx.Client, rid: str) -> Iterator[Iterator[str]]:
    """A long request that has begun; its lines."""
    with http.stream(
        "POST", "/generate", json={"text": "go", "rid": rid, "stream": True, "sampling_params": LONG}
    ) as answer:
        lines = answer.iter_lines()
        next(lines)
        yield lines


def aborted(http: httpx.Client, **body: Any) -> int:
    answer = http.post("/abort_request", json=body)
    assert answer.status_code == 200
    return int(answer.json()["aborted"])


def ended(lines: Iterator[str]) -> dict[str, Any]:
    """The last event."""
    last: dict[str, Any] = json.loads([line for line in lines if line.startswith("data: {")][-1][6:])
    return last


def test_only_the_owner_of_an_id_ends_it(served: Served):
    with client(served, "alice") as alice, client(served, "bob") as bob, running(alice, "job-1") as lines:
        for rid in ("job-1", "job", "JOB-1"):
            assert aborted(bob, rid=rid) == 0
        assert aborted(bob, abort_all=True) == 0
        for rid in ("job", "job-", "job-10", "JOB-1", "job-1 ", "%", "*", "job-."):
            assert aborted(alice, rid=rid) == 0
        assert aborted(alice, rid="job-1") == 1  # the control: it was there all the time
        assert "abort" in json.dumps(ended(lines))


def test_an_empty_id_ends_nothing(served: Served):
    with client(served, "alice") as alice, running(alice, "job-2"):
        assert alice.post("/abort_request", json={"rid": ""}).status_code == 400
        assert alice.post("/abort_requests", json={"request_ids": [""]}).json()["aborted"] == 0
        assert aborted(alice, abort_all=True) == 1


def test_the_same_id_in_two_namespaces(served: Served):
    with (
        client(served, "alice") as alice,
        client(served, "bob") as bob,
        running(alice, "same"),
        running(bob, "same") as lines,
    ):
        assert aborted(alice, rid="same") == 1
        assert aborted(bob, rid="same") == 1
        assert "abort" in json.dumps(ended(lines))


def test_an_id_that_is_under_way_is_refused(served: Served):
    body = {"text": "go", "rid": "twice", "sampling_params": {"max_new_tokens": 1}}
    with client(served, "alice") as alice, client(served, "bob") as bob, running(alice, "twice"):
        assert alice.post("/generate", json=body).status_code == 409
        assert bob.post("/generate", json=body).status_code == 200
        aborted(alice, rid="twice")


def test_ids_in_headers_are_escaped(served: Served):
    with client(served, "alice") as alice:
        answer = alice.post(
            "/generate",
            json={"text": "go", "rid": "a\r\nX-Evil: 1\u00e9\u4e2d", "sampling_params": {"max_new_tokens": 1}},
        )
    assert answer.status_code in (200, 400) and "x-evil" not in answer.headers
