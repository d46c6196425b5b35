"""The boundary in the world of text: what one program's tokeniser, reader or constraint raises ends that program, and
neither the thread that reads the engine's news, nor the server, nor a process that compiles."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ramet.frontend import ir
from ramet.runtime import client as client_module
from ramet.runtime import messages as m
from ramet.runtime import ports
from ramet.runtime.client import EngineClient
from ramet.runtime.grammar import child
from ramet.runtime.grammar.limits import SpecLimits
from ramet.runtime.server import service as service_module
from ramet.runtime.text import Tokenizer
from ramet.runtime.translate import Translator

from ..server.serving import WAIT, engine_client, in_process_client
from .mutation import changed

pytestmark = pytest.mark.model
MARK = "the victim's text"
NIGHTLY = pytest.mark.nightly
quiet = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


class Panic(BaseException):
    """As pyo3's PanicException: no Exception."""


KINDS = [pytest.param(ValueError, marks=pytest.mark.nightly), Panic]


# -- the thread that reads the engine's news


class Reader:
    """Hears a program's events; raises `fault` at the first of type `at`."""

    def __init__(self, fault: BaseException | None = None, at: type[ir.Event] = ir.Token) -> None:
        self.events: list[ir.Event] = []
        self.over = threading.Event()
        self._fault, self._at = fault, at

    def __call__(self, event: ir.Event) -> None:
        self.events.append(event)
        if isinstance(event, ir.Ended):
            self.over.set()
        fault, self._fault = self._fault, self._fault if not isinstance(event, self._at) else None
        if fault is not None and isinstance(event, self._at):
            raise fault

    @property
    def text(self) -> str:
        return "".join(event.value for event in self.events if isinstance(event, ir.Finished))

    @property
    def end(self) -> ir.Ended:
        return next(event for event in self.events if isinstance(event, ir.Ended))


OPS: tuple[ir.AnyOp, ...] = (
    ir.Role(id="0.0", seq="0", role="user", edge="begin"),
    ir.Text(id="0.1", seq="0", parts=("Tell me of trees.",)),
    ir.Role(id="0.2", seq="0", role="user", edge="end"),
    ir.Gen(id="0.3", seq="0", var="x", sampling=ir.Sampling(max_tokens=24, ignore_eos=True, seed=5)),
)


@pytest.fixture(scope="module")
def client() -> Iterator[EngineClient]:
    made = engine_client()
    yield made
    made.close()


def told(client: EngineClient, reader: Reader, name: str = "") -> None:
    session = client.open(ir.Header(name=name, seed=1), reader)
    session.send(OPS)
    session.end()


def contained(client: EngineClient, victim: Reader) -> None:
    """The check: a bystander's text is whole, the victim is told, and the engine is still there, with nothing in it."""
    calm, bystander, after = Reader(), Reader(), Reader()
    told(client, calm)
    assert calm.over.wait(WAIT) and len(calm.text) > 0
    told(client, bystander)
    told(client, victim, "victim")
    assert bystander.over.wait(WAIT) and bystander.text == calm.text
    assert victim.over.wait(WAIT)
    assert client.alive, "the engine was given up"
    told(client, after)
    assert after.over.wait(WAIT) and after.text == calm.text
    assert client.stats().programs == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", [ir.Token, pytest.param(ir.Finished, marks=pytest.mark.nightly), ir.Rendered])
def test_who_reads_events_may_raise(client: EngineClient, kind: type[BaseException], at: type[ir.Event]):
    contained(client, Reader(kind("seeded"), at))


def raising(kind: type[BaseException]) -> Callable[[Translator, m.AnyNews], None]:
    inner = Translator.news

    def news(self: Translator, what: m.AnyNews) -> None:
        session = self._deliver
        if isinstance(session, Victim) and isinstance(what, m.Sampled):
            raise kind("seeded")
        inner(self, what)

    return news


class Victim(Reader):
    """The one whose news cannot be read."""


@pytest.mark.parametrize("kind", KINDS)
def test_detokenising_may_raise(client: EngineClient, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]):
    monkeypatch.setattr(Translator, "news", raising(kind))
    victim = Victim()
    contained(client, victim)
    assert victim.end.kind == "generation" and kind.__name__ in victim.end.message
    assert any(isinstance(event, ir.Failed) for event in victim.events)


def passes_on(error: BaseException) -> str:
    raise error


def only_exceptions(error: BaseException) -> str:
    if not isinstance(error, Exception):
        raise error
    return str(error)


def unguarded(self: EngineClient, session: Any, work: Callable[[Any], None], what: object) -> None:
    work(what)


CLIENT_MUTATIONS: dict[str, tuple[object, str, object, type[BaseException], type[ir.Event]]] = {
    "no boundary": (client_module, "blame", passes_on, ValueError, ir.Token),
    "Exceptions only": (client_module, "blame", only_exceptions, Panic, ir.Token),
    "posted calls outside of it": (EngineClient, "guard", unguarded, ValueError, ir.Rendered),
}


@quiet
@pytest.mark.parametrize(
    "mutation", [pytest.param(name, marks=NIGHTLY if name == "no boundary" else ()) for name in CLIENT_MUTATIONS]
)
def test_without_the_boundary_the_engine_is_given_up(monkeypatch: pytest.MonkeyPatch, mutation: str):
    owner, name, other, kind, at = CLIENT_MUTATIONS[mutation]
    monkeypatch.setattr(owner, name, other)
    client = engine_client()
    try:
        with pytest.raises(AssertionError):
            contained(client, Reader(kind("seeded"), at))
    finally:
        client.close()


# -- the engine's own thread


def last_words(module: Any) -> list[object]:
    """What a client hears of an engine whose loop raised a panic; the check is that it hears it, and the end."""

    def serve(port: object, ready: object) -> None:
        raise Panic("seeded")

    link = module.ThreadLink(serve)
    heard: list[object] = []
    link._thread.join(WAIT)
    while not link._port.reports.empty():
        heard.append(link._port.reports.get_nowait())
    assert len(heard) == 2 and heard[1] is None, heard
    return heard


def test_a_loop_that_panics_has_a_last_word():
    assert last_words(ports)[0] == m.Broken("Panic", "seeded")


@quiet
def test_without_that_its_clients_would_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    old, new = (f"except {kind} as error:  # noqa: BLE001 (the main" for kind in ("BaseException", "Exception"))
    with pytest.raises(AssertionError):
        last_words(changed(ports, "panics pass", old, new).load(tmp_path, monkeypatch))


# -- the server


async def answers_of(http: httpx.AsyncClient) -> list[httpx.Response]:
    """A victim on each route, and a bystander beside each."""
    short = {"max_tokens": 4, "temperature": 0}
    calm = {"text": "A calm text", "sampling_params": {"max_new_tokens": 4, "temperature": 0}}
    ops: list[dict[str, Any]] = [{"type": "text", "id": "0.0", "seq": "0", "parts": [MARK]}]
    ops.append({"type": "gen", "id": "0.1", "seq": "0", "var": "x", "sampling": {"max_tokens": 2}})
    asked = [
        ("/generate", {**calm, "text": MARK}),
        ("/v1/completions", {"model": "tiny", "prompt": MARK, **short}),
        ("/v1/chat/completions", {"model": "tiny", "messages": [{"role": "user", "content": MARK}], **short}),
        ("/tokenize", {"model": "tiny", "prompt": MARK}),
        ("/v1/programs", {"version": 1, "ops": ops, "stream": False}),
    ]
    each = [http.post(path, json=body) for pair in asked for path, body in (pair, ("/generate", calm))]
    return list(await asyncio.gather(*each))


async def served(monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]) -> None:
    """The check: the victims get a 500 in the one shape, without innards; the bystanders what they asked for."""
    inner = Tokenizer._encode

    def encode(self: Tokenizer, text: str, *args: Any, **kwargs: Any) -> list[int]:
        if MARK in text:
            raise kind("innards")
        return inner(self, text, *args, **kwargs)

    monkeypatch.setattr(Tokenizer, "_encode", encode)
    async with in_process_client() as (http, service):
        found = await answers_of(http)
        for victim in found[::2]:
            assert victim.status_code == 500 and "innards" not in victim.text, (victim.request.url, victim.text)
            assert victim.json()["error"]["message"]
        assert {(each.status_code, each.json()["text"]) for each in found[1::2]} == {(200, found[1].json()["text"])}
        assert (service.running, service.waiting) == (0, 0)
        assert (await service.stats()).programs == 0


@pytest.mark.parametrize("kind", KINDS)
def test_tokenising_may_raise(monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]):
    asyncio.run(served(monkeypatch, kind))


def test_without_the_boundary_a_panic_leaves_the_application(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(service_module, "contained", lambda work: work())
    with pytest.raises((Panic, BaseExceptionGroup)):
        asyncio.run(served(monkeypatch, Panic))


# -- a process that compiles


class Prover:
    """Raises what native code may."""

    def __init__(self, kind: type[BaseException]) -> None:
        self._kind = kind

    def compile(self, constraint: ir.Constraint) -> Any:
        raise self._kind("seeded")


@pytest.mark.parametrize("kind", [ValueError, Panic, MemoryError, RecursionError])
def test_compiling_may_raise(kind: type[BaseException]):
    prover: Any = Prover(kind)
    assert isinstance(child.answer(prover, ir.Regex("a"), SpecLimits()), child.Refused)


def test_without_the_boundary_a_panic_ends_the_process(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(child, "blame", passes_on)
    prover: Any = Prover(Panic)
    with pytest.raises(Panic):
        child.answer(prover, ir.Regex("a"), SpecLimits())
