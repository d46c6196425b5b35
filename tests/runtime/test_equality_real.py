"""The equality ladder once more, on the real model: fewer rungs' variants, the same promise (see test_equality.py)."""

from __future__ import annotations

from itertools import cycle

import pytest
import torch

from ramet.frontend.ir import Sampling
from ramet.kernels.cpu import library
from ramet.runtime import messages as m
from ramet.runtime.models import hub
from ramet.runtime.models.decoder import Decoder
from ramet.runtime.models.load import load_weights
from ramet.runtime.models.stored import stored
from ramet.runtime.models.tokenizer import load_tokenizer
from ramet.runtime.packed import Packed, pack
from ramet.runtime.runner import TorchRunner

from .driving import Drive
from .natives import native, needs_native

pytestmark = pytest.mark.model
SHARED = "<|im_start|>user\nName three rivers of Europe, and say in one word what each of them is known for."
TEXTS = [
    SHARED + "<|im_end|>\n<|im_start|>assistant\n",
    SHARED + " Be brief.<|im_end|>\n<|im_start|>assistant\n",
    "The",
]
SAMPLINGS = [
    Sampling(temperature=0, max_tokens=6, logprobs=2),
    Sampling(temperature=0.9, top_p=0.9, max_tokens=6, logprobs=0),
    Sampling(temperature=1.0, top_k=40, max_tokens=5, logprobs=0, repetition_penalty=1.1),
]
THREADS = cycle((1, 2, 3))
Bits = list[tuple[object, ...]]


NATIVE = [pytest.param(f"native {dtype}", marks=needs_native) for dtype in ("bfloat16", "int8", "int4")]


@pytest.fixture(scope="module", params=["float32", "bfloat16", *NATIVE])
def decoder(request: pytest.FixtureRequest) -> Decoder | Packed:
    torch.set_num_threads(2)
    source = hub.resolve("default")
    spec = hub.load_spec(source)
    kernels, _, name = request.param.rpartition(" ")
    if kernels:
        lib = library.load()
        return pack(lib, library.Pool(lib, 2), spec, name, stored(source, spec))
    dtype = getattr(torch, name)
    return Decoder(spec, load_weights(source, spec, dtype), "cpu", dtype)


@pytest.fixture(scope="module")
def requests() -> list[tuple[list[int], Sampling, int]]:
    tokenizer = load_tokenizer(hub.resolve("default"))
    return [(tokenizer.encode_template(text), SAMPLINGS[i], i) for i, text in enumerate(TEXTS)]


def drive(decoder: Decoder | Packed, *, capacity: int = 600, **limits: object) -> Drive:
    if isinstance(decoder, Packed):
        return Drive(native(decoder, capacity=capacity, rows=8, context=256, threads=next(THREADS)), **limits)
    return Drive(TorchRunner(decoder, capacity=capacity, rows=8, context=256, threads=2), **limits)


def together(d: Drive, requests: list[tuple[list[int], Sampling, int]]) -> Bits:
    names = [d.completion(*request) for request in requests]
    d.run(*names)
    return [d[name, "0.1"].bits for name in names]


@pytest.fixture(scope="module")
def alone(decoder: Decoder | Packed, requests: list[tuple[list[int], Sampling, int]]) -> Bits:
    return [together(drive(decoder), [request])[0] for request in requests]


def test_batched_then_warm(
    decoder: Decoder | Packed, requests: list[tuple[list[int], Sampling, int]], alone: Bits
) -> None:
    d = drive(decoder)
    assert together(d, requests) == alone
    assert together(d, requests) == alone


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunked(
    decoder: Decoder | Packed, requests: list[tuple[list[int], Sampling, int]], alone: Bits, chunk: int
) -> None:
    assert together(drive(decoder, chunk_tokens=chunk, overlap=chunk != 7), requests) == alone


def test_retracted_and_evicted_again_and_again(
    decoder: Decoder | Packed, requests: list[tuple[list[int], Sampling, int]], alone: Bits
) -> None:
    d = drive(decoder)

    def storm(n: int) -> None:
        if n % 3 == 2:
            for seq in list(d.core.scheduler.running):
                d.core.scheduler.retract(seq)
        if n % 6 == 5:
            d.core.cache.flush()

    names = [d.completion(*request) for request in requests]
    d.run(before=storm)
    assert d.core.scheduler.retractions > 3
    assert [d[name, "0.1"].bits for name in names] == alone


def test_fork_siblings(decoder: Decoder | Packed, requests: list[tuple[list[int], Sampling, int]], alone: Bits) -> None:
    prompt, sampling, seed = requests[1]
    d = drive(decoder)
    into = ("0.1.b0", "0.1.b1", "0.1.b2")
    gens = [m.Generate(f"{name}.0", name, sampling, seed) for name in into]
    program = d.program(m.Append("0.0", "0", (tuple(prompt),)), m.Fork("0.1", "0", into), *gens)
    d.run()
    assert [d[program, f"{name}.0"].bits for name in into] == [alone[1]] * 3
