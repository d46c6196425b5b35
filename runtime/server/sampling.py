"""From the sampling fields of each protocol to one `ir.Sampling`.

In: a request's fields as they came, under OpenAI's (with vLLM's), SGLang's, Anthropic's or Ollama's names. Out: an
`ir.Sampling`, whose own constructor checks every bound, or a `Failure` 400 that names the client's field. What would
change the output in a way that is not offered is refused here, never ignored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel

from ramet.frontend import ir
from ramet.frontend.errors import ConstraintError
from ramet.runtime.server.constraints import NAMES as CONSTRAINTS
from ramet.runtime.server.failures import Failure, bad, unsupported

Protocol = Literal["openai", "responses", "sglang", "anthropic", "ollama"]
GREEDY = 1e-6  # a temperature below it is greedy: dividing by it would leave nothing of float32
LEAST_TOP_P = 1e-6  # what `top_p` 0 means: the most likely token alone
MAX_STOP_IDS = 1024

_SHARED = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "repetition_penalty": "repetition_penalty",
    "stop": "stop",
    "stop_token_ids": "stop_token_ids",
    "ignore_eos": "ignore_eos",
    "logit_bias": "logit_bias",
}
_OPENAI = {**_SHARED, "min_tokens": "min_tokens", "seed": "seed"}
NAMES: Mapping[Protocol, Mapping[str, str]] = {  # our field → the protocol's
    "openai": _OPENAI,
    "responses": _OPENAI,
    "sglang": {**_SHARED, "min_tokens": "min_new_tokens", "seed": "sampling_seed"},
    "anthropic": {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "stop": "stop_sequences"},
    "ollama": {
        **{n: n for n in ("temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty")},
        "repetition_penalty": "repeat_penalty",
        "stop": "stop",
        "seed": "seed",
    },
}
LENGTHS: Mapping[Protocol, tuple[str, ...]] = {  # the first one that is given counts
    "openai": ("max_completion_tokens", "max_tokens"),
    "responses": ("max_output_tokens",),
    "sglang": ("max_new_tokens",),
    "anthropic": ("max_tokens",),
    "ollama": ("num_predict",),
}
DEFAULTS: Mapping[Protocol, Mapping[str, float]] = {  # of the protocol's documents, where they are not ours
    "openai": {},
    "responses": {},
    "sglang": {},
    "anthropic": {},
    "ollama": {"temperature": 0.8, "top_k": 40, "top_p": 0.9},
}

_UNOFFERED: Mapping[str, str] = {
    "stop_regex": "stops are strings and token ids; a `regex` on the whole output can end it",
    "bad_words": "`logit_bias` of -100 forbids a token; a `regex` says what the output may be",
    "allowed_token_ids": "`regex`, `guided_choice` and grammars say what the output may be",
    "guided_whitespace_pattern": "JSON is written as json.dumps does",
    **dict.fromkeys(("custom_logit_processor", "logits_processors", "custom_params"), "requests cannot bring code"),
    **dict.fromkeys(("lora_path", "lora_request"), "adapters are not offered"),
    **dict.fromkeys(("input_embeds", "prompt_embeds"), "prompts are text or token ids"),
    **dict.fromkeys(("image_data", "video_data", "audio_data", "multi_modal_data"), "the model reads text alone"),
    "session_params": "sessions are not offered; equal prefixes are found in the cache by themselves",
    "return_hidden_states": "hidden states do not leave the engine",
    "truncate_prompt_tokens": "prompts are never truncated",
    "use_beam_search": "beam search is not offered; use n or best_of",
    "logits_processor_args": "requests cannot bring code",
    "chat_template": "the chat template is the model's own",
    "extra_body": "it is an argument of the openai package; put its fields into the body itself",
}
UNOFFERED = frozenset(_UNOFFERED)  # fields that are known: null, false and empty ones need no word


def sampling_of(
    fields: Mapping[str, object],
    *,
    protocol: Protocol,
    default_max_tokens: int | None,
    logprobs: int | None = None,
    allow_zero: bool = False,
) -> ir.Sampling:
    """The sampling that `fields` ask for; a field that is missing or null has its default.

    `fields` are those of `NAMES[protocol]` and `LENGTHS[protocol]` (for Ollama: its `options`); others are not looked
    at. A length of None is until a stop or the end of the context. `logprobs` is the engine's (-1: none); None reads it
    from OpenAI's `logprobs` (a number, or true with `top_logprobs`). Where `allow_zero`, a length of 0 is legal and
    read as 1: the caller does not generate then (see `length_of`). Raises `Failure` 400 with the client's field.
    """
    names = NAMES[protocol]
    values: dict[str, Any] = {}
    for ours, theirs in names.items():
        value = fields.get(theirs, None)
        value = DEFAULTS[protocol].get(ours) if value is None else value
        if value is not None:
            values[ours] = _READERS[ours](value, theirs)
    if protocol == "ollama" and values.get("seed") == -1:
        del values["seed"]  # its own default: a fresh one
    if protocol == "anthropic" and values.get("temperature", 0.0) > 1.0:
        raise bad(f"temperature={values['temperature']!r}: must be between 0 and 1", "temperature")
    length = length_of(fields, protocol=protocol, default=default_max_tokens)
    values["max_tokens"] = 1 if length == 0 and allow_zero else length
    values["logprobs"] = _logprobs(fields) if logprobs is None else logprobs
    try:
        return ir.Sampling(**values)
    except ConstraintError as error:
        told = {"max_tokens": limit_of(fields, protocol), "logprobs": _logprobs_name(protocol, fields)}
        raise named(error, {**names, **told}) from None


def limit_of(fields: Mapping[str, object], protocol: Protocol) -> str:
    """The client's name of the field that limits the length: the one that it gave, where there are two."""
    names = LENGTHS[protocol]
    return next((name for name in names if fields.get(name) is not None), names[-1])


def length_of(fields: Mapping[str, object], *, protocol: Protocol, default: int | None) -> int | None:
    """The most tokens to generate; None until a stop. SGLang's null means None too, and Ollama's 0, -1 and -2. OpenAI's
    two names must not disagree. Negative numbers are left for `ir.Sampling` to refuse."""
    names = LENGTHS[protocol]
    given = {name: whole(fields[name], name) for name in names if fields.get(name) is not None}
    if len(set(given.values())) > 1:
        both = " and ".join(f"`{name}`={value}" for name, value in given.items())
        raise bad(f"{both} disagree; give one of them", names[0])
    if not given:
        return None if protocol == "sglang" and names[0] in fields else default
    (length,) = set(given.values())
    return None if protocol == "ollama" and length in (0, -1, -2) else length


def refuse_unoffered(fields: Mapping[str, object]) -> None:
    """Raise `Failure` 400 for the first field that would change what is generated, and that this server does not
    offer. Null, false and empty values ask for nothing."""
    for name, why in _UNOFFERED.items():
        if _asked(fields.get(name)):
            raise unsupported(name, f"`{name}` is not supported: {why}; leave it out")


def refuse_tools(fields: Mapping[str, object]) -> None:
    """Raise `Failure` 400 for tools, where a protocol has none."""
    why = "tools belong to chats, responses and messages"
    for name in ("tools", "functions"):
        if _asked(fields.get(name)):
            raise unsupported(name, f"`{name}` is not supported here: {why}; leave it out")
    for name in ("tool_choice", "function_call"):
        if fields.get(name) not in (None, "none", "auto"):
            raise unsupported(name, f"`{name}` is not supported here: {why}; leave it out")


def refuse_constraints(fields: Mapping[str, object], *, tools: bool = False) -> None:
    """As `refuse_unoffered`, where nothing is generated that could be constrained: constraints too, and, unless `tools`
    can be told of, tools. An empty schema asks for JSON, and is refused as well."""
    refuse_unoffered(fields)
    if not tools:
        refuse_tools(fields)
    for name in CONSTRAINTS:
        value = fields.get(name)
        if (_asked(value) or value == {}) and value != {"type": "text"}:
            raise unsupported(name, f"`{name}` is not supported here: nothing is generated freely; leave it out")


def _asked(value: object) -> bool:
    return value is not None and value is not False and value != [] and value != {} and value != ""


def given(body: BaseModel) -> dict[str, object]:
    """The fields that a request brought, unknown ones included: what is missing is not there, null is None."""
    return {name: getattr(body, name) for name in body.model_fields_set}


def count_of(value: object, name: str, *, most: int = ir.MAX_N, default: int = 1) -> int:
    """A number of completions or of something else: a whole number from 1 to `most`. Raises `Failure` 400."""
    if value is None:
        return default
    number = whole(value, name)
    if not 1 <= number <= most:
        raise bad(f"{name}={number!r}: must be between 1 and {most}", name)
    return number


def named(error: ConstraintError, names: Mapping[str, str]) -> Failure:
    """400 from an error that begins with one of our field names, under the name that the client used. The limit of the
    length may also stand in what is said of another field."""
    field, equals, rest = error.message.partition("=")
    ours = field.partition("[")[0]
    if not equals or ours not in names:
        return bad(error.message)
    if ours == "min_tokens":
        rest = rest.replace("max_tokens=", f"{names['max_tokens']}=")
    return bad(f"{names[ours]}{field[len(ours) :]}={rest}", names[ours])


def whole(value: object, name: str) -> int:
    """A whole number (5.0 is one, true is none). Raises `Failure` 400."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise bad(f"`{name}` must be an integer", name)
    if value.bit_length() > 64:
        raise bad(f"`{name}` must be an integer of at most 64 bits", name)
    return value


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise bad(f"`{name}` must be a number", name)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise bad(f"`{name}` must be a finite number", name)
    return number


def _temperature(value: object, name: str) -> float:
    number = _number(value, name)
    return 0.0 if 0.0 <= number < GREEDY else number


def _top_p(value: object, name: str) -> float:
    number = _number(value, name)
    return LEAST_TOP_P if number == 0.0 else number


def _top_k(value: object, name: str) -> int:
    number = whole(value, name)
    return 0 if number == -1 else number


def _flag(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise bad(f"`{name}` must be true or false", name)
    return value


def _stop(value: object, name: str) -> tuple[str, ...]:
    """A string, or a list of strings."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise bad(f"`{name}` must be a string or a list of strings", name)
    return tuple(texts)


def _ids(value: object, name: str) -> tuple[int, ...]:
    if not isinstance(value, list | tuple):
        raise bad(f"`{name}` must be a list of token ids", name)
    if len(value) > MAX_STOP_IDS:
        raise bad(f"`{name}` has {len(value)} ids; at most {MAX_STOP_IDS}", name)
    return tuple(whole(each, name) for each in value)


def _bias(value: object, name: str) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise bad(f"`{name}` must be an object that maps token ids to numbers", name)
    found = {}
    for token, bias in value.items():
        text = str(token)
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise bad(f"`{name}` maps token ids to numbers; {text[:40]!r} is no token id", name)
        found[int(text)] = _number(bias, name)
    return found


def _logprobs(fields: Mapping[str, object]) -> int:
    """OpenAI's: a number for completions; true and `top_logprobs` for chats."""
    wanted, top = fields.get("logprobs"), fields.get("top_logprobs")
    if wanted is None or wanted is False:
        if top not in (None, 0):
            raise bad("`top_logprobs` needs `logprobs`: true", "top_logprobs")
        return -1
    number = whole(top if top is not None else 0, "top_logprobs") if wanted is True else whole(wanted, "logprobs")
    if not 0 <= number <= ir.MAX_LOGPROBS:
        name = "top_logprobs" if wanted is True else "logprobs"
        raise bad(f"{name}={number}: must be between 0 and {ir.MAX_LOGPROBS}", name)
    return number


def _logprobs_name(protocol: Protocol, fields: Mapping[str, object]) -> str:
    if protocol == "sglang":
        return "top_logprobs_num"
    return "top_logprobs" if fields.get("logprobs") is True else "logprobs"


_READERS: Mapping[str, Any] = {
    "temperature": _temperature,
    "top_p": _top_p,
    "top_k": _top_k,
    "min_p": _number,
    "frequency_penalty": _number,
    "presence_penalty": _number,
    "repetition_penalty": _number,
    "stop": _stop,
    "stop_token_ids": _ids,
    "ignore_eos": _flag,
    "logit_bias": _bias,
    "min_tokens": whole,
    "seed": whole,
}
