"""Compiled programs over HTTP: a plan and its arguments in place of operations: the same tokens, and the result."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

import ramet as rt
from ramet.frontend.replay import Recorder

from .serving import Served, serving
from .test_programs import HEADER, OPS, sse

pytestmark = pytest.mark.model
WAIT = 60.0


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(engine={"kv_tokens": 8192}) as server:
        yield server


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=WAIT) as client:
        yield client


@rt.function(temperature=0)
def classify(s: rt.State, text: str, language: str) -> dict[str, str]:
    """Two calls and a decision."""
    s.user(f"Text in {language}: {text}\nIs it good?")
    good = s.reply(bool, name="good")
    s.user("Why?" if good.get() else "Why not?")
    return {"why": s.reply(name="why", max_tokens=5).get(), "language": language}


ARGS = {"text": "A fine day.", "language": "English"}


def planned(plan: rt.Plan) -> Any:
    return json.loads(plan.dumps())


def test_a_plan_with_its_arguments(served, http):
    plan = classify.compile()
    local = Recorder(served.offline())
    expected = classify.using(backend=local, seed=7)(**ARGS).result(WAIT)
    body = {"version": 1, "header": HEADER, "plan": planned(plan), "args": ARGS}
    answer = http.post("/v1/programs", json={**body, "stream": False}).json()
    assert answer["result"] == {"value": expected}
    found = {
        e["op"]: (e["value"], tuple(e["meta"].get("tokens", ()))) for e in answer["events"] if e["type"] == "finished"
    }
    assert found == {e.op: (e.value, e.meta.tokens) for e in local.programs[0].finished}
    streamed = sse(http.post("/v1/programs", json=body).text)
    assert [name for name, _ in streamed[-2:]] == ["result", "ended"]
    assert streamed[-2][1] == {"value": expected}


def test_a_plan_is_checked_and_metered_before_anything_runs(http):
    raw = planned(classify.compile())
    good = {"version": 1, "header": HEADER, "plan": raw, "args": ARGS, "stream": False}

    def refused(**changes: Any) -> str:
        answer = http.post("/v1/programs", json={**good, **changes})
        assert answer.status_code == 400, answer.text
        return str(answer.json()["error"]["message"])

    tampered = json.loads(json.dumps(raw))
    tampered["content"]["plan"]["name"] = "other"
    assert "digest" in refused(plan=tampered)
    assert "format" in refused(plan={**raw, "format": 2})
    assert "missing" in refused(args={"text": "x"})
    assert "no open parameter" in refused(args={**ARGS, "texts": "x"})
    assert "one of the two" in refused(ops=[])
    assert "at most 3" in refused(limits={"tokens": 3})
    assert "at most 10" in refused(limits={"ops": 10})
    broken = rt.function(lambda s, text: s.gen(max_tokens=2).get().strip() + text).compile()
    assert "graph break" in refused(plan=planned(broken), args={"text": "x"})
    assert "plan" in refused(plan={"a": 1})
    assert "`args`" in str(http.post("/v1/programs", json={**post_body(OPS), "args": {}}).json()["error"]["message"])


def post_body(ops: list[Any]) -> dict[str, Any]:
    return {"version": 1, "header": HEADER, "ops": ops, "stream": False}
