"""Programs over chat completions say what they say on the engine; what cannot be enforced is refused beforehand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import ramet as rt
from ramet.examples.cascade import ask, cascade, larger_model
from ramet.examples.multi_turn_chat import multi_turn_chat
from ramet.examples.skeleton_of_thought import skeleton_of_thought
from ramet.frontend.backends.openai import OpenAI

from ..server.serving import Served, serving
from .remotely import Peer, closed_url, first, said, streamed

pytestmark = pytest.mark.model
WAIT = 60.0


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(engine={"kv_tokens": 8192}) as server:
        yield server


@pytest.fixture(scope="module")
def chats(served: Served) -> Iterator[OpenAI]:
    with rt.OpenAI("tiny", served.url + "/v1", "any") as made:
        assert made.extended
        yield made


def delta(text: str | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish, **more}]}


USAGE = {
    "choices": [],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 3}},
}
GOOD = streamed({"choices": [{"delta": {"role": "assistant", "content": ""}}]}, delta("ye"), delta("s", "stop"), USAGE)


@rt.function(temperature=0, max_tokens=6, ignore_eos=True)
def talk(s: rt.State) -> tuple[Any, ...]:
    s.system("You are brief.")
    s.user("Which river?")
    s.assistant("It is the" + rt.gen("river", return_logprob=True, top_logprobs_num=2))
    branches = s.fork(2)
    for branch, word in zip(branches, ("long", "deep"), strict=True):
        branch.user(f"How {word}?")
        branch.reply(name="how")
    return s["river"], *branches.gather("how")


def test_a_chat_says_the_same(served: Served, chats: OpenAI) -> None:
    run = talk.using(backend=chats)()
    assert run.result(WAIT) == talk.using(backend=served.offline())().result(WAIT)
    assert "".join(run.text_iter("river")) == run["river"]
    meta = run.value("river").meta
    assert (meta.finish_reason, meta.completion_tokens, len(meta.logprobs)) == ("length", 6, 6)
    assert meta.prompt_tokens > 10
    offline = talk.using(backend=served.offline())()
    offline.result(WAIT)
    here = offline.value("river").meta
    assert here.mean_logprob == pytest.approx(meta.mean_logprob)
    assert [p.text for p in here.logprobs] == [p.text for p in meta.logprobs]
    assert here.prompt_tokens == meta.prompt_tokens
    assert run.messages()[:2] == [
        {"role": "system", "content": "You are brief."},
        {"role": "user", "content": "Which river?"},
    ]


def test_a_seed_repeats_a_run(chats: OpenAI) -> None:
    def drawn(seed: int) -> list[str]:
        @rt.function
        def sample(s: rt.State) -> Any:
            s.user("A word?")
            branches = s.fork(2)
            for branch in branches:
                branch.reply(name="x", max_tokens=6)
            return branches.gather("x")

        found: list[str] = sample.using(backend=chats, seed=seed)().result(WAIT)
        return found

    assert drawn(3) == drawn(3)
    assert len({*drawn(3), *drawn(4)}) == 4


def test_examples(served: Served, chats: OpenAI) -> None:
    assert len(multi_turn_chat.using(backend=chats)(["Why?", "How?"], max_tokens=4).result(WAIT)) == 2
    assert skeleton_of_thought.using(backend=chats)("Why?", outline_tokens=12, max_tokens=4).result(WAIT)
    there = ask.using(backend=chats)("Why?", max_tokens=6).result(WAIT)
    here = ask.using(backend=served.offline())("Why?", max_tokens=6).result(WAIT)
    assert there.text == here.text
    assert there.confidence == pytest.approx(here.confidence)
    with rt.Mock("no idea", logprob=-9) as small, larger_model([served.url + "/v1", "tiny"]) as large:
        assert isinstance(large, rt.OpenAI)
        answer = cascade("Why?", [small, large], max_tokens=6)
        assert (answer.text, answer.model) == (here.text, 1)
    with larger_model([served.url]) as endpoint, rt.Mock("no idea", logprob=-9) as small:
        assert cascade("Why?", [small, endpoint], max_tokens=6) == answer
    with larger_model([]) as stand_in:
        assert isinstance(stand_in, rt.Mock)


def test_choices_of_one_token(served: Served, chats: OpenAI) -> None:
    @rt.function
    def grade(s: rt.State, choices: list[str], method: Any = "token_length_normalized") -> str:
        s.user("Is it good?")
        with s.assistant():
            return s.select(choices, name="grade", method=method).get()

    letters = ["A", "B", "C", "D"]
    for method in ("token_length_normalized", "greedy_token_selection"):
        there = grade.using(backend=chats)(letters, method).result(WAIT)
        assert there == grade.using(backend=served.offline())(letters, method).result(WAIT)
    with pytest.raises(rt.ConstraintError, match=r"'extraordinarily good' has . tokens"):
        grade.using(backend=chats)(["A", "extraordinarily good"]).result(WAIT)
    with pytest.raises(rt.ConstraintError, match="no likelihood without the prompt"):
        grade.using(backend=chats)(letters, "unconditional_likelihood_normalized").result(WAIT)
    with pytest.raises(rt.ConstraintError, match="distinct"):
        grade.using(backend=chats)(["A", "A"]).result(WAIT)


def replying(**options: Any) -> Callable[[rt.State], Any]:
    def body(s: rt.State) -> Any:
        s.user("Hi")
        return s.reply(**options).get()

    return body


def outside(s: rt.State) -> Any:
    s += "Once"
    return s.gen().get()


def in_a_question(s: rt.State) -> Any:
    s.user(rt.gen("x"))
    return s["x"]


def after_text(s: rt.State) -> Any:
    s.user("Hi")
    s.assistant("Well, " + rt.gen("x"))
    return s["x"]


def alone(s: rt.State) -> Any:
    return s.reply().get()


def choosing(s: rt.State) -> Any:
    s.user("Hi")
    with s.assistant():
        value = s.select(["a", "b"])
    return value.get()


def from_a_tool(s: rt.State) -> Any:
    s.user("Hi")
    s.tool("42")
    return s.reply().get()


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (outside, "text stands outside"),
        (in_a_question, "inside a message of 'user'"),
        (after_text, "continue_final_message"),
        (alone, "no message to answer"),
        (choosing, "neither scores nor tokenises"),
        (from_a_tool, "role='tool'"),
        (replying(top_k=5), "top_k=5"),
        (replying(min_p=0.1), "min_p=0.1"),
        (replying(repetition_penalty=1.1), "repetition_penalty=1.1"),
        (replying(min_tokens=2), "min_tokens=2"),
        (replying(stop_token_ids=[5]), "stop_token_ids"),
        (replying(ignore_eos=True), "ignore_eos=True"),
    ],
)
def test_what_cannot_be_enforced_is_refused_before_any_request(body: Callable[[rt.State], Any], match: str) -> None:
    with Peer({"/v1/chat/completions": GOOD}) as peer, rt.OpenAI("gpt", peer.url + "/v1", "key") as plain:
        assert not plain.extended
        with pytest.raises(rt.ConstraintError, match=match) as caught:
            rt.function(body).using(backend=plain)().result(WAIT)
        assert caught.value.where.startswith("test_openai_backend.py:")
        assert peer.to("/v1/chat/completions") == []


def test_stops_beyond_what_openai_takes() -> None:
    with rt.OpenAI("gpt", "https://api.openai.com/v1", "key") as home:
        assert not home.extended
        with pytest.raises(rt.ConstraintError, match="5 strings; OpenAI takes at most 4"):
            rt.function(replying(stop=list("abcde"))).using(backend=home)().result(WAIT)


def test_a_request_in_every_detail() -> None:
    with Peer({"/v1/chat/completions": GOOD}) as peer, rt.OpenAI("gpt", peer.url + "/v1/", "key") as plain:
        options = {"stop": ".", "top_p": 0.9, "max_tokens": 7, "logit_bias": {5: -100}, "logprobs": 2, "seed": 4}
        run = rt.function(replying(name="x", temperature=0.5, **options)).using(backend=plain)()
        assert run.result(WAIT) == "yes"
        assert peer.to("/v1/chat/completions") == [
            {
                "model": "gpt",
                "messages": [{"role": "user", "content": "Hi"}],
                "stream": True,
                "stream_options": {"include_usage": True},
                "temperature": 0.5,
                "max_tokens": 7,
                "top_p": 0.9,
                "stop": ["."],
                "logit_bias": {"5": -100.0},
                "logprobs": True,
                "top_logprobs": 2,
                "seed": 4,
            }
        ]
        assert peer.headers["Authorization"] == "Bearer key"
        usage = run.usage
        assert (usage.calls, usage.prompt_tokens, usage.cached_tokens, usage.generated_tokens) == (1, 5, 3, 2)
        assert [event.text for event in run.events() if isinstance(event, rt.Token)] == ["ye", "s"]


def test_what_is_tried_again_and_what_is_not() -> None:
    busy = said({"error": {"message": "slow down"}}, 429, retry_after_ms="1")
    for handler, asks, error, match in [
        (first(busy, busy, GOOD), 3, None, ""),
        (busy, 3, rt.TransportError, "429: slow down"),
        (streamed(delta("y"), done=False), 1, rt.TransportError, "broke off"),
        (streamed(delta("y")), 1, rt.TransportError, "without a finish reason"),
        (streamed(delta("y", "content_filter")), 1, rt.GenerationError, "'content_filter'"),
        (streamed(delta("y"), {"error": {"message": "it broke"}}), 1, rt.TransportError, "it broke"),
        (streamed([1]), 1, rt.GenerationError, "not understood"),
        (said({"error": {"message": "m", "code": "context_length_exceeded"}}, 400), 1, rt.ContextOverflow, "m"),
        (said({"error": {"message": "no such model"}}, 404), 1, rt.GenerationError, "404: no such model"),
        (said({"detail": "wrong key"}, 401), 1, rt.GenerationError, "401: wrong key"),
    ]:
        with Peer({"/v1/chat/completions": handler}) as peer, rt.OpenAI("gpt", peer.url + "/v1", "key") as plain:
            run = rt.function(replying()).using(backend=plain)()
            if error is None:
                assert run.result(WAIT) == "yes"
            else:
                with pytest.raises(error, match=match):
                    run.result(WAIT)
            assert len(peer.to("/v1/chat/completions")) == asks


def test_a_failure_poisons_what_depends_on_it_alone() -> None:
    def answer(body: Any) -> Any:
        return (said({"error": "no"}, 400) if "bad" in str(body["messages"]) else GOOD)(body)

    @rt.function
    def body(s: rt.State) -> list[Any]:
        s.user("Hi")
        branches = s.fork(["good", "bad", "fine"])
        for branch in branches:
            branch.user(branch.item)
            branch.reply(name="x")
        return branches.gather("x", on_error="return")

    with Peer({"/v1/chat/completions": answer}) as peer, rt.OpenAI("gpt", peer.url + "/v1", "key") as plain:
        found = body.using(backend=plain)().result(WAIT)
        assert [type(each).__mro__[1] if isinstance(each, Exception) else each for each in found] == [
            "yes",
            rt.ConstraintError,
            "yes",
        ]


def test_joins_and_references() -> None:
    @rt.function
    def body(s: rt.State) -> str:
        s.user("Hi")
        branches = s.fork(2)
        for branch in branches:
            branch.user("and?")
            branch.reply(name="x")
        branches.join("concat")
        s.user(s.call(str.upper, branches[0].value("x")))
        return s.reply(name="y").get()

    with Peer({"/v1/chat/completions": GOOD}) as peer, rt.OpenAI("gpt", peer.url + "/v1", "key") as plain:
        run = body.using(backend=plain)()
        assert run.result(WAIT) == "yes"
        last = peer.to("/v1/chat/completions")[-1]["messages"]
        pair = [("user", "and?"), ("assistant", "yes")]
        assert [(m["role"], m["content"]) for m in last] == [("user", "Hi"), *pair, *pair, ("user", "YES")]


def test_cancelled_while_the_server_thinks(served: Served, chats: OpenAI) -> None:
    run = rt.function(replying(name="x", max_tokens=900, ignore_eos=True)).using(backend=chats)()
    next(event for event in run.events() if isinstance(event, rt.Token))
    run.cancel()
    with pytest.raises(rt.Aborted):
        run.result(WAIT)
    while served.service.running:
        chats.info()
    assert served.client.stats().kv_used == 0


def test_a_branch_that_fails_stops_its_siblings() -> None:
    over = threading.Event()

    def answer(body: Any) -> Any:
        asked = str(body["messages"])
        if "slow" in asked:
            over.wait(WAIT)
        return (said({"error": "no"}, 400) if "bad" in asked else GOOD)(body)

    @rt.function
    def body(s: rt.State) -> str:
        s.user("Hi")
        branches = s.fork(["bad", "slow"])
        for branch in branches:
            branch.user(branch.item)
            branch.reply(name="x")
        with pytest.raises(rt.ConstraintError, match="400: no"):
            branches.gather("x")
        return s.reply().get()

    with Peer({"/v1/chat/completions": answer}) as peer, rt.OpenAI("gpt", peer.url + "/v1", "key") as plain:
        assert body.using(backend=plain)().result(WAIT) == "yes"
        over.set()


def test_closing_ends_its_programs(served: Served) -> None:
    made = rt.OpenAI("tiny", served.url + "/v1", "any")
    run = rt.function(replying(max_tokens=900, ignore_eos=True)).using(backend=made)()
    next(event for event in run.events() if isinstance(event, rt.Token))
    made.close()
    with pytest.raises(rt.TransportError, match="was closed"):
        run.result(WAIT)
    with pytest.raises(rt.TransportError, match="is closed"):
        rt.function(replying()).using(backend=made)()


def test_arguments_that_cannot_be_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    for arguments, match in [
        (("",), "model="),
        (("gpt",), "api_key: OpenAI needs one"),
        (("gpt", "localhost:1", "k"), "base_url="),
    ]:
        with pytest.raises(rt.EngineError, match=match):
            rt.OpenAI(*arguments)
    with pytest.raises(rt.TransportError, match="server_info"):
        rt.OpenAI("gpt", closed_url(), "k", retries=0)


def test_the_environment_names_server_and_key(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", served.url + "/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    with rt.OpenAI("tiny") as made:
        assert made.info() == {"model": "tiny", "base_url": served.url + "/v1", "context_length": 1024}
        assert not made.flush_cache()
        assert repr(made) == f"OpenAI('tiny', base_url={served.url + '/v1'!r})"
