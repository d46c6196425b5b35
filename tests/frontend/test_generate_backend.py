"""Programs over SGLang's `/generate` alone: the same texts and choices, and refusals before any request."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ramet as rt
from ramet.frontend.backends import sglang
from ramet.frontend.backends.endpoint import Endpoint
from ramet.frontend.ir import SELECT_METHODS, Gen, Header, Meta, Sampling, Text
from ramet.runtime import choices

from ..runtime.engines import short_program
from ..server.serving import Served, serving
from .remotely import Peer, first, said, streamed

pytestmark = pytest.mark.model
WAIT = 60.0
SGLANG = {"model_path": "some/model", "is_generation": True}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(engine={"kv_tokens": 8192}) as server:
        yield server


@pytest.fixture(scope="module")
def texts(served: Served) -> Iterator[Endpoint]:
    """The same server, as one that speaks only /generate."""
    with rt.Endpoint(served.url) as made:
        made.speaks_programs = False
        yield made


def clean(served: Served) -> None:
    figures = httpx.get(served.url + "/server_info").json()
    while figures["programs"] or served.service.running:
        figures = httpx.get(served.url + "/server_info").json()
    assert figures["kv"]["used"] == 0


@rt.function(temperature=0)
def story(s: rt.State) -> tuple[Any, ...]:
    s += "Once upon a time there was a river"
    first_part = s.gen(name="first", max_tokens=6, ignore_eos=True, logprobs=2)
    branches = s.fork(2)
    branches[0] += " and a stone."
    branches[1] += " and a cloud."
    branches += rt.gen("more", max_tokens=4, ignore_eos=True)
    values = branches.gather("more")
    branches.join("concat")
    s += " It was"
    picked = s.select([" blue", " very green", " red"], name="colour").get()
    return first_part.get(), tuple(values), picked, s.gen(max_tokens=3, ignore_eos=True).get()


def test_texts_alone_say_the_same(served: Served, texts: Endpoint) -> None:
    run = story.using(backend=texts)()
    expected = story.using(backend=served.offline())().result(WAIT)
    assert run.result(WAIT)[:3] == expected[:3], "up to where joined tokens are read again as text"
    assert "".join(run.text_iter("first")) == run["first"]
    assert len(run.value("first").meta.logprobs) == 6
    assert run.usage.calls == 5
    clean(served)


@pytest.mark.parametrize(
    "method", ["token_length_normalized", "greedy_token_selection", "unconditional_likelihood_normalized"]
)
def test_choices_by_logprobs(served: Served, texts: Endpoint, method: Any) -> None:
    @rt.function
    def pick(s: rt.State) -> tuple[str, tuple[float, ...]]:
        s += "The colour of the river is"
        value = s.select([" blue", " dark green", " red", " blue and red"], method=method)
        return value.get(), value.meta.scores

    there, scores = pick.using(backend=texts)().result(WAIT)
    here, expected = pick.using(backend=served.offline())().result(WAIT)
    if method == "unconditional_likelihood_normalized":  # behind nothing, a first token counts 0 over HTTP
        assert there in (" blue", " dark green", " red", " blue and red")
    else:
        assert there == here
        assert scores == pytest.approx(expected, abs=1e-5)


ROW = st.lists(st.floats(-9, 0), min_size=1, max_size=4)


@given(st.sampled_from(SELECT_METHODS), st.lists(st.tuples(ROW, ROW), min_size=1, max_size=5))
def test_choices_are_decided_as_the_engine_does(method: Any, rows: list[tuple[list[float], list[float]]]) -> None:
    logprobs = [row for row, _ in rows]
    nothing = [(other * len(row))[: len(row)] for row, other in rows]
    winner, scores = sglang.decide(method, logprobs, nothing)
    expected, known = choices.decide(method, logprobs, nothing)
    assert scores == pytest.approx(known)
    assert known[winner] == pytest.approx(known[expected])


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (lambda s: s.user("Hello"), "chat template is not known here.*ramet.OpenAI"),
        (lambda s: s.gen(seed=4), "seed=4"),
        (lambda s: s.fork(1)[0].select([" a", " a"]), "distinct"),
    ],
)
def test_what_texts_alone_cannot_do_is_refused_before_any_request(body: Callable[[rt.State], Any], match: str) -> None:
    with Peer({"/get_model_info": said(SGLANG), "/generate": said({})}) as peer, rt.Endpoint(peer.url) as plain:
        assert not plain.speaks_programs

        def whole(s: rt.State) -> str:
            s += "Once"
            body(s)
            return s.gen().get()

        with pytest.raises(rt.ConstraintError, match=match):
            rt.function(whole).using(backend=plain)().result(WAIT)
        assert not any("seed" in str(asked) or "Hello" in str(asked) for asked in peer.to("/generate"))


def test_a_stream_of_texts_in_every_detail() -> None:
    info = {"prompt_tokens": 3, "completion_tokens": 2, "cached_tokens": 1, "finish_reason": None}
    last = {**info, "finish_reason": {"type": "stop", "matched": "\n"}}
    answer = streamed({"text": "a", "meta_info": info}, {"text": "a\u2028b", "meta_info": last})
    with Peer({"/server_info": said(SGLANG), "/generate": answer}) as peer, rt.Endpoint(peer.url, "key") as plain:

        @rt.function
        def body(s: rt.State) -> Meta:
            s += "Once"
            return s.gen(name="x", stop="\n", top_k=5, max_tokens=9, temperature=0.5).meta

        run = body.using(backend=plain)()
        meta = run.result(WAIT)
        assert run["x"] == "a\u2028b"
        assert (meta.finish_reason, meta.matched, meta.prompt_tokens, meta.cached_tokens) == ("stop", "\n", 3, 1)
        (asked,) = peer.to("/generate")
        sampling = {"temperature": 0.5, "max_new_tokens": 9, "top_k": 5, "stop": ["\n"]}
        assert asked == {"text": "Once", "sampling_params": sampling, "stream": True}
        assert peer.headers["Authorization"] == "Bearer key"


@pytest.mark.parametrize("incremental", [False, True])
def test_an_end_token_is_no_part_of_the_text(incremental: bool) -> None:
    """SGLang lists it among the output's tokens and counts it; what it tells with deltas are those of each event."""
    rows = [[-0.5, 7, "a"], [-0.25, 8, "b"], [-0.125, 2, "<end>"]]
    info = {"prompt_tokens": 3, "completion_tokens": 1, "finish_reason": None, "output_token_logprobs": rows[:1]}
    over = {"completion_tokens": 3, "finish_reason": {"type": "stop", "matched": 2}}
    last = {**info, **over, "output_token_logprobs": rows[1:] if incremental else rows}
    answer = streamed({"text": "a", "meta_info": info}, {"text": "b" if incremental else "ab", "meta_info": last})
    server = {**SGLANG, "incremental_streaming_output": incremental}
    with Peer({"/server_info": said(server), "/generate": answer}) as peer, rt.Endpoint(peer.url) as plain:

        @rt.function
        def body(s: rt.State) -> Meta:
            s += "Once"
            return s.gen(name="x", max_tokens=9, logprobs=0).meta

        run = body.using(backend=plain)()
        meta = run.result(WAIT)
        assert run["x"] == "ab"
    assert (meta.matched, meta.completion_tokens) == (2, 2)
    assert [(each.token, each.logprob) for each in meta.logprobs] == [(7, -0.5), (8, -0.25)]
    assert meta.mean_logprob == -0.375
    assert [each.token for each in meta.ending] == [2]


def test_what_is_tried_again_and_what_is_not() -> None:
    good = {"text": "yes", "meta_info": {"finish_reason": {"type": "length"}}}
    busy = said({"error": {"message": "busy"}}, 503, Retry_After="0")
    begun = streamed({"text": "y", "meta_info": {"finish_reason": None}}, done=False)
    failing = streamed({"error": {"message": "it broke", "code": 500}})
    for handler, asks, error, match in [
        (first(busy, busy, streamed(good)), 3, None, ""),
        (busy, 3, rt.TransportError, "busy"),
        (begun, 1, rt.TransportError, "broke off"),
        (failing, 1, rt.TransportError, "it broke"),
        (
            said({"error": {"message": "too long", "code": "context_length_exceeded"}}, 400),
            1,
            rt.ContextOverflow,
            "too",
        ),
        (said({"error": {"message": "top_k is wrong"}}, 400), 1, rt.ConstraintError, "top_k is wrong"),
        (said("?"), 3, rt.TransportError, "broke off"),
    ]:
        with Peer({"/server_info": said(SGLANG), "/generate": handler}) as peer, rt.Endpoint(peer.url) as plain:
            run = short_program.using(backend=plain)()
            if error is None:
                assert run.result(WAIT) == "yes"
            else:
                with pytest.raises(error, match=match):
                    run.result(WAIT)
            assert len(peer.to("/generate")) == asks


def test_ops_of_a_session_by_hand(texts: Endpoint) -> None:
    """What a program never does, a session still answers."""
    over = threading.Event()
    events: list[Any] = []

    def deliver(event: Any) -> None:
        events.append(event)
        if isinstance(event, rt.Ended):
            over.set()

    session = texts.open(Header(), deliver)
    with pytest.raises(rt.StateError, match="no such sequence"):
        session.send([Text(id="9.0", seq="9", parts=("x",))])
    session.send([Text(id="0.0", seq="0", parts=("Once",)), Gen(id="0.1", seq="0", var="x", sampling=Sampling())])
    session.cancel()
    session.cancel()
    assert over.wait(WAIT)
    assert events[-1].kind == "aborted"
    assert sum(isinstance(event, rt.Ended) for event in events) == 1
