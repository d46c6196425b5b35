"""R4, positive controls: each limit on grammars is lifted, and the check that relies on it fails.

The checks refuse a specification for one named limit; lifted, the same specification is compiled, or refused for
another reason.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

from ramet.frontend import ir, patterns, schemas
from ramet.frontend.errors import ConstraintError, RametError
from ramet.runtime.grammar import choices
from ramet.runtime.grammar.compiler import Compiler
from ramet.runtime.grammar.limits import SpecLimits
from ramet.runtime.grammar.worker import Worker

from .test_r04_grammars import COSTLY, EOS, TOKENS, nested

LIFTED = 10**9
MANY, LARGE = [str(i) for i in range(10_001)], [f"{i:0999}" for i in range(99)]
# What reads the specification, the names of its limits, what exceeds them, and how the refusal says so.
READ: dict[str, tuple[Any, tuple[str, ...], Callable[[], object], str]] = {
    "pattern size": (patterns, ("MAX_BYTES",), lambda: patterns.parse("a" * 70_000), "limit: 65536"),
    "pattern depth": (patterns, ("MAX_DEPTH",), lambda: patterns.parse("(" * 80 + "a" + ")" * 80), "64 levels deep"),
    "pattern parts": (patterns, ("MAX_NODES",), lambda: patterns.parse("a*" * 12_000), "more than 10000 parts"),
    "repetition": (patterns, ("MAX_REPETITION",), lambda: patterns.parse("a{20000}"), "limit: 10000"),
    "repetitions": (patterns, ("MAX_REPETITION",), lambda: patterns.parse("(a{1,200}){1,200}"), "limit: 10000"),
    "schema size": (schemas, ("MOST_BYTES",), lambda: schemas.check({"const": "a" * 70_000}), "specification size"),
    "schema depth": (schemas, ("MOST_DEPTH",), lambda: schemas.check(nested(80)), "limit: depth"),
    "schema nodes": (schemas, ("MOST_NODES",), lambda: schemas.check({"enum": [[0]] * 6000}), "limit: nodes"),
    "enum": (
        *(schemas, ("MOST_VALUES", "MOST_NODES")),
        *(lambda: schemas.check({"enum": list(range(10_001))}), "limit: (enum|nodes)"),
    ),
    "number of choices": (
        choices,
        ("MAX_CHOICES",),
        lambda: choices.tree(tuple(map(str, range(10_001)))),
        "limit: 10000",
    ),
    "size of choices": (
        choices,
        ("MAX_BYTES",),
        lambda: choices.tree([f"{i:0999}" for i in range(99)]),
        "limit: 65536",
    ),
}


def said(work: Callable[[], object]) -> str:
    """Why something was refused; empty when it was not."""
    try:
        work()
    except ConstraintError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", READ)
def test_a_limit_of_what_is_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, limits, work, message = READ[name]
    assert re.search(message, said(work))
    for limit in limits:  # the control
        monkeypatch.setattr(module, limit, LIFTED)
    assert not re.search(message, said(work))


def refused(limits: SpecLimits, constraint: ir.Constraint) -> str:
    """Why a compiler with these limits refuses a constraint; empty when it does not."""
    compiler = Compiler(lambda: TOKENS, eos=EOS, workers=1, limits=limits)
    compiler.warm()
    try:
        return said(lambda: compiler.compile(constraint))
    finally:
        compiler.close()


PATIENT = {"wall_seconds": 60.0, "answer_seconds": 60.0, "cpu_seconds": 60}
COMPILED: dict[str, tuple[ir.Constraint, dict[str, Any], dict[str, Any], str]] = {  # constraint, limit, lifted, message
    "size": (ir.Choices(tuple(f"{i:099}" for i in range(700))), {}, {"spec_bytes": LIFTED}, "specification size"),
    "memory": (COSTLY["long choices"], {"memory_bytes": 64 << 20}, {"memory_bytes": 2 << 30}, "compile memory"),
}


@pytest.mark.parametrize("name", COMPILED)
def test_a_limit_of_the_compiling_process(name: str) -> None:
    constraint, tight, lifted, message = COMPILED[name]
    assert message in refused(SpecLimits(**{**PATIENT, **tight}), constraint)
    assert message not in refused(SpecLimits(**{**PATIENT, **lifted}), constraint)


@pytest.mark.parametrize(("seconds", "ends"), [(0.2, True), (60.0, False)])
def test_a_process_that_hangs_is_ended_by_the_clock_alone(
    seconds: float, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stopped, and goes on later; without the limit the answer waits for it."""
    monkeypatch.setattr(Worker, "seconds", lambda worker: None)  # nobody tells that it does not run
    limits = SpecLimits(**{**PATIENT, "wall_seconds": seconds})
    compiler = Compiler(lambda: TOKENS, eos=EOS, workers=1, limits=limits)
    compiler.warm()
    (worker,) = compiler._alive
    os.kill(worker.pid, signal.SIGSTOP)
    later = threading.Timer(1.0, _go_on, (worker.pid,))
    later.start()
    assert ("limit: compile time" in said(lambda: compiler.compile(ir.Regex("hangs")))) == ends
    later.join()
    compiler.close()


def _go_on(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:  # it was killed, as it should be
        return


def test_a_long_text_is_not_costly() -> None:
    """The states of the lexer are limited, which the proof of a plain text must not run into."""
    compiler = Compiler(lambda: TOKENS, eos=EOS, workers=1, limits=SpecLimits(**PATIENT))
    for length in (1400, 1600, 2900, 3100, 4000, 4200):
        assert compiler.compile(ir.Regex("a" * length)).longest == length
    compiler.close()


@pytest.mark.parametrize(("most", "bounded"), [(1 << 15, True), (1 << 30, False)])
def test_the_cache_is_bounded_by_its_bound(most: int, bounded: bool) -> None:
    compiler = Compiler(lambda: TOKENS, eos=EOS, workers=1, limits=SpecLimits(**PATIENT), most_bytes=most)
    for i in range(30):
        compiler.compile(ir.Regex(f"{'a' * 1000}{i}"))
    assert (compiler.bytes <= 1 << 15) == bounded
    compiler.close()


@pytest.mark.parametrize("shared", [True, False])
def test_equal_constraints_are_compiled_once_because_of_one_thing(
    shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shared:
        monkeypatch.setattr(Compiler, "_once", lambda self, key, work: work())
    compiler = Compiler(lambda: TOKENS, eos=EOS, workers=2, limits=SpecLimits(**PATIENT))
    compiler.warm()
    errors: list[RametError] = []

    def ask() -> None:
        try:
            compiler.compile(ir.Regex("the same"))
        except RametError as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and (compiler.compilations == 1) == shared
    compiler.close()
