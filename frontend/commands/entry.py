"""Where the console script begins. A plain `ramet run` is read here, everything else by the parser of all commands.

In: the words of a command line, the environment. Out: the exit status of the command. What is certain from the words
alone happens first: the engine that will be wanted is started, and the parser, which takes longer to import than the
language, is left out. A word that is not plain (an unknown option, --help, a number out of bounds) is the parser's.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from ramet.frontend.backends.engine import early
from ramet.frontend.collecting import Collector

if TYPE_CHECKING:
    from ramet.frontend.backends.engine import Early

Value = str | int | float | tuple[str, ...]


def _count(least: int) -> Callable[[str], int | None]:
    return lambda text: int(text) if re.fullmatch("[0-9]{1,15}", text) and int(text) >= least else None


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch("[0-9]{1,9}(?:[.][0-9]{1,9})?", text) else None


# Of `ramet.__main__`: options with a value, and what reads it (None: it is not plain). All are one value, but --arg.
_ENGINE: dict[str, Callable[[str], Value | None]] = {"model": str, "dtype": str, "threads": _count(0)}
_VALUED: dict[str, dict[str, Callable[[str], Value | None]]] = {
    "run": _ENGINE
    | {"seed": _count(0), "temperature": _number, "max_tokens": _count(1), "arg": str, "html": str, "journal": str},
    "chat": _ENGINE | {"system": str, "temperature": _number, "max_tokens": _count(1)},
}
_FLAGS = {"run": ("events", "json"), "chat": ()}
_PLACES = {"run": ("target", "prompt"), "chat": ()}


def plain(words: Sequence[str]) -> dict[str, Value] | None:
    """The arguments that `words`, a command and what follows, give for certain, by their names; None when they are not
    plain. A word that begins with "-" is an option, except "-" itself."""
    command = words[0] if words else ""
    if command not in _VALUED:
        return None
    found: dict[str, Value] = {}
    places, left = list(_PLACES[command]), list(words[:0:-1])
    while left:
        word = left.pop()
        if word == "-" or not word.startswith("-"):
            if not places:
                return None
            found[places.pop(0)] = word
            continue
        name, joined, text = word.partition("=")
        name = name.removeprefix("--").replace("-", "_") if name == name.lower() and "_" not in name else ""
        if name in _FLAGS[command] and not joined:
            found[name] = True
            continue
        text = text if joined else left.pop() if left else "-"
        value = _VALUED[command][name](text) if name in _VALUED[command] and not text.startswith("-") else None
        if value is None:
            return None
        before = found.get("arg", ())
        found[name] = (*before, text) if name == "arg" and isinstance(before, tuple) else value
    return found


def engine_of(words: Sequence[str], environment: Mapping[str, str]) -> dict[str, str | int] | None:
    """Options of the engine that `ramet WORDS` starts; None where it may start none, or another."""
    given = plain(words)
    if given is None or (words[0] == "chat" and environment.get("OPENAI_BASE_URL")):
        return None
    return {name: given[name] for name in _ENGINE if given.get(name, "") != ""}  # type: ignore[misc]


def main() -> None:
    """The console script. Exits with the status of the command."""
    words = sys.argv[1:]
    begun = None
    try:
        begun = _begun(words)
        _command(words, begun)()
    except KeyboardInterrupt:  # while it was imported: what runs says it by itself
        from ramet.frontend.commands.outcome import interrupted

        sys.exit(interrupted())
    finally:
        if begun is not None:
            begun.close()


def _begun(words: Sequence[str]) -> Early | None:
    options = engine_of(words, os.environ)
    if options is not None:
        with contextlib.suppress(OSError):  # whoever wants an engine tries again, and says what is wrong
            return early(options)
    return None


def _command(words: Sequence[str], begun: Early | None) -> Callable[[], object]:
    """What does it, imported while the collector of garbage is off: it finds none in modules, which it never walks
    again. Nothing of the user's is loaded yet."""
    given = plain(words) if words[:1] == ["run"] else None
    with Collector():
        if given is not None:
            from ramet.frontend.commands.outcome import outcome
            from ramet.frontend.commands.run import Options, run

            gc.freeze()
            options = Options(**given)  # type: ignore[arg-type]
            return lambda: sys.exit(outcome(lambda: run(options, begun)))
        from ramet.__main__ import app

        gc.freeze()
        return lambda: app(obj=begun)
