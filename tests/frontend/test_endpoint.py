"""Programs on a server elsewhere are what they are on an engine here; whatever goes wrong there is told in time."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import msgspec
import pytest

import ramet as rt
from ramet.frontend.backends.endpoint import Endpoint
from ramet.frontend.ir import Finished, Header, Meta

from ..examples.test_examples_engine import RUNS
from ..runtime.engines import long_program, short_program
from ..server.serving import Served, serving
from .remotely import Peer, closed_url, said, silent

pytestmark = pytest.mark.model
WAIT = 60.0


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(engine={"kv_tokens": 8192}) as server:
        yield server


@pytest.fixture(scope="module")
def endpoint(served: Served) -> Iterator[Endpoint]:
    with rt.Endpoint(served.url) as made:
        assert made.speaks_programs
        yield made


def results(run: rt.Run[Any]) -> list[tuple[str, str, str, tuple[Any, ...]]]:
    """Every call's variable, value, and everything about it that does not depend on time or cache."""
    run.result(WAIT)
    return sorted(
        (event.op, event.var, event.value, msgspec.structs.astuple(steady(event.meta)))
        for event in run.events()
        if isinstance(event, Finished)
    )


def steady(meta: Meta) -> Meta:
    return msgspec.structs.replace(
        meta,
        cached_tokens=0,
        computed_tokens=None,
        recomputed_tokens=None,
        retractions=None,
        first_step=0,
        last_step=0,
        queued_seconds=0.0,
        seconds=0.0,
        first_token_seconds=None,
        memory_seconds=None,
        forced_tokens=0,
    )


def clean(served: Served) -> None:
    figures = httpx.get(served.url + "/server_info").json()
    while figures["programs"] or served.service.running:
        figures = httpx.get(served.url + "/server_info").json()
    assert figures["kv"]["used"] == 0


@pytest.mark.parametrize("name", RUNS)
def test_examples_are_the_same_bits(served: Served, endpoint: Endpoint, name: str) -> None:
    def seeded(backend: Any) -> Any:
        return _Seeded(backend)

    here = results(RUNS[name](seeded(served.offline())))
    assert results(RUNS[name](seeded(endpoint))) == here
    clean(served)


class _Seeded:
    """A backend whose programs all have one seed."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def open(self, header: Header, deliver: Any) -> Any:
        return self._backend.open(msgspec.structs.replace(header, seed=5), deliver)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


def test_what_it_says_of_itself(served: Served, endpoint: Endpoint) -> None:
    info = endpoint.info()
    assert (info["model"], info["context_length"]) == ("tiny", 1024)
    assert isinstance(info["kv"], dict)
    assert endpoint.flush_cache()
    assert rt.get_server_info(endpoint)["dtype"] == served.client.ready.dtype
    assert repr(endpoint) == f"Endpoint({served.url!r})"
    with rt.RuntimeEndpoint(served.url + "/v1/") as other:
        assert other.url == served.url


def test_many_programs_share_few_sockets(served: Served, endpoint: Endpoint) -> None:
    runs = short_program.using(backend=endpoint).batch([{"tokens": 1 + i % 4} for i in range(40)], concurrency=8)
    assert len(runs.result()) == 40
    assert 0 < len(endpoint._sockets._idle) <= 9
    clean(served)


def test_text_streams(endpoint: Endpoint) -> None:
    run = short_program.using(backend=endpoint)(tokens=12)
    assert "".join(event.text for event in run.events() if isinstance(event, rt.Token)) == run.result(WAIT)


def test_cancel_and_a_vanished_reader_free_everything(served: Served, endpoint: Endpoint) -> None:
    run = long_program.using(backend=endpoint)()
    next(event for event in run.events() if isinstance(event, rt.Token))
    run.cancel()
    with pytest.raises(rt.Aborted):
        run.result(WAIT)
    clean(served)
    early = long_program.using(backend=endpoint)()
    early.cancel()
    with pytest.raises(rt.Aborted):
        early.result(WAIT)
    clean(served)


def test_a_program_that_takes_too_long(served: Served, endpoint: Endpoint) -> None:
    with pytest.raises(rt.ProgramTimeout):
        long_program.using(backend=endpoint, timeout=0.1)().result(WAIT)
    clean(served)


@pytest.mark.parametrize(
    ("body", "error", "match"),
    [
        (lambda s: s.role("wizard", "Abracadabra"), rt.ConstraintError, "wizard"),
        (lambda s: s.gen(stop_token_ids=[10**6]), rt.ConstraintError, "stop_token_ids: 1000000 is not a token id"),
        (lambda s: s.__iadd__("a \ud800 b"), rt.ConstraintError, "surrogate"),
        (lambda s: s.__iadd__("tree " * 1200), rt.ContextOverflow, "context"),
        (lambda s: s.__iadd__("a" * 1_000_000), rt.ContextOverflow, "10000.. characters"),
    ],
)
def test_what_the_server_refuses(
    served: Served, endpoint: Endpoint, body: Callable[[rt.State], Any], error: type[BaseException], match: str
) -> None:
    def whole(s: rt.State) -> str:
        s += "Once"
        body(s)
        return s.gen(max_tokens=2).get()

    with pytest.raises(error, match=match) as caught:
        rt.function(whole).using(backend=endpoint)().result(WAIT)
    assert isinstance(caught.value, rt.ProgramError)
    assert caught.value.where.startswith("test_endpoint.py:")
    clean(served)


def test_a_refused_branch_leaves_its_siblings_alone(endpoint: Endpoint) -> None:
    @rt.function
    def body(s: rt.State) -> list[Any]:
        s += "Once"
        branches = s.fork(3)
        branches[1] += "tree " * 1200
        branches += rt.gen("x", max_tokens=3, ignore_eos=True)
        return branches.gather("x", on_error="return")

    found = body.using(backend=endpoint)().result(WAIT)
    assert [type(each) for each in found] == [str, rt.ContextOverflow, str]


def test_a_program_over_the_limits() -> None:
    with serving(max_program_tokens=50) as server, rt.Endpoint(server.url) as small:
        with pytest.raises(rt.ConstraintError, match=r"60 tokens .*: at most 50"):
            short_program.using(backend=small)(tokens=60).result(WAIT)
        assert short_program.using(backend=small)(tokens=5).result(WAIT)


# -- what goes wrong


@pytest.mark.parametrize("url", ["localhost:30000", "ftp://localhost", "", "http://", "http://[::1"])
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(rt.EngineError, match="url="):
        rt.Endpoint(url)


@pytest.mark.parametrize(
    "options", [{"timeout": 0}, {"timeout": float("nan")}, {"retries": -1}, {"retries": 1.5}, {"api_key": "schlüssel"}]
)
def test_options_that_cannot_be_meant(options: dict[str, Any]) -> None:
    with pytest.raises(rt.EngineError, match=next(iter(options))):
        rt.Endpoint("http://127.0.0.1:1", **options)


def test_nobody_listens() -> None:
    with pytest.raises(rt.TransportError, match="server_info") as caught:
        rt.Endpoint(closed_url(), timeout=5, retries=1)
    assert caught.value.retryable


def test_a_server_that_says_nothing() -> None:
    began = time.monotonic()
    with silent() as url, pytest.raises(rt.TransportError, match=r"no answer for 0\.3 s"):
        rt.Endpoint(url, timeout=0.3)
    assert time.monotonic() - began < WAIT / 4


def test_a_server_of_something_else() -> None:
    with Peer({"/server_info": said([1])}) as peer:
        with pytest.raises(rt.TransportError, match="speaks neither") as caught:
            rt.Endpoint(peer.url)
        assert not caught.value.retryable
        assert [path for path, _ in peer.asked][:2] == ["/server_info", "/get_server_info"]


def test_wrong_and_right_keys() -> None:
    with serving(api_key=("right",)) as server:
        with pytest.raises(rt.TransportError, match="API key") as caught:
            rt.Endpoint(server.url, "wrong")
        assert (caught.value.status, caught.value.retryable) == (401, False)
        with rt.Endpoint(server.url, "right") as good:
            assert short_program.using(backend=good)().result(WAIT)


def test_the_server_is_gone_under_a_program_and_afterwards() -> None:
    with serving() as server:
        lost = rt.Endpoint(server.url, timeout=10, retries=1)
        run = long_program.using(backend=lost)()
        next(event for event in run.events() if isinstance(event, rt.Token))
    with lost:
        with pytest.raises(rt.TransportError) as caught:
            run.result(WAIT)
        assert caught.value.retryable
        with pytest.raises(rt.TransportError):
            short_program.using(backend=lost)().result(WAIT)
        with pytest.raises(rt.TransportError):
            lost.info()


def test_the_engine_is_lost_under_a_program() -> None:
    with serving(in_process=False) as server, rt.Endpoint(server.url) as made:
        run = long_program.using(backend=made)()
        next(event for event in run.events() if isinstance(event, rt.Token))
        server.client.kill()
        with pytest.raises(rt.TransportError):
            run.result(WAIT)


def test_an_idle_socket_that_was_lost_is_not_used_again(served: Served) -> None:
    with rt.Endpoint(served.url) as made:
        assert short_program.using(backend=made)().result(WAIT)
        (idle,) = made._sockets._idle
        idle.transport.abort()
        assert short_program.using(backend=made)().result(WAIT)


def test_a_full_queue_is_waited_for() -> None:
    with serving(max_running_requests=1, max_queue=0) as server, rt.Endpoint(server.url, retries=0) as impatient:
        run = long_program.using(backend=impatient)(tokens=300)
        next(event for event in run.events() if isinstance(event, rt.Token))
        with pytest.raises(rt.TransportError, match="queue is full"):
            short_program.using(backend=impatient)().result(WAIT)
        with rt.Endpoint(server.url, retries=60) as patient:
            waiting = short_program.using(backend=patient)()
            run.cancel()
            assert waiting.result(WAIT)


def test_closing_ends_its_programs(served: Served) -> None:
    made = rt.Endpoint(served.url)
    run = long_program.using(backend=made)()
    next(event for event in run.events() if isinstance(event, rt.Token))
    made.close()
    made.close()
    with pytest.raises(rt.TransportError, match="was closed"):
        run.result(WAIT)
    with pytest.raises(rt.TransportError, match="is closed"):
        short_program.using(backend=made)()
    clean(served)


def test_an_endpoint_that_nobody_holds_ends_its_thread(served: Served) -> None:
    name = f"Endpoint({served.url!r})"
    made = rt.Endpoint(served.url)
    thread = made._loop._thread
    assert short_program.using(backend=made)().result(WAIT)
    del made
    gc.collect()
    thread.join(WAIT)
    assert not thread.is_alive()
    assert sum(each.name == name for each in threading.enumerate()) <= 2, "those of the fixtures alone"
