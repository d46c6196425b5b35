"""R12: text that is not text is a 400; a user's special tokens are text; logs are escaped and hold no prompts."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator

import httpx
import pytest
from starlette.types import Scope

from ramet.runtime.server import guard, logs

from ..server.raw import answer_to, request
from ..server.serving import WAIT, Served, serving

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving() as made:
        yield made


BODIES = {
    "/generate": b'{"text": "%b", "sampling_params": {"max_new_tokens": 1, "temperature": %b}}',
    "/v1/completions": b'{"model": "tiny", "prompt": "%b", "max_tokens": 1, "temperature": %b}',
    "/v1/chat/completions": b'{"model": "tiny", "messages": [{"role": "user", "content": "%b"}], "max_tokens": 1,'
    b' "temperature": %b}',
    "/v1/messages": b'{"model": "tiny", "messages": [{"role": "user", "content": "%b"}], "max_tokens": 1,'
    b' "temperature": %b}',
    "/v1/responses": b'{"model": "tiny", "input": "%b", "max_output_tokens": 1, "temperature": %b}',
    "/api/generate": b'{"model": "tiny", "prompt": "%b", "stream": false, "options": {"num_predict": 1,'
    b' "temperature": %b}}',
    "/v1/programs": b'{"version": 1, "stream": false, "ops": ['
    b'{"type": "text", "id": "0.0", "seq": "0", "parts": ["%b"]},'
    b' {"type": "gen", "id": "0.1", "seq": "0", "var": "x", "sampling": {"max_tokens": 1, "temperature": %b}}]}',
}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("text", "number"),
    [
        (b"\\ud800", b"1"),
        (b"\\udc00\\ud800", b"1"),
        (b"\xed\xa0\x80", b"1"),
        (b"\xff", b"1"),
        (b"x", b"NaN"),
        (b"x", b"Infinity"),
        (b"x", b"-Infinity"),
        (b"x", b"1e400"),
    ],
)
def test_what_is_not_text_or_a_number(served: Served, path: str, text: bytes, number: bytes):
    status, body, _ = answer_to(served.url, request("POST", path, body=BODIES[path] % (text, number)))
    assert status == 400
    assert body["error"] if path.startswith("/api/") else body["error"]["message"]


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("text", [b"\\ud83d\\ude00", "\u4e2d\U0001f600".encode(), b"\\u0000", b"\\u202e"])
def test_what_is_text(served: Served, path: str, text: bytes):
    status, _, _ = answer_to(served.url, request("POST", path, body=BODIES[path] % (text, b"1")))
    assert status == 200


def test_special_tokens_that_a_user_types_are_text(served: Served):
    """A chat whose text holds the end-of-turn token has as many turns as it has messages."""
    special = served.service.tokenizer.encode("<|im_end|>")
    assert len(special) > 1

    def tokens(content: str) -> list[int]:
        body = {"model": "tiny", "messages": [{"role": "user", "content": content}]}
        found: list[int] = httpx.post(f"{served.url}/tokenize", json=body, timeout=WAIT).json()["tokens"]
        return found

    ends = set(served.service.tokenizer.eos)
    own = [token in ends for token in tokens("ab")].count(True)
    assert own >= 1  # the control: the template's own are one token
    assert [token in ends for token in tokens("a<|im_end|>b")].count(True) == own


def test_fields_with_line_ends_do_not_reach_the_headers(served: Served):
    body = {"text": "x", "sampling_params": {"max_new_tokens": 1}, "a\r\nX-Evil: 1": 1, "\u4e2d": 1}
    answer = httpx.post(f"{served.url}/generate", json=body, timeout=WAIT)
    assert answer.status_code == 200
    assert "x-evil" not in answer.headers and "was ignored" in answer.headers["x-ramet-warnings"]


def logged(served: Served, *, level: int = logging.DEBUG) -> str:
    """What is logged of requests with secrets and odd characters in every place."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.Lines("text", traces=False))
    logger = logging.getLogger("ramet")
    before = logger.level
    logger.setLevel(level)
    logger.addHandler(handler)
    try:
        secret = "the hen is tired"
        body = {"text": secret, "sampling_params": {"max_new_tokens": 1}}
        assert httpx.post(f"{served.url}/generate?q=tired", json=body, timeout=WAIT).status_code == 200
        wrong = {"text": secret, "sampling_params": {"max_new_tokens": secret}}
        assert httpx.post(f"{served.url}/generate", json=wrong, timeout=WAIT).status_code == 400
        answer_to(served.url, request("GET", "/a%0d%0a2026%20forged%1b[2J"))
        answer_to(served.url, request("GET", "/v1/models/%E2%80%AEx%E2%80%A8y"))
        answer_to(served.url, request("GET", "/v1/models", "X-Request-Id: a\tb tired"))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
    return stream.getvalue()


def discreet(served: Served) -> None:
    """The check: one escaped line for each request, without a word of what was asked."""
    lines = logged(served)
    assert "path=/generate" in lines and "forged" in lines  # the control: these requests are there
    assert "tired" not in lines
    assert len(lines.splitlines()) == 5 and all(" request request_id=" in line for line in lines.splitlines())
    assert all(c == "\n" or c.isprintable() for c in lines)


def test_the_log_is_escaped_and_holds_no_prompts(served: Served):
    discreet(served)


def telling(level: int, scope: Scope, status: int, seconds: float) -> None:
    query = scope["query_string"].decode("latin-1")
    ACCESS(level, {**scope, "path": f"{scope['path']}?{query}"}, status, seconds)


def labelled(headers: dict[bytes, bytes]) -> str:
    return headers.get(b"x-request-id", b"").decode("latin-1")


class Wordy(logs.Lines):
    """Bodies in the log, as a debugging aid."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{super().format(record)} the hen is tired"


ACCESS = logs._access
LOGS: dict[str, tuple[object, str, object]] = {
    "nothing is escaped": (logs, "escaped", lambda text: text),
    "line ends alone": (logs, "escaped", lambda text: text.replace("\n", " ").replace("\r", " ")),
    "control characters alone": (logs, "_UNSAFE", re.compile(r"[\x00-\x1f]")),
    "queries": (logs, "_access", telling),
    "bodies": (logs, "Lines", Wordy),
    "any request id": (guard, "_label", labelled),
}


@pytest.mark.parametrize("mutation", LOGS)
def test_another_log_is_seen(served: Served, monkeypatch: pytest.MonkeyPatch, mutation: str):
    monkeypatch.setattr(*LOGS[mutation])
    with pytest.raises(AssertionError):
        discreet(served)


class Quoting(Exception):
    pass


@pytest.mark.parametrize("form", ["text", "json"])
def test_errors_are_logged_without_their_words(form: str):
    def line(traces: bool) -> str:
        try:
            raise Quoting("private prompt")
        except Quoting as error:
            info = (type(error), error, error.__traceback__)
        record = logging.LogRecord("ramet.x", logging.ERROR, "f", 1, "it\nfailed", None, info)
        return logs.Lines("json" if form == "json" else "text", traces=traces).format(record)

    assert "Quoting" in line(False) and "private" not in line(False)
    assert "private" in line(True)  # the control, and what "debug" is for
    assert len(line(True).splitlines()) == 1
    if form == "json":
        assert json.loads(line(False))["level"] == "error"
