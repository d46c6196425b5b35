"""An engine and its client in one thread. In: a runner, programs as token ids. Out: steps, and what they took.

Prompts can be planted: they stand in the prefix tree, on slots that hold random numbers, as if they had been computed
before. Decoding over them costs what it costs over computed ones, and a context of 8k tokens is there at once.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from gpu_parts.models import Model
from gpu_parts.place import Place
from ramet.frontend.ir import Sampling
from ramet.runtime import messages as m
from ramet.runtime.batch import U32, Batch, Masks
from ramet.runtime.engine import EngineCore
from ramet.runtime.grammar.base import Grammars

PARTS = ("plan", "masks", "collect", "forward", "sample", "read")
ENGINE = PARTS[:3]  # the scheduler's
MARGIN = 64  # tokens that a timed sequence may still make
_MOST = 5000  # steps until a workload must have settled,
_LONG = 50_000  # and until it must be over


class Loop:
    """Drives an `EngineCore`. `times`: seconds of each call by part; `made`: tokens sampled; `over`: programs that have
    ended; `tokens`: what each op made, where `keep` asks for it."""

    def __init__(self, model: Model, *, keep: bool = False, grammars: Grammars | None = None, **limits: object) -> None:
        fields = {name: getattr(model.limits, name) for name in model.limits.__struct_fields__} | limits
        options = type(model.limits)(**fields)
        self.core = EngineCore(model.runner, self, limits=options, eos=(), grammars=grammars)
        self.orders: list[m.Order] = []
        self.over: dict[str, m.Over] = {}
        self.made = 0
        self.tokens: dict[tuple[str, str], list[object]] = defaultdict(list)
        self.times: dict[str, list[float]] = defaultdict(list)
        self._keep, self._opened = keep, 0
        self._rng = np.random.default_rng(1)
        self._vocab = model.spec.vocab

    # -- the engine's port

    def receive(self, block: bool, seconds: float | None = None) -> list[m.Order]:
        """All orders since the last call."""
        orders, self.orders = self.orders, []
        return orders

    def send(self, step: m.Step) -> None:
        """Count and note."""
        for news in step.news:
            if isinstance(news, m.Sampled):
                self.made += len(news.tokens)
                if self._keep:
                    self.tokens[news.program, news.op] += [*news.tokens, *news.logprobs]
            elif isinstance(news, m.Over):
                if news.kind:
                    raise RuntimeError(f"program {news.program} failed: {news.message}")
                self.over[news.program] = news

    # -- programs

    def prompt(self, count: int) -> tuple[int, ...]:
        """Random tokens."""
        return tuple(self._rng.integers(0, self._vocab, count).tolist())

    def program(self, *ops: m.AnyOp) -> str:
        """Open one with these ops."""
        self._opened += 1
        name = f"{self._opened:032x}"
        self.orders += [m.OrderOpen(name), m.OrderOps(name, ops), m.OrderEnd(name)]
        return name

    def completion(self, prompt: Sequence[int], sampling: Sampling, seed: int = 0, grammar: str = "") -> str:
        """Text, then a call."""
        call = m.Generate("0.1", "0", sampling, seed, grammar, "off")
        return self.program(m.Append("0.0", "0", (tuple(prompt),)), call)

    def forks(self, prompt: Sequence[int], sampling: Sequence[Sampling], seed: int = 0) -> str:
        """Text, then one branch for each sampling."""
        into = tuple(f"0.1.b{i}" for i in range(len(sampling)))
        calls = [
            m.Generate(f"{seq}.0", seq, s, seed + i) for i, (seq, s) in enumerate(zip(into, sampling, strict=True))
        ]
        return self.program(m.Append("0.0", "0", (tuple(prompt),)), m.Fork("0.1", "0", into), *calls)

    def plant(self, prompt: Sequence[int]) -> None:
        """Put a prompt into the prefix tree, uncomputed."""
        cache = self.core.cache
        slots = cache.take(len(prompt))
        if slots is None:
            raise RuntimeError(f"no room for {len(prompt)} tokens: {cache.slots.free} slots are free")
        cache.tree.insert(cache.tree.root(""), np.array(prompt, np.int32), slots)

    # -- steps

    def settle(self, decoding: int) -> None:
        """Step until `decoding` sequences sample in every step."""
        running = self.core.scheduler.running
        for _ in range(_MOST):
            self.core.step()
            if len(running) >= decoding and all(seq.flying for seq in running):
                break
        else:
            raise RuntimeError(f"{decoding} sequences do not decode after {_MOST} steps: {self.core.stats()}")
        for _ in range(3):
            self.core.step()

    def finish(self) -> None:
        """Step until all programs are over, and their last flight is collected."""
        for _ in range(_LONG):
            self.core.step()
            if not self.orders and not self.core.programs.live:
                break
        else:
            raise RuntimeError(f"not over after {_LONG} steps: {self.core.stats()}")
        self.core.step()

    def steps(self, count: int) -> None:
        """So many."""
        for _ in range(count):
            self.core.step()

    def watch(self) -> None:
        """Time every call of the scheduler and the runner from now on."""
        core = self.core
        for owner, name in ((core.scheduler, "plan"), (core.scheduler, "masks"), (core.collector, "collect")):
            setattr(owner, name, self._timed(name, getattr(owner, name)))
        core.runner = _Watched(core.runner, self._timed)  # type: ignore[assignment]

    def _timed(self, part: str, act: Callable[..., object]) -> Callable[..., object]:
        def timed(*arguments: object) -> object:
            began = time.perf_counter()
            result = act(*arguments)
            self.times[part].append(time.perf_counter() - began)
            return result

        return timed

    def constrain(self, words: U32) -> None:
        """Forbid tokens in every draw from now on: bitmasks `[n, V/32]` take turns."""
        turn = 0

        def masks(batch: Batch) -> Masks:
            nonlocal turn
            turn += 1
            return Masks(allowed=tuple((r, words[(r + turn) % len(words)]) for r in range(len(batch.draws))))

        self.core.scheduler.masks = masks  # type: ignore[method-assign]


class _Watched:
    """A runner whose calls are timed."""

    def __init__(self, runner: object, timed: Callable[[str, Callable[..., object]], Callable[..., object]]) -> None:
        self._runner = runner
        for name in PARTS[3:]:
            setattr(self, name, timed(name, getattr(runner, name)))

    def __getattr__(self, name: str) -> object:
        return getattr(self._runner, name)


def decoding(
    model: Model,
    batch: int,
    context: int,
    place: Place,
    *,
    steps: int,
    repeats: int,
    grammars: Grammars | None = None,
    grammar: str = "",
) -> Loop:
    """A loop in which `batch` sequences of `context` tokens, which share nothing, decode for at least steps x repeats
    steps, each under `grammar`, if there is one."""
    loop = Loop(model, grammars=grammars)
    sampling = Sampling(temperature=0.6, ignore_eos=True, max_tokens=steps * repeats + MARGIN)
    for number in range(batch):
        prompt = loop.prompt(context)
        loop.plant(prompt)
        loop.completion(prompt, sampling, number, grammar)
    loop.settle(batch)
    place.sync()
    return loop
