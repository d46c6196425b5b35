"""Decisions: many questions over one input are one program, and its scores the engine's own."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.frontend import ir
from ramet.runtime.server.call import Chat, Message
from ramet.runtime.server.compose import prompt_ops
from ramet.runtime.server.decisions import Asked, Score, YesNo, answer_of, program, put

from .offline import finished
from .serving import WAIT, Served, serving

pytestmark = pytest.mark.model
PATH = "/v1/decisions"
INPUT = "The parcel arrived two weeks late and the box was torn."
QUESTIONS: list[dict[str, Any]] = [
    {"id": "angry", "type": "yes_no", "question": "The customer complains.", "yes": "there is a complaint"},
    {
        "id": "team",
        "type": "choice",
        "question": "Who should answer?",
        "options": [{"name": "billing"}, {"name": "shipping", "description": "delivery"}, {"name": "nobody"}],
    },
    {"id": "bad", "type": "score", "question": "How bad is it?", "levels": ["fine", "unpleasant", {"very": "bad"}]},
]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving() as made:
        yield made


@pytest.fixture(scope="module")
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=WAIT) as client:
        yield client


def ask(http: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = http.post(PATH, json={"input": INPUT, "questions": QUESTIONS, **body})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def refused(http: httpx.Client, status: int, **body: Any) -> dict[str, Any]:
    answer = http.post(PATH, json={"input": INPUT, "questions": QUESTIONS, **body})
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


def alone(served: Served, question: dict[str, Any]) -> ir.Meta:
    """One question as a plain chat with a Select: no fork, nothing shared."""
    kind: Any = {"yes_no": YesNo, "score": Score}.get(question["type"])
    asked = put(kind.model_validate(question))
    ops = prompt_ops(Chat((Message("user", INPUT + asked.text),)))
    select = ir.Select(id=f"0.{len(ops)}", seq="0", var="x", choices=asked.labels)
    return finished(served, *ops, select)[-1].meta


def test_it_is_one_request_that_went_well(served: Served, http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[str] = []
    note = served.service.accounts.note
    monkeypatch.setattr(served.service.accounts, "note", lambda name, value: (noted.append(name), note(name, value)))
    ask(http)
    refused(http, 400, input="word " * 2000)
    kept = ("request_ok", "request_failed", "aborted")
    assert [name for name in noted if name in kept] == ["request_ok", "request_failed"]


def test_each_answer_is_that_of_its_question_alone(served: Served, http: httpx.Client) -> None:
    answers = ask(http)["answers"]
    for question in (QUESTIONS[0], QUESTIONS[2]):
        logs = [sum(row) for row in alone(served, question).choice_logprobs]
        mass = math.fsum(math.exp(log) for log in logs)
        answer = answers[question["id"]]
        assert answer["label_mass"] == mass
        assert list(answer["probabilities"].values()) == pytest.approx([math.exp(log) / mass for log in logs])


def test_the_shape(http: httpx.Client) -> None:
    body = ask(http, model="tiny")
    assert (body["object"], body["model"], body["prompt_format_version"]) == ("decisions", "tiny", 1)
    answers = body["answers"]
    assert list(answers) == ["angry", "team", "bad"]
    assert [answer["type"] for answer in answers.values()] == ["yes_no", "choice", "score"]
    assert list(answers["angry"]["probabilities"]) == ["yes", "no"]
    assert list(answers["bad"]["probabilities"]) == ["0", "1", "2"]
    team = answers["team"]
    assert team["choice"] == max(team["probabilities"], key=lambda name: team["probabilities"][name])
    assert 0 <= answers["bad"]["score"] <= 2
    for answer in answers.values():
        assert math.fsum(answer["probabilities"].values()) == pytest.approx(1)
        assert 0 < answer["label_mass"] <= 1


def test_the_input_is_computed_once(http: httpx.Client) -> None:
    fresh = "A fresh input, of a good many words, that nobody has sent before to this server."
    ids = ask(http, input=fresh, return_prompt_token_ids=True, cache_salt="count")
    usage = ids["usage"]
    prompts = [answer["prompt_token_ids"] for answer in ids["answers"].values()]
    shared = next(n for n, column in enumerate(zip(*prompts, strict=False)) if len(set(column)) > 1)
    assert usage["prompt_tokens"] == sum(map(len, prompts))
    assert usage["prompt_tokens_details"]["cached_tokens"] >= 2 * (shared - 2)
    assert [len(answer["label_token_ids"]) for answer in ids["answers"].values()] == [2, 3, 3]


def test_temperature_flattens_and_leaves_the_mass(http: httpx.Client) -> None:
    plain, flat = ask(http)["answers"], ask(http, temperature=50)["answers"]
    for name in plain:
        assert plain[name]["label_mass"] == flat[name]["label_mass"]
        one, other = (max(answers[name]["probabilities"].values()) for answers in (plain, flat))
        assert 1 / len(plain[name]["probabilities"]) <= other < one


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"questions": []}, 400),
        ({"questions": [QUESTIONS[0], QUESTIONS[0]]}, 400),
        ({"questions": [{**QUESTIONS[1], "options": [{"name": "a"}]}]}, 400),
        ({"questions": [{**QUESTIONS[1], "options": [{"name": "a"}, {"name": "a"}]}]}, 400),
        ({"questions": [{**QUESTIONS[2], "levels": ["x"] * 11}]}, 400),
        ({"questions": [{**QUESTIONS[0], "type": "maybe"}]}, 400),
        ({"images": ["data:image/png;base64,AA"]}, 400),
        ({"prompt_format_version": 9}, 400),
        ({"chat_template_kwargs": {"x": 1}}, 400),
        ({"temperature": 0}, 400),
        ({"model": "gpt-4"}, 404),
        ({"timeout": 1e-6}, 504),
        ({"timeout": -1}, 400),
        ({"input": 5}, 400),
    ],
)
def test_what_cannot_be_decided(http: httpx.Client, body: dict[str, Any], status: int) -> None:
    assert refused(http, status, **body)["message"]


def test_an_input_beyond_the_context(http: httpx.Client, served: Served) -> None:
    for words in (served.service.context, 10 * served.service.context):
        error = refused(http, 400, input="word " * words)
        assert error["code"] == "context_length_exceeded"
        assert f"maximum context length is {served.service.context} tokens" in error["message"]


@given(st.lists(st.floats(-800, 0), min_size=2, max_size=10), st.floats(0.01, 100))
@settings(deadline=None)
def test_probabilities_are_a_distribution(logs: list[float], temperature: float) -> None:
    names = tuple(str(n) for n in range(len(logs)))
    asked = Asked("q", "score", "", names, names)
    answer = answer_of(asked, ir.Meta(choice_logprobs=tuple((log,) for log in logs)), temperature)
    shares = list(answer["probabilities"].values())
    assert math.fsum(shares) == pytest.approx(1)
    assert all(0 <= share <= 1 for share in shares)
    assert 0 <= answer["score"] <= len(logs) - 1
    assert shares.index(max(shares)) == logs.index(max(logs)) or max(shares) == shares[logs.index(max(logs))]


def test_an_engine_that_dies_is_asked_again() -> None:
    quick = {"dtype": "auto"}
    with serving(in_process=False, engine=quick) as served, httpx.Client(base_url=served.url, timeout=WAIT) as http:
        expected = ask(http)["answers"]
        pid = served.client.process_id
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ask, http)
            while not served.service.running:
                assert http.get("/health").status_code == 200
            os.kill(pid, signal.SIGKILL)
            assert asked.result()["answers"] == expected
        assert served.client.process_id != pid


def test_the_program_forks_once() -> None:
    asked = [put(YesNo(id=str(n), type="yes_no", question="?")) for n in range(5)]
    ops = program("input", asked)
    assert sum(isinstance(op, ir.Fork) for op in ops) == 1
    assert sum(isinstance(op, ir.Select) for op in ops) == 5
    assert "input" not in "".join(str(op.parts) for op in ops[3:] if isinstance(op, ir.Text))
