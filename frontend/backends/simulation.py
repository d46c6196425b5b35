"""One live program of the mock: sequences as plain strings.

In: operations, in the mock's thread. Out: events, in the order in which an engine would give them. An operation waits
while its sequence waits, while a value that it refers to is unknown, or (Join) while a branch is open.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ramet.frontend.backends.base import Deliver
from ramet.frontend.backends.constrained import broken
from ramet.frontend.backends.script import Pending, Script
from ramet.frontend.errors import FAILURES
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
    Join,
    Joined,
    Logprob,
    Meta,
    Put,
    Ref,
    Rendered,
    Role,
    Sampling,
    Select,
    Started,
    Text,
    Token,
    Tools,
    Usage,
)

WORDS = re.compile(r"\s*\S+|\s+")


@dataclass
class _Sequence:
    text: str = ""
    born: bool = True  # its fork was carried out
    base: int = 0  # characters before its fork
    closed: bool = False
    failed: tuple[str, str] | None = None  # kind and message of what it depends on


class Simulation:
    """Runs operations as far as they go; `over` is called when the program has ended."""

    def __init__(
        self,
        script: Script,
        deliver: Deliver,
        prompts: list[str],
        logprob: float,
        context_length: int,
        over: Callable[[], object],
    ) -> None:
        self._script = script
        self._deliver = deliver
        self._prompts = prompts
        self._logprob = logprob
        self._context_length = context_length
        self._over = over
        self._sequences = {ROOT: _Sequence()}
        self._waiting: list[AnyOp] = []  # in the order of arrival
        self._values: dict[str, str | tuple[str, str]] = {}  # op → its text, or what it failed with
        self._pending: dict[str, Gen] = {}
        self._ending = self._ended = False
        self._calls = self._prompt = self._generated = 0
        self._started = time.monotonic()

    def receive(self, ops: Sequence[AnyOp]) -> None:
        """Take operations."""
        for op in ops:
            if isinstance(op, Put):
                if not op.due:
                    self._values[op.id] = ("generation", op.failed) if op.failed else op.value
            elif isinstance(op, Close) and op.now:
                self._cut(op.seq)
            else:
                self._waiting.append(op)
                if isinstance(op, Fork):  # its children may get operations before it is carried out
                    self._sequences.update((path, _Sequence(born=False)) for path in op.into)
            self._advance()  # after each: what is done does not depend on how operations were grouped

    def end(self) -> None:
        """No more operations come."""
        self._ending = True
        self._advance()

    def cancel(self) -> None:
        """Fail what is under way, and end."""
        if self._ended:
            return
        for op in self._waiting:
            self._fail(op, "aborted", "the program was cancelled")
        self.stop(Ended(usage=self._usage(), kind="aborted", message="the program was cancelled"))

    def _cut(self, branch: str) -> None:
        """Fail what is recorded or under way on a sequence and on all below it."""
        paths = {path for path in self._sequences if path == branch or path.startswith(branch + ".")}
        for op in [op for op in self._waiting if op.seq in paths]:
            self._waiting.remove(op)
            self._pending.pop(op.id, None)
            self._fail(op, "aborted", "the branch was cancelled")
        for path in paths:
            self._sequences[path].closed = True

    def stop(self, ended: Ended) -> None:
        """The one terminal event."""
        if not self._ended:
            self._ended = True
            self._over()
            self._emit(ended)

    def release(self, var: str, text: str) -> bool:
        """Answer the oldest pending generation of `var`; False when there is none."""
        op = next((op for op in self._pending.values() if op.var == var), None)
        if op is None or self._ended:
            return False
        del self._pending[op.id]
        self._waiting.remove(op)
        self._generate(op, self._sequences[op.seq], text)
        self._advance()
        return True

    def _emit(self, event: Event) -> None:
        self._deliver(event)

    def _advance(self) -> None:
        """Carry out the earliest operation that can be, until none can."""
        index, blocked = 0, set[str]()
        while index < len(self._waiting) and not self._ended:
            op = self._waiting[index]
            if op.seq in blocked or not self._step(op, self._sequences[op.seq]):
                blocked.add(op.seq)
                index += 1
            else:
                del self._waiting[index]
                index, blocked = 0, set()
        if self._ending and not self._waiting:
            self.stop(Ended(usage=self._usage()))

    def _step(self, op: AnyOp, seq: _Sequence) -> bool:
        """Carry out an operation whose turn it is on its sequence; False when it must wait."""
        if op.id in self._pending or not seq.born:
            return False
        trouble = seq.failed or self._trouble(op)
        if trouble is not None and not isinstance(op, Close):
            self._fail(op, trouble[0], f"depends on an operation that failed: {trouble[1]}")
            return True
        if not self._ready(op):
            return False
        if isinstance(op, Gen | Select):
            return self._call(op, seq)
        self._carry_out(op, seq)
        return True

    def _trouble(self, op: AnyOp) -> tuple[str, str] | None:
        if isinstance(op, Text):
            found = [self._values.get(part.op) for part in op.parts if isinstance(part, Ref)]
            return next((value for value in found if isinstance(value, tuple)), None)
        if isinstance(op, Join):
            return next((f for path in op.branches if (f := self._sequences[path].failed) is not None), None)
        return None

    def _ready(self, op: AnyOp) -> bool:
        if isinstance(op, Text):
            return all(part.op in self._values for part in op.parts if isinstance(part, Ref))
        if isinstance(op, Join):
            return all(self._sequences[path].closed for path in op.branches)
        return True

    def _carry_out(self, op: AnyOp, seq: _Sequence) -> None:
        match op:
            case Text(parts=parts):
                seq.text += "".join(str(self._values[p.op]) if isinstance(p, Ref) else p for p in parts)
            case Role(role=role, edge=edge):
                text = f"<|{role}|>\n" if edge == "begin" else "<|end|>\n"
                seq.text += text
                self._emit(Rendered(op=op.id, seq=op.seq, text=text))
            case Tools():
                self._emit(Rendered(op=op.id, seq=op.seq, text=""))
            case Fork(into=into):
                for path in into:
                    child = self._sequences[path]
                    child.text, child.base, child.born = seq.text, len(seq.text), True
                self._emit(Forked(op=op.id, seq=op.seq, into=into))
            case Join(branches=branches):
                added = "".join(self._sequences[p].text[self._sequences[p].base :] for p in branches)
                seq.text += added
                self._emit(Joined(op=op.id, seq=op.seq, branches=branches, text=added))
            case Close():
                seq.closed = True

    def _call(self, op: Gen | Select, seq: _Sequence) -> bool:
        limit = op.sampling.max_tokens or 0 if isinstance(op, Gen) else 0
        need = len(WORDS.findall(seq.text)) + limit
        self._prompts.append(seq.text)
        self._emit(Started(op=op.id, seq=op.seq, var=op.var))
        if need > self._context_length:
            message = f"{need} words (prompt and max_tokens) do not fit the context of {self._context_length}"
            self._fail(op, "context", message)
            return True
        try:
            answer = self._script.answer(seq.text, op.var)
        except BaseException as error:  # noqa: BLE001 - whatever a test's callable raises fails this operation alone
            self._fail(op, _kind(error), getattr(error, "message", "") or f"{type(error).__name__}: {error}")
            return True
        if isinstance(op, Select):
            self._choose(op, seq, answer)
        elif isinstance(answer, Pending):
            self._pending[op.id] = op
            return False
        else:
            self._generate(op, seq, answer)
        return True

    def _choose(self, op: Select, seq: _Sequence, answer: str | Pending) -> None:
        winner = answer if answer in op.choices else op.choices[0]
        assert isinstance(winner, str)
        prompt = len(WORDS.findall(seq.text))
        seq.text += winner
        self._values[op.id] = winner
        self._calls, self._prompt = self._calls + 1, self._prompt + prompt
        scores = tuple(-0.1 if choice == winner else -2.0 for choice in op.choices)
        meta = Meta(prompt_tokens=prompt, scores=scores, choice_logprobs=tuple((score,) for score in scores))
        self._emit(Finished(op=op.id, seq=op.seq, value=winner, meta=meta, var=op.var))

    def _generate(self, op: Gen, seq: _Sequence, answer: str) -> None:
        words, reason, matched = _limited(answer, op.sampling)
        logprobs = tuple(Logprob(index, word, self._logprob) for index, word in enumerate(words))
        wanted = op.sampling.logprobs >= 0
        prompt, text = len(WORDS.findall(seq.text)), "".join(words)
        meta = Meta(
            finish_reason="length" if reason == "length" else "stop",
            matched=matched,
            prompt_tokens=prompt,
            completion_tokens=len(words),
            logprobs=logprobs if wanted else (),
            mean_logprob=self._logprob if words else None,
        )
        problem = broken(op.constraint, text, meta, patterns=True)
        if problem:
            self._fail(op, "generation", f"the mock's answer {text!r} for {op.var!r} {problem}")
            return
        for word, logprob in zip(words, logprobs, strict=True):
            self._emit(Token(op=op.id, seq=op.seq, text=word, var=op.var, logprobs=(logprob,) if wanted else ()))
        seq.text += text
        self._values[op.id] = text
        self._calls, self._prompt = self._calls + 1, self._prompt + prompt
        self._generated += len(words)
        self._emit(Finished(op=op.id, seq=op.seq, value=text, meta=meta, var=op.var))

    def _fail(self, op: AnyOp, kind: str, message: str) -> None:
        seq = self._sequences[op.seq]
        seq.failed = seq.failed or (kind, message)
        self._values[op.id] = (kind, message)
        if isinstance(op, Fork):
            for path in op.into:
                self._sequences[path].failed, self._sequences[path].born = seq.failed, True
        if not isinstance(op, Close):
            self._emit(Failed(op=op.id, seq=op.seq, kind=kind, message=message))

    def _usage(self) -> Usage:
        return Usage(
            calls=self._calls,
            prompt_tokens=self._prompt,
            generated_tokens=self._generated,
            seconds=time.monotonic() - self._started,
        )


def _limited(answer: str, sampling: Sampling) -> tuple[list[str], str, str | None]:
    """The words of the answer up to the first stop string or max_tokens; why it ended; the stop that did it."""
    found = [(at, stop) for stop in sampling.stop if (at := answer.find(stop)) >= 0]
    at, matched = min(found) if found else (len(answer), None)
    words = WORDS.findall(answer[:at])
    if sampling.max_tokens is not None and len(words) > sampling.max_tokens:
        return words[: sampling.max_tokens], "length", None
    return words, "stop", matched


def _kind(error: BaseException) -> str:
    return next((kind for kind, known in FAILURES.items() if type(error) is known), "generation")
