"""Programs of a test file, checked: what is found, and that it is found at the right line."""

from __future__ import annotations

import re
from typing import Any

import ramet as rt
from ramet.frontend.diagnostics import CODES, SEVERITIES, Diagnostic

Found = list[Diagnostic]


def check(body: Any, *, max_paths: int = 64, **static: Any) -> Found:
    found = rt.function(temperature=0)(body).compile(max_paths=max_paths, **static).check()
    assert all(each.code in CODES and each.severity in SEVERITIES and each.remedy for each in found)
    assert all(re.fullmatch(r"test_checks(_flow)?\.py:\d+", each.where) for each in found), (
        "each names a line of this file"
    )
    return found


def codes(found: Found) -> list[str]:
    return [each.code for each in found]


def one(body: Any, code: str, severity: str, message: str, *, line: int, **static: Any) -> Diagnostic:
    """The diagnostic with this code; `line` counts from the body's first."""
    found = [each for each in check(body, **static) if each.code == code]
    assert len(found) == 1, check(body, **static)
    assert found[0].severity == severity
    assert re.search(message, found[0].message), found[0].message
    assert int(found[0].where.rpartition(":")[2]) - body.__code__.co_firstlineno == line
    return found[0]
