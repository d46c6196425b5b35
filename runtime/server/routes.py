"""The protocols that the server speaks. In: nothing. Out: their routers, in the order in which paths are matched."""

from __future__ import annotations

from ramet.runtime.server import status
from ramet.runtime.server.app import Router

ROUTERS: tuple[Router, ...] = (status.router,)
