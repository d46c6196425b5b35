"""Which device and which kernels compute.

In: a `Config`, a model. Out: the runner, and what the config means on its device. torch is imported only where it
computes, or where it has to be asked about a GPU.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from ramet.frontend.errors import EngineError, ModelError
from ramet.runtime.config import NATIVE, Config
from ramet.runtime.models import hub
from ramet.runtime.models.spec import Spec

if TYPE_CHECKING:
    from ramet.runtime.cuda import CudaRunner
    from ramet.runtime.native import NativeRunner
    from ramet.runtime.runner import Load, TorchRunner

    AnyRunner = TorchRunner | CudaRunner | NativeRunner

LOG = logging.getLogger("ramet.engine")
# What a driver for NVIDIA's GPUs makes; without any of them there is no GPU, and no need to load torch to ask.
GPU_FILES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/nvhost-ctrl")


def runner_for(config: Config, spec: Spec, source: hub.ModelSource) -> tuple[Config, AnyRunner]:
    """The runner that `config` asks for, on cuda where it can be had and nothing else is asked for; on a CPU the native
    kernels where they have the dtype (all but float32), else torch. Raises `EngineError` or `ModelError` for what
    cannot be had, with the reason."""
    device = "cpu" if config.dtype in NATIVE else device_of(config.device)
    config = config.on(device)
    if device == "cuda" and config.kernels == "native":
        raise EngineError("kernels='native': are the CPU's; choose device='cpu', or leave it out")
    if device == "cpu" and config.kernels != "torch" and config.dtype != "float32":
        reason = missing(spec, source, config.dtype)
        if not reason:
            from ramet.runtime import native

            return config, native.build(config, spec, source)
        if config.dtype in NATIVE or config.kernels == "native":
            raise EngineError(f"dtype={config.dtype!r}: needs the native kernels: {reason}; choose auto or float32")
        LOG.warning("the native kernels cannot serve, torch does, slower: %s", reason)
    return config, torch_runner(config, spec, source)


def device_of(wanted: str) -> str:
    """ "cpu" or "cuda". Raises `EngineError` for "cuda" where there is none."""
    if wanted == "cpu" or (wanted == "auto" and not any(Path(file).exists() for file in GPU_FILES)):
        return "cpu"
    from ramet.runtime.device import choose  # imports torch

    return choose(wanted)


def missing(spec: Spec, source: hub.ModelSource, dtype: str) -> str:
    """Why the native kernels cannot serve a model here; empty when they can."""
    from ramet.kernels.cpu import library
    from ramet.runtime import native
    from ramet.runtime.packed import layout

    if reason := native.available():
        return reason
    try:
        layout(library.load(), spec, native.best_dtype(source) if dtype == "auto" else dtype)
    except ModelError as error:
        return str(error)
    return ""


def torch_runner(config: Config, spec: Spec, source: hub.ModelSource) -> AnyRunner:
    """The runner of torch's operations or of the GPU."""
    from ramet.runtime.models.load import load_weights

    return build_runner(config, spec, lambda dtype: load_weights(source, spec, dtype))


def build_runner(config: Config, spec: Spec, load: Load) -> AnyRunner:
    """The runner on the device that `config` names, which is no longer "auto"."""
    if config.device == "cuda":
        from ramet.runtime.cuda import build

        return build(config, spec, load)
    from ramet.runtime.runner import build as build_on_cpu

    return build_on_cpu(config, spec, load)
