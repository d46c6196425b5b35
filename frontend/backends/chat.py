"""Chat completions as a `Remote`: the messages so far in, one assistant turn out.

In: a sequence of texts and edges of messages. Out: one streamed request per generation; for a choice, one request of
one token among the choices' own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from ramet.frontend.backends.constrained import (
    Kind,
    broken,
    chat_fields,
    kind_of,
    named,
    of_objects,
    refuse_lark,
    refuse_promises,
)
from ramet.frontend.backends.http import Http, RemoteFailure
from ramet.frontend.backends.remote import Emit, Item, Shape
from ramet.frontend.errors import ConstraintError
from ramet.frontend.ir import (
    MAX_BIAS,
    AnyOp,
    FinishReason,
    Gen,
    JsonSchema,
    Logprob,
    Meta,
    Role,
    Sampling,
    Select,
)

PLAIN = ("top_p", "frequency_penalty", "presence_penalty")
EXTENDED = ("top_k", "min_p", "repetition_penalty", "min_tokens", "stop_token_ids", "ignore_eos")
ROLES = ("system", "developer", "user", "assistant")
MOST_STOPS = 4  # that OpenAI itself takes


class ChatRemote:
    """See `Remote`. `extended`: the server understands fields beyond OpenAI's. `home`: it is OpenAI's own. `kind`:
    whose it is; None is asked of the server once a constraint depends on it."""

    def __init__(self, http: Http, model: str, *, extended: bool, home: bool, kind: Kind | None = None) -> None:
        self._http = http
        self._model = model
        self._extended = extended
        self._home = home
        self._kind = kind
        self._token_ids: dict[str, tuple[int, ...]] = {}

    # -- before any request

    def check(self, op: AnyOp, shape: Shape) -> None:
        """See `Remote.check`."""
        if isinstance(op, Role):
            if op.role not in ROLES and not self._extended:
                raise ConstraintError(f"role={op.role!r}: chat completions here take {', '.join(ROLES)}")
        elif isinstance(op, Gen | Select):
            self._check_place(op, shape)
            if isinstance(op, Gen):
                self._check_sampling(op.sampling)
                self._check_constraint(op)
            else:
                self._check_choices(op)

    def _check_place(self, op: Gen | Select, shape: Shape) -> None:
        what = type(op).__name__.lower()
        if shape.loose:
            raise ConstraintError(
                f"{what}: chat completions take messages, and text stands outside of them; put it into s.system(...), "
                "s.user(...) or s.assistant(...)"
            )
        if shape.role != "assistant":
            where = f"inside a message of {shape.role!r}" if shape.role else "outside of a message"
            raise ConstraintError(
                f"{what} {where}: chat completions write messages of the assistant; use s.reply(...) or "
                "s.assistant(gen(...))"
            )
        if shape.messages < 2:
            raise ConstraintError(f"{what}: there is no message to answer yet; begin with s.user(...)")
        if shape.filled and not self._extended:
            raise ConstraintError(
                f"{what} after text in the same assistant turn: this server does not say that it continues a message "
                "(continue_final_message); end the turn first, or give extended=True if it does"
            )

    def _check_sampling(self, sampling: Sampling) -> None:
        default = Sampling()
        for name in EXTENDED:
            value = getattr(sampling, name)
            if value != getattr(default, name) and not self._extended:
                raise ConstraintError(
                    f"{name}={value!r}: chat completions here cannot enforce it; leave it out, or give extended=True "
                    "if the server can"
                )
        if self._home and len(sampling.stop) > MOST_STOPS:
            raise ConstraintError(f"stop: {len(sampling.stop)} strings; OpenAI takes at most {MOST_STOPS}")

    def _check_constraint(self, op: Gen) -> None:
        refuse_promises(op)
        if op.constraint is None:
            return
        if not isinstance(op.constraint, JsonSchema):
            if not self._extended:
                raise ConstraintError(
                    f"{named(op.constraint)}: chat completions here cannot enforce it; use a json_schema, or a type "
                    "that is written as JSON, or give extended=True if the server can"
                )
        elif self._home and not of_objects(op.constraint):
            raise ConstraintError(
                f"{named(op.constraint)}: OpenAI takes schemas of objects alone; make the value a field of one"
            )

    def _check_choices(self, op: Select) -> None:
        if not self._extended:
            raise ConstraintError(
                "select: this server neither scores nor tokenises texts, so it cannot be held to the choices; use gen "
                "and parse it, or run on ramet.Engine or ramet.Endpoint"
            )
        if op.method == "unconditional_likelihood_normalized":
            raise ConstraintError(f"method={op.method!r}: chat completions have no likelihood without the prompt")
        if not 0 < len(op.choices) <= MAX_BIAS or len(set(op.choices)) != len(op.choices) or not all(op.choices):
            raise ConstraintError(f"choices: 1 to {MAX_BIAS}, distinct and non-empty")

    # -- requests

    async def generate(self, items: Sequence[Item], op: Gen, seed: int, emit: Emit) -> tuple[str, Meta]:
        """See `Remote.generate`."""
        body = self._body(items, op.sampling) | {"seed": seed} | await self._constrained(op)
        reading = _Reading(op.sampling.logprobs >= 0)
        async with contextlib.aclosing(self._http.stream("/chat/completions", body)) as events:
            async for event in events:
                text, logprobs = reading.take(event)
                if text:
                    emit(text, logprobs)
        meta = reading.meta()
        problem = "" if op.sampling.stop else broken(op.constraint, reading.text, meta, patterns=False)
        if problem:
            raise RemoteFailure("generation", f"the server answered {reading.text[:80]!r}, which {problem}")
        return reading.text, meta

    async def _constrained(self, op: Gen) -> dict[str, Any]:
        """The fields that say what the text must be, in the server's own spelling."""
        if op.constraint is None or isinstance(op.constraint, JsonSchema):
            return chat_fields(op.constraint, "")
        if self._kind is None:
            self._kind = await self._ask_kind()
        if self._kind == "sglang":
            try:
                refuse_lark(op.constraint)
            except ConstraintError as error:
                raise RemoteFailure("constraint", error.message) from None
        return chat_fields(op.constraint, self._kind)

    async def _ask_kind(self) -> Kind:
        try:
            return kind_of(await self._http.json("GET", self._http.url.removesuffix("/v1") + "/server_info"))
        except RemoteFailure as failure:
            if failure.kind == "transport":
                raise
            return ""

    async def choose(self, items: Sequence[Item], op: Select) -> tuple[int, Meta]:
        """See `Remote.choose`. All choices' tokens get the same bias, far above any other token: the most likely of
        them is the answer. Exact for choices of one token each, where all methods but the unconditional one agree."""
        bias = {}
        for choice in op.choices:
            ids = await self._ids(choice)
            if len(ids) != 1:
                raise RemoteFailure(
                    "constraint",
                    f"choices: {choice!r} has {len(ids)} tokens; over chat completions a choice must be one token. Use "
                    "ramet.Engine or ramet.Endpoint",
                )
            bias[ids[0]] = 100.0
        sampling = Sampling(temperature=0.0, max_tokens=1, logit_bias=bias, logprobs=20)
        body = self._body(items, sampling)
        reading = _Reading(True)
        async with contextlib.aclosing(self._http.stream("/chat/completions", body)) as events:
            async for event in events:
                reading.take(event)
        if reading.text not in op.choices:
            raise RemoteFailure("generation", f"the server answered {reading.text!r}, which is none of the choices")
        winner = op.choices.index(reading.text)
        told = {text: logprob for token in reading.logprobs for _, text, logprob in token.top}
        scores = tuple(told[c] for c in op.choices) if all(c in told for c in op.choices) else ()
        meta = Meta(
            prompt_tokens=reading.meta().prompt_tokens,
            cached_tokens=reading.meta().cached_tokens,
            scores=scores,
            choice_logprobs=tuple((score,) for score in scores),
            mean_logprob=reading.meta().mean_logprob,
        )
        return winner, meta

    async def _ids(self, text: str) -> tuple[int, ...]:
        found = self._token_ids.get(text)
        if found is None:
            url = self._http.url.removesuffix("/v1") + "/tokenize"
            body = {"model": self._model, "prompt": text, "add_special_tokens": False}
            answer = await self._http.json("POST", url, body)
            ids = answer.get("tokens") if isinstance(answer, dict) else None
            if not isinstance(ids, list) or not all(isinstance(token, int) for token in ids):
                raise RemoteFailure("generation", f"{url}: the answer has no list of tokens")
            found = self._token_ids[text] = tuple(ids)
        return found

    def _body(self, items: Sequence[Item], sampling: Sampling) -> dict[str, Any]:
        messages, prefix = fold(items)
        body: dict[str, Any] = {"model": self._model, "messages": messages, "stream": True}
        body["stream_options"] = {"include_usage": True}
        if prefix:
            messages.append({"role": "assistant", "content": prefix})
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        default = Sampling()
        body["temperature"] = sampling.temperature
        if sampling.max_tokens is not None:
            body["max_completion_tokens" if self._home else "max_tokens"] = sampling.max_tokens
        for name in (*PLAIN, *EXTENDED, "stop"):
            value = getattr(sampling, name)
            if value != getattr(default, name):
                body[name] = list(value) if isinstance(value, tuple) else value
        if sampling.logit_bias:
            body["logit_bias"] = {str(token): value for token, value in sampling.logit_bias.items()}
        if sampling.logprobs >= 0:
            body["logprobs"] = True
        if sampling.logprobs > 0:
            body["top_logprobs"] = sampling.logprobs
        return body


def fold(items: Sequence[Item]) -> tuple[list[dict[str, str]], str]:
    """The messages that have ended, and the text of the assistant's open one."""
    messages: list[dict[str, str]] = []
    content = ""
    for item in items:
        if isinstance(item, str):
            content += item
        elif item.begin:
            content = ""
        else:
            messages.append({"role": item.role, "content": content})
            content = ""
    return messages, content


class _Reading:
    """What the chunks of one stream say."""

    def __init__(self, wanted: bool) -> None:
        self.text = ""
        self.logprobs: list[Logprob] = []
        self._wanted = wanted
        self._choice: Mapping[str, Any] = {}
        self._usage: Mapping[str, Any] = {}

    def take(self, event: Any) -> tuple[str, tuple[Logprob, ...]]:
        """New text and its logprobs."""
        if not isinstance(event, dict) or not isinstance(event.get("choices"), list):
            raise RemoteFailure("generation", f"a chunk of the stream is not understood: {str(event)[:80]}")
        self._usage = event.get("usage") or self._usage
        text, new = "", tuple[Logprob, ...]()
        for choice in event["choices"]:
            text += (choice.get("delta") or {}).get("content") or ""
            new += _logprobs(choice.get("logprobs")) if self._wanted else ()
            if choice.get("finish_reason"):
                self._choice = choice
        self.text += text
        self.logprobs += new
        return text, new

    def meta(self) -> Meta:
        """How it went. Raises `RemoteFailure` when the server did not end it in a way that is meant."""
        reason = self._choice.get("finish_reason")
        if reason not in ("stop", "length"):
            what = f"finished with {reason!r}" if reason else "ended without a finish reason"
            raise RemoteFailure("generation" if reason else "transport", f"the server's answer {what}")
        finish: FinishReason = "length" if reason == "length" else "stop"
        details = self._usage.get("prompt_tokens_details") or {}
        matched = self._choice.get("matched_stop", self._choice.get("stop_reason"))
        return Meta(
            finish_reason=finish,
            matched=matched if isinstance(matched, str | int) else None,
            prompt_tokens=int(self._usage.get("prompt_tokens") or 0),
            cached_tokens=int(details.get("cached_tokens") or 0),
            completion_tokens=int(self._usage.get("completion_tokens") or 0),
            logprobs=tuple(self.logprobs),
            mean_logprob=sum(p.logprob for p in self.logprobs) / len(self.logprobs) if self.logprobs else None,
        )


def _logprobs(raw: Any) -> tuple[Logprob, ...]:
    content = raw.get("content") if isinstance(raw, dict) else None
    return tuple(
        Logprob(-1, token["token"], token["logprob"], tuple((-1, t["token"], t["logprob"]) for t in _tops(token)))
        for token in content or ()
    )


def _tops(token: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return token.get("top_logprobs") or ()
