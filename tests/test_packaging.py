"""The package list of pyproject.toml against the folders, and the built wheel against both."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAPPED = ("ramet", "frontend", "runtime", "kernels", "examples")


def setuptools_table() -> dict[str, object]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["tool"]["setuptools"]


def package_folders() -> dict[str, str]:
    """Package name → folder, of every folder of the mapped ones that has an __init__.py."""
    found = {}
    for top in MAPPED:
        for init in (ROOT / top).rglob("__init__.py"):
            folder = init.parent.relative_to(ROOT)
            name = ".".join(folder.parts) if top == "ramet" else ".".join(("ramet", *folder.parts))
            found[name] = folder.as_posix()
    return found


def test_packages_equal_the_folders():
    table = setuptools_table()
    assert sorted(table["packages"]) == sorted(package_folders())
    assert table["package-dir"] == package_folders()


def test_every_module_lies_in_a_package():
    """A folder without __init__.py would be left out of the wheel without a word."""
    folders = set(package_folders().values())
    modules = [path for top in MAPPED for path in (ROOT / top).rglob("*.py")]
    assert [m for m in modules if m.parent.relative_to(ROOT).as_posix() not in folders] == []


def test_the_umbrella_holds_nothing_else():
    names = {path.name for path in (ROOT / "ramet").iterdir() if path.name != "__pycache__"}
    assert names == {"__init__.py", "__main__.py", "py.typed"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> list[str]:
    """The names in a wheel built from a source archive of a copy of the sources, with stray tests beside them."""
    copy = tmp_path_factory.mktemp("source") / "with space"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so")
    for name in (*MAPPED, "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    flags = copy / "kernels" / "cpu" / "sources.py"  # what is in the wheel is tested, not how fast it is
    assert flags.read_text().count('"-O3"') == 1
    flags.write_text(flags.read_text().replace('"-O3"', '"-O0"'))
    out = copy.parent / "dist"
    command = [sys.executable, "-P", "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [built] = out.glob("ramet-*-py3-none-*.whl")
    with zipfile.ZipFile(built) as archive:
        return archive.namelist()


def test_wheel_holds_every_module_and_the_typing_marker(wheel):
    expected = {"ramet/py.typed"}
    if sys.platform == "linux" and shutil.which("c++"):
        expected.add("ramet/kernels/cpu/_ramet_cpu.so")
    for name, folder in package_folders().items():
        kinds = ("*.py", "*.html", "*.css", "*.js") if name.endswith(".dashboard") else ("*.py",)
        files = [path.name for kind in kinds for path in (ROOT / folder).glob(kind)]
        expected |= {f"{name.replace('.', '/')}/{file}" for file in files}
    assert {name for name in wheel if ".dist-info/" not in name} == expected


def test_wheel_holds_its_licence_and_no_tests(wheel):
    assert any(name.endswith("licenses/LICENSE") for name in wheel)
    assert [name for name in wheel if "test" in name.lower()] == []
