"""Sampling options: from what users write to one validated `Sampling`.

In: keyword arguments under ramet's or SGLang's names, at four levels (decorator, using, run, gen). Out: a `Sampling`,
or a `ConstraintError` at the user's line that names the option, its value and the remedy.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping, Sequence
from numbers import Real
from typing import Any, Literal, TypedDict

from ramet.frontend.errors import ConstraintError
from ramet.frontend.ir import Jump, Sampling

SAMPLING = (
    "max_tokens",
    "max_new_tokens",
    "min_tokens",
    "stop",
    "stop_token_ids",
    "stop_regex",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "logit_bias",
    "ignore_eos",
    "seed",
    "logprobs",
    "return_logprob",
    "logprob_start_len",
    "top_logprobs_num",
    "return_text_in_logprobs",
)
_KNOWN = (*SAMPLING, "regex", "json_schema", "grammar", "choices", "json_whitespace", "jump")


class GenOptions(TypedDict, total=False):
    """The keyword arguments of `State.gen` and `State.reply`.

    `logprobs` k: the sampled token's logprob and the k most likely alternatives (0: the sampled token's only; left
    out: none). `timeout`: seconds that reading the value waits before it raises `ProgramTimeout`.

    At most one of `regex` (the whole text, as `re.fullmatch` reads it), `json_schema` (a schema as a dict, a bool or
    JSON text, or a type: a pydantic model, a dataclass, a TypedDict, ...), `grammar` (Lark's notation, or EBNF:
    `root ::= ...`) and `choices`. `json_whitespace`: "fixed" (default) writes JSON in one line as `json.dumps` does,
    "flexible" leaves line breaks and indent to the model. `jump`: what becomes of text that the constraint leaves no
    choice about: "canonical" (default) appends it without sampling, tokenised as the tokeniser does; "exact" gives the
    tokens that constrained sampling would give; "off" samples every token. The others as in `Sampling`.
    """

    name: str | None
    max_tokens: int | None
    min_tokens: int | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    regex: str | None
    grammar: str | None
    json_schema: str | bool | Mapping[str, Any] | type[Any] | None
    choices: Sequence[str] | None
    json_whitespace: Literal["fixed", "flexible"] | None
    jump: Jump | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    repetition_penalty: float | None
    logit_bias: Mapping[int, float] | None
    ignore_eos: bool | None
    seed: int | None
    logprobs: int | None
    timeout: float | None


def given(arguments: Mapping[str, Any], *without: str) -> dict[str, Any]:
    """The arguments that were given (are not None), less `without`."""
    return {name: value for name, value in arguments.items() if value is not None and name not in without}


def checked(options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`options` under the names of `Sampling`, each valid by itself. Copies what is mutable: the caller's lists stay
    his."""
    out: dict[str, Any] = {}
    for name, value in options.items():
        if value is not None:
            _translate(name, value, out, where)
    build({}, out, where)
    return out


def _translate(name: str, value: Any, out: dict[str, Any], where: str) -> None:
    if name in ("max_tokens", "max_new_tokens"):
        out["max_tokens"] = _integer("max_tokens", value, where)
    elif name in ("min_tokens", "seed", "logprobs"):
        out[name] = _integer(name, value, where)
    elif name == "top_k":
        out["top_k"] = 0 if value == -1 else _integer(name, value, where)  # SGLang's -1 is off
    elif name == "stop":
        out["stop"] = _strings(name, value, where)
    elif name == "stop_token_ids":
        out[name] = tuple(_integer(name, token, where) for token in _list(name, value, where))
    elif name == "logit_bias":
        out[name] = _biases(name, value, where)
    elif name == "ignore_eos":
        out[name] = _boolean(name, value, where)
    elif name == "return_logprob":
        out["logprobs"] = max(out.get("logprobs", 0), 0) if _boolean(name, value, where) else -1
    elif name == "top_logprobs_num":
        out["logprobs"] = _integer(name, value, where)
    elif name == "return_text_in_logprobs":
        _refuse_unless(
            value in (True, False), name, value, "True or False; the text of tokens is always reported", where
        )
    elif name == "logprob_start_len":
        _refuse_unless(value == -1, name, value, "logprobs of the prompt are not built into this version", where)
    elif name == "stop_regex":
        remedy = "stopping at a regex is not built into this version; use stop"
        _refuse_unless(not _strings(name, value, where), name, value, remedy, where)
    elif name in SAMPLING:
        out[name] = value
    else:
        raise ConstraintError(f"{name}={value!r}: no such option; {hint(name, _KNOWN)}", where=where)


def check_timeout(timeout: Any, where: str) -> float | None:
    """The seconds to wait, or None for no limit. Raises `ConstraintError` unless they are a positive number."""
    number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
    if timeout is not None and not (number and math.isfinite(timeout) and timeout > 0):
        raise ConstraintError(f"timeout={timeout!r}: must be a positive number of seconds", where=where)
    return timeout  # type: ignore[no-any-return]


def hint(name: str, known: Collection[str]) -> str:
    """What an unknown name was probably meant to be, or all that there are."""
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known) or 'none'}"


def _refuse_unless(fine: bool, name: str, value: object, remedy: str, where: str) -> None:
    if not fine:
        raise ConstraintError(f"{name}={value!r}: {remedy}", where=where)


def _integer(name: str, value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConstraintError(f"{name}={value!r}: must be an integer", where=where)
    return value


def _boolean(name: str, value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise ConstraintError(f"{name}={value!r}: must be True or False", where=where)
    return value


def _biases(name: str, value: Any, where: str) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise ConstraintError(f"{name}={value!r}: must map ids of tokens to numbers", where=where)
    for token, bias in value.items():
        if isinstance(bias, bool) or not isinstance(bias, Real):
            raise ConstraintError(f"{name}[{token!r}]={bias!r}: must be a number", where=where)
    return {_integer(name, token, where): float(bias) for token, bias in value.items()}


def _list(name: str, value: Any, where: str) -> list[Any]:
    if isinstance(value, str) or not isinstance(value, Sequence | set | frozenset):
        raise ConstraintError(f"{name}={value!r}: must be a list", where=where)
    return list(value)


def _strings(name: str, value: Any, where: str) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, Sequence | set | frozenset) or not all(isinstance(text, str) for text in texts):
        raise ConstraintError(f"{name}={value!r}: must be a string or a list of strings", where=where)
    return tuple(texts)


def build(defaults: Mapping[str, Any], options: Mapping[str, Any], where: str) -> Sampling:
    """The `Sampling` of one generation: `options` over `defaults`."""
    try:
        return Sampling(**{**defaults, **options})
    except ConstraintError as error:
        raise ConstraintError(error.message, where=where) from None
