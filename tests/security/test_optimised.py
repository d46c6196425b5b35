"""R2: checks of what comes from outside are `if ...: raise`, never `assert`: `python -O` leaves asserts out.

In: the source, and the security tests, run by an optimising interpreter. The positive control of the run is in
test_r02_weights.py (guards written as asserts).
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
# Modules that read what nobody vouches for: files, templates, specifications, bodies of requests.
OUTSIDE = (
    *("runtime/models/gguf.py", "runtime/models/gguf_spec.py", "runtime/models/safetensors_map.py"),
    *("runtime/models/names.py", "runtime/models/load.py", "runtime/models/stored.py", "runtime/models/hub.py"),
    *("runtime/models/spec.py", "runtime/models/fields.py", "runtime/packed_file.py"),
    *("runtime/sandbox.py", "runtime/meter.py", "runtime/template.py", "runtime/messages.py"),
    *("runtime/server/guard.py", "runtime/server/sampling.py", "runtime/server/program_body.py"),
    *("runtime/server/forms.py", "runtime/server/conversation.py", "runtime/server/settings.py"),
    *("runtime/grammar/limits.py", "runtime/grammar/choices.py", "runtime/grammar/json_schema.py"),
    *("frontend/ir.py", "frontend/plan_file.py", "frontend/patterns.py", "frontend/schemas.py"),
)


def asserts(source: str) -> list[int]:
    """Lines of asserts, and of checks that stand under `if __debug__`."""
    tree = ast.parse(source)
    found = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    return found + [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "__debug__"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_check_is_an_assert(name: str) -> None:
    assert asserts((ROOT / name).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source", ["assert n > 0", "def f(n):\n    if n:\n        assert n < 9, n", "if __debug__:\n    raise ValueError"]
)
def test_control_an_assert_is_found(source: str) -> None:
    assert asserts(source) != []


def run(files: list[str], *options: str, timeout: float) -> str:
    """The last line of pytest under `python -O`; its own asserts stay, since it writes them anew."""
    command = [sys.executable, "-O", "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout.strip().splitlines()[-1]


def test_refusals_under_the_optimising_interpreter() -> None:
    files = ["tests/runtime/models/test_gguf.py", "tests/security/test_r04_controls.py"]
    last = run(files, "-k", "bad_files or what_is_read", timeout=240)
    assert "passed" in last and int(last.split(" passed")[0].split()[-1]) > 40


def test_control_pytest_fails_there_too(tmp_path: Path) -> None:
    """Else nothing that it says would mean anything."""
    (tmp_path / "test_x.py").write_text("def test_x():\n    assert __debug__, 'optimised'\n")
    command = [sys.executable, "-O", "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "optimised" in done.stdout


@pytest.mark.nightly
def test_all_rules_under_the_optimising_interpreter() -> None:
    files = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "security").glob("test_r*.py"))
    assert "passed" in run(files, timeout=1800)
