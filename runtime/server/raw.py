"""Raw prompts and raw tokens: what the completion protocols share.

In: prompts as text or token ids, one or many; finished completions. Out: `Prompt`s of a call, and the text of tokens
as these protocols show it. Several calls of one request run side by side.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

from ramet.frontend import ir
from ramet.runtime.boundary import contained
from ramet.runtime.server.call import Answer, Prompt
from ramet.runtime.server.compose import check_size
from ramet.runtime.server.failures import Failure, bad
from ramet.runtime.server.service import Service
from ramet.runtime.text import Tokenizer

MAX_PROMPTS = 128
SPARE = 4  # tokens that may stand in front of a text
MANY = 100  # tokens with logprobs, from which on an answer is written in a thread
RawPrompts = str | list[str] | list[int] | list[list[int]]
Item = TypeVar("Item")


# -- prompts


def split(value: RawPrompts, name: str) -> tuple[list[str] | list[tuple[int, ...]], bool]:
    """The prompts of a field that may hold one or many, as text or as ids; and whether it held many. `Failure` 400 for
    none and for more than `MAX_PROMPTS`."""
    if isinstance(value, str):
        return [value], False
    if not value:
        raise bad(f"`{name}` is empty; give at least one prompt", name)
    if isinstance(value[0], int):
        return [tuple(value)], False
    if len(value) > MAX_PROMPTS:
        raise bad(f"`{name}` has {len(value)} prompts; at most {MAX_PROMPTS} in one request", name)
    if isinstance(value[0], str):
        return value, True
    return [tuple(ids) for ids in value], True


async def encoded(
    service: Service,
    texts: Sequence[str] | Sequence[tuple[int, ...]],
    name: str,
    *,
    special: bool = False,
    bos: bool = True,
) -> tuple[Prompt, ...]:
    """`texts`, of the field `name`, as prompts of a call. Names of control tokens in text are text, unless `special`; a
    model that was trained with a BOS token gets it in front of text, unless `bos` is False. Token ids are taken as they
    are. `Failure` 400 for ids that are no tokens."""
    prompts: list[Prompt] = []
    for text in texts:
        if not isinstance(text, str):
            ends = (min(text, default=0), max(text, default=0))
            wrong = next((token for token in ends if not 0 <= token < service.vocab), None)
            if wrong is not None:
                raise bad(f"`{name}`: {wrong} is not a token id; ids are 0 to {service.vocab - 1}", name)
        if not isinstance(text, str) or (bos and not special):
            prompts.append(text)
            continue
        prompts.append(await ids_of(service, text, special=special, bos=bos))
    return tuple(prompts)


def refuse_empty(service: Service, prompt: Prompt, name: str) -> None:
    """Raise `Failure` 400 for a prompt, of the field `name`, after which nothing can be generated: it has no token."""
    begins = isinstance(prompt, str) and service.tokenizer.add_bos and service.tokenizer.bos is not None
    if not prompt and not begins:
        raise bad(f"`{name}` is empty: the model needs at least one token to go on from", name)


async def ids_of(service: Service, text: str, *, special: bool, bos: bool) -> tuple[int, ...]:
    """The ids of one text; see `encoded`. `Failure` 400 for a text that is too long to be tokenised at all."""
    check_size(text, service.context)
    if not special:
        return await service.encode(text, special=bos)
    tokenizer = service.tokenizer
    ids = await asyncio.to_thread(contained, partial(tokenizer.encode_template, text, start=bos))
    if bos and tokenizer.add_bos and tokenizer.bos is not None and ids[:1] != [tokenizer.bos]:
        ids = [tokenizer.bos, *ids]
    return tuple(ids)


async def room(service: Service, prompts: Sequence[Prompt], wanted: int) -> int:
    """A length that nobody asked for: `wanted` tokens, or what the context leaves behind the longest prompt."""
    longest = 0
    for prompt in prompts:
        if isinstance(prompt, str) and 4 * len(prompt) + SPARE + wanted <= service.context:
            continue  # no text has more tokens than bytes
        longest = max(longest, len(prompt) if isinstance(prompt, tuple) else await service.count(prompt))
    return max(1, min(wanted, service.context - longest))


# -- tokens as text


def name_of(tokenizer: Tokenizer, token: int) -> str:
    """A token's text, and a control token's name."""
    return tokenizer.token_bytes(token, special=tokenizer.is_special(token)).decode("utf-8", "replace")


def spelled(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """The text of tokens with the names of control tokens in it."""
    return b"".join(tokenizer.token_bytes(token, special=True) for token in tokens).decode("utf-8", "replace")


def ending(tokenizer: Tokenizer, meta: ir.Meta, *, special: bool) -> str:
    """The text of the stop that ended a completion: what clients see who ask for it untrimmed."""
    if meta.matched is None or isinstance(meta.matched, str):
        return meta.matched or ""
    return name_of(tokenizer, meta.matched) if special else tokenizer.decode([meta.matched])


def completed(tokenizer: Tokenizer, text: str, meta: ir.Meta, *, special: bool, untrimmed: bool) -> str:
    """A finished completion's text, with the names of control tokens (`special`) and its stop (`untrimmed`)."""
    whole = spelled(tokenizer, meta.tokens) if special else text
    return whole + (ending(tokenizer, meta, special=special) if untrimmed else "")


# -- several calls


async def all_of(work: Sequence[Coroutine[Any, Any, Answer]]) -> list[Answer]:
    """The answers of several calls, run side by side. The first failure ends all."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def merged(sources: Sequence[AsyncGenerator[Item, None]]) -> AsyncGenerator[tuple[int, Item], None]:
    """What several streams give, as it comes, each with the number of its stream. Closes them all at its end."""
    if len(sources) == 1:  # as almost always: it needs no task per item
        async with contextlib.aclosing(sources[0]) as source:
            async for item in source:
                yield 0, item
        return
    steps = {asyncio.ensure_future(anext(source)): n for n, source in enumerate(sources)}
    try:
        while steps:
            for step in (await asyncio.wait(steps, return_when=asyncio.FIRST_COMPLETED))[0]:
                n = steps.pop(step)
                try:
                    item = step.result()
                except StopAsyncIteration:
                    continue
                steps[asyncio.ensure_future(anext(sources[n]))] = n
                yield n, item
    finally:
        for step in steps:
            step.cancel()
        await asyncio.gather(*steps, return_exceptions=True)
        for source in sources:
            with contextlib.suppress(Failure):
                await source.aclose()


async def written(rows: int, write: Callable[[], Item]) -> Item:
    """`write()`, whose answer tells of `rows` tokens one by one: beside the loop where they are many. A thread costs a
    short answer more than its writing does."""
    return write() if rows < MANY else await asyncio.to_thread(write)
