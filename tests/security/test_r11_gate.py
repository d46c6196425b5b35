"""R11, the gate by itself and in front of every route: deny by default on `scope["path"]`, keys in constant time,
Hosts, Origins, addresses. The controls are gates with one fault each: the same checks find it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from ramet.frontend.errors import EngineError
from ramet.runtime.client import EngineClient
from ramet.runtime.server import app as app_module
from ramet.runtime.server import guard
from ramet.runtime.server.settings import LOOPBACK, Settings

from ..server.serving import engine_client, make_app
from .mutation import changed
from .odd_paths import METHODS, OPEN, asked, near, routes_of, spellings

KEYED = Settings(api_key=("user", "other"), admin_key="boss")
TARGETS = (
    "/generate",
    "/flush_cache",
    "/",
    "/v1/models",
    "/server_info",
    "/metrics",
    "/docs",
    "/dashboard",
    "/api/tags",
)


async def inside(scope: Scope, receive: Receive, send: Send) -> None:
    """What nobody reaches without a key."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        return
    await send({"type": "http.response.start", "status": 299, "headers": []})
    await send({"type": "http.response.body", "body": b"inside"})


def status(
    module: Any, settings: Settings, path: str, method: str = "GET", *headers: tuple[bytes, bytes], **more: Any
) -> int:
    """What a gate says; 299 is that of the application behind it."""
    return asked(module.Guard(inside, settings), path, method, headers, **more)[0]


# -- the checks


def closed(module: Any) -> None:
    """Without a key nothing but the open paths, written exactly, is reached, by any method."""
    for path in (*TARGETS, *(spelling for target in TARGETS[:3] for spelling in spellings(target))):
        assert status(module, KEYED, path) in (400, 401), repr(path)
    for known in OPEN:
        assert status(module, KEYED, known) == 299
        for path in near(known):
            assert status(module, KEYED, path) in (400, 401), repr(path)
    for method in METHODS:
        assert status(module, KEYED, "/generate", method) == 401, method
    assert status(module, KEYED, "/v1/programs", kind="websocket") in (401, 403)
    assert status(module, Settings(api_key=("user",), metrics_public=True), "/metrics") == 299
    for prefix in ("/llm", "/health"):
        rooted = Settings(api_key=("user",), root_path=prefix)
        assert status(module, rooted, f"{prefix}/generate") == status(module, rooted, f"{prefix}/x/ready") == 401


def bearer(key: bytes) -> tuple[bytes, bytes]:
    return (b"authorization", b"Bearer " + key)


WRONG = (
    b"",
    b"u",
    b"use",
    b"userx",
    b"User",
    b"user,other",
    b"*",
    b"None",
    b"us\xe9r",
    b"\xff\xfe",
    b"user\0",
)


def keyed(module: Any) -> None:
    """Every key gets in, nothing that is nearly one does, and a key that is not ASCII is a 401 like any other."""
    for key in (b"user", b"other", b"boss"):
        assert status(module, KEYED, "/generate", "POST", bearer(key)) == 299
        assert status(module, KEYED, "/generate", "POST", (b"x-api-key", key)) == 299
    for key in WRONG:
        for header in (bearer(key), (b"x-api-key", key)):
            assert status(module, KEYED, "/generate", "POST", header) == 401, header
    for scheme in (b"Basic ", b"Token ", b"Bearer", b""):
        assert status(module, KEYED, "/generate", "POST", (b"authorization", scheme + b"user")) == 401, scheme
    assert status(module, KEYED, "/generate", "POST", bearer(b"user"), bearer(b"wrong")) == 400
    for name in (b"cookie", b"x-forwarded-user", b"proxy-authorization", b"api-key"):
        assert status(module, KEYED, "/generate", "POST", (name, b"user")) == 401


def constant_time(module: Any) -> None:
    """`compare_digest` alone decides, over the bytes of every configured key: where it says no, nobody gets in."""
    compared: list[tuple[Any, Any]] = []

    def never(one: Any, other: Any) -> bool:
        compared.append((one, other))
        return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.hmac, "compare_digest", never)
        for key in (b"user", b"other", b"boss", b"wrong"):
            assert status(module, KEYED, "/generate", "POST", bearer(key)) == 401
        assert {other for one, other in compared if one == b"wrong"} == {b"user", b"other", b"boss"}
        assert all(isinstance(each, bytes) for pair in compared for each in pair)


HOSTS = (
    b"evil.example",
    b"localhost.evil.example",
    b"evil.localhost",
    b"127.0.0.1.evil.example",
    b"",
    b"0.0.0.0",
    b"10.0.0.1",
)


def hosts(module: Any) -> None:
    """On loopback a Host that is none of ours is a 403 (DNS rebinding), for open paths too."""
    for host in HOSTS:
        for path in ("/generate", "/health"):
            assert status(module, Settings(), path, host=host) == 403, host
    for host in (b"localhost", b"127.0.0.1:8000", b"[::1]:8000", b"LOCALHOST"):
        assert status(module, Settings(), "/generate", host=host) == 299
    assert status(module, Settings(allowed_host=("evil.example",)), "/generate", host=b"evil.example") == 299


def origins(module: Any) -> None:
    """A page of another site gets a 403, also where it asks before it asks (CORS is off)."""
    foreign = ((b"origin", b"https://evil.example"), (b"origin", b"null"), (b"sec-fetch-site", b"cross-site"))
    for header in (*foreign, (b"sec-fetch-site", b"same-site"), (b"origin", b"http://localhost.evil.example")):
        for method in ("GET", "POST", "OPTIONS"):
            assert status(module, Settings(), "/generate", method, header) == 403, header
    for header in ((b"origin", b"http://localhost"), (b"sec-fetch-site", b"same-origin")):
        assert status(module, Settings(), "/generate", "POST", header) == 299


CHECKS: dict[str, Callable[[Any], None]] = {
    "closed": closed,
    "keyed": keyed,
    "constant time": constant_time,
    "hosts": hosts,
    "origins": origins,
}


@pytest.mark.parametrize("check", CHECKS)
def test_the_gate(check: str):
    CHECKS[check](guard)


# -- the controls: gates with a fault

IN_OPEN = "is_open = path in OPEN or"
COMPARED = "any(hmac.compare_digest(each, key) for each in given)"
TEXTS = 'hmac.compare_digest(each.decode("latin-1"), key.decode())'
LIFESPAN = 'if scope["type"] == "lifespan":'
MUTATIONS: dict[str, tuple[str, tuple[str, str]]] = {
    "open by its beginning": ("closed", (IN_OPEN, "is_open = path.startswith(tuple(OPEN)) or")),
    "open by its end": ("closed", (IN_OPEN, "is_open = path.endswith(tuple(OPEN)) or")),
    "open in any case": ("closed", (IN_OPEN, "is_open = path.lower() in OPEN or")),
    "open with slashes": ("closed", (IN_OPEN, 'is_open = path.rstrip("/") in OPEN or')),
    "open with more slashes": ("closed", (IN_OPEN, 'is_open = "/" + path.lstrip("/") in OPEN or')),
    "open without spaces": ("closed", (IN_OPEN, "is_open = path.strip() in OPEN or")),
    "open in front of a semicolon": ("closed", (IN_OPEN, 'is_open = path.partition(";")[0] in OPEN or')),
    "open by its last part": ("closed", (IN_OPEN, 'is_open = "/" + path.split("/")[-1] in OPEN or')),
    "open unless listed": ("closed", (IN_OPEN, 'is_open = path not in ("/generate", "/v1/models") or')),
    "metrics always open": ("closed", (" and self._settings.metrics_public)", ")")),
    "the page always open": ("closed", (" and self._settings.dashboard)", ")")),
    "OPTIONS passes": ("closed", (LIFESPAN, 'if scope["type"] == "lifespan" or scope.get("method") == "OPTIONS":')),
    "HEAD passes": ("closed", (LIFESPAN, 'if scope["type"] == "lifespan" or scope.get("method") == "HEAD":')),
    "WebSockets pass": ("closed", (LIFESPAN, 'if scope["type"] in ("lifespan", "websocket"):')),
    "the prefix is open": (
        "closed",
        (
            IN_OPEN,
            "is_open = path.removeprefix(self._settings.root_path) in (*OPEN, '/x/ready') or",
        ),
    ),
    "the beginning of a key": ("keyed", (COMPARED, "any(key.startswith(each) for each in given)")),
    "more than a key": ("keyed", (COMPARED, "any(each.startswith(key) for each in given)")),
    "any case of a key": ("keyed", (COMPARED, "any(each.lower() == key for each in given)")),
    "keys as text": ("keyed", (COMPARED, f"any({TEXTS} for each in given)")),
    "the first key only": (
        "keyed",
        ("known = [key for key in self._keys if", "known = [key for key in self._keys[:1] if"),
    ),
    "any scheme": ("keyed", ('if scheme.lower() == b"bearer" else b""', 'if scheme else b""')),
    "the last of two headers": ("keyed", ("if names.count(name) > 1:", "if names.count(name) > 9:")),
    "keys by ==": ("constant time", (COMPARED, "any(each == key for each in given)")),
    "the admin key by ==": (
        "constant time",
        ("any(hmac.compare_digest(each, self._admin) for each in given)", "self._admin in given"),
    ),
    "any Host": ("hosts", ("if settings.host in LOOPBACK and name not in", "if False and name not in")),
    "a Host's beginning": (
        "hosts",
        ("and name not in (*LOOPBACK,", "and not name.startswith(LOOPBACK) and name not in (*LOOPBACK,"),
    ),
    "a Host's end": (
        "hosts",
        ("and name not in (*LOOPBACK,", "and not name.endswith(LOOPBACK) and name not in (*LOOPBACK,"),
    ),
    "no Host": ("hosts", ("and name not in (*LOOPBACK,", "and name and name not in (*LOOPBACK,")),
    "any Origin": (
        "origins",
        ("if (origin not in allowed if origin else foreign)", "if (False if origin else foreign)"),
    ),
    "an Origin's beginning": (
        "origins",
        ("(origin not in allowed if origin", "(not origin.startswith(allowed) if origin"),
    ),
    "GETs of other sites": ("origins", ("if origin else foreign)", "if origin else False)")),
    "no Origin for null": (
        "origins",
        ("(origin not in allowed if origin", '(origin not in (*allowed, "null") if origin'),
    ),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_gate_with_a_fault_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mutation: str):
    check, change = MUTATIONS[mutation]
    faulty = changed(guard, mutation, *change).load(tmp_path, monkeypatch)
    with pytest.raises((AssertionError, TypeError)):
        CHECKS[check](faulty)


# -- every route of the application


@pytest.fixture(scope="module")
def client() -> Iterator[EngineClient]:
    made = engine_client()
    yield made
    made.close()


def whole(client: EngineClient, settings: Settings) -> tuple[ASGIApp, list[tuple[frozenset[str], str]]]:
    """The application, and all of its routes."""
    made: list[Any] = []
    inner = app_module.FastAPI
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app_module, "FastAPI", lambda **options: made.append(inner(**options)) or made[0])
        app, _ = make_app(client, settings)
    return app, list(routes_of(made[0].routes))


def denied(app: ASGIApp, routes: list[tuple[frozenset[str], str]]) -> None:
    """The check: every route asks for a key, by every method."""
    assert len(routes) > 40
    for methods, path in routes:
        if path in OPEN:
            continue
        real = path.replace("{name:path}", "x").replace("{", "").replace("}", "")
        for method in {*methods, "HEAD", "OPTIONS", "POST"}:
            assert asked(app, real, method)[0] == 401, (method, real)
        if not methods:
            assert asked(app, real, kind="websocket")[0] in (401, 403)


ADMINS = frozenset((("POST", "/flush_cache"), ("GET", "/flush_cache"), ("POST", "/reset_prefix_cache")))


def ruled(app: ASGIApp) -> None:
    """The check: control is the admin's; a user's key does not do."""
    for method, path in ADMINS:
        assert asked(app, path, method, [bearer(b"user")])[0] == 403, path


@pytest.mark.model
def test_every_route_is_closed(client: EngineClient):
    app, routes = whole(client, Settings(api_key=("user",), admin_key="boss", dashboard=True))
    shown = [(methods, path) for methods, path in routes if path != "/dashboard"]  # an empty page: its data is closed
    denied(app, shown)
    ruled(app)
    words = ("flush", "reset", "shutdown", "weights", "update", "stop", "pause", "profile", "sleep", "load_", "kill")
    control = {(method, path) for methods, path in routes for method in methods if any(w in path for w in words)}
    assert control == ADMINS, "a route of control that this test does not know"


@pytest.mark.model
def test_a_route_that_is_open_is_seen(client: EngineClient, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(guard, "OPEN", frozenset((*OPEN, "/api/tags")))
    with pytest.raises(AssertionError):
        denied(*whole(client, KEYED))


@pytest.mark.model
def test_control_without_the_admin_key_is_seen(client: EngineClient):
    app, _ = whole(client, Settings(api_key=("user",)))  # no admin key is set: then every key is an admin's
    with pytest.raises((AssertionError, RuntimeError)):
        ruled(app)


@pytest.mark.model
def test_cors_is_off(client: EngineClient):
    """No answer tells a browser that a page may read it; with `cors_origin`, the control, it does."""

    def allowed(settings: Settings, origin: bytes) -> bool:
        app, _ = whole(client, settings)
        preflight = [(b"origin", origin), (b"access-control-request-method", b"POST")]
        heads = [asked(app, "/health", "OPTIONS", preflight)[1], asked(app, "/health", "GET", preflight[:1])[1]]
        return any(name.startswith(b"access-control-") for head in heads for name in head)

    assert not allowed(Settings(), b"https://evil.example") and not allowed(Settings(), b"http://localhost")
    assert allowed(Settings(cors_origin=("https://a.example",)), b"https://a.example")


# -- addresses

ELSEWHERE = (
    "0.0.0.0",
    "::",
    "",
    "192.168.1.1",
    "example.com",
    "localhost.example.com",
    "127.0.0.1.example.com",
    "LOCALHOST.",
)


@pytest.mark.parametrize("host", ELSEWHERE)
def test_no_address_beyond_loopback_without_a_key(host: str):
    for more in ({}, {"admin_key": "boss"}, {"allowed_host": ("x",)}):
        with pytest.raises(EngineError, match="without a key"):
            Settings(host=host, **more)  # type: ignore[arg-type]
    assert Settings(host=host, api_key=("user",)).host == host  # the controls: with a key, or a decision
    assert Settings(host=host, insecure=True).host == host


def test_loopback_needs_none():
    assert [Settings(host=host).host for host in LOOPBACK] == list(LOOPBACK)


@pytest.mark.parametrize("key", ["", " ", "k\u00e9y", "a b", "a\n", "\x7f"])
def test_keys_that_no_client_could_show_are_refused(key: str):
    for field in ({"api_key": (key,)}, {"admin_key": key}):
        if field == {"admin_key": ""}:
            continue  # that is none
        with pytest.raises(EngineError, match="printable ASCII"):
            Settings(**field)  # type: ignore[arg-type]
