"""`ramet run`: one program of a file, or one answer to a prompt, from the command line.

In: a file, arguments as text; or a prompt. Out: the result on standard output (or events, or JSON), what it took on
standard error, an exit status.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ramet.frontend.backends.base import Backend
from ramet.frontend.commands import WrongUsage
from ramet.frontend.commands.loading import load, split
from ramet.frontend.commands.screen import users_traceback, write
from ramet.frontend.errors import ConstraintError, RametError, ToolError
from ramet.frontend.program import Program
from ramet.frontend.run import Run
from ramet.frontend.values import Value

if TYPE_CHECKING:
    from ramet.frontend.backends.engine import Early


@dataclass(frozen=True)
class Options:
    """What the command line says. `target` is "FILE.py", "FILE.py:name" or a prompt; a prompt "-" is standard input;
    `arg` are "name=value"; None and "" leave the default."""

    target: str = ""
    prompt: str = ""
    arg: tuple[str, ...] = ()
    model: str = ""
    url: str = ""
    api_key: str = ""
    seed: int | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    threads: int = 0
    events: bool = False
    json: bool = False
    html: str = ""
    dtype: str = "auto"
    journal: str = ""
    resume: str = ""


def run(options: Options, early: Early | None = None) -> int:
    """Run it, on the engine that was started `early` if it wants that one. The exit status: 0, or 1 when the file or
    the program raised something that is not ramet's (its traceback is shown). Raises `RametError`; `WrongUsage` for
    what cannot be meant."""
    if options.html and not Path(options.html).resolve().parent.is_dir():
        raise WrongUsage(f"--html {options.html}: its folder does not exist")
    if options.events and options.json:
        raise WrongUsage("--events and --json: choose one; the last line of --events has the result")
    found = split(options.target, "to ask a model about it, pipe the prompt in")
    if found is None:
        return _prompt(options, early)
    try:
        return _program(options, early, *found)
    except ExceptionGroup as group:
        return _several(group)
    except ToolError as error:
        if error.__cause__ is not None:
            write(sys.stderr, users_traceback(error.__cause__))
        raise
    except (RametError, BrokenPipeError):  # nobody reads on: the command ends as others do
        raise
    except Exception as error:  # noqa: BLE001 (the user's file and program: their errors are theirs to read)
        write(sys.stderr, users_traceback(error))
        return 1


def _several(group: ExceptionGroup[Exception]) -> int:
    """Several operations failed: a line each when ramet raised them on purpose."""
    mine, others = group.split(RametError)
    for error in _leaves(mine) if mine is not None else ():
        write(sys.stderr, f"error: {error}\n")
    if others is not None:
        write(sys.stderr, users_traceback(others))
    return 1


def _leaves(group: ExceptionGroup[Any]) -> Iterator[Exception]:
    for error in group.exceptions:
        if isinstance(error, ExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _prompt(options: Options, early: Early | None) -> int:
    """One turn of a conversation."""
    from ramet.frontend.commands.chat import piped
    from ramet.frontend.commands.turn import Turn, conversing

    if options.prompt:
        raise WrongUsage(f"{options.target!r} is no .py file, and {options.prompt!r} follows: put a prompt in quotes")
    if options.arg:
        raise WrongUsage("--arg is for the program of a file; a prompt alone has no parameters")
    if options.journal:
        raise WrongUsage("--journal is for the program of a file; a prompt alone is one call")
    text = options.target
    if text in ("", "-"):
        if sys.stdin.isatty() and not text:
            raise WrongUsage("nothing to run: give FILE.py or a prompt; `ramet chat` holds a conversation")
        text = piped()
    program = conversing(_given(options))
    with _backend(options, early, chat=True) as backend:
        start = time.monotonic()
        turn = Turn(backend, [("user", text)], program)
        with _page(options, turn.run):
            if options.events:
                _tell(turn.run)
            elif options.json:
                write(sys.stdout, f"{as_json(turn.run.result())}\n")
            else:
                try:
                    turn.follow(lambda piece: write(sys.stdout, piece))
                finally:
                    write(sys.stdout, "\n" * (turn.text != "" and not turn.text.endswith("\n")))
                if cut := turn.cut(options.max_tokens):
                    write(sys.stderr, f"[{cut}]\n")
        _report(turn.run, start)
    return 0


def _program(options: Options, early: Early | None, file: Path, name: str) -> int:
    from ramet.frontend.commands.arguments import arguments
    from ramet.frontend.commands.chat import piped
    from ramet.frontend.commands.turn import configured

    program = load(file, name)
    if options.resume:
        args, kwargs = _as_before(program, options)
    else:
        prompt = piped() if options.prompt == "-" else options.prompt or None
        args, kwargs = arguments(program, options.arg, prompt)
    ready = configured(program, _given(options)).using(journal=options.journal or None, resume=options.resume or None)
    with _backend(options, early, chat=False) as backend:
        start = time.monotonic()
        handle = ready.using(backend=backend)(*args, **kwargs)
        if handle.id:
            write(sys.stderr, f"run {handle.id} in {options.journal}\n")
        with _page(options, handle):
            if options.events:
                _tell(handle)
            else:
                _watch(handle, program.__name__)
                value = _known(handle.result())
                write(sys.stdout, f"{as_json(value)}\n" if options.json else shown(value))
        _report(handle, start)
    return 0


def _as_before(program: Program[..., Any], options: Options) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments that a run was started with."""
    from ramet.frontend.journal import one
    from ramet.frontend.journal_identity import recorded_arguments

    given = recorded_arguments(one(options.journal, options.resume).record)
    known = {name: value for name, value in given.items() if name in program.__signature__.parameters}
    bound = inspect.BoundArguments(program.__signature__, OrderedDict(known))
    return bound.args, bound.kwargs


def _given(options: Options) -> dict[str, Any]:
    return {"seed": options.seed, "temperature": options.temperature, "max_tokens": options.max_tokens}


def _backend(options: Options, early: Early | None, *, chat: bool) -> AbstractContextManager[Backend]:
    from ramet.frontend.commands.opening import address, chat_server, key_of, opened_engine, program_server

    if not options.url:
        announce = sys.stderr.isatty()
        model, threads, dtype = options.model or "default", options.threads, options.dtype
        return opened_engine(model, threads=threads, dtype=dtype, announce=announce, early=early)
    if options.dtype != "auto":
        raise WrongUsage(f"--dtype {options.dtype}: is for an engine here; leave it out, the server has its own")
    url, key = address(options.url, "--url"), options.api_key or key_of()
    if chat:
        return chat_server(url, options.model, key)
    return contextlib.closing(program_server(url, options.model, key))


@contextlib.contextmanager
def _page(options: Options, handle: Run[Any]) -> Iterator[None]:
    """Write the page of `--html` when the block ends, also when the run failed; Ctrl-C inside it cancels the run."""
    try:
        yield
    except KeyboardInterrupt:
        handle.cancel()
        raise
    finally:
        if options.html:
            try:
                Path(options.html).write_text(handle.to_html(), encoding="utf-8")
            except OSError as error:
                raise RametError(f"--html {options.html}: {error.strerror or error}") from None
            write(sys.stderr, f"wrote {options.html}\n")


def _watch(handle: Run[Any], title: str) -> None:
    """Draw the run on the terminal, if there is one."""
    if sys.stderr.isatty():
        from rich.console import Console

        from ramet.frontend.commands.picture import follow

        follow(handle.events(), Console(stderr=True), title)


def _tell(handle: Run[Any]) -> None:
    """Every event as a line of JSON, at last the result."""
    for event in handle.events():
        write(sys.stdout, msgspec.json.encode(event).decode() + "\n")
    value = as_json(_known(handle.result()))
    write(sys.stdout, f'{{"type":"result","value":{value}}}\n')


def _known(value: Any) -> Any:
    return value.get() if isinstance(value, Value) else value


def shown(value: Any) -> str:
    """A result for people: text as it is, nothing for None, else Python's notation."""
    if value is None:
        return ""
    if isinstance(value, str):
        text = value
    else:
        import pprint

        text = pprint.pformat(value, width=100)
    return text if text.endswith("\n") else f"{text}\n"


def as_json(value: Any) -> str:
    """A result as JSON on one line. Raises `ConstraintError` for what has no such form."""
    try:
        return msgspec.json.encode(value, enc_hook=_plain_data).decode()
    except (TypeError, UnicodeEncodeError) as error:
        raise ConstraintError(f"--json: the result has no JSON form: {error}") from None


def _plain_data(value: Any) -> Any:
    if hasattr(value, "model_dump"):  # pydantic's
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} is not known to JSON")


def _report(handle: Run[Any], start: float) -> None:
    usage = handle.usage
    computed = f", {usage.computed_tokens} computed" if usage.computed_tokens else ""
    steps = f", {usage.steps} steps" if usage.steps else ""
    write(
        sys.stderr,
        f"{usage.calls} call{'' if usage.calls == 1 else 's'}, {usage.prompt_tokens} prompt tokens "
        f"({usage.cached_tokens} cached{computed}), {usage.generated_tokens} generated{steps}, "
        f"{time.monotonic() - start:.2f} s, seed {handle.seed}\n",
    )
