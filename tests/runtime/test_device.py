"""Devices without a GPU: what is refused and in which words, the host's device, memory figures."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ramet.frontend.errors import EngineError, ModelError
from ramet.runtime.config import Config
from ramet.runtime.device import (
    CudaDevice,
    Findings,
    HostDevice,
    choose,
    exhausted,
    look,
    out_of_memory,
    place_kernels,
    start_kernels,
    unusable,
)
from ramet.runtime.models.spec import Rope, Spec
from ramet.runtime.sizing import (
    Budget,
    check_room,
    check_weights,
    default_capacity,
    device_capacity,
    device_weight_bytes,
    kv_bytes_per_token,
    size,
    weight_bytes,
)

SPEC = Spec("llama", "tiny", 2, 64, 6, 2, 16, 96, 131, 512, 1e-5, Rope(), tied=True)
GIB = 1 << 30
H100 = Findings("2.11.0", "13.0", True, "NVIDIA H100", (9, 0), True)
LACKING = [
    (Findings("2.13.0+cpu", None), "torch 2.13.0\\+cpu was built without CUDA; install a CUDA build of torch"),
    (Findings("2.11.0", "13.0"), "finds no usable GPU.*nvidia-smi.*CUDA_VISIBLE_DEVICES"),
    (replace(H100, name="Tesla T4", capability=(7, 5)), "Tesla T4 has compute capability 7.5; the kernels need 8.0"),
    (replace(H100, triton=False), r"need Triton, which is not installed; install ramet\[gpu\]"),
]


@pytest.mark.parametrize(("found", "says"), LACKING)
def test_what_is_missing_is_named_and_the_cpu_offered(found: Findings, says: str) -> None:
    with pytest.raises(EngineError, match=f"device='cuda': .*{says}.*; device='cpu' runs here"):
        choose("cuda", lambda: found)
    assert choose("auto", lambda: found) == "cpu"


def test_what_is_there_is_used() -> None:
    assert unusable(H100) == ""
    assert choose("auto", lambda: H100) == choose("cuda", lambda: H100) == "cuda"
    assert choose("auto", lambda: replace(H100, capability=(8, 0))) == "cuda"
    assert choose("cpu", lambda: pytest.fail("nobody asked for a GPU")) == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has one")
def test_this_machine_has_none() -> None:
    assert unusable(look())
    with pytest.raises(EngineError, match="device='cuda'"):
        CudaDevice()


def test_the_hosts_device() -> None:
    device = HostDevice(memory=5, extra=7)
    words = np.arange(4, dtype=np.int32)
    staged = device.stage(words)
    words[:] = 0
    assert staged.tolist() == [0, 1, 2, 3]
    assert device.stage(words[:0], words, words[1:]).tolist() == [0] * 7
    fetch = device.fetch((staged,))
    staged.zero_()
    assert fetch.wait()[0].tolist() == [0, 1, 2, 3]
    runs: list[int] = []
    graph = device.capture(lambda: runs.append(1))
    graph.replay()
    assert len(runs) == 2
    assert device.workspace(lambda: runs.append(1)) == 7
    assert (device.free(), len(runs), device.healthy()) == (5, 3, True)
    assert HostDevice().free() > 1 << 20


class Capturing:
    """As much of torch's CUDA as captures touch. A capture `fails` while it is recorded, which spoils it, or where it
    is made a graph; torch's allocators then count it as `open` until they are told."""

    def __init__(self, fails: str) -> None:
        self.fails, self.pools, self.open = fails, 0, set[int]()

    def new_pool(self) -> int:
        self.pools += 1
        return self.pools

    def capture_begin(self, pool: int, capture_error_mode: str) -> None:
        assert (pool in self.open, capture_error_mode) == (False, "thread_local"), "already recording to mempool_id"
        self.open.add(pool)
        self.pool = pool

    def capture_end(self) -> None:
        if self.fails != "recording":
            self.open.remove(self.pool)
        if self.fails:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    def end(self, device: int, pool: int) -> None:
        if pool not in self.open:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.open.remove(pool)


def capturing(monkeypatch: pytest.MonkeyPatch, fails: str) -> tuple[CudaDevice, Capturing]:
    found = Capturing(fails)
    monkeypatch.setattr("ramet.runtime.device.look", lambda: H100)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda place: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "Stream", lambda place: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", found.new_pool)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: found)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", found.end, raising=False)
    return CudaDevice(), found


@pytest.mark.parametrize(("fails", "pools"), [("recording", 2), ("instantiating", 1)])
def test_a_capture_that_failed_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch, fails: str, pools: int) -> None:
    """torch 2.11 leaves its allocators in the middle of one that was spoilt: staged tensors would pile up."""
    device, torchs = capturing(monkeypatch, fails)
    ran: list[int] = []

    def run() -> None:
        ran.append(1)
        if fails == "recording" and torchs.open:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    says = "not permitted" if fails == "recording" else "previous error"
    with pytest.raises(RuntimeError, match=says):
        device.capture(run)
    assert not torchs.open
    torchs.fails = ""
    fails = ""
    assert device.capture(run) is torchs  # type: ignore[comparison-overlap]
    assert (len(ran), torchs.pools) == (4, pools)


def test_out_of_memory_says_what_can_be_done() -> None:
    full = torch.OutOfMemoryError("Tried 5 GiB.\nmore")
    error = exhausted(HostDevice(memory=3 << 20), "a step of 9 tokens", full, "batch_tokens")
    assert str(error) == (
        "cpu is out of memory in a step of 9 tokens (3.0 MiB are free now): ask for a smaller batch_tokens; "
        "Tried 5 GiB."
    )


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be ..."), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_memory_runs_out_in_several_dialects(error: Exception, is_it: bool) -> None:
    assert out_of_memory(error) is is_it


def test_kernels_go_where_one_can_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    knobs = pytest.importorskip("triton").knobs
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    monkeypatch.setattr(knobs.cache, "dir", str(tmp_path / "own"))
    assert place_kernels(tmp_path / "other") == tmp_path / "own"
    assert not (tmp_path / "other").exists()
    monkeypatch.setattr(knobs.cache, "dir", str(blocked / "cache"))
    assert place_kernels(tmp_path / "other") == tmp_path / "other" == Path(knobs.cache.dir)
    monkeypatch.setattr(knobs.cache, "dir", str(blocked / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = place_kernels(blocked / "too")
    assert found.parent == tmp_path
    assert found.is_dir()
    assert Path(knobs.cache.dir) == found


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton works there")
def test_what_triton_needs_is_named() -> None:
    pytest.importorskip("triton")
    with pytest.raises(EngineError, match=r"Triton cannot launch kernels: .* 0 active .* a C compiler"):
        start_kernels()


# -- figures


def test_weights_of_a_device() -> None:
    embedding = 131 * 64
    dense = device_weight_bytes(SPEC, torch.bfloat16, "auto")
    assert dense == weight_bytes(SPEC, torch.bfloat16) - 2 * embedding  # a tied head is shared
    untied = replace(SPEC, tied=False)
    assert device_weight_bytes(untied, torch.bfloat16, "dense") == weight_bytes(untied, torch.bfloat16)
    for spec in (SPEC, untied):
        sizes = [device_weight_bytes(spec, torch.bfloat16, kind) for kind in ("int4", "int8")]
        assert 2 * embedding < sizes[0] < sizes[1] < weight_bytes(spec, torch.bfloat16)
    check_weights(SPEC, torch.bfloat16, "dense", dense)
    with pytest.raises(ModelError, match=r"'tiny' needs .* MiB for weights; .* are free on the device: .*device='cpu'"):
        check_weights(SPEC, torch.bfloat16, "dense", dense - 1)


def test_capacity_is_a_share_of_what_is_left() -> None:
    each = kv_bytes_per_token(SPEC, torch.bfloat16)
    budget = Budget(free=20 * GIB, workspace=3 * GIB, graphs=GIB, weights=5 * GIB)
    assert budget.left == 16 * GIB
    slots = device_capacity(SPEC, torch.bfloat16, budget, context=512)
    assert (slots + 1) * each <= 0.9 * 16 * GIB < (slots + 2) * each
    half = device_capacity(SPEC, torch.bfloat16, budget, context=512, share=0.5)
    assert half == 8 * GIB // each - 1
    assert device_capacity(SPEC, torch.bfloat16, budget, context=512, asked=700) == 700
    most = 16 * GIB // each - 1
    assert device_capacity(SPEC, torch.bfloat16, budget, context=512, asked=most) == most
    figures = "20.00 GiB are free beside 5.00 GiB of weights; a step needs 3.00 GiB of workspace, CUDA graphs 1.00 GiB"
    with pytest.raises(EngineError, match=f"kv_tokens={most + 1}: .*{figures}: ask for at most {most} tokens"):
        device_capacity(SPEC, torch.bfloat16, budget, context=512, asked=most + 1)


def test_a_context_that_does_not_fit_is_refused_with_the_figures() -> None:
    each = kv_bytes_per_token(SPEC, torch.bfloat16)
    room = Budget(free=2 * 513 * each + (5 << 20), workspace=4 << 20, graphs=1 << 20, weights=9 << 20)
    assert device_capacity(SPEC, torch.bfloat16, room, context=512, share=0.5) == 512
    with pytest.raises(
        ModelError, match=r"'tiny' needs 0.1 MiB for the KV of one context of 512 tokens; 5.3 MiB are free"
    ):
        device_capacity(SPEC, torch.bfloat16, room, context=512, share=0.49)
    with pytest.raises(ModelError, match=r"9.0 MiB of weights; a step needs 4.0 MiB of workspace, CUDA graphs 1.0 MiB"):
        device_capacity(SPEC, torch.bfloat16, replace(room, free=0), context=512)


def test_a_share_of_the_cpus_memory() -> None:
    each, weights = kv_bytes_per_token(SPEC, torch.float32), weight_bytes(SPEC, torch.float32)
    assert default_capacity(SPEC, torch.float32, context=512, memory=weights + 8000 * each, share=0.5) == 4000
    huge = default_capacity(SPEC, torch.float32, context=512, memory=weights + 10**6 * each, share=0.5)
    assert huge == 500_000  # who asks for a share gets it
    with pytest.raises(EngineError, match=r"kv_tokens=100: .* ask for at most 99 tokens"):
        check_room(SPEC, torch.float32, kv_tokens=100, memory=weights + 99 * each)


def test_sizes_for_people() -> None:
    assert [size(n) for n in (0, 1 << 19, 1 << 30, 3 << 29)] == ["0.0 MiB", "0.5 MiB", "1.00 GiB", "1.50 GiB"]


# -- configuration


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"device": "tpu"}, "device='tpu': choose auto, cpu or cuda"),
        ({"dtype": "float64"}, "dtype='float64': choose auto, float32 or bfloat16; float16 on cuda"),
        ({"weights": "int2"}, "weights='int2': choose auto, dense, int8, int4 or fp8"),
        ({"device": "cpu", "dtype": "float16"}, "dtype='float16': is for device='cuda'"),
        ({"device": "cpu", "weights": "int8"}, "weights='int8': is for device='cuda'"),
        ({"deterministic": True, "weights": "fp8"}, "deterministic=True: needs dense weights; leave out weights='fp8'"),
        ({"kv_share": 1.5}, "kv_share=1.5: must be between 0 and 1"),
        ({"kv_share": float("nan")}, "kv_share=nan: must be between 0 and 1"),
    ],
)
def test_options_that_cannot_be(fields: dict[str, object], says: str) -> None:
    with pytest.raises(EngineError, match=says):
        Config(**fields)  # type: ignore[arg-type]


def test_options_that_turn_out_to_need_a_gpu() -> None:
    with pytest.raises(EngineError, match="weights='int4': is for device='cuda'; choose auto or dense on a CPU"):
        Config(weights="int4").check_cpu()
    Config(device="cpu", weights="dense", deterministic=True, graphs=False).check_cpu()
