"""R4, at the door: limits are those of the rule, a specification beyond them is a 400 that says which, by every route
and in every notation, and nothing of it has reached the engine; what is compiled is kept in memory alone.

Positive controls: each limit lifted, a refusal that comes too late, a module that writes.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ramet.frontend import ir, patterns, schemas
from ramet.runtime import grammar
from ramet.runtime import messages as m
from ramet.runtime.client import EngineClient
from ramet.runtime.grammar import choices, ebnf, lark, scanner, structure
from ramet.runtime.grammar.limits import SpecLimits
from ramet.runtime.grammar.translate import translate

from ..server.serving import WAIT, Served, serving
from .test_r04_controls import LIFTED, PATIENT, refused, said


def test_the_numbers_of_the_rule() -> None:
    limits = SpecLimits()
    assert (limits.spec_bytes, limits.program_bytes, limits.answer_seconds) == (64 << 10, 256 << 10, 2.0)
    assert limits.wall_seconds <= limits.answer_seconds and limits.cpu_seconds == 2 and limits.memory_bytes == 1 << 30
    assert (patterns.MAX_BYTES, patterns.MAX_DEPTH, patterns.MAX_NODES) == (64 << 10, 64, 10_000)
    assert patterns.MAX_REPETITION == choices.MAX_CHOICES == schemas.MOST_VALUES == schemas.MOST_NODES == 10_000
    assert schemas.MOST_DEPTH == scanner.MAX_DEPTH == structure.MAX_DEPTH == 64
    assert schemas.MOST_BYTES == scanner.MAX_BYTES == structure.MAX_BYTES == choices.MAX_BYTES == 64 << 10


# -- limits of grammars and structural tags

DEEP = 70


def nested(begin: str, middle: str, end: str) -> str:
    return begin * DEEP + middle + end * DEEP


def tag(depth: int) -> str:
    """Sequences inside each other, as a structural tag."""
    content: dict[str, Any] = {"type": "const_string", "value": "a"}
    for _ in range(depth):
        content = {"type": "sequence", "elements": [content]}
    return json.dumps({"type": "structural_tag", "format": content})


READ: dict[str, tuple[list[tuple[Any, str]], Callable[[], object], str]] = {  # limits, what exceeds them, in what words
    "depth of EBNF": (
        [(ebnf, "MAX_DEPTH")],
        lambda: translate(ir.Grammar(f"root ::= {nested('(', chr(34) + 'a' + chr(34), ')')}", syntax="ebnf")),
        "more than 64 levels",
    ),
    "depth of Lark": (
        [(lark, "MAX_DEPTH")],
        lambda: translate(ir.Grammar(f"start: {nested('(', chr(34) + 'a' + chr(34), ')')}")),
        "more than 64 levels",
    ),
    "size of a grammar": (
        [(scanner, "MAX_BYTES")],
        lambda: translate(ir.Grammar("start: " + '"a" ' * 17_000)),
        "limit: 65536",
    ),
    "depth of a tag": ([(structure, "MAX_DEPTH")], lambda: translate(ir.Structure(tag(DEEP))), "more than 64 levels"),
    "size of a tag": (
        [(structure, "MAX_BYTES")],
        lambda: translate(ir.Structure(tag(1).replace('"a"', json.dumps("a" * 70_000)))),
        "limit: 65536",
    ),
}


@pytest.mark.parametrize("name", READ)
def test_a_limit_of_what_is_read_and_its_control(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    limits, work, words = READ[name]
    assert words in said(work)
    for module, limit in limits:
        monkeypatch.setattr(module, limit, LIFTED)
    assert words not in said(work)


@pytest.mark.parametrize("most", [1 << 12, 1 << 20])
def test_what_a_specification_becomes_is_bounded(most: int) -> None:
    """An array that counts its items is short to write, and long as rules."""
    item = {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(40)}}
    told = refused(SpecLimits(**{**PATIENT, "program_bytes": most}), ir.JsonSchema(json.dumps(item)))
    assert ("limit: generated size" in told) == (most == 1 << 12), told


# -- over HTTP

BOMB = r"(a{1,1000}){1,1000}"
SHORT = {"model": "tiny", "max_tokens": 4}
CHAT = {**SHORT, "messages": [{"role": "user", "content": "x"}]}
TEXT = {**SHORT, "prompt": "x"}


def native(**fields: Any) -> dict[str, Any]:
    return {"text": "x", "sampling_params": {"max_new_tokens": 4, **fields}}


def program(constraint: dict[str, Any]) -> dict[str, Any]:
    gen = {"type": "gen", "id": "0.1", "seq": "0", "var": "x", "sampling": {"max_tokens": 4}, "constraint": constraint}
    ops = [{"type": "text", "id": "0.0", "seq": "0", "parts": ["x"]}, gen]
    return {"version": 1, "stream": False, "ops": ops}


def formatted(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


PATTERN: dict[str, Any] = {"type": "string", "pattern": f"^{BOMB}$"}
ROUTES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # path, a body beyond the limits, the same within
    "native regex": ("/generate", native(regex=BOMB), native(regex="a")),
    "native schema": ("/generate", native(json_schema=json.dumps(PATTERN)), native(json_schema='{"type":"null"}')),
    "native EBNF": ("/generate", native(ebnf='root ::= "a"' + ' "a"' * 17_000), native(ebnf='root ::= "a"')),
    "guided regex": ("/v1/completions", {**TEXT, "guided_regex": BOMB}, {**TEXT, "guided_regex": "a"}),
    "guided choice": (
        "/v1/completions",
        {**TEXT, "guided_choice": [f"{i:09}" for i in range(9000)]},
        {**TEXT, "guided_choice": ["a", "b"]},
    ),
    "chat schema": (
        "/v1/chat/completions",
        {**CHAT, "response_format": formatted(PATTERN)},
        {**CHAT, "response_format": formatted({"type": "null"})},
    ),
    "a tool's schema": (
        "/v1/chat/completions",
        {
            **CHAT,
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": PATTERN}}}}],
        }
        | {"tool_choice": "required"},
        {**CHAT, "tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"},
    ),
    "a program's regex": (
        "/v1/programs",
        program({"type": "regex", "pattern": BOMB}),
        program({"type": "regex", "pattern": "a"}),
    ),
}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving() as made:
        yield made


class Opened:
    """Programs with a call in them that the engine was told of."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        send = EngineClient.send

        def heard(client: EngineClient, order: m.Order) -> None:
            if isinstance(order, m.OrderOps):
                self.calls += sum(isinstance(op, m.Generate) for op in order.ops)
            send(client, order)

        patch.setattr(EngineClient, "send", heard)


def refused_at_the_door(served: Served, name: str, opened: Opened) -> None:
    """The check."""
    answer = httpx.post(served.url + ROUTES[name][0], json=ROUTES[name][1], timeout=WAIT)
    assert answer.status_code == 400 and "limit" in answer.json()["error"]["message"], answer.text
    assert opened.calls == 0, "the engine was told of it"


@pytest.mark.model
@pytest.mark.parametrize("name", ROUTES)
def test_excess_is_a_400_that_names_the_limit_and_the_engine_is_not_told(
    served: Served, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Opened(monkeypatch)
    refused_at_the_door(served, name, opened)
    path, _, within = ROUTES[name]
    answer = httpx.post(served.url + path, json=within, timeout=WAIT)  # else it could be refused for something else
    assert answer.status_code == 200 and opened.calls == 1, answer.text


@pytest.mark.model
@pytest.mark.parametrize("name", ["native regex", "guided regex", "a program's regex"])
def test_control_one_that_is_compiled_later_is_seen(served: Served, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler believes whatever it is given, and leaves it to the engine."""
    free = served.client.compiler.compile(ir.Regex("a"))
    monkeypatch.setattr(type(served.client.compiler), "compile", lambda self, constraint, since=None: free)
    with pytest.raises(AssertionError):
        refused_at_the_door(served, name, Opened(monkeypatch))


# -- in memory only

WRITERS = {"sqlite3", "shelve", "dbm", "tempfile", "diskcache", "mmap", "shutil", "pickle"}
READ_ONLY = {"os.devnull": "wb"}  # what may be opened for writing: nothing is kept there


def kept(source: str) -> list[str]:
    """What writes to files: imports of what does, `open` for writing, methods of paths."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in WRITERS]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in WRITERS:
            found.append(node.module or "")
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            modes = [each.value for each in node.args[1:2] if isinstance(each, ast.Constant)]
            opens = name in ("open", "os.open", "Path.open") and any(set("wax+") & set(str(mode)) for mode in modes)
            if (opens and ast.unparse(node.args[0]) not in READ_ONLY) or name.endswith((".write_text", ".write_bytes")):
                found.append(ast.unparse(node))
    return found


def test_what_is_compiled_is_kept_in_memory_alone() -> None:
    files = sorted(Path(grammar.__file__).parent.glob("*.py"))
    assert len(files) > 20
    assert {path.name: kept(path.read_text()) for path in files if kept(path.read_text())} == {}


SEEDED = ["import sqlite3", "from tempfile import mkstemp", "open('x', 'w')", "open(path, 'ab')", "p.write_bytes(b'')"]


@pytest.mark.parametrize("source", SEEDED)
def test_control_a_cache_on_disk_is_found(source: str) -> None:
    assert kept(source) and not kept("open('/proc/self/status')\nopen(os.devnull, 'wb')")
