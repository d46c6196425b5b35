"""The intermediate representation: operations of a program, and the events that answer them.

In: nothing. Out: frozen, tagged, schema-checked structs that travel in process, as msgpack between processes
and as JSON over HTTP, all the same types. They are data: no callables, no pickle.

A program is an append-only stream of operations over *sequences*. Names are paths in the program's call tree and
depend on nothing but the program: the root sequence is "0", operation k on sequence q is "q.k", and the
children of the fork "q.k" are the sequences "q.k.b0", "q.k.b1", ... Seeds, traces and errors use these paths.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from ramet.frontend.sampling import MAX_BIAS as MAX_BIAS
from ramet.frontend.sampling import MAX_LOGPROBS as MAX_LOGPROBS
from ramet.frontend.sampling import MAX_N as MAX_N
from ramet.frontend.sampling import MAX_STOP_CHARS as MAX_STOP_CHARS
from ramet.frontend.sampling import MAX_STOPS as MAX_STOPS
from ramet.frontend.sampling import Sampling as Sampling
from ramet.frontend.sampling import bounded, refuse

ROOT = "0"
SelectMethod = Literal["token_length_normalized", "greedy_token_selection", "unconditional_likelihood_normalized"]
SELECT_METHODS: tuple[str, ...] = (
    "token_length_normalized",
    "greedy_token_selection",
    "unconditional_likelihood_normalized",
)
FinishReason = Literal["stop", "length", "abort"]


class Regex(msgspec.Struct, frozen=True, tag="regex", forbid_unknown_fields=True):
    """The whole text matches `pattern`, as Python's `re.fullmatch` reads it."""

    pattern: str


class JsonSchema(msgspec.Struct, frozen=True, tag="json_schema", forbid_unknown_fields=True, omit_defaults=True):
    """The text is one JSON value that is valid under `schema` (JSON text, Draft 2020-12). `whitespace` "fixed" writes
    it as `json.dumps` does (", " and ": ", so that keys are known in advance), "flexible" leaves the model a space, or
    a newline and some indent, wherever JSON allows whitespace."""

    schema: str
    whitespace: Literal["fixed", "flexible"] = "fixed"


class Choices(msgspec.Struct, frozen=True, tag="choices", forbid_unknown_fields=True):
    """The text is one of `choices`."""

    choices: tuple[str, ...]


class Grammar(msgspec.Struct, frozen=True, tag="grammar", forbid_unknown_fields=True, omit_defaults=True):
    """The text is a sentence of a context-free grammar, in Lark's notation or in EBNF (`root ::= ...`)."""

    text: str
    syntax: Literal["lark", "ebnf"] = "lark"


class Structure(msgspec.Struct, frozen=True, tag="structure", forbid_unknown_fields=True):
    """Text with constrained parts; `spec` is the JSON text of a structural tag (XGrammar's format)."""

    spec: str


class Tool(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A function that the model may ask for. `parameters` is the JSON text of a schema of type object; a tool with an
    `input` takes text that matches it instead, and has no arguments (OpenAI's custom tools)."""

    name: str
    description: str = ""
    parameters: str = '{"type":"object","properties":{}}'
    input: Regex | Grammar | None = None


class Calls(msgspec.Struct, frozen=True, tag="calls", forbid_unknown_fields=True, omit_defaults=True):
    """The text may call `tools`, in the notation that the model's template has for it, with arguments that are valid
    under their schemas. `choice` is "auto" (text, calls or both), "required" (at least one call, no text before it) or
    "none" (text alone); `only` names the one tool that must be called. `parallel`: more than one call may be made."""

    tools: tuple[Tool, ...]
    choice: Literal["auto", "none", "required"] = "auto"
    only: str = ""
    parallel: bool = True


Constraint = Regex | JsonSchema | Choices | Grammar | Structure | Calls
Jump = Literal["canonical", "exact", "off"]
JUMPS: tuple[str, ...] = ("canonical", "exact", "off")


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


class Tools(Op, frozen=True, tag="tools"):
    """From here on the model knows `tools`. Before the first message they are told as its chat template tells them (or
    in a system message of our own wording, where it has no place for tools); later ones in a system message here."""

    tools: tuple[Tool, ...]


class Gen(Op, frozen=True, tag="gen"):
    """Sample until a stop, append, and define `var`.

    `constraint` is what the text must be. `jump` says what becomes of text that it leaves no choice about:
    "canonical" appends it without sampling, tokenised as the tokeniser does; "exact" gives the tokens that constrained
    sampling would give, checking them many at a time; "off" samples every token.
    """

    var: str
    sampling: Sampling = Sampling()
    constraint: Constraint | None = None
    jump: Jump = "canonical"


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
        bounded("start", self.start, 0, 1 << 31, "0 is the first token")
        bounded("top", self.top, 0, MAX_LOGPROBS, "0 gives the tokens' own logprobs alone")


class Fork(Op, frozen=True, tag="fork"):
    """Make the sequences `into`; each goes on from here and shares all KV of this one."""

    into: tuple[str, ...]


class Join(Op, frozen=True, tag="join"):
    """Append the exact tokens of what each branch added since its fork, in branch order, as each is closed."""

    branches: tuple[str, ...]


class Put(Op, frozen=True, tag="put"):
    """A value that the client computed: a tool's result, a Python expression. Appends nothing by itself.

    With `due` it is still being computed: what refers to it waits, and a second Put of this id brings the value. One
    that has `failed` says why there is none: what refers to it fails. `tokens` are those of the value, where they are
    known: it is not tokenised then (a value that was generated need not be the tokens that its text would be)."""

    var: str
    value: str
    due: bool = False
    failed: str = ""
    tokens: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if (bool(self.value), self.due, bool(self.failed)).count(True) > 1:
            refuse("due" if self.due else "failed", self.due or self.failed, "a Put has one of value, due, failed")


class Close(Op, frozen=True, tag="close"):
    """No further operation will come for this sequence: its private KV may go (once no Join waits for its text).

    `now` also stops it and every sequence forked below it: what is recorded or under way there fails with kind
    "aborted". It may follow an ordinary Close of the same sequence.
    """

    now: bool = False


AnyOp = Text | Tokens | Role | Tools | Gen | Select | Score | Fork | Join | Put | Close


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


class ToolCall(msgspec.Struct, frozen=True, omit_defaults=True):
    """A call that the model made: the tool's name, and its arguments as JSON text; `custom`: the tool takes text, and
    `arguments` is that text."""

    name: str
    arguments: str
    custom: bool = False


class Meta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How an operation went. Token counts are of the one call: `prompt_tokens` is the whole prefix that a client
    without programs would have sent, `cached_tokens` those of it that this call did not compute; `forced_tokens` those
    of the completion that were known without a decode step of their own. Of a Gen with `Calls`, `content` is the text
    beside the calls. The logprob of a token that was not sampled is nan.

    `ending` are the tokens that were generated behind the text and are no part of it: the end token, or those of a stop
    string (from the first one that is not in the text as a whole; the last `respelt` of `tokens` stand for what of it
    is). Their logprobs are nan where none were asked for.

    None where the backend does not tell: `computed_tokens` went through the model for this call, of them
    `recomputed_tokens` again, since their KV had been given up; `retractions` counts how often it made room for others;
    `first_token_seconds` count from its arrival, as `seconds` do; `memory_seconds` it waited for KV memory."""

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
    ending: tuple[Logprob, ...] = ()
    respelt: int = 0
    calls: tuple[ToolCall, ...] = ()
    content: str | None = None
    first_step: int = -1
    last_step: int = -1
    queued_seconds: float = 0.0
    seconds: float = 0.0
    computed_tokens: int | None = None
    recomputed_tokens: int | None = None
    retractions: int | None = None
    first_token_seconds: float | None = None
    memory_seconds: float | None = None


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
    """New text of a Gen: whole characters, each exactly once; never any that a stop string may still take back.
    `tokens` are the ids, and `logprobs` (where asked for) the logprobs, of the tokens whose text is out to its end with
    it."""

    op: str
    seq: str
    text: str
    var: str = ""
    logprobs: tuple[Logprob, ...] = ()
    tokens: tuple[int, ...] = ()


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """A Gen or Select has its value (for a Gen the concatenation of its Token texts), a Score its logprobs."""

    op: str
    seq: str
    value: str
    meta: Meta
    var: str = ""


class Forked(msgspec.Struct, frozen=True, tag="forked", omit_defaults=True):
    """A Fork was carried out, after `tokens` tokens where the backend counts them."""

    op: str
    seq: str
    into: tuple[str, ...]
    tokens: int | None = None


class Joined(msgspec.Struct, frozen=True, tag="joined", omit_defaults=True):
    """A Join was carried out; `text` is what it appended, `tokens` how many tokens that is where the backend counts
    them."""

    op: str
    seq: str
    branches: tuple[str, ...]
    text: str = ""
    tokens: int | None = None


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
