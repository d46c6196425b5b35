"""`CudaRunner` without a GPU: the tokens of `TorchRunner` under the real engine, sizing, lost memory, lost devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from msgspec.structs import replace as replaced

import ramet as rt
from ramet.frontend.backends.engine import Engine
from ramet.frontend.errors import DeviceLost, EngineError, ModelError
from ramet.frontend.ir import JUMPS, Sampling
from ramet.runtime import messages as m
from ramet.runtime import runners
from ramet.runtime.batch import I32, SCORED, Batch, Runner
from ramet.runtime.config import STEP, Config, Limits
from ramet.runtime.cuda import CudaRunner, assemble, dummy
from ramet.runtime.device import HostDevice
from ramet.runtime.models.decoder import Decoder
from ramet.runtime.models.hub import PRESETS
from ramet.runtime.models.load import random_weights
from ramet.runtime.models.spec import Spec
from ramet.runtime.runner import TorchRunner
from ramet.runtime.sizing import kv_bytes_per_token
from ramet.runtime.steps import Packed, TritonSteps

from ..sim.mazes import Mazes, Words
from . import hosted
from .driving import Drive
from .engines import TINY, WAIT, short_program

SPEC = replace(PRESETS["tiny"], vocab=1000)
RNG = np.random.default_rng(7)
PREFIX = tuple(int(t) for t in RNG.integers(10, 990, 600))
PROMPTS = [PREFIX + tuple(int(t) for t in RNG.integers(10, 990, n)) for n in (1, 3, 40)]
PROMPTS += [PREFIX[:50], tuple(int(t) for t in RNG.integers(10, 990, 130)), (11,)]
SAMPLINGS = [
    Sampling(temperature=0, max_tokens=8),
    Sampling(temperature=0.9, top_p=0.9, max_tokens=9),
    Sampling(temperature=1.2, top_k=20, min_p=0.01, max_tokens=6, repetition_penalty=1.2),
    Sampling(temperature=0.7, max_tokens=7, logprobs=2),
]
REQUESTS = [(prompt, SAMPLINGS[i % len(SAMPLINGS)], 1000 + i) for i, prompt in enumerate(PROMPTS)]
SIZES = {"capacity": 2048, "rows": 8, "context": 700}


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    torch.set_num_threads(1)
    return hosted.decoder(SPEC, 3)


def tokens(runner: Runner, **limits: object) -> list[list[int]]:
    """What every request generates, all of them twice: cold, then with a warm cache and captured graphs."""
    drive = Drive(runner, **limits)
    found = []
    for _ in range(2):
        names = [drive.completion(*request) for request in REQUESTS]
        drive.run(*names)
        assert all(drive.over[name].kind == "" for name in names)
        found += [drive[name, "0.1"].tokens for name in names]
    return found


@pytest.fixture(scope="module")
def wanted() -> list[list[int]]:
    torch.set_num_threads(1)
    made = Decoder(SPEC, random_weights(SPEC, torch.float32, 3), "cpu", torch.float32)
    found = tokens(TorchRunner(made, **SIZES))
    assert len({tuple(each) for each in found}) == len(REQUESTS)
    return found


def test_it_is_a_runner(decoder: Decoder) -> None:
    made: Runner = hosted.runner(decoder, **SIZES)
    assert (made.capacity, made.rows, made.context, made.vocab) == (2048, 8, 700, 1000)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("graphs", [True, False])
def test_the_engine_gets_the_tokens_of_the_cpu(
    decoder: Decoder, wanted: list[list[int]], graphs: bool, overlap: bool
) -> None:
    runner = hosted.runner(decoder, graphs=graphs, warm=graphs, **SIZES)
    assert tokens(runner, overlap=overlap) == wanted
    if runner.graphs is not None:
        sizes = {key[1] for key in runner.graphs.captured() if key[0] == "forward"}
        assert sizes >= {1, 2, 4, 8}


def test_with_the_plans_of_deterministic_mode(
    decoder: Decoder, wanted: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosted.PlanOps, "deterministic", True)
    runner = hosted.runner(decoder, warm=True, **SIZES)
    assert tokens(runner) == wanted
    assert runner.graphs is not None
    assert {key[2][0][0].narrow for key in runner.graphs.captured() if key[0] == "forward"} == {False}  # type: ignore[index]


def test_in_small_chunks_and_a_small_pool(decoder: Decoder, wanted: list[list[int]]) -> None:
    runner = hosted.runner(decoder, **{**SIZES, "capacity": 760})
    assert tokens(runner, chunk_tokens=50, batch_tokens=60) == wanted


def constrained(runner: Runner) -> list[tuple[list[int], int]]:
    """What grammars make of every request, and how much of it was forced, with each kind of jump."""
    drive = Drive(runner, tokenizer=Words(), eos=(0,), grammars=Mazes())  # type: ignore[arg-type]
    found = []
    for jump in JUMPS:
        names = []
        for number, (prompt, sampling, seed) in enumerate(REQUESTS):
            gen = m.Generate("0.1", "0", replaced(sampling, max_tokens=24), seed, str(number), jump)  # type: ignore[arg-type]
            names.append(drive.program(m.Append("0.0", "0", (prompt,)), gen))
        drive.run(*names)
        for name in names:
            done = drive[name, "0.1"].done
            assert isinstance(done, m.Done), drive[name, "0.1"].failure
            found.append((drive[name, "0.1"].tokens, done.forced))
    return found


@pytest.mark.parametrize("graphs", [True, False])
def test_constraints_and_guesses(decoder: Decoder, graphs: bool) -> None:
    plain = TorchRunner(Decoder(SPEC, random_weights(SPEC, torch.float32, 3), "cpu", torch.float32), **SIZES)
    wanted = constrained(plain)
    assert sum(forced for _, forced in wanted) > 5
    assert constrained(hosted.runner(decoder, graphs=graphs, warm=graphs, **SIZES)) == wanted


def test_forks_and_choices(decoder: Decoder) -> None:
    """Siblings that share a row of logits, and targets scored on a trie."""
    plain = TorchRunner(Decoder(SPEC, random_weights(SPEC, torch.float32, 3), "cpu", torch.float32), **SIZES)
    found = []
    for runner in (hosted.runner(decoder, warm=True, **SIZES), plain):
        drive = Drive(runner)
        into = tuple(f"0.1.b{i}" for i in range(3))
        gens = [m.Generate(f"{seq}.0", seq, SAMPLINGS[i], i) for i, seq in enumerate(into)]
        forked = drive.program(m.Append("0.0", "0", (PROMPTS[0],)), m.Fork("0.1", "0", into), *gens)
        choose = m.Choose("0.1", "0", ((5, 6, 7), (5, 8), (30,)), "token_length_normalized")
        chosen = drive.program(m.Append("0.0", "0", (PROMPTS[4],)), choose)
        drive.run()
        done = drive[chosen, "0.1"].done
        assert isinstance(done, m.Chosen)
        found.append(
            ([drive[forked, f"{seq}.0"].tokens for seq in into], done.winner, np.round(done.scores, 3).tolist())
        )
    assert found[0] == found[1]


# -- from a config


def load(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return random_weights(SPEC, dtype, 3)


def built(device: HostDevice, *, spec: Spec = SPEC, **fields: object) -> CudaRunner:
    options = {"dtype": "float32", "max_running": 4, "context": 600, "limits": Limits(batch_tokens=64)} | fields
    return assemble(Config(**options), spec, load, device, hosted.PlanOps(), hosted.HostSteps)  # type: ignore[arg-type]


def test_the_pool_takes_its_share_of_what_is_left() -> None:
    each = kv_bytes_per_token(SPEC, torch.float32)
    runner = built(HostDevice(memory=64 << 20, extra=1 << 20), graphs=False)
    assert runner.capacity == int(0.9 * (63 << 20)) // each - 1
    assert (runner.rows, runner.context, runner.dtype_name, runner.graphs) == (4, 600, "float32", None)
    assert built(HostDevice(memory=64 << 20), graphs=False, kv_share=0.5).capacity == int(0.5 * (64 << 20)) // each - 1
    assert built(HostDevice(memory=64 << 20), graphs=False, kv_tokens=700).capacity == 700


def test_graphs_have_their_memory_set_aside_and_are_warm() -> None:
    plain = built(HostDevice(memory=700 << 20), graphs=False, kv_share=0.05)
    runner = built(HostDevice(memory=700 << 20), kv_share=0.05)
    assert 600 <= runner.capacity < plain.capacity
    assert runner.graphs is not None
    kinds = sorted((key[0], key[1]) for key in runner.graphs.captured())
    each = [("forward", size) for size in (1, 1, 2, 2, 4, 4)]  # with one span of KV, and with several to merge
    assert kinds == [*each, *((kind, size) for kind in ("head", "sample") for size in (1, 2, 4))]


def test_a_step_that_nobody_sized_has_the_size_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STEP, "cuda", 32)
    assert built(HostDevice(memory=64 << 20), graphs=False, limits=Limits()).capacity > 600


@pytest.mark.parametrize(("deterministic", "last"), [(False, 63), (True, 599)])
def test_the_measured_step_is_the_one_that_takes_most(
    monkeypatch: pytest.MonkeyPatch, deterministic: bool, last: int
) -> None:
    """Partial results of deterministic mode grow with the position."""
    seen: list[tuple[int, int]] = []

    def noted(self: hosted.HostSteps, made: Batch, bucket: int | None) -> Packed | None:
        seen.append((len(made), int(made.positions.max())))
        return TritonSteps.pack(self, made, bucket)

    monkeypatch.setattr(hosted.HostSteps, "pack", noted)
    monkeypatch.setattr(hosted.PlanOps, "deterministic", deterministic)
    built(HostDevice(memory=64 << 20), graphs=False)
    assert seen[:2] == [(64, last)] * 2


@pytest.mark.parametrize(("size", "rows"), [(300, 4 + SCORED), (100, 100)])
def test_the_measured_step_has_all_rows_of_logits_that_a_step_may_have(
    monkeypatch: pytest.MonkeyPatch, size: int, rows: int
) -> None:
    """Beside a draw of every sequence there are the tokens of Scores, and those behind guesses."""
    seen: list[int] = []

    def noted(self: Decoder, hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        seen.append(len(hidden))
        return logits(self, hidden, out)

    logits = Decoder.logits
    monkeypatch.setattr(Decoder, "logits", noted)
    built(HostDevice(memory=64 << 20), graphs=False, limits=Limits(batch_tokens=size))
    assert seen[:2] == [rows] * 2


@pytest.mark.parametrize(
    ("device", "fields", "error", "says"),
    [
        (HostDevice(memory=100), {}, ModelError, r"'random:tiny' needs .* for weights; 0.0 MiB are free on the device"),
        (
            HostDevice(memory=1 << 20),
            {"graphs": False, "context": 2000},
            ModelError,
            "for the KV of one context of 2000 tokens; 1.0 MiB are",
        ),
        (
            HostDevice(memory=64 << 20, extra=64 << 20),
            {"graphs": False},
            ModelError,
            "a step needs 64.0 MiB of workspace, CUDA graphs 0.0 MiB",
        ),
        (
            HostDevice(memory=64 << 20),
            {"graphs": False, "kv_tokens": 10**6},
            EngineError,
            "kv_tokens=1000000: .* at most",
        ),
        (HostDevice(), {"context": 5000}, EngineError, "context=5000: the model 'random:tiny' has 2048"),
    ],
)
def test_what_does_not_fit_is_refused(
    device: HostDevice, fields: dict[str, object], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        built(device, **fields)


def test_out_of_memory_while_starting() -> None:
    def full(dtype: torch.dtype) -> dict[str, torch.Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 5.00 GiB.")

    config = Config(dtype="float32")
    said = r"cpu is out of memory in loading the weights .*: ask for a smaller model, .* Tried to allocate 5.00 GiB"
    with pytest.raises(EngineError, match=said):
        assemble(config, SPEC, full, HostDevice(), hosted.PlanOps(), hosted.HostSteps)  # type: ignore[arg-type]


def test_a_dummy_is_a_batch_of_the_dump_slot() -> None:
    made = dummy([(512, 513), (0, 3)], slot=50, rows=4, draws=6)
    assert (len(made), made.segments, len(made.draws)) == (4, 2, 6)
    assert made.slots.tolist() == [50] * 4
    assert made.positions.tolist() == [512, 0, 1, 2]
    assert made.kv_indptr.tolist() == [0, 513, 516]
    assert made.kv_indices[[511, 512, 513, 515]].tolist() == [0, 50, 50, 50]
    assert made.draws.rows.tolist() == [0, 1, 2, 3, 0, 1]
    assert int(made.draws.into.max()) == 3


# -- failures


class Failing(HostDevice):
    """Raises `error` when something is staged for the `at`-th time (from 0); `lost`: and ever after."""

    def __init__(self, error: Exception, at: int, *, lost: bool = False) -> None:
        super().__init__()
        self.error, self.at, self.lost = error, at, lost
        self.staged = 0
        self.trims = 0

    def stage(self, *parts: I32) -> torch.Tensor:
        self.staged += 1
        if self.staged == self.at + 1 or not self.healthy():
            raise self.error
        return super().stage(*parts)

    def trim(self) -> None:
        self.trims += 1

    def healthy(self) -> bool:
        return not (self.lost and self.staged > self.at)


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("at", range(0, 10, 3))
def test_out_of_memory_fails_the_batch_alone(decoder: Decoder, wanted: list[list[int]], graphs: bool, at: int) -> None:
    """Five sequences run, the sixth request waits for a row: it and whatever comes later is right."""
    device = Failing(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), at)
    runner = hosted.runner(decoder, device, graphs=graphs, **{**SIZES, "rows": 5})
    drive = Drive(runner, batch_tokens=700)
    names = [drive.completion(*request) for request in REQUESTS]
    drive.run(*names)
    failed = [n for n, name in enumerate(names) if drive[name, "0.1"].failure is not None]
    assert failed
    assert 5 not in failed
    for n, name in enumerate(names):
        if n in failed:
            failure = drive[name, "0.1"].failure
            assert failure is not None
            assert "cpu is out of memory in" in failure.message
            assert "Tried to allocate 2.00 GiB" in failure.message
        else:
            assert drive[name, "0.1"].tokens == wanted[n]
    assert device.trims >= 1
    again = [drive.completion(*request) for request in REQUESTS]
    drive.run(*again)
    assert [drive[name, "0.1"].tokens for name in again] == wanted[:6]


def test_another_error_keeps_its_type(decoder: Decoder) -> None:
    """A bug is not blamed on the device while the device works."""
    runner = hosted.runner(decoder, Failing(ValueError("a bug"), 0), **SIZES)
    with pytest.raises(ValueError, match="a bug"):
        runner.forward(dummy([(0, 1)], slot=9, rows=1, draws=1))


def test_what_a_failed_step_held_is_freed(decoder: Decoder) -> None:
    class Witness(HostDevice):
        freed = False

        def trim(self) -> None:
            self.freed = all(made() is None for made in hidden)

    hidden: list[Callable[[], object]] = []

    def fails(*_: object) -> torch.Tensor:
        import weakref

        big = torch.zeros(1000)
        hidden.append(weakref.ref(big))
        raise torch.OutOfMemoryError("CUDA out of memory")

    made = hosted.decoder(SPEC, 3)
    device = Witness()
    runner = hosted.runner(made, device, **SIZES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made, "forward", fails)
        with pytest.raises(EngineError, match="in a step of 1 tokens") as caught:
            runner.forward(dummy([(0, 1)], slot=9, rows=1, draws=1))
    assert hidden
    assert device.freed
    assert caught.value.__context__ is None


@pytest.mark.parametrize("at", [0, 1, 5])
def test_a_lost_device_ends_the_loop(decoder: Decoder, at: int) -> None:
    device = Failing(RuntimeError("CUDA error: an illegal memory access was encountered\nFor debugging"), at, lost=True)
    drive = Drive(hosted.runner(decoder, device, **SIZES))
    for request in REQUESTS:
        drive.completion(*request)
    with pytest.raises(DeviceLost, match=r"cpu failed in .*: RuntimeError: CUDA error: an illegal .* encountered$"):
        drive.run()


def test_the_client_restarts_after_a_lost_device(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[Failing] = []

    def build(config: Config, spec: Spec, weights: Callable[[torch.dtype], dict[str, torch.Tensor]]) -> CudaRunner:
        device = Failing(RuntimeError("CUDA error: device unplugged"), 10**9 if devices else 6, lost=True)
        devices.append(device)
        made = Decoder(spec, weights(torch.float32), "cpu", torch.float32, hosted.PlanOps())  # type: ignore[arg-type]
        return CudaRunner(made, device, hosted.HostSteps, capacity=512, rows=4, context=256)

    monkeypatch.setattr(runners, "build_runner", build)
    with Engine("random:tiny", in_process=True, kernels="torch", **TINY) as engine:
        with pytest.raises(rt.TransportError, match=r"the engine was lost: DeviceLost: cpu failed in .* unplugged"):
            short_program.using(backend=engine)(30).result(WAIT)
        assert short_program.using(backend=engine)().result(WAIT)
    assert len(devices) == 2
