"""What chat completions, responses and decisions have in common, besides their messages.

In: fields of a body, log-probabilities of the engine. Out: a `Caller` with the client's own id, refusals of what is not
offered, log-probabilities and usage in OpenAI's shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ramet.frontend import ir
from ramet.runtime.server.call import Caller
from ramet.runtime.server.constraints import FIELDS
from ramet.runtime.server.failures import Failure, bad, unsupported
from ramet.runtime.server.raw import name_of
from ramet.runtime.server.reasoning import FIELDS as REASONING
from ramet.runtime.server.reasoning import SWITCHES
from ramet.runtime.server.sampling import UNOFFERED, refuse_unoffered
from ramet.runtime.server.service import Service
from ramet.runtime.server.wire import Body, logprob
from ramet.runtime.text import Tokenizer

MAX_LABEL = 256  # characters of a client's id
MAX_SALT = 256
HINTS = frozenset(  # fields that are known and have no effect on what a local model answers
    (
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "prediction",
        "reasoning_effort",
        "safety_identifier",
        "service_tier",
        "session_id",
        "spaces_between_special_tokens",
        "store",
        "tool_choice",
        "user",
        "verbosity",
    )
)
_OTHERS: Mapping[str, tuple[tuple[object, ...], str]] = {  # field → values that ask for nothing, and why not others
    "audio": ((), "the model writes text alone"),
    "modalities": ((["text"],), "the model writes text alone"),
    "web_search_options": ((), "the server opens no connections"),
    "moderation": ((), "there is no moderation model"),
    "documents": ((), "put them into a message"),
    "thinking_token_budget": ((), "the model does not think apart from its answer"),
    "thinking": (({"type": "disabled"},), "the model does not think apart from its answer"),
    "echo": ((), "the prompt can be had from /v1/completions"),
    "prompt_logprobs": ((), "they can be had from /v1/completions and /generate"),
    "logprob_token_ids": ((), "see top_logprobs"),
    "token_ids_logprob": ((), "see top_logprobs"),
    "input_ids": ((), "token ids can be sent to /v1/completions and /generate"),
    "skip_special_tokens": ((True,), "control tokens are never part of a message"),
    "length_penalty": ((1, 1.0), "beam search is not offered"),
    "best_of": ((1,), "use n"),
    "add_special_tokens": ((), "the chat template decides"),
}
_ALONE = {"chat_template_kwargs", "functions", "function_call"}
_KNOWN = HINTS | FIELDS | REASONING | UNOFFERED | frozenset(_OTHERS) | _ALONE


def silent(body: Body) -> frozenset[str]:
    """Fields of this body that need no word: those that are known to have no effect, and those that are null."""
    return _KNOWN | {name for name, value in (body.model_extra or {}).items() if value is None}


def refuse_others(fields: Mapping[str, object], *, thinks: bool = False) -> None:
    """Raise `Failure` 400 for the first field that asks for something that a chat does not offer here. Null, false and
    empty values ask for nothing. `thinks`: the model may be asked to think, which it does anyway."""
    refuse_unoffered(fields)
    for name, (harmless, why) in _OTHERS.items():
        value = fields.get(name)
        empty = value is None or value in ([], {}, "") or (value is False and name != "skip_special_tokens")
        thinking = thinks and name == "thinking" and isinstance(value, Mapping) and set(value) == {"type"}
        if not empty and not thinking and value not in harmless:
            raise unsupported(name, f"`{name}` is not supported: {why}; leave it out")
    refuse_kwargs(fields, thinks=thinks)


def refuse_kwargs(fields: Mapping[str, object], *, thinks: bool) -> None:
    """Raise `Failure` 400 for arguments of the chat template beyond the switches of thoughts. `thinks`: as above."""
    kwargs = fields.get("chat_template_kwargs")
    if isinstance(kwargs, Mapping):  # thoughts can be left out of every conversation
        kwargs = [name for name, value in kwargs.items() if name not in SWITCHES or not (value is False or thinks)]
    if kwargs:
        names = ", ".join(sorted(map(str, kwargs)))[:120] if isinstance(kwargs, list) else "what is given"
        text = f"`chat_template_kwargs`: the model's chat template is fixed at the start and cannot take {names}"
        raise unsupported("chat_template_kwargs", text)


def labelled(caller: Caller, fields: Mapping[str, object], service: Service) -> Caller:
    """The caller under the id that the body gives (`rid` or `request_id`), so that it can be aborted by it. `Failure`
    409 for an id whose request is under way."""
    name = next((name for name in ("rid", "request_id") if fields.get(name) is not None), "")
    if not name:
        return caller
    label = fields[name]
    if not isinstance(label, str) or not 0 < len(label) <= MAX_LABEL:
        raise bad(f"`{name}` must be a string of 1 to {MAX_LABEL} characters", name)
    if service.busy(label, caller):
        raise Failure(409, f"a request of the id {label!r} is under way", code="duplicate_id", param=name)
    return replace(caller, label=label)


def salt_of(salt: str | None, extra: str | None = None) -> str:
    """The salt of `cache_salt` and SGLang's `extra_key`: both keep apart. Raises `Failure` 400."""
    if salt is not None and not 0 < len(salt) <= MAX_SALT:
        raise bad(f"`cache_salt` has 1 to {MAX_SALT} characters", "cache_salt")
    if extra is not None and len(extra) > MAX_SALT:
        raise bad(f"`extra_key` has at most {MAX_SALT} characters", "extra_key")
    return "\0".join(each for each in (salt, extra) if each)


def seconds_of(value: float | None) -> float | None:
    """A time-out. Raises `Failure` 400."""
    if value is not None and not 0 < value < 1e7:
        raise bad("`timeout` must be a positive number of seconds", "timeout")
    return value


def token_logprobs(tokenizer: Tokenizer, logs: Sequence[ir.Logprob], *, as_ids: bool = False) -> list[dict[str, Any]]:
    """Sampled tokens as `{"token", "logprob", "bytes", "top_logprobs"}`; `as_ids` shows a token as "token_id:ID".
    Clients need a number for each: a token that was forced, and not sampled, was certain, 0.0."""

    def one(token: int, value: float) -> dict[str, Any]:
        text = f"token_id:{token}" if as_ids else name_of(tokenizer, token)
        raw = tokenizer.token_bytes(token, special=tokenizer.is_special(token))
        return {"token": text, "logprob": logprob(value) or 0.0, "bytes": list(raw)}

    return [
        {**one(log.token, log.logprob), "top_logprobs": [one(token, value) for token, _, value in log.top]}
        for log in logs
    ]


def response_usage(prompt: int, completion: int, cached: int, forced: int = 0, reasoning: int = 0) -> dict[str, Any]:
    """Usage of responses. What was not found in the prefix cache was written to it; `forced` tokens needed no decode
    step of their own, `reasoning` were thoughts."""
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": prompt - cached},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": reasoning, "forced_tokens": forced},
        "total_tokens": prompt + completion,
    }
