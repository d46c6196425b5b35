"""Grammars built beside the step loop: who needs one waits for it, nobody else does, and the loop is woken."""

from __future__ import annotations

import queue
import tempfile
from collections.abc import Callable

import pytest
import torch
import zmq

from ramet.frontend.ir import Sampling
from ramet.runtime import messages as m
from ramet.runtime.grammar.automaton import HEADER, GrammarCache, LLAutomaton
from ramet.runtime.grammar.foundry import Foundry
from ramet.runtime.models import hub
from ramet.runtime.models.decoder import Decoder
from ramet.runtime.models.load import random_weights
from ramet.runtime.models.tokenizer import load_tokenizer
from ramet.runtime.ports import SOCKETS, QueuePort, ZmqPort
from ramet.runtime.runner import TorchRunner
from ramet.runtime.text import Tokenizer

from .driving import Drive

SPEC = hub.PRESETS["tiny"]
GREEDY = Sampling(temperature=0.0, max_tokens=12)


class Building:
    """A `GrammarCache` that says that a program is being built until the test says `done`."""

    def __init__(self, cache: GrammarCache) -> None:
        self._cache = cache
        self._ready: set[str] = set()
        self._told: list[str] = []
        self.owners: dict[str, str] = {}
        self.closed = False

    def prepare(self, program: str, owner: str) -> bool:
        if program not in self._ready:
            self.owners[owner] = program
        return program in self._ready

    def automaton(self, program: str) -> LLAutomaton:
        assert program in self._ready
        return self._cache.automaton(program)

    def built(self) -> list[str]:
        told, self._told = self._told, []
        return told

    def done(self, program: str) -> None:
        self._ready.add(program)
        self._told += [owner for owner, wanted in self.owners.items() if wanted == program]

    def forget(self, owner: str) -> None:
        self.owners.pop(owner, None)

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(hub.resolve("random:tiny"))


@pytest.fixture(scope="module")
def cache(tokenizer: Tokenizer) -> GrammarCache:
    return GrammarCache(tokenizer, SPEC.vocab, tokenizer.eos)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    torch.set_num_threads(1)
    return Decoder(SPEC, random_weights(SPEC, torch.bfloat16, seed=3), "cpu", torch.bfloat16)


@pytest.fixture
def drive(decoder: Decoder, tokenizer: Tokenizer, cache: GrammarCache) -> Callable[[object], Drive]:
    def make(grammars: object) -> Drive:
        runner = TorchRunner(decoder, capacity=2048, rows=16, context=512, threads=1)
        return Drive(runner, tokenizer=tokenizer, eos=tokenizer.eos, grammars=grammars)  # type: ignore[arg-type]

    return make


def regex(pattern: str) -> str:
    return f"{HEADER}start: /{pattern}/\n"


def constrained(tokenizer: Tokenizer, pattern: str, more: tuple[m.AnyOp, ...] = ()) -> tuple[m.AnyOp, ...]:
    prompt = tuple(tokenizer.encode("The answer, in one word, is the following one: "))
    return (m.Append("0.0", "0", (prompt,)), m.Generate("0.1", "0", GREEDY, 0, regex(pattern)), *more)


def test_others_go_on_and_the_text_before_is_computed_meanwhile(
    drive: Callable[[object], Drive], tokenizer: Tokenizer, cache: GrammarCache
) -> None:
    building = Building(cache)
    d = drive(building)
    waits = d.program(*constrained(tokenizer, "(yes|no)[a-z]{3}"))
    free = d.completion(tokenizer.encode("Once upon a time"), GREEDY)
    d.run(free)
    assert waits not in d.over
    (seq,) = d.core.programs.live[waits].sequences.values()
    assert seq.task is None and seq.computed == seq.known - 1
    building.done(regex("(yes|no)[a-z]{3}"))
    d.run(waits)
    alone = drive(cache)
    same = alone.program(*constrained(tokenizer, "(yes|no)[a-z]{3}"))
    alone.run()
    assert d[waits, "0.1"].bits == alone[same, "0.1"].bits
    assert d.over[waits].computed == alone.over[same].computed


def test_a_failure_while_building_ends_that_op_alone(
    drive: Callable[[object], Drive], tokenizer: Tokenizer, cache: GrammarCache
) -> None:
    woken: queue.SimpleQueue[None] = queue.SimpleQueue()
    foundry = Foundry(cache, lambda: woken.put(None))
    d = drive(foundry)
    prompt = m.Append("0.0", "0", (tuple(tokenizer.encode("Say: ")),))
    bad = d.program(prompt, m.Generate("0.1", "0", GREEDY, 0, "start: ("))
    good = d.program(*constrained(tokenizer, "built elsewhere"))
    d.step()
    for _ in range(2):
        woken.get(timeout=60)
    d.run()
    failure = d[bad, "0.1"].failure
    assert failure is not None and failure.kind == "constraint"
    assert tokenizer.decode(d[good, "0.1"].tokens) == "built elsewhere"
    foundry.close()


def test_who_waits_can_be_aborted_cut_and_ended(
    drive: Callable[[object], Drive], tokenizer: Tokenizer, cache: GrammarCache
) -> None:
    building = Building(cache)
    d = drive(building)
    aborted = d.program(*constrained(tokenizer, "aborted"))
    fork = m.Fork("0.2", "0", ("0.b0", "0.b1"))
    into = (m.Generate("0.b0.0", "0.b0", GREEDY, 0, regex("cut")), m.Generate("0.b1.0", "0.b1", GREEDY, 0))
    cut = d.program(m.Append("0.0", "0", ((5, 6, 7),)), fork, *into, end=False)
    d.step()
    d.order(m.OrderAbort(aborted), m.OrderOps(cut, (m.Close("0.b0.1", "0.b0", True),)), m.OrderEnd(cut))
    d.step()
    assert aborted in d.over and aborted not in building.owners
    building.done(regex("cut"))
    d.run(cut)
    failure = d[cut, "0.b0.0"].failure
    assert failure is not None and failure.kind == "aborted"
    assert d[cut, "0.b1.0"].done is not None
    assert not building.owners
    d.core.close()
    assert building.closed


def test_ops_that_wait_for_nothing_that_comes_fail_once_the_grammar_is_there(
    drive: Callable[[object], Drive], tokenizer: Tokenizer, cache: GrammarCache
) -> None:
    building = Building(cache)
    d = drive(building)
    never = m.Append("0.2", "0", ("0.9",))
    name = d.program(*constrained(tokenizer, "text", (never,)))
    d.step()
    assert name not in d.over
    building.done(regex("text"))
    d.run(name)
    assert d[name, "0.1"].done is not None
    failure = d[name, "0.2"].failure
    assert failure is not None and "never comes" in failure.message


# -- ports


def test_a_queue_port_can_be_woken() -> None:
    port = QueuePort()
    port.wake()
    assert port.receive(True) == []
    port.wake()
    port.orders.put(m.OrderStop())
    port.wake()
    assert port.receive(True) in ([], [m.OrderStop()])


def test_a_socket_port_can_be_woken() -> None:
    with tempfile.TemporaryDirectory() as directory, zmq.Context() as context:
        orders, reports = context.socket(zmq.PUSH), context.socket(zmq.PULL)
        for socket, name in zip((orders, reports), SOCKETS, strict=True):
            socket.bind(f"ipc://{directory}/{name}")
        port = ZmqPort(directory)
        port.wake()
        assert port.receive(True) == []
        port.close()
        for socket in (orders, reports):
            socket.close(0)
