"""Text to token ids and back, for clients that count or prepare prompts: `/tokenize`, `/detokenize`, `/tokenizer_info`.

In: text, a chat, or ids. Out: ids, text, what the tokenizer is. The shapes are those of vLLM and SGLang together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import ConfigDict, Field

from ramet.runtime.server import raw
from ramet.runtime.server.call import Caller, Chat, Message, Prompt
from ramet.runtime.server.failures import bad, unsupported
from ramet.runtime.server.metrics import Metrics
from ramet.runtime.server.sampling import given, refuse_constraints
from ramet.runtime.server.service import Service
from ramet.runtime.server.settings import Settings
from ramet.runtime.server.status import check_model
from ramet.runtime.server.wire import Body, StrictRoute, attended, caller_of, noted, reply

Who = Depends(caller_of)
MAX_MESSAGES = 4096
MAX_IDS = 1 << 20  # of one request to detokenize


class ChatMessage(Body):
    """One message; the content is text, or parts of text."""

    role: str
    content: str | list[dict[str, Any]] | None = None


class Tokenize(Body):
    """Text (or several texts), or the messages of a chat."""

    model_config = ConfigDict(
        extra="allow", protected_namespaces=(), json_schema_extra={"examples": [{"prompt": "Hello world"}]}
    )
    model: str | None = None
    prompt: str | list[str] | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool = Field(default=True, description="put the model's BOS token, if it has one, in front")
    parse_special: bool = Field(default=True, description="names of control tokens in `prompt` are these tokens")
    return_token_strs: bool | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    tools: Any = None
    chat_template: Any = None
    truncate_prompt_tokens: Any = None


class Detokenize(Body):
    """Token ids, or several lists of them."""

    model_config = ConfigDict(
        extra="allow", protected_namespaces=(), json_schema_extra={"examples": [{"tokens": [19556, 905]}]}
    )
    model: str | None = None
    tokens: list[int] | list[list[int]]
    skip_special_tokens: bool = Field(default=False, description="leave the names of control tokens out")


def router(service: Service, settings: Settings, metrics: Metrics) -> APIRouter:
    """Routes of this module."""
    routes = APIRouter(route_class=StrictRoute, tags=["tokens"])

    @routes.post("/tokenize")
    @routes.post("/v1/tokenize", include_in_schema=False)
    async def tokenize(body: Tokenize, request: Request, caller: Caller = Who) -> Response:
        """The token ids of a text or of a chat, and how many they are."""
        notes = noted(body, settings, ignored=("chat_template_kwargs",))
        refuse_constraints(given(body))
        if body.model is not None:
            check_model(service, body.model)
        ids, many = await attended(request, _encoded(body, service))
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
    if (body.prompt is None) == (body.messages is None):
        raise bad("give either `prompt` or `messages`", "prompt")
    if body.messages is not None:
        prompt: Prompt = chat_of(
            body.messages, begin_reply=body.add_generation_prompt, go_on=body.continue_final_message
        )
        return [list(await service.encode(prompt))], False
    texts, many = ([body.prompt], False) if isinstance(body.prompt, str) else (body.prompt or [], True)
    if not texts or len(texts) > raw.MAX_PROMPTS:
        raise bad(f"`prompt` has {len(texts)} texts; 1 to {raw.MAX_PROMPTS} in one request", "prompt")
    special, bos = body.parse_special, body.add_special_tokens
    return [list(await raw.ids_of(service, text, special=special, bos=bos)) for text in texts], many


def _names(service: Service, lists: Sequence[Sequence[int]]) -> list[list[str]]:
    return [[raw.name_of(service.tokenizer, token) for token in ids] for ids in lists]


def chat_of(messages: Sequence[ChatMessage], *, begin_reply: bool, go_on: bool) -> Chat:
    """A chat for the model's template. Raises `Failure` 400."""
    if not 0 < len(messages) <= MAX_MESSAGES:
        raise bad(f"`messages` has {len(messages)} messages; 1 to {MAX_MESSAGES}", "messages")
    if begin_reply and go_on:
        raise bad("`continue_final_message` needs `add_generation_prompt`: false", "continue_final_message")
    return Chat(tuple(Message(m.role, _text(m, i)) for i, m in enumerate(messages)), go_on, begin_reply)


def _text(message: ChatMessage, index: int) -> str:
    where = f"messages[{index}].content"
    if message.content is None:
        return ""
    if isinstance(message.content, str):
        return message.content
    texts = []
    for part in message.content:
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise unsupported(where, f"`{where}`: only parts of type text are read")
        texts.append(part["text"])
    return "".join(texts)


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
