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

from ramet.frontend import errors, ir
from ramet.runtime import messages as m
from ramet.runtime.config import Config
from ramet.runtime.lower import Lowering
from ramet.runtime.ports import Call, Link, ProcessLink, ThreadLink
from ramet.runtime.template import ChatTemplate
from ramet.runtime.text import Tokenizer
from ramet.runtime.translate import Translator

Deliver = Callable[[ir.Event], None]


class ClientSession:
    """One live program: `frontend.backends.base.Session`."""

    def __init__(self, client: EngineClient, header: ir.Header, deliver: Deliver) -> None:
        self.id = secrets.token_hex(16)
        self._client = client
        self._lock = threading.Lock()
        self._lowering = client.lowering(header.seed)
        self.translator = Translator(self.id, client.tokenizer, deliver)

    def send(self, ops: Sequence[ir.AnyOp]) -> None:
        """Tokenise and hand over; raises what `Lowering.lower` raises, before anything is sent."""
        with self._lock:
            lowered, rendered = self._lowering.lower(ops)
            self.translator.expect(ops)
            if rendered:
                self._client.post(lambda: self.translator.deliver_all(rendered))
            if lowered:
                self._client.send(m.OrderOps(self.id, tuple(lowered)))

    def end(self) -> None:
        """No more operations."""
        with self._lock:
            last = self._lowering.end()
        if last:
            self._client.send(m.OrderOps(self.id, tuple(last)))
        self._client.send(m.OrderEnd(self.id))

    def cancel(self) -> None:
        """Stop at once."""
        self._client.send(m.OrderAbort(self.id))


class EngineClient:
    """Starts an engine and speaks with it. After the engine was lost, the next `open` starts another."""

    def __init__(self, config: Config, tokenizer: Tokenizer, template: ChatTemplate, *, in_process: bool) -> None:
        self.tokenizer = tokenizer
        self.ready: m.Ready
        self._template = template
        self._config = config
        self._in_process = in_process
        self._pid = os.getpid()
        self._lock = threading.RLock()  # guards the fields below; never held while anything is waited for
        self._sessions: dict[str, ClientSession] = {}
        self._questions: dict[int, Future[m.Stats]] = {}
        self._asked = 0
        self._closed = False
        self._link: Link | None = None  # of an engine that is ready and was not lost
        self._made: tuple[Link, threading.Thread] | None = None  # the last engine, and the thread that listens to it
        self._starting = threading.Lock()
        self._start()

    # -- the engine's life

    def _start(self) -> None:
        """Start an engine and wait until it is ready, unless there is one. Raises what kept it from getting ready."""
        with self._starting:
            with self._lock:
                self._refuse_if_over()
                if self._link is not None:
                    return
                hello: Future[None] = Future()
                begun = threading.Event()
                link = self._connect()
                arguments = (link, hello, begun)
                thread = threading.Thread(target=self._listen, args=arguments, name="ramet-client", daemon=True)
                self._made = (link, thread)
            try:
                thread.start()
                hello.result()
            except BaseException:  # Ctrl-C too: no half-started engine stays behind
                link.close()
                if begun.wait(1.0):  # else the thread could not be started
                    thread.join()
                else:
                    link.release()
                raise

    def _refuse_if_over(self) -> None:
        if self._closed:
            raise errors.TransportError("this engine is closed; make another one")
        if os.getpid() != self._pid:
            raise errors.TransportError(
                "this engine belongs to the process that this one was forked from; make one here"
            )

    def _connect(self) -> Link:
        if not self._in_process:
            return ProcessLink(self._config)
        from ramet.runtime.process import serve

        config = self._config
        return ThreadLink(lambda port, ready: serve(config, port, ready))

    def _listen(self, link: Link, hello: Future[None], begun: threading.Event) -> None:
        """The one thread that reads: dispatches until the engine is gone, then fails what is left."""
        begun.set()
        reason = ""
        try:
            while (items := link.receive()) is not None:
                for item in items:
                    if isinstance(item, m.Step):
                        self._dispatch(item)
                    elif isinstance(item, m.Ready):
                        self._greet(link, item, hello)
                    elif isinstance(item, m.Broken):
                        reason = f"{item.error}: {item.message}"
                        if not hello.done():
                            hello.set_exception(_rebuilt(item))
                    else:
                        item()
        finally:
            reason = reason or link.ending()
            if not hello.done():
                hello.set_exception(
                    errors.EngineError(f"the engine ended before it was ready: {reason}; its log is on standard error")
                )
            self._lost(link, reason)
            link.release()

    def _greet(self, link: Link, ready: m.Ready, hello: Future[None]) -> None:
        with self._lock:
            self.ready = ready
            self._link = link
        hello.set_result(None)

    def _lost(self, link: Link, reason: str) -> None:
        with self._lock:
            if self._link is link:
                self._link = None
            what = "this engine was closed" if self._closed else f"the engine was lost: {reason}"
            sessions, self._sessions = list(self._sessions.values()), {}
            questions, self._questions = list(self._questions.values()), {}
        for session in sessions:
            self._tell_lost(session, "transport", what)
        for question in questions:
            question.set_exception(errors.TransportError(what))

    def _tell_lost(self, session: ClientSession, kind: str, what: str) -> None:
        with contextlib.suppress(Exception):  # one program's reader must not keep the word from the others
            session.translator.lost(kind, what)

    def _dispatch(self, step: m.Step) -> None:
        for news in step.news:
            session = self._sessions.get(news.program)
            if session is None:
                continue
            if isinstance(news, m.Over):
                with self._lock:
                    self._sessions.pop(news.program, None)
            try:
                session.translator.news(news)
            except Exception as error:  # noqa: BLE001 (the request boundary: it ends this program alone)
                with self._lock:
                    self._sessions.pop(news.program, None)
                session.cancel()
                self._tell_lost(session, "generation", f"its news could not be read: {type(error).__name__}: {error}")
        for stats in step.stats:
            with self._lock:
                question = self._questions.pop(stats.token, None)
            if question is not None:
                question.set_result(stats)

    # -- what sessions use

    def lowering(self, seed: int) -> Lowering:
        """A new program's lowering."""
        return Lowering(self.tokenizer, self._template, context=self.ready.context, seed=seed)

    def send(self, order: m.Order) -> None:
        """Hand an order to the engine, if there still is one: a lost engine is told through events."""
        link = self._link
        if link is not None:
            link.send(order)

    def post(self, call: Call) -> None:
        """Run `call` in the reading thread, in order with events."""
        link = self._link
        if link is not None:
            link.post(call)

    # -- frontend.backends.base.Backend

    def open(self, header: ir.Header, deliver: Deliver) -> ClientSession:
        """Begin a program; starts an engine when the last one was lost."""
        while True:
            with self._lock:
                self._refuse_if_over()
                if self._link is not None:
                    session = ClientSession(self, header, deliver)
                    self._sessions[session.id] = session
                    self.send(m.OrderOpen(session.id, header.namespace, header.priority))
                    return session
            self._start()

    def stats(self, timeout: float = 30.0) -> m.Stats:
        """The engine's gauges and counters."""
        with self._lock:
            self._refuse_if_over()
            if self._link is None:
                raise errors.TransportError("the engine was lost; the next program starts another")
            self._asked += 1
            asked, question = self._asked, Future[m.Stats]()
            self._questions[asked] = question
            self.send(m.OrderStats(asked))
        try:
            return question.result(timeout)
        except TimeoutError:
            with self._lock:
                self._questions.pop(asked, None)
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
            made = self._made
        if made is None:
            return
        link, thread = made
        link.close()
        # The collector of garbage may call this in a thread that the engine itself needs to end.
        if threading.current_thread() is not thread and not link.is_current_thread():
            thread.join()


def _rebuilt(broken: m.Broken) -> errors.RametError:
    kind = getattr(errors, broken.error, None)
    if isinstance(kind, type) and issubclass(kind, errors.RametError):
        return kind(broken.message)
    return errors.EngineError(f"the engine could not start: {broken.error}: {broken.message}")
