"""Servers that speak SGLang's `/generate` and no programs: texts in, continuations and logprobs of texts out.

In: a sequence as text. Out: one streamed request per generation; for a choice, the logprobs of every choice behind the
text, as SGLang's own client asks for them. Roles are refused: which template the server's model has is not known here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from ramet.frontend.backends.constrained import broken, refuse_lark, refuse_promises, sglang_fields
from ramet.frontend.backends.http import Http, RemoteFailure
from ramet.frontend.backends.remote import Edge, Emit, Item, Shape
from ramet.frontend.errors import ConstraintError
from ramet.frontend.ir import AnyOp, FinishReason, Gen, Logprob, Meta, Role, Sampling, Select

Scored = Sequence[Any]  # [logprob, id, text] of one token
_RENAMED = {"max_tokens": "max_new_tokens", "min_tokens": "min_new_tokens"}
_SAME = ("top_p", "top_k", "min_p", "stop", "stop_token_ids", "ignore_eos", "frequency_penalty", "presence_penalty")


class GenerateRemote:
    """See `Remote`. `incremental`: the server streams new text alone, instead of all text so far."""

    def __init__(self, http: Http, *, incremental: bool = False) -> None:
        self._http = http
        self._incremental = incremental

    def check(self, op: AnyOp, shape: Shape) -> None:
        """See `Remote.check`."""
        if isinstance(op, Role):
            raise ConstraintError(
                f"role={op.role!r}: {self._http.url} speaks /generate, which takes text; its chat template is not "
                f"known here. For chats use ramet.OpenAI(model, base_url={self._http.url + '/v1'!r}), or a ramet server"
            )
        if isinstance(op, Gen | Select) and not shape.loose:
            raise ConstraintError("empty prompt: append text before the first gen or select")
        if isinstance(op, Gen):
            if op.sampling.seed is not None:
                raise ConstraintError(
                    f"seed={op.sampling.seed}: /generate has no seed of a request that every server keeps; leave it out"
                )
            refuse_promises(op)
            refuse_lark(op.constraint)
        if isinstance(op, Select) and (len(set(op.choices)) != len(op.choices) or not all(op.choices)):
            raise ConstraintError("choices: must be distinct and non-empty")

    async def generate(self, items: Sequence[Item], op: Gen, seed: int, emit: Emit) -> tuple[str, Meta]:
        """See `Remote.generate`."""
        wanted = op.sampling.logprobs
        sampling = _sampling(op.sampling) | sglang_fields(op.constraint)
        body: dict[str, Any] = {"text": _text(items), "sampling_params": sampling, "stream": True}
        if wanted >= 0:
            body |= {"return_logprob": True, "top_logprobs_num": wanted, "return_text_in_logprobs": True}
        text, told = "", 0
        rows: tuple[Logprob, ...] = ()
        ending: tuple[Logprob, ...] = ()
        info: Mapping[str, Any] = {}
        async with contextlib.aclosing(self._http.stream("/generate", body)) as events:
            async for event in events:
                so_far, info = _event(event)
                new = so_far if self._incremental else so_far[len(text) :]
                if wanted >= 0:
                    found, ending = _logprobs(info)
                    rows = rows + found if self._incremental else found
                if new:
                    emit(new, rows[told:])
                    told = len(rows)
                text += new
        if not info.get("finish_reason"):
            raise RemoteFailure("transport", "the server's stream ended without a finish reason")
        meta = _meta(info, rows, ending)
        problem = broken(op.constraint, text, meta, patterns=False)
        if problem:
            raise RemoteFailure("generation", f"the server answered {text[:80]!r}, which {problem}")
        return text, meta

    async def choose(self, items: Sequence[Item], op: Select) -> tuple[int, Meta]:
        """See `Remote.choose`. Three requests at most: cache the prefix and learn its length; score all choices behind
        it; for the unconditional method, score them behind nothing."""
        prefix = _text(items)
        first = await self._scores({"text": [prefix]})
        length = int(first[0].get("prompt_tokens", 0))
        start = max(length - 2, 0)
        infos = await self._scores(
            {
                "text": [prefix + choice for choice in op.choices],
                "return_logprob": True,
                "return_text_in_logprobs": True,
                "logprob_start_len": start,
            }
        )
        rows = [_own(info, choice, length) for info, choice in zip(infos, op.choices, strict=True)]
        logprobs = [[_number(token[0]) for token in row] for row in rows]
        nothing: list[list[float]] = []
        if op.method == "unconditional_likelihood_normalized":
            ids = [[int(token[1]) for token in row] for row in rows]
            bare = await self._scores({"input_ids": ids, "return_logprob": True, "logprob_start_len": 0})
            nothing = [[float(token[0] or 0.0) for token in info["input_token_logprobs"]] for info in bare]
        winner, scores = decide(op.method, logprobs, nothing)
        meta = Meta(
            prompt_tokens=length,
            cached_tokens=min(int(info.get("cached_tokens", 0)) for info in infos),
            scores=scores,
            choice_logprobs=tuple(map(tuple, logprobs)),
            mean_logprob=sum(logprobs[winner]) / len(logprobs[winner]),
        )
        return winner, meta

    async def _scores(self, body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """The meta info of each of several prompts."""
        sampling = {"max_new_tokens": 0, "temperature": 0.0}
        answers = await self._http.json("POST", "/generate", {**body, "sampling_params": sampling})
        count = len(body.get("text") or body["input_ids"])
        if not isinstance(answers, list) or len(answers) != count:
            raise RemoteFailure(
                "generation", f"the server did not answer a list of {count} prompts with as many answers"
            )
        return [_event(answer)[1] for answer in answers]


def _text(items: Sequence[Item]) -> str:
    assert not any(isinstance(item, Edge) for item in items), "roles are refused"
    return "".join(map(str, items))


def _sampling(sampling: Sampling) -> dict[str, Any]:
    """SGLang's sampling parameters: those that differ from the defaults of both sides. `max_new_tokens` null is "until
    a stop, or the end of the context"."""
    default = Sampling()
    found: dict[str, Any] = {"temperature": sampling.temperature, "max_new_tokens": sampling.max_tokens}
    for name in (*_SAME, "min_tokens", "repetition_penalty"):
        value = getattr(sampling, name)
        if value != getattr(default, name):
            found[_RENAMED.get(name, name)] = list(value) if isinstance(value, tuple) else value
    if sampling.logit_bias:
        found["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    return found


def _event(event: Any) -> tuple[str, Mapping[str, Any]]:
    if not isinstance(event, dict) or not isinstance(event.get("text"), str) or "meta_info" not in event:
        raise RemoteFailure("generation", f"an answer of /generate is not understood: {str(event)[:80]}")
    return event["text"], event["meta_info"]


def _number(value: Any) -> float:
    if not isinstance(value, int | float):
        raise RemoteFailure("generation", "the server gave no logprob for a token of a choice")
    return float(value)


def _own(info: Mapping[str, Any], choice: str, length: int) -> Sequence[Scored]:
    """The tokens of a choice: from the end, those whose text makes it up; the first may straddle the place where it
    begins (the tokeniser has healed it). Without texts: those beyond the prefix's `length`."""
    tokens: Sequence[Scored] = info.get("input_token_logprobs") or ()
    count, covered = 0, 0
    while covered < len(choice) and count < len(tokens):
        text = tokens[-1 - count][2] if len(tokens[-1 - count]) > 2 else None
        if not text or "\ufffd" in text:  # a part of a character: lengths of texts say nothing
            count = max(1, int(info.get("prompt_tokens", 0)) - length)
            break
        covered += len(text)
        count += 1
    if not count or count > len(tokens):
        raise RemoteFailure("generation", f"the server gave no logprobs for the choice {choice!r}")
    return tokens[len(tokens) - count :]


def _matched(info: Mapping[str, Any]) -> str | int | None:
    """The stop string or token that ended it. A token is listed among the others, and counted."""
    reason = info.get("finish_reason")
    matched = reason.get("matched") if isinstance(reason, dict) else None
    return matched if isinstance(matched, str | int) else None


def _logprobs(info: Mapping[str, Any]) -> tuple[tuple[Logprob, ...], tuple[Logprob, ...]]:
    """Of the text, and of the token that ended it."""
    tokens: Sequence[Scored] = info.get("output_token_logprobs") or ()
    tops: Sequence[Any] = info.get("output_top_logprobs") or ()
    found = []
    for index, (logprob, token, text, *_) in enumerate(tokens):
        top = tops[index] if index < len(tops) and tops[index] else ()
        rest = tuple((int(t), str(s or ""), float(p)) for p, t, s, *_ in top)
        found.append(Logprob(int(token), str(text or ""), float(logprob), rest))
    ends = len(found) - isinstance(_matched(info), int)
    return tuple(found[:ends]), tuple(found[ends:])


def _meta(info: Mapping[str, Any], logprobs: tuple[Logprob, ...], ending: tuple[Logprob, ...]) -> Meta:
    reason = info["finish_reason"]
    kind = reason.get("type") if isinstance(reason, dict) else reason
    if kind == "abort":
        message = reason.get("message") if isinstance(reason, dict) else None
        raise RemoteFailure("aborted", str(message or "the server aborted the request"))
    finish: FinishReason = "length" if kind == "length" else "stop"
    matched = _matched(info)
    made = int(info.get("completion_tokens", 0)) - isinstance(matched, int)
    return Meta(
        finish_reason=finish,
        matched=matched,
        prompt_tokens=int(info.get("prompt_tokens", 0)),
        cached_tokens=int(info.get("cached_tokens", 0)),
        completion_tokens=max(0, made),
        ending=ending,
        logprobs=logprobs,
        mean_logprob=sum(p.logprob for p in logprobs) / len(logprobs) if logprobs else None,
    )


def decide(
    method: str, logprobs: Sequence[Sequence[float]], nothing: Sequence[Sequence[float]]
) -> tuple[int, tuple[float, ...]]:
    """The winner's index and all scores, by the rules of the engine's own select: mean logprob of a choice's tokens;
    the mean of what the prompt adds to them; or step by step the most likely token, where a choice that has ended
    stands in with its mean. Ties go to the earlier choice."""
    means = [sum(row) / len(row) for row in logprobs]
    scores = means
    if method == "unconditional_likelihood_normalized":
        scores = [(sum(row) - sum(base)) / len(row) for row, base in zip(logprobs, nothing, strict=True)]
    elif method == "greedy_token_selection":
        alive, survived = list(range(len(means))), [0] * len(means)
        for step in range(max(map(len, logprobs))):
            now = {c: logprobs[c][step] if step < len(logprobs[c]) else means[c] for c in alive}
            alive = [c for c in alive if now[c] == max(now.values())]
            for c in alive:
                survived[c] += 1
        order = sorted(set(means))
        scores = [survived[c] + (order.index(means[c]) + 1) / len(order) for c in range(len(means))]
    return max(range(len(scores)), key=lambda c: scores[c]), tuple(scores)
