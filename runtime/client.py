"""The engine's client: the world of text, in the user's (or the server's) process.

In: operations of `frontend.ir`. Out: its events, delivered in order from one thread. It tokenises before the engine
sees anything, detokenises what comes back, and turns the engine's end into failures: nothing that was begun hangs.
"""

from __future__ import annotations

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
        self._template = template
        self._config = config
        self._in_process = in_process
        self._lock = threading.RLock()
        self._sessions: dict[str, ClientSession] = {}
        self._questions: dict[int, Future[m.Stats]] = {}
        self._asked = 0
        self._closed = False
        self._link: Link | None = None
        self._thread: threading.Thread | None = None
        self.ready = self._start()

    # -- the engine's life

    def _start(self) -> m.Ready:
        link: Link
        if self._in_process:
            from ramet.runtime.process import serve

            config = self._config
            link = ThreadLink(lambda port, ready: serve(config, port, ready))
        else:
            link = ProcessLink(self._config)
        hello: Future[m.Ready] = Future()
        self._link = link
        self._thread = threading.Thread(target=self._listen, args=(link, hello), name="ramet-client", daemon=True)
        self._thread.start()
        return hello.result()

    def _listen(self, link: Link, hello: Future[m.Ready]) -> None:
        """The one thread that reads: dispatches until the engine is gone, then fails what is left."""
        reason = "the engine ended"
        while (items := link.receive()) is not None:
            for item in items:
                if isinstance(item, m.Step):
                    self._dispatch(item)
                elif isinstance(item, m.Ready):
                    hello.set_result(item)
                elif isinstance(item, m.Broken):
                    reason = item.message
                    if not hello.done():
                        hello.set_exception(_rebuilt(item))
                else:
                    item()
        if not hello.done():
            hello.set_exception(
                errors.EngineError("the engine's process ended before it was ready; its log is on standard error")
            )
        self._lost(link, reason)
        if isinstance(link, ProcessLink):
            link.release()

    def _lost(self, link: Link, reason: str) -> None:
        with self._lock:
            if self._link is link:
                self._link = None
            sessions, self._sessions = list(self._sessions.values()), {}
            questions, self._questions = list(self._questions.values()), {}
        for session in sessions:
            session.translator.lost("transport", f"the engine was lost: {reason}")
        for question in questions:
            question.set_exception(errors.TransportError(f"the engine was lost: {reason}"))

    def _dispatch(self, step: m.Step) -> None:
        for news in step.news:
            session = self._sessions.get(news.program)
            if session is None:
                continue
            if isinstance(news, m.Over):
                with self._lock:
                    self._sessions.pop(news.program, None)
            session.translator.news(news)
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
        """Begin a program."""
        with self._lock:
            if self._closed:
                raise errors.TransportError("this engine is closed; make another one")
            if self._link is None:
                self.ready = self._start()
            session = ClientSession(self, header, deliver)
            self._sessions[session.id] = session
            self.send(m.OrderOpen(session.id, header.namespace, header.priority))
        return session

    def stats(self, timeout: float = 30.0) -> m.Stats:
        """The engine's gauges and counters."""
        with self._lock:
            if self._link is None:
                raise errors.TransportError("the engine is gone")
            self._asked += 1
            question = self._questions[self._asked] = Future()
            self.send(m.OrderStats(self._asked))
        try:
            return question.result(timeout)
        except TimeoutError:
            raise errors.TransportError(f"the engine did not answer within {timeout} s") from None

    def flush(self) -> None:
        """Evict what no running program uses."""
        self.send(m.OrderFlush())

    @property
    def process_id(self) -> int | None:
        """The engine process's id, if it has one."""
        return self._link.process.pid if isinstance(self._link, ProcessLink) else None

    def close(self) -> None:
        """End every program and the engine."""
        with self._lock:
            self._closed = True
            link, thread = self._link, self._thread
        if link is not None:
            link.close()
        if thread is not None and thread is not threading.current_thread():
            thread.join()


def _rebuilt(broken: m.Broken) -> errors.RametError:
    kind = getattr(errors, broken.error, None)
    if isinstance(kind, type) and issubclass(kind, errors.RametError):
        return kind(broken.message)
    return errors.EngineError(f"the engine could not start: {broken.error}: {broken.message}")
