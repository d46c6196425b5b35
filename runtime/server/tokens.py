"""Text to token ids and back, for clients that count or prepare prompts: `/tokenize`, `/detokenize`, `/tokenizer_info`.

In: text, a chat, or ids. Out: ids, text, what the tokenizer is. The shapes are those of vLLM and SGLang together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import ConfigDict, Field

from ramet.runtime.server import conversation, forms, raw
from ramet.runtime.server.call import Caller, Chat
from ramet.runtime.server.conversation import ChatMessage
from ramet.runtime.server.failures import bad
from ramet.runtime.server.metrics import Metrics
from ramet.runtime.server.nested import OPENAI
from ramet.runtime.server.reasoning import FIELDS as REASONING
from ramet.runtime.server.sampling import given, refuse_constraints
from ramet.runtime.server.service import Service
from ramet.runtime.server.settings import Settings
from ramet.runtime.server.speech import Manner
from ramet.runtime.server.status import check_model
from ramet.runtime.server.toolcalls import chat_offer
from ramet.runtime.server.wire import Body, StrictRoute, attended, caller_of, noted, reply

Who = Depends(caller_of)
MAX_IDS = 1 << 20  # of one request to detokenize
_OF_CHATS = REASONING | {"chat_template_kwargs", "function_call", "functions", "parallel_tool_calls", "reasoning"}
_OF_CHATS |= {"reasoning_effort", "thinking", "tool_choice"}  # what a chat completion takes that bears on its prompt


class Tokenize(Body):
    """Text (or several texts), or the messages of a chat: these with the fields of a chat completion that change its
    prompt."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"prompt": "Hello world"}]})
    model: str | None = None
    prompt: str | list[str] | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool = Field(default=True, description="put the model's BOS token, if it has one, in front")
    parse_special: bool = Field(default=True, description="names of control tokens in `prompt` are these tokens")
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = Field(default=None, description="false: begin no message of the assistant")
    continue_final_message: bool | None = Field(default=None, description="leave the last message open")
    tools: list[dict[str, Any]] | None = Field(default=None, description="of a chat: what the model is told of them")
    chat_template: Any = None
    truncate_prompt_tokens: Any = None


class Detokenize(Body):
    """Token ids, or several lists of them."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"tokens": [19556, 905]}]})
    model: str | None = None
    tokens: list[int] | list[list[int]]
    skip_special_tokens: bool = Field(default=False, description="leave the names of control tokens out")


def router(service: Service, settings: Settings, metrics: Metrics) -> APIRouter:
    """Routes of this module."""
    routes = APIRouter(route_class=StrictRoute, tags=["tokens"])
    manner = Manner.of(service.template)

    @routes.post("/tokenize")
    @routes.post("/v1/tokenize", include_in_schema=False)
    async def tokenize(body: Tokenize, request: Request, caller: Caller = Who) -> Response:
        """The token ids of a text or of a chat, and how many they are."""
        notes = noted(body, settings, ignored=() if body.messages is None else _OF_CHATS, inside=OPENAI)
        refuse_constraints(given(body), tools=body.messages is not None)
        if body.model is not None:
            check_model(service, body.model)
        if (body.prompt is None) == (body.messages is None):
            raise bad("give either `prompt` or `messages`", "prompt")
        if body.messages is None:
            ids, many = await attended(request, _encoded(body, service))
        else:
            chat, more = chat_of(body, manner, service, strict=settings.strict_requests)
            ids, many = [list(await attended(request, service.encode(chat)))], False
            notes += more
        answer: dict[str, Any] = {
            "count": [len(each) for each in ids] if many else len(ids[0]),
            "max_model_len": service.context,
            "tokens": ids if many else ids[0],
            "token_strs": None,
        }
        if body.return_token_strs:
            names = await asyncio.to_thread(_names, service, ids)
            answer["token_strs"] = names if many else names[0]
        return reply(answer, caller, notes)

    @routes.post("/detokenize")
    @routes.post("/v1/detokenize", include_in_schema=False)
    async def detokenize(body: Detokenize, request: Request, caller: Caller = Who) -> Response:
        """The text of token ids."""
        notes = noted(body, settings)
        if body.model is not None:
            check_model(service, body.model)
        many = bool(body.tokens) and isinstance(body.tokens[0], list)
        lists: Sequence[Any] = body.tokens if many else [body.tokens]
        _check_ids(lists, service)
        if body.skip_special_tokens:
            texts = [await attended(request, service.decode(each)) for each in lists]
        else:
            texts = [await asyncio.to_thread(raw.spelled, service.tokenizer, each) for each in lists]
        text = texts if many else texts[0]
        return reply({"prompt": text, "text": text}, caller, notes)

    @routes.get("/tokenizer_info")
    async def tokenizer_info(caller: Caller = Who) -> Response:
        """What the tokenizer is: the names of its special tokens and the chat template."""
        return reply(info(service), caller)

    return routes


async def _encoded(body: Tokenize, service: Service) -> tuple[list[list[int]], bool]:
    """The ids of each prompt, and whether there were many."""
    texts, many = ([body.prompt], False) if isinstance(body.prompt, str) else (body.prompt or [], True)
    if not texts or len(texts) > raw.MAX_PROMPTS:
        raise bad(f"`prompt` has {len(texts)} texts; 1 to {raw.MAX_PROMPTS} in one request", "prompt")
    special, bos = body.parse_special, body.add_special_tokens
    return [list(await raw.ids_of(service, text, special=special, bos=bos)) for text in texts], many


def _names(service: Service, lists: Sequence[Sequence[int]]) -> list[list[str]]:
    return [[raw.name_of(service.tokenizer, token) for token in ids] for ids in lists]


def chat_of(body: Tokenize, manner: Manner, service: Service, *, strict: bool) -> tuple[Chat, tuple[str, ...]]:
    """The chat that a chat completion with the same fields would begin with, and sentences about what was left out of
    it. Raises `Failure` 400."""
    fields = given(body)
    forms.refuse_kwargs(fields, thinks=manner.thinking is not None)
    chat, notes = conversation.chat_of(
        body.messages or (),
        context=service.context,
        continue_final=body.continue_final_message,
        begin_reply=body.add_generation_prompt,
        strict=strict,
        told=manner.told(),
    )
    chat, _ = manner.hearing(chat, chat_offer(fields), None, fields)
    return chat, notes


def _check_ids(lists: Sequence[Sequence[int]], service: Service) -> None:
    total = sum(map(len, lists))
    if total > MAX_IDS:
        raise bad(f"`tokens` has {total} ids; at most {MAX_IDS} in one request", "tokens")
    for ids in lists:
        for token in ids:
            if not 0 <= token < service.vocab:
                raise bad(f"`tokens`: {token} is not a token id; ids are 0 to {service.vocab - 1}", "tokens")


def info(service: Service) -> dict[str, Any]:
    """The facts of `tokenizer_config.json` that clients read."""
    tokenizer = service.tokenizer
    bos = None if tokenizer.bos is None else raw.name_of(tokenizer, tokenizer.bos)
    ends = [raw.name_of(tokenizer, token) for token in tokenizer.eos]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": service.context,
        "vocab_size": service.vocab,
        "add_bos_token": tokenizer.add_bos,
        "bos_token": bos,
        "bos_token_id": tokenizer.bos,
        "eos_token": ends[0] if ends else None,
        "eos_token_id": tokenizer.eos[0] if ends else None,
        "eos_token_ids": list(tokenizer.eos),
        "pad_token": ends[0] if ends else None,
        "unk_token": None,
        "chat_template": service.template.source,
        "clean_up_tokenization_spaces": False,
    }
