"""The engine's client: the world of text, in the user's (or the server's) process.

In: operations of `frontend.ir`. Out: its events, delivered in order from one thread. It tokenises before the engine
sees anything, detokenises what comes back, and turns the engine's end into failures: nothing that was begun hangs.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from ramet.frontend import errors, ir
from ramet.runtime import messages as m
from ramet.runtime.birth import Birth, rebuilt
from ramet.runtime.birth import Observer as Observer
from ramet.runtime.boundary import blame
from ramet.runtime.config import Config
from ramet.runtime.ports import Call, Link, ProcessLink, ThreadLink

if TYPE_CHECKING:  # imported when they are needed, which is after the engine's process was started
    from ramet.runtime.grammar.compiler import Compiler
    from ramet.runtime.launch import Early
    from ramet.runtime.lower import Lowering
    from ramet.runtime.template import ChatTemplate
    from ramet.runtime.text import Tokenizer

Load = Callable[[], "tuple[Tokenizer, ChatTemplate]"]
Deliver = Callable[[ir.Event], None]


class ClientSession:
    """One live program: `frontend.backends.base.Session`."""

    def __init__(self, client: EngineClient, header: ir.Header, deliver: Deliver) -> None:
        from ramet.runtime.translate import Translator

        self.id = secrets.token_hex(16)
        self.name = header.name
        self._client = client
        self._lock = threading.Lock()
        self._lowering = client.lowering(header.seed)
        self._lowered: list[m.AnyOp] = []
        self.translator = Translator(self.id, client.tokenizer, deliver, client.template.tool_format)

    def prepare(self, ops: Sequence[ir.AnyOp]) -> None:
        """Tokenise now and hand over with the next `send` or `end`; raises what `Lowering.lower` raises."""
        with self._lock:
            self._prepare(ops)

    def _prepare(self, ops: Sequence[ir.AnyOp]) -> None:
        lowered, rendered = self._lowering.lower(ops)
        self.translator.expect(ops)
        self._lowered += lowered
        if rendered:
            self._client.post(lambda: self._client.guard(self, self.translator.deliver_all, rendered))

    def length(self, seq: str) -> int:
        """Tokens of a sequence as far as they are prepared: see `Lowering.length`."""
        with self._lock:
            return self._lowering.length(seq)

    def send(self, ops: Sequence[ir.AnyOp]) -> None:
        """Tokenise and hand over; raises what `Lowering.lower` raises, before anything is sent."""
        with self._lock:
            self._prepare(ops)
            self._hand_over()

    def end(self) -> None:
        """No more operations."""
        with self._lock:
            self._lowered += self._lowering.end()
            self._hand_over()
            self._tell(m.OrderEnd(self.id))

    def _hand_over(self) -> None:
        lowered, self._lowered = self._lowered, []
        if lowered:
            self._tell(m.packed(self.id, lowered))

    def _tell(self, order: m.Order) -> None:
        try:
            self._client.send(order)
        except errors.TransportError:
            self.cancel()  # an engine that is there must not keep what it has
            raise

    def cancel(self) -> None:
        """Stop at once."""
        self._client.send(m.OrderAbort(self.id))


class EngineClient:
    """Starts an engine and speaks with it. After the engine was lost, the next `open` (or `start`) starts another.
    `text` loads the tokenizer and the chat template, once, while the first engine, or `early`, gets ready."""

    def __init__(self, config: Config, text: Load, *, in_process: bool, early: Early | None = None) -> None:
        self.ready: m.Ready
        self.observer: Observer | None = None
        self._config = config
        self._in_process, self._early = in_process, early
        self._pid = os.getpid()
        self._lock = threading.RLock()  # guards the fields below; never held while anything is waited for
        self._sessions: dict[str, ClientSession] = {}
        self._questions: dict[int, Future[Any]] = {}
        self._asked = 0
        self._closed = False
        self._link: Link | None = None  # of an engine that is ready and was not lost
        self._birth: Birth | None = None  # the last engine
        self._made: tuple[Link, threading.Thread] | None = None  # the same once it has a link
        self._compiler: Compiler | None = None
        self._starting = threading.Lock()
        with self._starting:
            birth = self._begin()
            try:
                self.tokenizer, self.template = text()
            except BaseException:
                birth.drop()
                raise
            self._finish(birth)

    # -- the engine's life

    def start(self) -> None:
        """Start an engine and wait until it is ready, unless there is one. Raises what kept it from getting ready."""
        with self._starting:
            with self._lock:
                self._refuse_if_over()
                if self._link is not None:
                    return
            self._finish(self._begin())

    def _begin(self) -> Birth:
        """Start an engine, in a thread."""
        birth = self._birth = Birth(self._listen)
        try:
            birth.thread.start()
        except BaseException:
            birth.drop()
            raise
        return birth

    def _finish(self, birth: Birth) -> None:
        """Wait until it is ready."""
        try:
            birth.hello.result()
        except BaseException:  # Ctrl-C too: no half-started engine stays behind
            birth.drop()
            raise

    @property
    def alive(self) -> bool:
        """Whether an engine is ready and was not lost."""
        return self._link is not None

    def kill(self) -> bool:
        """End the engine's process by force, without waiting; its programs are told. False where it has none."""
        return (link := self._link) is not None and link.kill()

    def _refuse_if_over(self) -> None:
        if self._closed:
            raise errors.TransportError("this engine is closed; make another one")
        if os.getpid() != self._pid:
            raise errors.TransportError("this engine belongs to the process that forked this one; make one here")

    def _connect(self) -> Link:
        if not self._in_process:
            return ProcessLink(self._config, self._early)
        from ramet.runtime.process import serve

        config = self._config
        return ThreadLink(lambda port, ready: serve(config, port, ready))

    def _listen(self, birth: Birth) -> None:
        """The one thread that reads, from an engine's start (a process wants its parent thread to live as long as it)
        to its end: dispatches until the engine is gone, then fails what is left."""
        birth.begun.set()
        try:
            link = self._connect()
        except BaseException as error:  # noqa: BLE001 (whoever waits for the engine is told)
            birth.hello.set_exception(error)
            return
        with self._lock:
            self._made = (link, birth.thread)
        birth.linked(link)
        reason = ""
        try:
            reason = self._read(link, birth.hello)
        finally:
            reason = reason or link.ending()
            if not birth.hello.done():
                birth.hello.set_exception(
                    errors.EngineError(f"the engine ended before it was ready: {reason}; its log is on standard error")
                )
            self._lost(link, reason)
            link.release()

    def _read(self, link: Link, hello: Future[None]) -> str:
        """Dispatch until the engine is gone; why it broke, if it could say."""
        reason = ""
        while (items := link.receive()) is not None:
            steps = 0
            for item in items:
                if isinstance(item, m.Step):
                    self._dispatch(item)
                    steps += 1
                elif isinstance(item, m.Ready):
                    self._greet(link, item, hello)
                elif isinstance(item, m.Broken):
                    reason = f"{item.error}: {item.message}"
                    if not hello.done():
                        hello.set_exception(rebuilt(item))
                else:
                    item()
            if self.observer is not None:
                self.observer.heard(steps)
        return reason

    def _greet(self, link: Link, ready: m.Ready, hello: Future[None]) -> None:
        link.send(m.OrderStats(0))  # its answer shows that orders arrive (`ProcessLink` waits for that)
        if self._compiler is not None:  # constraints came before, and will again
            link.send(m.OrderWarm())
        with self._lock:
            self.ready = ready
            self._link = link
        if self.observer is not None:
            self.observer.ready(ready)
        hello.set_result(None)

    def _lost(self, link: Link, reason: str) -> None:
        observer = self.observer if self._link is link else None
        what = "this engine was closed" if self._closed else f"the engine was lost: {reason}"
        if observer is not None:
            observer.lost(what)  # before anybody else learns of it: nobody shall begin again on what is gone
        with self._lock:
            self._link = None if self._link is link else self._link
            sessions, self._sessions = list(self._sessions.values()), {}
            questions, self._questions = list(self._questions.values()), {}
        for session in sessions:
            self._tell_lost(session, "transport", what)
        for question in questions:
            question.set_exception(errors.TransportError(what))
        if observer is not None:
            observer.heard(0)

    def _tell_lost(self, session: ClientSession, kind: str, what: str) -> None:
        with contextlib.suppress(BaseException):  # one program's reader must not keep the word from the others
            session.translator.lost(kind, what)

    def _dispatch(self, step: m.Step) -> None:
        for news in step.news:
            session = self._sessions.get(news.program)
            if session is None:
                continue
            if isinstance(news, m.Over):
                with self._lock:
                    self._sessions.pop(news.program, None)
            self.guard(session, session.translator.news, news)
        answers: tuple[m.Stats | m.Snapshot, ...] = (*step.stats, *step.snapshots)
        for answer in answers:
            with self._lock:
                question = self._questions.pop(answer.token, None)
            if question is not None:
                question.set_result(answer)

    # -- what sessions use

    def guard(self, session: ClientSession, work: Callable[[Any], None], what: object) -> None:
        """Do `work(what)` of a session, in the reading thread: what is raised ends this program alone."""
        try:
            work(what)
        except BaseException as error:  # noqa: BLE001 (the request boundary)
            with self._lock:
                self._sessions.pop(session.id, None)
            session.cancel()
            self._tell_lost(session, "generation", f"its news could not be read: {blame(error)}")

    def lowering(self, seed: int, *, context: int | None = None) -> Lowering:
        """A new program's lowering; with `context` one that only counts, by another limit than the engine's."""
        from ramet.runtime.lower import Lowering

        tokens = self.ready.context if context is None else context
        return Lowering(
            self.tokenizer,
            self.template,
            context=tokens,
            seed=seed,
            max_chars=16 * self.ready.context,
            compile=lambda constraint: self.compiler.compile(constraint),
        )

    @property
    def compiler(self) -> Compiler:
        """What compiles constraints; made, and the engine told to make ready, for whoever asks first."""
        if self._compiler is not None:
            return self._compiler
        from ramet.runtime.grammar.compiler import Compiler

        with self._lock:
            if self._compiler is None:
                self._compiler = Compiler(self.tokenizer, eos=self.tokenizer.eos)
                if self._closed:
                    self._compiler.close()
                self.send(m.OrderWarm())
            return self._compiler

    def send(self, order: m.Order) -> None:
        """Hand an order to the engine, if there still is one (a lost one is told through events). `TransportError`."""
        if (link := self._link) is not None:
            try:
                link.send(order)
            except Exception as error:
                raise errors.TransportError(f"the engine cannot be told: {blame(error)}") from error

    def post(self, call: Call) -> None:
        """Run `call` in the reading thread, in order with events."""
        if (link := self._link) is not None:
            link.post(call)

    # -- frontend.backends.base.Backend

    def open(
        self, header: ir.Header, deliver: Deliver, *, start: bool = True, alike: str | None = None
    ) -> ClientSession:
        """Begin a program. When the engine was lost another is started first; with `start` False that raises
        `TransportError`. Programs that share a name do alike, for all that the engine knows: where the header's is an
        id, `alike` takes its place ("": nothing is known)."""
        name = header.name if alike is None else alike
        while True:
            with self._lock:
                self._refuse_if_over()
                if self._link is not None:
                    session = ClientSession(self, header, deliver)
                    self._sessions[session.id] = session
                    try:
                        self.send(m.OrderOpen(session.id, header.namespace, header.priority, name))
                    except BaseException:
                        del self._sessions[session.id]
                        raise
                    return session
            if not start:
                raise errors.TransportError("the engine was lost; another is being started")
            self.start()

    def ask(self) -> Future[m.Stats]:
        """The engine's gauges and counters, answered between two of its steps. Fails when the engine is lost."""
        return self._put(m.OrderStats)

    def look(self, *, nodes: int, programs: int, branches: int, namespace: str | None = None) -> Future[m.Snapshot]:
        """The engine's tree and programs as of its next pause between two steps, so large at most. Fails like `ask`."""
        return self._put(lambda token: m.OrderSnapshot(token, nodes, programs, branches, namespace))

    def _put(self, order: Callable[[int], m.Order]) -> Future[Any]:
        with self._lock:
            self._refuse_if_over()
            if self._link is None:
                raise errors.TransportError("the engine was lost; the next program starts another")
            self._asked += 1
            question = self._questions[self._asked] = Future[Any]()
            question.set_running_or_notify_cancel()  # who gives up waiting must not cancel what is yet to be set
            self.send(order(self._asked))
        return question

    def name_of(self, program: str) -> str:
        """The name in a live program's header; "" for one that is over."""
        session = self._sessions.get(program)
        return "" if session is None else session.name

    def stats(self, timeout: float = 30.0) -> m.Stats:
        """The engine's gauges and counters; waits for them. Raises `TransportError`."""
        try:
            return self.ask().result(timeout)
        except TimeoutError:
            raise errors.TransportError(f"the engine did not answer within {timeout} s") from None

    def flush(self) -> None:
        """Evict what no running program uses."""
        self.send(m.OrderFlush())

    @property
    def process_id(self) -> int | None:
        """The id of the engine's process; None when it has none, or was lost."""
        return self._link.process.pid if isinstance(self._link, ProcessLink) else None

    def close(self) -> None:
        """End every program and the engine, and wait for it. Idempotent; in a forked child it does nothing."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._closed = True
            birth, compiler = self._birth, self._compiler
        if compiler is not None:
            compiler.close()
        if birth is not None:
            birth.drop()
