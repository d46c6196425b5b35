"""R12: infinities do not leave, what is no JSON does not enter, prompts are capped in characters before they are
tokenised, and tokenised beside the event loop."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from ramet.frontend import ir
from ramet.frontend.errors import ContextOverflow
from ramet.runtime.lower import Lowering
from ramet.runtime.server import compose, program_body, strict_json, wire
from ramet.runtime.server.service import Service
from ramet.runtime.text import Tokenizer
from ramet.runtime.translate import Translator

from ..server.serving import WAIT, Served, serving

pytestmark = pytest.mark.model
CONTEXT = 1024
MOST = 16 * CONTEXT  # characters


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving() as made:
        yield made


def post(served: Served, path: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{served.url}{path}", json=body, timeout=WAIT)


def said(text: str) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": text}]}


def program(text: str) -> dict[str, Any]:
    ops = [
        {"type": "text", "id": "0.0", "seq": "0", "parts": [text]},
        {"type": "gen", "id": "0.1", "seq": "0", "var": "x", "sampling": {"max_tokens": 1, "logprobs": 3}},
    ]
    return {"version": 1, "ops": ops, "stream": False}


PROMPTS: dict[str, Callable[[str], dict[str, Any]]] = {
    "/generate": lambda text: {"text": text, "sampling_params": {"max_new_tokens": 1}},
    "/v1/completions": lambda text: {"model": "tiny", "prompt": text, "max_tokens": 1},
    "/v1/chat/completions": lambda text: {**said(text), "max_tokens": 1},
    "/v1/messages": lambda text: {**said(text), "max_tokens": 1},
    "/v1/messages/count_tokens": said,
    "/v1/responses": lambda text: {"model": "tiny", "input": text, "max_output_tokens": 1},
    "/v1/programs": program,
    "/api/generate": lambda text: {"model": "tiny", "prompt": text, "stream": False, "options": {"num_predict": 1}},
    "/api/chat": lambda text: {**said(text), "stream": False, "options": {"num_predict": 1}},
    "/tokenize": lambda text: {"model": "tiny", "prompt": text},
}


# -- infinities


LOGGED: dict[str, dict[str, Any]] = {
    "/generate": {
        "text": "x",
        "sampling_params": {"max_new_tokens": 2, "temperature": 0},
        "return_logprob": True,
        "top_logprobs_num": 3,
    },
    "/v1/completions": {"model": "tiny", "prompt": "x", "max_tokens": 2, "logprobs": 3},
    "/v1/chat/completions": {**said("x"), "max_tokens": 2, "logprobs": True, "top_logprobs": 3},
    "/v1/responses": {"model": "tiny", "input": "x", "max_output_tokens": 2, "top_logprobs": 3}
    | {"include": ["message.output_text.logprobs"]},
    "/v1/programs": program("x"),
}


def refuse(name: str) -> float:
    raise AssertionError(f"{name} is no JSON")


def finite(served: Served, path: str) -> None:
    """The check: an answer, and its stream, is JSON, and -inf in it is -9999.0."""
    for stream in (False, True):
        answer = post(served, path, {**LOGGED[path], "stream": stream})
        assert answer.status_code == 200, answer.text
        lines = [line[5:] for line in answer.text.splitlines() if line.startswith("data:")] if stream else [answer.text]
        texts = [line for line in lines if line.strip() != "[DONE]"]
        values = [json.loads(line, parse_constant=refuse) for line in texts]
        numbers = [each for value in values for each in numbers_of(value)]
        assert -9999.0 in numbers and min(numbers) == -9999.0, sorted(set(numbers))[:4]


def numbers_of(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from numbers_of(part)
    elif isinstance(value, float):
        yield value


def sunken(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the engine tells of a token holds -inf and nan."""
    inner = Translator._logprobs

    def logprobs(self: Translator, *told: Any) -> list[ir.Logprob]:
        return [
            ir.Logprob(
                each.token, each.text, -math.inf, tuple((t, s, -math.inf) for t, s, _ in each.top[:-1]) + each.top[-1:]
            )
            for each in inner(self, *told)
        ]

    monkeypatch.setattr(Translator, "_logprobs", logprobs)


@pytest.mark.parametrize("path", LOGGED)
def test_infinities_do_not_leave(served: Served, monkeypatch: pytest.MonkeyPatch, path: str):
    sunken(monkeypatch)
    finite(served, path)


FLOORS: dict[str, tuple[tuple[Any, str, Any], ...]] = {
    "null in its place": ((wire, "LOWEST", -math.inf), (program_body, "LOWEST", math.nan)),
    "a lower floor": ((wire, "LOWEST", -1e30), (program_body, "LOWEST", -1e30)),
    "a higher floor": ((wire, "LOWEST", -100.0), (program_body, "LOWEST", -100.0)),
}


@pytest.mark.parametrize("mutation", FLOORS)
@pytest.mark.parametrize("path", ["/generate", "/v1/programs"])
def test_without_the_floor_the_check_fails(served: Served, monkeypatch: pytest.MonkeyPatch, mutation: str, path: str):
    sunken(monkeypatch)
    for change in FLOORS[mutation]:
        monkeypatch.setattr(*change)
    with pytest.raises(AssertionError):
        finite(served, path)


# -- what is not text or a number, in every place


ODD = (
    b'"\\ud800"',
    b'"\\udfff\\ud800"',
    b'"\xed\xa0\x80"',
    b'"\xff"',
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"1e999",
    b"-1e999",
)


def strict(parse: Callable[[bytes], Any]) -> None:
    """The check: what JSON does not have is refused, wherever it stands; what it has is read."""
    for odd in ODD:
        for form in (b"%b", b'{"a": %b}', b"[[%b]]", b'{"a": {"b": [1, %b]}}'):
            with pytest.raises(wire.Failure) as caught:
                parse(form % odd)
            assert caught.value.status == 400, odd
    for odd in ODD[:4]:
        with pytest.raises(wire.Failure):
            parse(b"{%b: 1}" % odd)
    assert parse('{"a": ["\\ud83d\\ude00", "\u4e2d", -1e300, null]}'.encode()) == {
        "a": ["\U0001f600", "\u4e2d", -1e300, None]
    }


def test_only_json_is_read():
    strict(strict_json.parse)


PARSERS: dict[str, Callable[[bytes], Any]] = {
    "Python's reader": lambda raw: json.loads(raw.decode("utf-8", "surrogatepass")),
    "replaced bytes": lambda raw: strict_json.parse(raw.decode("utf-8", "replace").encode()),
    "dropped escapes": lambda raw: strict_json.parse(raw.replace(b"\\ud", b"")),
    "numbers made finite": lambda raw: strict_json.parse(
        raw.replace(b"NaN", b"0").replace(b"Infinity", b"0").replace(b"e999", b"")
    ),
}


@pytest.mark.parametrize("mutation", PARSERS)
def test_other_readers_are_seen(mutation: str):
    with pytest.raises((AssertionError, pytest.fail.Exception, ValueError)):
        strict(PARSERS[mutation])


# -- prompts are capped before they are tokenised, beside the event loop


class Encoded:
    """How much was tokenised, and where."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        self.threads: set[str] = set()
        inner = Tokenizer._piece

        def piece(tokenizer: Tokenizer, text: str, prefixed: bool) -> list[int]:
            self.sizes.append(len(text))
            if len(text) > 1000:
                self.threads.add(threading.current_thread().name)
            return inner(tokenizer, text, prefixed)

        monkeypatch.setattr(Tokenizer, "_piece", piece)


def capped(served: Served, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check: a text that is too long is refused untouched; one that is not is tokenised in a thread of its own."""
    seen = Encoded(monkeypatch)
    for size in (MOST + 1, 8 * MOST):
        answer = post(served, path, PROMPTS[path]("ab " * (size // 3 + 1)))
        assert answer.status_code == 400, answer.text[:200]
    assert sum(seen.sizes) < MOST, "it was tokenised"
    seen.sizes.clear()
    post(served, path, PROMPTS[path]("ab " * (MOST // 3 - 400)))
    assert sum(seen.sizes) > MOST // 2, "the control: this one was tokenised"
    assert seen.threads and "test-server" not in seen.threads, "the event loop waited for it"


@pytest.mark.parametrize("path", PROMPTS)
def test_long_prompts_are_refused_before_they_are_tokenised(served: Served, monkeypatch: pytest.MonkeyPatch, path: str):
    capped(served, path, monkeypatch)


async def on_the_loop(self: Service, work: Callable[[], Any]) -> Any:
    return work()


def unlimited(self: Lowering, *args: Any, **options: Any) -> None:
    LOWERING(self, *args, **{**options, "max_chars": 1 << 40})


LOWERING = Lowering.__init__
CAPS: dict[str, tuple[tuple[Any, str, Any], ...]] = {
    "no cap": ((compose, "CHARACTERS", 1 << 30), (Lowering, "__init__", unlimited)),
    "a cap a hundred times higher": ((compose, "CHARACTERS", 1600), (Lowering, "__init__", unlimited)),
    "on the loop": ((Service, "_in_thread", on_the_loop),),
}


@pytest.mark.parametrize("mutation", CAPS)
def test_without_the_cap_the_check_fails(served: Served, monkeypatch: pytest.MonkeyPatch, mutation: str):
    for change in CAPS[mutation]:
        monkeypatch.setattr(*change)
    with pytest.raises(AssertionError):
        capped(served, "/v1/chat/completions", monkeypatch)


def test_the_language_has_the_same_cap(served: Served):
    """Programs that never saw HTTP: the text is refused by `Lowering`."""
    lowering = served.client.lowering(0)
    with pytest.raises(ContextOverflow):
        lowering.lower([ir.Text(id="0.0", seq="0", parts=("a" * (MOST + 1),))])
