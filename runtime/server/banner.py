"""What a person sees while the server starts, and when it is ready.

In: phases of fetching a model; the engine that is up. Out: progress on standard error (a bar on a terminal, else one
line per phase), and a block of at most 12 lines with everything needed to make a first request.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

import msgspec

from ramet.runtime.config import Config
from ramet.runtime.messages import Ready
from ramet.runtime.models.spec import Spec
from ramet.runtime.server.settings import Settings

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
Report = Callable[[str, int, int], None]


def url_of(settings: Settings, port: int) -> str:
    """Where a client on this machine finds the server."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    scheme = "https" if settings.ssl_certfile else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}{settings.root_path}"


def ready_block(url: str, settings: Settings, config: Config, ready: Ready, spec: Spec, name: str) -> list[str]:
    """The lines: where, what, how much KV and why so much, three commands to copy."""
    key = " -H 'Authorization: Bearer '\"$RAMET_API_KEY\"" if settings.api_key else ""
    body = {"model": name, "messages": [{"role": "user", "content": "Hello!"}]}
    quoted = shlex.quote(msgspec.json.format(msgspec.json.encode(body), indent=0).decode())
    keys = len(settings.api_key)
    who = f"{keys} API key{'s' if keys > 1 else ''}" if keys else "no key is asked for"
    header = ", headers={'x-api-key': __import__('os').environ['RAMET_API_KEY']}" if keys else ""
    call = "{'text': 'The capital of France is', 'sampling_params': {'max_new_tokens': 8}}"
    python = f"import httpx; print(httpx.post('{url}/generate', json={call}, timeout=60{header}).json()['text'])"
    return [
        f"ramet serves {name} at {url} ({who}; {url}/{'dashboard' if settings.dashboard else 'docs'})",
        f"  model  {ready.model}, {ready.dtype} by {ready.kernels or 'unknown'} kernels, context {ready.context:,}, "
        f"{ready.threads} threads, loaded in {ready.load_seconds:.1f} s",
        f"  KV     {kv_sum(config, ready, spec)}",
        f"  curl {url}/v1/chat/completions{key} -H 'Content-Type: application/json' -d {quoted}",
        f'  python -c "{python}"',
        f"  ramet chat {url}",
    ]


def kv_sum(config: Config, ready: Ready, spec: Spec) -> str:
    """How many KV tokens there are, what one of them takes, and who decided."""
    size = _BYTES.get(ready.dtype, 2)
    each = 2 * spec.layers * spec.kv_heads * spec.head_dim * size
    if config.kv_tokens:
        why = "--kv-tokens"
    elif config.kv_share:
        why = f"--kv-share {config.kv_share:g} of the memory after weights"
    else:
        why = "the default share of the memory after weights; see --kv-share, --kv-tokens"
    return (
        f"{ready.kv_tokens:,} tokens x {each / 1024:,.1f} KiB (K and V, {spec.layers} layers, {spec.kv_heads} heads of "
        f"{spec.head_dim}, {size} bytes) = {_size(ready.kv_tokens * each)}: {why}"
    )


def _size(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


@contextmanager
def progress(stream: TextIO, log: Callable[[str], None] | None = None) -> Iterator[Report]:
    """A function of (phase, bytes done, bytes in all) that shows a model on its way here: on `stream`, or by `log`,
    where every line is a record."""
    if log is not None or not stream.isatty():
        yield _lines(log or (lambda line: print(line, file=stream, flush=True)))
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(file=stream), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def report(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(f"model: {phase}", total=None)
            bars.update(tasks[phase], completed=done, total=total or None)

        yield report


def _lines(say: Callable[[str], None]) -> Report:
    seen: set[str] = set()

    def report(phase: str, done: int, total: int) -> None:
        if phase not in seen:
            seen.add(phase)
            say(f"model: {phase}" + (f" ({total / 1e6:,.0f} MB)" if total else ""))

    return report
