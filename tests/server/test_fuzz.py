"""Every endpoint of our own OpenAPI description, under bodies that are nearly right: no 5xx, no hang, nothing left.

The strategies are made from `/openapi.json`: a body of the described shape, some of its fields, with values at the
edges, and in every second one something that does not belong there. `make clients` lets schemathesis do it as well.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ramet.runtime.server.settings import Settings

from .serving import WAIT, engine_client, make_app

pytestmark = pytest.mark.model
CASES = 15  # of each operation
CONTEXT = 128  # so that what is valid is soon generated
JUNK: st.SearchStrategy[Any] = st.sampled_from(
    (None, True, -1, 0, 2**31, 2**63, 10**30, -0.5, 1e308, "", "x", "\x00", "\U0001f600", "<|im_end|>", "../..", [], {})
) | st.recursive(st.none() | st.text(max_size=3), lambda inner: st.lists(inner, max_size=2), max_leaves=5)
TEXTS = st.sampled_from(
    ("", "a", "Once upon a time", "tiny", "user", "assistant", "text", "\U0001f600", "river " * 500)
)
INTEGERS = st.sampled_from((0, 1, 2, 3, 8, 20, -1, 129, 49_151, 49_152, 10**9, -(2**63)))
NUMBERS = st.sampled_from((0, 1, 0.5, 1e-9, -1, 2.5, 1e300)) | INTEGERS
MODELS = st.sampled_from(("tiny", "tiny", "tiny", "nobody", ""))


class Server:
    """The application in process, on a loop that stays between examples."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        app, self.service = make_app(engine_client(context=CONTEXT, kv_tokens=2048), Settings())
        self.runner.run(self.service.start())
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=WAIT)
        self.api = self.sent("GET", "/openapi.json").json()

    def sent(self, method: str, path: str, content: bytes | None = None) -> httpx.Response:
        """One request's answer, bounded in time."""
        headers = {"content-type": "application/json"} if content is not None else {}
        work = self.http.request(method, path, content=content, headers=headers)
        return self.runner.run(asyncio.wait_for(work, WAIT))

    def close(self) -> None:
        self.runner.run(self.http.aclose())
        self.runner.run(self.service.close())
        self.runner.close()

    def operations(self) -> list[tuple[str, str, dict[str, Any] | None]]:
        """(method, path, schema of the body) of everything that is described."""
        found = []
        for path, methods in self.api["paths"].items():
            for method, operation in methods.items():
                body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
                found.append((method.upper(), path, body))
        return found


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def values(schema: dict[str, Any], api: dict[str, Any], depth: int = 0) -> st.SearchStrategy[Any]:
    """Values of a schema, as far as its types go; deep down whatever is short."""
    if "$ref" in schema:
        named: dict[str, Any] = api["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        return values(named, api, depth + 1)
    branches = schema.get("anyOf") or schema.get("oneOf")
    if branches and depth < 8:
        return st.one_of([values(branch, api, depth + 1) for branch in branches])
    if "const" in schema or "enum" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    kind = schema.get("type")
    if kind == "object" and depth < 8:
        return objects(schema, api, depth)
    if kind == "array" and depth < 8:
        return st.lists(values(schema.get("items", {}), api, depth + 1), max_size=3)
    plain = {"string": TEXTS, "integer": INTEGERS, "number": NUMBERS, "boolean": st.booleans(), "null": st.none()}
    return plain.get(str(kind), JUNK)


def objects(schema: dict[str, Any], api: dict[str, Any], depth: int) -> st.SearchStrategy[Any]:
    """Objects with what is required and some of the rest; examples of the description now and then."""
    fields = schema.get("properties", {})
    if not fields:
        return st.dictionaries(st.sampled_from(("type", "x", "0", "7")), JUNK, max_size=2)
    parts = {name: MODELS if name == "model" else values(part, api, depth + 1) for name, part in fields.items()}
    required = {name: parts[name] for name in schema.get("required", ()) if name in parts}
    rest = {name: part for name, part in parts.items() if name not in required}

    @st.composite
    def made(draw: st.DrawFn) -> dict[str, Any]:
        example = dict(draw(st.sampled_from([{}, *schema.get("examples", ())])))
        chosen = draw(st.lists(st.sampled_from(sorted(rest)), max_size=4, unique=True)) if rest else []
        drawn = {name: draw(strategy) for name, strategy in required.items() if name not in example}
        return {**drawn, **example, **{name: draw(rest[name]) for name in chosen}}

    return made()


@st.composite
def bodies(draw: st.DrawFn, schema: dict[str, Any], api: dict[str, Any]) -> bytes:
    """A body as bytes: of the schema, or with one thing changed, or not JSON at all."""
    body = draw(values(schema, api))
    change = draw(st.sampled_from(("none", "none", "field", "unknown", "text", "whole")))
    if change == "whole":
        body = draw(JUNK)
    elif change == "field" and isinstance(body, dict) and body:
        body[draw(st.sampled_from(sorted(body)))] = draw(JUNK)
    elif change == "unknown" and isinstance(body, dict):
        body[draw(st.sampled_from(("regex", "tools", "guided_json", "grammar", "tempurature", "\x7f")))] = draw(JUNK)
    text = json.dumps(body, ensure_ascii=draw(st.booleans()))
    if change == "text":
        text = draw(st.sampled_from((text[:-1], text + "}", "[" * 200 + text, text.replace("1", "NaN"), "", "\\ud800")))
    return text.encode("utf-8", "surrogatepass")


def check(answer: httpx.Response, content: bytes | None) -> None:
    """Right, or an error that says what is wrong; 504 only for those who set themselves a limit."""
    late = answer.status_code == 504 and content is not None and b'"timeout"' in content
    assert answer.status_code < 500 or late, (answer.status_code, answer.text, content)
    if answer.status_code >= 400:
        error = answer.json()["error"]
        message = error if isinstance(error, str) else error["message"]
        assert message
        assert "Traceback" not in message


@pytest.fixture(scope="module")
def described(server: Server) -> list[tuple[str, str, dict[str, Any] | None]]:
    return server.operations()


def test_everything_that_needs_no_body(server: Server, described: list[tuple[str, str, dict[str, Any] | None]]):
    plain = [(method, path) for method, path, schema in described if schema is None]
    assert ("GET", "/server_info") in plain
    for method, path in plain:
        for value in ("tiny", "nobody", "%00", "..%2f..", "\U0001f600", "x" * 3000):
            check(server.sent(method, path.replace("{name}", value).replace("{id}", value)), None)


PATHS = (
    "/abort_request",
    "/abort_requests",
    "/generate",
    "/v1/completions",
    "/tokenize",
    "/detokenize",
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/decisions",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/api/chat",
    "/api/generate",
    "/api/show",
    "/v1/programs",
)


def test_every_body_is_covered(described: list[tuple[str, str, dict[str, Any] | None]]):
    assert {path for _, path, schema in described if schema is not None} == set(PATHS)


@pytest.mark.parametrize("path", PATHS)
def test_bodies(server: Server, path: str, described: list[tuple[str, str, dict[str, Any] | None]]):
    (schema,) = [schema for method, where, schema in described if where == path and method == "POST"]
    assert schema is not None, "these take a body"

    @given(bodies(schema, server.api))
    @settings(
        max_examples=CASES,
        derandomize=True,
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )
    def run(content: bytes) -> None:
        check(server.sent("POST", path, content), content)

    run()


def test_nothing_is_left_over(server: Server):
    """Runs last: what all the others asked for is gone, and the server answers."""
    for _ in range(1000):
        info = server.sent("GET", "/server_info").json()
        if info["programs"] == 0 and info["waiting"] == 0:
            break
    assert (info["programs"], info["running"], info["waiting"], info["kv"]["used"]) == (0, 0, 0, 0)
    body = b'{"text": "Once upon a time", "sampling_params": {"max_new_tokens": 4}}'
    assert server.sent("POST", "/generate", body).status_code == 200
