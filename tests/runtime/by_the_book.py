"""The tiny model by the book: a plain forward pass in float64, to hold an engine's numbers against."""

from __future__ import annotations

import math

import torch

from ramet.frontend.backends.engine import Engine
from ramet.runtime.models.hub import PRESETS
from ramet.runtime.models.load import random_weights
from ramet.runtime.text import Tokenizer

WEIGHTS = {name: t.double() for name, t in random_weights(PRESETS["tiny"], torch.float32).items()}


def tokenizer(engine: Engine) -> Tokenizer:
    return engine._client.tokenizer


def forward(ids: list[int]) -> torch.Tensor:
    """Logprobs `[tokens, vocab] float64` after each token: the tiny model by the book."""
    spec, weights = PRESETS["tiny"], WEIGHTS
    heads, kv, dim = spec.heads, spec.kv_heads, spec.head_dim
    x = weights["embed"][ids]
    count = len(ids)
    frequencies = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angles = torch.arange(count, dtype=torch.float64)[:, None] * frequencies
    cos, sin = angles.cos().repeat(1, 2)[:, None], angles.sin().repeat(1, 2)[:, None]
    future = torch.full((count, count), -math.inf, dtype=torch.float64).triu(1)

    def norm(h: torch.Tensor) -> torch.Tensor:
        return h * (h.square().mean(-1, keepdim=True) + spec.eps).rsqrt()

    def rotate(h: torch.Tensor) -> torch.Tensor:
        half = torch.cat((-h[..., dim // 2 :], h[..., : dim // 2]), -1)
        return h * cos + half * sin

    for n in range(spec.layers):
        w = {name.rpartition(".")[2]: t for name, t in weights.items() if name.startswith(f"layers.{n}.")}
        h = norm(x)
        q, k, v = (rotate((h @ w["q"].T).view(count, heads, dim)), (h @ w["k"].T).view(count, kv, dim), h @ w["v"].T)
        k = rotate(k).repeat_interleave(heads // kv, 1)
        values = v.view(count, kv, dim).repeat_interleave(heads // kv, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) * dim**-0.5 + future
        x = x + torch.einsum("hqk,khd->qhd", scores.softmax(-1), values).reshape(count, -1) @ w["o"].T
        h = norm(x)
        x = x + (torch.nn.functional.silu(h @ w["gate"].T) * (h @ w["up"].T)) @ w["down"].T
    return torch.log_softmax(norm(x) @ weights["embed"].T, -1)


def greedy(engine: Engine, ids: list[int], count: int) -> list[int]:
    """The most likely continuation, by a plain forward pass in float64."""
    out = list(ids)
    for _ in range(count):
        out.append(int(forward(out)[-1].argmax()))
    return out[len(ids) :]
