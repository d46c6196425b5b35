"""A `Call` as programs, and their events as what the protocols write.

In: prompts and sampling; later the events of these programs. Out: operations of `frontend.ir`, one program per prompt;
later `Begun` and `Piece`s.
"""

from __future__ import annotations

import hashlib
import random
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from ramet.frontend import errors, ir
from ramet.runtime import messages as m
from ramet.runtime.client import EngineClient
from ramet.runtime.lower import Lowering
from ramet.runtime.server import failures
from ramet.runtime.server.bridge import EngineLost, Item
from ramet.runtime.server.call import Begun, Call, Caller, Chat, Completion, Piece, Prompt
from ramet.runtime.server.constraints import refused
from ramet.runtime.server.failures import Failure

CHARACTERS = 16  # of a prompt, for each token of context: more is refused before it is tokenised (R12)
END = 1 << 30  # a position behind every prompt


@dataclass(frozen=True, slots=True)
class Layout:
    """One prompt's program. `score` is the op of its Score or ""; `choices` the ops of its Gens, in order; `seq` the
    sequence whose length is the prompt's, once all is lowered."""

    ops: tuple[ir.AnyOp, ...]
    score: str
    choices: tuple[str, ...]
    seq: str


def prompt_ops(prompt: Prompt) -> list[ir.AnyOp]:
    """Operations that append a prompt to the root sequence."""
    ops: list[ir.AnyOp] = []

    def here() -> str:
        return f"{ir.ROOT}.{len(ops)}"

    def message(role: str, content: str, *, close: bool) -> None:
        ops.append(ir.Role(id=here(), seq=ir.ROOT, role=role, edge="begin"))
        ops.append(ir.Text(id=here(), seq=ir.ROOT, parts=(content,)))
        if close:
            ops.append(ir.Role(id=here(), seq=ir.ROOT, role=role, edge="end"))

    if isinstance(prompt, str):
        ops.append(ir.Text(id=here(), seq=ir.ROOT, parts=(prompt,)))
    elif isinstance(prompt, Chat):
        if prompt.tools:
            ops.append(ir.Tools(id=here(), seq=ir.ROOT, tools=prompt.tools))
        last = len(prompt.messages) - 1
        for n, each in enumerate(prompt.messages):
            message(each.role, each.content, close=n < last or not prompt.continue_final)
        if prompt.begin_reply and not prompt.continue_final:
            ops.append(ir.Role(id=here(), seq=ir.ROOT, role="assistant", edge="begin"))
            if prompt.opening:
                ops.append(ir.Text(id=here(), seq=ir.ROOT, parts=(prompt.opening,)))
    else:
        ops.append(ir.Tokens(id=here(), seq=ir.ROOT, ids=tuple(prompt)))
    return ops


def layout(prompt: Prompt, call: Call, place: int = 0) -> Layout:
    """The whole program of a call's prompt number `place`: the prompt, its Score, then a Gen or, for several choices, a
    Fork and a Gen on each child."""
    ops = prompt_ops(prompt)
    sampling = call.sampling
    if call.apart and sampling.seed is not None:
        sampling = msgspec.structs.replace(sampling, seed=sampling.seed + place)

    def gen(at: str, seq: str) -> ir.Gen:
        return ir.Gen(id=at, seq=seq, var="choice", sampling=sampling, constraint=call.constraint, jump=call.jump)

    score = ""
    if call.scoring is not None or not call.generate:
        score = f"{ir.ROOT}.{len(ops)}"
        start, top = (END, 0) if call.scoring is None else (call.scoring.start, call.scoring.top)
        ops.append(ir.Score(id=score, seq=ir.ROOT, var="prompt", start=start, top=top))
    if not call.generate:
        return Layout(tuple(ops), score, (), ir.ROOT)
    at = f"{ir.ROOT}.{len(ops)}"
    if call.n == 1:
        ops.append(gen(at, ir.ROOT))
        return Layout(tuple(ops), score, (at,), ir.ROOT)
    branches = tuple(f"{at}.b{i}" for i in range(call.n))
    ops.append(ir.Fork(id=at, seq=ir.ROOT, into=branches))
    gens = tuple(f"{branch}.0" for branch in branches)
    ops += [gen(name, branch) for name, branch in zip(gens, branches, strict=True)]
    return Layout(tuple(ops), score, gens, branches[0])


def compiled(call: Call, client: EngineClient, *, since: float | None = None) -> tuple[str, ...]:
    """Compile the constraint of a call, so that lowering finds it compiled. Sentences about what the text is held to
    less strictly than the constraint says; `since` is when the request came (of the monotonic clock). Raises `Failure`
    400, 503."""
    constraint = call.constraint
    if isinstance(constraint, ir.Calls):
        constraint = client.template.tool_format.structure(constraint)
    if constraint is None or not call.generate:
        return ()
    try:
        return client.compiler.compile(constraint, since).notes
    except errors.ConstraintError as error:
        raise refused(error, call.field, call.places) from None
    except (errors.EngineError, errors.OverloadedError) as error:
        raise failures.unavailable(str(error), 1.0) from None


def check_size(prompt: Prompt, context: int) -> None:
    """`Failure` 400 for a text that cannot fit `context` tokens whatever its tokens are: it is not even tokenised."""
    texts = [message.content for message in prompt.messages] if isinstance(prompt, Chat) else [prompt]
    if isinstance(prompt, Chat):
        texts += [tool.name + tool.description + tool.parameters for tool in prompt.tools]
    size = sum(map(len, texts))
    if isinstance(prompt, tuple):
        if size > context:
            raise failures.too_long(context, size, None)
    elif size > CHARACTERS * context:
        raise Failure(
            400,
            f"This model's maximum context length is {context} tokens. However, your prompt has {size} characters, "
            f"more than {CHARACTERS} for each of them. Please reduce the length of the prompt.",
            code="context_length_exceeded",
        )


def lowered(prompt: Prompt, lowering: Lowering) -> tuple[int, tuple[int, ...]]:
    """A prompt's length in tokens, and the ids, as `lowering` (a fresh one) makes them. Raises `ConstraintError`."""
    ops = prompt_ops(prompt)
    at = f"{ir.ROOT}.{len(ops)}"
    flush = ir.Fork(id=at, seq=ir.ROOT, into=(f"{at}.b0",))  # so that no text is held back
    appends = [op for op in lowering.lower([*ops, flush])[0] if isinstance(op, m.Append)]
    ids = tuple(token for op in appends for part in op.parts if not isinstance(part, str) for token in part)
    return lowering.length(ir.ROOT), ids


def seeded(call: Call, draw: Callable[[], int]) -> Call:
    """The call with a seed of its own, from `draw`, when it brought none: running it again is the same call."""
    if call.sampling.seed is not None:
        return call
    return replace(call, sampling=msgspec.structs.replace(call.sampling, seed=draw()), apart=True)


def seeds(seed: int) -> Callable[[], int]:
    """Seeds for calls without one: unforeseeable ones, or, with `seed` of at least 0, the same ones in every server of
    that seed, in the order in which calls arrive."""
    if seed < 0:
        return lambda: secrets.randbits(63)
    order = random.Random(seed)
    return lambda: order.getrandbits(63)


def namespace(caller: Caller, salt: str) -> str:
    """The prefix cache's namespace: the caller's, or one of its own for each salt."""
    if not salt:
        return caller.namespace
    salted = f"{caller.namespace}\0{salt}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(salted, digest_size=16).hexdigest()


def settled(begun: Begun, completions: Sequence[Completion]) -> Begun:
    """What a prompt took from the cache, known to the end: of its completions the one that computed it says so."""
    if not completions:
        return begun
    cached = min(completion.meta.cached_tokens for completion in completions)
    return replace(begun, cached_tokens=cached)


@dataclass(slots=True)
class _Choice:
    """What was given out of one completion, and what is held for the end of the batch."""

    prompt: int
    index: int
    sent: int = 0  # characters
    logged: int = 0  # logprobs
    text: list[str] = field(default_factory=list)
    logprobs: list[ir.Logprob] = field(default_factory=list)
    counted: int = 0  # tokens
    tokens: list[int] = field(default_factory=list)
    meta: ir.Meta | None = None


class Reading:
    """Turns the events of a call's programs into `Begun` and `Piece`s. `lengths` are the prompts' tokens. Text of one
    choice that arrived together becomes one piece. `ended` gets the programs that are over, `over` says that all are;
    `failure` is what ended the call early, to be raised when what `read` returned was given out."""

    def __init__(self, layouts: Sequence[Layout], lengths: Sequence[int], ended: set[int]) -> None:
        self.over = False
        self.failure: Failure | None = None
        self.ended = ended
        self._layouts = layouts
        self._lengths = lengths
        self._begun: set[int] = set()
        self._choices = {(n, op): _Choice(n, i) for n, each in enumerate(layouts) for i, op in enumerate(each.choices)}

    def read(self, items: Sequence[Item]) -> list[Begun | Piece]:
        """What these events mean, in order."""
        begun: list[Begun | Piece] = []
        held: dict[tuple[int, str], _Choice] = {}
        for prompt, event in items:
            if self.failure is not None:
                break
            if isinstance(event, ir.Token):
                choice = held[prompt, event.op] = self._choices[prompt, event.op]
                choice.text.append(event.text)
                choice.logprobs += event.logprobs
                choice.tokens += event.tokens
            elif isinstance(event, ir.Finished) and event.op != self._layouts[prompt].score:
                choice = held[prompt, event.op] = self._choices[prompt, event.op]
                self._close(choice, event)
            else:
                begun += self._other(prompt, event)
        return begun + [_piece(choice) for choice in held.values()]

    @property
    def unfinished(self) -> int:
        """Tokens that were given out of completions whose end is not known: of a call that was left."""
        return sum(choice.counted for choice in self._choices.values() if choice.meta is None)

    def raise_failure(self) -> None:
        """Raise what ended the call early, if anything did."""
        if self.failure is not None:
            raise self.failure

    def _close(self, choice: _Choice, event: ir.Finished) -> None:
        known = choice.sent + sum(map(len, choice.text))
        choice.text.append(event.value[known:])
        logged = choice.logged + len(choice.logprobs)
        choice.logprobs += event.meta.logprobs[logged:]
        choice.tokens += event.meta.tokens[choice.counted + len(choice.tokens) :]
        choice.meta = event.meta

    def _other(self, prompt: int, event: ir.Event) -> list[Begun | Piece]:
        if isinstance(event, ir.Started) and not self._layouts[prompt].score:
            if prompt not in self._begun:
                self._begun.add(prompt)
                return [Begun(prompt, self._lengths[prompt], event.cached_tokens)]
        elif isinstance(event, ir.Finished):
            return [Begun(prompt, self._lengths[prompt], event.meta.cached_tokens, event.meta.logprobs)]
        elif isinstance(event, ir.Failed):
            self.failure = failure_of(event.kind, event.message)
        elif isinstance(event, ir.Ended):
            self.ended.add(prompt)
            self.over = len(self.ended) == len(self._layouts)
            if event.kind:
                self.failure = failure_of(event.kind, event.message)
        return []


def _piece(choice: _Choice) -> Piece:
    text, logprobs, tokens = "".join(choice.text), tuple(choice.logprobs), tuple(choice.tokens)
    choice.sent += len(text)
    choice.logged += len(logprobs)
    choice.counted += len(tokens)
    choice.text.clear()
    choice.logprobs.clear()
    choice.tokens.clear()
    return Piece(choice.prompt, choice.index, text, logprobs, choice.meta, tokens)


def failure_of(kind: str, message: str) -> Failure:
    """The failure of a `Failed` or `Ended` event."""
    return EngineLost(message) if kind == "transport" else failures.of_event(kind, message)
