"""Whether texts are in the language of a translation, asked of the matcher with one token per byte: no more and no less
is tested than the rules themselves."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

EOS = 256
HEADER = '%llguidance {"no_forcing": true}\n'


class _Bytes:
    eos_token_id, bos_token_id = EOS, None
    tokens: Sequence[bytes] = [bytes([value]) for value in range(256)] + [b"<eos>"]
    special_token_ids: Sequence[int] = [EOS]

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


@functools.cache
def _tokenizer() -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_Bytes()), slices=[])


def accepts(lark: str) -> Callable[[str | bytes], bool]:
    """A function that says whether a whole text is accepted."""
    start = LLMatcher(_tokenizer(), HEADER + lark, log_level=0)
    assert not start.is_error(), start.get_error()

    def ask(text: str | bytes) -> bool:
        coded = text if isinstance(text, bytes) else text.encode()
        matcher = start.deep_copy()
        return matcher.try_consume_tokens(list(coded)) == len(coded) and matcher.is_accepting()

    return ask


def prefix(lark: str, text: str) -> bool:
    """Whether a text can still become one of the language."""
    matcher = LLMatcher(_tokenizer(), HEADER + lark, log_level=0)
    return matcher.try_consume_tokens(list(text.encode())) == len(text.encode())
