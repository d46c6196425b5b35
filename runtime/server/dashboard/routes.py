"""`/dashboard` and its stream, under `dashboard` of `Settings`; without it these paths do not exist.

In: requests. Out: the page, which is open to everybody and empty; its frames, for whoever shows a key. The admin key
sees all programs, and so does the only key there is; of several keys each sees the programs and prefixes of its own
namespace (R9), and the figures of the whole engine, as in `/server_info`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse

from ramet.runtime.server.call import Caller
from ramet.runtime.server.dashboard.feed import Feed
from ramet.runtime.server.dashboard.page import page
from ramet.runtime.server.failures import overloaded
from ramet.runtime.server.metrics import Metrics
from ramet.runtime.server.service import Service
from ramet.runtime.server.settings import Settings
from ramet.runtime.server.wire import SSE, Batch, StrictRoute, caller_of, headers_of, sse

WATCHERS = 64  # streams at once
Who = Depends(caller_of)


def router(service: Service, settings: Settings, metrics: Metrics) -> APIRouter:
    """Routes of this module; none when there is to be no dashboard."""
    routes = APIRouter(route_class=StrictRoute, tags=["server"])
    if not settings.dashboard:
        return routes
    feeds: dict[str | None, Feed] = {}
    watching: dict[str | None, int] = {}

    async def watched(view: str | None) -> AsyncGenerator[Batch, None]:
        """The frames of a view, counted."""
        if sum(watching.values()) >= WATCHERS:
            raise overloaded(f"{WATCHERS} dashboards are watching already", 10.0)
        watching[view] = watching.get(view, 0) + 1
        try:
            async with contextlib.aclosing(feeds.setdefault(view, Feed(service, metrics, view)).watch()) as frames:
                async for frame in frames:
                    yield frame
        finally:
            watching[view] -= 1

    @routes.get("/dashboard", include_in_schema=False)
    async def dashboard(caller: Caller = Who) -> Response:
        """The page."""
        made = page()
        return Response(made.body, headers={**made.headers, **headers_of(caller)}, media_type="text/html")

    @routes.get("/dashboard/events", responses=SSE, response_class=StreamingResponse)
    async def events(request: Request, caller: Caller = Who) -> Response:
        """What the page shows, as server-sent events: one `history`, then a `frame` about twice a second."""
        return await sse(watched(_view(settings, caller)), request, caller, done=None)

    return routes


def _view(settings: Settings, caller: Caller) -> str | None:
    """The namespace that a caller may look into; None for all."""
    alone = caller.admin if settings.admin_key else len(settings.api_key) <= 1
    return None if alone else caller.namespace
