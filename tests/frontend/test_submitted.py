"""Compiled plans go to a server whole: one request, the same tokens as op by op and offline, and one run of each,
however often the connection is lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

import httpx
import msgspec
import pytest

import ramet as rt
from ramet.frontend.backends import submitted
from ramet.frontend.backends.base import PlanBackend
from ramet.frontend.backends.endpoint import Endpoint
from ramet.frontend.ir import Finished, Started, Token
from ramet.frontend.plan_file import version
from ramet.frontend.plan_run import PlanRun

from ..server.relay import Relay
from ..server.serving import Served, serving
from .remotely import Peer, first, said, streamed
from .test_endpoint import clean, steady
from .test_plan_examples import CASES

pytestmark = pytest.mark.model
WAIT = 60.0
PROGRAMS = "/v1/programs"
WHOLE = [name for name, case in CASES.items() if case[3]]
DAILY = ("few_shot_classify", "subproblem_graph")


def nightly(value: Any) -> Any:
    """A case that is left out of the daily suite."""
    return pytest.param(value, marks=pytest.mark.nightly)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(engine={"kv_tokens": 8192}) as server:
        yield server


@pytest.fixture(scope="module")
def relay(served: Served) -> Iterator[Relay]:
    with Relay(served.url) as made:
        yield made


@pytest.fixture
def endpoint(relay: Relay) -> Iterator[Endpoint]:
    with rt.Endpoint(relay.url) as made:
        relay.asked.clear()
        yield made


class OneByOne:
    """A backend that is told operations, and takes no plans."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.open, self.info, self.flush_cache = inner.open, inner.info, inner.flush_cache

    def close(self) -> None:
        """It belongs to somebody else."""


class Mood(Enum):
    """An argument of finitely many."""

    GOOD = "good"
    BAD = "bad"


@rt.function(temperature=1.0)
def judged(s: rt.State, text: str, mood: Mood, times: int) -> dict[str, Any]:
    """Arguments of every kind, logprobs that JSON cannot say, branches, a decision that only the model makes."""
    s.user(f"{text} ({times})")
    if mood is Mood.GOOD:
        s.user("Be kind.")
    good = s.reply(bool, name="good")
    s.user("Why?" if good.get() else "Why not?")
    with s.fork(2) as branches:
        for branch in branches:
            branch.reply(name="word", max_tokens=4, logprobs=2)
    return {"words": [branch["word"] for branch in branches], "good": good.get(), "times": times}


def outcome(run: PlanRun[Any]) -> tuple[Any, list[Any]]:
    """A run's result, and of each call everything that depends on neither time nor cache."""
    value = run.result(WAIT)
    found = [
        (event.op, event.var, event.value, repr(msgspec.structs.astuple(steady(event.meta))))
        for event in run.told
        if isinstance(event, Finished)
    ]
    return value, sorted(found)


def thrice(served: Served, endpoint: Endpoint, plan: rt.Plan, args: Mapping[str, Any]) -> list[Any]:
    """What a plan gives as a whole, op by op over the network, and on the engine itself."""
    backends: tuple[Any, ...] = (endpoint, OneByOne(endpoint), served.offline())
    return [outcome(plan.run(**args, backend=backend, seed=7)) for backend in backends]


@pytest.mark.parametrize("name", [nightly(name) if name not in DAILY else name for name in WHOLE])
def test_examples_are_the_same_bits_in_one_request(served: Served, relay: Relay, endpoint: Endpoint, name: str):
    program, static, args, _ = CASES[name]
    plan = program.compile(**static)
    whole = outcome(plan.run(**args, backend=endpoint, seed=7))
    assert relay.asked == [("POST", PROGRAMS)]
    assert [outcome(plan.run(**args, backend=b, seed=7)) for b in (OneByOne(endpoint), served.offline())] == [whole] * 2
    assert ("GET", PROGRAMS) in relay.asked, "op by op goes over a socket"
    clean(served)


@pytest.mark.parametrize("mood", Mood)
def test_arguments_of_every_kind(served: Served, relay: Relay, endpoint: Endpoint, mood: Mood):
    plan = judged.compile()
    assert plan.whole
    args = {"text": 'A "fine" day.\n\u2028', "mood": mood, "times": 3}
    whole, ops, offline = thrice(served, endpoint, plan, args)
    assert whole == ops == offline
    assert whole[0]["times"] == 3
    assert relay.to(PROGRAMS) == 2


def test_a_backend_says_whether_it_takes_plans(served: Served, endpoint: Endpoint):
    assert isinstance(endpoint, PlanBackend)
    assert not isinstance(served.offline(), PlanBackend) and not isinstance(OneByOne(endpoint), PlanBackend)


@rt.function(temperature=1.0)
def story(s: rt.State, topic: str) -> str:
    """One long generation."""
    s.user(topic)
    return s.reply(name="story", max_tokens=48, ignore_eos=True).get()


@pytest.mark.parametrize("after", [0, nightly(60), 700, nightly(2000), nightly(5000)])
def test_a_lost_connection_attaches_to_the_run(
    served: Served, relay: Relay, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, after: int
):
    """Cut before anything came, in the headers, and at some places in the events: one run, each event once."""
    plan, cuts = story.compile(), relay.cuts
    expected = outcome(plan.run(f"A river, {after}", backend=served.offline(), seed=7))
    began = runs_of(served, monkeypatch)
    relay.cut(PROGRAMS, after)
    run = plan.run(f"A river, {after}", backend=endpoint, seed=7)
    assert outcome(run) == expected
    assert relay.cuts == cuts + 1 and relay.to(PROGRAMS) == 2
    assert began == [1], "nothing is decoded twice"
    tokens = [event for event in run.told if isinstance(event, Token)]
    assert "".join(event.text for event in tokens) == expected[0]
    clean(served)


def runs_of(served: Served, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many programs the server begins from now on, as the one item of a list."""
    count, begin = [0], served.service.duplex

    async def counted(*args: Any, **options: Any) -> Any:
        count[0] += 1
        return await begin(*args, **options)

    monkeypatch.setattr(served.service, "duplex", counted)
    return count


def test_without_its_key_a_retry_runs_twice(
    served: Served, relay: Relay, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
):
    """The positive control: the count above tells whether a key was sent."""
    monkeypatch.setattr(submitted, "KEY", "X-No-Key")
    began = runs_of(served, monkeypatch)
    relay.cut(PROGRAMS, 0)
    run = story.compile().run("A river without a key", backend=endpoint, seed=7)
    assert run.result(WAIT)
    assert began == [2]
    clean(served)


@pytest.mark.nightly
def test_a_connection_that_is_lost_again_and_again(served: Served, relay: Relay, endpoint: Endpoint):
    """Attempts count anew as soon as something came."""
    expected = outcome(story.compile().run("Rain", backend=served.offline(), seed=3))
    for after in (1500, 2500, 3500, 4500, 5500):
        relay.cut(PROGRAMS, after)
    assert outcome(story.compile().run("Rain", backend=endpoint, seed=3)) == expected
    assert relay.to(PROGRAMS) == 6


@pytest.mark.nightly
def test_a_run_that_the_server_has_given_up_is_not_mixed_with_another():
    """Its answer was not kept: what the retry would begin is another run, and is called off."""
    with serving(idempotency_seconds=0) as forgetful, Relay(forgetful.url) as relay, rt.Endpoint(relay.url) as endpoint:
        relay.cut(PROGRAMS, 1500)
        with pytest.raises(rt.TransportError, match="does not know the run any more"):
            story.compile().run("Rain", backend=endpoint, seed=3).result(WAIT)
        clean(forgetful)


STARTED = {"type": "started", "op": "0.3", "seq": "0", "prompt_tokens": 4}


@pytest.mark.parametrize("replayed", [True, False])
def test_a_run_that_the_server_does_not_know_any_more(replayed: bool):
    """Events of another run are not taken for those of the lost one: the header tells."""
    info = {"server": "ramet", "version": version(), "context_length": 99}
    known = streamed(STARTED, {"type": "ended", "usage": {}, "kind": "aborted", "message": "as told"}, done=False)

    def again(body: Any) -> Any:
        status, headers, content = known(body)
        return status, {**headers, "Idempotent-Replayed": "true"} if replayed else headers, content

    answers = {
        "/server_info": said(info),
        PROGRAMS: first(streamed(STARTED, done=False), again),
        "/abort_request": said({"aborted": 1}),
    }
    with Peer(answers) as peer:
        with rt.Endpoint(peer.url) as endpoint:
            run = story.compile().run("Rain", backend=endpoint)
            with pytest.raises(rt.ProgramError, match="as told" if replayed else "does not know the run any more"):
                run.result(WAIT)
        bodies = peer.to(PROGRAMS)
        assert len(bodies) == 2 and bodies[0] == bodies[1]
        assert len([event for event in run.told if isinstance(event, Started)]) == 1
        assert len(peer.to("/abort_request")) == (0 if replayed else 1)


def test_cancelling_frees_the_run_at_once(served: Served, endpoint: Endpoint):
    """It belongs to the server, which would finish it: it is told."""
    run = endless.compile().run("Rain", backend=endpoint)
    first_token(run)
    run.cancel()
    with pytest.raises(rt.Aborted):
        run.result(WAIT)
    clean(served)
    early = endless.compile().run("Rain", backend=endpoint)
    early.cancel()
    with pytest.raises(rt.Aborted):
        early.result(WAIT)
    clean(served)


def test_a_run_that_is_not_called_off_goes_on(served: Served, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch):
    """The positive control of the above: hanging up is not enough."""
    monkeypatch.setattr(submitted.Submissions, "call_off", lambda home, key, run: run.cancel())
    run = endless.compile().run("Rain", backend=endpoint)
    first_token(run)
    run.cancel()
    figures = httpx.get(served.url + "/server_info").json()
    assert figures["programs"] == 1
    assert httpx.post(served.url + "/abort_request", json={"abort_all": True}).json()["aborted"] == 1
    clean(served)


@rt.function(temperature=1.0)
def endless(s: rt.State, topic: str) -> str:
    """As long as the context allows."""
    s += topic
    return s.gen(max_tokens=900, ignore_eos=True).get()


def first_token(run: Any) -> None:
    """Wait until the model says something."""
    next(event for event in run.events() if isinstance(event, Token))


def test_closing_frees_the_runs(served: Served):
    endpoint = rt.Endpoint(served.url)
    run = endless.compile().run("Rain", backend=endpoint)
    first_token(run)
    endpoint.close()
    with pytest.raises(rt.TransportError):
        run.result(WAIT)
    clean(served)


@rt.function(temperature=0)
def flooded(s: rt.State, text: str) -> str:
    """More than fits."""
    s += text
    return s.gen(max_tokens=4).get()


@rt.function(temperature=0)
def forked(s: rt.State, text: str) -> list[str]:
    """Ten calls."""
    s += text
    with s.fork(10) as branches:
        for branch in branches:
            branch.gen(name="x", max_tokens=2)
    return [branch["x"] for branch in branches]


def test_what_is_not_taken_whole_goes_op_by_op(served: Served, relay: Relay, endpoint: Endpoint):
    """A refusal names its operation then, as everywhere."""
    errors = []
    for backend in (endpoint, OneByOne(endpoint)):
        with pytest.raises(rt.ContextOverflow) as caught:
            flooded.compile().run("word " * 3000, backend=backend, seed=7).result(WAIT)
        errors.append((caught.value.message, caught.value.where, caught.value.branch))
    assert errors[0] == errors[1]
    with pytest.raises(rt.ProgramError, match="surrogate"):
        flooded.compile().run("a\ud800", backend=endpoint).result(WAIT)


def test_a_server_of_another_version_gets_operations():
    info = {"server": "ramet", "version": "0.0.0+other", "context_length": 10}
    with Peer({"/server_info": said(info)}) as peer, rt.Endpoint(peer.url, retries=0) as endpoint:
        with pytest.raises(rt.GenerationError, match="socket"):
            story.compile().run("Rain", backend=endpoint).result(WAIT)
        assert peer.to(PROGRAMS) == [None], "a socket was tried, and no plan posted"


@pytest.mark.nightly
def test_a_plan_that_is_larger_than_a_body():
    with serving(max_body=2048) as small, Relay(small.url) as relay, rt.Endpoint(relay.url) as endpoint:
        relay.asked.clear()
        expected = outcome(forked.compile().run("Rain", backend=small.offline(), seed=1))
        assert outcome(forked.compile().run("Rain", backend=endpoint, seed=1)) == expected
        assert relay.asked == [("POST", PROGRAMS), ("GET", PROGRAMS)]


@pytest.mark.nightly
def test_many_runs_at_once(served: Served, relay: Relay, endpoint: Endpoint):
    plan = story.compile()
    expected = [outcome(plan.run(f"Topic {n}", backend=served.offline(), seed=n)) for n in range(3)]
    runs = [plan.run(f"Topic {n}", backend=endpoint, seed=n) for n in range(3)]
    assert [outcome(run) for run in runs] == expected
    assert relay.to(PROGRAMS) == 3


def test_numbers_that_json_does_not_have():
    line = b'{"type":"token","op":"0.1","seq":"0","text":"a","logprobs":[[1,"a",null,[[3,"c",-9999.0]]]]}'
    event = submitted.event_of(line)
    assert isinstance(event, Token)
    assert repr(event.logprobs) == "(Logprob(token=1, text='a', logprob=nan, top=((3, 'c', -inf),)),)"
    assert submitted.event_of(b'{"value": 1}') is None
    for wrong in (b"{", b'{"type":"nothing"}', b'{"type":"token"}', b"[]"):
        with pytest.raises(submitted.RemoteFailure):
            submitted.event_of(wrong)


@pytest.mark.nightly
def test_a_silent_server_is_asked_whether_it_is_there():
    """A run that waits for its turn for longer than `timeout` is waited for: its server answers other questions."""
    with (
        serving(max_running_requests=1) as busy,
        Relay(busy.url) as relay,
        rt.Endpoint(busy.url) as patient,
        rt.Endpoint(relay.url, timeout=0.2, retries=0) as hasty,
    ):
        blocker = endless.compile().run("Rain", backend=patient)
        first_token(blocker)
        waiting = story.compile().run("Rain", backend=hasty, seed=3)
        while relay.to(PROGRAMS) < 3:  # it has asked twice again
            assert not waiting.done
        blocker.cancel()
        assert waiting.result(WAIT)
