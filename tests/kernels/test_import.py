"""What importing the kernels does not do: touch a driver, or need Triton where it is not used."""

from __future__ import annotations

import subprocess
import sys

import pytest

BLOCKED = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "triton":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_kernels_touches_no_driver() -> None:
    pytest.importorskip("triton")
    code = """
import torch
import ramet.kernels
from ramet.kernels.triton import TritonOps
from triton.runtime import driver
TritonOps()
print(torch.cuda.is_initialized(), driver._active is not None)
"""
    assert run(code) == "False False"


def test_the_host_side_needs_no_triton() -> None:
    code = "import ramet.kernels.triton.plan, ramet.kernels.triton.draws, ramet.kernels.triton.aot; print('fine')"
    assert run(BLOCKED + code) == "fine"


def test_cuda_without_triton_names_the_remedy() -> None:
    code = """
from ramet.frontend.errors import ModelError
try:
    from ramet.kernels.triton import TritonOps
except ModelError as error:
    print(error)
"""
    assert run(BLOCKED + code).startswith(
        "device='cuda' needs Triton, which is not installed: pip install 'ramet[gpu]'"
    )


def test_other_names_do_not_exist() -> None:
    import ramet.kernels.triton

    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = ramet.kernels.triton.Nothing
