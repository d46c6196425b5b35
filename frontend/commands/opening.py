"""Where a command's program runs: an engine made here, or a server.

In: a model's name, or a URL and a key. Out: a backend; what keeps one from being had, as an error that says what to do.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ramet.frontend.backends.base import Backend
from ramet.frontend.collecting import Collector
from ramet.frontend.commands import WrongUsage
from ramet.frontend.commands.screen import write
from ramet.frontend.errors import GenerationError, TransportError

if TYPE_CHECKING:
    import httpx

    from ramet.frontend.backends.engine import Early, Engine
    from ramet.frontend.backends.openai import OpenAI

Report = Callable[[str, int, int], None]  # phase, bytes done, bytes in all

PATIENCE = 10.0  # seconds for a server to say what it serves
_HOST = re.compile(r"(localhost|\[[0-9a-f:]+\]|[\w.-]+(?=:\d))(:\d{1,5})?(/.*)?", re.IGNORECASE)


@contextmanager
def opened_engine(
    model: str, *, threads: int = 0, dtype: str = "auto", announce: bool = True, early: Early | None = None
) -> Iterator[Engine]:
    """An engine (its process may have been started `early`); on standard error a progress bar (plain lines where it is
    no terminal) while its model is fetched, and a line when it is ready, unless `announce` is False."""
    from ramet.frontend.backends.engine import Engine

    start = time.perf_counter()
    with Collector(), _progress() as report:
        engine = Engine(model, threads=threads, dtype=dtype, progress=report, early=early)
    with engine:
        if announce:
            info, took = engine.info(), time.perf_counter() - start
            write(sys.stderr, f"{info['model']}: {info['dtype']}, ready in {took:.1f} s\n")
        yield engine


@contextmanager
def _progress() -> Iterator[Report]:
    """A function of (phase, bytes done, bytes in all). What draws is made at its first call: usually there is none."""
    with ExitStack() as stack:
        shown: list[Report] = []

        def report(phase: str, done: int, total: int) -> None:
            if not shown:
                shown.append(stack.enter_context(_bars()) if sys.stderr.isatty() else _lines())
            shown[0](phase, done, total)

        yield report


def _lines() -> Report:
    told: set[str] = set()

    def report(phase: str, done: int, total: int) -> None:
        if phase not in told:
            told.add(phase)
            write(sys.stderr, f"model: {phase} ({total / 1e6:.0f} MB)\n")

    return report


@contextmanager
def _bars() -> Iterator[Report]:
    """A bar per phase."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def report(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(f"model: {phase}", total=None)
            bars.update(tasks[phase], completed=done, total=total or None)

        yield report


def key_of(*, openai_first: bool = False) -> str | None:
    """The key in the environment: $RAMET_API_KEY (the first, where there are several), else $OPENAI_API_KEY; the other
    way round for a server that $OPENAI_BASE_URL names."""
    ours = os.environ.get("RAMET_API_KEY", "").partition(",")[0].strip()
    theirs = os.environ.get("OPENAI_API_KEY", "")
    return (theirs or ours if openai_first else ours or theirs) or None


def address(url: str, name: str = "URL") -> str:
    """`url` with a scheme: "localhost:30000" is one. Raises `WrongUsage` for what is no address."""
    from ramet.frontend.backends.http import checked_url
    from ramet.frontend.errors import EngineError

    if "://" not in url:
        if not _HOST.fullmatch(url):
            raise WrongUsage(f"{name}={url!r}: is no address, such as http://127.0.0.1:30000; a model goes to --model")
        url = f"http://{url}"
    try:
        return checked_url(url, name)
    except EngineError as error:
        raise WrongUsage(str(error)) from None


@dataclass(frozen=True)
class Found:
    """A server that speaks OpenAI's protocol: its base URL, and the models that it names."""

    base: str
    models: tuple[str, ...]


def find(url: str, key: str | None) -> Found:
    """Ask a server what it serves, at `url` and below it at /v1. Raises `TransportError` when nobody answers, and
    `GenerationError` when the key is refused or the answer is none of that protocol."""
    import httpx

    from ramet.frontend.backends.http import checked_key

    bases = [f"{url}/v1"] if not httpx.URL(url).path.strip("/") else [url, f"{url}/v1"]
    with httpx.Client(headers=checked_key(key), timeout=PATIENCE) as client:
        for base in bases:
            try:
                response = client.get(f"{base}/models")
            except httpx.TransportError as error:
                raise TransportError(
                    f"no server answers at {base} ({str(error) or type(error).__name__}): start one with "
                    "`ramet serve`, or check the address"
                ) from None
            if response.status_code not in (404, 405):
                return Found(base, _names(base, response))
    return Found(bases[0], ())


def _names(base: str, response: httpx.Response) -> tuple[str, ...]:
    from ramet.frontend.backends.http import refusal

    if response.status_code in (401, 403):
        sent = "refuses the key" if "authorization" in response.request.headers else "asks for a key"
        raise GenerationError(f"{base} {sent} ({response.status_code}): give --api-key, or set RAMET_API_KEY")
    if response.status_code != 200:
        raise GenerationError(refusal(response).message)
    try:
        listed = response.json()
    except ValueError:
        listed = None
    cards = listed.get("data") if isinstance(listed, dict) else None
    if not isinstance(cards, list):
        raise GenerationError(f"{base} does not answer as a server of OpenAI's protocol does: check the address")
    return tuple(str(card["id"]) for card in cards if isinstance(card, dict) and card.get("id"))


def chat_server(url: str, model: str, key: str | None) -> OpenAI:
    """A server as a backend for chat completions; `model` "" is the first that it names."""
    from ramet.frontend.backends.openai import OpenAI

    found = find(url, key)
    if not model and not found.models:
        raise WrongUsage(f"{found.base} does not say what it serves: name the model with --model")
    return OpenAI(model or found.models[0], found.base, key or "")


def program_server(url: str, model: str, key: str | None) -> Backend:
    """A server as a backend for whole programs: a ramet server or, without /v1 at the end of its URL, one of SGLang's
    protocol, as `Endpoint`; any other over chat completions."""
    from ramet.frontend.backends.endpoint import Endpoint

    try:
        endpoint = Endpoint(url, key)
    except TransportError as error:
        if error.status != 404:
            refused = error.status in (401, 403)
            remedy = "give --api-key, or set RAMET_API_KEY" if refused else "start one with `ramet serve`"
            raise TransportError(f"{error}; {remedy}, or check the address") from None
        return chat_server(url, model, key)
    if endpoint.speaks_programs or not url.endswith("/v1"):
        return endpoint
    endpoint.close()
    return chat_server(url, model, key)
