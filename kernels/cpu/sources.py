"""What the native library is built from: source files with the compiler flags of each, in one place for every build.

In: nothing. Out: file names beside this module and flags. Imports nothing of ramet: a build reads it before the package
is there.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "native"
LIBRARY = "_ramet_cpu"  # the shared library is kernels/cpu/_ramet_cpu*.so

# -ffp-contract=off: where a multiply and an add are fused is written in the source, so that two copies of one inlined
# function cannot round differently.
FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
)
LINK_FLAGS = ("-shared", "-pthread")

_AVX2 = ("-mavx2", "-mfma", "-mf16c")
# GCC 12 warns of the undefined value that its own AVX-512 header passes where every lane is written.
_QUIET = ("-Wno-maybe-uninitialized", "-Wno-uninitialized")
_AVX512 = (*_AVX2, *_QUIET, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
_VNNI = (*_AVX512, "-mavx512vnni")
_BF16 = (*_VNNI, "-mavx512bf16")

# Sources that run on every CPU, then one for each level of instructions with the flags that only it may have.
COMMON = (
    *("api.cpp", "blocks.cpp", "check.cpp", "detect.cpp", "memory.cpp", "pack.cpp", "plan.cpp", "pool.cpp"),
    "level_portable.cpp",
)
X86_LEVELS: dict[str, tuple[str, ...]] = {
    "level_avx2.cpp": _AVX2,
    "level_avx512.cpp": _AVX512,
    "level_avx512_vnni.cpp": _VNNI,
    "level_avx512_bf16.cpp": _BF16,
    "level_amx.cpp": (*_BF16, "-mamx-tile", "-mamx-int8"),
}
# Without its flags such a source is an empty level: for compilers and assemblers (before 2020) that do not know them.
OPTIONAL = ("level_amx.cpp",)
ARM_LEVELS: dict[str, tuple[str, ...]] = {
    "level_neon.cpp": (),
    "level_neon_dot.cpp": ("-march=armv8.2-a+dotprod",),
}
X86 = ("x86_64", "amd64", "AMD64")
ARM = ("aarch64", "arm64")


def sources(machine: str) -> dict[str, tuple[str, ...]]:
    """Each source file and its own flags on `machine` (`platform.machine()`): other CPUs have the portable level."""
    levels = X86_LEVELS if machine in X86 else ARM_LEVELS if machine in ARM else {}
    return {**dict.fromkeys(COMMON, ()), **levels}
