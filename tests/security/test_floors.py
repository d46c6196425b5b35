"""Lower bounds of the dependencies: versions with known holes, those that R1 to R13 rely on, are not installed.

In: pyproject.toml, constraints.txt, what is installed. Each hole is an identifier, the last bad version and the first
good one. Positive control: the bounds of a year ago, which let most of them in.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent.parent
# Identifier: package, bad versions (the last of them first), the first that has the hole closed.
HOLES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "CVE-2026-48710": ("starlette", ("1.0.0", "0.46.0"), "1.0.1"),
    "CVE-2026-48818": ("starlette", ("1.0.1",), "1.1.0"),
    "CVE-2026-54283": ("starlette", ("1.3.0", "0.49.1"), "1.3.1"),
    "CVE-2025-62727": ("starlette", ("0.49.0", "0.39.0"), "0.49.1"),
    "CVE-2025-54121": ("starlette", ("0.47.1",), "0.47.2"),
    "CVE-2024-47874": ("starlette", ("0.39.2",), "0.40.0"),
    "CVE-2024-24762": ("fastapi", ("0.109.0",), "0.109.1"),
    "CVE-2025-43859": ("h11", ("0.15.0", "0.14.0"), "0.16.0"),
    "CVE-2022-32213": ("httptools", ("0.4.0",), "0.5.0"),
    "CVE-2021-41945": ("httpx", ("0.22.0",), "0.23.0"),
    "CVE-2025-27516": ("jinja2", ("3.1.5",), "3.1.6"),
    "CVE-2024-56326": ("jinja2", ("3.1.4",), "3.1.5"),
    "CVE-2024-56201": ("jinja2", ("3.1.4",), "3.1.5"),
    "CVE-2024-3772": ("pydantic", ("2.3.0",), "2.4.0"),
    "CVE-2026-4538": ("torch", ("2.10.0",), "2.11.0"),
    "CVE-2026-24747": ("torch", ("2.9.1", "2.6.0"), "2.10.0"),
    "CVE-2025-32434": ("torch", ("2.5.1",), "2.6.0"),
    "CVE-2026-5241": ("transformers", ("5.4.0",), "5.5.0"),
    "CVE-2026-4372": ("transformers", ("5.2.0", "4.56.0"), "5.3.0"),
    "CVE-2026-1839": ("transformers", ("4.57.3",), "5.0.0"),
    "CVE-2025-3264": ("transformers", ("4.49.0",), "4.51.0"),
    "CVE-2024-11392": ("transformers", ("4.47.1",), "4.48.0"),
    "CVE-2020-7695": ("uvicorn", ("0.11.6",), "0.11.7"),
    "CVE-2021-33880": ("websockets", ("9.0",), "9.1"),
    "CVE-2025-47273": ("setuptools", ("78.1.0",), "78.1.1"),
}
SUPPORTED = {"torch": ("2.11.0", "2.12.1", "2.13.0"), "transformers": ("5.17.0", "5.23.0")}
A_YEAR_AGO = {"starlette": "", "h11": "", "torch": ">=2.6", "transformers": ">=4.48", "setuptools": ">=77"}


def project() -> dict[str, SpecifierSet]:
    """The bounds of pyproject.toml, on what runs and what builds."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        table = tomllib.load(file)
    listed = [*table["project"]["dependencies"], *table["build-system"]["requires"]]
    return {canonicalize_name(each.name): each.specifier for each in map(Requirement, listed)}


def let_in(bounds: Mapping[str, SpecifierSet]) -> list[str]:
    """Holes of which a bad version satisfies the bounds; a package without bounds lets everything in."""
    return [
        hole
        for hole, (package, bad, _) in HOLES.items()
        if any(bounds.get(package, SpecifierSet()).contains(version) for version in bad)
    ]


def test_the_bounds_exclude_every_version_with_a_known_hole() -> None:
    assert let_in(project()) == []


@pytest.mark.parametrize("package", A_YEAR_AGO)
def test_control_older_bounds_let_them_in(package: str) -> None:
    found = let_in({**project(), package: SpecifierSet(A_YEAR_AGO[package])})
    assert found and all(HOLES[hole][0] == package for hole in found)


def test_the_bounds_are_no_higher_than_what_is_supported() -> None:
    bounds = project()
    for package, versions in SUPPORTED.items():
        assert all(bounds[package].contains(version) for version in versions), package


def test_the_table_is_in_order() -> None:
    for package, bad, good in HOLES.values():
        assert all(Version(version) < Version(good) for version in bad), package


def test_the_pinned_versions_satisfy_the_bounds() -> None:
    bounds = project()
    lines = [line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pinned = [Requirement(line) for line in lines if line]
    assert {"torch"} <= {each.name for each in pinned}
    for each in pinned:
        for only in (spec.version for spec in each.specifier if spec.operator == "=="):
            assert bounds.get(canonicalize_name(each.name), SpecifierSet()).contains(only), str(each)


@pytest.mark.parametrize("package", sorted({package for package, _, _ in HOLES.values()} - {"setuptools"}))
def test_what_is_installed_satisfies_the_bounds(package: str) -> None:
    installed = Version(metadata.version(package))
    assert project()[package].contains(installed.public)
    assert all(installed >= Version(good) for name, _, good in HOLES.values() if name == package)


def test_each_hole_stands_beside_its_bound() -> None:
    """A bound that somebody lowers again says there why not to; the newest hole of each package is named."""
    text = (ROOT / "pyproject.toml").read_text()
    newest: dict[str, str] = {}
    for hole, (package, _, good) in HOLES.items():
        if package not in newest or Version(good) > Version(HOLES[newest[package]][2]):
            newest[package] = hole
    for package, hole in newest.items():
        year, number = re.findall(r"\d+", hole)
        assert f"CVE-{year}-{number}" in text or f"-{number}" in text, f"{package}: {hole}"
