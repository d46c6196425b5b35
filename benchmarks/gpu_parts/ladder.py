"""Equality, to the bit, in deterministic mode; and a real model against the CPU, where there is one on this machine.

In: one engine, the same requests in different company. Out: how many of them came out the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gpu_parts.loop import Loop
from gpu_parts.models import SMOL, Model, Scale, spec_of
from gpu_parts.report import Row, Target
from gpu_parts.session import Session
from ramet.frontend.ir import Sampling
from ramet.runtime.config import Config
from ramet.runtime.engine import EngineCore
from ramet.runtime.models import fetch, hub
from ramet.runtime.models.load import load_weights
from ramet.runtime.runner import build as build_on_cpu
from ramet.runtime.text import Tokenizer

SECTION = "ladder"
Bits = list[object]
TEXTS = ("The capital of France is", "Once upon a time", "def add(a, b):", "1, 2, 3, 4,")
REAL_TOKENS = 24


def samplings(scale: Scale) -> list[Sampling]:
    """Greedy, truncated, penalised, with logprobs."""
    most = 2 if scale.toy else 20
    return [
        Sampling(temperature=0, max_tokens=most, logprobs=0),
        Sampling(temperature=0.9, top_p=0.9, max_tokens=most, logprobs=0),
        Sampling(temperature=1.2, top_k=20, min_p=0.01, max_tokens=most, repetition_penalty=1.2),
        Sampling(temperature=0.7, max_tokens=most, frequency_penalty=0.5, logprobs=2),
    ]


def prompts(scale: Scale, vocab: int) -> list[tuple[int, ...]]:
    """Prompts with and without a long common prefix, over and under the length of a span (512)."""
    generator = torch.Generator().manual_seed(7)

    def some(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, vocab, (count,), generator=generator).tolist())

    if scale.toy:
        prefix = some(9)
        return [prefix + some(1), prefix + some(4)]
    prefix = some(1100)
    return [*(prefix + some(n) for n in (1, 3, 40)), prefix[:50], prefix[:700], some(130), some(1)]


def run(session: Session) -> None:
    """A few layers are enough: every layer runs the same kernels."""
    scale = session.scale
    spec = replace(spec_of(SMOL, scale), layers=1 if scale.toy else 4, vocab=131 if scale.toy else 4096)
    session.kept.drop()
    slots = 300 if scale.toy else 20_000
    model = session.kept.build("ladder", spec, deterministic=True, kv_tokens=slots)
    asked = [(prompt, samplings(scale)[i % 4], 1000 + i) for i, prompt in enumerate(prompts(scale, spec.vocab))]
    alone = [together(model, [request])[0] for request in asked]

    def same(what: str, found: Sequence[Bits], wanted: Sequence[Bits]) -> None:
        equal = sum(a == b for a, b in zip(found, wanted, strict=True))
        note = "tokens and logprobs of each request, to the bit"
        label = f"deterministic: {what}"
        target = Target(least=1.0)
        session.add(Row(SECTION, label, equal, "requests", len(wanted), None, equal / len(wanted), target, note, True))

    same("all together, as each alone", together(model, asked), alone)
    small: dict[str, Any] = {"chunk_tokens": 7, "batch_tokens": 16 if scale.toy else 64}
    same("in chunks of 7 tokens", together(model, asked, **small), alone)
    same("without overlap", together(model, asked, overlap=False), alone)
    same("with a warm cache", together(model, asked, rounds=2), alone)
    same("retracted every fifth step", together(model, asked, before=_storm), alone)
    kinds = samplings(scale)[: scale.rows]
    apart = [together(model, [(asked[0][0], kind, i)])[0] for i, kind in enumerate(kinds)]
    same("as siblings of a fork", forked(model, asked[0][0], kinds), apart)
    plain = session.kept.build("ladder", spec, deterministic=True, kv_tokens=slots, graphs=False)
    same("without CUDA graphs", together(plain, asked), alone)


def together(
    model: Model,
    asked: Sequence[tuple[tuple[int, ...], Sampling, int]],
    *,
    rounds: int = 1,
    before: Callable[[EngineCore, int], None] | None = None,
    **limits: object,
) -> list[Bits]:
    """What each request gives, all submitted at once to a fresh engine; of several rounds, the last."""
    loop = Loop(model, keep=True, **limits)
    names: list[str] = []
    for _ in range(rounds):
        names = [loop.completion(*request) for request in asked]
        _finish(loop, before)
    return [loop.tokens[name, "0.1"] for name in names]


def forked(model: Model, prompt: tuple[int, ...], kinds: Sequence[Sampling]) -> list[Bits]:
    """What the branches of one fork give."""
    loop = Loop(model, keep=True)
    name = loop.forks(prompt, kinds)
    _finish(loop, None)
    return [loop.tokens[name, f"0.1.b{i}.0"] for i in range(len(kinds))]


def _finish(loop: Loop, before: Callable[[EngineCore, int], None] | None) -> None:
    if before is None:
        loop.finish()
        return
    loop.core.step()
    for n in range(5000):
        if not loop.core.programs.live:
            break
        before(loop.core, n)
        loop.core.step()
    loop.core.step()


def _storm(core: EngineCore, n: int) -> None:
    if n % 5 == 4:
        for seq in list(core.scheduler.running):
            core.scheduler.retract(seq)


def find_real(given: Path | None) -> Path | None:
    """The model to compare: `given`, else the default one if it was fetched before. Nothing is fetched here."""
    path = given or fetch.cache_directory() / fetch.DEFAULT_WHEEL.member.rpartition("/")[2]
    return path if path.exists() else None


def run_real(session: Session) -> None:
    """Greedy text of a real model, float32, here and on the CPU."""
    path = find_real(session.real) if session.real or not session.scale.toy else None  # slow in the interpreter
    if path is None:
        session.say("  no real model on this machine: give one with --real")
        return
    source = hub.resolve(str(path))
    spec, metadata = hub.load_spec(source), hub.load_metadata(source)
    if metadata.gguf is None:
        session.say(f"  {path} is no GGUF file: nothing is compared")
        return
    tokenizer = Tokenizer.from_gguf(metadata.gguf)
    asked = [tuple(tokenizer.encode(text, start=True)) for text in TEXTS[: 1 if session.scale.toy else 4]]
    session.kept.drop()
    options: dict[str, Any] = {"dtype": "float32", "kv_tokens": 1024, "context": 512, "max_running": 4}
    mine = session.kept.build("real", spec, lambda dtype: load_weights(source, spec, dtype), **options)
    config = Config(device="cpu", **options)
    theirs = build_on_cpu(config, spec, lambda dtype: load_weights(source, spec, dtype))
    found, wanted = (_greedy(Model("real", spec, runner, mine.limits), asked) for runner in (mine.runner, theirs))
    equal = sum(a == b for a, b in zip(found, wanted, strict=True))
    session.say("  " + " ".join(repr(tokenizer.decode(tokens)) for tokens in found))
    note = f"greedy, float32, {REAL_TOKENS} tokens each"
    target = Target(least=1.0)
    what = f"{path.name}: texts equal to the CPU's"
    session.add(Row("real", what, equal, "texts", len(asked), None, equal / len(asked), target, note, True))


def _greedy(model: Model, asked: Sequence[tuple[int, ...]]) -> list[list[int]]:
    found = together(model, [(prompt, Sampling(temperature=0, max_tokens=REAL_TOKENS), 0) for prompt in asked])
    return [[int(token) for token in tokens] for tokens in found]  # type: ignore[call-overload]
