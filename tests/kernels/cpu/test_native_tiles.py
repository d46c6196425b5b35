"""The level of AMX where there is no AMX: its tiles emulated in C++, its instructions read back from the library.

The emulation (amx_emulated.h) is written from the documentation of the instructions and ends the program where a CPU
would fault; products have to have the bits of AVX-512 with VNNI. What no test here shows is the instructions at work.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ramet.kernels.cpu import library, sources
from ramet.runtime import native

DRIVER = Path(__file__).with_name("native_tiles.cpp")
LEVELS_DRIVER = Path(__file__).with_name("native_levels.cpp")
ROOT = Path(__file__).parents[3]
COMPILER = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), "")
REFERENCE = "avx512_vnni"
EMULATED = "-DRAMET_EMULATED_TILES"
SECONDS = 300
FLAGS = (*sources.FLAGS, *sources.X86_LEVELS[f"level_{REFERENCE}.cpp"], "-mamx-tile", "-mamx-int8")
INSTRUCTIONS = {"ldtilecfg", "tilerelease", "tilezero", "tileloadd", "tilestored", "tdpbsud"}
PRODUCTS = {(0, 2, 3), (1, 2, 4), (5, 7, 3), (6, 7, 4)}  # sums, activations, weights: 16 rows, or the last ones


def knows_tiles() -> bool:
    """Whether the compiler and its assembler know AMX."""
    if not COMPILER or platform.machine() not in sources.X86:
        return False
    text = 'void f() { asm volatile("tdpbsud %tmm2, %tmm1, %tmm0"); }'
    command = [COMPILER, "-mamx-tile", "-mamx-int8", "-x", "c++", "-", "-c", "-o", os.devnull]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False).returncode == 0


pytestmark = pytest.mark.skipif(
    bool(native.available()) or not knows_tiles(), reason="no native kernels, or no compiler that knows AMX"
)


def runs(level: str) -> bool:
    """Whether this machine runs a level of this architecture."""
    return bool(
        not native.available()
        and level in library.LEVELS
        and library.LEVELS.index(level) <= library.LEVELS.index(library.load().level)
    )


needs_vnni = pytest.mark.skipif(not runs(REFERENCE), reason="no AVX-512 VNNI")
needs_bf16 = pytest.mark.skipif(not runs("avx512_bf16"), reason="no AVX-512 BF16")

# What is wrong with a header, and what then stands there: each must be found. Those marked take their turn nightly.
NIGHTLY = pytest.mark.nightly
FAULTS = [
    pytest.param("gemm_amx.h", "add(load_int(sums[0] + 16 * i), offset)", "load_int(sums[0] + 16 * i)", id="no offset"),
    pytest.param("gemm_amx.h", "kBytes + i, high_nibbles(b)", "kBytes + i, low_nibbles(b)", id="low nibbles twice"),
    pytest.param("gemm_amx.h", "if (used_) tile_release();", "", id="not released"),
    pytest.param("gemm_amx.h", "RAMET_INT8 ? kGroup : kHalf;", "RAMET_INT8 ? kGroup : kGroup;", id="a shape too wide"),
    pytest.param("gemm_amx.h", "(rows % kTileRows, 1)", "((rows - 1) % kTileRows, 1)", id="a row less", marks=NIGHTLY),
    pytest.param("gemm_amx.h", "    tile_zero<C>();\n", "", id="sums are kept", marks=NIGHTLY),
    pytest.param("gemm_amx.h", "<kRight>(at + 64,", "<kRight>(at,", id="the left half twice", marks=NIGHTLY),
    pytest.param(
        "gemm_amx.h", "<A>(acts, k)", "<A>(acts, least<int64_t>(k, 64))", id="rows 64 bytes apart", marks=NIGHTLY
    ),
    pytest.param("gemm_amx.h", "set(scale[i * groups + g])", "set(scale[g])", id="another's scale", marks=NIGHTLY),
    pytest.param("gemm.h", "rows; i++) use(first + i,", "rows; i++) use(first,", id="one row for all", marks=NIGHTLY),
    pytest.param("amx_emulated.h", "static_cast<int8_t>(a.data", "(a.data", id="unsigned activations", marks=NIGHTLY),
    pytest.param("detect.h", "kState = 3u << 17", "kState = 1u << 18", id="no configuration saved", marks=NIGHTLY),
]


def built(folder: Path, *flags: str, headers: Path = sources.FOLDER) -> Path:
    """The driver, with the library that is installed."""
    lib, program = library.load().path, folder / "tiles"
    command = [COMPILER, *FLAGS, *flags, f"-I{headers}", str(DRIVER), str(lib), f"-Wl,-rpath,{lib.parent}"]
    done = subprocess.run([*command, "-o", str(program)], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "warning" not in done.stderr, done.stderr[-3000:]
    return program


def mutated(folder: Path, header: str, right: str, wrong: str) -> Path:
    """A copy of the sources' folder in which one thing is wrong."""
    copy = shutil.copytree(sources.FOLDER, folder / "native")
    text = (copy / header).read_text(encoding="utf-8")
    assert text.count(right) == 1, f"{header} has changed: {right}"
    (copy / header).write_text(text.replace(right, wrong), encoding="utf-8")
    return copy


def check(program: Path) -> None:
    """Every product has the bits of the reference, and tiles computed about half of them."""
    command = [str(program), str(library.LEVELS.index(REFERENCE))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    word, products, tiled = done.stdout.split()
    assert (word, int(products), int(tiled)) == ("ok", 3 * 40, 2 * (40 - 6))


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("tiles"), EMULATED, "-O0")


@needs_vnni
def test_products_have_the_bits_of_vnni(emulated: Path) -> None:
    check(emulated)


@needs_vnni
@pytest.mark.parametrize(("header", "right", "wrong"), FAULTS)
def test_a_fault_is_found(header: str, right: str, wrong: str, tmp_path: Path) -> None:
    program = built(tmp_path, EMULATED, "-O0", headers=mutated(tmp_path, header, right, wrong))
    with pytest.raises(AssertionError, match=r"other bits|fault: |tiles are not released|AMX is seen"):
        check(program)


@NIGHTLY
@needs_vnni
def test_products_have_the_bits_of_vnni_when_optimised(tmp_path: Path) -> None:
    check(built(tmp_path, EMULATED))


# -- the instructions


def disassembled(program: Path) -> list[tuple[bytes, str, str]]:
    """The instructions on tiles: bytes, name, operands."""
    done = subprocess.run(
        ["objdump", "-d", "-w", str(program)], capture_output=True, text=True, timeout=120, check=True
    )
    found = re.findall(r"\t((?:[0-9a-f]{2} )+) *\t((?:ldtile|sttile|tile|tdp)\w*)\s*(.*)", done.stdout)
    return [(bytes.fromhex(code), name, operands) for code, name, operands in found]


def product(code: bytes) -> tuple[int, int, int]:
    """Registers of an instruction VEX.128.F3.0F38.W0 5E /r, signed times unsigned bytes: reg, r/m, vvvv."""
    start, map_of, rest, opcode, registers = code
    assert (start, map_of & 31, rest & 0x87, opcode, registers >> 6) == (0xC4, 2, 2, 0x5E, 3)
    return registers >> 3 & 7, registers & 7, ~rest >> 3 & 15


needs_objdump = pytest.mark.skipif(shutil.which("objdump") is None, reason="no objdump")


@needs_objdump
def test_the_library_has_the_instructions() -> None:
    found = disassembled(library.load().path)
    assert {name for _, name, _ in found} == INSTRUCTIONS
    assert {product(code) for code, name, _ in found if name == "tdpbsud"} == PRODUCTS


@needs_objdump
@needs_vnni
def test_the_emulation_has_none(emulated: Path) -> None:
    assert disassembled(emulated) == []


def test_the_level_is_only_where_the_cpu_has_it() -> None:
    text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    flags = set(text.partition("flags")[2].partition("\n")[0].split())
    level = library.load().level
    if level == "amx":
        assert {"amx_tile", "amx_int8", "avx512_bf16"} <= flags
    elif not {"amx_tile", "amx_int8"} & flags:
        assert level in library.LEVELS[: library.LEVELS.index("amx")]


# -- the whole library


def test_without_its_flags_the_level_is_empty(tmp_path: Path) -> None:
    """Zeros that need no relocation: no function."""
    made = tmp_path / "level.o"
    (name,) = sources.OPTIONAL
    subprocess.run(
        [COMPILER, *sources.FLAGS, "-c", str(sources.FOLDER / name), "-o", str(made)], check=True, timeout=60
    )
    listed = subprocess.run(["nm", "-S", str(made)], capture_output=True, text=True, timeout=60, check=True).stdout
    (line,) = (line for line in listed.splitlines() if "kernels_amx" in line)
    assert line.split()[1:3] in (["0000000000000018", "R"], ["0000000000000018", "B"])


def objects_of(folder: Path, headers: Path = sources.FOLDER, only: str = "") -> list[Path]:
    """The sources (or one of them) with emulated tiles."""
    folder.mkdir(exist_ok=True)
    made = []
    for name, flags in sources.sources(platform.machine()).items():
        if only in name:
            made.append(folder / f"{name}.o")
            own = [*sources.FLAGS, *flags, "-O1", EMULATED, f"-I{headers}", "-c", str(headers / name)]
            subprocess.run([COMPILER, *own, "-o", str(made[-1])], check=True, timeout=SECONDS)
    return made


def levels_of(objects: list[Path], program: Path) -> dict[str, str]:
    """Each level's digest of everything it computes."""
    sources_of = ["-std=c++17", "-O1", f"-I{sources.FOLDER}", str(LEVELS_DRIVER), *map(str, objects)]
    subprocess.run([COMPILER, *sources_of, "-pthread", "-o", str(program)], check=True, timeout=SECONDS)
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=SECONDS, check=True)
    return {line.split()[0]: line.split()[-1] for line in done.stdout.splitlines()}


@NIGHTLY
@needs_bf16
def test_a_forward_has_the_bits_of_the_level_below(tmp_path: Path) -> None:
    """And a level whose products are wrong takes itself away."""
    objects = objects_of(tmp_path)
    found = levels_of(objects, tmp_path / "levels")
    assert tuple(found) == library.LEVELS
    assert found["amx"] == found["avx512_bf16"]
    headers = mutated(tmp_path, *FAULTS[0].values)  # type: ignore[arg-type]
    (wrong,) = objects_of(tmp_path / "wrong", headers, "level_amx")
    less = levels_of([wrong, *(each for each in objects if each.name != wrong.name)], tmp_path / "less")
    assert less == {name: bits for name, bits in found.items() if name != "amx"}


@NIGHTLY
def test_a_compiler_that_does_not_know_amx(tmp_path: Path) -> None:
    """It builds all other levels."""
    old = tmp_path / "c++"
    refuses = 'case "$*" in *-mamx*) echo "unrecognized option -mamx" >&2; exit 1;; esac\n'
    old.write_text(f'#!/bin/sh\n{refuses}exec {COMPILER} "$@"\n', encoding="ascii")
    old.chmod(0o700)
    command = [sys.executable, "-P", "setup.py", "-q", "build_ext", "--build-lib", str(tmp_path / "lib")]
    environment = {**os.environ, "CC": str(old), "CXX": str(old), "CFLAGS": "-O0"}
    done = subprocess.run(
        [*command, "--build-temp", str(tmp_path / "temp")],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3 * SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (built_library,) = (tmp_path / "lib").rglob("*.so")
    assert library.load(built_library).level in library.LEVELS[: library.LEVELS.index("amx")]
    assert not {name for _, name, _ in disassembled(built_library)}
