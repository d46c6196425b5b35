"""`ramet check`: what is wrong with the programs of a file, for people and for CI.

In: a file, static arguments as text. Out: a line per finding on standard output, or JSON Lines; an exit status. The
file is executed as a module, as an import would; its programs are compiled, and nothing is sent anywhere.
"""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ramet.frontend.commands import WrongUsage
from ramet.frontend.commands.arguments import statics
from ramet.frontend.commands.loading import load_all, split
from ramet.frontend.commands.screen import plain, users_traceback, write
from ramet.frontend.diagnostics import SEVERITIES, Diagnostic
from ramet.frontend.errors import ConstraintError, RametError
from ramet.frontend.options import hint
from ramet.frontend.program import Program

_COLOURS = {"error": "bold red", "warning": "yellow", "note": "cyan"}


@dataclass(frozen=True)
class Options:
    """What the command line says. `target` is "FILE.py" or "FILE.py:name"; `arg` are "name=value", compiled into every
    program that has such a parameter."""

    target: str
    arg: tuple[str, ...] = ()
    json: bool = False
    strict: bool = False
    max_paths: int = 64


def check(options: Options) -> int:
    """Check it; the exit status: 0, or 1 when there are errors (with `strict`, or warnings), or when the file raises
    (its traceback is shown). Raises `WrongUsage` where there is nothing to check."""
    found = split(options.target)
    if found is None:
        raise WrongUsage(f"{options.target!r}: give FILE.py or FILE.py:NAME")
    file, name = found
    try:
        programs = load_all(file, name)
    except RametError:
        raise
    except Exception as error:  # noqa: BLE001 (the user's file: its errors are theirs to read)
        write(sys.stderr, users_traceback(error))
        return 1
    given = _pairs(options.arg, programs)
    checked = {key: _checked(program, given, options.max_paths) for key, program in programs.items()}
    counts: Counter[str] = Counter(each.severity for found in checked.values() for each in found)
    (_as_lines if options.json else _as_text)(checked, file)
    if not options.json:
        _summary(len(programs), counts)
    return 1 if counts["error"] or (options.strict and counts["warning"]) else 0


def _pairs(arg: Sequence[str], programs: dict[str, Program[..., Any]]) -> dict[str, str]:
    """Texts by parameter."""
    known = {name for program in programs.values() for name in program.__signature__.parameters}
    given: dict[str, str] = {}
    for pair in arg:
        name, equals, text = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise WrongUsage(f"--arg {pair!r}: write --arg name=value")
        if name not in known:
            raise WrongUsage(f"--arg {name}=...: no program here has such a parameter; {hint(name, sorted(known))}")
        given[name] = text
    return given


def _checked(program: Program[..., Any], given: dict[str, str], max_paths: int) -> list[Diagnostic]:
    static = statics(program, given)
    try:
        return program.compile(max_paths=max_paths, **static).check()
    except ConstraintError as error:
        code = inspect.unwrap(program).__code__
        where = f"{Path(code.co_filename).name}:{code.co_firstlineno}"
        message = f"{program.__name__!r} cannot be compiled as it is: {error.message}"
        remedy = "give what it asks for with --arg NAME=VALUE"
        return [Diagnostic("not-compiled", "note", message, where, remedy)]


def _place(each: Diagnostic, file: Path) -> str:
    """The line, with the path as it was given where it is in this file."""
    name, _, line = each.where.rpartition(":")
    return f"{file}:{line}" if name == file.name else each.where


def _as_lines(checked: dict[str, list[Diagnostic]], file: Path) -> None:
    for program, found in checked.items():
        for each in found:
            data = {"program": program, **msgspec.to_builtins(each), "where": _place(each, file)}
            write(sys.stdout, msgspec.json.encode(data).decode() + "\n")


def _as_text(checked: dict[str, list[Diagnostic]], file: Path) -> None:
    for program, found in checked.items():
        for each in found:
            when = f" (when {each.when})" if each.when else ""
            said = f" {each.code}: {each.message}{when}"
            _write(f"{_place(each, file)}: ", each.severity, said, f"    in {program}; {each.remedy}")


def _write(place: str, severity: str, rest: str, below: str) -> None:
    """One finding; in colours where somebody looks."""
    if not sys.stdout.isatty():
        write(sys.stdout, f"{place}{severity}{rest}\n{below}\n")
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    line = Text.assemble((plain(place), "bold"), (severity, _COLOURS[severity]), plain(rest))
    console.print(line)
    console.print(Text(plain(below), style="dim"))


def _summary(programs: int, counts: Counter[str]) -> None:
    said = [f"{counts[kind]} {kind}{'' if counts[kind] == 1 else 's'}" for kind in SEVERITIES if counts[kind]]
    what = ", ".join(said) or "nothing found"
    write(sys.stderr, f"{programs} program{'' if programs == 1 else 's'} checked: {what}\n")
