"""Ahead-of-time compilation of the Triton kernels for sm_90, on any Linux machine: no GPU, no driver.

In: `Variant`, one kernel with the types and constants of one use. Out: `Report`, what the compiler made of it.
`python -m ramet.kernels.triton.aot` prints the table of all and exits with 1 if one spills or asks for too much memory.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ramet.frontend.errors import ModelError

CAPABILITY = 90
SHARED_LIMIT = 227 << 10  # bytes of shared memory that one program may have on sm_90
MODULES = (
    "norms",
    "rope",
    "silu",
    "table",
    "attention",
    "merge",
    "adjust",
    "sample",
    "logprobs",
    "linear",
    "int8",
    "int4",
    "fp8",
    "invariant",
)
# what tells a fast kernel from a slow one: tensor cores, asynchronous copies and 16-byte accesses
INSTRUCTIONS = {
    "HGMMA": r"\bHGMMA\b",
    "HMMA": r"\bHMMA\b",
    "LDGSTS": r"\bLDGSTS\b",
    "UTMALDG": r"\bUTMALDG\b",
    "LDG.128": r"\bLDG\.\S*\b128\b",
    "STG.128": r"\bSTG\.\S*\b128\b",
}


@dataclass(frozen=True, slots=True)
class Variant:
    """One compilation of a kernel. `signature` gives every argument's Triton type ("*bf16", "i32", "fp32"), "constexpr"
    for those of `constants`; `aligned` names the pointers and integers that are divisible by 16."""

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    warps: int = 4
    stages: int = 2
    aligned: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """What a variant compiled to. registers: a thread's; spills: bytes of its stack frame; shared: bytes a program's;
    seconds: wall time, near zero from Triton's cache; instructions: static counts by the names of `INSTRUCTIONS`."""

    name: str
    registers: int
    spills: int
    shared: int
    seconds: float
    instructions: dict[str, int]

    @property
    def fits(self) -> bool:
        """No spills, and no more shared memory than a program may have."""
        return self.spills == 0 and self.shared <= SHARED_LIMIT


def compiled(variant: Variant, capability: int = CAPABILITY) -> Any:
    """Triton's own object for a variant, with the code of every stage in `asm`. Raises `ModelError` in interpreter mode
    and for a signature that does not fit the kernel; the compiler's own errors come through."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = variant.kernel
    if not isinstance(kernel, triton.JITFunction):
        raise ModelError(f"variant {variant.name!r} holds no compilable kernel; unset TRITON_INTERPRET")
    _check(variant)
    places = {name: (at,) for at, name in enumerate(kernel.arg_names)}
    source = ASTSource(
        fn=kernel,
        signature={name: variant.signature[name] for name in kernel.arg_names},
        constexprs={places[name]: value for name, value in variant.constants.items()},
        attrs={places[name]: [["tt.divisibility", 16]] for name in variant.aligned},
    )
    options = {"num_warps": variant.warps, "num_stages": variant.stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def compile_variant(variant: Variant, capability: int = CAPABILITY) -> Report:
    """Compile for sm_90, or another `capability`, with the ptxas that comes with Triton. Raises what `compiled` does,
    and `ModelError` where cuobjdump fails."""
    begin = time.perf_counter()
    made = compiled(variant, capability)
    seconds = time.perf_counter() - begin
    usage, sass = _inspect(made.asm["cubin"])
    counts = {name: len(re.findall(pattern, sass)) for name, pattern in INSTRUCTIONS.items()}
    return Report(variant.name, usage["REG"], usage["STACK"], made.metadata.shared, seconds, counts)


def _check(variant: Variant) -> None:
    names = variant.kernel.arg_names
    constants = {name for name, kind in variant.signature.items() if kind == "constexpr"}
    problems = {
        "signature misses": [name for name in names if name not in variant.signature],
        "signature has unknown": sorted(set(variant.signature) - set(names)),
        "constants miss": sorted(constants - set(variant.constants)),
        "constants that are not constexpr": sorted(set(variant.constants) - constants),
        "aligned has unknown": sorted(set(variant.aligned) - set(names)),
    }
    for problem, found in problems.items():
        if found:
            raise ModelError(f"variant {variant.name!r}: {problem} {', '.join(found)}; give each argument once")


def _inspect(cubin: bytes) -> tuple[dict[str, int], str]:
    """Registers (REG) and stack frame (STACK) of the one kernel in `cubin`, and its disassembly."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        tool = knobs.nvidia.cuobjdump.path
        try:
            done = subprocess.run([tool, "-res-usage", "-sass", str(path)], capture_output=True, text=True)
        except OSError as error:
            raise ModelError(f"{tool} could not be started: {error}; it comes with the package triton") from None
    if done.returncode:
        raise ModelError(f"{tool} ended with {done.returncode}: {done.stderr.strip() or 'no message'}")
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK):(\d+)", done.stdout)}, done.stdout


def all_variants() -> tuple[Variant, ...]:
    """The variants of every kernel module, in the order of `MODULES`; their names are unique."""
    found = tuple(v for name in MODULES for v in import_module(f"ramet.kernels.triton.{name}").variants())
    names = [variant.name for variant in found]
    doubles = sorted({name for name in names if names.count(name) > 1})
    assert not doubles, f"variants with the same name: {doubles}"
    return found


def compile_all(variants: Iterable[Variant], threads: int = 2) -> Iterator[tuple[str, Callable[[], Report]]]:
    """Names and functions that wait for the report, in order; an error of one variant is raised by its own function.
    Threads suffice: passes and ptxas run outside Python's lock."""
    with ThreadPoolExecutor(threads) as pool:
        futures = [(variant.name, pool.submit(compile_variant, variant)) for variant in variants]
        for name, future in futures:
            yield name, future.result


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 1 if a variant does not compile, spills, or needs more shared memory than there is."""
    parser = argparse.ArgumentParser(prog="python -m ramet.kernels.triton.aot", description=main.__doc__)
    parser.add_argument("only", nargs="?", default="", help="compile variants whose name contains this")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    chosen = [variant for variant in all_variants() if options.only in variant.name]
    width = max((len(variant.name) for variant in chosen), default=4)
    columns = ("registers", "spills", "shared", "seconds", *INSTRUCTIONS)
    write = sys.stdout.write
    write("  ".join([f"{'variant':<{width}}", *(f"{column:>9}" for column in columns)]) + "\n")
    failed = 0
    for name, wait in compile_all(chosen, options.threads):
        try:
            report = wait()
        except Exception as error:  # noqa: BLE001 - one that fails to compile is a line of the table
            failed += 1
            text = (str(error).strip() or "no message").splitlines()[-1]
            write(f"{name:<{width}}  {type(error).__name__}: {text[:200]}\n")
            continue
        failed += not report.fits
        cells = [report.registers, report.spills, report.shared, f"{report.seconds:.1f}", *report.instructions.values()]
        end = "" if report.fits else "  does not fit"
        write("  ".join([f"{name:<{width}}", *(f"{cell:>9}" for cell in cells)]) + end + "\n")
        sys.stdout.flush()
    write(f"{len(chosen)} variants for sm_{CAPABILITY}, {failed} failed\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
