"""The compiler: processes that start once, are replaced when they die and never outlive their owner; each constraint
compiled once; caches that stay bounded."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ramet.frontend import ir
from ramet.frontend.errors import ConstraintError, EngineError, OverloadedError
from ramet.runtime.grammar import compiler as compiling
from ramet.runtime.grammar.automaton import GrammarCache
from ramet.runtime.grammar.base import Compiled
from ramet.runtime.grammar.compiler import Compiler
from ramet.runtime.grammar.limits import SpecLimits
from ramet.runtime.grammar.worker import Worker

from .small import EOS_IDS, TOKENS, VOCAB

WAIT = 60.0  # seconds until a test gives up on what hangs
PATIENT = SpecLimits(wall_seconds=WAIT, answer_seconds=WAIT)  # a busy machine refuses nothing


@pytest.fixture(autouse=True)
def _kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has compiled is kept, also where the machine is so busy that it took long."""
    monkeypatch.setattr(compiling, "QUICK_SECONDS", WAIT)


def compiler_of(**options: object) -> Compiler:
    return Compiler(lambda: TOKENS, eos=EOS_IDS, vocab=VOCAB, **{"limits": PATIENT, **options})


@pytest.fixture(scope="module")
def shared() -> Iterator[Compiler]:
    compiler = compiler_of(workers=1)
    yield compiler
    compiler.close()


def processes(compiler: Compiler) -> list[int]:
    """The ids of the processes that are running for a compiler."""
    return [worker.pid for worker in compiler._alive if worker.alive]


def refusal(compiler: Compiler, constraint: ir.Constraint) -> str:
    with pytest.raises(ConstraintError) as caught:
        compiler.compile(constraint)
    return str(caught.value)


def follows(compiled: Compiled, text: str) -> bool:
    automaton = GrammarCache(TOKENS, VOCAB, EOS_IDS).automaton(compiled.program)
    automaton.advance(list(text.encode()))
    return automaton.complete


def test_what_is_compiled_can_be_followed(shared: Compiler) -> None:
    found = shared.compile(ir.Regex("a{3}(b|日)"))
    assert follows(found, "aaab")
    assert follows(found, "aaa日")
    assert (found.shortest, found.longest) == (2, 6)


def test_a_choice_of_few_tokens_counts_even_when_it_has_more_bytes(shared: Compiler) -> None:
    assert shared.compile(ir.Choices(("zq", "true", "false"))).shortest == 1


def test_nothing_is_compiled_twice(shared: Compiler) -> None:
    before = shared.compilations
    first = shared.compile(ir.Regex("once"))
    assert shared.compile(ir.Regex("once")) is first
    first_message = refusal(shared, ir.Regex("(once"))
    assert refusal(shared, ir.Regex("(once")) == first_message
    assert shared.compilations == before + 2


def test_the_parents_memory_is_not_the_childs() -> None:
    """The kernel counts what the parent held at the fork; a process must not be given up for that."""
    held = np.ones(52_000_000)  # 416 MB
    compiler = compiler_of(workers=1)
    compiler.compile(ir.Regex("one"))
    first = processes(compiler)
    compiler.compile(ir.Regex("two"))
    assert len(first) == 1 and processes(compiler) == first
    assert held[-1] == 1
    compiler.close()


def test_a_thousand_callers_compile_once() -> None:
    compiler = compiler_of()
    begin = threading.Barrier(1000)

    def one(_: int) -> Compiled:
        begin.wait(WAIT)
        return compiler.compile(ir.Regex("(a|b){1,50}"))

    with ThreadPoolExecutor(1000) as pool:
        found = list(pool.map(one, range(1000)))
    assert all(each is found[0] for each in found)
    assert compiler.compilations == 1
    assert len(processes(compiler)) == 1
    compiler.close()


def test_callers_of_many_constraints_share_few_processes() -> None:
    compiler = compiler_of(workers=2)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda i: compiler.compile(ir.Regex(f"a{{{i % 40 + 1}}}")), range(200)))
    assert [each.longest for each in found] == [i % 40 + 1 for i in range(200)]
    assert compiler.compilations == 40
    assert len(processes(compiler)) <= 2
    compiler.close()


def test_the_cache_is_bounded() -> None:
    compiler = compiler_of(workers=1, most_bytes=4000)
    for i in range(1, 30):
        compiler.compile(ir.Regex(f"a{{{i}}}"))
        assert compiler.bytes <= 4000
    count = compiler.compilations
    compiler.compile(ir.Regex("a{29}"))
    assert compiler.compilations == count
    compiler.compile(ir.Regex("a{1}"))
    assert compiler.compilations == count + 1
    compiler.close()


def test_a_process_that_was_killed_is_replaced(shared: Compiler) -> None:
    shared.warm()
    (pid,) = processes(shared)
    os.kill(pid, signal.SIGKILL)
    assert follows(shared.compile(ir.Regex("after the kill")), "after the kill")
    assert processes(shared) not in ([], [pid])


def test_a_process_that_hangs_is_killed_at_the_limit_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worker, "seconds", _busy())  # it hangs in a loop
    compiler = compiler_of(workers=1, limits=SpecLimits(wall_seconds=0.3))
    compiler.warm()
    (pid,) = processes(compiler)
    os.kill(pid, signal.SIGSTOP)
    assert refusal(compiler, ir.Regex("stopped")) == (
        "regex='stopped': takes more than 0.3 s to compile (limit: compile time); simplify it"
    )
    assert pid not in processes(compiler)
    compiler._limits = PATIENT
    assert follows(compiler.compile(ir.Regex("b1")), "b1")
    compiler.close()


def _busy() -> Callable[[Worker], float]:
    """CPU time of a process that has a processor for itself all the time."""
    return lambda worker: time.monotonic()


def test_a_process_that_got_no_processor_is_put_off_and_nothing_is_kept() -> None:
    compiler = compiler_of(workers=1, limits=SpecLimits(wall_seconds=0.3))
    compiler.warm()
    (pid,) = processes(compiler)
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(OverloadedError, match="or the machine is busy; try again"):
        compiler.compile(ir.Regex("starved"))
    assert pid not in processes(compiler)
    compiler._limits = PATIENT
    assert follows(compiler.compile(ir.Regex("starved")), "starved")
    compiler.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells another process's CPU time")
def test_cpu_time_of_a_process_is_told() -> None:
    compiler = compiler_of(workers=1)
    compiler.warm()
    (worker,) = compiler._alive
    before = worker.seconds()
    compiler.compile(ir.Regex(r"(\w{1,9}\s){1,9}"))
    after = worker.seconds()
    assert before is not None and after is not None and 0 <= before < after
    compiler.close()


def test_closing_ends_the_processes_and_what_waits_for_them() -> None:
    compiler = compiler_of(workers=1)
    compiler.warm()
    (pid,) = processes(compiler)
    os.kill(pid, signal.SIGSTOP)
    errors: list[Exception] = []

    def ask(pattern: str) -> None:
        try:
            compiler.compile(ir.Regex(pattern))
        except EngineError as error:
            errors.append(error)

    threads = [threading.Thread(target=ask, args=(p,)) for p in ("a", "b")]
    for thread in threads:
        thread.start()
    compiler.close()
    for thread in threads:
        thread.join(WAIT)
    assert len(errors) == 2
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(EngineError, match="closed"):
        compiler.compile(ir.Regex("c"))
    compiler.close()


def test_a_compiler_that_is_dropped_ends_its_processes() -> None:
    compiler = compiler_of()
    compiler.warm()
    (pid,) = processes(compiler)
    gone = os.pidfd_open(pid)
    del compiler
    assert select.select([gone], [], [], WAIT)[0]
    os.close(gone)


def test_a_vocabulary_that_cannot_constrain_is_an_engine_error() -> None:
    compiler = Compiler(lambda: [b"", b""], eos=(1,))
    with pytest.raises(EngineError, match="no token that stands for text"):
        compiler.compile(ir.Regex("a"))
    assert not processes(compiler)


def in_fork(work: Callable[[], bool]) -> bool:
    """Whether `work` is true in a forked process, which ends without cleaning up."""
    pid = os.fork()
    if not pid:
        try:
            os._exit(0 if work() else 1)
        except BaseException:  # noqa: BLE001 (the main of the forked process)
            os._exit(2)
    return os.waitpid(pid, 0)[1] == 0


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_forked_process_has_processes_of_its_own(shared: Compiler) -> None:
    shared.warm()
    ours = processes(shared)

    def elsewhere() -> bool:
        found = shared.compile(ir.Regex("forked"))
        theirs = processes(shared)
        shared.close()
        return follows(found, "forked") and len(theirs) == 1 and theirs != ours

    assert in_fork(elsewhere)
    assert processes(shared) == ours
    assert follows(shared.compile(ir.Regex("not forked")), "not forked")


OWNER = """
import os, sys
from ramet.frontend import ir
from ramet.runtime.grammar.compiler import Compiler
compiler = Compiler(lambda: [bytes([b]) for b in range(255)] + [b""], eos=(255,), workers=1)
compiler.warm()
(worker,) = compiler._alive
if os.fork() == 0:  # holds the worker's standard input open
    sys.stdin.read()
    os._exit(0)
print(worker.pid, flush=True)
if sys.argv[1] == "exit":
    sys.exit(0)
sys.stdin.read()
"""


@pytest.mark.parametrize("ending", ["kill", "exit"])
def test_no_process_outlives_its_owner(ending: str) -> None:
    command = [sys.executable, "-P", "-c", OWNER, ending]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        with contextlib.suppress(ProcessLookupError):  # an owner that exits may have been faster
            gone = os.pidfd_open(pid)
            if ending == "kill":
                owner.kill()
            assert select.select([gone], [], [], WAIT)[0]
            os.close(gone)
        assert owner.wait(WAIT) == (-signal.SIGKILL if ending == "kill" else 0)


def test_the_compiling_process_does_not_load_torch() -> None:
    code = (
        "import sys, ramet.runtime.grammar.child as c;"
        "print(sorted({'torch', 'transformers', 'tokenizers', 'fastapi', 'zmq'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=WAIT, check=True)
    assert done.stdout.strip() == "[]"
