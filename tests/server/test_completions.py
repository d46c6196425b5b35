"""OpenAI's /v1/completions: the engine's own answers in the shape of OpenAI's package, as lm-eval and TRL read them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import httpx
import openai
import pytest
from openai.types import Completion

from .offline import choices, finished, gen, score, text, tokens
from .serving import WAIT, Served, serving

pytestmark = pytest.mark.model
PROMPT = "Once upon a time there was a river"
SAME: dict[str, Any] = {"temperature": 0.9, "max_tokens": 6, "seed": 11, "ignore_eos": True}
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 6, "ignore_eos": True}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving() as made:
        yield made


@pytest.fixture(scope="module")
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=WAIT) as client:
        yield client


def post(http: httpx.Client, **body: Any) -> httpx.Response:
    return http.post("/v1/completions", json={"model": "tiny", "prompt": PROMPT, **body})


def ask(http: httpx.Client, **body: Any) -> Any:
    answer = post(http, **body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(http: httpx.Client, status: int, **body: Any) -> dict[str, Any]:
    answer = post(http, **body)
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


def chunks(http: httpx.Client, **body: Any) -> list[dict[str, Any]]:
    answer = post(http, **body, stream=True)
    lines = [line for line in answer.text.split("\n") if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


# -- what is generated


def test_it_is_the_engines_and_openais(served: Served, http: httpx.Client) -> None:
    (want,) = finished(served, text(PROMPT), gen(**SAME))
    ask(http, **SAME)  # what is cached now is of the client's own namespace
    got = ask(http, **SAME)
    shaped = Completion.model_validate(got, strict=True)
    assert shaped.choices[0].text == want.value
    assert shaped.choices[0].finish_reason == "length"
    assert shaped.usage is not None
    assert shaped.usage.prompt_tokens == want.meta.prompt_tokens
    assert (shaped.usage.completion_tokens, shaped.usage.total_tokens) == (6, want.meta.prompt_tokens + 6)
    assert shaped.usage.prompt_tokens_details is not None
    assert shaped.usage.prompt_tokens_details.cached_tokens == want.meta.prompt_tokens - 1


def test_openais_own_client(served: Served) -> None:
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=WAIT)
    (want,) = finished(served, text(PROMPT), gen(temperature=0.9, max_tokens=16, seed=3))
    whole = client.completions.create(model="tiny", prompt=PROMPT, seed=3, temperature=0.9)
    assert whole.choices[0].text == want.value
    stream = client.completions.create(
        model="tiny", prompt=PROMPT, seed=3, temperature=0.9, stream=True, stream_options={"include_usage": True}
    )
    parts = list(stream)
    assert "".join(part.choices[0].text for part in parts[:-1]) == want.value
    assert parts[-1].choices == []
    assert parts[-1].usage is not None
    assert parts[-1].usage.completion_tokens == want.meta.completion_tokens
    with pytest.raises(openai.NotFoundError, match="not served here"):
        client.completions.create(model="gpt", prompt=PROMPT)
    with pytest.raises(openai.BadRequestError, match="maximum context length is 1024"):
        client.completions.create(model="tiny", prompt=PROMPT, max_tokens=5000)


def test_choices_are_prompt_major(served: Served, http: httpx.Client) -> None:
    other = served.service.tokenizer.encode("Another place")
    got = ask(http, **SAME, prompt=[served.service.tokenizer.encode(PROMPT), other], n=3)
    first = [each.value for each in finished(served, text(PROMPT), *choices(3, **SAME))]
    second = [each.value for each in finished(served, tokens(*other), *choices(3, **SAME))]
    assert [choice["index"] for choice in got["choices"]] == list(range(6))
    assert [choice["text"] for choice in got["choices"]] == first + second
    assert got["usage"]["completion_tokens"] == 36


def test_best_of_is_ranked_by_mean_logprob(served: Served, http: httpx.Client) -> None:
    all_of = finished(served, text(PROMPT), *choices(4, **SAME, logprobs=0))
    ranked = sorted(all_of, key=lambda each: each.meta.mean_logprob or 0.0, reverse=True)
    got = ask(http, **SAME, n=2, best_of=4)
    assert [choice["text"] for choice in got["choices"]] == [each.value for each in ranked[:2]]
    assert got["choices"][0]["logprobs"] is None
    assert got["usage"]["completion_tokens"] == 24


def test_a_prompt_of_nothing_begins_a_document(served: Served, http: httpx.Client) -> None:
    (want,) = finished(served, tokens(1), gen(**GREEDY))
    assert ask(http, **GREEDY, prompt=None)["choices"][0]["text"] == want.value


def test_stops(served: Served, http: httpx.Client) -> None:
    whole = ask(http, **GREEDY)["choices"][0]["text"]
    stop = whole[len(whole) // 2 :][:2]
    got = ask(http, **GREEDY, stop=[stop])["choices"][0]
    assert (got["text"], got["finish_reason"], got["stop_reason"]) == (whole[: whole.index(stop)], "stop", stop)
    kept = ask(http, **GREEDY, stop=stop, include_stop_str_in_output=True)["choices"][0]
    assert kept["text"] == got["text"] + stop
    streamed = chunks(http, **GREEDY, stop=stop, include_stop_str_in_output=True)
    assert "".join(chunk["choices"][0]["text"] for chunk in streamed) == kept["text"]
    (end,) = ask(http, temperature=0, max_tokens=6, logit_bias={"2": 100})["choices"]
    assert (end["text"], end["finish_reason"], end["stop_reason"]) == ("", "stop", None)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_ids_have_the_tokens_of_the_stop_and_a_row_each(http: httpx.Client, path: str) -> None:
    """As vLLM's: who asks for ids gets all that was generated, and its logprobs beside it."""
    chat = path.endswith("chat/completions")
    prompt = {"messages": [{"role": "user", "content": PROMPT}]} if chat else {"prompt": PROMPT}
    body = {**prompt, "max_tokens": 24, "temperature": 1.2, "seed": 5, "logprobs": True if chat else 0}

    def choice(**more: Any) -> tuple[list[int], int, dict[str, Any]]:
        (found,) = http.post(path, json={**body, **more}).json()["choices"]
        rows = found["logprobs"]["content"] if chat else found["logprobs"]["tokens"]
        return found.get("token_ids", []), len(rows), found

    free, _, _ = choice(ignore_eos=True, return_token_ids=True)
    ended = {"logit_bias": {"2": 10}}
    biased, _, _ = choice(**ended, ignore_eos=True, return_token_ids=True)
    for stop, want in (({"ignore_eos": True, "stop_token_ids": [free[9]]}, free), (ended, biased)):
        ids, rows, found = choice(**stop, return_token_ids=True)
        assert found["finish_reason"] == "stop"
        assert ids == want[: len(ids)] and ids[-1] in (free[9], 2)
        assert rows == len(ids)
        assert choice(**stop)[1] == rows - 1, "beside the text alone there are the text's"
        with http.stream("POST", path, json={**body, **stop, "return_token_ids": True, "stream": True}) as answer:
            lines = [json.loads(line[5:]) for line in answer.iter_lines() if line.startswith("data: {")]
        told = [each for line in lines for each in line["choices"]]
        assert [token for each in told for token in each.get("token_ids", [])] == ids
        key = "content" if chat else "tokens"
        assert sum(len(each["logprobs"][key]) for each in told if each["logprobs"]) == rows


# -- streams


def test_a_stream_is_the_same_text(http: httpx.Client) -> None:
    whole = ask(http, **SAME, n=2, logprobs=2, return_token_ids=True)
    got = chunks(http, **SAME, n=2, logprobs=2, return_token_ids=True, stream_options={"include_usage": True})
    for chunk in got:  # OpenAI's own chunks have null here too, though its type does not say so
        shown = [{**choice, "finish_reason": choice["finish_reason"] or "stop"} for choice in chunk["choices"]]
        Completion.model_validate({**chunk, "choices": shown}, strict=True)
    assert len({chunk["id"] for chunk in got}) == 1
    assert [chunk["usage"] for chunk in got[:-1]] == [None] * (len(got) - 1)
    assert got[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    for want in whole["choices"]:
        mine = [c for chunk in got for c in chunk["choices"] if c["index"] == want["index"]]
        assert "".join(c["text"] for c in mine) == want["text"]
        assert [c["finish_reason"] for c in mine] == [None] * (len(mine) - 1) + ["length"]
        assert [token for c in mine for token in c["token_ids"]] == want["token_ids"]
        assert mine[0]["prompt_token_ids"] == want["prompt_token_ids"]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            assert [item for c in mine for item in c["logprobs"][name]] == want["logprobs"][name]


def test_usage_as_it_grows(http: httpx.Client) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}  # guidellm's
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks(http, **GREEDY, stream_options=options)]
    assert counts == sorted(counts)
    assert counts[-1] == 6


# -- logprobs


def test_logprobs_of_the_output(served: Served, http: httpx.Client) -> None:
    (want,) = finished(served, text(PROMPT), gen(**SAME, logprobs=5))
    got = ask(http, **SAME, logprobs=5)["choices"][0]["logprobs"]
    assert got["token_logprobs"] == [each.logprob for each in want.meta.logprobs]
    assert got["tokens"] == [each.text for each in want.meta.logprobs]
    assert got["text_offset"][0] == 0
    assert all(a <= b for a, b in pairwise(got["text_offset"]))
    for row, each in zip(got["top_logprobs"], want.meta.logprobs, strict=True):
        assert max(row.values()) == each.top[0][2]
        assert row[each.text] >= each.logprob
    ids = ask(http, **SAME, logprobs=1, return_tokens_as_token_ids=True)["choices"][0]["logprobs"]["tokens"]
    assert ids == [f"token_id:{token}" for token in want.meta.tokens]


def test_as_lm_eval_reads_it(served: Served, http: httpx.Client) -> None:
    encode = served.service.tokenizer.encode
    context, continuation = encode(PROMPT), encode(" and a bank")
    body = {"max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True, "seed": 1234}
    (want,) = finished(served, tokens(*context, *continuation), score(0, 1))
    for bias in ({}, {"2": 100}):  # the second one ends the text at once: still one more place in the lists
        got = ask(http, prompt=[[*context, *continuation]] * 2, **body, logit_bias=bias)
        for choice in got["choices"]:
            values = choice["logprobs"]["token_logprobs"]
            assert values[0] is None
            assert values[1:-1] == [each.logprob for each in want.meta.logprobs][1:]
            tail = choice["logprobs"]["top_logprobs"][len(context) : -1]
            greedy = [value == max(top.values()) for value, top in zip(values[len(context) : -1], tail, strict=True)]
            assert greedy == [each.top[0][0] == each.token for each in want.meta.logprobs[len(context) :]]
            assert choice["finish_reason"] == ("stop" if bias else "length")
            assert choice["text"].startswith(PROMPT + " and a bank")


def test_echo_without_generating(served: Served, http: httpx.Client) -> None:
    (want,) = finished(served, text(PROMPT), score(0, 2))
    got = ask(http, echo=True, logprobs=2, max_tokens=0)
    choice = got["choices"][0]
    assert choice["text"] == PROMPT
    assert choice["logprobs"]["token_logprobs"][1:] == [each.logprob for each in want.meta.logprobs][1:]
    assert choice["logprobs"]["text_offset"] == [PROMPT.index(t, i) for i, t in _pieces(choice["logprobs"]["tokens"])]
    assert got["usage"]["completion_tokens"] == 0
    (streamed,) = chunks(http, echo=True, logprobs=2, max_tokens=0)
    assert streamed["choices"][0]["logprobs"] == choice["logprobs"]
    assert streamed["choices"][0]["finish_reason"] == "length"


def _pieces(names: list[str]) -> list[tuple[int, str]]:
    starts = [sum(map(len, names[:i])) for i in range(len(names))]
    return list(zip(starts, names, strict=True))


def test_prompt_logprobs(served: Served, http: httpx.Client) -> None:
    (want,) = finished(served, text(PROMPT), score(0, 3))
    table = ask(http, **GREEDY, prompt_logprobs=3, return_token_ids=True)["choices"][0]["prompt_logprobs"]
    assert table[0] is None
    for row, each in zip(table[1:], want.meta.logprobs[1:], strict=True):
        assert row[str(each.token)]["logprob"] == each.logprob
        assert [row[str(token)]["rank"] for token, _, _ in each.top] == [1, 2, 3]


# -- what is refused


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"n": 10**9}, "n"),
        ({"n": 0}, "n"),
        ({"logprobs": 10**6}, "logprobs"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": -4}, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ["a" * 300]}, "stop"),
        ({"stop": 5}, "stop"),
        ({"seed": 2**70}, "seed"),
        ({"logit_bias": {"5": 1000}}, "logit_bias"),
        ({"logit_bias": {str(i): 1 for i in range(301)}}, "logit_bias"),
        ({"response_format": {"type": "json"}}, "response_format"),
        ({"guided_json": None, "guided_regex": "("}, "guided_regex"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs"),
        ({"guided_json": {}, "guided_regex": "x"}, "guided_regex"),
        ({"regex": "x", "jump": "far"}, "jump"),
        ({"tools": [{}]}, "tools"),
        ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        ({"allowed_token_ids": [1]}, "allowed_token_ids"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt_logprobs": 5, "stream": True}, "prompt_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"timeout": 0}, "timeout"),
        ({"cache_salt": "x" * 257}, "cache_salt"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"extra_key": "x" * 257}, "extra_key"),
        ({"rid": "x" * 257}, "rid"),
        ({"request_id": ""}, "request_id"),
    ],
)
def test_nonsense_is_named(http: httpx.Client, body: dict[str, Any], param: str) -> None:
    assert refused(http, 400, **body)["param"].startswith(param)


def test_a_request_is_aborted_by_its_id(served: Served, http: httpx.Client) -> None:
    for name in ("rid", "request_id"):
        body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 900, "ignore_eos": True, "stream": True, name: name}
        with http.stream("POST", "/v1/completions", json=body) as answer:
            assert answer.headers["x-request-id"] == name and "x-ramet-warnings" not in answer.headers
            lines = answer.iter_lines()
            assert json.loads(next(lines)[5:])["id"] == f"cmpl-{name}"
            with httpx.Client(base_url=served.url, timeout=WAIT) as other:
                assert refused(other, 409, request_id=name)["param"] == "request_id"
                assert other.post("/abort_request", json={"rid": name}).json() == {"aborted": 1}
            rest = [line for line in lines if line.startswith("data:")]
        assert "error" in json.loads(rest[-1][5:])


def test_salts_add_up(http: httpx.Client) -> None:
    prompt = "A salt for each of those who share nothing " * 4

    def cached(**body: Any) -> int:
        usage = ask(http, prompt=prompt, **GREEDY, **body)["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    both = {"cache_salt": "pepper", "extra_key": "thyme"}
    for body in (*({name: value} for name, value in both.items()), both):
        assert (cached(**body), cached(**body) > 0) == (0, True)


def test_other_refusals(http: httpx.Client) -> None:
    assert refused(http, 404, model="gpt")["code"] == "model_not_found"
    assert refused(http, 400, prompt=[5] * 2000)["code"] == "context_length_exceeded"
    assert refused(http, 400, max_tokens=5000)["code"] == "context_length_exceeded"
    assert ask(http, prompt=[5] * 1020, ignore_eos=True)["usage"]["completion_tokens"] == 4  # nobody asked for 16
    assert refused(http, 400, prompt="")["type"] == "invalid_request_error"
    assert post(http, max_tokens=1, seed=-5).status_code == 200


@pytest.mark.parametrize("prompt", ["", [""], ["a", ""], [[]], [[5], []]])
def test_an_empty_prompt_is_named(http: httpx.Client, prompt: Any) -> None:
    error = refused(http, 400, prompt=prompt)
    assert error["param"] == "prompt"
    assert "empty" in error["message"] and "append" not in error["message"]


@pytest.mark.parametrize("prompt", [[5, 10**9], [[5], [-1]]])
def test_ids_that_are_no_tokens_are_named(http: httpx.Client, prompt: Any) -> None:
    error = refused(http, 400, prompt=prompt)
    assert (error["param"], error["code"]) == ("prompt", "invalid_value")


def test_a_field_whose_ids_are_no_tokens_is_named(http: httpx.Client) -> None:
    assert refused(http, 400, logit_bias={"99999999": 1})["param"] == "logit_bias"
    assert refused(http, 400, stop_token_ids=[99999999])["param"] == "stop_token_ids"
