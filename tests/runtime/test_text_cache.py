"""R9: a tokenizer that remembers words would answer sooner for what another tenant has sent. Ours remembers none."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from ramet.runtime.models import hub
from ramet.runtime.models.tokenizer import load_tokenizer
from ramet.runtime.text import Tokenizer

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(hub.resolve("random:tiny"))


class Remembering:
    """A model of tokens whose cache holds `room` words, as that of the library does."""

    def __init__(self) -> None:
        self.room = 10_000

    def _resize_cache(self, room: int) -> None:
        self.room = room


def room_of(tokenizer: Tokenizer, made: Any) -> int:
    """The room of the cache behind a tokenizer of this vocabulary, once it was made."""
    core = Tokenizer(replace(tokenizer._v, core=lambda: made))._core
    assert core is made
    return int(made.model.room)


def test_it_keeps_no_words(tokenizer: Tokenizer) -> None:
    assert room_of(tokenizer, SimpleNamespace(model=Remembering())) == 0


def test_without_the_rule_it_keeps_them(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control."""
    monkeypatch.setattr(Remembering, "_resize_cache", lambda self, room: None)
    assert room_of(tokenizer, SimpleNamespace(model=Remembering())) == 10_000


def test_the_library_has_what_we_call(tokenizer: Tokenizer) -> None:
    assert callable(tokenizer._core.model._resize_cache)  # type: ignore[attr-defined]


def test_a_model_without_a_cache_is_left_alone(tokenizer: Tokenizer) -> None:
    made = SimpleNamespace(model=SimpleNamespace(room=7))
    assert room_of(tokenizer, made) == 7


def test_the_tokens_are_the_same(tokenizer: Tokenizer) -> None:
    cached = tokenizer._v.core()
    for text in ("Once upon a time", " the the the", "antidisestablishmentarianism 12345", "\U0001f600\n\n  x"):
        want = cached.encode(text, add_special_tokens=False).ids
        assert [tokenizer.encode(text) for _ in range(3)] == [want] * 3
