"""Modules with a seeded fault: a rule's check must fail under each, or it would prove nothing.

In: a module, and what to replace in its source. Out: a module of its own that nobody else sees.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType


def mutant(module: ModuleType, folder: Path, *changes: tuple[str, str]) -> ModuleType:
    """`module` with each (before, after) of `changes` made in its source, where `before` stands exactly once. The
    source is written into `folder`."""
    source = inspect.getsource(module)
    for before, after in changes:
        found = source.count(before)
        if found != 1:
            raise ValueError(f"{module.__name__}: {before!r} stands there {found} times: the mutation is out of date")
        source = source.replace(before, after)
    name = f"{module.__name__}_mutant"
    file = folder / f"{name}.py"
    file.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None, "a file of Python has a loader"
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made  # dataclasses look their module up
    try:
        spec.loader.exec_module(made)
    finally:
        del sys.modules[name]
    return made
