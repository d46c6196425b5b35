"""R4: a grammar is compiled in a process that can be killed, under limits, before anything of it reaches the engine."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ramet.frontend import ir
from ramet.frontend.errors import ConstraintError, OverloadedError, RametError
from ramet.runtime.grammar import compiler as compiling
from ramet.runtime.grammar.compiler import Compiler
from ramet.runtime.grammar.limits import SpecLimits

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TOKENS = [bytes([b]) for b in range(255)] + [(a + b).encode() for a in LETTERS for b in LETTERS] + [b""]
EOS = (len(TOKENS) - 1,)
HANGS = 30.0  # seconds after which a compilation has no limit; the promise of 2 s is measured, not asserted
PATIENT = SpecLimits(wall_seconds=HANGS / 3, answer_seconds=HANGS / 2)  # a busy machine refuses nothing


@pytest.fixture(scope="module")
def compiler() -> Iterator[Compiler]:
    compiler = Compiler(lambda: TOKENS, eos=EOS, workers=1, limits=PATIENT)
    compiler.compile(ir.Regex(r"\w\d\s"))  # the tables of Unicode classes are made once for each process
    compiler.compile(ir.JsonSchema("{}"))
    yield compiler
    compiler.close()


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has compiled is kept, also where the machine is so busy that it took long."""
    monkeypatch.setattr(compiling, "QUICK_SECONDS", HANGS)


def refusal(compiler: Compiler, constraint: ir.Constraint) -> tuple[str, float]:
    compiler.warm()
    began = time.monotonic()
    with pytest.raises(ConstraintError) as caught:
        compiler.compile(constraint)
    return str(caught.value), time.monotonic() - began


def schema(value: object) -> ir.JsonSchema:
    return ir.JsonSchema(json.dumps(value))


def nested(depth: int) -> object:
    value: object = {"type": "string"}
    for _ in range(depth):
        value = {"type": "object", "properties": {"a": value}}
    return value


REFUSED = {
    "parentheses": (ir.Regex("(" * 20_000 + "a" + ")" * 20_000), "nest"),
    "unclosed parentheses": (ir.Regex("(" * 20_000), "nest"),
    "repetitions of repetitions": (ir.Regex("(a{1,1000}){1,1000}"), "limit: 10000"),
    "one repetition": (ir.Regex("a{1,1000000}"), "limit: 10000"),
    "long pattern": (ir.Regex("a" * 70_000), "limit: specification size"),
    "long list": (ir.Choices(tuple(str(i) * 10 for i in range(10_000))), "limit: specification size"),
    "long grammar": (ir.Grammar("start: " + '"a" ' * 20_000), "limit: specification size"),
    "deep schema": (schema(nested(100)), "limit: depth"),
    "very deep schema": (ir.JsonSchema('{"not":' * 9000 + "{}" + "}" * 9000), "json_schema"),
    "wide schema": (ir.JsonSchema(json.dumps({"enum": [[0]] * 9000})), "limit: (nodes|enum)|twice|same"),
    "long enum": (ir.JsonSchema('{"enum":[' + ",".join("1" for _ in range(30_000)) + "]}"), "limit"),
    "100,000 values": (schema({"enum": list(range(100_000))}), "limit: specification size"),
    "loop of references": (schema({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}), "json_schema: at"),
    "remote reference": (schema({"$ref": "https://example.com/schema.json"}), "json_schema: at"),
    "empty language": (ir.Regex(r"[^\s\S]+"), "no text"),
    "surrogate": (ir.Regex("\ud800"), "surrogate"),
    "bomb in a schema": (schema({"type": "string", "pattern": "^(a{1,1000}){1,1000}$"}), "limit: (10000|repetition)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_excess_is_refused_at_once_and_says_why(compiler: Compiler, name: str) -> None:
    constraint, why = REFUSED[name]
    message, seconds = refusal(compiler, constraint)
    assert seconds < HANGS
    assert re.search(why, message), message
    assert len(message) < 600


COSTLY = {
    "words": ir.Regex(r"(\w{1,50}\s){1,50}"),
    "ambiguous words": ir.Regex(r"(\w+\s*)+"),
    "nested plus": ir.Regex("(x+x+)+y"),
    "wide repetition": ir.Regex("(a{1,100}){1,100}"),
    "many states": ir.Regex("(.*a.{12})"),
    "alternatives": ir.Regex("|".join(f"word{i}" for i in range(6000))),
    "long choices": ir.Choices(tuple(f"{i:05}" for i in range(10_000))),
    "long text": schema({"type": "string", "minLength": 5000, "maxLength": 9000}),
    "long list": schema({"type": "array", "minItems": 1000, "maxItems": 5000, "items": {"type": "integer"}}),
    "many properties": schema({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1500)}}),
    "many branches": schema({"anyOf": [{"type": "object", "properties": {f"p{i}": {}}} for i in range(1000)]}),
    "doubling references": schema(
        {
            "$ref": "#/$defs/d0",
            "$defs": {
                **{f"d{i}": {"type": "array", "prefixItems": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)},
                "d40": {"type": "null"},
            },
        }
    ),
    "ambiguous grammar": ir.Grammar('start: start start start | start start | "x" | ""'),
    "pattern in a schema": schema({"type": "string", "pattern": r"^(\w{1,50}\s){1,50}$"}),
    "products": schema(
        {"allOf": [{"anyOf": [{"type": "object", "required": [f"{j}{i}"]} for i in range(20)]} for j in range(6)]}
    ),
}


@pytest.mark.parametrize("name", COSTLY)
def test_what_is_costly_is_compiled_or_refused_within_the_limit(compiler: Compiler, name: str) -> None:
    compiler.warm()
    began = time.monotonic()
    message = ""
    try:
        compiler.compile(COSTLY[name])
    except ConstraintError as error:
        message = str(error)
    assert message.startswith(("regex=", "choices", "json_schema", "grammar")) or not message
    assert "defect" not in message
    assert time.monotonic() - began < HANGS
    assert compiler.compile(ir.Regex(f"after {name}")).longest == len(f"after {name}")


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_memory_returns_and_the_cache_stays_bounded(compiler: Compiler) -> None:
    compiler.compile(COSTLY["words"])
    before = resident()
    for i in range(20):
        with pytest.raises(ConstraintError):
            compiler.compile(ir.Regex("(" * 20_000 + str(i)))
        compiler.compile(ir.Regex(f"{'a' * 5000}{i}"))
    assert compiler.bytes <= 16 << 20
    assert resident() - before < 24 << 20


def test_others_compile_while_one_hangs() -> None:
    compiler = Compiler(lambda: TOKENS, eos=EOS, workers=2, limits=PATIENT)
    with compiler._worker() as held:
        os.kill(held.pid, signal.SIGSTOP)
        for i in range(20):
            assert compiler.compile(ir.Regex(f"goes on {i}")).shortest
    compiler.close()


def test_memory_is_limited_and_returns() -> None:
    limits = replace(PATIENT, memory_bytes=64 << 20)
    small = Compiler(lambda: TOKENS, eos=EOS, workers=1, limits=limits)
    small.warm()
    for constraint in (COSTLY["alternatives"], COSTLY["long choices"]):
        message, _ = refusal(small, constraint)
        assert message.endswith("needs more than 64 MiB to compile (limit: compile memory); simplify it")
    small.close()


@pytest.mark.usefixtures("kept")
def test_the_kernel_holds_the_process_to_its_limits(compiler: Compiler) -> None:
    compiler.compile(ir.Regex("limited"))
    (worker,) = compiler._alive
    assert resource.prlimit(worker.pid, resource.RLIMIT_AS)[0] == 1 << 30
    assert resource.prlimit(worker.pid, resource.RLIMIT_CORE)[0] == 0
    assert 1 <= resource.prlimit(worker.pid, resource.RLIMIT_CPU)[0] < 60  # it grows with what was used before


def test_running_out_of_processor_time_is_told() -> None:
    limits = SpecLimits(wall_seconds=60, answer_seconds=60)
    compiler = Compiler(lambda: TOKENS, eos=EOS, workers=1, limits=limits)
    compiler.warm()
    (worker,) = compiler._alive
    for sent in (signal.SIGSTOP, signal.SIGXCPU):
        os.kill(worker.pid, sent)
    later = threading.Timer(0.2, os.kill, (worker.pid, signal.SIGCONT))
    later.start()
    message, _ = refusal(compiler, ir.Regex("slow"))
    assert message == "regex='slow': takes more than 2 s of CPU time to compile (limit); simplify it"
    later.join()
    compiler.close()


def test_limits_must_be_positive() -> None:
    with pytest.raises(ConstraintError, match="wall_seconds=0: must be positive"):
        SpecLimits(wall_seconds=0)


def bomb(number: int) -> ir.JsonSchema:
    """What takes seconds, and another one for each number: hundreds of lists of texts of nearly the same lengths."""
    items = [{"type": "string", "pattern": f"^(a|b){{{number},{number + i}}}$"} for i in range(1, 600)]
    return schema({"anyOf": [{"type": "array", "items": item} for item in items]})


def test_ordinary_constraints_pass_bombs_and_every_answer_comes_in_time() -> None:
    """The time is the machine's, so what is asserted is who is answered before whom, and how."""
    limits = SpecLimits(wall_seconds=HANGS / 3, answer_seconds=HANGS, cpu_seconds=int(HANGS))
    compiler = Compiler(lambda: TOKENS, eos=EOS, workers=2, limits=limits)
    compiler.warm()
    answered: list[str] = []
    begun = [threading.Thread(target=lambda i=i: answered.append(told(compiler, bomb(i)))) for i in range(4)]
    for thread in begun:
        thread.start()
    while compiler.compilations < len(begun):
        begun[-1].join(0.01)
    for i in range(5):
        assert compiler.compile(schema({"type": "object", "properties": {f"p{i}": {"type": "string"}}})).shortest
    assert not answered  # no bomb had to end for that
    compiler.close()
    for thread in begun:
        thread.join()
    assert answered == ["EngineError"] * len(begun)


def told(compiler: Compiler, constraint: ir.Constraint) -> str:
    try:
        compiler.compile(constraint)
    except RametError as error:
        return type(error).__name__
    return ""


def test_what_had_to_wait_for_others_is_put_off_and_not_called_too_costly() -> None:
    compiler = Compiler(lambda: TOKENS, eos=EOS, workers=1, limits=SpecLimits(answer_seconds=0.3))
    with compiler._worker(), pytest.raises(OverloadedError, match=r"not compiled within 0.3 s.*try again"):
        compiler.compile(ir.Regex("late"))
    compiler._limits = PATIENT
    assert compiler.compile(ir.Regex("late")).shortest  # nothing of it was kept
    assert OverloadedError.status == 503 and OverloadedError.retryable


def test_the_time_counts_from_the_request() -> None:
    limits = SpecLimits(wall_seconds=2 * HANGS, answer_seconds=HANGS)
    compiler = Compiler(lambda: TOKENS, eos=EOS, workers=1, limits=limits)
    compiler.warm()
    compiler._ready -= HANGS  # it has been ready for long
    (worker,) = compiler._alive
    os.kill(worker.pid, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(OverloadedError):
        compiler.compile(ir.Regex("came long ago"), since=began + 0.3 - HANGS)
    assert time.monotonic() - began < HANGS / 2
    compiler.close()


@pytest.mark.usefixtures("kept")
def test_a_process_that_is_killed_is_forked_anew_and_not_started() -> None:
    compiler = Compiler(lambda: TOKENS, eos=EOS, workers=1, limits=PATIENT)
    compiler.warm()
    (nursery,) = compiler._nurseries
    for i in range(5):
        (worker,) = compiler._alive
        worker.kill()
        assert compiler.compile(ir.Regex(f"again {i}")).shortest
        assert nursery.alive and compiler._nurseries == [nursery]
    os.kill(nursery.pid, signal.SIGKILL)
    os.waitid(os.P_PID, nursery.pid, os.WEXITED | os.WNOWAIT)
    compiler._idle[0].kill()
    assert compiler.compile(ir.Regex("after all were killed")).shortest
    assert compiler._nurseries != [nursery]
    compiler.close()
    assert not compiler._alive and not compiler._nurseries
