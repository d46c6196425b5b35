"""Bodies that are not valid: the client's own field, and words that are nobody's library's."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ramet.runtime.server.anthropic import MessagesRequest
from ramet.runtime.server.chat import ChatCompletionRequest
from ramet.runtime.server.completions import Completions
from ramet.runtime.server.decisions import DecisionRequest
from ramet.runtime.server.failures import Failure
from ramet.runtime.server.generate import Generate
from ramet.runtime.server.invalid import sentence
from ramet.runtime.server.ollama_bodies import ChatRequest
from ramet.runtime.server.responses import ResponseRequest
from ramet.runtime.server.wire import Body

from .test_wire import JSON

BODIES = (Completions, Generate, ChatCompletionRequest, DecisionRequest, MessagesRequest, ChatRequest, ResponseRequest)


def refused(kind: type[Body], body: object) -> Failure:
    """What is said of it, as FastAPI would ask."""
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(body)
    problems = [{**each, "loc": ("body", *each["loc"])} for each in caught.value.errors()]
    return sentence(problems, body)


def asked(**question: Any) -> dict[str, Any]:
    return {"input": "a", "questions": [{"id": "a", "question": "b", **question}]}


@pytest.mark.parametrize(
    ("kind", "body", "message"),
    [
        (Completions, {"prompt": 5}, "`prompt` must be a string or a list, got an integer"),
        (Completions, {"prompt": [1, "a"]}, "`prompt[1]` must be an integer, got a string"),
        (Completions, {"prompt": ["a", 1]}, "`prompt[1]` must be a string, got an integer"),
        (Completions, {"prompt": [[1], 5]}, "`prompt[1]` must be a list, got an integer"),
        (Completions, {"prompt": [[1], [1, "a"]]}, "`prompt[1][1]` must be an integer, got a string"),
        (Completions, {"prompt": [None]}, "`prompt[0]` must be a string, an integer or a list, got null"),
        (Completions, {"stop": 5}, "`stop` must be a string or a list, got an integer"),
        (Completions, {"stop": ["a", 5]}, "`stop[1]` must be a string, got an integer"),
        (Completions, {"logit_bias": {"1": "a"}}, "`logit_bias[1]` must be a number, got a string"),
        (Completions, {"logit_bias": {"a b": None}}, "`logit_bias.a b` must be a number, got null"),
        (Completions, {"logit_bias": {"float": "a"}}, "`logit_bias.float` must be a number, got a string"),
        (Completions, {"n": True}, "`n` must be an integer, got a boolean"),
        (Completions, {"timeout": 0}, "`timeout` must be greater than 0"),
        (
            Generate,
            {"sampling_params": {"temperature": "a"}},
            "`sampling_params.temperature` must be a number, got a string",
        ),
        (Generate, {"sampling_params": [{}, {"n": "a"}]}, "`sampling_params[1].n` must be an integer, got a string"),
        (Generate, {"sampling_params": 5}, "`sampling_params` must be an object or a list, got an integer"),
        (Generate, {"input_ids": [1, 2.5]}, "`input_ids[1]` must be an integer, got a number"),
        (ChatCompletionRequest, {}, "`messages` is required"),
        (ChatCompletionRequest, {"messages": "a"}, "`messages` must be a list, got a string"),
        (ChatCompletionRequest, {"messages": [{"content": "a"}]}, "`messages[0].role` is required"),
        (
            ChatCompletionRequest,
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
            "`messages[0].content[0].text` must be a string, got an integer",
        ),
        (
            ChatCompletionRequest,
            {"messages": [{"role": "user", "content": 5}]},
            "`messages[0].content` must be a string or a list, got an integer",
        ),
        (ResponseRequest, {"input": [{"content": [{}]}]}, "`input[0].content[0].type` is required"),
        (
            MessagesRequest,
            {"model": "m", "max_tokens": 1, "messages": [{"role": "tool", "content": "a"}]},
            "`messages[0].role` must be 'user', 'assistant' or 'system'",
        ),
        (DecisionRequest, asked(type="score", levels=["a"]), "`questions[0].levels` must have at least 2 items, has 1"),
        (
            DecisionRequest,
            asked(type="score", levels=["a"] * 11),
            "`questions[0].levels` must have at most 10 items, has 11",
        ),
        (DecisionRequest, {"input": "a", "questions": []}, "`questions` must have at least 1 item, has 0"),
        (
            DecisionRequest,
            asked(type="choice", options=[{"name": "a"}, {"nam": "b"}]),
            "`questions[0].options[1].name` is required",
        ),
        (
            DecisionRequest,
            asked(type="nope"),
            "`questions[0].type` must be one of 'choice', 'score', 'yes_no', got 'nope'",
        ),
        (DecisionRequest, asked(), "`questions[0].type` is required"),
        (Generate, [], "`body` must be an object, got a list"),
    ],
)
def test_the_field_and_what_is_wrong(kind: type[Body], body: object, message: str) -> None:
    failure = refused(kind, body)
    assert failure.message == message
    field = message.partition("`")[2].partition("`")[0]
    assert (failure.status, failure.param) == (400, None if field == "body" else field)


def test_long_names_and_values_are_cut() -> None:
    assert len(refused(Completions, {"logit_bias": {"x" * 10_000: "a"}}).message) < 200
    assert len(refused(DecisionRequest, asked(type="x" * 10_000)).message) < 200


def test_of_a_query_the_parameter_is_named() -> None:
    problem = {"type": "int_type", "loc": ("query", "dp_rank"), "msg": "", "input": "a"}
    assert sentence([problem], None).message == "`dp_rank` must be an integer, got a string"


@given(st.sampled_from(BODIES), st.data())
def test_whatever_comes_the_field_is_in_the_body(kind: type[Body], data: st.DataObject) -> None:
    body = data.draw(st.dictionaries(st.sampled_from(sorted(kind.model_fields)), JSON, max_size=3))
    try:
        kind.model_validate(body)
    except ValidationError:
        failure = refused(kind, body)
    else:
        return
    first = str(failure.param).partition(".")[0].partition("[")[0]
    assert first in body or failure.message == f"`{first}` is required"
    assert not any(word in failure.message for word in ("Input", "pydantic", "SamplingParams", "list[", "valid "))
