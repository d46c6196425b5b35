"""The k-th message, step, allocation, detokenising, ... fails under programs of the language: each ends once, with its
value or with a typed error; the engine is the same as before, or another one.

The engine runs in a thread and checks its invariants after each step; one that is lost is built anew in milliseconds.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import ramet as rt
from ramet.frontend import ir
from ramet.frontend.backends.engine import Engine
from ramet.frontend.errors import DeviceLost
from ramet.runtime import messages as m
from ramet.runtime import process
from ramet.runtime.client import ClientSession, EngineClient
from ramet.runtime.config import Config
from ramet.runtime.engine import EngineCore
from ramet.runtime.ports import QueuePort, ThreadLink
from ramet.runtime.runner import TorchRunner
from ramet.runtime.slots import Slots
from ramet.runtime.text import Detokenizer
from ramet.runtime.translate import Translator

from .anomalous import CONTEXT, LIMITS, PROMPT, ROWS, model
from .engines import GREEDY, TINY, WAIT, CheckedCore
from .failpoints import PanicError, Point, sweep

ENGINE = {  # the whole engine is lost: all that run on it are told, and the next program starts another
    "orders received": Point(QueuePort, "receive"),
    "news sent": Point(QueuePort, "send"),
    "news received": Point(ThreadLink, "receive"),
    "a step is killed": Point(EngineCore, "step", SystemExit("killed")),
    "memory for slots": Point(Slots, "alloc", MemoryError()),
    "the device is lost": Point(TorchRunner, "forward", DeviceLost("unplugged")),
}
PROGRAM = {  # one program is hurt
    "orders sent": Point(ThreadLink, "send", when=lambda link, order: not isinstance(order, m.OrderAbort)),
    "detokenise": Point(Detokenizer, "push"),
    "a panic of the detokeniser": Point(Detokenizer, "push", PanicError("index out of range")),
    "translate": Point(Translator, "_about"),
    "forward": Point(TorchRunner, "forward"),
}


def build(config: Config, port: QueuePort) -> tuple[EngineCore, m.Ready]:
    """An engine as `process.build` makes it, of parts that are there."""
    made = model()
    runner = TorchRunner(made.decoder, capacity=1024, rows=ROWS, context=CONTEXT, threads=1)
    core = CheckedCore(
        runner, port, limits=LIMITS, eos=made.tokenizer.eos, tokenizer=made.tokenizer, grammars=made.grammars
    )
    return core, m.Ready("tiny", "float32", CONTEXT, 1024, 1, 0.0, "torch")


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "build", build)
        with Engine("random:tiny", in_process=True, **TINY) as started:
            yield started


class Tenant:
    """The engine under a namespace of its own. Counts the ends of its programs."""

    def __init__(self, engine: Engine, namespace: str) -> None:
        self._engine = engine
        self._namespace = namespace
        self.ends: Counter[int] = Counter()
        self._told: dict[int, threading.Event] = {}

    def settle(self, patience: float) -> None:
        """Wait for the ends: a value is there before its program has ended."""
        for told in self._told.values():
            told.wait(patience)

    def open(self, header: ir.Header, deliver: Callable[[ir.Event], None]) -> Any:
        """A program: its end is counted."""
        number = len(self.ends)
        self.ends[number] = 0
        told = self._told[number] = threading.Event()

        def heard(event: ir.Event) -> None:
            if isinstance(event, ir.Ended):
                self.ends[number] += 1
                told.set()
            deliver(event)

        try:
            return self._engine.open(ir.Header(name=header.name, seed=header.seed, namespace=self._namespace), heard)
        except BaseException:
            del self.ends[number], self._told[number]
            raise

    def info(self) -> dict[str, object]:
        """The engine's."""
        return self._engine.info()


@rt.function
def agent(s: rt.State) -> tuple[str, ...]:
    """Forks, a choice, a join, a constraint, a tool."""
    s += PROMPT
    branches = s.fork(2)
    branches[0] += rt.gen("x", max_tokens=4, stop="never said", **GREEDY)
    branches[1] += rt.select("x", [" yes", " no"])
    branches.join("concat")
    s += rt.gen("z", regex="(yes|no), because (of )?[a-z]{2,4}", temperature=0)
    s += s.call(lambda said: f" {len(said)}", s["z"])
    return (*branches.gather("x"), s["z"], s.gen(max_tokens=4, **GREEDY).get())


@rt.function
def bystander(s: rt.State) -> str:
    """Begins like it."""
    s += PROMPT
    return s.gen(max_tokens=6, **GREEDY).get()


Outcome = tuple[list[object], list[Tenant]]


def play(engine: Engine, patience: float = WAIT) -> Outcome:
    """Programs of two tenants side by side: their values or errors, of each within `patience` seconds."""
    tenants = [Tenant(engine, "a"), Tenant(engine, "b")]
    runs: list[Any] = []
    found: list[object] = []
    for program, tenant in ((agent, tenants[0]), (bystander, tenants[1]), (agent, tenants[1])):
        try:
            runs.append(program.using(backend=tenant)())
        except rt.RametError as error:
            found.append(error)
    for run in runs:
        try:
            found.append(run.result(patience))
        except TimeoutError:
            raise AssertionError("no end: a program hangs") from None
        except rt.RametError as error:
            found.append(error)
    return found, tenants


@pytest.fixture(scope="module")
def calm(engine: Engine) -> list[object]:
    """The values when nothing fails."""
    found, _ = play(engine)
    assert not any(isinstance(each, Exception) for each in found), found
    assert play(engine)[0] == found
    return found


def check(engine: Engine, calm: list[object], outcome: Outcome, most: int) -> None:
    """Values are right, errors are typed and at most so many, programs ended once; the next ones are undisturbed."""
    found, tenants = outcome
    assert len(found) == len(calm), f"{found}"
    errors = [each for each in found if isinstance(each, Exception)]
    assert len(errors) <= most, f"hurt: {errors}"
    assert all(each in calm for each in found if not isinstance(each, Exception)), f"another value: {found}"
    assert all(isinstance(each, rt.GenerationError | rt.TransportError) for each in errors), f"{errors}"
    for tenant in tenants:
        tenant.settle(WAIT)
        assert set(tenant.ends.values()) <= {1}, f"ends: {tenant.ends}"
    after = play(engine)[0]
    if most > 1 and any(isinstance(each, rt.TransportError) for each in after):  # it was just being lost
        after = play(engine)[0]
    assert after == calm, "the programs after it are disturbed"
    settled(engine)


def settled(engine: Engine) -> None:
    """Nothing is left, not even of programs that were cancelled: the engine has heard of them before it answers."""
    info = engine.info()
    kv = info["kv"]
    assert isinstance(kv, dict)
    held = {name: info[name] for name in ("programs", "running", "waiting")} | {"used": kv["used"]}
    assert not any(held.values()), f"kept: {held}"
    assert kv["free"] + kv["cached"] == kv["total"], f"slots leaked: {kv}"


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the reading thread dies of is reported, as it should be, and is not the test's failure."""
    monkeypatch.setattr(threading, "excepthook", lambda args: None)


def orphans(engine: Engine) -> set[threading.Thread]:
    """The threads of engines, without that of this one."""
    made = engine._client._made
    mine = made[0]._thread if made is not None and isinstance(made[0], ThreadLink) else None
    return {each for each in threading.enumerate() if each.name == "ramet-engine" and each is not mine}


def swept(engine: Engine, calm: list[object], name: str, stride: int, patience: float = WAIT) -> int:
    """The sweep of one point; no engine stays behind."""
    before = orphans(engine)
    most = 3 if name in ENGINE or name == "forward" else 1  # a batch may hold all of them

    def judge(outcome: Outcome, reached: bool) -> None:
        check(engine, calm, outcome, most * reached)

    failed = sweep({**ENGINE, **PROGRAM}[name], lambda: play(engine, patience), judge, stride=stride)
    assert orphans(engine) <= before, "an engine was left behind"
    return failed


@pytest.mark.parametrize("name", [*ENGINE, *PROGRAM])
def test_a_call_that_fails(engine: Engine, calm: list[object], silent: None, name: str) -> None:
    assert swept(engine, calm, name, 7) > 0


@pytest.mark.nightly
@pytest.mark.parametrize("name", [*ENGINE, *PROGRAM])
def test_every_call_that_fails(engine: Engine, calm: list[object], silent: None, name: str) -> None:
    assert swept(engine, calm, name, 1) > 0


# -- seeded faults, which these checks must find


END = Translator._end


def hang_up(link: ThreadLink) -> None:
    """The thread ends, and nobody is told."""
    with contextlib.suppress(BaseException):
        link._serve(link._port, link._port.reports.put)


def forget(client: EngineClient, session: ClientSession, kind: str, what: str) -> None:
    """A lost program is not told."""


def tell_twice(translator: Translator, ended: ir.Ended, *, retryable: bool) -> None:
    """The end, again."""
    END(translator, ended, retryable=retryable)
    translator._deliver(ended)


def guess(client: EngineClient, session: ClientSession, work: Callable[[Any], None], what: object) -> None:
    """What cannot be read is left out."""
    with contextlib.suppress(BaseException):
        work(what)


FAULTS: dict[str, tuple[Any, str, Any, str, str]] = {
    "no word of the end": (ThreadLink, "_main", hang_up, "a step is killed", "no end"),
    "lost programs are not told": (EngineClient, "_tell_lost", forget, "orders received", "no end"),
    "an engine is left behind": (ThreadLink, "ending", lambda link: "ended", "news received", "left behind"),
    "two ends": (Translator, "_end", tell_twice, "orders received", "ends: "),
    "news is left out": (EngineClient, "guard", guess, "translate", "no end|another value"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_seeded_fault_is_found(calm: list[object], silent: None, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    owner, attribute, mutant, name, finding = FAULTS[fault]
    monkeypatch.setattr(process, "build", build)
    monkeypatch.setattr(owner, attribute, mutant)
    engine = Engine("random:tiny", in_process=True, **TINY)
    try:
        with pytest.raises(AssertionError, match=finding):
            swept(engine, calm, name, 7, patience=3.0 if "no end" in finding else WAIT)
    finally:
        monkeypatch.undo()
        client = engine._client
        link = client._made[0] if client._made is not None else None
        if isinstance(link, ThreadLink):
            link._port.reports.put(None)  # what the fault left out
        engine.close()
