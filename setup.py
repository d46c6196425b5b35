"""Build of the native kernels. In: the sources and flags that kernels/cpu/sources.py lists. Out: one shared library
with a C ABI, `_ramet_cpu.so`, beside that module.

It is optional: without a C++17 compiler the package installs without it, and torch serves the CPU.
"""

from __future__ import annotations

import os
import platform
import runpy
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
KERNELS = "kernels/cpu"
BUILD = runpy.run_path(str(ROOT / KERNELS / "sources.py"))
FLAGS: dict[str, tuple[str, ...]] = BUILD["sources"](platform.machine())


class BuildNative(build_ext):
    """Each source is compiled with its own flags: one file per level of instructions, chosen at run time."""

    def get_ext_filename(self, fullname: str) -> str:
        """Without the interpreter's tag: the library does not know Python."""
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Compile and link."""
        with ThreadPoolExecutor(os.cpu_count()) as compilers:
            objects = list(compilers.map(lambda item: self._compiled(ext, *item), FLAGS.items()))
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        linked = Path(self.build_temp) / target.name  # a library that is loaded is replaced, and not written over
        self.compiler.link_shared_object(
            objects, str(linked), extra_postargs=list(BUILD["LINK_FLAGS"]), target_lang="c++"
        )
        beside = target.with_suffix(".new")
        self.copy_file(str(linked), str(beside))
        beside.replace(target)

    def _compiled(self, ext: Extension, name: str, flags: tuple[str, ...]) -> str:
        source, options = f"{KERNELS}/native/{name}", [*BUILD["FLAGS"], "-g0", *flags]
        try:
            (made,) = self.compiler.compile([source], output_dir=self.build_temp, extra_postargs=options)
        except CompileError:
            if not flags or name not in BUILD["OPTIONAL"]:
                raise
            self.warn(f"{name}: the compiler does not know {' '.join(flags)}; built without this level")
            return self._compiled(ext, name, ())
        return str(made)


class AnyPython(bdist_wheel):
    """One wheel for every Python of a platform."""

    def get_tag(self) -> tuple[str, str, str]:
        """py3-none-platform."""
        return ("py3", "none", super().get_tag()[2])


def extensions() -> list[Extension]:
    """The library, where it is supported."""
    if sys.platform != "linux":
        return []
    native = ROOT / KERNELS / "native"
    headers = sorted(path.relative_to(ROOT).as_posix() for path in native.glob("*.h"))
    sources = [f"{KERNELS}/native/{name}" for name in FLAGS]
    name = f"ramet.kernels.cpu.{BUILD['LIBRARY']}"
    return [Extension(name, sources, depends=headers, language="c++", optional=True)]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildNative, "bdist_wheel": AnyPython})
