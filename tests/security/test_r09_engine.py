"""R9, inside the engine: namespaces share nothing that one could count or time, order by what is cached stays inside a
namespace, tokens are shared out fairly between them, and nobody can name another's namespace."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.frontend import ir
from ramet.frontend.ir import Sampling
from ramet.runtime import messages as m
from ramet.runtime.config import Config
from ramet.runtime.engine import EngineCore
from ramet.runtime.models.decoder import Decoder
from ramet.runtime.models.hub import PRESETS
from ramet.runtime.models.load import random_weights
from ramet.runtime.radix import RadixTree
from ramet.runtime.runner import TorchRunner
from ramet.runtime.server import compose
from ramet.runtime.server.call import Call, Caller
from ramet.runtime.server.guard import Guard
from ramet.runtime.server.settings import Settings
from ramet.runtime.waiting import Waiting

from ..runtime.driving import Drive

SPEC = replace(PRESETS["tiny"], layers=1)
ONE, OTHER = tuple(range(300, 364)), tuple(range(700, 764))
Make = Callable[..., Drive]
Check = Callable[[Make], None]


@pytest.fixture(scope="module")
def make() -> Make:
    torch.set_num_threads(1)
    decoder = Decoder(SPEC, random_weights(SPEC, torch.bfloat16, seed=3), "cpu", torch.bfloat16)

    def made(rows: int = 4) -> Drive:
        return Drive(TorchRunner(decoder, capacity=1024, rows=rows, context=256, threads=1), chunk_tokens=16)

    return made


def ask(drive: Drive, namespace: str, prompt: tuple[int, ...], tokens: int = 2) -> str:
    """A completion in a namespace; its program's id."""
    sampling = Sampling(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    ops = (m.Append("0.0", "0", (prompt,)), m.Generate("0.1", "0", sampling, 1))
    return drive.program(*ops, namespace=namespace)


# -- the checks


def no_count(make: Make) -> None:
    """Nothing that is told of a request depends on what another namespace has cached, or computes in the same step."""

    def told(*others: str) -> tuple[int, int, int, int]:
        drive = make()
        for namespace in others:
            drive.run(ask(drive, namespace, ONE))
        beside = [ask(drive, namespace, ONE) for namespace in others]
        mine = ask(drive, "mine", ONE)
        drive.run()
        began, over = drive[mine, "0.1"].began, drive.over[mine]
        assert began is not None and all(drive[name, "0.1"].tokens == drive[mine, "0.1"].tokens for name in beside)
        return began.cached, over.cached, over.computed, over.prompt

    alone = told()
    assert alone[0] == 0 and told("theirs") == alone
    assert told("theirs", "mine")[0] >= len(ONE) - 1, "the owner finds it"


def no_time(make: Make) -> None:
    """A probe takes the same steps, of the same sizes, whatever another namespace has cached: there is nothing to time
    but noise."""

    def steps(other: tuple[int, ...], namespace: str = "theirs") -> list[tuple[int, int]]:
        drive = make()
        drive.run(ask(drive, namespace, other))
        before = len(drive.port.steps)
        drive.run(ask(drive, "mine", ONE))
        return [step.batch for step in drive.port.steps[before:]]

    assert steps(ONE) == steps(OTHER)
    assert steps(ONE, "mine") != steps(OTHER, "mine"), "the owner's probe is faster"


def no_order(make: Make) -> None:
    """The order in which a namespace's requests run does not depend on what another has cached."""

    def order(cached: tuple[int, ...], namespace: str) -> list[str]:
        drive = make(rows=1)
        drive.run(ask(drive, namespace, cached))
        busy = ask(drive, "mine", tuple(range(20, 60)), 4)
        drive.step()
        probes = {ask(drive, "mine", OTHER): "other", ask(drive, "mine", ONE): "one"}
        drive.run()
        assert busy in drive.over
        ended = [name for name in drive.over if name in probes]
        return [probes[name] for name in ended]

    assert order(ONE, "theirs") == order(OTHER, "theirs") == ["other", "one"]
    assert order(ONE, "mine") == ["one", "other"], "inside a namespace what is cached goes first"


def fair(make: Make) -> None:
    """Who floods the queue gets no more tokens than who asks now and then, while both wait."""
    drive = make(rows=1)
    flood = [ask(drive, "flood", tuple(range(10 + i, 50 + i)), 4) for i in range(12)]
    drive.step()
    few = [ask(drive, "few", tuple(range(400 + i, 440 + i)), 4) for i in range(4)]
    ahead = 0
    while not all(name in drive.over for name in few):
        drive.step()
        served = drive.core.scheduler.served
        ahead = max(ahead, served.get("flood", 0) - served.get("few", 0))
    done = sum(name in drive.over for name in flood)
    assert done <= len(few) + 2, f"{done} of the flood went before the last of the few"
    assert ahead <= 3 * 44, f"the flood was {ahead} tokens ahead"
    drive.run()


CHECKS: dict[str, Check] = {"counts": no_count, "times": no_time, "order": no_order, "fairness": fair}


@pytest.mark.parametrize("check", CHECKS)
def test_namespaces_are_apart(make: Make, check: str):
    CHECKS[check](make)


# -- the controls


ROOT, NEXT, MATCH = RadixTree.root, Waiting.next, Waiting._match


def one_root(self: RadixTree, namespace: str) -> Any:
    return ROOT(self, "one for all")


def matched_anywhere(self: Waiting, seq: Any) -> int:
    """What is cached in any namespace makes a sequence older."""
    names = [seq.program.namespace, "theirs"]
    return max(self._tree.match(ROOT(self._tree, name), seq.tokens(0, seq.known))[1] for name in names)


def first_come(self: Waiting, served: dict[str, int]) -> list[Any]:
    return sorted(NEXT(self, {}), key=lambda seq: seq.order)


MUTATIONS: dict[str, tuple[str, Any, str, Any]] = {
    "one tree: counts": ("counts", RadixTree, "root", one_root),
    "one tree: times": ("times", RadixTree, "root", one_root),
    "one tree: order": ("order", RadixTree, "root", one_root),
    "order across namespaces": ("order", Waiting, "_match", matched_anywhere),
    "first come, first served": ("fairness", Waiting, "next", first_come),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_without_the_rule_the_check_fails(make: Make, monkeypatch: pytest.MonkeyPatch, mutation: str):
    check, owner, name, other = MUTATIONS[mutation]
    monkeypatch.setattr(owner, name, other)
    monkeypatch.setattr(EngineCore, "check", lambda self: None)  # which would see it first
    with pytest.raises(AssertionError):
        CHECKS[check](make)


@pytest.mark.skipif(not __debug__, reason="invariants are assertions, which the optimising interpreter leaves out")
def test_the_engine_s_own_check_sees_one_tree(make: Make, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(RadixTree, "root", one_root)
    with pytest.raises(AssertionError, match="namespace"):
        no_count(make)


# -- names of namespaces


async def nobody(scope: Any, receive: Any, send: Any) -> None:
    """An application that is never asked."""


def guard(*keys: str) -> Guard:
    return Guard(nobody, Settings(api_key=keys, admin_key="boss"))


Name = Callable[[Guard, str, str], str]


def name_of(front: Guard, key: str, salt: str) -> str:
    """The namespace of a request."""
    return compose.namespace(Caller(namespace=front.namespace(key.encode())), salt)


def apart(name: Name) -> None:
    """The check: a server's namespaces are told apart by key and salt alone, and nobody outside can compute one."""
    here, there = guard("a", "b"), guard("a", "b")
    pairs = [(key, salt) for key in ("a", "b", "ab", "") for salt in ("", "a", "b", "ba", "\0", "a\0b")]
    names = [name(here, *pair) for pair in pairs]
    assert len(set(names)) == len(pairs), "two owners of one namespace"
    assert all(len(each) == 32 for each in names), "128 bits"
    assert all(name(there, *pair) != own for pair, own in zip(pairs, names, strict=True)), "another server's is known"
    guesses = {name(here, "b", salt) for salt in (names[0], f"{names[0]}\0", f"{names[0]}\0a", "a")}
    assert not guesses & set(names[:6]), "a salt names another's namespace"


def test_nobody_can_name_another_s_namespace():
    apart(name_of)


NAMES: dict[str, Name] = {
    "no secret": lambda front, key, salt: hashlib.sha256(f"{key}\0{salt}".encode()).hexdigest()[:32],
    "the salt alone": lambda front, key, salt: salt or name_of(front, key, ""),
    "the key alone": lambda front, key, salt: name_of(front, key, ""),
    "no boundary between them": lambda front, key, salt: name_of(front, key + salt, ""),
    "one for all": lambda front, key, salt: name_of(front, "", salt),
}


@pytest.mark.parametrize("mutation", NAMES)
def test_other_names_fail_the_check(mutation: str):
    with pytest.raises(AssertionError):
        apart(NAMES[mutation])


@settings(max_examples=25, deadline=None)
@given(st.tuples(st.text(), st.text()), st.tuples(st.text(), st.text()))
def test_no_two_requests_share_by_accident(one: tuple[str, str], other: tuple[str, str]):
    front = FRONT
    made = [
        compose.namespace(Caller(namespace=front.namespace(k.encode("utf-8", "surrogatepass"))), s)
        for k, s in (one, other)
    ]
    assert (made[0] == made[1]) == (one == other)


FRONT = guard("a")


# -- adapters and versions


def selectors() -> set[str]:
    """Names of whatever could choose other weights for a request, or change them under an engine that runs."""
    found: set[str] = {field.name for field in fields(Call)}
    structs = [ir.Header, ir.Sampling, *(kind for kind in m.Order.__args__)]
    found.update(name for struct in structs for name in struct.__struct_fields__)
    found.update(struct.__struct_config__.tag for struct in m.Order.__args__)
    found.update(msgspec.structs.asdict(Config(model="x")))
    return {
        name
        for name in map(str, found)
        if any(word in name.lower() for word in ("adapter", "lora", "version", "weight"))
    }


def test_nothing_but_the_namespace_selects_what_computes():
    """There are no adapters and no weights that change while an engine runs. What brings one in has to make it part of
    the namespace, and to say so here. (`weights` chooses the precision of an engine when it starts.)"""
    assert selectors() <= {"weights"}


def test_a_new_selector_would_be_noticed(monkeypatch: pytest.MonkeyPatch):
    struct = msgspec.defstruct("OrderOpen", [("program", str), ("adapter", str)], tag="open")
    union = m.OrderFlush | struct
    monkeypatch.setattr(m, "Order", union)
    assert "adapter" in selectors()
