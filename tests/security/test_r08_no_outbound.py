"""R8: the server connects to nobody and opens no path that a client names. Audit hooks in all of its processes watch
while every route is asked, streaming too, as user and as admin, and while programs and plans run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

import ramet as rt

from ..server.serving import WAIT
from .watched import NAMED, SEEDED, Watched, suspicious, watching

pytestmark = pytest.mark.model
SHORT: dict[str, dict[str, Any]] = {  # how each protocol says that an answer is to be short
    "/generate": {"sampling_params": {"max_new_tokens": 1}},
    "/v1/responses": {"max_output_tokens": 1},
    "/api/": {"options": {"num_predict": 1}},
    "/v1/": {"max_tokens": 1},
}
MODEL = "random:tiny"
ADMIN = {"x-api-key": "boss"}


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    keys = ("--api-key", "user", "--admin-key", "boss", "--dashboard")
    with watching(tmp_path_factory.mktemp("watched"), *keys) as made:
        yield made


@pytest.fixture
def http(watched: Watched) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=watched.url, timeout=WAIT, headers=ADMIN) as made:
        yield made


def strings(watched: Watched) -> tuple[str, ...]:
    """What a client may hope that somebody follows."""
    path = watched.named_path
    return (watched.named_url, path, f"file://{path}", f"{{% include '{path}' %}}", f"data:text/plain,{NAMED}")


def bodies(watched: Watched) -> Iterator[dict[str, Any]]:
    """Bodies that every protocol reads its own part of, with a URL or a path wherever somebody might follow one."""
    found = strings(watched)
    for i in range(13):
        text = found[i % len(found)]
        schema = {"$ref": text}
        contents: list[Any] = [
            text,
            [{"type": "image_url", "image_url": {"url": text}}, {"type": "text", "text": text}],
            [{"type": "image", "source": {"type": "url", "url": text}}],
            [{"type": "input_file", "file_url": text}],
            [{"type": "document", "source": {"type": "file", "file_id": text}}],
            [{"type": "input_audio", "input_audio": {"data": text, "format": "wav"}}],
        ]
        extras: list[dict[str, Any]] = [
            {"chat_template": text, "chat_template_kwargs": {"template": text}},
            {"lora_path": text, "model_path": text, "adapters": [text]},
            {"images": [text], "image_data": text, "video_data": [text]},
            {"sampling_params": {"json_schema": json.dumps(schema)}, "guided_grammar": text},
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}},
            {"name": text, "path": text, "from": text, "url": text, "user": text, "cache_salt": text},
            {"tools": [{"type": "function", "function": {"name": "x", "parameters": schema}}]},
        ]
        messages = [{"role": "user", "content": contents[i] if i < 6 else "x"}]
        texts = {"messages": messages, "input": messages, "prompt": text, "text": text, "stream": False}
        yield {**texts, **(extras[i - 6] if i >= 6 else {})}


def shortened(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The body, for few tokens."""
    limit = next((limit for start, limit in SHORT.items() if path.startswith(start)), {})
    return {
        **body,
        **{
            name: {**value, **body.get(name, {})} if isinstance(value, dict) else value for name, value in limit.items()
        },
    }


def begun(http: httpx.Client, method: str, path: str, watched: Watched) -> int:
    """The status of an answer without a body of ours, and its first bytes: the dashboard's stream has no end."""
    with http.stream(method, path, params={"url": watched.named_url}) as answer:
        next(answer.iter_raw(), b"")
        return answer.status_code


def every_route(http: httpx.Client, watched: Watched) -> Counter[tuple[str, int]]:
    """Ask every operation of the application; how often each was answered with each status."""
    statuses: Counter[tuple[str, int]] = Counter()
    paths = http.get("/openapi.json").json()["paths"]
    assert len(paths) > 30
    for path, methods in paths.items():
        real = path.replace("{name}", NAMED).replace("{", "").replace("}", "")
        for method in methods:
            if method != "post":
                statuses[path, begun(http, method, real, watched)] += 1
                continue
            for n, body in enumerate(bodies(watched)):
                for stream in (False, True) if n in (0, 1, 9) else (False,):
                    answer = http.post(
                        real, json={**shortened(path, body), "stream": stream}, params={"path": watched.named_path}
                    )
                    statuses[path, answer.status_code] += 1
    for page in ("/docs", "/openapi.json", "/dashboard"):
        statuses[page, http.get(page, params={"url": watched.named_url}).status_code] += 1
    return statuses


@rt.function(temperature=0)
def told(s: rt.State, text: str) -> str:
    """A call and a decision."""
    s.user(f"Look at {text}")
    good = s.reply(bool, name="good")
    s.user("Why?" if good.get() else "Why not?")
    return s.reply(name="why", max_tokens=2).get()


def ops(text: str) -> list[dict[str, Any]]:
    return [
        {"type": "text", "id": "0.0", "seq": "0", "parts": [text]},
        {"type": "gen", "id": "0.1", "seq": "0", "var": text[:20], "sampling": {"max_tokens": 1}},
    ]


def programs(http: httpx.Client, watched: Watched) -> None:
    """Programs, plans and a WebSocket."""
    plan = json.loads(told.compile().dumps())
    for text in strings(watched):
        header = {"name": text, "namespace": text}
        for body in ({"ops": ops(text)}, {"plan": plan, "args": {"text": text}}):
            for stream in (False, True):
                answer = http.post("/v1/programs", json={"version": 1, "header": header, "stream": stream, **body})
                assert answer.status_code == 200, answer.text
    with connect(f"ws{watched.url[4:]}/v1/programs", additional_headers=ADMIN) as line:
        line.send(json.dumps({"version": 1, "header": {"name": NAMED}, "ops": ops(watched.named_path), "end": True}))
        while json.loads(line.recv(WAIT))["type"] not in ("ended", "error"):
            continue


def test_no_connection_and_no_file_of_a_client_s_choice(watched: Watched, http: httpx.Client):
    regex = {"text": "x", "sampling_params": {"max_new_tokens": 4, "regex": "a"}}
    assert http.post("/generate", json=regex).status_code == 200  # what compiles, and what follows, is there now
    watched.forget()
    statuses = every_route(http, watched)
    programs(http, watched)
    assert suspicious(watched) == []
    answered = Counter(status for _, status in statuses.elements())
    assert answered[200] > 100 and answered[400] > 30 and not [s for s in answered if s >= 500 and s != 503], answered
    assert len({path for path, status in statuses if status == 200}) > 25, "few routes were really run"


ACTIONS = {
    "connects": "socket.connect",
    "resolves": "socket.getaddrinfo",
    "sends": "socket.sendto",
    "listens": "socket.bind",
    "opens": "open",
    "lists": "os.listdir",
    "makes": "os.mkdir",
    "removes": "os.remove",
    "database": "sqlite3.connect",
    "runs": "subprocess.Popen",
    "child": "subprocess.Popen",
    "library": "ctypes.dlopen",
    "module": "import",
    "code": "compile",
}


@pytest.mark.parametrize("place", ["server", "engine"])
@pytest.mark.parametrize("action", ACTIONS)
def test_a_seeded_fault_is_seen(watched: Watched, http: httpx.Client, action: str, place: str):
    watched.forget()
    if place == "server":
        path, body = "/generate", shortened("/generate", {"text": f"at-server {SEEDED}{action}."})
    else:  # a program's name is a text that the engine is told
        path, body = "/v1/programs", {"version": 1, "header": {"name": f"{SEEDED}{action}.1"}, "ops": ops("x")}
    assert http.post(path, json=body).status_code == 200
    found = suspicious(watched)
    assert (place, ACTIONS[action]) in [(role, event) for role, event, _ in found]
    if action == "connects":  # native code would be seen too, by whom it reached
        assert ("somebody", "connected", [1]) in found
