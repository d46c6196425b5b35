"""What Anthropic's and Ollama's protocols share: errors of their own shape, and turns of one role that become one.

In: requests, and messages as these clients keep them. Out: errors as `vendor_errors` writes them; messages in roles
that the model's chat template takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError

from ramet.frontend.errors import ConstraintError
from ramet.runtime.server.call import Chat, Message
from ramet.runtime.server.failures import Failure
from ramet.runtime.server.invalid import sentence
from ramet.runtime.server.service import Service
from ramet.runtime.server.vendor_errors import refusal
from ramet.runtime.server.wire import StrictRoute, caller_in
from ramet.runtime.template import ChatTemplate

SEPARATOR = "\n\n"  # between messages that become one


class DialectRoute(StrictRoute):
    """A strict route whose failures have the shape that `vendor_errors` gives its path. The request's id is also in
    `request-id`, where Anthropic's client looks for it."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        """The handler that FastAPI calls."""
        inner = super().get_route_handler()

        async def handler(request: Request) -> Response:
            caller = caller_in(request.scope)
            try:
                response: Response = await inner(request)
            except Failure as failure:
                response = refusal(self.path, failure, caller)
            except RequestValidationError as error:
                response = refusal(self.path, sentence(error.errors(), error.body), caller)
            response.headers["request-id"] = caller.label
            return response

        return handler


# -- histories


async def chat_of(service: Service, messages: Sequence[Message]) -> Chat:
    """The conversation as the model's template takes it; a last message of the assistant is continued. `Failure` 400
    for more messages than the context can hold (each takes a token at least)."""
    if len(messages) > service.context:
        most = f"This model's maximum context length is {service.context} tokens."
        message = f"{most} However, you sent {len(messages)} messages. Please reduce their number."
        raise Failure(400, message, code="context_length_exceeded", param="messages")
    taken = await asyncio.to_thread(turns, messages, service.template)
    return Chat(taken, continue_final=bool(taken) and taken[-1].role == "assistant")


def turns(messages: Sequence[Message], template: ChatTemplate) -> tuple[Message, ...]:
    """Messages of one role that follow each other become one, but for results of tools. A system message keeps its
    place where the template takes it, and is text of the user's message there where it does not (Gemma has none;
    Mistral has one, in front)."""
    done: list[Message] = []
    for message in messages:
        role = message.role
        if role == "system" and not _takes(template, [each.role for each in done], role):
            role = "user"
        if done and done[-1].role == role != "tool":
            done[-1] = Message(role, done[-1].content + SEPARATOR + message.content)
        else:
            done.append(Message(role, message.content))
    return tuple(done)


def _takes(template: ChatTemplate, history: Sequence[str], role: str) -> bool:
    if history and history[-1] == role:
        return True
    try:
        template.edge(history, role, "begin")
    except ConstraintError:
        return False
    return True
