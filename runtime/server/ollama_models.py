"""What Ollama's clients ask before they talk: which version this is, which models there are, what they can do.

In: a model's name, or nothing. Out: the names that are served, as Ollama shows models.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from fastapi import APIRouter, Depends, Response

from ramet.runtime.server.call import Caller
from ramet.runtime.server.ollama_bodies import ShowRequest
from ramet.runtime.server.service import Service
from ramet.runtime.server.settings import Settings
from ramet.runtime.server.speech import Manner
from ramet.runtime.server.status import check_model
from ramet.runtime.server.wire import caller_of, noted, reply

Who = Depends(caller_of)
API = "0.12.11"  # Ollama's release whose protocol this is: clients compare it with what they need
LATEST = ":latest"  # a tag that clients add to names without one
FOREVER = "9999-12-31T23:59:59Z"


def now() -> str:
    """The time as Ollama writes it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def served_name(service: Service, name: str) -> str:
    """The served name that `name` means. `Failure` 404."""
    plain = name.removesuffix(LATEST)
    chosen = plain if plain in service.names else name
    check_model(service, chosen)
    return chosen


def models(routes: APIRouter, service: Service, settings: Settings) -> None:
    """The routes that tell of them."""
    since = now()
    thinks = [] if Manner.of(service.template).thinking is None else ["thinking"]
    details = {
        "parent_model": "",
        "format": "",
        "family": "ramet",
        "families": ["ramet"],
        "parameter_size": "",
        "quantization_level": service.dtype,
    }

    def card(name: str) -> dict[str, Any]:
        """A model. Its digest is of its name, its size is not known here: 0."""
        digest = hashlib.sha256(name.encode()).hexdigest()
        return {"name": name, "model": name, "size": 0, "digest": digest, "details": details}

    @routes.get("/version")
    async def version(caller: Caller = Who) -> Response:
        """The version of Ollama's protocol; beside it our own."""
        return reply({"version": API, "ramet": metadata.version("ramet")}, caller)

    @routes.get("/tags")
    async def tags(caller: Caller = Who) -> Response:
        """The names under which the model is served."""
        return reply({"models": [{**card(name), "modified_at": since} for name in service.names]}, caller)

    @routes.get("/ps")
    async def running(caller: Caller = Who) -> Response:
        """What is loaded: the same."""
        state = {"expires_at": FOREVER, "size_vram": 0, "context_length": service.context}
        return reply({"models": [{**card(name), **state} for name in service.names]}, caller)

    @routes.post("/show")
    async def show(body: ShowRequest, caller: Caller = Who) -> Response:
        """What is known of a model."""
        notes = noted(body, settings, ignored=("system", "template", "options"))
        name = served_name(service, body.model or body.name or "")
        known = {
            "general.architecture": "ramet",
            "general.basename": name,
            "ramet.context_length": service.context,
            "ramet.vocab_size": service.vocab,
        }
        shown = {
            "modelfile": f"FROM {name}\n",
            "parameters": f"num_ctx {service.context}",
            "template": service.template.source,
            "details": details,
            "model_info": known,
            "capabilities": ["completion", "tools", *thinks],
            "modified_at": since,
        }
        return reply(shown, caller, notes)
