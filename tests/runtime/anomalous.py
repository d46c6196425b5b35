"""The run of the anomaly tests: programs of two tenants on one engine core, and what must hold of it whatever failed.

In: a model on the CPU. Out: a `Stage` that ran, and checks: who was hurt, that nobody else was, that nothing leaked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from ramet.frontend.ir import Sampling
from ramet.runtime import messages as m
from ramet.runtime.batch import Batch, Flight, Samples
from ramet.runtime.config import Limits
from ramet.runtime.engine import EngineCore
from ramet.runtime.grammar.automaton import HEADER, GrammarCache
from ramet.runtime.models import hub
from ramet.runtime.models.decoder import Decoder
from ramet.runtime.models.load import random_weights
from ramet.runtime.models.tokenizer import load_tokenizer
from ramet.runtime.runner import TorchFlight, TorchRunner
from ramet.runtime.text import Tokenizer

from .driving import Drive, Result

SPEC = replace(hub.PRESETS["tiny"], layers=1, hidden=16, heads=2, kv_heads=1, head_dim=8, intermediate=32)
LIMITS = Limits(batch_tokens=24, chunk_tokens=8, lease_seconds=50.0)
ROOMY, TIGHT = 160, 66  # slots: for all programs at once; for one or two of them
ROWS, CONTEXT = 6, 256
PROMPT = "A long story about a tree by the river, and nobody in it."
GRAMMAR = f"{HEADER}start: /(yes|no), because (of )?[a-z]{{2,4}}/\n"
CHOICES = (" yes", " yes, of course", " no")
KINDS = {"generation", "constraint", "context"}  # of failures that one op may have


@dataclass(frozen=True)
class Model:
    """What all runs share: nothing of it changes."""

    decoder: Decoder
    tokenizer: Tokenizer
    grammars: GrammarCache


@lru_cache(1)
def model() -> Model:
    """One layer of `random:tiny`."""
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(hub.resolve("random:tiny"))
    weights = random_weights(SPEC, torch.float32, seed=3)
    return Model(
        Decoder(SPEC, weights, "cpu", torch.float32), tokenizer, GrammarCache(tokenizer, SPEC.vocab, tokenizer.eos)
    )


class LateRunner(TorchRunner):
    """A device whose k-th batch (from 1) comes to nothing, which shows when its results are read: later than the next
    one was launched."""

    def __init__(self, *args: Any, bad: int = 0, **sizes: Any) -> None:
        super().__init__(*args, **sizes)
        self.launched = 0
        self._bad = bad
        self._flight: Flight | None = None

    @torch.inference_mode()
    def forward(self, batch: Batch) -> TorchFlight:
        """As ever; of the bad one all that it wrote is garbage."""
        flight = super().forward(batch)
        self.launched += 1
        if self.launched == self._bad:
            self._flight = flight
            self._cache[:, :, :, torch.from_numpy(batch.slots).long()] = 7.0
            if flight.logits is not None:
                flight.logits = torch.zeros_like(flight.logits)
        return flight

    def read(self, flight: Flight) -> Samples:
        """The results, or the fault."""
        if flight is self._flight:
            raise RuntimeError("an error of an earlier launch")
        return super().read(flight)


class Stage(Drive):
    """A core with a clock of its own, and programs whose hosts answer. Asserts, as news comes, that an op has one
    result and that nothing is said of a program that is over."""

    def __init__(self, capacity: int = ROOMY, *, bad: int = 0) -> None:
        made = model()
        runner = LateRunner(made.decoder, capacity=capacity, rows=ROWS, context=CONTEXT, threads=1, bad=bad)
        super().__init__(runner)
        self.now = 0.0
        options = {"tokenizer": made.tokenizer, "grammars": made.grammars, "eos": made.tokenizer.eos}
        self.core = EngineCore(runner, self.port, limits=LIMITS, clock=self._clock, **options)  # type: ignore[arg-type]
        self.names: list[str] = []
        self._hosts: dict[tuple[str, str], tuple[m.Order, ...]] = {}  # what a host says when an op has ended

    def _clock(self) -> float:
        self.now += 1e-4
        return self.now

    def opens(self, *ops: m.AnyOp, namespace: str, after: str = "", then: tuple[m.AnyOp, ...] = ()) -> None:
        """A program; with `after` its host says `then`, and that this is all, when that op has ended."""
        name = self.program(*ops, namespace=namespace, end=not after)
        self.names.append(name)
        if after:
            self._hosts[name, after] = (m.OrderOps(name, then), m.OrderEnd(name))

    def answer(self) -> None:
        """The hosts answer what has ended since the last step."""
        for key in [k for k in self._hosts if k in self.results]:
            result = self.results[key]
            if result.done is not None or result.failure is not None:
                self.order(*self._hosts.pop(key))

    def _note(self, news: m.AnyNews) -> None:
        assert news.program not in self.over, f"{news} after the end of its program"
        if not isinstance(news, m.Over | m.Branched | m.Merged):
            result = self.results.get((news.program, news.op))
            assert result is None or (result.done is None and result.failure is None), f"{news}, a second result"
        super()._note(news)

    def play(self, before: Callable[[int], None] = lambda n: None) -> Stage:
        """All programs, to their ends; `before(n)` is called before the n-th step."""
        populate(self)

        def each(n: int) -> None:
            if n in LATER:
                LATER[n](self)
            self.answer()
            before(n)

        first = max(LATER) + 1
        for n in range(first):
            each(n)
            self.step()
        steps = iter(range(first, 1 << 20))
        self.run(*self.names, before=lambda _: each(next(steps)), limit=600)
        return self


def sampling(count: int, **options: object) -> Sampling:
    return Sampling(**{"temperature": 0.9, "max_tokens": count, "ignore_eos": True, **options})  # type: ignore[arg-type]


def populate(stage: Stage) -> None:
    """Forks, a choice, a join, a constraint, a tool, stop strings, scores; two tenants who begin alike."""
    ids = stage_tokens(PROMPT)
    branches = ("0.1.b0", "0.1.b1")
    choices = tuple(stage_tokens(choice) for choice in CHOICES)
    stage.opens(
        m.Append("0.0", "0", (ids,)),
        m.Fork("0.1", "0", branches),
        m.Generate("0.1.b0.0", branches[0], sampling(5, logprobs=1), 7),
        m.Choose("0.1.b1.0", branches[1], choices, "unconditional_likelihood_normalized", ids[:1]),
        *(m.Close(f"{branch}.1", branch) for branch in branches),
        m.Join("0.2", "0", branches),
        m.Generate("0.3", "0", sampling(20, ignore_eos=False), 8, GRAMMAR),
        m.Append("0.4", "0", ("0.5",)),
        m.Generate("0.6", "0", sampling(4), 9),
        namespace="a",
        after="0.3",
        then=(m.Put("0.5", "0", stage_tokens(" The tool says 7.")),),
    )
    stage.opens(
        m.Append("0.0", "0", (ids,)),
        m.Generate("0.1", "0", sampling(7, stop=("never said",)), 5),
        m.Score("0.2", "0", 2, 1),
        m.Generate("0.3", "0", sampling(3), 6),
        namespace="b",
    )


def bystander(stage: Stage) -> None:
    """One who begins like the others when these have just computed their prompts."""
    ids = stage_tokens(PROMPT)
    stage.opens(
        m.Append("0.0", "0", (ids,)), m.Generate("0.1", "0", sampling(8, frequency_penalty=0.5), 3), namespace="a"
    )


def guesser(stage: Stage) -> None:
    """One whose forced text is guessed."""
    ids = stage_tokens(PROMPT)
    stage.opens(
        m.Append("0.0", "0", (ids[:9],)),
        m.Generate("0.1", "0", sampling(16, ignore_eos=False, temperature=0.0), 4, GRAMMAR, "exact"),
        namespace="b",
    )


def stage_tokens(text: str) -> tuple[int, ...]:
    return tuple(model().tokenizer.encode(text))


LATER: dict[int, Callable[[Stage], None]] = {2: bystander, 4: guesser}  # who comes before which step


# -- what must hold


@lru_cache(1)
def calm() -> dict[tuple[str, str], tuple[object, ...]]:
    """What every op says when nothing fails."""
    stage = Stage().play()
    assert hurt(stage) == set(), "the undisturbed run fails"
    check_clean(stage)
    return {key: told(result) for key, result in stage.results.items()}


def told(result: Result) -> tuple[object, ...]:
    """What an op said, without what depends on the schedule."""
    done = result.done
    if isinstance(done, m.Chosen):
        return (*result.bits, done.winner, done.scores)
    return result.bits if done is None else (*result.bits, done.reason, done.keep, done.tail, done.matched)


def hurt(stage: Stage) -> set[str]:
    """The programs that did not end well."""
    failed = {program for (program, _), result in stage.results.items() if result.failure is not None}
    return failed | {name for name, over in stage.over.items() if over.kind}


def check_ends(stage: Stage) -> None:
    """Each program has ended (`Drive` and `Stage` assert: once, and with one result for each op); failures have a kind
    and a reason."""
    assert set(stage.over) == set(stage.names), f"no end: {set(stage.names) - set(stage.over)}"
    for key, result in stage.results.items():
        if result.failure is not None:
            assert result.failure.kind in KINDS | {"aborted", "transport"}, f"{key}: {result.failure}"
            assert result.failure.message, f"{key}: no reason"


def check_answers(stage: Stage) -> None:
    """What was not hurt equals the undisturbed run; so does, of a program that was, what ended before or beside."""
    wounded = hurt(stage)
    for key, expected in calm().items():
        result = stage.results.get(key)
        if key[0] not in wounded:
            assert result is not None, f"{key} has no result, and its program ended well"
        if result is not None and (result.done is not None or key[0] not in wounded):
            assert told(result) == expected, f"{key}: another answer than in the undisturbed run"


def check_clean(stage: Stage) -> None:
    """Nothing is held by anybody, and what is cached can be given back."""
    core = stage.core
    core.check()
    cache, scheduler, programs = core.cache, core.scheduler, core.programs
    cache.rows.check()
    assert not programs.live and not programs.news and core._last is None, "the engine is not idle"
    assert cache.rows.free == ROWS, "a row leaked"
    assert scheduler.bank is not None and not scheduler.bank.admitted, "an admission leaked"
    assert scheduler.bank._promised == 0, "a promise of slots leaked"
    assert not scheduler._sated, "a sequence is kept"
    cache.flush()
    cache.check([])
    assert cache.slots.free == cache.capacity and cache.tree.size == 0, "a slot leaked"
    assert cache.tree.namespaces == 0, "a namespace leaked"
