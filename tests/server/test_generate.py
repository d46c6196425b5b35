"""SGLang's /generate: the answers are the engine's own, in SGLang's shape; what its frontend sends works."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from .offline import choices, finished, gen, score, text, tokens
from .serving import WAIT, Served, serving

pytestmark = pytest.mark.model
PROMPT = "Once upon a time there was a river"
GREEDY: dict[str, Any] = {"temperature": 0, "max_new_tokens": 6, "ignore_eos": True}
SEEDED: dict[str, Any] = {"temperature": 0.9, "max_new_tokens": 6, "sampling_seed": 11, "ignore_eos": True}
SAME: dict[str, Any] = {"temperature": 0.9, "max_tokens": 6, "seed": 11, "ignore_eos": True}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving() as made:
        yield made


@pytest.fixture(scope="module")
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=WAIT) as client:
        yield client


def ask(http: httpx.Client, **body: Any) -> Any:
    answer = http.post("/generate", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(http: httpx.Client, status: int, **body: Any) -> dict[str, Any]:
    answer = http.post("/generate", json=body)
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


def events(http: httpx.Client, **body: Any) -> list[dict[str, Any]]:
    """A stream's events, read as SGLang's client reads them."""
    found = []
    with http.stream("POST", "/generate", json={**body, "stream": True}) as answer:
        assert answer.status_code == 200
        lines = [line for line in answer.iter_lines() if line.startswith("data:")]
    assert lines[-1] == "data: [DONE]"
    for line in lines[:-1]:
        found.append(json.loads(line[5:]))
    return found


# -- what is generated


def test_text_is_the_engines(served: Served, http: httpx.Client) -> None:
    (want,) = finished(served, text(PROMPT), gen(**SAME))
    ask(http, text=PROMPT, sampling_params=SEEDED)  # what is cached now is of the client's own namespace
    got = ask(http, text=PROMPT, sampling_params=SEEDED, rid="a")
    assert got["text"] == want.value
    assert got["output_ids"] == list(want.meta.tokens)
    meta = got["meta_info"]
    assert meta["id"] == "a"
    assert meta["finish_reason"] == {"type": "length", "length": 6}
    assert (meta["prompt_tokens"], meta["completion_tokens"]) == (want.meta.prompt_tokens, 6)
    assert meta["cached_tokens"] == want.meta.prompt_tokens - 1
    assert meta["e2e_latency"] > 0
    assert "input_token_logprobs" not in meta


def test_ids_are_taken_as_they_are(served: Served, http: httpx.Client) -> None:
    ids = served.service.tokenizer.encode("a river bank")
    (want,) = finished(served, tokens(*ids), gen(**SAME))
    assert ask(http, input_ids=ids, sampling_params=SEEDED)["text"] == want.value
    both = ask(http, input_ids=[ids, [5]], sampling_params=SEEDED)
    assert both[0]["text"] == want.value
    assert [each["index"] for each in both] == [0, 1]


def test_a_batch_is_a_list_and_params_are_each_prompts_own(served: Served, http: httpx.Client) -> None:
    alone = [ask(http, text=PROMPT, sampling_params=p)["text"] for p in (GREEDY, SEEDED)]
    together = ask(http, text=[PROMPT, PROMPT], sampling_params=[GREEDY, SEEDED], rid="r")
    assert [each["text"] for each in together] == alone
    assert [each["meta_info"]["id"] for each in together] == ["r_0", "r_1"]
    assert isinstance(ask(http, text=[PROMPT], sampling_params=GREEDY), list)


def test_n_stands_side_by_side(served: Served, http: httpx.Client) -> None:
    want = [each.value for each in finished(served, text(PROMPT), *choices(3, **SAME))]
    got = ask(http, text=[PROMPT, "Other"], sampling_params={**SEEDED, "n": 3})
    assert [each["text"] for each in got[:3]] == want
    assert len(got) == 6
    assert len(set(want)) == 3


def test_without_a_seed_equal_prompts_differ(http: httpx.Client) -> None:
    params = {"max_new_tokens": 12, "ignore_eos": True}
    got = ask(http, text=[PROMPT] * 4, sampling_params=params)
    assert len({each["text"] for each in got}) == 4


def test_defaults_are_sglangs(http: httpx.Client) -> None:
    got = ask(http, text=PROMPT, sampling_params={"ignore_eos": True})
    assert got["meta_info"]["completion_tokens"] == 128
    near = ask(http, input_ids=[5] * 1000, sampling_params={"ignore_eos": True})  # nobody asked for 128
    assert near["meta_info"]["completion_tokens"] == 24
    long = ask(http, text=PROMPT, sampling_params={"ignore_eos": True, "max_new_tokens": None})
    assert long["meta_info"]["prompt_tokens"] + long["meta_info"]["completion_tokens"] == 1024


def test_a_stop_is_trimmed_unless_it_is_wanted(served: Served, http: httpx.Client) -> None:
    whole = ask(http, text=PROMPT, sampling_params=GREEDY)["text"]
    stop = whole[len(whole) // 2 :][:2]
    (want,) = finished(served, text(PROMPT), gen(temperature=0, max_tokens=6, ignore_eos=True, stop=(stop,)))
    got = ask(http, text=PROMPT, sampling_params={**GREEDY, "stop": stop})
    assert got["text"] == want.value == whole[: whole.index(stop)]
    assert got["meta_info"]["finish_reason"] == {"type": "stop", "matched": stop}
    kept = ask(http, text=PROMPT, sampling_params={**GREEDY, "stop": [stop], "no_stop_trim": True})
    assert kept["text"] == want.value + stop
    streamed = events(http, text=PROMPT, sampling_params={**GREEDY, "stop": [stop], "no_stop_trim": True})
    assert streamed[-1]["text"] == want.value + stop
    assert streamed[-1]["meta_info"]["completion_tokens"] == kept["meta_info"]["completion_tokens"]


def test_a_stop_token_is_named(http: httpx.Client) -> None:
    ids = ask(http, text=PROMPT, sampling_params=GREEDY)["output_ids"]
    got = ask(http, text=PROMPT, sampling_params={**GREEDY, "stop_token_ids": [ids[2]]})
    assert got["meta_info"]["finish_reason"] == {"type": "stop", "matched": ids[2]}
    assert got["output_ids"] == ids[: ids.index(ids[2]) + 1], "as SGLang lists them: what is trained on must end"
    assert got["meta_info"]["completion_tokens"] == len(got["output_ids"])


@pytest.mark.parametrize("how", ["a stop string", "a part of a token", "an end token"])
def test_ids_are_all_that_was_generated(http: httpx.Client, how: str) -> None:
    """Who trains on them must see the tokens that were drawn, the end token too, each with its logprob."""
    params = {**SEEDED, "max_new_tokens": 24, "temperature": 1.2}
    if how == "an end token":
        params = {**params, "ignore_eos": False, "logit_bias": {"2": 8}}
    asked = {"text": PROMPT, "return_logprob": True, "top_logprobs_num": 1}
    free = ask(http, **asked, sampling_params={**params, "ignore_eos": True})
    if how != "an end token":
        params["stop"] = free["text"][20:22] if how == "a stop string" else free["text"][21]
    whole = ask(http, **asked, sampling_params=params)
    ids, meta = whole["output_ids"], whole["meta_info"]
    assert meta["finish_reason"]["type"] == "stop" and len(ids) < 24
    assert ids == free["output_ids"][: len(ids)]
    assert meta["output_token_logprobs"] == free["meta_info"]["output_token_logprobs"][: len(ids)]
    assert meta["completion_tokens"] == len(ids) == len(meta["output_top_logprobs"])
    for deltas in (False, True):
        got = events(http, **asked, sampling_params=params, incremental_streaming_output=deltas)
        assert [token for event in (got if deltas else got[-1:]) for token in event["output_ids"]] == ids
        assert got[-1]["meta_info"]["completion_tokens"] == len(ids)


def test_names_of_control_tokens(served: Served, http: httpx.Client) -> None:
    bias = {"2": 100}  # <|im_end|>
    params = {**GREEDY, "max_new_tokens": 2, "logit_bias": bias}
    assert ask(http, text=PROMPT, sampling_params=params)["text"] == ""
    shown = ask(http, text=PROMPT, sampling_params={**params, "skip_special_tokens": False})
    assert shown["text"] == "<|im_end|><|im_end|>"
    plain = ask(http, text="<|im_end|>", sampling_params=GREEDY)["meta_info"]["prompt_tokens"]
    special = ask(http, text="<|im_end|>", sampling_params=GREEDY, parse_special=True)["meta_info"]["prompt_tokens"]
    assert special == 1 < plain


# -- streams


def test_a_stream_is_cumulative(http: httpx.Client) -> None:
    whole = ask(http, text=PROMPT, sampling_params=SEEDED)
    got = events(http, text=PROMPT, sampling_params=SEEDED)
    position, text = 0, ""
    for event in got:  # as SGLang's client does
        chunk = event["text"][position:]
        position += len(chunk)
        text += chunk
    assert text == whole["text"]
    counts = [event["meta_info"]["completion_tokens"] for event in got]
    assert counts == sorted(counts)
    assert counts[-1] == 6
    assert [event["meta_info"]["finish_reason"] for event in got[:-1]] == [None] * (len(got) - 1)
    assert got[-1]["output_ids"] == whole["output_ids"]
    assert got[-1]["meta_info"]["finish_reason"] == whole["meta_info"]["finish_reason"]


def test_deltas_when_they_are_wanted(http: httpx.Client) -> None:
    whole = ask(http, text=PROMPT, sampling_params=SEEDED, return_logprob=True)
    got = events(http, text=PROMPT, sampling_params=SEEDED, return_logprob=True, incremental_streaming_output=True)
    assert "".join(event["text"] for event in got) == whole["text"]
    assert [token for event in got for token in event["output_ids"]] == whole["output_ids"]
    rows = [row for event in got for row in event["meta_info"]["output_token_logprobs"]]
    assert rows == whole["meta_info"]["output_token_logprobs"]


def test_a_batch_is_streamed_with_its_index(http: httpx.Client) -> None:
    body = {"text": [PROMPT, "Other"], "sampling_params": [{**GREEDY, "n": 2}, {**SEEDED, "n": 2}]}
    whole = ask(http, **body)
    last: dict[int, Any] = {}
    for event in events(http, **body):
        last[event["index"]] = event
    assert [last[i]["text"] for i in range(4)] == [each["text"] for each in whole]
    assert all(last[i]["meta_info"]["finish_reason"] for i in range(4))


def test_a_stream_of_nothing(http: httpx.Client) -> None:
    (only,) = events(http, text=PROMPT, sampling_params={"max_new_tokens": 0})
    assert only["text"] == ""
    assert only["meta_info"]["finish_reason"] == {"type": "length", "length": 0}


# -- logprobs


def test_logprobs_of_the_output(served: Served, http: httpx.Client) -> None:
    (want,) = finished(served, text(PROMPT), gen(**{**SAME, "logprobs": 3}))
    got = ask(
        http,
        text=PROMPT,
        sampling_params=SEEDED,
        return_logprob=True,
        top_logprobs_num=3,
        return_text_in_logprobs=True,
    )["meta_info"]
    rows = [[each.logprob, each.token, each.text] for each in want.meta.logprobs]
    assert got["output_token_logprobs"] == rows
    assert got["output_top_logprobs"] == [[[v, i, t] for i, t, v in each.top] for each in want.meta.logprobs]
    assert got["input_token_logprobs"] == []
    bare = ask(http, text=PROMPT, sampling_params=SEEDED, return_logprob=True)["meta_info"]
    assert bare["output_token_logprobs"] == [[value, token, None] for value, token, _ in rows]
    assert "output_top_logprobs" not in bare


@pytest.mark.parametrize("start", [0, 1, 5])
def test_logprobs_of_the_prompt(served: Served, http: httpx.Client, start: int) -> None:
    ids = served.service.tokenizer.encode(PROMPT)
    (want,) = finished(served, text(PROMPT), score(start, 2))
    body = {"text": PROMPT, "return_logprob": True, "logprob_start_len": start, "top_logprobs_num": 2}
    for params in ({"max_new_tokens": 0}, GREEDY):
        meta = ask(http, **body, sampling_params=params)["meta_info"]
        rows = meta["input_token_logprobs"]
        assert [row[1] for row in rows] == ids[start:]
        assert rows[start == 0 :] == [[e.logprob, e.token, None] for e in want.meta.logprobs][start == 0 :]
        assert (rows[0][0] is None) == (start == 0)
        best = [None if not each.top else each.top[0][0] for each in want.meta.logprobs]
        assert [None if row is None else row[0][1] for row in meta["input_top_logprobs"]] == best
        assert (best[0] is None) == (start == 0)


# -- what SGLang's frontend sends


def test_its_gen(http: httpx.Client) -> None:
    params = {
        "skip_special_tokens": True,
        "spaces_between_special_tokens": True,
        "max_new_tokens": 4,
        "min_new_tokens": 0,
        "n": 1,
        "stop": [],
        "stop_token_ids": [],
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "ignore_eos": False,
        "regex": None,
        "json_schema": None,
    }
    answer = http.post("/generate", json={"text": PROMPT, "sampling_params": params})
    assert answer.status_code == 200
    assert "x-ramet-warnings" not in answer.headers
    assert answer.json()["text"] == ask(http, text=PROMPT, sampling_params={**GREEDY, "max_new_tokens": 4})["text"]


def test_its_cache_prefix(http: httpx.Client) -> None:
    long = PROMPT * 8
    first = ask(http, text=long, sampling_params={"max_new_tokens": 0})
    assert first["text"] == ""
    assert first["meta_info"]["completion_tokens"] == 0
    then = ask(http, text=long + " and", sampling_params=GREEDY)["meta_info"]
    assert then["cached_tokens"] >= first["meta_info"]["prompt_tokens"] - 2
    assert "`text`" in http.post("/generate", json={"text": ""}).json()["error"]["message"]
    empty = ask(http, text="", sampling_params={"max_new_tokens": 0})  # a program that forks before it says anything
    assert empty["meta_info"]["prompt_tokens"] == 0


def select(http: httpx.Client, prompt: str, options: list[str]) -> dict[str, list[list[Any]]]:
    """The requests of `sgl.select`, and what it reads of the answers."""
    prefix = ask(http, text=prompt, sampling_params={"max_new_tokens": 0})
    start = max(prefix["meta_info"]["prompt_tokens"] - 2, 0)
    scored = ask(
        http,
        text=[prompt + option for option in options],
        sampling_params={"max_new_tokens": 0, "temperature": 0},
        return_logprob=True,
        return_text_in_logprobs=True,
        logprob_start_len=start,
    )
    rows = [each["meta_info"]["input_token_logprobs"] for each in scored]
    assert all(each["meta_info"]["output_token_logprobs"] == [] for each in scored)
    ids = [[row[1] for row in mine] for mine in rows]
    bare = ask(http, input_ids=ids, sampling_params={"max_new_tokens": 0}, return_logprob=True)
    return {"conditional": rows, "unconditional": [each["meta_info"]["input_token_logprobs"] for each in bare]}


def test_its_select_reads_the_engines_logprobs(served: Served, http: httpx.Client) -> None:
    encode = served.service.tokenizer.encode
    prompt, options = PROMPT + ". Answer:", [" yes", " no", " perhaps it is"]
    read = select(http, prompt, options)
    start = len(encode(prompt)) - 2
    for option, mine, bare in zip(options, read["conditional"], read["unconditional"], strict=True):
        (want,) = finished(served, text(prompt + option), score(start))
        assert mine == [[each.logprob, each.token, each.text] for each in want.meta.logprobs]
        assert all(isinstance(row[0], float) for row in mine)
        assert len(bare) == len(mine)
        assert bare[0][0] is None
        assert all(row[0] < 0 for row in bare[1:])


# -- what is refused


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "text"),
        ({"text": "a", "input_ids": [1]}, "text"),
        ({"text": []}, "text"),
        ({"text": ["a"] * 129}, "text"),
        ({"text": "a", "sampling_params": {"n": 10**9}}, "n"),
        ({"text": "a", "sampling_params": {"top_p": 2}}, "top_p"),
        ({"text": "a", "sampling_params": {"min_new_tokens": -1}}, "min_new_tokens"),
        ({"text": "a", "sampling_params": {"max_new_tokens": -1}}, "max_new_tokens"),
        ({"text": "a", "sampling_params": {"regex": "[0-9"}}, "regex"),
        ({"text": "a", "sampling_params": {"json_schema": "{"}}, "json_schema"),
        ({"text": "a", "sampling_params": {"json_schema": '{"type": 5}'}}, "json_schema"),
        ({"text": "a", "sampling_params": {"json_schema": "{}", "regex": "a"}}, "json_schema"),
        ({"text": "a", "sampling_params": {"regex": "a", "jump": "far"}}, "jump"),
        ({"text": "a", "regex": "a"}, "regex"),
        ({"text": "a", "sampling_params": {"tools": [{}]}}, "tools"),
        ({"text": "a", "sampling_params": {"ebnf": "root ::= x"}}, "ebnf"),
        ({"text": "a", "sampling_params": {"stop_regex": "x"}}, "stop_regex"),
        ({"text": "a", "sampling_params": {"logit_bias": {"x": 1}}}, "logit_bias"),
        ({"text": "a", "sampling_params": {"skip_special_tokens": False}, "stream": True}, "skip_special_tokens"),
        ({"text": ["a", "b"], "sampling_params": [{"n": 1}, {"n": 2}]}, "n"),
        ({"text": ["a", "b"], "sampling_params": [{}]}, "sampling_params"),
        ({"text": "a", "return_logprob": True, "top_logprobs_num": 10**6}, "top_logprobs_num"),
        ({"text": "a", "return_logprob": True, "logprob_start_len": -5}, "logprob_start_len"),
        ({"text": "a", "token_ids_logprob": [1]}, "token_ids_logprob"),
        ({"text": "a", "image_data": "x.png"}, "image_data"),
        ({"text": "a", "input_embeds": [[0.5]]}, "input_embeds"),
        ({"text": "a", "lora_path": "x"}, "lora_path"),
        ({"text": "a", "rid": ""}, "rid"),
        ({"text": ["a", "b"], "rid": ["x"]}, "rid"),
        ({"text": "a", "timeout": -1}, "timeout"),
        ({"text": "a", "cache_salt": "x" * 257}, "cache_salt"),
        ({"text": ["a", "b"], "extra_key": ["x", "x" * 257]}, "extra_key"),
        ({"text": "a", "priority": 2**40}, "priority"),
    ],
)
def test_nonsense_is_named(http: httpx.Client, body: dict[str, Any], param: str) -> None:
    assert refused(http, 400, **body)["param"].endswith(param)


def test_ids_out_of_the_vocabulary(http: httpx.Client) -> None:
    for ids in ([10**6], [-1], [[3], [10**6]]):
        assert "token id" in refused(http, 400, input_ids=ids)["message"]


def test_prompts_beyond_the_context(http: httpx.Client) -> None:
    assert refused(http, 400, input_ids=[5] * 2000)["code"] == "context_length_exceeded"
    too_much = {"max_new_tokens": 2000}
    error = refused(http, 400, text=PROMPT, sampling_params=too_much)
    assert error["code"] == "context_length_exceeded"
    assert "2000 in the completion" in error["message"]


def test_a_request_is_aborted_by_its_rid(served: Served, http: httpx.Client) -> None:
    body = {
        "text": PROMPT,
        "sampling_params": {"max_new_tokens": 900, "ignore_eos": True},
        "rid": "long",
        "stream": True,
    }
    with http.stream("POST", "/generate", json=body) as answer:
        lines = answer.iter_lines()
        assert json.loads(next(lines)[5:])["meta_info"]["id"] == "long"
        with httpx.Client(base_url=served.url, timeout=WAIT) as other:
            assert refused(other, 409, text=PROMPT, rid="long")["param"] == "rid"
            assert refused(other, 409, text=[PROMPT] * 2, rid=["x", "x"])["param"] == "rid"
            assert other.post("/abort_request", json={"rid": "long"}).json() == {"aborted": 1}
        rest = [line for line in lines if line.startswith("data:")]
    assert "error" in json.loads(rest[-1][5:])
    assert "data: [DONE]" not in rest


def test_one_of_many_that_fails_ends_all(http: httpx.Client) -> None:
    too_much = {"max_new_tokens": 5000}
    for stream in (False, True):
        params = [{**GREEDY, "max_new_tokens": 900}, too_much]
        error = refused(http, 400, text=[PROMPT, PROMPT], sampling_params=params, stream=stream)
        assert error["code"] == "context_length_exceeded"


def test_unknown_fields_are_spoken_of(http: httpx.Client) -> None:
    answer = http.post("/generate", json={"text": "a", "sampling_params": {"max_new_token": 1, "max_new_tokens": 1}})
    assert answer.status_code == 200
    assert "did you mean `max_new_tokens`" in answer.headers["x-ramet-warnings"]
