"""How the server is, and control of it: what people, load balancers, dashboards, clients of SGLang and vLLM ask.

In: nothing, or a request's label. Out: states, figures, the models that are served.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import Field

from ramet.frontend import ir
from ramet.runtime.messages import Stats
from ramet.runtime.server.call import Call, Caller
from ramet.runtime.server.failures import Failure, bad, unavailable
from ramet.runtime.server.metrics import Metrics
from ramet.runtime.server.service import Service
from ramet.runtime.server.settings import Settings
from ramet.runtime.server.wire import Body, StrictRoute, admin_of, attended, caller_of, noted, reply

Who = Depends(caller_of)
Admin = Depends(admin_of)


class AbortRequest(Body):
    """SGLang's abort: a request's id, or all of the caller's."""

    rid: str | None = Field(default=None, examples=["my-request"])
    abort_all: bool = False


class AbortRequests(Body):
    """vLLM's abort: several ids."""

    request_ids: list[str] = Field(default_factory=list, examples=[["my-request", "another"]])


def router(service: Service, settings: Settings, metrics: Metrics) -> APIRouter:
    """Routes of this module."""
    version = metadata.version("ramet")
    routes = APIRouter(route_class=StrictRoute, tags=["server"])
    _health(routes, service)
    _info(routes, service, settings, metrics, version)
    _loads(routes, service, settings, metrics, version)
    _models(routes, service)
    _control(routes, service, settings)
    return routes


def _health(routes: APIRouter, service: Service) -> None:
    @routes.get("/health", response_class=Response)
    @routes.get("/ping", include_in_schema=False)
    async def health() -> Response:
        """The process answers."""
        return Response(status_code=200)

    @routes.get("/", include_in_schema=False)
    async def index(caller: Caller = Who) -> Response:
        """What this is, for whoever opens it in a browser."""
        return reply({"server": "ramet", "models": list(service.names), "docs": "/docs"}, caller)

    @routes.get("/ready")
    async def ready(caller: Caller = Who) -> Response:
        """Whether requests are served now; else 503, and when to ask again."""
        state = service.state()
        if state != "ready":
            raise unavailable(f"the server is {state}", max(1.0, service.client.ready.load_seconds))
        return reply({"state": state}, caller)

    @routes.get("/health_generate")
    async def health_generate(request: Request, caller: Caller = Who) -> Response:
        """Generate one token."""
        call = Call(("1",), ir.Sampling(temperature=0, max_tokens=1, ignore_eos=True), timeout=20.0)
        await attended(request, service.complete(call, caller))
        return reply({"state": "ready"}, caller)


def _info(routes: APIRouter, service: Service, settings: Settings, metrics: Metrics, version: str) -> None:
    @routes.get("/version")
    async def versions(caller: Caller = Who) -> Response:
        """The server's version."""
        return reply({"version": version}, caller)

    @routes.get("/model_info")
    @routes.get("/get_model_info")
    async def model_info(caller: Caller = Who) -> Response:
        """What SGLang's clients ask before they begin."""
        info = {
            "model_path": service.names[0],
            "tokenizer_path": service.names[0],
            "is_generation": True,
            "context_length": service.context,
            "vocab_size": service.vocab,
            "dtype": service.dtype,
            "weight_version": "default",
        }
        return reply(info, caller)

    @routes.get("/server_info")
    @routes.get("/get_server_info")
    async def server_info(request: Request, caller: Caller = Who) -> Response:
        """Figures of the engine and of the queue in front of it."""
        stats = await attended(request, service.stats())
        return reply({"version": version, "server": "ramet", **figures(service, stats)}, caller)

    @routes.get("/load")
    async def load(caller: Caller = Who) -> Response:
        """Requests in the engine and in front of it."""
        return reply({"server_load": service.running + service.waiting}, caller)

    @routes.get("/metrics", response_class=PlainTextResponse)
    async def prometheus(caller: Caller = Who) -> Response:
        """Figures for Prometheus."""
        stats: Stats | None = None
        if service.state() in ("ready", "draining"):
            try:
                stats = await service.stats(timeout=5.0)
            except Failure:
                stats = None
        text = metrics.text(stats, queued=service.waiting, restarts=service.restarts, now=time.monotonic())
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def figures(service: Service, stats: Stats) -> dict[str, Any]:
    """What `/server_info` says."""
    return {
        "model": service.names[0],
        "served_model_names": list(service.names),
        "dtype": service.dtype,
        "state": service.state(),
        "context_length": service.context,
        "max_total_num_tokens": stats.kv_total,
        "kv": {"total": stats.kv_total, "free": stats.kv_free, "cached": stats.kv_cached, "used": stats.kv_used},
        "programs": stats.programs,
        "running": stats.running,
        "waiting": stats.waiting + service.waiting,
        "steps": stats.steps,
        "step_seconds": stats.step_seconds,
        "mean_step_seconds": stats.step_seconds / max(1, stats.steps),
        "computed_tokens": stats.computed_tokens,
        "generated_tokens": stats.generated_tokens,
        "evicted_tokens": stats.evicted_tokens,
        "retractions": stats.retractions,
        "restarts": service.restarts,
        "load_seconds": service.client.ready.load_seconds,
    }


SECTIONS = frozenset(("all", "core", "disagg", "lora", "memory", "queues", "spec"))  # of SGLang's loads


def _loads(routes: APIRouter, service: Service, settings: Settings, metrics: Metrics, version: str) -> None:
    seen = (0.0, 0)  # when the load was last asked for, and the tokens generated by then

    @routes.get("/get_load")
    async def get_load(request: Request, caller: Caller = Who) -> Response:
        """What SGLang's routers balance by: requests, and KV slots in use, of the one rank that there is."""
        stats = await attended(request, service.stats())
        waiting = stats.waiting + service.waiting
        rank = {"dp_rank": 0, "num_reqs": stats.running + waiting, "num_waiting_reqs": waiting}
        return reply([{**rank, "num_tokens": stats.kv_used}], caller)

    @routes.get("/v1/loads")
    async def loads(
        request: Request,
        dp_rank: int | None = None,
        include: str | None = None,
        format: Literal["json"] | None = None,  # Prometheus has /metrics
        caller: Caller = Who,
    ) -> Response:
        """The same in more figures, for later routers of SGLang. `gen_throughput` is since the last look."""
        nonlocal seen
        sections = {"all"} if include is None else {each.strip() for each in include.split(",")}
        if sections - SECTIONS:
            known = ", ".join(sorted(SECTIONS))
            raise bad(f"`include`: {min(sections - SECTIONS)[:40]!r} is not a section; sections: {known}", "include")
        stats = await attended(request, service.stats())
        (since, generated), seen = seen, (time.monotonic(), stats.generated_tokens)
        pace = max(0, stats.generated_tokens - generated) / max(1e-3, seen[0] - since) if since else 0.0
        rank = load_of(service, settings, stats, pace, metrics.hit_rate())
        if not sections & {"all", "queues"}:
            del rank["queues"]
        ranks = [rank] if dp_rank in (None, 0) else []
        now = datetime.now(UTC).isoformat()
        return reply({"timestamp": now, "version": version, "dp_rank_count": 1, "loads": ranks}, caller)


def load_of(service: Service, settings: Settings, stats: Stats, pace: float, hits: float) -> dict[str, Any]:
    """A rank of `/v1/loads`, in SGLang's names. `utilization` is the fuller of KV and of the places for requests."""
    waiting = stats.waiting + service.waiting
    usage = stats.kv_used / max(1, stats.kv_total)
    return {
        "dp_rank": 0,
        "timestamp": time.time(),
        "num_running_reqs": stats.running,
        "num_waiting_reqs": waiting,
        "num_used_tokens": stats.kv_used,
        "num_total_tokens": stats.kv_used,
        "max_total_num_tokens": stats.kv_total,
        "token_usage": usage,
        "gen_throughput": pace,
        "cache_hit_rate": hits,
        "utilization": max(usage, service.running / settings.max_running_requests),
        "max_running_requests": settings.max_running_requests,
        "queues": {"waiting": waiting},
    }


def _models(routes: APIRouter, service: Service) -> None:
    created = int(time.time())

    def card(name: str) -> dict[str, Any]:
        root = service.names[0]
        return {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "ramet",
            "root": root,
            "parent": None if name == root else root,
            "max_model_len": service.context,
        }

    @routes.get("/v1/models")
    @routes.get("/v1/models/", include_in_schema=False)
    @routes.get("/v1//models", include_in_schema=False)
    async def models(caller: Caller = Who) -> Response:
        """The names under which the model is served."""
        return reply({"object": "list", "data": [card(name) for name in service.names]}, caller)

    @routes.get("/v1/models/{name:path}")
    async def model(name: str, caller: Caller = Who) -> Response:
        """One of them."""
        check_model(service, name)
        return reply(card(name), caller)


def check_model(service: Service, name: str) -> None:
    """Raise `Failure` 404 for a model that is not served here; "default" is whatever is, as at SGLang."""
    if name not in (*service.names, "default"):
        served = ", ".join(f"`{known}`" for known in service.names)
        message = f"the model `{name[:128]}` is not served here; served: {served}"
        raise Failure(404, message, code="model_not_found", param="model")


def _control(routes: APIRouter, service: Service, settings: Settings) -> None:
    @routes.get("/flush_cache")
    @routes.post("/flush_cache")
    @routes.post("/reset_prefix_cache")
    async def flush_cache(caller: Caller = Admin) -> Response:
        """Forget cached prefixes that nothing under way uses."""
        return reply({"success": await service.flush()}, caller)

    @routes.post("/abort_request")
    async def abort_request(body: AbortRequest, caller: Caller = Who) -> Response:
        """End the caller's requests of one id, or all of them."""
        notes = noted(body, settings)
        if not body.rid and not body.abort_all:
            raise Failure(400, "`rid` is required, or `abort_all`", code="invalid_value", param="rid")
        count = service.abort("" if body.abort_all else body.rid or "", caller)
        return reply({"aborted": count}, caller, notes)

    @routes.post("/abort_requests")
    async def abort_requests(body: AbortRequests, caller: Caller = Who) -> Response:
        """End the caller's requests of several ids."""
        notes = noted(body, settings)
        return reply(
            {"aborted": sum(service.abort(label, caller) for label in body.request_ids if label)}, caller, notes
        )

    @routes.post("/concate_and_append_request")
    async def concate_and_append(caller: Caller = Who) -> Response:
        """A hint of SGLang's frontend; nothing needs to be done here: joined text finds its cached prefix by itself."""
        return reply({"success": True}, caller)
