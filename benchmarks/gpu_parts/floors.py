"""What a step must move and multiply at least. In: a `Spec`, a workload, the chip's measured limits. Out: seconds.

A floor is the larger of bytes / bandwidth and FLOP / rate: weights once a step, the KV that is seen once a token (or
once for all who share it). Embedding rows, norms and activations are left out: they are less than a hundredth.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ramet.runtime.models.spec import Spec

ITEM = 2  # bytes of a bfloat16


@dataclass(frozen=True, slots=True)
class Limits:
    """Measured on this device: a large copy in bytes read and written per second, a large bfloat16 product in FLOP per
    second. NaN where they were not measured."""

    bandwidth: float = float("nan")
    rate: float = float("nan")


@dataclass(frozen=True, slots=True)
class Request:
    """A completion of a workload."""

    prompt: tuple[int, ...]
    tokens: int


def linear_weights(spec: Spec) -> int:
    """Weights of the layers' matrices, which every token is multiplied with."""
    shapes = spec.tensor_shapes()
    return sum(int(np.prod(s)) for name, s in shapes.items() if name.startswith("layers.") and len(s) == 2)


def head_weights(spec: Spec) -> int:
    """Weights of the output matrix, which every sampled token is multiplied with."""
    return spec.vocab * spec.hidden


def kv_bytes(spec: Spec) -> int:
    """Bytes of K and V of one token."""
    return 2 * spec.layers * spec.kv_heads * spec.head_dim * ITEM


def decode_seconds(spec: Spec, limits: Limits, batch: int, context: float, *, shared: float = 0.0) -> float:
    """A step of `batch` sequences that see `context` tokens each, the first `shared` of which are the same."""
    weights = linear_weights(spec) + head_weights(spec)
    moved = weights * ITEM + (shared + batch * (context - shared)) * kv_bytes(spec)
    attention = 4 * spec.layers * spec.heads * spec.head_dim * batch * context
    return max(moved / limits.bandwidth, (2 * batch * weights + attention) / limits.rate)


def prefill_flops(spec: Spec, lengths: Sequence[int]) -> float:
    """All tokens of prompts of these lengths, logits for the last of each; a token sees itself and all before."""
    pairs = sum(n * (n + 1) / 2 for n in lengths)
    attention = 4.0 * spec.layers * spec.heads * spec.head_dim * pairs
    return 2.0 * sum(lengths) * linear_weights(spec) + 2.0 * len(lengths) * head_weights(spec) + attention


def mix_seconds(spec: Spec, limits: Limits, requests: Sequence[Request]) -> float:
    """All prompts at the matrix rate, then decode steps in which everyone who is not done takes part."""
    lengths = [len(request.prompt) for request in requests]
    made = np.array([request.tokens for request in requests])
    start = np.array(lengths)
    steps = sum(
        decode_seconds(spec, limits, int(live.sum()), float(start[live].mean()) + k)
        for k in range(1, int(made.max()))
        if (live := made > k).any()
    )
    return prefill_flops(spec, lengths) / limits.rate + steps


def mix(count: int, low: int, high: int, vocab: int) -> list[Request]:
    """The offline mix of nano-vllm's benchmark: `count` requests of `low` to `high` random tokens in and as many out,
    seed 0."""
    rng = random.Random(0)
    prompts = [
        tuple(rng.randint(0, min(10_000, vocab - 1)) for _ in range(rng.randint(low, high))) for _ in range(count)
    ]
    return [Request(prompt, rng.randint(low, high)) for prompt in prompts]
