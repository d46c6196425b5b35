"""Plain `httpx` on SGLang's native protocol, the pages around it, and lm-eval's shape. argv: base URL, model."""

import json
import sys

import httpx

URL, MODEL = sys.argv[1:3]
http = httpx.Client(base_url=URL, timeout=60)


def posted(path, **body):
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def pages():
    for path in ("/health", "/ready", "/metrics", "/v1/models", "/model_info", "/get_model_info", "/server_info"):
        assert http.get(path).status_code == 200, path
    for path in ("/get_server_info", "/version", "/tokenizer_info", "/openapi.json", "/docs", "/health_generate"):
        assert http.get(path).status_code == 200, path
    kv = http.get("/server_info").json()["kv"]
    assert kv["total"] >= kv["free"] > 0


def native():
    greedy = {"max_new_tokens": 10, "temperature": 0}
    one = posted("/generate", text="Once upon a time", sampling_params=greedy)
    assert one["meta_info"]["finish_reason"]["type"] in ("stop", "length")
    two = posted("/generate", text=["Once upon a time", "The end"], sampling_params=greedy)
    assert two[0]["text"] == one["text"]
    cached = posted("/generate", text="Once upon a time", sampling_params={"max_new_tokens": 0})
    assert cached["meta_info"]["completion_tokens"] == 0

    texts = []
    with http.stream(
        "POST", "/generate", json={"text": "Once upon a time", "sampling_params": greedy, "stream": True}
    ) as lines:
        for line in lines.iter_lines():
            if line:
                texts.append(line.removeprefix("data: "))
    assert texts[-1] == "[DONE]"
    assert json.loads(texts[-2])["text"] == one["text"]


def likelihood():
    """What lm-eval's `local-completions` sends: token ids, echoed with logprobs, one token of which is dropped."""
    start = posted("/tokenize", model=MODEL, prompt="The capital of France is", add_special_tokens=False)["tokens"]
    rest = posted("/tokenize", model=MODEL, prompt=" Paris", add_special_tokens=False)["tokens"]
    text = posted("/detokenize", model=MODEL, tokens=[*start, *rest])["prompt"]
    assert text == "The capital of France is Paris"
    body = {"model": MODEL, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    answer = posted("/v1/completions", prompt=[[*start, *rest], [*start]], **body)
    for choice, ids in zip(answer["choices"], ([*start, *rest], [*start]), strict=True):
        logprobs = choice["logprobs"]["token_logprobs"][len(start) : -1]
        tops = choice["logprobs"]["top_logprobs"][len(start) : -1]
        assert len(choice["logprobs"]["token_logprobs"]) == len(ids) + 1
        assert len(logprobs) == len(tops) == len(ids) - len(start)
        for value, top in zip(logprobs, tops, strict=True):
            assert value <= max(top.values())


def refusals():
    for status, path, content in (
        (400, "/generate", b"{"),
        (400, "/generate", b'{"text": "x", "sampling_params": {"temperature": NaN}}'),
        (400, "/generate", b'{"text": "\\ud800"}'),
        (400, "/v1/chat/completions", b"[" * 100_000),
        (400, "/generate", b'{"text": "x", "sampling_params": {"regex": "a|b", "max_new_tokens": 1e9}}'),
        (404, "/nowhere", b"{}"),
        (405, "/v1/models", b"{}"),
        (413, "/generate", b" " * (5 << 20)),
    ):
        answer = http.post(path, content=content, headers={"content-type": "application/json"})
        assert answer.status_code == status, (path, content[:40], answer.status_code, answer.text)
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert http.get("/health").status_code == 200


for test in (pages, native, likelihood, refusals):
    test()
