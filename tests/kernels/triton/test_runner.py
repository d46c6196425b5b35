"""`CudaRunner` on the real kernels, in Triton's interpreter: the logits and greedy tokens of `TorchRunner`, and the
same tokens from graphs as from eager steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ramet.kernels.triton import TritonOps
from ramet.runtime.batch import Batch, Masks, Samples
from ramet.runtime.cuda import CudaRunner
from ramet.runtime.device import HostDevice
from ramet.runtime.models.decoder import Decoder
from ramet.runtime.models.load import random_weights
from ramet.runtime.models.spec import Rope, Spec
from ramet.runtime.runner import TorchRunner
from ramet.runtime.steps import TritonSteps

from ..ragged import Part, batch, draws

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(torch.cuda.is_available(), reason="the host's device has no compiler"),
]
SPEC = Spec("llama", "tiny", 1, 32, 4, 2, 16, 48, 131, 64, 1e-5, Rope(), tied=True)
SIZES = {"capacity": 128, "rows": 2, "context": 64}
IDS = np.random.default_rng(0).integers(0, 131, (2, 64)).astype(np.int32)
PLACE = np.random.default_rng(1).permutation(128).reshape(2, 64).astype(np.int32)


def on_gpu_kernels(graphs: bool) -> CudaRunner:
    made = Decoder(SPEC, random_weights(SPEC, torch.float32, 0), "cpu", torch.float32, TritonOps())
    return CudaRunner(made, HostDevice(), TritonSteps, graphs=graphs, **SIZES)


def batches() -> list[tuple[Batch, Masks]]:
    """A prompt step, three decode steps fed from the token table, one with a mask and a bias, one that truncates."""
    only = np.zeros(5, np.uint32)
    only[2] = 3
    steps = [([Part(IDS[0], PLACE[0], 0, 20), Part(IDS[1], PLACE[1], 0, 5)], [19, 24], {}, {}, Masks())]
    options: list[tuple[dict[str, object], Masks]] = [
        ({}, Masks()),
        ({}, Masks()),
        ({"bias": ((0, np.array([7], np.int32), np.array([1e4], np.float32)),)}, Masks(allowed=((1, only),))),
        ({"temperature": 1.0, "top_k": [5, 0], "top_p": 0.9, "seeds": [1, 2], "positions": 24}, Masks()),
    ]
    for n, (fields, masks) in enumerate(options):
        parts = [Part(IDS[0], PLACE[0], 20 + n, 21 + n), Part(IDS[1], PLACE[1], 5 + n, 6 + n)]
        steps.append((parts, [0, 1], {0: 0, 1: 1}, fields, masks))  # type: ignore[arg-type]
    return [
        (batch(parts, drawn=draws(rows, into=[0, 1], **fields), feeds=feeds), masks)
        for parts, rows, feeds, fields, masks in steps
    ]


def run(runner: CudaRunner | TorchRunner) -> list[tuple[torch.Tensor, Samples]]:
    found = []
    for made, masks in batches():
        flight = runner.forward(made)
        assert flight.logits is not None
        logits = flight.logits.clone()
        runner.sample(flight, masks)
        found.append((logits, runner.read(flight)))
    return found


def test_the_engine_s_kernels_are_the_cpu_s() -> None:
    wanted = run(TorchRunner(Decoder(SPEC, random_weights(SPEC, torch.float32, 0), "cpu", torch.float32), **SIZES))
    graphs = on_gpu_kernels(True)
    found, eager = run(graphs), run(on_gpu_kernels(False))
    for n, ((logits, samples), (other, plain), (reference, drawn)) in enumerate(zip(found, eager, wanted, strict=True)):
        assert torch.equal(logits, other)
        assert np.array_equal(samples.tokens, plain.tokens)
        assert (logits - reference).abs().max() <= 1e-4
        if n < 4:  # greedy: the noise of the last one is another on a GPU
            assert np.array_equal(samples.tokens, drawn.tokens)
    assert found[3][1].tokens[0] == 7
    assert found[3][1].tokens[1] in (64, 65)
    assert graphs.graphs is not None
    assert {key[0] for key in graphs.graphs.captured()} == {"forward", "head", "sample"}
