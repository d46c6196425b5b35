"""The dashboard over HTTP: the page, its policy, who may see what, what a frame says, and that looking is free when
nobody looks."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from ramet.runtime.client import EngineClient
from ramet.runtime.server.dashboard import feed, routes

from .held import FORK, PROMPT, WORDS, gen, held
from .serving import WAIT, Served, serving

pytestmark = pytest.mark.model
BODY = {"text": " ".join(WORDS), "sampling_params": {"max_new_tokens": 4, "temperature": 0, "ignore_eos": True}}
MOST = 60  # frames that a test looks at before it gives up


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(dashboard=True) as made:
        yield made


@pytest.fixture(scope="module")
def tenants() -> Iterator[Served]:
    with serving(dashboard=True, api_key=("one", "two"), admin_key="boss") as made:
        yield made


@contextlib.contextmanager
def watching(url: str, key: str = "") -> Iterator[Iterator[tuple[str, Any]]]:
    """The events of the stream."""
    headers = {"x-api-key": key} if key else {}
    with httpx.stream("GET", f"{url}/dashboard/events", headers=headers, timeout=WAIT) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield events(answer)


def events(answer: httpx.Response) -> Iterator[tuple[str, Any]]:
    name = ""
    for line in answer.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def frames(stream: Iterator[tuple[str, Any]]) -> Iterator[Any]:
    return (data for name, data in stream if name == "frame")


def first(stream: Iterator[tuple[str, Any]], wanted: Callable[[Any], Any] = lambda frame: True) -> Any:
    """The next frame that is wanted."""
    for frame in itertools.islice(frames(stream), MOST):
        if wanted(frame):
            return frame
    raise AssertionError(f"not within {MOST} frames")


def named(name: str) -> Callable[[Any], bool]:
    """Whether a frame has a program of this name: the first one may be older than the program."""
    return lambda frame: name in [program["name"] for program in frame["programs"]]


# -- the page


def test_the_openapi_document_describes_a_stream_of_events(served: Served):
    answers = httpx.get(f"{served.url}/openapi.json").json()["paths"]["/dashboard/events"]["get"]["responses"]
    assert set(answers["200"]["content"]) == {"text/event-stream"}


def test_without_the_setting_there_is_no_dashboard():
    with serving() as plain, httpx.Client(base_url=plain.url, timeout=WAIT) as http:
        assert http.get("/dashboard").status_code == http.get("/dashboard/events").status_code == 404
        assert "/dashboard/events" not in http.get("/openapi.json").json()["paths"]


def test_the_page_loads_nothing_and_runs_nothing_else(served: Served):
    page = httpx.get(f"{served.url}/dashboard")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'" and "unsafe" not in page.headers["content-security-policy"]
    for tag in ("script", "style"):
        parts = re.findall(rf"<{tag}>(.*?)</{tag}>", page.text, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in parts]
        assert parts and policy[f"{tag}-src"].split() == [f"'sha256-{digest}'" for digest in digests]
        assert page.text.count(f"<{tag}") == len(parts)
    assert not re.search(r"""(?:src|href|action)=["'](?!data:image/svg)""", page.text)
    assert not re.search(
        r"""(?:url\(|@import|innerHTML|outerHTML|insertAdjacent|document\.write|eval|\son\w+=)""", page.text
    )
    links = set(re.findall(r"https?://[^\s'\"]*", page.text))
    assert links == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert len(page.content) < 64 << 10


def test_the_ready_block_names_it():
    from ramet.runtime.config import Config
    from ramet.runtime.messages import Ready
    from ramet.runtime.models.hub import PRESETS
    from ramet.runtime.server.banner import ready_block
    from ramet.runtime.server.settings import Settings

    ready = Ready("m", "float32", 64, 64, 1, 0.1)
    lines = ready_block("http://h", Settings(dashboard=True), Config(), ready, PRESETS["tiny"], "m")
    assert "http://h/dashboard" in lines[0]


# -- frames


def test_a_history_then_frames(served: Served):
    httpx.post(f"{served.url}/generate", json=BODY, timeout=WAIT)
    with watching(served.url) as stream:
        name, history = next(stream)
        columns = history["columns"]
        assert name == "history" and set(columns) == {"point", "node", "branch"}
        one, two = first(stream), first(stream)
    assert one["state"] == "ready" and one["whole"] is True and one["model"] == "tiny"
    assert one["kv"]["total"] == sum(one["kv"][part] for part in ("free", "cached", "used")) == 4096
    for frame in (one, two):
        assert len(frame["point"]) == len(columns["point"])
        assert all(len(node) == len(columns["node"]) for node in frame["tree"]["nodes"])
    tokens = columns["node"].index("tokens")
    assert sum(node[tokens] for node in one["tree"]["nodes"]) == one["kv"]["cached"]
    assert one["programs"] == [] and one["more"] == 0
    assert two["time"] > one["time"]


def test_a_live_program_is_seen(served: Served):
    with held(served, "two endings"), watching(served.url) as stream:
        columns = next(stream)[1]["columns"]["branch"]
        frame = first(stream, named("two endings"))
    (program,) = frame["programs"]
    found = {branch[0]: dict(zip(columns, branch, strict=True)) for branch in program["branches"]}
    assert (program["name"], program["calls"], program["generated"]) == ("two endings", 2, 12)
    assert set(found) == {"0", "0.1.b0", "0.1.b1"}
    assert {branch["state"] for branch in found.values()} == {"idle"}
    one = found["0.1.b0"]
    assert one["tokens"] == one["base"] + 6
    assert one["node"] in [node[0] for node in frame["tree"]["nodes"]]


def test_what_prompts_say_is_not_in_it(served: Served):
    with held(served, "quiet"), watching(served.url) as stream:
        next(stream)
        text = json.dumps([first(stream, named("quiet")) for _ in range(2)])
    assert not [word for word in WORDS if word in text]
    assert not re.search(r"\b[0-9a-f]{16,}\b", text)  # ids of programs, namespaces


def test_late_watchers_get_the_points_so_far(served: Served):
    with watching(served.url) as stream:
        next(stream)
        point = first(stream)["point"]
    with watching(served.url) as stream:
        assert point in next(stream)[1]["points"]


def test_watchers_share_frames(served: Served):
    with watching(served.url) as one, watching(served.url) as two:
        late = {frame["time"] for _, frame in zip(range(3), frames(two), strict=False)}
        assert any(frame["time"] in late for _, frame in zip(range(200), frames(one), strict=False))


def test_nobody_watches_and_nothing_is_asked(monkeypatch: pytest.MonkeyPatch):
    asked: list[int] = []
    look = EngineClient.look

    def counted(client: EngineClient, **limits: Any) -> Any:
        asked.append(1)
        return look(client, **limits)

    monkeypatch.setattr(EngineClient, "look", counted)
    with serving(dashboard=True) as served, httpx.Client(base_url=served.url, timeout=WAIT) as http:

        def tasks() -> int:
            http.post("/generate", json=BODY)
            return len(asyncio.all_tasks(served.loop))

        before = tasks()
        assert http.get("/dashboard").status_code == 200 and asked == []
        with watching(served.url) as stream:
            first(stream)
        assert asked
        while tasks() > before:  # the server has not noticed yet that its reader has gone
            continue
        count = len(asked)
        assert [tasks() for _ in range(5)] and len(asked) == count


def test_looking_takes_a_small_share_of_the_engine(served: Served, monkeypatch: pytest.MonkeyPatch):
    async def due(seconds: float) -> float:
        async def look() -> float:
            return seconds

        made = feed.Feed(served.service, None, None)  # type: ignore[arg-type]
        monkeypatch.setattr(made, "_look", look)
        await made._next(0)
        return made._due - asyncio.get_running_loop().time()

    quick, slow, stuck = (asyncio.run(due(seconds)) for seconds in (0.0, 0.05, 99.0))
    assert quick <= feed.PERIOD < slow <= 0.05 / feed.SHARE < stuck <= feed.LONGEST


# -- the end


def test_it_says_when_the_engine_is_lost_and_when_it_is_back():
    # float32: an engine that starts with torch is away for many frames
    with serving(dashboard=True, in_process=False) as served, watching(served.url) as stream:
        first(stream)
        served.client.kill()
        lost = first(stream, lambda frame: frame["state"] != "ready")
        assert "point" not in lost
        back = first(stream, lambda frame: frame["state"] == "ready" and "point" in frame)
        assert back["restarts"] == 1


def test_a_drained_server_ends_the_stream():
    with serving(dashboard=True) as served, watching(served.url) as stream:
        first(stream)
        asyncio.run_coroutine_threadsafe(served.service.drain(1.0), served.loop).result(WAIT)
        assert [frame["state"] for frame in frames(stream)][-1] == "draining"


def test_too_many_watchers_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(routes, "WATCHERS", 1)
    with serving(dashboard=True) as served, watching(served.url) as stream:
        next(stream)
        answer = httpx.get(f"{served.url}/dashboard/events", timeout=WAIT)
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1


# -- who


@pytest.mark.parametrize("key", ["", "wrong", "one\u00e9"])
def test_frames_need_a_key_and_the_page_does_not(tenants: Served, key: str):
    headers = [(b"x-api-key", key.encode("utf-8"))] if key else []
    assert httpx.get(f"{tenants.url}/dashboard", headers=headers).status_code == 200
    answer = httpx.get(f"{tenants.url}/dashboard/events", headers=headers)
    assert answer.status_code == 401 and "kv" not in answer.text
    for trick in ("/dashboard/", "/dashboard/../dashboard/events", "/dashboard%2fevents", "/dashboard/events/"):
        assert httpx.get(tenants.url + trick, headers=headers).status_code == 401
    assert httpx.get(f"{tenants.url}/dashboard/events?api_key=one&key=one").status_code == 401


def test_without_the_setting_the_page_is_not_open_either():
    with serving(api_key=("one",)) as plain:
        assert httpx.get(f"{plain.url}/dashboard").status_code == 401


def test_a_key_sees_its_own_programs(tenants: Served):
    def seen(key: str) -> tuple[set[str], bool, int]:
        with watching(tenants.url, key) as stream:
            frame = first(stream)  # nobody has watched this view before
            return {program["name"] for program in frame["programs"]}, frame["whole"], frame["tree"]["namespaces"]

    with held(tenants, "of one", key="one"), held(tenants, "of two", key="two"):
        assert seen("one") == ({"of one"}, False, 1)
        assert seen("two") == ({"of two"}, False, 1)
        assert seen("boss") == ({"of one", "of two"}, True, 2)


@pytest.mark.parametrize(("keys", "whole"), [(("one",), True), (("one", "two"), False)])
def test_the_only_key_sees_all(keys: tuple[str, ...], whole: bool):
    with serving(dashboard=True, api_key=keys) as served, watching(served.url, "one") as stream:
        assert first(stream)["whole"] is whole


def test_a_page_of_another_site_cannot_read_it(served: Served):
    answer = httpx.get(f"{served.url}/dashboard/events", headers={"origin": "https://evil.example"}, timeout=WAIT)
    assert answer.status_code == 403


def test_many_programs_and_branches_make_a_bounded_frame(served: Served, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(feed, "BRANCHES", 7)
    names = [f"0.1.b{n}" for n in range(40)]
    ops = (PROMPT, {**FORK, "into": names}, *(gen(name, 2) for name in names))
    with held(served, "wide" * 60, ops), watching(served.url) as stream:
        (program,) = first(stream, named("wide" * 24))["programs"]
    assert len(program["branches"]) == 7 and sum(program["states"]) == 41
    assert len(program["name"]) == feed.NAME
