"""One request in the server's own terms, whichever protocol brought it, and what answers it.

In: a protocol module (`generate`, `completions`, `chat`, ...) parses a body into a `Call`. Out: `Service.stream` gives
`Piece`s, `Service.complete` an `Answer`; the protocol module writes them in its own shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ramet.frontend import ir


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as the guard found out. `namespace` isolates the prefix cache and the labels; `label` is the client's
    request id (or one made for it), a label only: internal ids are the server's own."""

    namespace: str = ""
    label: str = ""
    admin: bool = False
    deadline: float | None = None  # of the loop's clock, in seconds; None: none


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat; `content` is text."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Chat:
    """Messages for the model's chat template. `continue_final`: the last message is left open and goes on; else an
    assistant message is begun, unless `begin_reply` is False, with `opening`, which is no part of the answer. The model
    is told of `tools` in front of the first message."""

    messages: tuple[Message, ...]
    continue_final: bool = False
    begin_reply: bool = True
    opening: str = ""
    tools: tuple[ir.Tool, ...] = ()


Prompt = str | tuple[int, ...] | Chat


@dataclass(frozen=True, slots=True)
class Scoring:
    """Logprobs of the prompt's own tokens from position `start` (0 is the first, which has none) with the `top` most
    likely tokens of each place."""

    start: int = 0
    top: int = 0


@dataclass(frozen=True, slots=True)
class Call:
    """`prompts` times `n` completions. `generate` False computes (and caches, and scores) the prompts only.

    A prompt's completions share everything computed for it: they are the branches of one fork. `sampling.seed` None
    draws a fresh seed, and equal prompts differ: `apart` is set with it, so that each prompt has noise of its own.
    `salt` is added to the caller's cache namespace. `timeout` in seconds. Every completion is held to `constraint`,
    which the client asked for in `field` of its request; `places` are those of the tools that can be called. `limit` is
    the client's name of `sampling.max_tokens`.
    """

    prompts: tuple[Prompt, ...]
    sampling: ir.Sampling
    n: int = 1
    generate: bool = True
    scoring: Scoring | None = None
    salt: str = ""
    priority: int = 0
    timeout: float | None = None
    apart: bool = False
    constraint: ir.Constraint | None = None
    jump: ir.Jump = "canonical"
    field: str = ""
    places: tuple[str, ...] = ()
    limit: str = "max_tokens"


@dataclass(frozen=True, slots=True)
class Begun:
    """A prompt is in the engine. `prompt` its index in the call, `tokens` its ids (only filled when scored or asked
    for), `scores` one `ir.Logprob` per token from `Scoring.start` on (the first token of all has logprob nan)."""

    prompt: int
    prompt_tokens: int
    cached_tokens: int
    scores: tuple[ir.Logprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """New text of completion `choice` (0..n-1) of prompt `prompt`; `meta` closes it (then `text` is what was left).
    `tokens` are the ids of the tokens whose text ends in it."""

    prompt: int
    choice: int
    text: str
    logprobs: tuple[ir.Logprob, ...] = ()
    meta: ir.Meta | None = None
    tokens: tuple[int, ...] = ()


Outs = Sequence[Begun | Piece]  # of one call, what arrived together; of each completion one piece at most


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole completion: its text and how it went."""

    text: str
    meta: ir.Meta


@dataclass(frozen=True, slots=True)
class Answered:
    """One prompt's completions, in order of choice."""

    begun: Begun
    completions: tuple[Completion, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """The whole of a `Call`, prompt by prompt."""

    prompts: tuple[Answered, ...]
    queued_seconds: float = 0.0
    seconds: float = 0.0
    notes: tuple[str, ...] = field(default=())

    @property
    def prompt_tokens(self) -> int:
        """Sum over prompts, each counted once."""
        return sum(p.begun.prompt_tokens for p in self.prompts)

    @property
    def cached_tokens(self) -> int:
        """Of these, found in the prefix cache."""
        return sum(p.begun.cached_tokens for p in self.prompts)

    @property
    def completion_tokens(self) -> int:
        """Sum over completions."""
        return sum(c.meta.completion_tokens for p in self.prompts for c in p.completions)

    @property
    def forced_tokens(self) -> int:
        """Of these, known without a decode step of their own."""
        return sum(c.meta.forced_tokens for p in self.prompts for c in p.completions)
