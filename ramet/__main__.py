"""The command line. In: arguments. Out: text on standard output, errors as one line on standard error, an exit status.

Exit status: 0, 1 for an error that ramet raised on purpose, 2 for wrong usage, 130 after Ctrl-C. Commands import what
they need when they run, so that `ramet --help` does not load torch.
"""

from __future__ import annotations

if __name__ == "__main__":  # `python -m ramet`: an engine that will be wanted starts before the rest is imported
    from ramet.frontend.commands.entry import main as entry

    entry()

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from ramet.frontend.commands.outcome import interrupted, refused
from ramet.frontend.errors import RametError

if TYPE_CHECKING:
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
Temperature = Annotated[float | None, typer.Option(min=0.0, help="0 is greedy; left out: the program's, or 0.7.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Of each answer, at most; left out: until it ends.")]
ApiKey = Annotated[str, typer.Option(help="For a server; rather set $RAMET_API_KEY or $OPENAI_API_KEY.")]
Threads = Annotated[int, typer.Option(min=0, help="Threads of the engine; 0 is one per core.")]
Dtype = Annotated[
    str, typer.Option(help="Of the weights: auto (on a CPU: the file's own), int8, int4, bfloat16, float32.")
]


@contextmanager
def outcomes() -> Iterator[None]:
    """Turn ramet's own errors into one line and status 1, Ctrl-C into status 130."""
    try:
        yield
    except RametError as error:
        raise typer.Exit(refused(error)) from None
    except KeyboardInterrupt:
        raise typer.Exit(interrupted()) from None


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


@app.command(short_help="A multi-call program on a real model, measured.")
def demo(
    question: Annotated[str, typer.Argument(help="What to ask; left out: a question of ours.")] = "",
    model: Model = "default",
    points: Annotated[int, typer.Option(min=1, max=32, help="Branches: points of the outline.")] = 4,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each branch, at most.")] = 64,
    threads: Threads = 0,
    dtype: Dtype = "auto",
) -> None:
    """Run a multi-call program on a real model and measure what sharing saves."""
    from rich.console import Console

    with outcomes():
        from ramet.examples.demo import QUESTION, tour
        from ramet.frontend.commands.opening import opened_engine

        with opened_engine(model, threads=threads, dtype=dtype) as engine:
            tour(engine, Console(), question or QUESTION, points=points, max_tokens=max_tokens)


@app.command(short_help="Talk to a model.")
def chat(
    context: typer.Context,
    url: Annotated[str, typer.Argument(help="A server; left out: $OPENAI_BASE_URL, else an engine here.")] = "",
    model: Annotated[str, typer.Option(help="Which model; left out: the server's first, or the default one.")] = "",
    system: Annotated[str, typer.Option(help="The system message.")] = "",
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    api_key: ApiKey = "",
    threads: Threads = 0,
    dtype: Dtype = "auto",
) -> None:
    """Talk to a model: on the terminal, or with a prompt that is piped in."""
    with outcomes():
        from ramet.frontend.commands.chat import Options, chat

        chat(Options(url, model, system, max_tokens, temperature, api_key, threads, dtype), context.obj)


@app.command(short_help="Run a program of a file, or answer one prompt.")
def run(
    context: typer.Context,
    target: Annotated[
        str, typer.Argument(metavar="FILE.py[:NAME]", help="A file with an @function; or a prompt.")
    ] = "",
    prompt: Annotated[str, typer.Argument(help="The program's first argument that no --arg gives.")] = "",
    arg: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="An argument; repeatable.")] = None,
    model: Annotated[str, typer.Option(help="Which model, as in `ramet models`, or as the server calls it.")] = "",
    url: Annotated[str, typer.Option(help="Run on this server instead of an engine here.")] = "",
    api_key: ApiKey = "",
    seed: Annotated[int | None, typer.Option(help="Of all sampling noise; left out: a new one.")] = None,
    temperature: Temperature = None,
    max_tokens: MaxTokens = None,
    threads: Threads = 0,
    dtype: Dtype = "auto",
    events: Annotated[bool, typer.Option("--events", help="Print every event, and the result, as JSON Lines.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    html: Annotated[str, typer.Option(metavar="FILE", help="Write the run as a page, too.")] = "",
    journal: Annotated[str, typer.Option(metavar="FILE", help="Record it there, for `ramet resume`.")] = "",
) -> None:
    """Run a program of a file, or answer one prompt ("-": from standard input)."""
    with outcomes():
        from ramet.frontend.commands.run import Options, run

        given = (
            tuple(arg or ()),
            model,
            url,
            api_key,
            seed,
            temperature,
            max_tokens,
            threads,
            events,
            json,
            html,
            dtype,
            journal,
        )
        if status := run(Options(target, prompt, *given), context.obj):
            raise typer.Exit(status)


@app.command(short_help="Go on with a run that was interrupted.")
def resume(
    journal: Annotated[str, typer.Argument(metavar="JOURNAL", help="What `ramet run --journal` has written.")],
    run: Annotated[str, typer.Argument(metavar="RUN", help="Which run; left out: lists the unfinished.")] = "",
    target: Annotated[str, typer.Argument(metavar="FILE.py[:NAME]", help="Its program.")] = "",
    again: Annotated[
        list[str] | None, typer.Option(metavar="CALL", help="Make an interrupted host call again; repeatable.")
    ] = None,
    result: Annotated[
        list[str] | None, typer.Option(metavar="CALL=JSON", help="Say what one has returned; repeatable.")
    ] = None,
    model: Annotated[str, typer.Option(help="Which model, as when the run began.")] = "",
    url: Annotated[str, typer.Option(help="Run on this server instead of an engine here.")] = "",
    api_key: ApiKey = "",
    threads: Threads = 0,
    dtype: Dtype = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Go on with a program's run that was interrupted: what had finished is not done again."""
    with outcomes():
        from ramet.frontend.commands.resume import Options, resume

        marks = (tuple(again or ()), tuple(result or ()))
        if status := resume(Options(journal, run, target, *marks, model, url, api_key, threads, dtype, json)):
            raise typer.Exit(status)


@app.command()
def check(
    target: Annotated[str, typer.Argument(metavar="FILE.py[:NAME]", help="A file with programs; one of them.")],
    arg: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A static argument; repeatable.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print what is found as JSON Lines.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Fail on warnings too.")] = False,
    max_paths: Annotated[int, typer.Option(min=1, max=4096, help="Ways through a program to follow.")] = 64,
) -> None:
    """Check the programs of a file without running them. The file itself is executed, as by an import."""
    with outcomes():
        from ramet.frontend.commands.check import Options, check

        if status := check(Options(target, tuple(arg or ()), json, strict, max_paths)):
            raise typer.Exit(status)


@app.command(short_help="What a program will do and cost, or did.")
def explain(
    target: Annotated[str, typer.Argument(metavar="FILE.py[:NAME]", help="A file with an @function.")],
    prompt: Annotated[str, typer.Argument(help="The program's first argument that no --arg gives.")] = "",
    arg: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="An argument; repeatable.")] = None,
    analyze: Annotated[bool, typer.Option("--analyze", help="Run it, and show what it cost beside that.")] = False,
    model: Annotated[str, typer.Option(help="Which model, as in `ramet models`, or as the server calls it.")] = "",
    url: Annotated[str, typer.Option(help="Run on this server instead of an engine here.")] = "",
    api_key: ApiKey = "",
    seed: Annotated[int | None, typer.Option(help="Of all sampling noise; left out: a new one.")] = None,
    temperature: Temperature = None,
    max_tokens: MaxTokens = None,
    threads: Threads = 0,
    dtype: Dtype = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    html: Annotated[str, typer.Option(metavar="FILE", help="Write it as a page: timeline and prefix tree.")] = "",
) -> None:
    """What a program will do and cost; with --analyze, what it did, and what it waited for."""
    with outcomes():
        from ramet.frontend.commands.explain import Options, explain

        where = (model, url, api_key, seed, temperature, max_tokens, threads, dtype)
        if status := explain(Options(target, prompt, tuple(arg or ()), analyze, *where, json, html)):
            raise typer.Exit(status)


@app.command(short_help="What can be given as --model.")
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


@app.command(short_help="What this machine has, and whether a model runs.")
def doctor(model: Model = "default", threads: Threads = 0, dtype: Dtype = "auto") -> None:
    """What this machine has, and whether one token can be generated on it."""
    import time

    with outcomes():
        for name, value in _facts():
            typer.echo(f"{name:12} {value}")
        start = time.perf_counter()
        from ramet.frontend.commands.opening import opened_engine

        with opened_engine(model, threads=threads, dtype=dtype) as engine:
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
    from ramet.runtime.sizing import free_memory, native_dtype, size

    cache = cache_directory()
    home = next((p for p in (cache, *cache.parents) if p.exists()), cache)
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield "torch", f"{torch.__version__}, {torch.get_num_threads()} threads"
    yield from _devices()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    features = [name for name in ("avx2", "avx512", "avx512_bf16", "vnni", "amx_tile") if _has(name)]
    yield "cpu", f"{cores} cores; {', '.join(features) or 'no vector extensions that torch names'}"
    native = str(native_dtype()).removeprefix("torch.")
    yield "cpu dtype", f"{native}{'' if native == 'bfloat16' else ': this processor does not compute with bfloat16'}"
    if "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        yield "memory", f"{size(total)}, {size(free_memory())} free"
    yield "cache", f"{cache}, {size(shutil.disk_usage(home).free)} free"


def _has(feature: str) -> bool:
    import torch

    probe = getattr(torch.cpu, f"_is_{feature}_supported", None)  # their names change between versions of torch
    return probe is not None and bool(probe())


def _devices() -> Iterator[tuple[str, str]]:
    """The device that an engine here would take, why not another, and what that one has."""
    from importlib import metadata

    import torch

    from ramet.runtime.device import look, unusable
    from ramet.runtime.sizing import size

    found = look()
    reason = unusable(found)
    yield "device", "cuda" if not reason else "cpu"
    if found.available:
        major, minor = found.capability
        free, total = torch.cuda.mem_get_info()
        yield "cuda", f"{found.name}, compute capability {major}.{minor}, {size(total)}, {size(free)} free"
    if reason:
        yield "no cuda", reason
    else:
        yield "cuda dtype", "bfloat16; float16 and float32 with --dtype, int8, int4 and fp8 weights with --weights"
    yield "triton", metadata.version("triton") if found.triton else "not installed; GPUs need it: ramet[gpu]"


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


def main() -> None:
    """The console script."""
    from ramet.frontend.commands.entry import main

    main()
