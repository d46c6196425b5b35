"""The library under the address and undefined-behaviour sanitizers, and under the thread sanitizer.

The sources are compiled anew with a program that exercises them at every level of the CPU. Daily: unoptimised, one
random model for each level and number of threads. Nightly: optimised, more models, and the thread sanitizer. The tiles
of AMX are emulated, so that its level runs on every CPU that has the level below.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ramet.kernels.cpu import library, sources
from ramet.runtime import native

COMPILER = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
pytestmark = pytest.mark.skipif(
    COMPILER is None or bool(native.available()), reason="no C++ compiler, or no native kernels"
)
SECONDS = 900  # that a busy machine may take for one source, or for a run
DRIVER = Path(__file__).with_name("native_driver.cpp")
MEMORY = "address,undefined"
# What is wrong with pack.cpp, what then stands there, and what the sanitizers say of it.
FAULTS = {
    "panels that are not padded": ("padded = round_up(k, kGroup)", "padded = k", "heap-buffer-overflow"),
    "scales behind their panel": ("kGroup * kPanel, column", "kGroup * kPanel, 32 * column", "heap-buffer-overflow"),
    "a nibble shifted out": ("[j + kHalf / 2] << 4", "[j + kHalf / 2] << 40", "shift exponent 40 is too large"),
}


def flags_of(sanitizer: str, level: str) -> list[str]:
    """Of every compilation; `level` is the compiler's level of optimisation."""
    return [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", "-DRAMET_EMULATED_TILES", level]


def compile_one(source: Path, own: tuple[str, ...], flags: list[str], to: Path) -> Path:
    """One source with its own flags; the object."""
    made = to / f"{source.stem}.o"
    command = [str(COMPILER), *sources.FLAGS, *own, *flags, f"-I{sources.FOLDER}", "-c", str(source), "-o", str(made)]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS)
    return made


def compile_all(to: Path, flags: list[str]) -> list[Path]:
    """The driver and every source, each with its own flags; the objects."""
    files = {sources.FOLDER / name: own for name, own in sources.sources(platform.machine()).items()}
    files[DRIVER] = ()
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda item: compile_one(item[0], item[1], flags, to), files.items()))


def ran(objects: list[Path], flags: list[str], to: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Link the objects, and run the program."""
    program = to / "driver"
    command = [str(COMPILER), *map(str, objects), "-pthread", *flags, "-o", str(program)]
    subprocess.run(command, check=True, timeout=SECONDS)
    environment = {**os.environ, "LC_ALL": "C"}
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=SECONDS, env=environment)


def check(done: subprocess.CompletedProcess[str]) -> None:
    """Nothing was found, at any level of this CPU."""
    assert done.returncode == 0, done.stderr[-3000:]
    word, highest = done.stdout.split()
    assert word == "ok"
    assert highest in library.LEVELS
    level = library.load().level
    assert highest == ("amx" if level == "avx512_bf16" else level)


def digest(flags: list[str]) -> str:
    """Of all that the objects are made from: the sources, the driver, the flags of each, the compiler."""
    version = subprocess.run([str(COMPILER), "--version"], check=True, capture_output=True, timeout=SECONDS).stdout
    made = hashlib.sha256(version + repr((flags, sources.FLAGS, sources.sources(platform.machine()))).encode())
    for file in (DRIVER, *sorted(path for path in sources.FOLDER.iterdir() if path.is_file())):
        made.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return made.hexdigest()


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> list[Path]:
    """Compiled once for the same sources, which is half a minute of a core: pytest's cache keeps them."""
    flags, made = flags_of(MEMORY, "-O0"), tmp_path_factory.mktemp("plain")
    if not pytestconfig.pluginmanager.has_plugin("cacheprovider"):
        return compile_all(made, flags)
    assert pytestconfig.cache is not None
    folder = pytestconfig.cache.mkdir("sanitized")
    kept = folder / digest(flags)
    if kept.is_dir():
        return sorted(kept.glob("*.o"))
    found = compile_all(made, flags)
    with contextlib.suppress(OSError):  # another run may have been first
        for old in folder.iterdir():
            shutil.rmtree(old)
        shutil.copytree(made, folder / f"new-{os.getpid()}").rename(kept)
    return found


def test_nothing_is_found_in_a_little(objects: list[Path], tmp_path: Path) -> None:
    check(ran(objects, flags_of(MEMORY, "-O0"), tmp_path, "1"))


@pytest.mark.parametrize("name", FAULTS)
def test_a_seeded_fault_is_found(objects: list[Path], tmp_path: Path, name: str) -> None:
    right, wrong, words = FAULTS[name]
    text = (sources.FOLDER / "pack.cpp").read_text()
    assert text.count(right) == 1, f"pack.cpp has changed: {right}"
    (tmp_path / "pack.cpp").write_text(text.replace(right, wrong))
    flags = flags_of(MEMORY, "-O0")
    mutant = compile_one(tmp_path / "pack.cpp", (), flags, tmp_path)
    done = ran([mutant, *(each for each in objects if each.name != mutant.name)], flags, tmp_path, "1")
    with pytest.raises(AssertionError, match=words):
        check(done)


@pytest.mark.nightly
@pytest.mark.parametrize("sanitizer", [MEMORY, "thread"])
def test_nothing_is_found(tmp_path: Path, sanitizer: str) -> None:
    flags = [*flags_of(sanitizer, "-O1"), "-g1"]
    check(ran(compile_all(tmp_path, flags), flags, tmp_path))
