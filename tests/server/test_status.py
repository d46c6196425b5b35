"""How the server says how it is, and how control of it works."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from ramet.runtime.messages import Stats
from ramet.runtime.server import app, logs
from ramet.runtime.server.metrics import _LATENCY, Metrics

from .serving import WAIT, Served, in_process_client, serving

pytestmark = pytest.mark.model
BODY = {"text": "one two three four", "sampling_params": {"max_new_tokens": 4, "temperature": 0, "ignore_eos": True}}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving() as made:
        yield made


@pytest.fixture(scope="module")
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=WAIT) as client:
        yield client


@pytest.mark.parametrize("path", ["/health", "/ping", "/ready", "/health_generate", "/version", "/load", "/docs"])
def test_it_is_well(http: httpx.Client, path: str):
    assert http.get(path).status_code == 200


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/v1/models", "/api/tags"])
def test_heads_of_what_can_be_got(http: httpx.Client, path: str):
    """`wget --spider`, monitors and Ollama's own client ask so whether somebody is there."""
    got, head = http.get(path), http.head(path)
    assert (got.status_code, head.status_code) == (200, 200)
    assert head.content == b""
    assert head.headers["content-type"] == got.headers["content-type"] if got.content else True
    assert http.head("/generate").status_code == 405
    assert http.get("/").status_code == 200


def test_figures_add_up(http: httpx.Client):
    before = http.get("/server_info").json()
    assert http.post("/generate", json=BODY).status_code == 200
    after = http.get("/get_server_info").json()
    assert after["generated_tokens"] - before["generated_tokens"] == 4
    kv = after["kv"]
    assert kv["total"] == kv["free"] + kv["cached"] + kv["used"] == after["max_total_num_tokens"]
    assert kv["used"] == 0 and kv["cached"] > 0
    assert http.post("/flush_cache").json() == {"success": True}
    assert http.get("/server_info").json()["kv"]["free"] == kv["total"]


def test_models(http: httpx.Client):
    listed = http.get("/v1/models").json()
    assert [card["id"] for card in listed["data"]] == ["tiny"]
    assert http.get("/v1/models/tiny").json() == listed["data"][0]
    missing = http.get("/v1/models/nobody/else")
    assert missing.status_code == 404
    assert http.get("/v1/models/default").json()["max_model_len"] == 1024
    assert missing.json()["error"]["code"] == "model_not_found" and "`tiny`" in missing.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/generate", 405, "method_not_allowed"),
        ("POST", "/abort_request", 400, "invalid_value"),
    ],
)
def test_errors_have_one_shape(http: httpx.Client, method: str, path: str, status: int, code: str):
    answer = http.request(method, path, headers={"x-request-id": "mine"})
    assert answer.status_code == status and answer.headers["x-request-id"] == "mine"
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.json()["error"]["code"] == code


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"rid": 5}, "`rid` must be a string, got an integer"),
        ({"abort_all": "perhaps"}, "`abort_all` must be true or false, got a string"),
        ([], "`body` must be an object, got a list"),
    ],
)
def test_wrong_fields_are_named_in_a_sentence(http: httpx.Client, body: Any, sentence: str):
    error = http.post("/abort_request", json=body).json()["error"]
    assert error["message"] == sentence


def test_an_unforeseen_error_is_a_500_without_its_words():
    async def main() -> httpx.Response:
        async with in_process_client() as (http, service):

            def broken() -> str:
                raise RuntimeError("private")

            service.state = broken  # type: ignore[method-assign,assignment]
            return await http.get("/ready")

    answer = asyncio.run(main())
    assert answer.status_code == 500 and "private" not in answer.text
    assert answer.json()["error"]["code"] == "internal_error"


def test_while_it_drains_it_is_not_ready():
    async def main() -> list[httpx.Response]:
        async with in_process_client() as (http, service):
            await service.drain(1.0)
            return [await http.get("/ready"), await http.post("/generate", json=BODY), await http.get("/health")]

    ready, newcomer, health = asyncio.run(main())
    assert (ready.status_code, newcomer.status_code, health.status_code) == (503, 503, 200)
    assert int(ready.headers["retry-after"]) >= 1 and int(newcomer.headers["retry-after"]) >= 1


def test_the_openapi_document_is_whole(http: httpx.Client):
    document = http.get("/openapi.json").json()
    assert "422" not in json.dumps([list(o["responses"]) for p in document["paths"].values() for o in p.values()])
    names = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(names) == len(set(names))
    wanted = {"/generate", "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses", "/v1/programs"}
    assert wanted <= set(document["paths"])

    def resolved(node: Any) -> None:
        if isinstance(node, dict):
            if "$ref" in node:
                assert node["$ref"].rpartition("/")[2] in document["components"]["schemas"]
            for part in node.values():
                resolved(part)
        elif isinstance(node, list):
            for part in node:
                resolved(part)

    resolved(document["paths"])


def test_the_openapi_document_says_what_answers_are(http: httpx.Client):
    paths = http.get("/openapi.json").json()["paths"]

    def content(path: str, method: str = "post") -> set[str]:
        return set(paths[path][method]["responses"]["200"].get("content", ()))

    both = {"application/json", "text/event-stream"}
    for path in ("/generate", "/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"):
        assert content(path) == both
    assert content("/v1/programs") == both
    assert content("/api/chat") == content("/api/generate") == {"application/json", "application/x-ndjson"}
    assert (content("/metrics", "get"), content("/health", "get")) == ({"text/plain"}, set())
    assert content("/version", "get") == content("/tokenize") == {"application/json"}


@pytest.mark.parametrize("root", ["", "/llm"])
def test_a_slash_at_the_end_of_a_path_is_none(root: str):
    with serving(root_path=root) as served, httpx.Client(base_url=served.url, timeout=WAIT) as http:
        answer = http.post("/generate/", json=BODY)
        assert (answer.status_code, "location" in answer.headers) == (200, False)
        assert http.post("/v1/chat/completions/", json={}).json()["error"]["param"] == "messages"
        assert http.post("/v1/messages/", json={}).json()["type"] == "error"
        assert http.get("/v1/models/").json() == http.get("/v1/models").json()
        assert http.get("/v1/models/tiny/").json()["id"] == "tiny"
        for path in ("/generate//", "/docs/", "/dashboard/", "/nothing/"):
            assert (http.post if path == "/generate//" else http.get)(path).status_code == 404
        assert http.get("/").json()["server"] == "ramet"
        assert http.get(f"{root}/").json()["server"] == "ramet"


def test_the_openapi_document_is_made_once_and_not_on_the_loop(monkeypatch: pytest.MonkeyPatch):
    """It takes a tenth of a second: on the event loop all streams would stand still for it."""
    made: list[bool] = []
    described = app.get_openapi

    def watched(**options: Any) -> dict[str, Any]:
        with contextlib.suppress(RuntimeError):
            made.append(asyncio.get_running_loop() is None)
        made.append(True)
        return described(**options)

    async def main() -> list[httpx.Response]:
        async with in_process_client(root_path="/llm/") as (http, _):
            return await asyncio.gather(*(http.get("/openapi.json") for _ in range(3)))

    monkeypatch.setattr(app, "get_openapi", watched)
    answers = asyncio.run(main())
    assert made == [True]
    assert [answer.headers["content-type"] for answer in answers] == ["application/json"] * 3
    assert [answer.json()["servers"] for answer in answers] == [[{"url": "/llm"}]] * 3, "where a proxy shows it"
    assert "HTTPValidationError" not in answers[0].text


def test_the_page_of_the_documentation_loads_nothing_from_elsewhere(http: httpx.Client):
    page = http.get("/docs")
    assert "http:" not in page.text and "https:" not in page.text and "src=" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_metrics_count(http: httpx.Client):
    def value(name: str) -> float:
        lines = [line for line in http.get("/metrics").text.splitlines() if line.startswith(name + "{")]
        return float(lines[0].rpartition(" ")[2])

    names = ("ramet_generation_tokens_total", "sglang:generation_tokens_total", "ramet_prompt_tokens_total")
    before = [value(name) for name in names]
    answer = http.post("/generate", json=BODY).json()
    grown = [value(name) - old for name, old in zip(names, before, strict=True)]
    assert grown == [4, 4, answer["meta_info"]["prompt_tokens"]]
    assert value("ramet_kv_slots") == 4096
    assert "one two" not in http.get("/metrics").text


def test_histograms_are_prometheus_own():
    """Buckets that include those below them, a count and a sum: what the library's own histogram says."""
    metrics, registry = Metrics("m", compat="sglang"), CollectorRegistry()
    own = Histogram("own", "text", ["model_name"], registry=registry, buckets=_LATENCY).labels("m")
    for value in (0.0005, 0.001, 0.0011, 0.3, 120.0, 1e6):
        metrics.note("inter_token_seconds", value)
        own.observe(value)
    text = metrics.text(None, queued=0, restarts=0, now=0.0).decode()
    want = [
        line
        for line in generate_latest(registry).decode().splitlines()
        if line.startswith("own_") and "_created" not in line
    ]
    for prefix in ("ramet_", "sglang:"):
        name = prefix + "inter_token_latency_seconds"
        assert [line.replace(name, "own") for line in text.splitlines() if line.startswith(name)] == want


def test_loads_as_routers_ask_for_them(http: httpx.Client):
    (old,) = http.get("/get_load").json()
    assert old == {"dp_rank": 0, "num_reqs": 0, "num_waiting_reqs": 0, "num_tokens": 0}
    http.post("/generate", json=BODY)
    whole = http.get("/v1/loads").json()
    (rank,) = whole["loads"]
    assert whole["dp_rank_count"] == 1 and whole["version"] == http.get("/version").json()["version"]
    assert (rank["num_running_reqs"], rank["num_waiting_reqs"], rank["max_total_num_tokens"]) == (0, 0, 4096)
    assert 0.0 <= rank["token_usage"] <= rank["utilization"] <= 1.0 and rank["queues"]["waiting"] == 0
    assert "queues" not in http.get("/v1/loads", params={"include": "core"}).json()["loads"][0]
    assert http.get("/v1/loads", params={"dp_rank": 1}).json()["loads"] == []
    for wrong, param in (({"include": "secrets"}, "include"), ({"format": "prometheus"}, "format")):
        answer = http.get("/v1/loads", params=wrong)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_metrics_without_the_names_of_others():
    text = Metrics("m", compat="none").text(None, queued=0, restarts=0, now=0.0).decode()
    assert "ramet_" in text and "sglang" not in text


def test_cross_origin_answers_name_the_origin():
    with serving(cors_origin=("https://page.example",)) as served:
        head = {"origin": "https://page.example"}
        assert httpx.get(f"{served.url}/version", headers=head).headers["access-control-allow-origin"] == head["origin"]
        answer = httpx.post(f"{served.url}/generate", headers=head, json={"text": 5})
        shown = answer.headers["access-control-expose-headers"].lower().split(", ")
        for name in ("x-request-id", "request-id", "retry-after", "retry-after-ms", "x-ramet-warnings"):
            assert name in shown
        assert "idempotent-replayed" in shown
        preflight = {**head, "access-control-request-method": "POST", "access-control-request-headers": "x-api-key"}
        assert httpx.options(f"{served.url}/generate", headers=preflight).status_code == 200
        other = httpx.get(f"{served.url}/version", headers={"origin": "https://other.example"})
        assert other.status_code == 403 and "access-control-allow-origin" not in other.headers


def test_the_line_about_throughput():
    blank = dict.fromkeys(Stats.__struct_fields__, 0)
    before = Stats(**{**blank, "step_seconds": 0.0})
    after = Stats(
        **{
            **blank,
            "step_seconds": 1.0,
            "steps": 100,
            "generated_tokens": 500,
            "computed_tokens": 2000,
            "running": 3,
            "kv_total": 100,
            "kv_used": 25,
        }
    )
    assert logs.pace(before, after, 2, seconds=10.0) == (
        "running 3, waiting 2; generated 50 tokens/s, computed 200; step 10.0 ms; KV 25% used, 0% cached"
    )
