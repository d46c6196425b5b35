"""The engine as the protocols see it: calls and programs in, pieces, answers and events out.

In: `Call`s and whole programs, from one event loop. Out: text as it comes, or a `Failure`. Here a call waits for its
turn, is tokenised in a thread, runs, meets its deadline, is stopped when nobody reads it any more, and is run again
when the engine was lost before anything was sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import msgspec

from ramet.frontend import errors, ir
from ramet.runtime import messages as m
from ramet.runtime.boundary import contained
from ramet.runtime.client import ClientSession, EngineClient
from ramet.runtime.server import compose, failures
from ramet.runtime.server.accounts import Accounts, Observer
from ramet.runtime.server.bridge import Bridge, EngineLost
from ramet.runtime.server.call import Answer, Answered, Begun, Call, Caller, Completion, Outs, Prompt
from ramet.runtime.server.constraints import concerns, refused
from ramet.runtime.server.failures import Failure
from ramet.runtime.server.gate import Gate, GateLimits, restarting
from ramet.runtime.server.running import ALL, STREAMED, WHOLE, Duplex, Run, known
from ramet.runtime.server.watch import State, Watch

Result = TypeVar("Result")
YIELDING = 5  # added to the niceness of threads that tokenise: a long prompt takes what streams and steps leave over
THREADS = 4  # that tokenise
WAITING = 32  # threads that wait for the compiler, which computes elsewhere: more than it compiles at a time
UNBOUNDED = 1 << 40  # tokens


class Service:
    """The engine behind the protocols. Used from one event loop; the first call (or `start`) begins to watch it.

    `names` are the model names that are served, the first one its own. `context` is what fits: tokens of the longest
    sequence. `on_event(name, value)` is told, on the loop, what happens: "queue_seconds", "first_token_seconds",
    "inter_token_seconds" and "request_seconds" (seconds); "prompt_tokens", "cached_tokens", "generated_tokens" (as
    they become known); "request_ok", "request_failed" (the status), "request_retried", "aborted" (nobody read on);
    "engine_lost", "engine_stalled" (1), "engine_ready" (seconds of loading).
    """

    def __init__(
        self,
        client: EngineClient,
        *,
        names: Sequence[str],
        limits: GateLimits,
        on_event: Observer | None = None,
        seed: int = -1,
    ) -> None:
        self.client = client
        self._seed = compose.seeds(seed)
        self.names = tuple(names)
        self.limits = limits
        self.context = min(client.ready.context, client.ready.kv_tokens)
        self.vocab = client.tokenizer.vocab_size
        self.tokenizer = client.tokenizer
        self.template = client.template
        self.dtype = client.ready.dtype
        self._note: Observer = on_event or (lambda name, value: None)
        self.accounts = Accounts(self._note, lambda: self._attach().time())
        self._threads = ThreadPoolExecutor(THREADS, "ramet-text", initializer=_yield_to_others)
        self._compilers = ThreadPoolExecutor(WAITING, "ramet-constraints")
        self._runs: dict[tuple[str, str], set[Run]] = {}
        self._draining = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._bridge: Bridge
        self._gate: Gate
        self._watch: Watch

    # -- life

    async def start(self) -> None:
        """Begin to watch the engine (anything else that is awaited does so too), and to warm up what compiles."""
        self._attach()
        self._compilers.submit(lambda: self.client.compiler.warm())

    def _attach(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._bridge = Bridge(self._loop)
            self._gate = Gate(self.limits, self._loop.time)
            self._watch = Watch(
                self.client,
                self.limits,
                flush=self._bridge.flush,
                alive=self._gate.resume,
                gone=self._pause,
                note=self._note,
            )
            self._watch.start()
        return self._loop

    def _pause(self) -> None:
        if not self.client.alive:
            self._gate.pause(self._restarting)

    def _restarting(self) -> Failure:
        return restarting(self.client.ready.load_seconds)

    def state(self) -> State:
        """What `/ready` says."""
        if self._draining:
            return "draining"
        if self._loop is not None and self._watch.stalled:
            return "stalled"
        return "ready" if self.client.alive else "restarting"

    @property
    def running(self) -> int:
        """Programs in the engine."""
        return 0 if self._loop is None else self._gate.running

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return 0 if self._loop is None else self._gate.waiting

    @property
    def restarts(self) -> int:
        """Engines that were started after the first."""
        return 0 if self._loop is None else self._watch.restarts

    async def drain(self, seconds: float) -> None:
        """Take nothing new; wait for what is there, at most `seconds`, then end it with 503."""
        self._attach()
        self._draining = True
        over = failures.unavailable("the server is shutting down", max(1.0, seconds))
        self._gate.close(over)
        try:
            await asyncio.wait_for(self._gate.emptied(), seconds)
        except TimeoutError:
            self._end_all(over)

    def _end_all(self, failure: Failure) -> None:
        for run in [run for runs in self._runs.values() for run in runs]:
            run.fail(failure)

    async def close(self) -> None:
        """End everything, the engine too."""
        loop = self._attach()
        self._draining = True
        over = failures.unavailable("the server was closed", 1.0)
        self._gate.close(over)
        self._end_all(over)
        await self._watch.stop()
        await loop.run_in_executor(self._threads, self.client.close)
        for pool in (self._threads, self._compilers):
            pool.shutdown(wait=False, cancel_futures=True)

    # -- calls

    async def stream(self, call: Call, caller: Caller) -> AsyncGenerator[Outs, None]:
        """A call's text as it comes, each time all that is there: a `Begun` per prompt, then `Piece`s, the last of each
        completion with its `meta`. Close the generator (or cancel) to stop the programs at once. When the engine is
        lost before anything came, the call is run once more. Raises `Failure`."""
        self._attach()
        call, deadline = compose.seeded(call, self._seed), self._deadline(call.timeout, caller)
        patience: float | None = None
        with self.accounts.request():
            while True:
                sent, last = False, 0.0
                run = self._enter(caller, deadline, patience, len(call.prompts), call.priority)
                try:
                    reading = await self._begin(run, call, caller, STREAMED)
                    with self.accounts.given(reading):
                        while not reading.over:
                            outs = reading.read(await run.mailbox.take())
                            last = self.accounts.paced(outs, run.made, last)
                            if outs:
                                sent = True
                                yield outs
                            reading.raise_failure()
                    return
                except EngineLost:
                    if sent or patience is not None:
                        raise
                    patience = self._again()
                finally:
                    run.close()

    async def complete(self, call: Call, caller: Caller) -> Answer:
        """A call's whole answer. When the engine was lost under it, it is run once more. Raises `Failure`."""
        call, deadline = compose.seeded(call, self._seed), self._deadline(call.timeout, caller)
        with self.accounts.request():
            try:
                return await self._answer(call, caller, deadline, None)
            except EngineLost:
                return await self._answer(call, caller, deadline, self._again())

    async def _answer(self, call: Call, caller: Caller, deadline: float | None, patience: float | None) -> Answer:
        loop = self._attach()
        begun: dict[int, Begun] = {}
        done: dict[tuple[int, int], Completion] = {}
        run = self._enter(caller, deadline, patience, len(call.prompts), call.priority)
        try:
            reading = await self._begin(run, call, caller, WHOLE)
            queued = loop.time() - run.made
            while not reading.over:
                for out in reading.read(await run.mailbox.take()):
                    if isinstance(out, Begun):
                        begun[out.prompt] = out
                    elif out.meta is not None:
                        done[out.prompt, out.choice] = Completion(out.text, out.meta)
                reading.raise_failure()
        finally:
            run.close()
        answers = []
        for i in range(len(call.prompts)):
            completions = tuple(done[i, k] for k in range(call.n if call.generate else 0))
            first = begun[i] if call.scoring else compose.settled(begun[i], completions)
            answers.append(Answered(first, completions))
        answer = Answer(tuple(answers), queued_seconds=queued, seconds=loop.time() - run.made)
        self.accounts.spent(answer.prompt_tokens, answer.cached_tokens, answer.completion_tokens)
        return answer

    async def events(
        self, header: ir.Header, ops: Sequence[ir.AnyOp], caller: Caller, *, timeout: float | None = None
    ) -> AsyncIterator[ir.Event]:
        """A whole program's events, the last one `ir.Ended` (also when the engine was lost). Raises `Failure` for
        operations that cannot be carried out, before anything happened, and for a missed deadline."""
        with self.accounts.request():
            async with await self.duplex(header, caller, timeout=timeout) as duplex:
                await duplex.send(ops)
                duplex.end()
                async for event in duplex:
                    yield event

    async def duplex(self, header: ir.Header, caller: Caller, *, timeout: float | None = None) -> Duplex:
        """Begin a program whose operations come later. `header.namespace` salts the caller's own."""
        loop = self._attach()
        run = self._enter(caller, self._deadline(timeout, caller), None, 1, header.priority)
        try:
            await run.admitted()
            self._note("queue_seconds", loop.time() - run.made)
            inner = msgspec.structs.replace(header, namespace=compose.namespace(caller, header.namespace))
            session = await self._in_thread(lambda: run.open(inner, ALL))
        except BaseException:
            run.close()
            raise
        return Duplex(run, session, self._threads, self.accounts.ended)

    # -- one run

    def _enter(
        self, caller: Caller, deadline: float | None, patience: float | None, programs: int, priority: int
    ) -> Run:
        self._pause()
        place = self._gate.queue(caller.namespace, weight=programs, priority=priority, patience=patience)
        key = (caller.namespace, caller.label)
        run = Run(self.client, self._bridge, place, deadline, lambda run: self._left(key, run))
        self._runs.setdefault(key, set()).add(run)
        return run

    def _left(self, key: tuple[str, str], run: Run) -> None:
        runs = self._runs.get(key, set())
        runs.discard(run)
        if not runs:
            self._runs.pop(key, None)

    async def _begin(self, run: Run, call: Call, caller: Caller, wanted: frozenset[type]) -> compose.Reading:
        """Wait for the gate, then tokenise, check and hand over all programs of the call."""
        await run.admitted()
        self._note("queue_seconds", self._attach().time() - run.made)
        layouts = [compose.layout(prompt, call, place) for place, prompt in enumerate(call.prompts)]
        header = ir.Header(
            name=caller.label,
            seed=call.sampling.seed or 0,
            priority=call.priority,
            namespace=compose.namespace(caller, call.salt),
        )

        def launch() -> None:
            prompts = iter(call.prompts)
            run.launch(
                header, layouts, wanted, lambda layout, session: self._prepare(next(prompts), call, layout, session)
            )

        await self._in_thread(launch)
        return compose.Reading(layouts, run.lengths, run.over)

    def _prepare(self, prompt: Prompt, call: Call, layout: compose.Layout, session: ClientSession) -> None:
        """Tokenise one prompt's program; `Failure` 400 with the figures when it does not fit."""
        asked = call.sampling.max_tokens if call.generate else None
        compose.check_size(prompt, self.context)
        try:
            session.prepare(layout.ops)
            tokens = session.length(layout.seq)
        except errors.ConstraintError as error:
            if call.constraint is not None and concerns(error):
                raise refused(error, call.field, call.places) from None
            raise known(error, call.limit) from None
        except errors.ContextOverflow as error:
            tokens = self._length(prompt)
            if tokens <= self.context:
                raise known(error) from None
        least = tokens + (1 if call.generate else 0)
        if max(least, tokens + (asked or 0)) > self.context:
            raise failures.too_long(self.context, tokens, asked)

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        try:
            return await self._attach().run_in_executor(self._threads, contained, work)
        except errors.RametError as error:
            raise known(error) from None

    def _again(self) -> float:
        self._note("request_retried", 1.0)
        return self.limits.retry_patience

    def _deadline(self, timeout: float | None, caller: Caller) -> float | None:
        ends = [] if caller.deadline is None else [caller.deadline]
        if timeout is not None:
            ends.append(self._attach().time() + timeout)
        return min(ends, default=None)

    # -- text

    async def encode(self, prompt: Prompt, *, special: bool = False) -> tuple[int, ...]:
        """A prompt's token ids. Plain text is encoded by itself or, with `special`, as it stands at the start of a
        sequence (behind the BOS token, for models that were trained with one)."""
        if isinstance(prompt, str) and not special:
            text = prompt
            return await self._in_thread(lambda: tuple(self.tokenizer.encode(text)))
        return await self._in_thread(lambda: compose.lowered(prompt, self.client.lowering(0, context=UNBOUNDED))[1])

    async def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids."""
        return await self._in_thread(lambda: self.tokenizer.decode(ids))

    async def count(self, prompt: Prompt) -> int:
        """The tokens that a prompt has in a program, also when they do not fit. `Failure` 400 for one that is too long
        to be tokenised at all (`compose.check_size`)."""
        return await self._in_thread(lambda: self._length(prompt))

    def _length(self, prompt: Prompt) -> int:
        compose.check_size(prompt, self.context)
        return compose.lowered(prompt, self.client.lowering(0, context=UNBOUNDED))[0]

    async def compiled(self, call: Call) -> tuple[str, ...]:
        """Compile a call's constraint before it waits for its turn: it takes neither a place nor a thread that
        tokenises. Sentences about what its text is held to less strictly than asked. Raises `Failure` 400."""
        if call.constraint is None:
            return ()
        work = partial(compose.compiled, call, self.client, since=time.monotonic())
        return await self._attach().run_in_executor(self._compilers, contained, work)

    # -- control

    async def stats(self, timeout: float = 30.0) -> m.Stats:
        """The engine's gauges and counters, as of its next pause between two steps. Raises `Failure` 503."""
        self._attach()
        try:
            return await asyncio.wait_for(asyncio.wrap_future(self.client.ask()), timeout)
        except TimeoutError:
            raise failures.unavailable(f"the engine did not answer within {timeout} s", 1.0) from None
        except errors.TransportError as error:
            raise EngineLost(error.message) from None

    async def flush(self) -> bool:
        """Forget cached prefixes that nothing under way uses; True when that is done."""
        self.client.flush()
        await self.stats()
        return True

    def busy(self, label: str, caller: Caller) -> bool:
        """Whether a request of this label runs or waits in the caller's namespace."""
        return (caller.namespace, label) in self._runs

    def abort(self, label: str, caller: Caller) -> int:
        """End the requests of exactly this label, or all ("") of the caller's namespace, with 499; their number."""
        chosen = [
            run
            for (namespace, name), runs in self._runs.items()
            if namespace == caller.namespace and label in ("", name)
            for run in runs
        ]
        for run in chosen:
            run.fail(failures.of_event("aborted", "the request was aborted"))
        return len(chosen)


def _yield_to_others() -> None:
    """Lower this thread's priority. Linux alone has one per thread; elsewhere the whole process would be meant."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):  # a sandbox may forbid it; then all are equal
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + YIELDING)
