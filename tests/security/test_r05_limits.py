"""R5, to the digit: each bound is met at its own value and refused one beyond it, by every front end; all of them build
one frozen struct by its one constructor; programs are bounded in operations, forks, depth, tokens and time.

Positive controls: the struct's check or a program's meter is taken out, and the same requests come through.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from ramet.frontend import sampling as sampling_module
from ramet.frontend.errors import ConstraintError
from ramet.frontend.sampling import MAX_BIAS, MAX_LOGPROBS, MAX_N, MAX_STOP_CHARS, MAX_STOPS, Sampling
from ramet.runtime.server import program_body
from ramet.runtime.server.program_body import Meter
from ramet.runtime.server.settings import Settings

from ..server.serving import WAIT, Served, serving

ROOT = Path(sampling_module.__file__).parents[1]
INF, NAN = float("inf"), float("nan")

# -- the struct

BOUNDS: dict[str, tuple[list[Any], list[Any]]] = {  # field: values at its bounds, values just beyond them
    "temperature": ([0.0, 100.0], [-1e-9, 100.0001, INF, -INF, NAN]),
    "top_p": ([1e-6, 1.0], [0.0, 1.0001, NAN]),
    "top_k": ([0, (1 << 31) - 1], [-1, 1 << 31]),
    "min_p": ([0.0, 1.0], [-1e-9, 1.0001, NAN]),
    "max_tokens": ([1, 1 << 31, None], [0, -1, (1 << 31) + 1]),
    "min_tokens": ([0], [-1, (1 << 31) + 1]),
    "frequency_penalty": ([-2.0, 2.0], [-2.0001, 2.0001, NAN]),
    "presence_penalty": ([-2.0, 2.0], [-2.0001, 2.0001, INF]),
    "repetition_penalty": ([0.01, 100.0], [0.0099, 100.0001, NAN]),
    "stop": ([("a",) * 16, ("a" * 256,)], [("a",) * 17, ("a" * 257,), ("",)]),
    "logit_bias": (
        [dict.fromkeys(range(300), 1.0), {1: 100.0, 2: -100.0}],
        [dict.fromkeys(range(301), 1.0), {1: 100.1}, {1: NAN}, {1: -INF}],
    ),
    "logprobs": ([-1, 20], [-2, 21]),
    "seed": ([-(1 << 63), (1 << 64) - 1, None], [1 << 64, -(1 << 63) - 1]),
}
UNBOUNDED = {"stop_token_ids", "ignore_eos"}  # ids are held to the vocabulary where it is known; the other is a switch


def loose(field: str) -> list[Any]:
    """Values beyond the bounds of a field that its struct takes."""
    taken = []
    for value in BOUNDS[field][1]:
        try:
            Sampling(**{field: value})
        except ConstraintError:
            continue
        taken.append(value)
    return taken


@pytest.mark.parametrize("field", BOUNDS)
def test_a_bound_is_where_it_is_said_to_be(field: str) -> None:
    for value in BOUNDS[field][0]:
        assert getattr(Sampling(**{field: value}), field) == value
    assert loose(field) == []


def test_the_numbers_of_the_rule() -> None:
    assert (MAX_STOPS, MAX_STOP_CHARS, MAX_BIAS, MAX_LOGPROBS, MAX_N) == (16, 256, 300, 20, 128)
    assert set(Sampling.__struct_fields__) == set(BOUNDS) | UNBOUNDED
    with pytest.raises(ConstraintError, match="min_tokens=3: must not exceed max_tokens=2"):
        Sampling(min_tokens=3, max_tokens=2)
    assert Sampling(min_tokens=2, max_tokens=2).min_tokens == 2


def _unlimited(field: str, value: Any, low: Any, high: Any, remedy: str) -> None:
    """Any number."""


def _polite(field: str, value: Any, remedy: str) -> None:
    """Nothing is refused."""


@pytest.mark.parametrize("field", BOUNDS)
def test_control_without_the_constructors_checks_anything_goes(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling_module, "bounded", _unlimited)
    monkeypatch.setattr(sampling_module, "refuse", _polite)
    assert loose(field) != []


def test_it_is_frozen_and_knows_its_fields() -> None:
    with pytest.raises(AttributeError):
        Sampling().temperature = 2.0  # type: ignore[misc]
    config = Sampling.__struct_config__
    assert config.frozen and config.forbid_unknown_fields
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.json.decode(b'{"temprature": 1}', type=Sampling)
    with pytest.raises(msgspec.ValidationError, match="temperature=101"):  # decoding is by the constructor too
        msgspec.json.decode(b'{"temperature": 101}', type=Sampling)


def makers(source: str) -> list[str]:
    """Ways around the constructor: a copy that skips it, and structs made from nothing."""
    called = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    named = [node for node in called if isinstance(node, ast.Attribute)]
    odd = ("force_setattr", "model_construct", "__setattr__")
    return [ast.unparse(node) for node in named if node.attr in odd or ast.unparse(node) == "object.__new__"]


def test_nothing_goes_round_the_constructor() -> None:
    """msgspec's own `replace` runs the checks again; what does not is not used on requests."""
    with pytest.raises(ConstraintError):
        msgspec.structs.replace(Sampling(), temperature=-1.0)
    files = [*(ROOT / "runtime" / "server").glob("*.py"), *(ROOT / "runtime").glob("*.py"), ROOT / "frontend" / "ir.py"]
    assert {path.name: makers(path.read_text()) for path in files if makers(path.read_text())} == {}
    assert makers("msgspec.structs.force_setattr(s, 'top_k', -1)") and makers("object.__new__(Sampling)"), "the control"


# -- front ends


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving() as made:
        yield made


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=WAIT) as client:
        yield client


def native(**fields: Any) -> dict[str, Any]:
    return {"text": "one", "sampling_params": {"max_new_tokens": 1, **fields}}


def text(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": "one", "max_tokens": 1, **fields}


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": "one"}], "max_tokens": 1, **fields}


def program(**fields: Any) -> dict[str, Any]:
    gen = {"type": "gen", "id": "0.1", "seq": "0", "var": "x", "sampling": {"max_tokens": 1, **fields}}
    return {"version": 1, "stream": False, "ops": [{"type": "text", "id": "0.0", "seq": "0", "parts": ["x"]}, gen]}


def ollama(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": "one", "stream": False, "options": {"num_predict": 1, **fields}}


def answers(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "input": "one", "max_output_tokens": 1, **fields}


STOPS, LONG = [f"stop {i}" for i in range(17)], "z" * 257
BIASES = {str(i): 1 for i in range(301)}
Make = Callable[..., dict[str, Any]]
EDGES: dict[str, tuple[str, Make, str, Any, Any]] = {  # name: path, body, field, at the bound, one beyond
    "stops, native": ("/generate", native, "stop", STOPS[:16], STOPS),
    "stops, text": ("/v1/completions", text, "stop", STOPS[:16], STOPS),
    "stops, chat": ("/v1/chat/completions", chat, "stop", STOPS[:16], STOPS),
    "stops, messages": ("/v1/messages", chat, "stop_sequences", STOPS[:16], STOPS),
    "stops, program": ("/v1/programs", program, "stop", STOPS[:16], STOPS),
    "stops, Ollama": ("/api/generate", ollama, "stop", STOPS[:16], STOPS),
    "a stop, native": ("/generate", native, "stop", LONG[1:], LONG),
    "a stop, chat": ("/v1/chat/completions", chat, "stop", [LONG[1:]], [LONG]),
    "a stop, program": ("/v1/programs", program, "stop", [LONG[1:]], [LONG]),
    "biases, native": ("/generate", native, "logit_bias", dict(list(BIASES.items())[:300]), BIASES),
    "biases, chat": ("/v1/chat/completions", chat, "logit_bias", dict(list(BIASES.items())[:300]), BIASES),
    "biases, program": ("/v1/programs", program, "logit_bias", dict(list(BIASES.items())[:300]), BIASES),
    "logprobs, text": ("/v1/completions", text, "logprobs", 20, 21),
    "logprobs, chat": (
        *("/v1/chat/completions", lambda **fields: chat(logprobs=True, **fields)),
        *("top_logprobs", 20, 21),
    ),
    "logprobs, responses": ("/v1/responses", answers, "top_logprobs", 20, 21),
    "logprobs, native": (
        *("/generate", lambda top: {**native(), "return_logprob": True, "top_logprobs_num": top}),
        *("top", 20, 21),
    ),
    "logprobs, program": ("/v1/programs", program, "logprobs", 20, 21),
    "n, native": ("/generate", native, "n", 128, 129),
    "n, text": ("/v1/completions", text, "n", 128, 129),
    "n, chat": ("/v1/chat/completions", chat, "n", 128, 129),
    "prompts, text": ("/v1/completions", text, "prompt", ["x"] * 128, ["x"] * 129),
    "prompts, native": ("/generate", lambda texts: {**native(), "text": texts}, "texts", ["x"] * 128, ["x"] * 129),
    "ids of the vocabulary, text": ("/v1/completions", text, "prompt", [49151], [49152]),
    "ids of the vocabulary, native": (
        *("/generate", lambda ids: {**_without(native()), "input_ids": ids}),
        *("ids", [49151], [49152]),
    ),
    "ids of the vocabulary, biases": ("/generate", native, "logit_bias", {"49151": 1}, {"49152": 1}),
    "ids of the vocabulary, stops": ("/generate", native, "stop_token_ids", [49151], [49152]),
    "ids of the vocabulary, program": (
        "/v1/programs",
        lambda ids: {
            **program(),
            "ops": [{"type": "tokens", "id": "0.0", "seq": "0", "ids": ids}, program()["ops"][1]],
        },
        *("ids", [49151], [49152]),
    ),
}


def _without(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name != "text"}


def edge(http: httpx.Client, name: str) -> tuple[int, int]:
    """Statuses at a bound and beyond it."""
    path, make, field, inside, beyond = EDGES[name]
    found = [http.post(path, json=make(**{field: value})) for value in (inside, beyond)]
    assert all(answer.status_code in (200, 400) for answer in found), [answer.text[:300] for answer in found]
    return found[0].status_code, found[1].status_code


@pytest.mark.model
@pytest.mark.parametrize("name", EDGES)
def test_each_front_end_has_the_same_bound(served: Served, http: httpx.Client, name: str) -> None:
    assert served.service.vocab == 49152
    assert edge(http, name) == (200, 400)


# Counts are read before there is a struct, and so are logprobs where they are asked for in other words.
BUILT = [
    name for name in EDGES if not name.startswith(("n,", "prompts", "ids", "logprobs")) or name.endswith("program")
]
BUILT.remove("ids of the vocabulary, program")


@pytest.mark.model
@pytest.mark.parametrize("name", BUILT)
def test_control_all_of_them_rely_on_the_one_constructor(
    http: httpx.Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling_module, "bounded", _unlimited)
    monkeypatch.setattr(sampling_module, "refuse", _polite)
    path, make, field, _, beyond = EDGES[name]
    answer = http.post(path, json=make(**{field: beyond}))
    assert answer.status_code == 200, answer.text


# -- fields that nobody knows


UNKNOWN = {
    "/v1/chat/completions": chat(tempo=1),
    "/v1/completions": text(tempo=1),
    "/generate": {**native(), "tempo": 1},
    "/v1/programs": {**program(), "tempo": 1},
}


@pytest.mark.model
def test_an_unknown_field_is_spoken_of(http: httpx.Client) -> None:
    """Clients send fields of other servers: they are told what was ignored. Inside a program it is refused always."""
    for path, body in UNKNOWN.items():
        answer = http.post(path, json=body)
        assert answer.status_code == 200 and "`tempo` is not known" in answer.headers["x-ramet-warnings"], path
    for odd in ({"header": {"nom": "x"}}, {"limits": {"opps": 1}}, program(tempo=1)):
        assert http.post("/v1/programs", json={**program(), **odd}).status_code == 400


@pytest.mark.model
def test_with_strict_requests_it_is_refused() -> None:
    with serving(strict_requests=True) as made, httpx.Client(base_url=made.url, timeout=WAIT) as http:
        for path, body in UNKNOWN.items():
            answer = http.post(path, json=body)
            assert answer.status_code == 400 and answer.json()["error"]["code"] == "unknown_parameter", path


# -- programs


def forks(count: int, depth: int = 1) -> list[dict[str, Any]]:
    """So many branches; or (`depth`) forks of one branch inside each other."""
    if depth == 1:
        return [{"type": "fork", "id": "0.1", "seq": "0", "into": [f"0.1.b{i}" for i in range(count)]}]
    ops, at = [], "0"
    for level in range(depth):
        here = f"{at}.{1 if level == 0 else 0}"
        ops.append({"type": "fork", "id": here, "seq": at, "into": [f"{here}.b0"]})
        at = f"{here}.b0"
    return ops


def gens(count: int, tokens: int) -> list[dict[str, Any]]:
    many = {"type": "gen", "seq": "0", "sampling": {"max_tokens": tokens, "stop": ["e", "a", " "]}}
    return [{**many, "id": f"0.{i + 1}", "var": f"x{i}"} for i in range(count)]


FIRST = {"type": "text", "id": "0.0", "seq": "0", "parts": ["x"]}
CAPS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]], int]] = {  # programs at a limit and beyond; the limit
    "ops": (gens(3, 1), gens(4, 1), 4),
    "tokens": (gens(2, 8), [*gens(2, 8), *gens(3, 1)[2:]], 16),
    "sequences": (forks(3), forks(4), 4),
    "depth": (forks(1, 3), forks(1, 4), 3),
}
LIMITS = {"ops": 10_000, "tokens": 1_000_000, "sequences": 4096, "depth": 128, "choices": 1024}


def capped(http: httpx.Client, name: str) -> tuple[int, str]:
    """The status of a program at a limit, and the field of the refusal of one beyond it."""
    inside, beyond, limit = CAPS[name]
    body = {"version": 1, "stream": False, "limits": {name: limit}}
    ours, theirs = (http.post("/v1/programs", json={**body, "ops": [FIRST, *ops]}) for ops in (inside, beyond))
    assert theirs.status_code in (200, 400), theirs.text
    return ours.status_code, (theirs.json().get("error") or {"param": ""})["param"]


@pytest.mark.model
@pytest.mark.parametrize("name", CAPS)
def test_programs_are_bounded(http: httpx.Client, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert capped(http, name) == (200, f"limits.{name}")
    monkeypatch.setattr(Meter, "take", lambda self, ops: None)  # the control
    assert capped(http, name) == (200, "")


@pytest.mark.model
def test_nobody_can_widen_a_limit(http: httpx.Client) -> None:
    made = program_body.limits_of(Settings())
    assert {name: getattr(made, name) for name in LIMITS} == LIMITS
    for name, most in LIMITS.items():
        answer = http.post("/v1/programs", json={**program(), "limits": {name: most + 1}})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == f"limits.{name}"


@pytest.mark.model
def test_the_time_of_a_program_is_bounded(http: httpx.Client) -> None:
    endless = program(max_tokens=1000, ignore_eos=True)
    assert http.post("/v1/programs", json={**endless, "limits": {"seconds": 0.01}}).status_code == 504
    assert program_body.limits_of(Settings()).seconds == 86_400.0, "there is one without asking"
    assert program_body.limits_of(Settings(request_timeout=5)).seconds == 5.0
