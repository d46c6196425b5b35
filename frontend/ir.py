"""The intermediate representation: operations of a program, and the events that answer them.

In: nothing. Out: frozen, tagged, schema-checked structs that travel in process, as msgpack between processes
and as JSON over HTTP, all the same types. They are data: no callables, no pickle.

A program is an append-only stream of operations over *sequences*. Names are paths in the program's call tree and
depend on nothing but the program: the root sequence is "0", operation k on sequence q is "q.k", and the
children of the fork "q.k" are the sequences "q.k.b0", "q.k.b1", ... Seeds, traces and errors use these paths.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from ramet.frontend.errors import ConstraintError

ROOT = "0"
MAX_STOPS, MAX_STOP_CHARS, MAX_BIAS, MAX_LOGPROBS, MAX_N = 16, 256, 300, 20, 128
SelectMethod = Literal["token_length_normalized", "greedy_token_selection", "unconditional_likelihood_normalized"]
SELECT_METHODS: tuple[str, ...] = (
    "token_length_normalized",
    "greedy_token_selection",
    "unconditional_likelihood_normalized",
)
FinishReason = Literal["stop", "length", "abort"]


class Sampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How to sample, validated once: every front end builds it, nothing checks it again.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1 and `min_p` 0 are off. `max_tokens` None means until a stop or
    the end of the context. `logprobs` k returns the sampled token's logprob and the k most likely (0: only the
    sampled token's; -1: none). Penalties are OpenAI's (frequency, presence: over generated tokens) and CTRL's
    (repetition, multiplicative: over all tokens of the sequence). Raises `ConstraintError`.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    logprobs: int = -1
    seed: int | None = None

    def __post_init__(self) -> None:
        _bounds("temperature", self.temperature, 0.0, 100.0, "0 is greedy, 1 is the model's own distribution")
        _bounds("top_p", self.top_p, 1e-6, 1.0, "1 keeps every token")
        _bounds("min_p", self.min_p, 0.0, 1.0, "0 keeps every token")
        _bounds("top_k", self.top_k, 0, (1 << 31) - 1, "0 keeps every token")
        _bounds("frequency_penalty", self.frequency_penalty, -2.0, 2.0, "0 is off")
        _bounds("presence_penalty", self.presence_penalty, -2.0, 2.0, "0 is off")
        _bounds("repetition_penalty", self.repetition_penalty, 0.01, 100.0, "1 is off")
        _bounds("min_tokens", self.min_tokens, 0, 1 << 31, "0 is off")
        _bounds("logprobs", self.logprobs, -1, MAX_LOGPROBS, "-1 is none, 0 the sampled token's, k the k most likely")
        if self.max_tokens is not None:
            _bounds("max_tokens", self.max_tokens, 1, 1 << 31, "leave it out to generate until a stop")
            if self.min_tokens > self.max_tokens:
                _refuse("min_tokens", self.min_tokens, f"must not exceed max_tokens={self.max_tokens}")
        if self.seed is not None:
            _bounds("seed", self.seed, -(1 << 63), (1 << 64) - 1, "any 64-bit integer")
        if len(self.stop) > MAX_STOPS:
            _refuse("stop", f"{len(self.stop)} strings", f"at most {MAX_STOPS}")
        for text in self.stop:
            if not text or len(text) > MAX_STOP_CHARS:
                _refuse("stop", text[:40], f"each stop has 1 to {MAX_STOP_CHARS} characters")
        if len(self.logit_bias) > MAX_BIAS:
            _refuse("logit_bias", f"{len(self.logit_bias)} entries", f"at most {MAX_BIAS}")
        for token, bias in self.logit_bias.items():
            _bounds(f"logit_bias[{token}]", bias, -100.0, 100.0, "-100 forbids a token")


def _bounds(field: str, value: float, low: float, high: float, remedy: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        _refuse(field, value, f"must be a finite number; {remedy}")
    if not low <= value <= high:
        _refuse(field, value, f"must be between {low} and {high}; {remedy}")


def _refuse(field: str, value: object, remedy: str) -> None:
    raise ConstraintError(f"{field}={value!r}: {remedy}")


class Ref(msgspec.Struct, frozen=True, tag="ref", omit_defaults=True):
    """The value of an earlier operation (a Gen, Select or Put), as its tokens: never re-tokenised."""

    op: str


class Op(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An operation. `id` is its path; `seq` the sequence that it acts on (for Put: the one whose program order it
    has)."""

    id: str
    seq: str


class Text(Op, frozen=True, tag="text"):
    """Append text. Special tokens in strings are text; adjacent constants are merged before they are tokenised."""

    parts: tuple[str | Ref, ...]


class Tokens(Op, frozen=True, tag="tokens"):
    """Append token ids as they are: for clients that tokenise by themselves. Ids are those of the backend's model."""

    ids: tuple[int, ...]


class Role(Op, frozen=True, tag="role"):
    """An edge of the chat template: the begin or the end of a message of `role`."""

    role: str
    edge: Literal["begin", "end"]


class Gen(Op, frozen=True, tag="gen"):
    """Sample until a stop, append, and define `var`."""

    var: str
    sampling: Sampling = Sampling()


class Select(Op, frozen=True, tag="select"):
    """Score `choices` (distinct, non-empty) in one forward pass, append the winner, and define `var`."""

    var: str
    choices: tuple[str, ...]
    method: SelectMethod = "token_length_normalized"


class Score(Op, frozen=True, tag="score"):
    """Logprobs of the tokens that the sequence has by now, from position `start` on, with the `top` most likely tokens
    of each place. Appends nothing; the answer is a Finished with an empty value, its logprobs in `meta`. The first
    token of a sequence follows nothing: its logprob is nan. Tokens before `start` may come from the cache."""

    var: str
    start: int = 0
    top: int = 0

    def __post_init__(self) -> None:
        _bounds("start", self.start, 0, 1 << 31, "0 is the first token")
        _bounds("top", self.top, 0, MAX_LOGPROBS, "0 gives the tokens' own logprobs alone")


class Fork(Op, frozen=True, tag="fork"):
    """Make the sequences `into`; each goes on from here and shares all KV of this one."""

    into: tuple[str, ...]


class Join(Op, frozen=True, tag="join"):
    """Append the exact tokens of what each branch added since its fork, in branch order, as each is closed."""

    branches: tuple[str, ...]


class Put(Op, frozen=True, tag="put"):
    """A value that the client computed: a tool's result, a Python expression. Appends nothing by itself."""

    var: str
    value: str


class Close(Op, frozen=True, tag="close"):
    """No further operation will come for this sequence: its private KV may go (once no Join waits for its text).

    `now` also stops it and every sequence forked below it: what is recorded or under way there fails with kind
    "aborted". It may follow an ordinary Close of the same sequence.
    """

    now: bool = False


AnyOp = Text | Tokens | Role | Gen | Select | Score | Fork | Join | Put | Close


class Header(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a program says of itself before its first operation. `name` is a label; `seed` fixes all sampling noise;
    `priority` (higher goes first) ranks it among others; `namespace` isolates its prefix cache."""

    name: str = ""
    seed: int = 0
    priority: int = 0
    namespace: str = ""


class Logprob(msgspec.Struct, frozen=True, array_like=True):
    """A sampled or scored token: its id, text, logprob (of the model's distribution at temperature 1, before any
    truncation), and the most likely alternatives as (id, text, logprob), best first."""

    token: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


class Meta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How an operation went. Token counts are of the one call: `prompt_tokens` is the whole prefix that a client
    without programs would have sent, `cached_tokens` those of it that this call did not compute."""

    finish_reason: FinishReason = "stop"
    matched: str | int | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    forced_tokens: int = 0
    completion_tokens: int = 0
    logprobs: tuple[Logprob, ...] = ()
    mean_logprob: float | None = None
    scores: tuple[float, ...] = ()
    choice_logprobs: tuple[tuple[float, ...], ...] = ()
    tokens: tuple[int, ...] = ()
    first_step: int = -1
    last_step: int = -1
    queued_seconds: float = 0.0
    seconds: float = 0.0


class Usage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Totals of a program. `prompt_tokens`, `cached_tokens` and `generated_tokens` are sums over its calls;
    `computed_tokens` are the tokens that went through the model for it; `steps` the batches it took part in."""

    calls: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    forced_tokens: int = 0
    generated_tokens: int = 0
    computed_tokens: int = 0
    steps: int = 0
    seconds: float = 0.0


class Started(msgspec.Struct, frozen=True, tag="started"):
    """The engine has, or is just computing, all that stands before a Gen or Select (of a Score, all that it scores).
    `prompt_tokens` is the whole prefix, `cached_tokens` what of it is not computed by this call. Comes before the
    call's first Token."""

    op: str
    seq: str
    var: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0


class Token(msgspec.Struct, frozen=True, tag="token"):
    """New text of a Gen: whole characters, each exactly once; never any that a stop string may still take back."""

    op: str
    seq: str
    text: str
    var: str = ""
    logprobs: tuple[Logprob, ...] = ()


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """A Gen or Select has its value (for a Gen the concatenation of its Token texts), a Score its logprobs."""

    op: str
    seq: str
    value: str
    meta: Meta
    var: str = ""


class Forked(msgspec.Struct, frozen=True, tag="forked"):
    """A Fork was carried out."""

    op: str
    seq: str
    into: tuple[str, ...]


class Joined(msgspec.Struct, frozen=True, tag="joined"):
    """A Join was carried out; `text` is what it appended."""

    op: str
    seq: str
    branches: tuple[str, ...]
    text: str = ""


class Rendered(msgspec.Struct, frozen=True, tag="rendered"):
    """What a Role appended: the chat template's text for this edge at this place."""

    op: str
    seq: str
    text: str


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """An operation could not be carried out. `kind` is a key of `errors.FAILURES`. Operations that depend on it
    fail too, each with its own event."""

    op: str
    seq: str
    kind: str
    message: str
    retryable: bool = False


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """The one terminal event of a program. `kind` is empty when it ended in the ordinary way."""

    usage: Usage
    kind: str = ""
    message: str = ""


Event = Started | Token | Finished | Forked | Joined | Rendered | Failed | Ended
