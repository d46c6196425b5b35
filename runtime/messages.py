"""What crosses between the world of text and the world of tokens; nothing else does.

In (client → engine): orders, each about one program. Out (engine → client): one `Step` per step that has news.
msgpack of schema-checked structs (R1). Operations here are those of `frontend.ir` with text turned into token
ids: constants are tokenised, role edges rendered, sampling validated. Program ids are made by the client (128 random
bits, R10); op and sequence names are the paths of `frontend.ir`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
from msgspec.structs import replace

from ramet.frontend.ir import Jump, Sampling, SelectMethod
from ramet.runtime.views import OrderSnapshot as OrderSnapshot
from ramet.runtime.views import Snapshot as Snapshot


class Op(msgspec.Struct, frozen=True, array_like=True):
    """An operation on token ids: `op` its path, `seq` the sequence that it acts on."""

    op: str
    seq: str


class Append(Op, frozen=True, array_like=True, tag="append"):
    """Append tokens; a string part is the op whose value's tokens go there (waits until it is known)."""

    parts: tuple[tuple[int, ...] | str, ...]


class Generate(Op, frozen=True, array_like=True, tag="generate"):
    """Sample until `eos` (unless ignored), a stop, max_tokens, or the end of `grammar`: a compiled constraint
    (`grammar.base.Compiled.program`; "" is none) whose texts have at most `longest` bytes (0: unknown)."""

    sampling: Sampling
    seed: int
    grammar: str = ""
    jump: Jump = "canonical"
    longest: int = 0


class Choose(Op, frozen=True, array_like=True, tag="choose"):
    """Score choices as a token trie, append the winner. `context` is the context of the unconditional scores."""

    choices: tuple[tuple[int, ...], ...]
    method: SelectMethod
    context: tuple[int, ...] = ()


class Score(Op, frozen=True, array_like=True, tag="score"):
    """Logprobs of the sequence's own tokens from position `start` on, with the `top` most likely ones of each place."""

    start: int = 0
    top: int = 0


class Fork(Op, frozen=True, array_like=True, tag="fork"):
    """Children go on from here."""

    into: tuple[str, ...]


class Join(Op, frozen=True, array_like=True, tag="join"):
    """Append what each branch added since its fork, once it is closed."""

    branches: tuple[str, ...]


class Put(Op, frozen=True, array_like=True, tag="put"):
    """Define the value of `op` for Refs; where it `failed`, say why there is none."""

    tokens: tuple[int, ...]
    failed: str = ""


class Close(Op, frozen=True, array_like=True, tag="close"):
    """The sequence gets no further operation; with `now` it and all below it stop at once."""

    now: bool = False


AnyOp = Append | Generate | Choose | Score | Fork | Join | Put | Close


class OrderOpen(msgspec.Struct, frozen=True, tag="open"):
    """A new program. `namespace` roots its prefix cache (R9); programs of one `name` do alike."""

    program: str
    namespace: str = ""
    priority: int = 0
    name: str = ""


class OrderOps(msgspec.Struct, frozen=True, tag="ops", omit_defaults=True):
    """The next operations of a program. `shared` are grammars of several of them, each once: (grammar, the ids of the
    Generates that are held to it, which stand in `ops` without it). `packed` makes one, `whole` reads it."""

    program: str
    ops: tuple[AnyOp, ...]
    shared: tuple[tuple[str, tuple[str, ...]], ...] = ()


def packed(program: str, ops: Sequence[AnyOp]) -> OrderOps:
    """An order in which no grammar stands twice: a schema may have 64 kB, and hold a thousand branches."""
    users: dict[str, list[str]] = {}
    for op in ops:
        if isinstance(op, Generate) and op.grammar:
            users.setdefault(op.grammar, []).append(op.op)
    shared = tuple((grammar, tuple(ids)) for grammar, ids in users.items() if len(ids) > 1)
    if not shared:
        return OrderOps(program, tuple(ops))
    bare = {op for _, ids in shared for op in ids}
    return OrderOps(
        program,
        tuple(replace(op, grammar="") if isinstance(op, Generate) and op.op in bare else op for op in ops),
        shared,
    )


def whole(order: OrderOps) -> Iterator[AnyOp]:
    """The operations of an order, with their grammars."""
    grammars = {op: grammar for grammar, ids in order.shared for op in ids}
    for op in order.ops:
        grammar = grammars.get(op.op) if isinstance(op, Generate) else None
        yield op if grammar is None else replace(op, grammar=grammar)


class OrderEnd(msgspec.Struct, frozen=True, tag="end"):
    """No more operations come for this program."""

    program: str


class OrderAbort(msgspec.Struct, frozen=True, tag="abort"):
    """Stop this program at once."""

    program: str


class OrderFlush(msgspec.Struct, frozen=True, tag="flush"):
    """Evict everything that no live program holds."""


class OrderStats(msgspec.Struct, frozen=True, tag="stats"):
    """Ask for `Stats`; the answer carries the same `token`."""

    token: int


class OrderWarm(msgspec.Struct, frozen=True, tag="warm"):
    """Constraints will come: make what all of them need, beside the loop."""


class OrderStop(msgspec.Struct, frozen=True, tag="stop"):
    """Abort everything and end the engine."""


Order = OrderOpen | OrderOps | OrderEnd | OrderAbort | OrderFlush | OrderStats | OrderSnapshot | OrderWarm | OrderStop


class News(msgspec.Struct, frozen=True, array_like=True):
    """Something that happened to an op of a program."""

    program: str
    op: str


class Began(News, frozen=True, array_like=True, tag="began"):
    """All that stands before the op is computed or being computed: `prompt` tokens, `cached` of them not by this
    call. Comes once, before anything that was sampled and before the end."""

    prompt: int
    cached: int = 0


Row = tuple[tuple[float, ...], tuple[tuple[tuple[int, float], ...], ...]]  # of a token: (logprob), (alternatives)


class Sampled(News, frozen=True, array_like=True, tag="sampled"):
    """New tokens of a Generate, with logprob and the top alternatives (id, logprob) where asked for."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    tops: tuple[tuple[tuple[int, float], ...], ...] = ()


class Scored(News, frozen=True, array_like=True, tag="scored"):
    """The next tokens that a Score asks about, their logprobs (nan for the first token of a sequence) and, where asked
    for, the most likely alternatives (id, logprob) of each place."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    tops: tuple[tuple[tuple[int, float], ...], ...] = ()


class Work(msgspec.Struct, frozen=True, array_like=True):
    """What a call cost beyond its counts: tokens that went through the model for it, and of those the ones that it had
    lost; how often it was retracted; seconds to its first token, and seconds for which it waited for KV memory."""

    computed: int
    recomputed: int
    retractions: int
    first: float
    starved: float


class Done(News, frozen=True, array_like=True, tag="done"):
    """A Generate or Score ended. A Generate's value is the first `keep` tokens that were sent, then `tail` (the kept
    part of a token that a stop string cut in two, tokenised again); a Score's is empty. `matched` is the stop string
    or token id, if any; `end` tells of that token, where logprobs were asked for."""

    reason: str
    keep: int
    tail: tuple[int, ...]
    matched: str | int | None
    prompt: int
    cached: int
    first_step: int
    last_step: int
    queued: float
    seconds: float
    forced: int = 0
    work: Work | None = None
    end: Row = ((), ())


class Chosen(News, frozen=True, array_like=True, tag="chosen"):
    """A Choose ended: the winner's index, each choice's score and the logprobs of its tokens."""

    winner: int
    scores: tuple[float, ...]
    logprobs: tuple[tuple[float, ...], ...]
    prompt: int
    cached: int
    first_step: int
    last_step: int
    queued: float
    seconds: float
    work: Work | None = None


class Branched(News, frozen=True, array_like=True, tag="branched"):
    """A Fork was carried out, after `known` tokens."""

    known: int


class Merged(News, frozen=True, array_like=True, tag="merged"):
    """A Join was carried out; `tokens` were appended."""

    tokens: tuple[int, ...]


class Failure(News, frozen=True, array_like=True, tag="failure"):
    """An op failed; `kind` is a key of `frontend.errors.FAILURES`."""

    kind: str
    message: str


class Over(News, frozen=True, array_like=True, tag="over"):
    """The program's one terminal event (its `op` is ""). `kind` is empty when it ended in the ordinary way."""

    kind: str
    message: str
    calls: int
    prompt: int
    cached: int
    forced: int
    generated: int
    computed: int
    steps: int
    seconds: float


AnyNews = Began | Sampled | Scored | Done | Chosen | Branched | Merged | Failure | Over


class Stats(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Gauges and counters of the engine. KV figures are in tokens: total = free + cached (in the tree, unlocked) +
    used. `checks`: of the invariants, `broken`: those that found one broken."""

    token: int = 0
    kv_total: int = 0
    kv_free: int = 0
    kv_cached: int = 0
    kv_used: int = 0
    programs: int = 0
    running: int = 0
    waiting: int = 0
    steps: int = 0
    computed_tokens: int = 0
    generated_tokens: int = 0
    evicted_tokens: int = 0
    retractions: int = 0
    step_seconds: float = 0.0
    checks: int = 0
    broken: int = 0
    model: str = ""
    context_length: int = 0


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The engine is up: what it runs, how many KV slots and tokens of context it has, and whose kernels compute."""

    model: str
    dtype: str
    context: int
    kv_tokens: int
    threads: int
    load_seconds: float
    kernels: str = ""


class Broken(msgspec.Struct, frozen=True, tag="broken"):
    """The engine could not start, or its loop ended by an error: `error` is a class name of `frontend.errors`."""

    error: str
    message: str


class Step(msgspec.Struct, frozen=True, omit_defaults=True, tag="step"):
    """The news of one step, in order; `stats` and `snapshots` where asked for. `batch` is (tokens, sequences) of the
    forward pass whose results these are."""

    step: int
    news: tuple[AnyNews, ...] = ()
    stats: tuple[Stats, ...] = ()
    batch: tuple[int, int] = (0, 0)
    snapshots: tuple[Snapshot, ...] = ()


Report = Ready | Broken | Step
