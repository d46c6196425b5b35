"""Constraints over servers elsewhere: each in the server's own spelling, or refused before any request."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ramet as rt
from ramet.frontend.backends.constrained import alternatives, broken, named
from ramet.frontend.ir import (
    Calls,
    Choices,
    Constraint,
    Gen,
    Grammar,
    Header,
    JsonSchema,
    Jump,
    Meta,
    Regex,
    Role,
    Structure,
    Text,
    Tool,
    Tools,
)

from .remotely import Handler, Peer, said, streamed

WAIT = 20.0
SGLANG = {"model_path": "some/model"}
EBNF = "root ::= [a-z]+"
LARK = "start: /[a-z]+/"
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
STRICT = {"type": "json_schema", "json_schema": {"name": "value", "schema": SCHEMA, "strict": True}}


@dataclass
class City:
    name: str


def completed(text: str, finish: str = "stop") -> Handler:
    """A chat completion of one chunk."""
    return streamed({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]})


def generated(text: str, finish: str = "stop", **reason: Any) -> Handler:
    """An answer of /generate."""
    return streamed({"text": text, "meta_info": {"finish_reason": {"type": finish, **reason}}})


def replying(*types: Any, **options: Any) -> Callable[[rt.State], Any]:
    def body(s: rt.State) -> Any:
        s.user("Hi")
        return s.reply(*types, **options).get()

    return body


def saying(*types: Any, **options: Any) -> Callable[[rt.State], Any]:
    def body(s: rt.State) -> Any:
        s += "Hi"
        return s.gen(*types, **options).get()

    return body


def ran(body: Callable[[rt.State], Any], backend: rt.Backend) -> Any:
    return rt.function(body).using(backend=backend)().result(WAIT)


def chat_request(body: Callable[[rt.State], Any], answer: Handler, info: object, extended: bool | None = None) -> Any:
    """The value of one reply, and the body of its request."""
    answers = {"/v1/chat/completions": answer, **({"/server_info": said(info)} if info is not None else {})}
    with Peer(answers) as peer, rt.OpenAI("m", peer.url + "/v1", "key", extended=extended) as backend:
        value = ran(body, backend)
        [request] = peer.to("/v1/chat/completions")
        return value, request


def text_request(body: Callable[[rt.State], Any], answer: Handler) -> Any:
    """The value of one generation over /generate, and the sampling parameters of its request."""
    with Peer({"/server_info": said(SGLANG), "/generate": answer}) as peer, rt.Endpoint(peer.url) as backend:
        value = ran(body, backend)
        [request] = peer.to("/generate")
        return value, request["sampling_params"]


@pytest.mark.parametrize("info", [None, {"server": "ramet"}, SGLANG])
def test_a_schema_is_a_response_format_everywhere(info: object) -> None:
    value, request = chat_request(replying(json_schema=SCHEMA), completed('{"a": 1}'), info)
    assert value == '{"a": 1}'
    assert request["response_format"] == STRICT
    value, request = chat_request(replying(City), completed('{"name": "Rome"}'), info)
    assert value == City("Rome")
    assert request["response_format"]["json_schema"]["schema"]["required"] == ["name"]


@pytest.mark.parametrize(
    ("options", "answer", "sglang", "other"),
    [
        ({"regex": "a+"}, "aa", {"regex": "a+"}, {"structured_outputs": {"regex": "a+"}}),
        ({"grammar": EBNF}, "aa", {"ebnf": EBNF}, {"structured_outputs": {"grammar": EBNF}}),
        (
            {"choices": ["a|", "b"], "temperature": 1},
            "a|",
            {"regex": r"(?:a\||b)"},
            {"structured_outputs": {"choice": ["a|", "b"]}},
        ),
    ],
)
def test_other_constraints_on_extended_servers(options: Any, answer: str, sglang: Any, other: Any) -> None:
    for info, extended, expected in [
        (SGLANG, None, sglang),
        (SGLANG, True, sglang),
        ({"server": "ramet"}, None, other),
        (None, True, other),
    ]:
        value, request = chat_request(replying(**options), completed(answer), info, extended)
        assert value == answer
        assert {key: request.get(key) for key in expected} == expected
        assert len({"regex", "ebnf", "structured_outputs", "response_format"} & request.keys()) == 1


def test_numbers_and_lark_grammars() -> None:
    value, request = chat_request(replying(int), completed("42"), SGLANG)
    assert value == 42
    assert request["stop"] == [" ", "\n"]
    assert request["regex"].startswith("-?")
    value, request = chat_request(replying(grammar=LARK), completed("a"), None, True)
    assert request["structured_outputs"] == {"grammar": LARK}
    with pytest.raises(rt.ConstraintError, match="takes EBNF"):
        chat_request(replying(grammar=LARK), completed("a"), SGLANG, True)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"regex": "a+"}, r"regex=a\+: chat completions here cannot enforce it"),
        ({"type": int}, "regex=-.*cannot enforce it"),
        ({"grammar": EBNF}, "grammar: chat completions here cannot"),
        ({"choices": ["a"], "temperature": 1}, "choices=.*cannot enforce it"),
        ({"json_schema": SCHEMA, "jump": "exact"}, "jump='exact': this server does not promise it"),
        ({"json_schema": SCHEMA, "jump": "off"}, "jump='off'"),
    ],
)
def test_what_chats_cannot_enforce_is_refused_before_any_request(options: Any, match: str) -> None:
    with (
        Peer({"/v1/chat/completions": completed("x")}) as peer,
        rt.OpenAI("m", peer.url + "/v1", "key") as plain,
    ):
        with pytest.raises(rt.ConstraintError, match=match) as caught:
            ran(replying(**options), plain)
        assert caught.value.where.startswith("test_constrained_backends.py:")
        assert peer.to("/v1/chat/completions") == []


def test_openai_itself_takes_schemas_of_objects() -> None:
    with rt.OpenAI("gpt", "https://api.openai.com/v1", "key") as home:
        for options in ({"type": list[int]}, {"json_schema": True}, {"json_schema": {"type": "integer"}}):
            with pytest.raises(rt.ConstraintError, match="OpenAI takes schemas of objects alone"):
                ran(replying(**options), home)


@pytest.mark.parametrize(
    ("options", "answer", "fields"),
    [
        ({"regex": "a+"}, "aa", {"regex": "a+"}),
        ({"grammar": EBNF}, "aa", {"ebnf": EBNF}),
        ({"choices": ["a.", "b"], "temperature": 1}, "b", {"regex": r"(?:a\.|b)"}),
        ({"json_schema": SCHEMA}, '{"a": 1}', {"json_schema": json.dumps(SCHEMA)}),
    ],
)
def test_constraints_over_generate(options: Any, answer: str, fields: Any) -> None:
    value, sampling = text_request(saying(**options), generated(answer))
    assert value == answer
    assert {key: sampling.get(key) for key in ("regex", "ebnf", "json_schema") if key in sampling} == fields


def test_types_over_generate() -> None:
    assert text_request(saying(City), generated('{"name": "Rome"}'))[0] == City("Rome")
    assert text_request(saying(float), generated("2.5", matched=" "))[0] == 2.5
    with pytest.raises(rt.TruncatedError) as caught:
        text_request(saying(City), generated('{"name": "Ro', "length"))
    assert caught.value.partial == '{"name": "Ro'


@pytest.mark.parametrize(
    ("options", "match"),
    [({"grammar": LARK}, "takes EBNF"), ({"regex": "a", "jump": "off"}, "jump='off'")],
)
def test_what_generate_cannot_do_is_refused_before_any_request(options: Any, match: str) -> None:
    with Peer({"/server_info": said(SGLANG), "/generate": said({})}) as peer, rt.Endpoint(peer.url) as backend:
        with pytest.raises(rt.ConstraintError, match=match):
            ran(saying(**options), backend)
        assert peer.to("/generate") == []


def test_servers_that_do_not_keep_a_constraint() -> None:
    with pytest.raises(rt.GenerationError, match=r"answered 'x', which is no JSON, as json_schema="):
        text_request(saying(City), generated("x"))
    with pytest.raises(rt.GenerationError, match=r"answered 'x', which is none of choices=\['a'\]"):
        chat_request(replying(choices=["a"], temperature=1), completed("x"), None, True)
    assert chat_request(replying(json_schema=SCHEMA, stop="}"), completed('{"a": 1'), None)[0] == '{"a": 1'


def refusal(backend: rt.Backend, *ops: Any) -> str:
    session = backend.open(Header(), lambda event: None)
    with pytest.raises(rt.ConstraintError) as caught:
        session.send(ops)
    session.cancel()
    return caught.value.message


def test_tools_and_structures_by_hand() -> None:
    begin = [Role(id="0.0", seq="0", role="user", edge="begin"), Role(id="0.1", seq="0", role="user", edge="end")]
    turn = [*begin, Role(id="0.2", seq="0", role="assistant", edge="begin")]
    tool = Tool("weather")
    with Peer({}) as peer, rt.OpenAI("m", peer.url + "/v1", "key") as plain:
        assert refusal(plain, Tools(id="0.0", seq="0", tools=(tool,))).startswith("tools: this server is told of none")
        calling = Gen(id="0.3", seq="0", var="x", constraint=Calls((tool,)))
        assert refusal(plain, *turn, calling).startswith("tools: this server is not known to hold to them")
        structured = Gen(id="0.3", seq="0", var="x", constraint=Structure("{}"))
        assert refusal(plain, *turn, structured).startswith("structure: chat completions here cannot")
    with Peer({"/server_info": said(SGLANG)}) as peer, rt.Endpoint(peer.url) as texts:
        text = Text(id="0.0", seq="0", parts=("x",))
        calling = Gen(id="0.1", seq="0", var="x", constraint=Calls((tool,)))
        assert refusal(texts, text, calling).startswith("tools: ")


CHOICES = st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=4, unique=True)


@given(CHOICES, st.text(max_size=4))
def test_alternatives_match_the_choices_alone(choices: list[str], other: str) -> None:
    pattern = alternatives(tuple(choices))
    assert all(re.fullmatch(pattern, choice) for choice in choices)
    assert bool(re.fullmatch(pattern, other)) == (other in choices)


@pytest.mark.parametrize("jump", ["canonical", "exact", "off"])
def test_jumps_are_no_matter_of_free_text(jump: Jump) -> None:
    assert chat_request(replying(jump=jump), completed("x"), None)[0] == "x"


@pytest.mark.parametrize(
    ("constraint", "text", "meta", "problem"),
    [
        (None, "x", Meta(), ""),
        (Regex("a"), "x", Meta(), "does not match regex=a"),
        (Regex("a"), "x", Meta(finish_reason="length"), ""),
        (Regex("a"), "x", Meta(matched="y"), ""),
        (JsonSchema("true"), "[" * 100_000, Meta(), "is no JSON"),
        (Choices(("a",)), "a", Meta(), ""),
        (Grammar(EBNF), "?", Meta(), ""),
        (Structure("{}"), "?", Meta(), ""),
        (Calls(()), "?", Meta(), ""),
    ],
)
def test_what_is_broken(constraint: Constraint | None, text: str, meta: Meta, problem: str) -> None:
    assert broken(constraint, text, meta, patterns=True)[: len(problem) or None] == problem


def test_names_in_messages() -> None:
    assert named(JsonSchema('"' + "x" * 200 + '"')).endswith("xxx...")
    assert [named(c) for c in (Grammar("x"), Structure("{}"), Calls(()))] == ["grammar", "structure", "tools"]
