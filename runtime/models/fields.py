"""Typed access to the keys of a model's config or header.

In: a mapping that came from a file. Out: integers, numbers, flags and token ids, or
a `ModelError` that names the place, the key and the value.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

from ramet.frontend.errors import ModelError


def between(name: str, value: float, low: float, high: float) -> None:
    """Refuse a number outside `low` to `high`, or one that is not finite."""
    if not low <= value <= high:  # false for nan too
        raise ModelError(f"{name}={value!r} is outside {low:g} to {high:g}")


class Fields:
    """Typed access to a config's or header's keys; every refusal names the place, the key and the value."""

    def __init__(self, values: Mapping[str, Any], place: str, prefix: str = "") -> None:
        self.values, self.place, self.prefix = values, place, prefix

    def refuse(self, key: str, remedy: str) -> ModelError:
        """The error for a value that cannot be used."""
        shown = repr(self.values.get(self.prefix + key))
        shown = shown if len(shown) <= 120 else shown[:120] + "..."
        return ModelError(f"{self.place}: {self.prefix}{key}={shown}: {remedy}")

    def get(self, key: str) -> Any:
        """The raw value, or None."""
        return self.values.get(self.prefix + key)

    def integer(self, key: str, default: int | None = None) -> int:
        """An integer; `default` when absent or null."""
        value = self.get(key)
        value = default if value is None else value
        if value is None:
            raise ModelError(f"{self.place}: {self.prefix}{key} is missing; it must be a positive integer")
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.refuse(key, "must be an integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number; `default` when absent or null."""
        value = self.get(key)
        value = default if value is None else value
        if value is None:
            raise ModelError(f"{self.place}: {self.prefix}{key} is missing; it must be a number")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
            raise self.refuse(key, "must be a finite number")
        return shortest(float(value))

    def optional_number(self, key: str) -> float | None:
        """A finite number, or None when absent or null."""
        return None if self.get(key) is None else self.number(key)

    def flag(self, key: str, default: bool = False) -> bool:
        """A boolean; `default` when absent or null."""
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.refuse(key, "must be true or false")
        return default if value is None else value

    def neutral(self, allowed: Mapping[str, tuple[object, ...]], remedy: str) -> None:
        """Refuse keys that change the architecture, unless they are absent, null or of a value without effect."""
        for key, values in allowed.items():
            value = self.get(key)
            if value is not None and not any(value is v or (type(value) is not bool and value == v) for v in values):
                raise self.refuse(key, remedy)

    def tokens(self, key: str) -> tuple[int, ...]:
        """Token ids given as an integer, a list or null."""
        value = self.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if len(ids) > 256 or not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
            raise self.refuse(key, "must be a token id or a list of token ids")
        return tuple(ids)


def shortest(value: float) -> float:
    """A float32 that a file widened (9.999999747378752e-06) as the decimal that was meant (1e-05): the same float32."""
    if _narrow(value) != value:
        return value
    decimals = (float(f"{value:.{digits}g}") for digits in range(1, 10))  # 9 digits tell any two float32 apart
    return next((decimal for decimal in decimals if _narrow(decimal) == value), value)


def _narrow(value: float) -> float:
    """The nearest float32; infinite beyond the largest."""
    try:
        narrow: float = struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")
    return narrow


def unique(ids: Sequence[int]) -> tuple[int, ...]:
    """The ids in order of first appearance."""
    return tuple(dict.fromkeys(ids))
