"""A vocabulary as automata see it: the bytes of every token that may spell text, and which tokens end a text.

In: a `Tokenizer`, or the bytes of its tokens (b"" for those that stand for no text), and the end tokens. Out: a
`Lexicon`: llguidance's tokenizer, the bits that any mask may set, and the fewest tokens that spell a text.
"""

from __future__ import annotations

import re
from codecs import getincrementaldecoder
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from llguidance import LLTokenizer, TokenizerWrapper

from ramet.frontend.errors import EngineError
from ramet.runtime.batch import U32
from ramet.runtime.grammar.lanes import COUNT, GATE, PLAIN, SIGNALS

if TYPE_CHECKING:
    from ramet.runtime.text import Tokenizer

# Slices: sets of tokens that a mask takes over whole where the grammar allows all of them, so that it need not look at
# each: 40 times faster inside strings, 15 times in a class of letters, digits and some signs. Several lengths, since a
# pattern's string has room for so much and no more; each costs every start of an engine some 10 ms.
_LENGTHS = (2, 4, 7, 10, 15, 20, 30)
_SLICES = [
    r"[\x20\x0A\x0D\x09]+",
    *(f"{kind}{{1,{most}}}" for kind in ("[a-zA-Z0-9 ]", PLAIN) for most in _LENGTHS),
    f"{PLAIN}+",
]
MOST_LEFT = 30  # characters that are left in a string, up to which its mask is made by the lengths of tokens
_PLAIN_ASCII, _PLAIN = (
    re.compile(rb'[^"\\\x00-\x1F\x7F-\xFF]+'),
    re.compile(PLAIN.replace("{", "").replace("}", "") + "*"),
)
EXACT = 4096  # bytes of text up to which the fewest tokens are counted; above, they are bounded from below


@dataclass(frozen=True)
class Lexicon:
    """`text[i]` are the bytes that token i adds to a text, b"" for those that masks never allow: control tokens, end
    tokens, ids without a token, tokens that hold the byte 0xff (never part of UTF-8; llguidance marks control tokens
    with it). `allowed` and `ends` are bitmasks `[ceil(V/32)]` of the tokens that spell and end texts. `words` is the
    length of the masks that llguidance writes, which may be more.

    For lanes: `gate` and `count` are tokens of these signals, `raw` those that hold a signal; `longer[n]` are the
    tokens of more than n plain characters (the last one may be incomplete), `[MOST_LEFT, ceil(V/32)]`."""

    engine: LLTokenizer
    text: tuple[bytes, ...]
    allowed: U32
    ends: U32
    words: int
    gate: int
    count: int
    raw: U32
    longer: U32

    @classmethod
    def of(cls, tokens: Tokenizer | Sequence[bytes], eos: Iterable[int], vocab: int | None = None) -> Lexicon:
        """`vocab` is the number of the model's logits; it may be more than there are tokens (padding) or fewer.
        Raises `EngineError` when no token spells anything, or an end token is not an id of the vocabulary."""
        content = token_bytes(tokens)
        size = len(content) if vocab is None else vocab
        stops = frozenset(eos)
        if any(not 0 <= i < size for i in stops):
            raise EngineError(f"eos={sorted(stops)}: end tokens must be ids from 0 to {size - 1}")
        text = tuple(b"" if i in stops or b"\xff" in t else t for i, t in enumerate(content[:size]))
        if not any(text):
            raise EngineError("the vocabulary holds no token that stands for text: nothing can be constrained")
        padded = text + (b"",) * (size - len(text))
        spelling = _bits((i for i, t in enumerate(text) if t), size)
        ends = _bits(stops, size)
        engine, gate, count = ll_tokenizer(padded, sorted(stops))
        raw = _bits((i for i, t in enumerate(text) if any(signal in t for signal in SIGNALS)), size)
        words = -(-engine.vocab_size // 32)
        return cls(engine, padded, spelling | ends, ends, words, gate, count, raw, _longer(padded))

    def is_raw(self, token: int) -> bool:
        """Whether a token holds a signal."""
        return bool(self.raw[token >> 5] >> (token & 31) & 1)

    def spells(self, token: int) -> bool:
        """Whether the id stands for bytes of text."""
        return 0 <= token < len(self.text) and self.text[token] != b""


class _Source:
    """What llguidance reads of a tokenizer. It never tokenises here: that is only asked for its own fast-forwarding."""

    def __init__(self, tokens: Sequence[bytes], end: int) -> None:
        self.tokens = tokens
        self.eos_token_id = end
        self.bos_token_id = None
        self.special_token_ids: list[int] = []

    def __call__(self, text: bytes) -> list[int]:
        return []


def token_bytes(tokens: Tokenizer | Sequence[bytes]) -> Sequence[bytes]:
    """The bytes of every id, b"" for control tokens: what is sent to a compiling process."""
    if isinstance(tokens, Sequence):
        return tokens
    return [tokens.token_bytes(i) for i in range(tokens.vocab_size)]


def ll_tokenizer(tokens: Sequence[bytes], eos: Sequence[int]) -> tuple[LLTokenizer, int, int]:
    """llguidance's tokenizer over these bytes, the tokens of `GATE` and `COUNT`; without end tokens it gets one beyond
    the vocabulary, as it does for signals."""
    content, ends = (list(tokens), list(eos)) if eos else ([*tokens, b""], [len(tokens)])
    signals = []
    for signal in (GATE.encode(), COUNT.encode()):
        if signal not in content:
            content.append(signal)
        signals.append(content.index(signal))
    engine = LLTokenizer(TokenizerWrapper(_Source(content, ends[0])), eos_token=ends, slices=_SLICES)
    return engine, signals[0], signals[1]


def _longer(text: Sequence[bytes]) -> U32:
    counts = np.fromiter(map(_characters, text), np.int32, len(text))
    return np.stack([_bits(np.flatnonzero(counts > n).tolist(), len(text)) for n in range(MOST_LEFT)])


def _characters(text: bytes) -> int:
    """The number of characters of a text of plain ones, the last of which may be incomplete; 0 for any other text."""
    if _PLAIN_ASCII.fullmatch(text):
        return len(text)
    decoder = getincrementaldecoder("utf-8")()
    try:
        found = decoder.decode(text)
    except UnicodeDecodeError:
        return 0
    return len(found) + bool(decoder.getstate()[0]) if _PLAIN.fullmatch(found) else 0


def _bits(ids: Iterable[int], size: int) -> U32:
    flags = np.zeros(-(-size // 32) * 32, np.uint8)
    flags[list(ids)] = 1
    return np.packbits(flags, bitorder="little").view("<u4").astype(np.uint32)


class Speller:
    """The fewest tokens that spell a text."""

    def __init__(self, text: Sequence[bytes]) -> None:
        self._ids = {t: i for i, t in enumerate(text) if t}
        self._reach: dict[bytes, int] = {}  # the first two bytes of tokens: the longest that begins so
        for token in self._ids:
            self._reach[token[:2]] = max(self._reach.get(token[:2], 0), len(token))
        self._longest = max(self._reach.values())

    def spell(self, text: bytes) -> list[int] | None:
        """Ids of a spelling with the fewest tokens, None when the vocabulary lacks a byte. A shortest path from cut to
        cut, O(len(text) * length of tokens)."""
        counts = [0] + [-1] * len(text)  # tokens up to each cut; -1 is unreachable
        lengths = [0] * (len(text) + 1)  # of the last token up to there
        for here in range(len(text)):
            if counts[here] < 0:
                continue
            count = counts[here] + 1
            for length in range(1, self._reach.get(text[here : here + 2], 1) + 1):
                end = here + length
                if end > len(text):
                    break
                if (counts[end] < 0 or count < counts[end]) and text[here:end] in self._ids:
                    counts[end], lengths[end] = count, length
        return self._cut(text, lengths) if counts[-1] >= 0 else None

    def _cut(self, text: bytes, lengths: Sequence[int]) -> list[int]:
        ids, here = [], len(text)
        while here:
            ids.append(self._ids[text[here - lengths[here] : here]])
            here -= lengths[here]
        return ids[::-1]

    def fewest(self, text: bytes) -> int | None:
        """The number of tokens of `spell`, or for a text of more than `EXACT` bytes what it has at least."""
        if len(text) > EXACT:
            return -(-len(text) // self._longest)
        ids = self.spell(text)
        return None if ids is None else len(ids)
