"""EXPLAIN as data: what a run or a plan costs, operation by operation.

In: nothing. Out: frozen structs; `msgspec.json.encode` of an `Explanation` is the documented JSON. Fields are only ever
added; `version` changes when the meaning of one does. None is unknown: the backend did not tell, or it did not happen
yet. All times are seconds since the run began, on the clock of the process that ran the program.
"""

from __future__ import annotations

from typing import Literal

import msgspec

VERSION = 1
Need = Literal["order", "fork", "join", "value", "host", "read", "assumed"]
Phase = Literal["wait", "python", "send", "queue", "memory", "prefill", "decode", "busy", "host"]


class Cause(msgspec.Struct, frozen=True):
    """What an operation needed. `kind`: the one before on its branch ("order"), the fork that made the branch ("fork"),
    the end of a branch that it joins ("join"), a value that its text has ("value"), or a host function's arguments
    ("host"), a value that Python read before it recorded the operation ("read"). "assumed": nobody said so, but Python
    recorded it only after that had ended."""

    kind: Need
    op: str


class Segment(msgspec.Struct, frozen=True, omit_defaults=True):
    """A stretch of time of an operation. "wait": for the operation `on`; "python": until Python recorded it; "send": on
    its way to the engine, until its step loop took it in; "queue": in the engine, behind others; "memory": there, for
    want of KV memory; "prefill": until the first token (of a choice: until it was scored); "decode": the tokens after
    it; "busy": in a backend that does not tell more; "host": a function of the program runs."""

    phase: Phase
    begin: float
    end: float
    on: str = ""

    @property
    def seconds(self) -> float:
        """How long."""
        return self.end - self.begin


class Guess(msgspec.Struct, frozen=True):
    """What was expected of an operation, in tokens and decode steps: of the whole prompt, of that what other calls of
    the run have computed, of what is generated; `begin` and `end` are the steps from and to which it decodes."""

    prompt: float
    shared: float
    generated: float
    begin: float
    end: float


class Op(msgspec.Struct, frozen=True, kw_only=True):
    """One operation. `seq` is its branch, `kind` that of `ir` ("put" is a host call), `text` the beginning of its text
    or value, `status` one of recorded, running, done, failed, planned.

    Tokens: `prompt` is the whole prefix, `cached` those of it that this call did not compute, `generated` its own, of
    them `forced` without a decode step each; `computed` went through the model for it, of them `recomputed` again.
    `steps` are the decode steps that its tokens need one after the other, `first_step` to `last_step` the engine's
    steps from its first to its last part in a batch. `queued`, `memory`, `first_token` and `seconds` count from its
    arrival in the engine (where that is not known: from when it was sent); `began` and `ended` are on the run's clock.
    """

    id: str
    seq: str
    kind: str
    label: str
    var: str = ""
    where: str = ""
    text: str = ""
    status: str = "done"
    error: str = ""
    finish: str = ""
    causes: tuple[Cause, ...] = ()
    segments: tuple[Segment, ...] = ()
    prompt: int | None = None
    cached: int | None = None
    forced: int | None = None
    generated: int | None = None
    computed: int | None = None
    recomputed: int | None = None
    retractions: int | None = None
    steps: int | None = None
    first_step: int | None = None
    last_step: int | None = None
    began: float | None = None
    ended: float | None = None
    queued: float | None = None
    memory: float | None = None
    first_token: float | None = None
    seconds: float | None = None
    critical: bool = False
    guess: Guess | None = None


class Branch(msgspec.Struct, frozen=True):
    """One sequence. `title` is its item; `shared` is the length of what it has from its parent, `length` its own whole
    length, in the unit of the Explanation; `pieces` are [begin, end, op, kind] of what its calls computed or made."""

    seq: str
    parent: str
    title: str
    shared: float | None
    length: float | None
    pieces: tuple[tuple[float, float, str, str], ...] = ()


class Share(msgspec.Struct, frozen=True):
    """Seconds of one phase: on the critical path (these add up to the whole time), and over all operations."""

    phase: Phase
    path: float
    sum: float


class Totals(msgspec.Struct, frozen=True):
    """Of the whole run. `distinct` are the tokens that its branches consist of, what a fork shares counted once;
    `computed` those that went through the model. `steps` are the batches that it took part in, `bound` the decode
    steps of the longest chain of operations that need each other: without speculation no engine needs fewer."""

    calls: int
    prompt: int | None
    cached: int | None
    forced: int | None
    generated: int | None
    computed: int | None
    recomputed: int | None
    retractions: int | None
    distinct: int | None
    steps: int | None
    bound: int | None
    hosts: int
    failed: int
    seconds: float | None


class Overall(msgspec.Struct, frozen=True):
    """What was expected of the run (`estimate.Estimate`), or why nothing is known (`trouble`)."""

    calls: float = 0
    prompt: int = 0
    shared: int = 0
    generated: int = 0
    generated_max: int | None = None
    peak_kv: int = 0
    critical_path: int = 0
    width: int = 0
    learned: int = 0
    complete: bool = True
    trouble: str = ""


class Explanation(msgspec.Struct, frozen=True):
    """A run or a plan. `state` is planned, running, done, failed or cancelled; `critical` the operations of the
    critical path, in order; `python` what the body did meanwhile ("python", or "wait" for an operation); `unit` what
    lengths of branches count: "tokens", or "characters" where the backend does not count tokens at forks."""

    name: str
    state: str
    ops: tuple[Op, ...]
    branches: tuple[Branch, ...]
    critical: tuple[str, ...]
    totals: Totals
    python: tuple[Segment, ...] = ()
    shares: tuple[Share, ...] = ()
    estimate: Overall | None = None
    seed: int | None = None
    model: str = ""
    error: str = ""
    unit: str = "tokens"
    notes: tuple[str, ...] = ()
    version: int = VERSION

    def json(self) -> str:
        """It as JSON: the fields of these structs, by name."""
        return msgspec.json.encode(self).decode()

    def text(self, width: int = 100) -> str:
        """It as plain text, at most `width` columns wide."""
        from ramet.frontend.explain_text import plain

        return plain(self, width)

    def html(self) -> str:
        """It as one self-contained page; every text is escaped."""
        from ramet.frontend.explain_page import page

        return page(self)

    def __str__(self) -> str:
        return self.text()
