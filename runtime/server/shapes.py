"""How OpenAI's completions are written: choices, their logprobs, usage.

In: what came of a prompt and of its completions. Out: dictionaries in OpenAI's shape, with vLLM's additions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ramet.frontend import ir
from ramet.runtime.server import raw
from ramet.runtime.server.call import Begun, Completion, Piece
from ramet.runtime.server.service import Service
from ramet.runtime.server.wire import logprob
from ramet.runtime.text import Detokenizer


@dataclass(slots=True, kw_only=True)
class Look:
    """What the answer to one request shows. `logprobs` and `prompt_logprobs` k: with the k most likely tokens; None:
    not at all. `ends` are the tokens that end a text."""

    n: int
    best: int
    echo: bool
    logprobs: int | None
    prompt_logprobs: int | None
    ids: bool
    names: bool
    special: bool
    untrimmed: bool
    usage: bool
    counting: bool
    stream: bool
    ends: tuple[int, ...] = ()


def generated(meta: ir.Meta) -> tuple[int, ...]:
    """All tokens that were generated, as SGLang and vLLM list them: `meta.tokens` as they were before a stop string cut
    one of them, then those of the stop. There is a row for each in `meta.logprobs`, then `meta.ending`."""
    return (*meta.tokens[: len(meta.tokens) - meta.respelt], *(each.token for each in meta.ending))


def usage(prompt: int, completion: int, cached: int, forced: int = 0, reasoning: int = 0) -> dict[str, Any]:
    """OpenAI's usage; `cached` of the prompt's tokens came from the cache, `forced` of the completion's needed no
    decode step of their own, and `reasoning` were thoughts."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning, "forced_tokens": forced},
    }


def prompt_table(service: Service, begun: Begun, most: int) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: for each token of the prompt a table of it and of the `most` likeliest in its place;
    null for the first, which follows nothing. A rank is known within these only."""
    table: list[dict[str, Any] | None] = []
    for n, each in enumerate(begun.scores):
        if n == 0:
            table.append(None)
            continue
        ranks = {token: rank for rank, (token, _, _) in enumerate(each.top, 1)}
        wanted = {each.token: each.logprob, **{token: value for token, _, value in each.top[:most]}}
        table.append(
            {
                str(token): {
                    "logprob": logprob(value),
                    "rank": ranks.get(token),
                    "decoded_token": raw.name_of(service.tokenizer, token),
                }
                for token, value in wanted.items()
            }
        )
    return table


class Choice:
    """One completion as it is written, whole (`whole`) or in chunks (`opened`, then `grown`). `made` counts tokens,
    those of a stop included once it is over."""

    def __init__(
        self, service: Service, look: Look, index: int, begun: Begun, prompt_ids: Sequence[int], prompt_text: str
    ) -> None:
        self.made = 0
        self._service = service
        self._look = look
        self._index = index
        self._begun = begun
        self._prompt_ids = prompt_ids
        self._prompt_text = prompt_text
        self._told = 0  # tokens whose ids were written
        self._offsets = Detokenizer(service.tokenizer)
        self._offset = 0  # characters

    def whole(self, done: Completion) -> dict[str, Any]:
        """All of it."""
        look, meta = self._look, done.meta
        text = raw.completed(self._service.tokenizer, done.text, meta, special=look.special, untrimmed=look.untrimmed)
        rows = [*self._echoed(), *meta.logprobs, *(meta.ending if look.ids else ())]
        written = self._written((self._prompt_text if look.echo else "") + text, rows)
        written |= self._end(meta)
        if look.ids:
            written |= {"prompt_token_ids": list(self._prompt_ids), "token_ids": list(generated(meta))}
        return written

    def opened(self, *, closed: bool) -> dict[str, Any]:
        """The first chunk: the prompt, where it is echoed. `closed`: nothing follows."""
        written = self._written(self._prompt_text if self._look.echo else "", self._echoed())
        if closed:
            written |= self._end(ir.Meta(finish_reason="length"))
        if self._look.ids:
            written |= {"prompt_token_ids": list(self._prompt_ids), "token_ids": []}
        return written

    def grown(self, piece: Piece) -> dict[str, Any]:
        """A chunk."""
        look, meta = self._look, piece.meta
        text = piece.text
        if meta is not None and look.untrimmed:
            text += raw.ending(self._service.tokenizer, meta, special=False)
        ending = meta.ending if meta is not None and look.ids else ()
        written = self._written(text, (*piece.logprobs, *ending))
        ids = [each.token for each in piece.logprobs]
        self.made += len(ids)
        if meta is not None:
            written |= self._end(meta)
            ids = list(generated(meta)[self._told :])
            self.made = meta.completion_tokens
        if look.ids:
            written["token_ids"] = ids
            if self._told == 0 and not look.echo:
                written["prompt_token_ids"] = list(self._prompt_ids)
        self._told += len(ids)
        return written

    def _written(self, text: str, rows: Sequence[ir.Logprob]) -> dict[str, Any]:
        shown = self._look.logprobs is not None
        return {
            "index": self._index,
            "text": text,
            "logprobs": self._logprobs(rows) if shown else None,
            "finish_reason": None,
            "stop_reason": None,
        }

    def _end(self, meta: ir.Meta) -> dict[str, Any]:
        """Why it ended. `stop_reason` (vLLM's) is the stop string or token, null for the model's own end."""
        ends = self._look.ends
        if (
            meta.finish_reason == "length"
            and meta.completion_tokens == 1
            and meta.tokens[-1:]
            and meta.tokens[0] in ends
        ):
            return {"finish_reason": "stop"}
        reason = meta.matched if isinstance(meta.matched, str) or meta.matched not in ends else None
        return {"finish_reason": meta.finish_reason, "stop_reason": reason}

    def _echoed(self) -> Sequence[ir.Logprob]:
        return self._begun.scores if self._look.echo and self._look.logprobs is not None else ()

    def _logprobs(self, rows: Sequence[ir.Logprob]) -> dict[str, Any]:
        """OpenAI's four lists. The first token of a prompt follows nothing: null. Of tokens that read the same (halves
        of characters) the likeliest has the name."""
        tokens: list[str] = []
        values: list[float | None] = []
        tops: list[dict[str, float | None] | None] = []
        offsets: list[int] = []
        for row in rows:
            name, value = self._name(row.token), logprob(row.logprob)
            table: dict[str, float | None] = {}
            for token, _, other in row.top[: self._look.logprobs]:
                table.setdefault(self._name(token), logprob(other))
            table.setdefault(name, value)
            tokens.append(name)
            values.append(value)
            tops.append(None if value is None else table)
            offsets.append(self._offset)
            self._offset += len(self._offsets.push([row.token]))
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}

    def _name(self, token: int) -> str:
        return f"token_id:{token}" if self._look.names else raw.name_of(self._service.tokenizer, token)
