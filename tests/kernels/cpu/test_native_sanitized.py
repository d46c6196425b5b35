"""The library under the address and undefined-behaviour sanitizers, and under the thread sanitizer.

The sources are compiled anew with a program that exercises them: half a minute on two cores, hence nightly.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ramet.kernels.cpu import sources

COMPILER = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
pytestmark = [pytest.mark.nightly, pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")]


def compile_all(folder: Path, sanitizer: str) -> Path:
    """The driver with every source, each with its own flags."""
    extra = [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", "-O1", "-g1"]
    files = {sources.FOLDER / name: flags for name, flags in sources.sources(platform.machine()).items()}
    files[Path(__file__).with_name("native_driver.cpp")] = ()

    def compile_one(item: tuple[Path, tuple[str, ...]]) -> str:
        source, flags = item
        made = str(folder / f"{source.stem}.o")
        include = f"-I{sources.FOLDER}"
        command = [str(COMPILER), *sources.FLAGS, *flags, *extra, include, "-c", str(source), "-o", made]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=240)
        return made

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, files.items()))
    program = folder / "driver"
    subprocess.run([str(COMPILER), *objects, "-pthread", *extra, "-o", str(program)], check=True, timeout=120)
    return program


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_nothing_is_found(tmp_path: Path, sanitizer: str) -> None:
    program = compile_all(tmp_path, sanitizer)
    done = subprocess.run([program], capture_output=True, text=True, timeout=240, env={**os.environ, "LC_ALL": "C"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "ok\n"
