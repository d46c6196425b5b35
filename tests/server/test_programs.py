"""Programs over HTTP: whole over POST, op by op over a WebSocket, offline: the same tokens, the same bits."""

from __future__ import annotations

import contextlib
import json
import math
import queue
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from ramet.frontend import ir
from ramet.frontend.replay import Recorder, Recording
from ramet.runtime.server import program_body

from ..examples.test_examples_engine import RUNS
from .serving import Served, serving

pytestmark = pytest.mark.model
WAIT = 60.0
LIVE = {"seconds", "queued_seconds", "first_token_seconds", "memory_seconds", "first_step", "last_step", "steps"}
LIVE |= {"cached_tokens", "computed_tokens", "recomputed_tokens", "retractions"}
HEADER = {"seed": 7, "name": "test"}
OPS: list[dict[str, Any]] = [
    {"type": "text", "id": "0.0", "seq": "0", "parts": ["Once upon a time there was a river"]},
    {"type": "fork", "id": "0.1", "seq": "0", "into": ["0.1.b0", "0.1.b1"]},
    {"type": "gen", "id": "0.1.b0.0", "seq": "0.1.b0", "var": "a", "sampling": {"max_tokens": 6, "logprobs": 2}},
    {"type": "select", "id": "0.1.b1.0", "seq": "0.1.b1", "var": "b", "choices": [" yes", " no", " perhaps not"]},
    {"type": "text", "id": "0.1.b1.1", "seq": "0.1.b1", "parts": [". ", {"type": "ref", "op": "0.1.b0.0"}]},
    {"type": "gen", "id": "0.1.b1.2", "seq": "0.1.b1", "var": "c", "sampling": {"max_tokens": 4}},
]
GEN: dict[str, Any] = {"type": "gen", "id": "0.1", "seq": "0", "var": "x", "sampling": {"max_tokens": 4}}
START: dict[str, Any] = OPS[0]
ENDLESS = {**GEN, "sampling": {"max_tokens": 900, "ignore_eos": True}}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(engine={"kv_tokens": 8192}) as server:
        yield server


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=WAIT) as client:
        yield client


def socket(served: Served, **headers: str) -> ClientConnection:
    url = "ws" + served.url.removeprefix("http") + "/v1/programs"
    return connect(url, additional_headers=headers, open_timeout=WAIT)


def post(http: httpx.Client, ops: list[Any], **fields: Any) -> httpx.Response:
    return http.post("/v1/programs", json={"version": 1, "header": HEADER, "ops": ops, "stream": False, **fields})


def told(events: list[Any]) -> list[Any]:
    """What events say of the result: without times, steps and what the cache had; one sequence after the other."""
    kept = [event for event in map(stripped, events) if event["type"] in ("finished", "joined", "failed", "ended")]
    return sorted(kept, key=lambda event: event.get("op", "~"))


def stripped(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: stripped(part) for name, part in value.items() if name not in LIVE}
    return [stripped(part) for part in value] if isinstance(value, list | tuple) else value


def sse(text: str) -> list[tuple[str, Any]]:
    """The events of a stream, each of exactly two lines."""
    found = []
    for block in text.strip().split("\n\n"):
        if not block.startswith(":"):
            name, data = block.split("\n")
            found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def clean(served: Served) -> None:
    """Nothing runs, nothing is held."""
    figures = httpx.get(served.url + "/server_info").json()
    while figures["programs"] or served.service.running:
        figures = httpx.get(served.url + "/server_info").json()
    assert figures["kv"]["used"] == 0


# -- whole


def test_events_as_they_come(http: httpx.Client) -> None:
    streamed = sse(http.post("/v1/programs", json={"header": HEADER, "ops": OPS}).text)
    names = [name for name, _ in streamed]
    assert all(event["type"] == name for name, event in streamed)
    assert names[-1] == "ended" and names.count("ended") == 1
    assert {"started", "token", "finished", "forked"} <= set(names)
    texts = "".join(event["text"] for name, event in streamed if name == "token" and event["var"] == "a")
    assert texts == next(e["value"] for n, e in streamed if n == "finished" and e["var"] == "a")
    whole = post(http, OPS).json()
    assert whole["version"] == 1
    assert told(whole["events"]) == told([event for _, event in streamed])


@pytest.mark.parametrize("packed", [False, True])
def test_op_by_op_is_the_same(served: Served, http: httpx.Client, packed: bool) -> None:
    coder: Any = msgspec.msgpack if packed else msgspec.json
    with socket(served) as line:
        for _ in range(2):  # the second program on the same socket
            events = []
            for message in [{"version": 1, "header": HEADER}, *({"ops": [op]} for op in OPS), {"end": True}]:
                line.send(coder.encode(message), text=not packed)
            while not events or events[-1]["type"] != "ended":
                events.append(coder.decode(line.recv(WAIT)))
            assert told(json.loads(json.dumps(events))) == told(post(http, OPS).json()["events"])


@pytest.mark.parametrize("name", RUNS)
def test_examples_are_what_they_are_offline(served: Served, http: httpx.Client, name: str) -> None:
    recorder = Recorder(served.offline())
    RUNS[name](recorder).result(WAIT)
    recording: Recording = recorder.programs[0]
    offline = [msgspec.to_builtins(event) for event in recording.finished]
    # a race that stops its losers is sent as if nobody had been stopped: whoever finished then finishes now
    ops = [msgspec.to_builtins(op) for op in recording.ops if not (isinstance(op, ir.Close) and op.now)]
    header = msgspec.to_builtins(recording.header)
    answer = post(http, ops, header=header)
    assert answer.status_code == 200, answer.text
    known = {event["op"] for event in offline}
    online = [event for event in answer.json()["events"] if event["type"] == "finished" and event["op"] in known]
    assert told(json.loads(json.dumps(offline))) == told(online)


# -- refused


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"ops": [START, {"type": "gem", "id": "0.1", "seq": "0"}]}, "ops[1].type", "did you mean 'gen'"),
        ({"ops": [START, {**GEN, "temprature": 1}]}, "ops[1].temprature", "not known"),
        ({"ops": [START, {**GEN, "sampling": {"temprature": 1}}]}, "ops[1].sampling", "temprature"),
        ({"ops": [START, {**GEN, "sampling": {"temperature": -1}}]}, "ops[1].sampling", "temperature=-1"),
        ({"ops": [{**START, "parts": [{"type": "ref", "op": "0.9", "x": 1}]}]}, "ops[0].parts[0].x", "not known"),
        ({"ops": [{**START, "parts": 5}]}, "ops[0].parts", "array"),
        ({"ops": [START, {**GEN, "id": 5}]}, "ops[1].id", "str"),
        ({"ops": [START, {**GEN, "jump": "far"}]}, "ops[1].jump", "far"),
        ({"ops": [START, {**GEN, "constraint": {"type": "regx", "pattern": "a"}}]}, "ops[1].constraint", "regx"),
        ({"ops": [START, {**GEN, "constraint": {"type": "regex", "patern": "a"}}]}, "ops[1].constraint", "patern"),
        ({"ops": [START, {**GEN, "constraint": {"type": "regex", "pattern": "("}}]}, "ops[1]", "regex"),
        ({"ops": [START, {**GEN, "id": "0.0"}]}, "ops[1]", "exists already"),
        ({"ops": [{**START, "seq": "9"}]}, "ops[0]", "no such sequence"),
        ({"ops": [GEN]}, "ops[0]", "empty prompt"),
        ({"ops": ["text"]}, "ops[0]", "an object"),
        ({"ops": 5}, "ops", "list"),
        ({"version": 2}, "version", "version 1"),
        ({"header": {"sead": 1}}, "header.sead", "did you mean `seed`"),
        ({"header": {"seed": 1 << 70}}, "header", ""),
        ({"timeout": -1}, "timeout", "positive"),
        ({"timeout": 1e9}, "timeout", "at most"),
        ({"limits": {"opps": 1}}, "limits.opps", "did you mean `ops`"),
        ({"limits": {"ops": 10**9}}, "limits.ops", "at most 10000"),
        ({"limits": {"ops": 1}}, "limits.ops", "2 operations: at most 1"),
        ({"limits": {"tokens": 3}}, "limits.tokens", "4 tokens"),
    ],
)
def test_what_is_refused(http: httpx.Client, change: dict[str, Any], param: str, message: str) -> None:
    answer = post(http, **{"ops": [START, GEN], **change})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"].startswith(param), error
    assert message in error["message"]


def test_limits_name_themselves(http: httpx.Client) -> None:
    fork = {"type": "fork", "id": "0.1", "seq": "0", "into": [f"0.1.b{i}" for i in range(4)]}
    inner = {"type": "fork", "id": "0.1.b0.0", "seq": "0.1.b0", "into": ["0.1.b0.0.b0"]}
    many = {"type": "select", "id": "0.1", "seq": "0", "var": "x", "choices": [f" {i}" for i in range(5)]}
    unbounded = {**GEN, "sampling": {}}
    held = {**GEN, "constraint": {"type": "regex", "pattern": "a" * 100}}
    for ops, limit, value in [
        ([START, fork], {"sequences": 4}, "5 sequences: at most 4"),
        ([START, fork, inner], {"depth": 1}, "2 forks inside each other"),
        ([START, many], {"choices": 4}, "5 choices"),
        ([START, unbounded], {"tokens": 1000}, "1024 tokens"),
        ([START, held], {"constraints": 100}, "bytes of constraints and tools: at most 100"),
    ]:
        error = post(http, ops, limits=limit).json()["error"]
        assert value in error["message"]
        assert error["code"] == "program_limit_exceeded"
        assert error["param"] == f"limits.{next(iter(limit))}"


def test_a_deadline_ends_a_program(served: Served, http: httpx.Client) -> None:
    answer = post(http, [START, ENDLESS], timeout=0.02)
    assert answer.status_code == 504
    streamed = sse(http.post("/v1/programs", json={"ops": [START, {**ENDLESS}], "timeout": 0.5}).text)
    assert streamed[-1][0] in ("ended", "error")  # on a fast machine 900 tokens may come within half a second
    clean(served)


# -- live


def converse(line: ClientConnection, *messages: Any) -> list[dict[str, Any]]:
    """Send messages, and read until the program has ended or the socket is closed."""
    for message in messages:
        line.send(json.dumps(message))
    events: list[dict[str, Any]] = []
    try:
        while not events or events[-1]["type"] not in ("ended", "error"):
            events.append(json.loads(line.recv(WAIT)))
    except ConnectionClosed:
        pass
    return events


def to_the_end(line: ClientConnection) -> tuple[dict[str, Any], int]:
    """The last message, and the code with which the server closed the socket."""
    last: dict[str, Any] = {}
    with contextlib.suppress(ConnectionClosed):
        while True:
            raw = line.recv(WAIT)
            last = msgspec.msgpack.decode(raw) if isinstance(raw, bytes) else json.loads(raw)
    return last, line.close_code or 0


OPEN = {"version": 1, "header": HEADER}


def test_put_and_cancel(served: Served) -> None:
    put = {"type": "put", "id": "0.1", "seq": "0", "var": "t", "value": " and a stone"}
    text = {"type": "text", "id": "0.2", "seq": "0", "parts": [{"type": "ref", "op": "0.1"}]}
    with socket(served) as line:
        events = converse(line, {**OPEN, "ops": [START, put, text, {**GEN, "id": "0.3"}], "end": True})
        assert [e["type"] for e in events if e["type"] != "token"] == ["started", "finished", "ended"]
        line.send(json.dumps({**OPEN, "ops": [START, ENDLESS]}))
        while json.loads(line.recv(WAIT))["type"] != "token":
            pass
        events = converse(line, {"cancel": True})
        assert events[-1]["kind"] == "aborted"
        assert converse(line, {"cancel": True}, {**OPEN, "ops": [START, GEN], "end": True})[-1].get("kind", "") == ""
    clean(served)


def test_an_operation_that_is_refused_fails_alone_with_what_depends_on_it(served: Served) -> None:
    fork = {"type": "fork", "id": "0.1", "seq": "0", "into": ["0.1.b0", "0.1.b1"]}
    bad = {"type": "role", "id": "0.1.b0.0", "seq": "0.1.b0", "role": "wizard", "edge": "begin"}
    after = {**GEN, "id": "0.1.b0.1", "seq": "0.1.b0"}
    fine = {**GEN, "id": "0.1.b1.0", "seq": "0.1.b1"}
    refers = {"type": "text", "id": "0.1.b1.1", "seq": "0.1.b1", "parts": [{"type": "ref", "op": "0.1.b0.1"}]}
    with socket(served) as line:
        events = converse(line, {**OPEN, "ops": [START, fork, bad, after, fine, refers], "end": True})
    failed = {e["op"]: (e["kind"], e["message"]) for e in events if e["type"] == "failed"}
    assert set(failed) == {"0.1.b0.0", "0.1.b0.1", "0.1.b1.1"}
    assert failed["0.1.b0.0"][0] == "constraint" and "wizard" in failed["0.1.b0.0"][1]
    assert [e["op"] for e in events if e["type"] == "finished"] == ["0.1.b1.0"]
    assert events[-1]["type"] == "ended"
    clean(served)


@pytest.mark.parametrize(
    ("messages", "code", "message"),
    [
        (["{"], 4400, "JSON"),
        (["[]"], 4400, "object"),
        (['{"version": 2}'], 4400, "version 1"),
        (['{"hello": 1}'], 4400, "`hello` is not known"),
        (['{"ops": []}'], 4400, "version"),
        ([json.dumps(OPEN), json.dumps(OPEN)], 4400, "under way"),
        ([json.dumps(OPEN), '{"ops": [{"type": "nothing"}]}'], 4400, "no kind of operation"),
        ([json.dumps(OPEN), '{"end": 5}'], 4400, "true or false"),
        ([json.dumps({**OPEN, "limits": {"ops": 1}}), json.dumps({"ops": [START, GEN]})], 4400, "at most 1"),
        (["[" * 100_000], 4400, "deep"),
        ([b"\xc1"], 4400, "msgpack"),
        ([json.dumps({**OPEN, "timeout": 0.05, "ops": [START, ENDLESS]})], 4504, "deadline"),
    ],
)
def test_what_closes_the_socket(served: Served, messages: list[str | bytes], code: int, message: str) -> None:
    with socket(served) as line:
        for each in messages:
            line.send(each)
        last, closed = to_the_end(line)
    assert closed == code
    assert (last["type"], last["status"]) == ("error", code - 4000)
    assert message in last["error"]["message"]
    clean(served)


def test_a_client_that_vanishes_ends_its_program(served: Served) -> None:
    with socket(served) as line:
        line.send(json.dumps({**OPEN, "ops": [START, ENDLESS]}))
        while json.loads(line.recv(WAIT))["type"] != "token":
            pass
        line.socket.close()
    clean(served)
    with httpx.stream("POST", served.url + "/v1/programs", json={"ops": [START, ENDLESS]}) as answer:
        next(answer.iter_bytes())
    clean(served)


def test_each_program_of_a_socket_is_a_request(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    noted: queue.Queue[tuple[str, float]] = queue.Queue()
    note = served.service.accounts.note

    def heard(name: str, value: float) -> None:
        note(name, value)
        if name in ("request_ok", "request_failed", "aborted"):
            noted.put((name, value))

    monkeypatch.setattr(served.service.accounts, "note", heard)
    with socket(served) as line:
        for _ in range(2):
            converse(line, {**OPEN, "ops": [START, GEN], "end": True})
            assert noted.get(timeout=WAIT) == ("request_ok", 1.0)
        line.send(json.dumps({**OPEN, "timeout": 0.05, "ops": [START, ENDLESS]}))
        assert noted.get(timeout=WAIT) == ("request_failed", 504.0)
    with socket(served) as line:
        line.send(json.dumps({**OPEN, "ops": [START, ENDLESS]}))
        while json.loads(line.recv(WAIT))["type"] != "token":
            pass
        line.socket.close()
    assert noted.get(timeout=WAIT) == ("aborted", 1.0)
    clean(served)


def test_a_large_message_is_refused(served: Served) -> None:
    with socket(served) as line:
        with contextlib.suppress(ConnectionClosed):  # it may be hung up on while it still sends
            line.send(json.dumps({**OPEN, "ops": [{**START, "parts": ["x" * (5 << 20)]}]}))
        assert to_the_end(line)[1] in (1006, 1009, 4413)  # 1006: the reset overtook the closing frame


def test_keys_namespaces_and_a_full_queue() -> None:
    with serving(api_key=("one", "two"), max_running_requests=1, max_queue=0) as guarded:
        with pytest.raises(InvalidStatus) as refused, socket(guarded):
            pass
        assert refused.value.response.status_code in (401, 403)
        assert httpx.post(guarded.url + "/v1/programs", json={"ops": OPS}).status_code == 401
        with socket(guarded, Authorization="Bearer one") as line:
            line.send(json.dumps({**OPEN, "ops": [START, ENDLESS]}))
            while json.loads(line.recv(WAIT))["type"] != "token":
                pass
            with socket(guarded, Authorization="Bearer two") as other:
                events = converse(other, OPEN)
                assert (events[-1]["type"], events[-1]["status"]) == ("error", 429)
                assert events[-1]["retry_after"] >= 1
            aborted = httpx.post(
                guarded.url + "/abort_request", json={"abort_all": True}, headers={"Authorization": "Bearer one"}
            )
            assert aborted.status_code == 200
            events = converse(line)
            assert (events[-1]["type"], events[-1]["status"]) == ("error", 499)


def test_the_engine_dies_under_a_program() -> None:
    with serving(in_process=False) as server:
        with socket(server) as line:
            line.send(json.dumps({**OPEN, "ops": [START, ENDLESS]}))
            while json.loads(line.recv(WAIT))["type"] != "token":
                pass
            server.client.kill()
            events = converse(line)
        assert events[-1]["type"] == "ended" and events[-1]["kind"] == "transport"
        failed = next(event for event in events if event["type"] == "failed")
        assert failed["op"] == "0.1" and failed["retryable"]


def test_numbers_that_json_does_not_have() -> None:
    logprobs = (ir.Logprob(1, "a", math.nan), ir.Logprob(2, "b", -math.inf, ((3, "c", -math.inf),)))
    event = ir.Finished(op="0.1", seq="0", value="", meta=ir.Meta(logprobs=logprobs, scores=(-math.inf, -0.5)))
    meta = json.loads(program_body.json_of(event))["meta"]
    assert meta["logprobs"] == [[1, "a", None, []], [2, "b", -9999.0, [[3, "c", -9999.0]]]]
    assert meta["scores"] == [-9999.0, -0.5]


def test_scores_of_the_prompt_itself(served: Served, http: httpx.Client) -> None:
    """Its first token follows nothing: null in JSON, nan in msgpack."""
    ops = [START, {"type": "score", "id": "0.1", "seq": "0", "var": "s", "start": 0, "top": 1}]
    (event,) = [event for event in post(http, ops).json()["events"] if event["type"] == "finished"]
    numbers = [entry[2] for entry in event["meta"]["logprobs"]]
    assert numbers[0] is None
    with socket(served) as line:
        line.send(msgspec.msgpack.encode({**OPEN, "ops": ops, "end": True}))
        events = [msgspec.msgpack.decode(line.recv(WAIT))]
        while events[-1]["type"] != "ended":
            events.append(msgspec.msgpack.decode(line.recv(WAIT)))
    (packed,) = [event for event in events if event["type"] == "finished"]
    assert math.isnan(packed["meta"]["logprobs"][0][2])
    assert [entry[2] for entry in packed["meta"]["logprobs"][1:]] == numbers[1:]
    assert all(number < 0 for number in numbers[1:])


def test_ids_of_the_vocabulary(http: httpx.Client) -> None:
    tokens = {"type": "tokens", "id": "0.0", "seq": "0", "ids": [5, 6, 7]}
    assert post(http, [tokens, GEN]).status_code == 200
    answer = post(http, [{**tokens, "ids": [5, 10**8]}, GEN])
    assert answer.json()["error"]["param"] == "ops[0]"
