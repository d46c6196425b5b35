"""Choices as constraints: the text is one of several, also where one begins like another.

In: the texts. Out: a `Translation`.
"""

from __future__ import annotations

from collections.abc import Sequence

from ramet.frontend.errors import ConstraintError
from ramet.frontend.regular import Node, Union, literal
from ramet.runtime.grammar.regex import of_tree
from ramet.runtime.grammar.translation import Translation

MAX_CHOICES, MAX_BYTES = 10_000, 64 * 1024


def translate(choices: Sequence[str]) -> Translation:
    """Up to 10,000 different non-empty texts, 64 kB in all. Raises `ConstraintError` (`choices: ...`)."""
    return of_tree(tree(choices), "choices")


def tree(choices: Sequence[str], field: str = "choices") -> Node:
    """The choices as a tree, checked."""
    if not choices:
        raise ConstraintError(f"{field}: none are given; give at least one text")
    if len(choices) > MAX_CHOICES:
        raise ConstraintError(f"{field}: {len(choices)} are given (limit: {MAX_CHOICES}); use a regex or a grammar")
    seen: set[str] = set()
    size = 0
    for at, choice in enumerate(choices):
        size += len(_checked(choice, at, field))
        if choice in seen:
            raise ConstraintError(f"{field}[{at}]={choice[:40]!r}: is given twice; remove one")
        seen.add(choice)
    if size > MAX_BYTES:
        raise ConstraintError(f"{field}: {size} bytes in all (limit: {MAX_BYTES}); use fewer or shorter texts")
    return Union(tuple(map(literal, choices)))


def _checked(choice: object, at: int, field: str) -> bytes:
    if not isinstance(choice, str) or not choice:
        raise ConstraintError(f"{field}[{at}]={choice!r}: must be a non-empty string")
    try:
        return choice.encode()
    except UnicodeEncodeError:
        raise ConstraintError(f"{field}[{at}]={choice!r}: holds a lone surrogate, which is no text") from None
