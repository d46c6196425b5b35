"""The engine on a GPU: the equality ladder in deterministic mode, graphs against eager steps, a real model against the
CPU, forks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

import ramet as rt
from ramet.frontend.backends.engine import Engine
from ramet.frontend.errors import EngineError
from ramet.frontend.ir import Sampling
from ramet.runtime import messages as m
from ramet.runtime.config import Config
from ramet.runtime.cuda import CudaRunner, build
from ramet.runtime.models.hub import PRESETS
from ramet.runtime.models.load import random_weights

from .driving import Drive

pytestmark = pytest.mark.gpu

SPEC = replace(PRESETS["smollm2-135m"], layers=4, vocab=4096)
RNG = np.random.default_rng(7)
PREFIX = tuple(int(t) for t in RNG.integers(10, 4000, 1100))
PROMPTS = [PREFIX + tuple(int(t) for t in RNG.integers(10, 4000, n)) for n in (1, 3, 40)]
PROMPTS += [PREFIX[:50], PREFIX[:700], tuple(int(t) for t in RNG.integers(10, 4000, 130)), (11,)]
SAMPLINGS = [
    Sampling(temperature=0, max_tokens=20),
    Sampling(temperature=0.9, top_p=0.9, max_tokens=20),
    Sampling(temperature=1.2, top_k=20, min_p=0.01, max_tokens=16, repetition_penalty=1.2),
    Sampling(temperature=0.7, max_tokens=18, frequency_penalty=0.5, logprobs=2),
]
REQUESTS = [(prompt, SAMPLINGS[i % len(SAMPLINGS)], 1000 + i) for i, prompt in enumerate(PROMPTS)]
Make = Callable[..., CudaRunner]


def made(**fields: object) -> CudaRunner:
    options = {"device": "cuda", "kv_tokens": 20_000, "context": 2048, "max_running": 16} | fields
    return build(Config(**options), SPEC, lambda dtype: random_weights(SPEC, dtype, 3))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def runner() -> CudaRunner:
    return made(deterministic=True)


def bits(runner: CudaRunner, **limits: object) -> list[tuple[object, ...]]:
    """All requests together in a fresh engine over `runner`, whose pool holds what earlier engines left."""
    drive = Drive(runner, **limits)
    names = [drive.completion(*request) for request in REQUESTS]
    drive.run(*names)
    assert all(drive[name, "0.1"].failure is None for name in names)
    return [drive[name, "0.1"].bits for name in names]


@pytest.fixture(scope="module")
def alone(runner: CudaRunner) -> list[tuple[object, ...]]:
    found = []
    for request in REQUESTS:
        drive = Drive(runner)
        name = drive.completion(*request)
        drive.run()
        found.append(drive[name, "0.1"].bits)
    assert len({each[0] for each in found}) == len(found)
    return found


@pytest.mark.parametrize(
    "limits",
    [{}, {"overlap": False}, {"chunk_tokens": 7, "batch_tokens": 64}, {"chunk_tokens": 512}, {"batch_tokens": 2048}],
    ids=str,
)
def test_the_same_bits_in_any_company(
    runner: CudaRunner, alone: list[tuple[object, ...]], limits: dict[str, object]
) -> None:
    assert bits(runner, **limits) == alone


def test_the_same_bits_with_a_warm_cache_and_after_retraction(
    runner: CudaRunner, alone: list[tuple[object, ...]]
) -> None:
    drive = Drive(runner)

    def storm(n: int) -> None:
        if n % 5 == 4:
            for seq in list(drive.core.scheduler.running):
                drive.core.scheduler.retract(seq)

    for before in (None, storm, None):
        names = [drive.completion(*request) for request in REQUESTS]
        drive.run(*names, before=before)
        assert [drive[name, "0.1"].bits for name in names] == alone


def test_the_same_bits_as_fork_siblings(runner: CudaRunner) -> None:
    """Branches over a prompt that is read once for all of them."""
    alone = []
    for i, sampling in enumerate(SAMPLINGS):
        drive = Drive(runner)
        name = drive.completion(PROMPTS[0], sampling, i)
        drive.run()
        alone.append(drive[name, "0.1"].bits)
    drive = Drive(runner)
    into = tuple(f"0.1.b{i}" for i in range(len(SAMPLINGS)))
    gens = [m.Generate(f"{seq}.0", seq, SAMPLINGS[i], i) for i, seq in enumerate(into)]
    name = drive.program(m.Append("0.0", "0", (PROMPTS[0],)), m.Fork("0.1", "0", into), *gens)
    drive.run()
    assert [drive[name, f"{seq}.0"].bits for seq in into] == alone


def test_the_same_bits_with_and_without_graphs(runner: CudaRunner, alone: list[tuple[object, ...]]) -> None:
    assert runner.graphs is not None
    assert runner.graphs.captured()
    assert bits(made(deterministic=True, graphs=False)) == alone


@pytest.mark.parametrize(
    "fields",
    [{}, {"graphs": False}, {"dtype": "float16"}, {"weights": "int8"}, {"weights": "int4"}, {"weights": "fp8"}],
    ids=str,
)
def test_every_way_to_run_finishes_all_requests(fields: dict[str, object]) -> None:
    found = bits(made(**fields))
    assert all(len(each[0]) > 0 for each in found)  # type: ignore[arg-type]


def test_no_slot_but_those_of_the_batch_is_touched() -> None:
    """Freed and never used KV is poisoned; padding writes the dump slot alone."""
    runner = made(deterministic=True, max_running=8)
    wanted = bits(runner)
    with torch.inference_mode(), runner.device.launching():  # in order with the steps
        runner._cache.fill_(torch.nan)
        runner._cache[..., runner.capacity, :] = 0  # padded rows read it back
    assert bits(runner) == wanted


def test_a_pool_that_does_not_fit() -> None:
    with pytest.raises(EngineError, match=r"kv_tokens=\d+: .* are free beside .* of weights; .* ask for at most"):
        made(kv_tokens=10**10)


@pytest.mark.model
def test_greedy_text_of_the_real_model_is_the_cpus() -> None:
    prompts = ["The capital of France is", "Once upon a time", "def add(a, b):", "1, 2, 3, 4,"]

    @rt.function
    def complete(s: rt.State, prompt: str) -> str:
        s += prompt
        return s.gen(max_tokens=24, temperature=0).get()

    found = []
    for device in ("cpu", "cuda"):
        with Engine("default", device=device, dtype="float32", kv_tokens=4096, context=1024) as engine:
            found.append([complete.using(backend=engine)(prompt).result(300) for prompt in prompts])
    assert found[0] == found[1]


def test_forks_and_joins_on_the_engine() -> None:
    @rt.function
    def outline(s: rt.State) -> list[str]:
        s += "Three ideas."
        forks = s.fork(3)
        for i, branch in enumerate(forks):
            branch += f" Idea {i}:"
            branch += rt.gen("idea", max_tokens=12, temperature=0, ignore_eos=True)
        forks.join()  # s["idea"] is a list now
        s += "\n".join(s["idea"]) + "\nIn short:"
        s += rt.gen("short", max_tokens=8, temperature=0, ignore_eos=True)
        return [*s["idea"], s["short"]]

    options = {"device": "cuda", "kv_tokens": 8192, "context": 1024, "deterministic": True}
    with Engine("random:smollm2-135m", **options) as engine:
        first, second = (outline.using(backend=engine)().result(300) for _ in range(2))
        assert first == second
        assert all(first)
