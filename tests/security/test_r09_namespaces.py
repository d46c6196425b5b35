"""R9: what one key, or one salt, has cached is invisible to another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from ramet.runtime.server import compose
from ramet.runtime.server.guard import Guard

from ..server.serving import WAIT, Served, serving

pytestmark = pytest.mark.model
SECRET = "The password of the vault in the cellar is seventeen green bottles and a very tired hen, of all things."


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(api_key=("alice", "bob"), admin_key="boss") as made:
        yield made


def cached(served: Served, key: str, path: str, text: str = SECRET, **more: Any) -> tuple[int, int]:
    """Cached tokens and all tokens of a prompt, as its sender is told."""
    messages = [{"role": "user", "content": text}]
    bodies: dict[str, dict[str, Any]] = {
        "/generate": {"text": text, "sampling_params": {"max_new_tokens": 1}},
        "/v1/completions": {"model": "tiny", "prompt": text, "max_tokens": 1},
        "/v1/chat/completions": {"model": "tiny", "messages": messages, "max_tokens": 1},
        "/v1/messages": {"model": "tiny", "messages": messages, "max_tokens": 1},
        "/v1/responses": {"model": "tiny", "input": text, "max_output_tokens": 1},
        "/v1/programs": {"version": 1, "stream": False, "ops": program(text)},
    }
    salt = more.pop("cache_salt", "")
    more |= {"header": {"namespace": salt}} if path == "/v1/programs" else {"cache_salt": salt} if salt else {}
    answer = httpx.post(f"{served.url}{path}", json={**bodies[path], **more}, headers={"x-api-key": key}, timeout=WAIT)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    if path == "/generate":
        return found["meta_info"]["cached_tokens"], found["meta_info"]["prompt_tokens"]
    if path == "/v1/programs":
        begun = next(event for event in found["events"] if event["type"] == "started")
        return begun["cached_tokens"], begun["prompt_tokens"]
    usage = found["usage"]
    if path == "/v1/messages":
        read = usage["cache_read_input_tokens"]
        return read, read + usage["input_tokens"]
    if path == "/v1/responses":
        return usage["input_tokens_details"]["cached_tokens"], usage["input_tokens"]
    return usage["prompt_tokens_details"]["cached_tokens"], usage["prompt_tokens"]


def program(text: str) -> list[dict[str, Any]]:
    return [
        {"type": "text", "id": "0.0", "seq": "0", "parts": [text]},
        {"type": "gen", "id": "0.1", "seq": "0", "var": "x", "sampling": {"max_tokens": 1}},
    ]


PATHS = ["/generate", "/v1/completions", "/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/programs"]
SALTED = ["/v1/completions", "/v1/chat/completions", "/v1/programs"]


@pytest.mark.parametrize("path", PATHS)
def test_keys_do_not_share(served: Served, path: str):
    text = f"{path}: {SECRET}"
    first, size = cached(served, "alice", path, text)
    again, _ = cached(served, "alice", path, text)
    assert again >= size - 2 > first  # the control: the owner finds it
    for key in ("bob", "boss"):
        assert cached(served, key, path, text)[0] <= first  # what other tests of this module have left, no more


def salts_are_apart(served: Served, path: str, text: str) -> None:
    """The check: what is cached under one salt is found under that salt, by its owner, and nowhere else."""
    cached(served, "alice", path, text, cache_salt="one")
    again, size = cached(served, "alice", path, text, cache_salt="one")
    assert again >= size - 2
    for key, salt in (("alice", "two"), ("alice", ""), ("bob", "one")):
        salted = {"cache_salt": salt} if salt else {}
        assert cached(served, key, path, text, **salted)[0] < size // 2  # the template's own words, at most


@pytest.mark.parametrize("path", SALTED)
def test_salts_do_not_share(served: Served, path: str):
    salts_are_apart(served, path, f"salted, {path}: {SECRET}")


SALTS: dict[str, Any] = {
    "salts are ignored": lambda caller, salt: caller.namespace,
    "a salt is the namespace": lambda caller, salt: salt or caller.namespace,
    "salts are cut": lambda caller, salt: COMPOSED(caller, salt and "x"),
}
COMPOSED = compose.namespace


@pytest.mark.parametrize("mutation", SALTS)
def test_without_salts_the_check_fails(served: Served, monkeypatch: pytest.MonkeyPatch, mutation: str):
    monkeypatch.setattr(compose, "namespace", SALTS[mutation])
    with pytest.raises(AssertionError):
        salts_are_apart(served, "/v1/completions", f"{mutation}: {SECRET}")


def test_without_the_rule_the_probe_sees(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Guard, "namespace", lambda self, key: "one for all")
    with serving(api_key=("alice", "bob")) as served:
        cached(served, "alice", "/generate")
        seen, size = cached(served, "bob", "/generate")
    assert seen >= size - 2


def test_guesses_of_a_prompt_find_nothing(served: Served):
    """What PROMPTPEEK does: extend a guess while the count of cached tokens grows."""
    words = f"Guess {SECRET}".split()
    cached(served, "alice", "/generate", " ".join(words))
    guesses = [" ".join(words[:n]) for n in range(4, len(words), 4)]
    own = [cached(served, "alice", "/generate", guess) for guess in guesses]
    assert all(found >= size - 1 for found, size in own)  # the control: every guess is found whole
    before = 0
    for guess in guesses:  # of a guess, bob is told no more than what bob's guess before it has left
        found, size = cached(served, "bob", "/generate", guess)
        assert found <= before
        before = size
