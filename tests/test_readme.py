"""The README's Python is executed, top to bottom, as one script; its paths and commands exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
PATHS = sorted(set(re.findall(r"\]\(([^)#:]+)\)", README)) | set(re.findall(r"^\| `([a-z]+/)`", README, re.MULTILINE)))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.model
def test_the_python_blocks_run(tmp_path):
    script = tmp_path / "readme.py"
    script.write_text("\n\n".join(BLOCKS), encoding="utf-8")
    command = [sys.executable, "-P", str(script)]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\d+ prompt tokens, of which cached: [1-9]\d*$", done.stdout, re.MULTILINE), done.stdout


def test_there_are_blocks_to_run():
    assert len(BLOCKS) >= 3
    assert "rt.Engine" in "".join(BLOCKS)
    assert "rt.Mock" in "".join(BLOCKS)


@pytest.mark.parametrize("path", PATHS)
def test_what_it_points_to_exists(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake ([a-z]+)\b(?=[ `]|$)", README, re.MULTILINE))))
def test_its_commands_exist(target):
    assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)


def test_every_example_is_listed():
    listed = set(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE))
    files = {path.stem for path in (ROOT / "examples").glob("*.py")} - {"__init__", "parse", "demo"}
    assert listed == files
