"""`ramet explain`: what a program of a file will do and cost, or (--analyze) what it did and cost.

In: a file, arguments as text. Out: the explanation as text, as JSON, or as a page; an exit status. A program that fails
or is interrupted is explained as far as it came.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ramet.frontend.backends.base import Backend
from ramet.frontend.commands import WrongUsage
from ramet.frontend.commands.loading import load, split
from ramet.frontend.commands.screen import users_traceback, write
from ramet.frontend.errors import ConstraintError, PlanError, RametError
from ramet.frontend.explained import Explanation
from ramet.frontend.program import Program

WIDTH = 100  # columns of the text where there is no terminal, and at most


@dataclass(frozen=True)
class Options:
    """What the command line says; see `commands.run.Options`. `analyze`: run it."""

    target: str
    prompt: str = ""
    arg: tuple[str, ...] = ()
    analyze: bool = False
    model: str = ""
    url: str = ""
    api_key: str = ""
    seed: int | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    threads: int = 0
    dtype: str = "auto"
    json: bool = False
    html: str = ""


def explain(options: Options) -> int:
    """Explain it; the exit status: 0, or 1 when the file or the program raised something that is not ramet's. Raises
    `RametError`; `WrongUsage` for what cannot be meant."""
    if options.html and not Path(options.html).resolve().parent.is_dir():
        raise WrongUsage(f"--html {options.html}: its folder does not exist")
    if options.html and options.json:
        raise WrongUsage("--html and --json: choose one")
    if not options.analyze and (options.model or options.url):
        given = "--model" if options.model else "--url"
        raise WrongUsage(f"{given} says where to run the program: give --analyze, too; without it nothing is run")
    found = split(options.target)
    if found is None:
        raise WrongUsage(f"{options.target!r:.60}: is no FILE.py or FILE.py:NAME")
    try:
        return _explained(options, load(*found))
    except (RametError, ExceptionGroup):
        raise
    except Exception as error:  # noqa: BLE001 (the user's file and program: their errors are theirs to read)
        write(sys.stderr, users_traceback(error))
        return 1


def _explained(options: Options, program: Program[..., Any]) -> int:
    from ramet.frontend.commands.arguments import arguments
    from ramet.frontend.commands.chat import piped
    from ramet.frontend.commands.turn import configured

    prompt = piped() if options.prompt == "-" else options.prompt or None
    args, kwargs = arguments(program, options.arg, prompt)
    given = {"seed": options.seed, "temperature": options.temperature, "max_tokens": options.max_tokens}
    ready = configured(program, given)
    names = [name for name in ready._signature.parameters if name not in kwargs]
    before = _before(ready, {**dict(zip(names, args, strict=False)), **kwargs})
    if options.analyze:
        return _analyzed(options, ready, args, kwargs, before)
    if before.estimate is not None and before.estimate.trouble:
        raise PlanError(f"{program.__name__}: {before.estimate.trouble}; --analyze runs it, and needs no plan")
    _show(options, before)
    return 0


def _before(program: Program[..., Any], given: Mapping[str, Any]) -> Explanation:
    """What is expected of it with these arguments; why nothing is known, where it cannot be compiled."""
    from ramet.frontend.explain import unknown

    try:
        return program.compile(**given).explain()
    except (ConstraintError, PlanError) as error:
        return unknown(str(error))


def _analyzed(
    options: Options, program: Program[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], before: Explanation
) -> int:
    from ramet.frontend.explain import explain_run

    with _backend(options) as backend:
        handle = program.using(backend=backend)(*args, **kwargs)
        stopped = False
        try:
            handle._wait()
        except KeyboardInterrupt:
            handle.cancel()
            stopped = True
        info = backend.info()
        shown = explain_run(handle._run, before, str(info.get("model") or ""))
        _show(options, shown)
        if stopped:
            raise KeyboardInterrupt
        error = handle.error()
        if isinstance(error, RametError | ExceptionGroup):
            handle.result()
        elif error is not None:
            write(sys.stderr, users_traceback(error))
            return 1
    return 0


def _backend(options: Options) -> contextlib.AbstractContextManager[Backend]:
    from ramet.frontend.commands.opening import address, key_of, opened_engine, program_server

    if not options.url:
        announce = sys.stderr.isatty()
        model = options.model or "default"
        return opened_engine(model, threads=options.threads, dtype=options.dtype, announce=announce)
    if options.dtype != "auto":
        raise WrongUsage(f"--dtype {options.dtype}: is for an engine here; leave it out, the server has its own")
    key = options.api_key or key_of()
    return contextlib.closing(program_server(address(options.url, "--url"), options.model, key))


def _show(options: Options, shown: Explanation) -> None:
    if options.json:
        write(sys.stdout, f"{shown.json()}\n")
    elif options.html:
        try:
            Path(options.html).write_text(shown.html(), encoding="utf-8")
        except OSError as error:
            raise RametError(f"--html {options.html}: {error.strerror or error}") from None
        write(sys.stderr, f"wrote {options.html}\n")
    elif sys.stdout.isatty():
        from rich.console import Console

        from ramet.frontend.explain_text import coloured

        console = Console(highlight=False, soft_wrap=True)
        console.print(coloured(shown, min(console.width, max(WIDTH, shutil.get_terminal_size().columns))))
    else:
        write(sys.stdout, shown.text(WIDTH))
