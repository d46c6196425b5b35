"""Sample conversations of a chat template, whose contents are sentinels, and how two renderings of one differ.

In: roles, renderings cut at their contents. Out: messages, and sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

ROLES = ("system", "user", "assistant", "tool")
SENTINEL = "\ue0c5ramet"
SAMPLES: list[tuple[str, ...]] = [roles for size in (1, 2, 3) for roles in product(ROLES, repeat=size)]
SAMPLES.append(("system", "user", "assistant", "user", "assistant"))


def sentinel(n: int) -> str:
    """What stands for the content of message `n`."""
    return f"{SENTINEL}{n}\ue0c6"


def messages(roles: Sequence[str], content: Callable[[int], str]) -> list[dict[str, str]]:
    """A conversation of `roles`."""
    return [{"role": role, "content": content(n)} for n, role in enumerate(roles)]


def common_prefix(texts: Sequence[str]) -> str:
    """What all of `texts`, one at least, begin with."""
    low, high = min(texts), max(texts)
    size = next((n for n, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    return low[:size]


def difference(ours: list[str] | None, whole: list[str], roles: tuple[str, ...]) -> str:
    """Where the edges put together, None where they cannot be, first differ from the `whole` rendering."""
    shape = ", ".join(roles)
    if ours is None:
        return f"({shape}) renders as a whole but not message by message"
    n = next(i for i, (a, b) in enumerate(zip(ours, whole, strict=True)) if a != b)
    place = f"before message {n + 1}" if n < len(roles) else "at the end"
    return f"({shape}) {place}: {ours[n][-60:]!r} instead of {whole[n][-60:]!r}"
