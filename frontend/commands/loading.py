"""A program out of a Python file.

In: "FILE.py" or "FILE.py:name". Out: the `Program`; the file was executed as a module of its own, with its folder on
`sys.path`, as Python does for a script.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import ramet.frontend
from ramet.frontend.commands import WrongUsage
from ramet.frontend.options import hint
from ramet.frontend.program import Program

_TARGET = re.compile(r"(?P<file>.+\.py)(?::(?P<name>[^:/\\]*))?", re.DOTALL)


def split(target: str, remedy: str = "give FILE.py or FILE.py:NAME") -> tuple[Path, str] | None:
    """File and name of "FILE.py:name"; None when `target` is a prompt. A sentence that ends in ".py" is one, unless
    there is such a file. Raises `WrongUsage`, which names the remedy, for a path that is there and no .py file."""
    found = _TARGET.fullmatch(target)
    if found and (os.path.exists(found["file"]) or not any(character.isspace() for character in target)):
        return Path(found["file"]), found["name"] or ""
    if os.path.exists(target):
        kind = "folder" if os.path.isdir(target) else "file"
        raise WrongUsage(f"{target}: is a {kind}, not a .py file; {remedy}")
    return None


def load(file: Path, name: str) -> Program[..., Any]:
    """The program `name` of a file, or its only one. Raises `WrongUsage` when there is none such, and whatever the file
    raises."""
    if not file.is_file():
        raise WrongUsage(f"{file}: no such file" if not file.is_dir() else f"{file}: is a folder, not a file")
    return _chosen(_executed(file), file, name)


def load_all(file: Path, name: str) -> dict[str, Program[..., Any]]:
    """The program `name` of a file, or all that it defines, by their names there. Raises as `load`."""
    if name or not file.is_file():
        return {name: load(file, name)}
    module = _executed(file)
    found = {key: value for key, value in vars(module).items() if isinstance(value, Program)}
    own = {key: value for key, value in found.items() if value.__module__ == module.__name__}
    if not own:
        raise WrongUsage(f"{file}: has no program; mark a function whose first parameter is the state with @function")
    return own


def _executed(file: Path) -> ModuleType:
    """The file as a module. Its folder comes first on `sys.path`, unless that would put ramet's own folders there as
    top-level packages (other libraries import names such as `kernels`)."""
    folder = file.resolve().parent
    ours = Path(next(iter(ramet.frontend.__path__))).resolve().parent
    if folder != ours and str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    name = file.stem if file.stem.isidentifier() and file.stem not in sys.modules else f"ramet_run_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file.resolve())
    assert spec is not None and spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and annotations look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _chosen(module: ModuleType, file: Path, name: str) -> Program[..., Any]:
    found = {key: value for key, value in vars(module).items() if isinstance(value, Program)}
    own = {key: value for key, value in found.items() if value.__module__ == module.__name__ and key[0] != "_"}
    if name:
        if name in found:
            return found[name]
        what = "is no @function" if name in vars(module) else "is not there"
        raise WrongUsage(f"{file}:{name}: {name} {what}; {hint(name, list(found))}")
    if not own:
        raise WrongUsage(f"{file}: has no program; mark a function whose first parameter is the state with @function")
    if len(own) > 1:
        raise WrongUsage(f"{file}: has {len(own)} programs, say which: {', '.join(f'{file}:{key}' for key in own)}")
    return next(iter(own.values()))
