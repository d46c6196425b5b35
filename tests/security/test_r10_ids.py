"""R10: a client's id is a label, found exactly and inside its own namespace; what is under way elsewhere is safe."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from typing import Any

import httpx
import pytest

from ramet.frontend import ir
from ramet.runtime import client as client_module
from ramet.runtime import messages as m
from ramet.runtime.client import ClientSession, EngineClient
from ramet.runtime.server import failures
from ramet.runtime.server.call import Caller
from ramet.runtime.server.service import Service

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


def only_the_owner(served: Served, rid: str = "job-1") -> None:
    """The check: an abort ends what has exactly this id in the same namespace, and nothing else."""
    with client(served, "alice") as alice, client(served, "bob") as bob, running(alice, rid) as lines:
        for other in (rid, "job", "JOB-1"):
            assert aborted(bob, rid=other) == 0
        assert aborted(bob, abort_all=True) == 0
        for other in ("job", "job-", "job-10", "JOB-1", "job-1 ", "%", "*", "job-.", "ob-1", "job-1\0"):
            assert aborted(alice, rid=other) == 0, other
        assert aborted(alice, rid=rid) == 1  # the control: it was there all the time
        assert "abort" in json.dumps(ended(lines))


def test_only_the_owner_of_an_id_ends_it(served: Served):
    only_the_owner(served)


Match = Callable[[str, str], bool]


def aborting(match: Match, *, anywhere: bool = False) -> Callable[[Service, str, Caller], int]:
    """`Service.abort` with another idea of which ids are equal, or of whose they are."""

    def abort(self: Service, label: str, caller: Caller) -> int:
        chosen = [
            run
            for (namespace, name), runs in self._runs.items()
            if (anywhere or namespace == caller.namespace) and (label == "" or match(label, name))
            for run in runs
        ]
        for run in chosen:
            run.fail(failures.of_event("aborted", "the request was aborted"))
        return len(chosen)

    return abort


MUTATIONS = {
    "a prefix": aborting(lambda label, name: name.startswith(label)),
    "a longer one": aborting(lambda label, name: label.startswith(name)),
    "a part": aborting(lambda label, name: label in name),
    "any case": aborting(lambda label, name: label.lower() == name.lower()),
    "a pattern": aborting(lambda label, name: fnmatch(name, label)),
    "an expression": aborting(lambda label, name: re.fullmatch(re.sub(r"^[*%]", ".", label), name) is not None),
    "without spaces": aborting(lambda label, name: label.strip() == name),
    "anybody's": aborting(lambda label, name: label == name, anywhere=True),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_another_idea_of_equal_ids_is_seen(served: Served, monkeypatch: pytest.MonkeyPatch, mutation: str):
    monkeypatch.setattr(Service, "abort", MUTATIONS[mutation])
    with pytest.raises(AssertionError):
        only_the_owner(served)


# -- the engine's own ids


def made_here(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check: programs have ids of 128 random bits, whatever their clients call them."""
    opened: list[str] = []

    def send(self: EngineClient, order: m.Order) -> None:
        if isinstance(order, m.OrderOpen):
            opened.append(order.program)

    monkeypatch.setattr(EngineClient, "send", send)
    for name in ("", "0" * 32, "f" * 32, "job-1") * 16:
        session = served.client.open(ir.Header(name=name), lambda event: None)
        served.client._sessions.pop(session.id, None)
    assert len(opened) == 64 and all(re.fullmatch("[0-9a-f]{32}", each) for each in opened)
    numbers = [int(each, 16) for each in opened]
    ever, always = 0, (1 << 128) - 1
    for number in numbers:
        ever, always = ever | number, always & number
    assert len(set(numbers)) == 64 and (ever, always) == ((1 << 128) - 1, 0), "a bit of them never changes"


def test_ids_are_made_here(served: Served, monkeypatch: pytest.MonkeyPatch):
    made_here(served, monkeypatch)
    with client(served, "alice") as http:  # and there is no field to name one
        for name in ("id", "program", "request_id", "program_id"):
            body = {"version": 1, "header": {name: "f" * 32}, "ops": [], "stream": False}
            assert http.post("/v1/programs", json=body).status_code == 400


COUNTER = itertools.count()


def by_the_client(self: ClientSession, made: EngineClient, header: ir.Header, deliver: Any) -> None:
    SESSION(self, made, header, deliver)
    self.id = self.translator._program = header.name


SESSION = ClientSession.__init__
IDS: dict[str, tuple[Any, str, Any]] = {
    "counted": (client_module.secrets, "token_hex", lambda count: f"{next(COUNTER):032x}"),
    "64 bits": (client_module.secrets, "token_hex", lambda count: f"{random.getrandbits(64):032x}"),
    "short": (client_module.secrets, "token_hex", lambda count: f"{random.getrandbits(32):08x}"),
    "all the same": (client_module.secrets, "token_hex", lambda count: "ab" * count),
    "the client's": (ClientSession, "__init__", by_the_client),
}


@pytest.mark.parametrize("mutation", IDS)
def test_other_ids_are_seen(served: Served, monkeypatch: pytest.MonkeyPatch, mutation: str):
    monkeypatch.setattr(*IDS[mutation])
    with pytest.raises(AssertionError):
        made_here(served, monkeypatch)


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
