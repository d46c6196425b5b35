"""A program that is carried out here, over a server that takes one call at a time.

In: operations. Out: events, and one request per generation or choice. Each sequence is followed by a task of its own,
so that branches overlap; what a `Remote` cannot carry out is refused in `send`, before any request.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import msgspec

from ramet.frontend.backends.base import Deliver
from ramet.frontend.backends.http import RemoteFailure
from ramet.frontend.backends.loop import Loop
from ramet.frontend.errors import ConstraintError, StateError
from ramet.frontend.ir import (
    ROOT,
    AnyOp,
    Close,
    Ended,
    Event,
    Failed,
    Finished,
    Fork,
    Forked,
    Gen,
    Header,
    Join,
    Joined,
    Logprob,
    Meta,
    Put,
    Ref,
    Rendered,
    Role,
    Score,
    Select,
    Started,
    Text,
    Token,
    Tokens,
    Tools,
    Usage,
)

Emit = Callable[[str, tuple[Logprob, ...]], None]


@dataclass(frozen=True)
class Edge:
    """The begin or the end of a message."""

    role: str
    begin: bool

    def __str__(self) -> str:
        """How it shows in texts; what the server's chat template makes of it is not known here."""
        return f"<|{self.role}|>\n" if self.begin else "<|end|>\n"


Item = str | Edge


@dataclass(frozen=True)
class Shape:
    """What is known of a sequence before anything runs: the role of its open message, whether that has text already,
    how many messages have begun, whether text stands outside of messages."""

    role: str = ""
    filled: bool = False
    messages: int = 0
    loose: bool = False


class Remote(Protocol):
    """A server that completes texts or chats."""

    def check(self, op: AnyOp, shape: Shape) -> None:
        """Raise `ConstraintError` for an operation that it cannot carry out after a sequence of this shape."""

    async def generate(self, items: Sequence[Item], op: Gen, seed: int, emit: Emit) -> tuple[str, Meta]:
        """The text and how it went; `emit` is given new text as it comes. Raises `RemoteFailure`."""

    async def choose(self, items: Sequence[Item], op: Select) -> tuple[int, Meta]:
        """The winner's index. Raises `RemoteFailure`."""


@dataclass(eq=False)
class _Branch:
    """One sequence. Its task takes operations from `ops`; None is the last."""

    path: str
    items: list[Item] = field(default_factory=list)
    base: int = 0  # items before its fork
    ops: asyncio.Queue[AnyOp | None] = field(default_factory=asyncio.Queue)
    born: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    failed: tuple[str, str] | None = None  # kind and message of what it depends on
    current: AnyOp | None = None
    task: asyncio.Task[None] | None = None


class RemoteProgram:
    """See `Session`."""

    def __init__(self, loop: Loop, remote: Remote, header: Header, deliver: Deliver) -> None:
        self._loop = loop
        self._remote = remote
        self._seed = header.seed
        self._deliver = deliver
        self._lock = threading.Lock()  # guards the shapes
        self._shapes = {ROOT: Shape()}
        self._branches: dict[str, _Branch] = {}
        self._values: dict[str, asyncio.Future[str | tuple[str, str]]] = {}
        self._usage = Usage()
        self._began = time.monotonic()
        self._over = False
        self._tasks: set[asyncio.Task[None]] = set()
        loop.post(self._begin)

    # -- from any thread

    def send(self, ops: Sequence[AnyOp]) -> None:
        """See `Session.send`."""
        with self._lock:
            shapes = dict(self._shapes)
            for op in ops:
                self._shape(op, shapes)
            self._shapes = shapes
            self._loop.post(functools.partial(self._receive, tuple(ops)))

    def end(self) -> None:
        """See `Session.end`."""
        self._loop.post(self._finish)

    def cancel(self) -> None:
        """See `Session.cancel`."""
        self._loop.post(lambda: self._end("aborted", "the program was cancelled"))

    def _shape(self, op: AnyOp, shapes: dict[str, Shape]) -> None:
        """What a sequence looks like after `op`. Raises for what cannot be carried out."""
        shape = shapes.get(op.seq)
        if shape is None:
            raise StateError(f"seq={op.seq!r}: no such sequence; fork it first")
        if isinstance(op, Tokens | Score):
            raise ConstraintError(f"{type(op).__name__}: this server takes text; use ramet.Engine or a ramet server")
        if isinstance(op, Tools):
            raise ConstraintError("tools: this server is told of none here; use ramet.Engine or a ramet server")
        self._remote.check(op, shape)
        if isinstance(op, Role):
            begins = op.edge == "begin"
            shape = replace(shape, role=op.role if begins else "", filled=False, messages=shape.messages + begins)
        elif isinstance(op, Gen | Select) or (isinstance(op, Text) and any(op.parts)):
            shape = replace(shape, filled=True) if shape.role else replace(shape, loose=True)
        elif isinstance(op, Fork):
            shapes.update(dict.fromkeys(op.into, shape))
        elif isinstance(op, Join):
            joined = [shapes[path] for path in op.branches]
            shape = replace(
                shape,
                filled=bool(shape.role) and (shape.filled or any(each.filled for each in joined)),
                messages=max([shape.messages, *(each.messages for each in joined)]),
                loose=shape.loose or any(each.loose for each in joined),
            )
        shapes[op.seq] = shape

    # -- on the loop

    def _begin(self) -> None:
        self._loop.live.add(self)
        self._branch(ROOT).born.set()

    def _branch(self, path: str) -> _Branch:
        branch = self._branches[path] = _Branch(path)
        branch.task = self._loop.task(self._follow(branch))
        return branch

    def _receive(self, ops: Sequence[AnyOp]) -> None:
        if self._over:
            return
        for op in ops:
            if isinstance(op, Fork):  # its children may get operations before it is carried out
                for child in op.into:
                    self._branch(child)
            if isinstance(op, Put):
                if not op.due:
                    self._value(op.id).set_result(("generation", op.failed) if op.failed else op.value)
            elif isinstance(op, Close) and op.now:
                self._cut(op.seq)
            elif self._branches[op.seq].over.is_set():
                self._fail(op, self._branches[op.seq], "aborted", "the branch was cancelled")
            else:
                self._branches[op.seq].ops.put_nowait(op)

    def _value(self, op: str) -> asyncio.Future[str | tuple[str, str]]:
        found = self._values.get(op)
        if found is None:
            found = self._values[op] = asyncio.get_running_loop().create_future()
        return found

    def _cut(self, path: str) -> None:
        """Stop a sequence and all below it: what is recorded or under way there fails."""
        for branch in [b for p, b in self._branches.items() if p == path or p.startswith(path + ".")]:
            if branch.task is not None:
                branch.task.cancel()
            branch.over.set()
            left: list[AnyOp | None] = [branch.current]
            while not branch.ops.empty():
                left.append(branch.ops.get_nowait())
            for op in left:
                if op is not None:
                    self._fail(op, branch, "aborted", "the branch was cancelled")

    def _finish(self) -> None:
        """No more operations come: the program ends when all are done."""
        for branch in self._branches.values():
            branch.ops.put_nowait(None)
        task = self._loop.task(self._ended())
        self._tasks.add(task)

    async def _ended(self) -> None:
        tasks = [branch.task for branch in self._branches.values() if branch.task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)
        self._end("", "")

    def lose(self, message: str) -> None:
        """See `Live.lose`."""
        self._end("transport", message)

    def _end(self, kind: str, message: str) -> None:
        if self._over:
            return
        usage = msgspec.structs.replace(self._usage, seconds=time.monotonic() - self._began)
        self._emit(Ended(usage=usage, kind=kind, message=message))
        self._over = True
        self._loop.live.discard(self)
        current = asyncio.current_task()
        for branch in self._branches.values():
            if branch.task is not None and branch.task is not current:
                branch.task.cancel()
        for task in self._tasks:
            if task is not current:
                task.cancel()

    def _emit(self, event: Event) -> None:
        if not self._over:
            with contextlib.suppress(Exception):  # one program's reader must not keep the others from theirs
                self._deliver(event)

    # -- one sequence

    async def _follow(self, branch: _Branch) -> None:
        await branch.born.wait()
        while (op := await branch.ops.get()) is not None:
            branch.current = op
            try:
                if branch.failed is not None and not isinstance(op, Close):
                    kind, message = branch.failed
                    raise RemoteFailure(kind, f"depends on an operation that failed: {message}")
                await self._carry_out(op, branch)
            except RemoteFailure as failure:
                self._fail(op, branch, failure.kind, failure.message)
            except Exception as error:  # noqa: BLE001 (the boundary of an operation: it fails alone)
                self._fail(op, branch, "generation", f"{type(error).__name__}: {error}")
            branch.current = None
            if isinstance(op, Close):
                break
        branch.over.set()

    async def _carry_out(self, op: AnyOp, branch: _Branch) -> None:
        match op:
            case Text(parts=parts):
                for part in parts:
                    branch.items.append(await self._known(part.op) if isinstance(part, Ref) else part)
            case Role(role=role, edge=edge):
                item = Edge(role, edge == "begin")
                branch.items.append(item)
                self._emit(Rendered(op=op.id, seq=op.seq, text=str(item)))
            case Gen():
                await self._generate(op, branch)
            case Select():
                await self._choose(op, branch)
            case Fork(into=into):
                for path in into:
                    child = self._branches[path]
                    child.items, child.base = list(branch.items), len(branch.items)
                    child.born.set()
                self._emit(Forked(op=op.id, seq=op.seq, into=into))
            case Join(branches=branches):
                added = await self._added(branches)
                branch.items += added
                self._emit(Joined(op=op.id, seq=op.seq, branches=branches, text="".join(map(str, added))))

    async def _known(self, op: str) -> str:
        value = await asyncio.shield(self._value(op))
        if isinstance(value, tuple):
            raise RemoteFailure(value[0], f"depends on an operation that failed: {value[1]}")
        return value

    async def _added(self, paths: Sequence[str]) -> list[Item]:
        """What branches added since their forks, once each is closed."""
        added: list[Item] = []
        for path in paths:
            branch = self._branches[path]
            await branch.over.wait()
            if branch.failed is not None:
                raise RemoteFailure(branch.failed[0], f"depends on an operation that failed: {branch.failed[1]}")
            added += branch.items[branch.base :]
        return added

    async def _generate(self, op: Gen, branch: _Branch) -> None:
        began = time.monotonic()
        self._emit(Started(op=op.id, seq=op.seq, var=op.var))

        def emit(text: str, logprobs: tuple[Logprob, ...]) -> None:
            self._emit(Token(op=op.id, seq=op.seq, text=text, var=op.var, logprobs=logprobs))

        text, meta = await self._remote.generate(tuple(branch.items), op, _seed(self._seed, op), emit)
        self._done(op, branch, text, meta, began)

    async def _choose(self, op: Select, branch: _Branch) -> None:
        began = time.monotonic()
        self._emit(Started(op=op.id, seq=op.seq, var=op.var))
        winner, meta = await self._remote.choose(tuple(branch.items), op)
        self._done(op, branch, op.choices[winner], meta, began)

    def _done(self, op: Gen | Select, branch: _Branch, text: str, meta: Meta, began: float) -> None:
        branch.items.append(text)
        self._value(op.id).set_result(text)
        usage = self._usage
        self._usage = msgspec.structs.replace(
            usage,
            calls=usage.calls + 1,
            prompt_tokens=usage.prompt_tokens + meta.prompt_tokens,
            cached_tokens=usage.cached_tokens + meta.cached_tokens,
            generated_tokens=usage.generated_tokens + (meta.completion_tokens if isinstance(op, Gen) else 0),
        )
        timed = msgspec.structs.replace(meta, seconds=time.monotonic() - began)
        self._emit(Finished(op=op.id, seq=op.seq, value=text, meta=timed, var=op.var))

    def _fail(self, op: AnyOp, branch: _Branch, kind: str, message: str) -> None:
        branch.failed = branch.failed or (kind, message)
        value = self._value(op.id)
        if not value.done():
            value.set_result((kind, message))
        if isinstance(op, Fork):
            for path in op.into:
                child = self._branches.get(path)
                if child is not None:
                    child.failed = child.failed or branch.failed
                    child.born.set()
        if not isinstance(op, Close):
            retryable = kind == "transport"
            self._emit(Failed(op=op.id, seq=op.seq, kind=kind, message=message, retryable=retryable))


def _seed(seed: int, op: Gen) -> int:
    """A generation's own seed, or one that follows from the program's and the operation's path (63 bits)."""
    if op.sampling.seed is not None:
        return op.sampling.seed
    digest = hashlib.blake2b(f"{seed}\0{op.id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
