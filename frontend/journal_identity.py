"""What a run was started with, and what of it is another when it is resumed.

In: a program, its arguments, where it runs. Out: a record of plain data for the journal, or `JournalMismatch` that
names every difference.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import textwrap
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ramet.frontend.errors import JournalError, JournalMismatch
from ramet.frontend.journal_text import described, read

if TYPE_CHECKING:
    from ramet.frontend.backends.base import Backend

SHOWN = 60  # characters of a value in a message


def identity(
    name: str, fn: Callable[..., Any], arguments: Mapping[str, Any], sampling: Mapping[str, Any], budget: int | None
) -> dict[str, Any]:
    """The record of a run, all but where it runs and its seed; arguments as JSON text."""
    return {
        "program": name,
        "source": source_hash(fn),
        "arguments": {each: described(value) for each, value in arguments.items()},
        "sampling": {each: described(value) for each, value in sorted(sampling.items())},
        "budget": budget,
    }


def place(backend: Backend) -> dict[str, str]:
    """What decides which bits a generation gives on a backend: the model, its precision, its kernels."""
    info = backend.info()
    return {key: str(info[key]) for key in ("model", "dtype", "kernels") if key in info}


def source_hash(fn: Callable[..., Any]) -> str:
    """Of the text of a function without comments, layout and docstrings; of its bytecode where there is no text."""
    found = inspect.unwrap(fn)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(found)))
    except (OSError, SyntaxError, TypeError):
        code = getattr(found, "__code__", None)
        text = f"{code.co_code.hex()} {code.co_names}" if code is not None else repr(type(found))
    else:
        text = ast.unparse(_bare(tree))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _bare(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def compare(run: str, recorded: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise `JournalMismatch` unless a run can go on with what it is given now."""
    found: list[str] = []
    for key, label in (("program", "the program's name"), ("source", "the program's source"), ("budget", "budget")):
        if recorded.get(key) != now.get(key):
            detail = "" if key == "source" else f" was {recorded.get(key)!r}, is {now.get(key)!r}"
            found.append(f"{label}{detail or ' has changed'}")
    found += _differences("argument", recorded.get("arguments", {}), now["arguments"])
    found += _differences("sampling", recorded.get("sampling", {}), now["sampling"])
    found += _differences("backend", recorded.get("backend", {}), now["backend"])
    if now.get("seed") is not None and recorded.get("seed") != now["seed"]:
        found.append(f"seed was {recorded.get('seed')}, is {now['seed']}")
    if found:
        raise JournalMismatch(
            f"run {run} cannot go on: {'; '.join(found)}; give what it was started with, or start anew"
        )


def _differences(what: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{what} {key!r} was {_shown(before.get(key))}, is {_shown(now.get(key))}"
        for key in dict.fromkeys((*before, *now))
        if before.get(key) != now.get(key)
    ]


def _shown(value: object) -> str:
    text = "not given" if value is None else str(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def recorded_arguments(record: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that a run was started with. Raises `JournalError` when one was an object: JSON cannot say it."""
    found: dict[str, Any] = {}
    for name, text in record.get("arguments", {}).items():
        try:
            found[name] = read(text)
        except JournalError:
            raise JournalError(
                f"argument {name!r} is {_shown(text)}, which the journal cannot make again: resume the run from "
                "Python, with program.using(journal=..., resume=...)(...)"
            ) from None
    return found


def child_name(name: str, arguments: Mapping[str, Any]) -> str:
    """What names a program that a journaled one calls: its name and a hash of its arguments."""
    text = json.dumps({each: described(value) for each, value in arguments.items()})
    return f"{name}-{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}"
