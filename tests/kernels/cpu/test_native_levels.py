"""Levels of instructions against double precision, against each other, and on AArch64 in an emulator.

native_levels.cpp computes the same things at every level of a CPU. Its portable level has the same bits on every
architecture, the levels that fuse a multiply and an add (AVX2, AVX-512, NEON) have the same bits as each other, and
AMX has those of AVX-512 with BF16.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from ramet.kernels.cpu import library, sources
from ramet.runtime import native

DRIVER = Path(__file__).with_name("native_levels.cpp")
HOST = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), "")
CROSS = "aarch64-linux-gnu-g++"
EMULATOR = next((name for name in ("qemu-aarch64", "qemu-aarch64-static") if shutil.which(name)), "")
SECONDS = 900  # that a busy machine may take for one source
PLAIN_CPU, NEW_CPU = "cortex-a57", "max"  # without and with 8-bit products
SAME_BITS = ("avx2", "avx512", "avx512_vnni", "neon", "neon_dot")

needs_host = pytest.mark.skipif(not HOST or bool(native.available()), reason="no C++ compiler, or no native kernels")
needs_cross = pytest.mark.skipif(shutil.which(CROSS) is None, reason=f"no {CROSS}")
needs_emulator = pytest.mark.skipif(not EMULATOR, reason="no qemu-aarch64")

# What is wrong with simd_neon.h, and what then stands there: each must be found by `problems`.
FAULTS = {
    "high nibbles shifted by 3": ("vshrq_n_u8(vld1q_u8(p + 16 * i), 4)", "vshrq_n_u8(vld1q_u8(p + 16 * i), 3)"),
    "8-bit weights off by one": ("vdupq_n_u8(0x80)", "vdupq_n_u8(0x81)"),
    "the even activation twice": ("b.odd.v[i], a.pair, 1)", "b.odd.v[i], a.pair, 0)"),
    "keys in the wrong rows": ("vtrn2q_u64(ab[i], cd[i])", "vtrn1q_u64(ab[i], cd[i])"),
    "bfloat16 cut, not rounded": ("vdupq_n_u32(0x7fff)", "vdupq_n_u32(0)"),
    "a forbidden token drawn": (
        "vtstq_u32(vdupq_n_u32(bits >> (4 * i)), lane)",
        "vtstq_u32(vdupq_n_u32(~bits >> (4 * i)), lane)",
    ),
}


@dataclass(frozen=True)
class Line:
    """What the driver says of a level."""

    linear: float
    forward: float
    draws: float
    bits: str


def lines(command: list[str]) -> dict[str, Line]:
    """Run the driver: its levels in ascending order."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Line] = {}
    for line in done.stdout.splitlines():
        name, linear, forward, draws, bits = line.split()
        found[name] = Line(float(linear), float(forward), float(draws), bits)
    return found


def problems(found: dict[str, Line]) -> list[str]:
    """What must hold of the levels of one CPU, and does not."""
    out = [f"{name}: products are off by {line.linear}" for name, line in found.items() if not line.linear < 5e-7]
    out += [f"{name}: logits are off by {line.forward}" for name, line in found.items() if not line.forward < 1e-3]
    out += [f"{name}: {line.draws:.1%} of draws differ" for name, line in found.items() if not line.draws < 0.01]
    if "amx" in found and found["amx"].bits != found["avx512_bf16"].bits:
        out.append(f"AMX differs from AVX-512 with BF16: {found['amx'].bits}")
    bits = {line.bits for name, line in found.items() if name in SAME_BITS}
    return out + ([f"levels with fused products differ: {sorted(bits)}"] if len(bits) > 1 else [])


def compiled(compiler: str, source: Path, folder: Path, flags: tuple[str, ...]) -> Path:
    """One object."""
    made = folder / f"{source.stem}.o"
    command = [compiler, *sources.FLAGS, *flags, f"-I{sources.FOLDER}", "-c", str(source), "-o", str(made)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "warning" not in done.stderr, done.stderr[-3000:]
    return made


def linked(objects: list[Path], program: Path) -> Path:
    """One program for the emulator, which has no libraries of that architecture."""
    command = [CROSS, *map(str, objects), "-pthread", "-static", "-o", str(program)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return program


def on_host(folder: Path) -> dict[str, Line]:
    """The driver on this CPU, with the library that is installed."""
    lib = library.load().path
    program = folder / "levels"
    source = compiled(HOST, DRIVER, folder, ("-O1",))
    subprocess.run(
        [HOST, str(source), str(lib), f"-Wl,-rpath,{lib.parent}", "-o", str(program)], check=True, timeout=60
    )
    return lines([str(program)])


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every source and the driver for AArch64, by name."""
    folder = tmp_path_factory.mktemp("aarch64")
    files = {sources.FOLDER / name: flags for name, flags in sources.sources("aarch64").items()} | {DRIVER: ("-O1",)}
    with ThreadPoolExecutor(2) as pool:
        made = pool.map(lambda item: compiled(CROSS, item[0], folder, item[1]), files.items())
    return {file.name: path for file, path in zip(files, made, strict=True)}


def test_every_architecture_has_its_levels_and_no_others() -> None:
    named = {
        machine: set(sources.sources(machine)) - set(sources.COMMON) for machine in ("x86_64", "aarch64", "riscv64")
    }
    assert named["riscv64"] == set()
    x86 = ("avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx")
    assert named["x86_64"] == {f"level_{name}.cpp" for name in x86}
    assert named["aarch64"] == {"level_neon.cpp", "level_neon_dot.cpp"}
    mine = {f"level_{name}.cpp" for name in library.LEVELS[1:]}
    assert mine == (named["aarch64"] if platform.machine() in sources.ARM else named["x86_64"])


@needs_host
def test_levels_of_this_cpu(tmp_path: Path) -> None:
    found = on_host(tmp_path)
    assert tuple(found) == library.LEVELS[: len(found)]
    assert list(found)[-1] == library.load().level
    assert problems(found) == []


@needs_cross
@pytest.mark.parametrize("name", sources.ARM_LEVELS)
def test_neon_compiles(name: str) -> None:
    command = [CROSS, *sources.FLAGS, *sources.ARM_LEVELS[name], "-fsyntax-only", str(sources.FOLDER / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.nightly
@needs_host
@needs_cross
@needs_emulator
def test_aarch64(objects: dict[str, Path], tmp_path: Path) -> None:
    program = linked(list(objects.values()), tmp_path / "levels")
    plain, new = (lines([EMULATOR, "-cpu", cpu, str(program)]) for cpu in (PLAIN_CPU, NEW_CPU))
    assert tuple(plain) == ("portable", "neon")
    assert tuple(new) == ("portable", "neon", "neon_dot")
    host = on_host(tmp_path)
    same = {name: line for name, line in host.items() if name in SAME_BITS}
    assert problems(new | same) == []
    assert plain == {name: new[name] for name in plain}
    assert new["portable"].bits == host["portable"].bits


@pytest.mark.nightly
@needs_cross
@needs_emulator
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault: str, objects: dict[str, Path], tmp_path: Path) -> None:
    good, bad = FAULTS[fault]
    for file in sources.FOLDER.glob("*.h"):
        shutil.copy(file, tmp_path)
    text = (tmp_path / "simd_neon.h").read_text(encoding="utf-8")
    assert good in text
    (tmp_path / "simd_neon.h").write_text(text.replace(good, bad), encoding="utf-8")
    wrong = shutil.copy(sources.FOLDER / "level_neon.cpp", tmp_path)
    changed = objects | {"level_neon.cpp": compiled(CROSS, Path(wrong), tmp_path, ())}
    program = linked(list(changed.values()), tmp_path / "levels")
    assert problems(lines([EMULATOR, "-cpu", NEW_CPU, str(program)])) != []
