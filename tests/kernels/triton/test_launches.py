"""Every launch that the runner makes, as it is made, through Triton's real compiler for sm_90: types, alignment and
constants of the arguments included. Nothing is executed, so no GPU is needed; what would not compile there fails here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

triton = pytest.importorskip("triton")

from ramet.kernels.triton import TritonOps  # noqa: E402
from ramet.runtime.batch import Batch, Masks  # noqa: E402
from ramet.runtime.cuda import CudaRunner  # noqa: E402
from ramet.runtime.device import HostDevice  # noqa: E402
from ramet.runtime.models.decoder import Decoder  # noqa: E402
from ramet.runtime.models.load import random_weights  # noqa: E402
from ramet.runtime.models.spec import Rope, Spec  # noqa: E402
from ramet.runtime.steps import TritonSteps  # noqa: E402

from ..ragged import Part, batch, draws  # noqa: E402

pytestmark = pytest.mark.aot
SMALL = Spec("llama", "small", 2, 576, 9, 3, 64, 1536, 49152, 2048, 1e-5, Rope(), tied=True)
HEADED = Spec(
    "qwen3", "headed", 1, 1024, 16, 8, 128, 3072, 4096, 2048, 1e-6, Rope(), tied=False, qk_norm=True, window=256,
    windowed=(True,),
)  # fmt: skip
SIZES = {"capacity": 4096, "rows": 8, "context": 2048}
IDS = np.random.default_rng(0).integers(0, 4096, (8, 2048)).astype(np.int32)
PLACE = np.random.default_rng(1).permutation(4096).reshape(8, 512).astype(np.int32)


class Sm90:
    """What Triton asks of a driver before it compiles."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Counts, by kernel, how many binaries the launches asked for."""
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    made: Counter[str] = Counter()
    seen: list[Any] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        if self not in seen:
            seen.append(self)
            self.device_caches.clear()  # what other tests have compiled
        known = len(self.device_caches[0][0])
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        made[self.fn.__name__] += len(self.device_caches[0][0]) - known
        return kernel

    before = driver._active
    driver.set_active(Sm90())
    monkeypatch.setattr(JITFunction, "run", compile_only)
    yield made
    driver._active = before


def runner(spec: Spec, ops: TritonOps, dtype: torch.dtype = torch.bfloat16, *, graphs: bool = False) -> CudaRunner:
    made = Decoder(spec, random_weights(spec, dtype, 0), "cpu", dtype, ops)
    return CudaRunner(made, HostDevice(), TritonSteps, graphs=graphs, **SIZES)


def decode(length: int, **fields: Any) -> Batch:
    """One decode step of two sequences of `length` tokens."""
    parts = [Part(IDS[s], PLACE[s], length, length + 1) for s in range(2)]
    return batch(parts, drawn=draws([0, 1], into=[0, 1], **fields), feeds={0: 0, 1: 1})


def steps() -> list[tuple[Batch, Masks]]:
    """A chunk, a mixed step, siblings of a fork, decode with every kind of sampling."""
    allowed = np.full(SMALL.vocab // 32, 0xFFFFFFFF, np.uint32)
    history = (np.arange(9, dtype=np.int32),)
    shared = np.concatenate((np.broadcast_to(PLACE[0], (4, 512)), PLACE[4:8]), axis=1)
    siblings = [Part(IDS[0], shared[s], 520, 521) for s in range(4)]
    chunk = Part(IDS[0], PLACE[0], 0, 300)
    return [
        (batch([chunk], drawn=draws([299], into=[0])), Masks()),
        (batch([chunk, Part(IDS[1], PLACE[1], 40, 41)], drawn=draws([300], into=[0])), Masks()),
        (batch(siblings, drawn=draws([0, 1, 2, 3], into=[0, 1, 2, 3])), Masks()),
        (decode(30, temperature=1.0, top_k=[5, 0], top_p=0.9), Masks()),
        (decode(31, temperature=1.0, repetition=1.1), Masks(history=((0, history[0], 3),), allowed=((1, allowed),))),
        (decode(32, logprobs=[3, 0]), Masks()),
    ]


def play(on: CudaRunner, work: list[tuple[Batch, Masks]]) -> None:
    for made, masks in work:
        flight = on.forward(made)
        on.sample(flight, masks)
        on.read(flight)


@pytest.mark.parametrize(
    "ops", [TritonOps(), TritonOps(deterministic=True), TritonOps("int8"), TritonOps("int4")], ids=str
)
def test_all_launches_compile(ops: TritonOps, compiled: Counter[str]) -> None:
    play(runner(SMALL, ops), steps())
    assert {"segments", "merge", "add_rmsnorm", "rotate_store", "scan", "choose"} <= set(compiled), sorted(compiled)


def test_head_norms_windows_and_float32_compile(compiled: Counter[str]) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        play(runner(HEADED, TritonOps(), dtype), [(decode(30), Masks())])
    assert compiled["segments"] >= 2


def test_nothing_is_compiled_again_as_sequences_grow(compiled: Counter[str]) -> None:
    on = runner(SMALL, TritonOps())
    play(on, [(decode(length), Masks()) for length in (15, 16, 17)])
    compiled.clear()
    play(on, [(decode(length), Masks()) for length in range(18, 400, 7)])
    assert not +compiled


@pytest.mark.parametrize("graphs", [True, False])
def test_nothing_is_compiled_after_the_start(graphs: bool, compiled: Counter[str]) -> None:
    on = runner(SMALL, TritonOps(), graphs=graphs)
    on.warm(512)
    assert {"segments", "merge", "edit_rows", "choose", "score_tokens"} <= set(compiled), sorted(compiled)
    compiled.clear()
    play(on, [*steps(), *((decode(32, logprobs=[k, -1]), Masks()) for k in (0, 1, 5, 20))])
    assert not +compiled


def test_logprobs_compile_for_three_widths(compiled: Counter[str]) -> None:
    on = runner(SMALL, TritonOps())
    play(on, [(decode(30, logprobs=[k, 0]), Masks()) for k in (1, 5, 20)])
    assert (compiled["score_blocks"], compiled["score_tokens"]) == (3, 3)
    compiled.clear()
    play(on, [(decode(30, logprobs=[k, own]), Masks()) for k in (0, 2, 3, 7, 19) for own in (-1, 0, 1)])
    assert not +compiled
