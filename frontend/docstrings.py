"""What a docstring says of a function and of its parameters, in Google's, NumPy's and Sphinx's styles.

In: a docstring as `inspect.getdoc` cleans it. Out: its first paragraph; the description of each parameter it describes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_GOOGLE = re.compile(r"(?:Args|Arguments|Parameters|Params):\s*$")
_SECTION = re.compile(r"[A-Z][A-Za-z ]*:\s*$")
_GOOGLE_ITEM = re.compile(r"\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)$")
_NUMPY_ITEM = re.compile(r"\*{0,2}(\w+)\s*(?::.*)?$")
_SPHINX = re.compile(r":param(?:eter)?\s+(?:[^:]*\s)?\*{0,2}(\w+)\s*:\s*(.*)$")
_FIELD = re.compile(r":[a-z]+[^:]*:")


def summary(doc: str | None) -> str:
    """The first paragraph, as one line."""
    lines: list[str] = []
    for line in (doc or "").strip().splitlines():
        if not line.strip() or _GOOGLE.match(line) or _FIELD.match(line):
            break
        lines.append(line.strip())
    return " ".join(lines)


def parameters(doc: str | None) -> dict[str, str]:
    """Parameter → what the docstring says of it, as one line."""
    lines = (doc or "").strip().splitlines()
    return {**dict(_sphinx(lines)), **dict(_numpy(lines)), **dict(_google(lines))}


def _google(lines: list[str]) -> Iterator[tuple[str, str]]:
    start = next((n for n, line in enumerate(lines) if _GOOGLE.match(line)), None)
    if start is None:
        return
    indent = 0
    name, said = "", list[str]()
    for line in lines[start + 1 :]:
        depth = len(line) - len(line.lstrip())
        if line.strip() and (not depth or _SECTION.match(line)):
            break
        indent = indent or depth
        found = _GOOGLE_ITEM.match(line.strip()) if depth == indent else None
        if found:
            yield from _known(name, said)
            name, said = found[1], [found[2]]
        elif line.strip():
            said.append(line.strip())
    yield from _known(name, said)


def _numpy(lines: list[str]) -> Iterator[tuple[str, str]]:
    heads = [n for n, line in enumerate(lines[:-1]) if line.strip() and re.fullmatch(r"-{3,}\s*", lines[n + 1])]
    start = next((n for n in heads if lines[n].strip() in ("Parameters", "Other Parameters")), None)
    if start is None:
        return
    end = next((n for n in heads if n > start), len(lines))
    name, said = "", list[str]()
    for line in lines[start + 2 : end]:
        found = _NUMPY_ITEM.match(line)
        if found:
            yield from _known(name, said)
            name, said = found[1], []
        elif line.strip():
            said.append(line.strip())
    yield from _known(name, said)


def _sphinx(lines: list[str]) -> Iterator[tuple[str, str]]:
    name, said = "", list[str]()
    for line in lines:
        found = _SPHINX.match(line.strip())
        if found:
            yield from _known(name, said)
            name, said = found[1], [found[2]]
        elif _FIELD.match(line.strip()) or not line.strip():
            yield from _known(name, said)
            name, said = "", []
        elif name:
            said.append(line.strip())
    yield from _known(name, said)


def _known(name: str, said: list[str]) -> Iterator[tuple[str, str]]:
    text = " ".join(part for part in said if part)
    if name and text:
        yield name, text
