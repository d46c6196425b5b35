"""What the names of tokens mean: the bytes that each stands for.

In: names as vocabularies write them (GPT-2's alphabet, SentencePiece's pieces). Out: bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import overload

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's token types


class Contents(Sequence[bytes]):
    """The bytes of `size` ids, each made when it is asked for: a process of text asks for few."""

    def __init__(self, size: int, make: Callable[[int], bytes]) -> None:
        self._ids, self._make = range(size), make

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[bytes, ...]: ...
    def __getitem__(self, index: int | slice) -> bytes | tuple[bytes, ...]:
        ids = self._ids[index]
        return self._make(ids) if isinstance(ids, int) else tuple(map(self._make, ids))


def _alphabet() -> dict[int, str]:
    """GPT-2's printable stand-ins for bytes, mapped back: code point → chr(byte) (Radford et al. 2019)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in shown]
    # what stands for no byte must not read as the byte of its own number
    return dict.fromkeys(rest, "\uffff") | {b: chr(b) for b in shown} | {256 + n: chr(b) for n, b in enumerate(rest)}


_ALPHABET = _alphabet()


def from_alphabet(token: str) -> bytes:
    """The bytes of a token of a byte-level vocabulary."""
    try:
        return token.translate(_ALPHABET).encode("latin-1")
    except UnicodeEncodeError:  # it holds a character that stands for no byte
        return token.encode("utf-8", "replace")


def from_piece(piece: str, kind: int) -> bytes:
    """The bytes of a SentencePiece token of a type of llama.cpp's, 0 where a file has none."""
    if kind in (BYTE, 0) and re.fullmatch("<0x[0-9A-Fa-f]{2}>", piece):
        return bytes([int(piece[3:5], 16)])
    return piece.replace("▁", " ").encode() if kind in (NORMAL, 0) else piece.encode()
