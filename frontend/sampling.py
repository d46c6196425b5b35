"""How to sample: one struct, validated by its constructor, that every front end shares.

In: numbers, strings and token ids as users gave them. Out: a `Sampling` that nothing has to check again, or
`ConstraintError`.
"""

from __future__ import annotations

import math
from typing import NoReturn

import msgspec

from ramet.frontend.errors import ConstraintError

MAX_STOPS, MAX_STOP_CHARS, MAX_BIAS, MAX_LOGPROBS, MAX_N = 16, 256, 300, 20, 128


class Sampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How to sample, validated once: every front end builds it, nothing checks it again.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1 and `min_p` 0 are off. `max_tokens` None means until a stop or
    the end of the context; until `min_tokens` no end token and none of `stop_token_ids` is drawn, while a string of
    `stop` ends the text wherever it stands. `logprobs` k returns the sampled token's logprob and the k most likely
    (0: only the sampled token's; -1: none). Penalties are OpenAI's (frequency, presence: over generated tokens) and
    CTRL's (repetition, multiplicative: over all tokens of the sequence). Raises `ConstraintError`.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    logprobs: int = -1
    seed: int | None = None

    def __post_init__(self) -> None:
        bounded("temperature", self.temperature, 0.0, 100.0, "0 is greedy, 1 is the model's own distribution")
        bounded("top_p", self.top_p, 1e-6, 1.0, "1 keeps every token")
        bounded("min_p", self.min_p, 0.0, 1.0, "0 keeps every token")
        bounded("top_k", self.top_k, 0, (1 << 31) - 1, "0 keeps every token")
        bounded("frequency_penalty", self.frequency_penalty, -2.0, 2.0, "0 is off")
        bounded("presence_penalty", self.presence_penalty, -2.0, 2.0, "0 is off")
        bounded("repetition_penalty", self.repetition_penalty, 0.01, 100.0, "1 is off")
        bounded("min_tokens", self.min_tokens, 0, 1 << 31, "0 is off")
        bounded("logprobs", self.logprobs, -1, MAX_LOGPROBS, "-1 is none, 0 the sampled token's, k the k most likely")
        if self.max_tokens is not None:
            bounded("max_tokens", self.max_tokens, 1, 1 << 31, "leave it out to generate until a stop")
            if self.min_tokens > self.max_tokens:
                refuse("min_tokens", self.min_tokens, f"must not exceed max_tokens={self.max_tokens}")
        if self.seed is not None:
            bounded("seed", self.seed, -(1 << 63), (1 << 64) - 1, "any 64-bit integer")
        if len(self.stop) > MAX_STOPS:
            refuse("stop", f"{len(self.stop)} strings", f"at most {MAX_STOPS}")
        for text in self.stop:
            if not text or len(text) > MAX_STOP_CHARS:
                refuse("stop", text[:40], f"each stop has 1 to {MAX_STOP_CHARS} characters")
        if len(self.logit_bias) > MAX_BIAS:
            refuse("logit_bias", f"{len(self.logit_bias)} entries", f"at most {MAX_BIAS}")
        for token, bias in self.logit_bias.items():
            bounded(f"logit_bias[{token}]", bias, -100.0, 100.0, "-100 forbids a token")


def bounded(field: str, value: float, low: float, high: float, remedy: str) -> None:
    """Raise `ConstraintError` unless `value` is a finite number from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        refuse(field, value, f"must be a finite number; {remedy}")
    if not low <= value <= high:
        refuse(field, value, f"must be between {low} and {high}; {remedy}")


def refuse(field: str, value: object, remedy: str) -> NoReturn:
    """Raise `ConstraintError` that names the field, the value and the remedy."""
    raise ConstraintError(f"{field}={value!r}: {remedy}")
