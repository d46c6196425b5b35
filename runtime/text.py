"""Text to tokens and back: encode, decode, incremental detokenising and stop strings.

In: a model's own vocabulary (`vocabulary.py`), strings, token ids. Out: token ids, and text in whole characters only.
Encoding is of text in the *middle* of a sequence unless `start=True`: no BOS and no dummy space is ever put in front.
"""

from __future__ import annotations

import codecs
import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ramet.frontend.errors import ConstraintError
from ramet.runtime import vocabulary
from ramet.runtime.vocabulary import Vocabulary

if TYPE_CHECKING:
    import tokenizers

# Cuts that no continuation can undo, found from the right. The left character ends a pre-token whatever follows, and
# the right one, already known, begins one: nonspace|space, letter|not a letter, digit|not a digit, CJK|punctuation.
# The right one is ASCII or CJK punctuation, so that NFC never joins it to the left one.
_CJK = "\u4e00-\u9fa5\u3041-\u3094\u30a1-\u30fa"
_WORDS = re.compile(
    r"(?s).*(?:(?<=\S)(?= )|(?<=[A-Za-z])(?=[\x00-\x7f])(?![A-Za-z'])|(?<=[0-9])(?=[\x00-\x7f])(?![0-9])"
    rf"|(?<=[{_CJK}])(?=[\x00-\x7f\u3001\u3002\uff0c\uff01\uff1a\uff1b\uff1f])(?![A-Za-z']))"
)
_SPACES = re.compile("(?s).*(?<=[^ ▁])(?= )")


class Tokenizer:
    """A model's tokenizer. Immutable; may be used from any thread. Build it with one of the `from_` methods."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._v = vocabulary
        self.vocab_size: int = len(vocabulary.content)
        self.bos: int | None = vocabulary.bos
        self.eos: tuple[int, ...] = vocabulary.eos
        self.add_bos: bool = vocabulary.add_bos
        self._text: dict[int, bytes] = {}  # of the ids that somebody asked for
        self._user = _splitter(vocabulary.user, vocabulary)
        self._all = _splitter({**vocabulary.user, **vocabulary.control}, vocabulary)
        self._cut = {"words": _WORDS, "spaces": _SPACES, "none": None}[vocabulary.cuts]

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, object], *, encodes: bool = True) -> Tokenizer:
        """From GGUF metadata (`tokenizer.ggml.*`). Raises `ModelError` naming what is unknown. Without `encodes` the
        encoder is made, and what is wrong with it found, when the first text is encoded."""
        made = cls(vocabulary.from_gguf(metadata))
        if encodes:
            made.warm()
        return made

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        tokenizer_config: Mapping[str, Any] | None = None,
        generation_config: Mapping[str, Any] | None = None,
    ) -> Tokenizer:
        """From a `tokenizer.json` and the parsed `tokenizer_config.json` and `generation_config.json`.
        Raises `ModelError`."""
        return cls(vocabulary.from_file(Path(path), tokenizer_config or {}, generation_config or {}))

    def warm(self) -> None:
        """Make the encoder now, unless it is made; it takes some tenths of a second."""
        self._core  # noqa: B018

    @cached_property
    def _core(self) -> tokenizers.Tokenizer:
        core = self._v.core()
        forget = getattr(core.model, "_resize_cache", None)
        if forget is not None:  # R9: it keeps words of all tenants, and finds them in less time; it saves nothing
            forget(0)
        return core

    def encode(self, text: str, *, start: bool = False) -> list[int]:
        """Ids of `text`. Names of control tokens in it are text. `start`: the text opens a sequence, so that a
        SentencePiece model's dummy space goes in front. Raises `ConstraintError` for a lone surrogate.

        Bytes that the vocabulary lacks (SmolLM2: a few control characters and unassigned planes) encode to nothing, as
        they do in the model's own tokenizer.
        """
        check_text(text)
        return self._encode(text, self._user, self._v.user, start=start, respace=False)

    def encode_template(self, text: str, *, start: bool = False) -> list[int]:
        """Ids of the chat template's own text: names of control tokens in it become these tokens."""
        check_text(text)
        names = {**self._v.user, **self._v.control}
        return self._encode(text, self._all, names, start=start, respace=self._v.respace)

    def _encode(
        self, text: str, pattern: re.Pattern[str] | None, names: Mapping[str, int], *, start: bool, respace: bool
    ) -> list[int]:
        if pattern is None:
            return self._piece(text, start)
        ids: list[int] = []
        here = 0
        for match in pattern.finditer(text):
            ids += self._piece(text[here : match.start()], start)
            ids.append(names[match[0] if match[0] in names else match[0].strip()])
            here, start = match.end(), respace
        return ids + self._piece(text[here:], start)

    def _piece(self, text: str, prefixed: bool) -> list[int]:
        if not text:
            return []
        if prefixed and (self._v.prefix == "always" or (self._v.prefix == "unless_space" and text[0] not in " ▁")):
            text = " " + text
        return self._core.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`: their bytes read as UTF-8, invalid ones as U+FFFD (`bytes.decode("utf-8", "replace")`).
        Control tokens and ids beyond the vocabulary (padding rows of the model's head) are no text."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def token_bytes(self, id: int, *, special: bool = False) -> bytes:
        """The exact bytes that an id stands for; of a control token b"", or its name where `special`."""
        text = None if special else self._text.get(id)
        if text is None:
            if id < 0:
                raise ConstraintError(f"token id {id}: ids begin at 0")
            known = id < self.vocab_size and (special or id not in self._v.hidden)
            text = self._v.content[id] if known else b""
            if not special:
                self._text[id] = text
        return text

    def is_special(self, id: int) -> bool:
        """Whether the id is a control token: it stands for no text, and no text encodes to it."""
        return id in self._v.hidden

    def special_id(self, name: str) -> int | None:
        """The id of a control token by its name, or None."""
        return self._v.control.get(name)

    def stable_split(self, text: str) -> tuple[str, str]:
        """Cut `text` into (stable, tail) so that for every continuation x
        `encode(text + x) == encode(stable) + encode(tail + x)`. `stable` is "" where no cut is known to be safe."""
        if self._cut is None:
            return "", text
        found = self._cut.match(text)
        while found and self._inside_user_token(text, found.end()):
            found = self._cut.match(text, 0, found.end())
        cut = found.end() if found else 0
        return text[:cut], text[cut:]

    def _inside_user_token(self, text: str, cut: int) -> bool:
        """Whether a user-defined token covers `cut`, or may once the text goes on."""
        for name in self._v.user:
            for left in range(1, min(len(name), cut + 1)):
                if text.startswith(name[:left], cut - left):
                    known = text[cut : cut - left + len(name)]
                    if name.startswith(known, left):
                        return True
        return False


def _splitter(names: Mapping[str, int], v: Vocabulary) -> re.Pattern[str] | None:
    """Matches any of the names, the longest first, with the whitespace that each swallows."""
    if not names:
        return None
    parts = []
    for name in sorted(names, key=len, reverse=True):
        left, right = v.stripping.get(name, (False, False))
        parts.append((r"\s*" if left else "") + re.escape(name) + (r"\s*" if right else ""))
    return re.compile("|".join(parts))


def check_text(text: str) -> None:
    """Raise `ConstraintError` when `text` holds half of a surrogate pair: it has no UTF-8 form."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        bad = f"U+{ord(text[error.start]):04X} at character {error.start}"
        raise ConstraintError(
            f"text holds the lone surrogate {bad}: replace it, or decode the source as UTF-16"
        ) from None


class Detokenizer:
    """Ids in, whole characters out: O(1) a token, and never half a character. What `push` and at the end `finish`
    return, joined, is `decode` of all ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._bytes = tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Iterable[int]) -> str:
        """The characters that these ids complete."""
        return self._decoder.decode(b"".join(map(self._bytes, ids)))

    def finish(self) -> str:
        """What an incomplete character at the end reads as (U+FFFD), or ""."""
        return self._decoder.decode(b"", True)


class StopMatcher:
    """Finds the first stop string in text that arrives in pieces (Aho & Corasick 1975; O(length of text)).

    The match is the one that *ends* first as characters arrive; of several that end there, the longest. It does not
    depend on how the text is cut into pieces. Only a suffix that is a proper prefix of some stop is held back.
    `emitted` counts the characters given out so far: after a match, the offset of its begin in the text.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise ConstraintError("stop='': a stop string has at least one character")
        self._next: list[dict[str, int]] = [{}]
        self._depth: list[int] = [0]
        self._hit: list[str | None] = [None]
        for stop in stops:
            self._insert(stop)
        self._fail = self._links()
        first = "".join(re.escape(c) for c in self._next[0])
        self._first = re.compile(f"[{first}]") if first else None
        self._state = 0
        self._held = ""
        self.matched: str | None = None
        self.emitted = 0

    def _insert(self, stop: str) -> None:
        node = 0
        for char in stop:
            if char not in self._next[node]:
                self._next.append({})
                self._depth.append(self._depth[node] + 1)
                self._hit.append(None)
                self._next[node][char] = len(self._next) - 1
            node = self._next[node][char]
        self._hit[node] = stop

    def _links(self) -> list[int]:
        """For each node the node of its longest proper suffix; a node's hit is its own stop or else its suffix's."""
        fail = [0] * len(self._next)
        queue = deque(self._next[0].values())
        while queue:
            node = queue.popleft()
            self._hit[node] = self._hit[node] or self._hit[fail[node]]
            for char, child in self._next[node].items():
                link = fail[node]
                while link and char not in self._next[link]:
                    link = fail[link]
                fail[child] = self._next[link].get(char, 0)
                queue.append(child)
        return fail

    def push(self, text: str) -> tuple[str, str | None]:
        """The text that is now certain to stay, and the stop that matched, if any: all from its begin on is dropped,
        and later pushes give nothing out."""
        if self.matched is not None:
            return "", self.matched
        held = self._held
        end = self._scan(text)
        whole = held + text[:end]
        keep = len(whole) - (len(self.matched) if self.matched is not None else self._depth[self._state])
        self._held = "" if self.matched is not None else whole[keep:]
        self.emitted += keep
        return whole[:keep], self.matched

    def _scan(self, text: str) -> int:
        """Advance over `text`; return how many of its characters were read (all, or up to the end of a match)."""
        state, here = self._state, 0
        while here < len(text):
            if state == 0:
                found = self._first.search(text, here) if self._first else None
                if found is None:
                    break
                here = found.start()
            char = text[here]
            while state and char not in self._next[state]:
                state = self._fail[state]
            state = self._next[state].get(char, 0)
            here += 1
            if self._hit[state] is not None:
                self.matched = self._hit[state]
                self._state = state
                return here
        self._state = state
        return len(text)

    def flush(self) -> str:
        """The end of the text: what was held back is no stop after all."""
        held, self._held, self._state = self._held, "", 0
        self.emitted += len(held)
        return held


def cut(tokenizer: Tokenizer, ids: Sequence[int], offset: int) -> tuple[int, tuple[int, ...]]:
    """Cut a value at character `offset` of its text: how many whole ids to keep, and the ids of the rest that is kept.

    The kept ids end where a character ends; what is kept of the token that the cut goes through is encoded again as
    text. `decode(ids[:keep] + tail) == decode(ids)[:offset]`, for text that the vocabulary can encode.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text, keep, kept = "", 0, 0
    for count, token in enumerate(ids, 1):
        text += decoder.decode(tokenizer.token_bytes(token))
        if len(text) > offset:
            break
        if not decoder.getstate()[0]:
            keep, kept = count, len(text)
    else:
        text += decoder.decode(b"", True)
    return keep, tuple(tokenizer.encode(text[kept:offset]))
