"""The protocols that the server speaks. In: nothing. Out: their routers, in the order in which paths are matched."""

from __future__ import annotations

from ramet.runtime.server import (
    anthropic,
    chat,
    completions,
    decisions,
    generate,
    ollama,
    programs,
    responses,
    status,
    tokens,
)
from ramet.runtime.server.app import Router
from ramet.runtime.server.dashboard import routes as dashboard

ROUTERS: tuple[Router, ...] = (
    status.router,
    generate.router,
    completions.router,
    tokens.router,
    anthropic.router,
    ollama.router,
    chat.router,
    responses.router,
    decisions.router,
    programs.router,
    dashboard.router,
)
