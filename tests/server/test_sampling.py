"""Sampling fields of every protocol: one struct or a refusal that names the client's field, whatever comes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.frontend import ir
from ramet.runtime.server.failures import Failure
from ramet.runtime.server.sampling import (
    LENGTHS,
    NAMES,
    Protocol,
    count_of,
    refuse_constraints,
    refuse_tools,
    refuse_unoffered,
    sampling_of,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
PROTOCOLS: tuple[Protocol, ...] = ("openai", "sglang", "anthropic", "ollama")


def of(protocol: Protocol, fields: dict[str, Any], default: int | None = None, **more: Any) -> ir.Sampling:
    return sampling_of(fields, protocol=protocol, default_max_tokens=default, **more)


def refused(protocol: Protocol, fields: dict[str, Any]) -> Failure:
    with pytest.raises(Failure) as caught:
        of(protocol, fields)
    assert caught.value.status == 400
    return caught.value


@given(st.data(), st.sampled_from(PROTOCOLS))
def test_anything_is_a_sampling_or_names_a_field(data: st.DataObject, protocol: Protocol) -> None:
    names = [*NAMES[protocol].values(), *LENGTHS[protocol], "logprobs", "top_logprobs"]
    fields = data.draw(st.dictionaries(st.sampled_from(names), JSON, max_size=4))
    try:
        of(protocol, fields)
    except Failure as failure:
        found = failure
    else:
        return
    assert found.status == 400
    assert found.param in names


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_null_is_the_default(protocol: Protocol) -> None:
    names = [*NAMES[protocol].values()]
    assert of(protocol, dict.fromkeys(names)) == of(protocol, {})


def test_each_protocols_names() -> None:
    want = ir.Sampling(
        temperature=0.5, top_p=0.9, top_k=7, max_tokens=5, min_tokens=2, stop=("a",), repetition_penalty=1.5, seed=-3
    )
    shared: dict[str, Any] = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "repetition_penalty": 1.5}
    assert of("openai", {**shared, "max_tokens": 5, "min_tokens": 2, "stop": "a", "seed": -3}) == want
    sglang = {**shared, "max_new_tokens": 5, "min_new_tokens": 2, "stop": ["a"], "sampling_seed": -3}
    assert of("sglang", sglang) == want
    ollama = {"temperature": 0.5, "num_predict": 5, "repeat_penalty": 1.5, "stop": ["a"], "seed": 4}
    assert of("ollama", ollama) == ir.Sampling(
        temperature=0.5, top_k=40, top_p=0.9, max_tokens=5, stop=("a",), repetition_penalty=1.5, seed=4
    )
    anthropic = {"temperature": 0.5, "top_k": 7, "max_tokens": 5, "stop_sequences": ["a"]}
    assert of("anthropic", anthropic) == ir.Sampling(temperature=0.5, top_k=7, max_tokens=5, stop=("a",))


def test_what_off_and_greedy_look_like() -> None:
    assert of("openai", {"top_k": -1, "top_p": 0, "temperature": 1e-9}) == ir.Sampling(temperature=0, top_p=1e-6)
    assert of("openai", {"max_tokens": 5.0}).max_tokens == 5
    assert of("openai", {"logit_bias": {"3": 2}}).logit_bias == {3: 2.0}


def test_lengths() -> None:
    assert of("openai", {}, 16).max_tokens == 16
    assert of("openai", {"max_tokens": 4, "max_completion_tokens": 4}).max_tokens == 4
    assert refused("openai", {"max_tokens": 4, "max_completion_tokens": 5}).param == "max_completion_tokens"
    assert refused("openai", {"max_completion_tokens": 0}).param == "max_completion_tokens"
    assert of("openai", {"max_tokens": 0}, allow_zero=True).max_tokens == 1
    assert of("sglang", {}, 128).max_tokens == 128
    assert of("sglang", {"max_new_tokens": None}, 128).max_tokens is None
    assert [of("ollama", {"num_predict": n}).max_tokens for n in (0, -1, -2, 3)] == [None, None, None, 3]


def test_logprobs() -> None:
    asked: list[dict[str, Any]] = [{}, {"logprobs": False}, {"logprobs": 0}, {"logprobs": 5}, {"logprobs": True}]
    assert [of("openai", fields).logprobs for fields in asked] == [-1, -1, 0, 5, 0]
    assert of("openai", {"logprobs": True, "top_logprobs": 4}).logprobs == 4
    assert refused("openai", {"top_logprobs": 4}).param == "top_logprobs"
    assert refused("openai", {"logprobs": True, "top_logprobs": 21}).param == "top_logprobs"
    assert refused("openai", {"logprobs": 10**6}).param == "logprobs"


@pytest.mark.parametrize(
    ("protocol", "fields", "param"),
    [
        ("openai", {"temperature": -0.1}, "temperature"),
        ("anthropic", {"temperature": 1.5}, "temperature"),
        ("openai", {"temperature": 10**400}, "temperature"),
        ("openai", {"seed": 1 << 70}, "seed"),
        ("sglang", {"sampling_seed": True}, "sampling_seed"),
        ("sglang", {"min_new_tokens": 9, "max_new_tokens": 4}, "min_new_tokens"),
        ("anthropic", {"stop_sequences": [""]}, "stop_sequences"),
        ("ollama", {"repeat_penalty": 0}, "repeat_penalty"),
        ("openai", {"logit_bias": {"-1": 1}}, "logit_bias"),
        ("openai", {"logit_bias": {"1": 500}}, "logit_bias"),
        ("openai", {"stop_token_ids": list(range(2000))}, "stop_token_ids"),
    ],
)
def test_refusals_name_the_clients_field(protocol: Protocol, fields: dict[str, Any], param: str) -> None:
    failure = refused(protocol, fields)
    assert failure.param == param
    assert param in failure.message


def test_counts() -> None:
    assert [count_of(None, "n"), count_of(3, "n")] == [1, 3]
    for value in (0, 129, 10**9, "3", 1.5):
        with pytest.raises(Failure, match="n"):
            count_of(value, "n")


@pytest.mark.parametrize(
    "fields",
    [
        {"bad_words": ["a"]},
        {"allowed_token_ids": [5]},
        {"stop_regex": "a"},
        {"guided_whitespace_pattern": " "},
        {"truncate_prompt_tokens": 0},
        {"chat_template": "x"},
        {"custom_logit_processor": "x"},
    ],
)
def test_what_is_not_offered_is_refused(fields: dict[str, Any]) -> None:
    for refuse in (refuse_unoffered, refuse_constraints):
        with pytest.raises(Failure) as caught:
            refuse(fields)
        assert caught.value.code == "unsupported_parameter"
        assert caught.value.param == next(iter(fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"regex": "a"},
        {"guided_json": {"type": "object"}},
        {"structured_outputs": {"regex": "a"}},
        {"response_format": {"type": "json_schema", "json_schema": {}}},
        {"response_format": "json"},
        {"tools": [{"type": "function"}]},
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function"}},
        {"function_call": {"name": "f"}},
        {"guided_json": {}},
        {"json_schema": {}},
        {"format": {}},
    ],
)
def test_what_constrains_is_refused_where_nothing_can_be_constrained(fields: dict[str, Any]) -> None:
    refuse_unoffered(fields)
    with pytest.raises(Failure) as caught:
        refuse_constraints(fields)
    assert caught.value.code == "unsupported_parameter"
    assert caught.value.param == next(iter(fields))


def test_constraints_are_not_lost_in_an_argument_of_a_package() -> None:
    with pytest.raises(Failure, match="into the body itself"):
        refuse_unoffered({"extra_body": {"regex": "a"}})
    refuse_unoffered({"extra_body": {}})


def test_what_asks_for_nothing_is_let_through() -> None:
    refuse_constraints({"tools": [], "tool_choice": "none", "regex": None, "response_format": {"type": "text"}})
    refuse_constraints({"guided_json_object": False, "structured_outputs": None, "function_call": "auto", "other": 1})
    refuse_tools({"tools": [], "functions": None, "tool_choice": "auto"})
