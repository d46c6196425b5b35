"""Snapshots: bounded, complete in their sums, and silent about what tokens say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.frontend.errors import TransportError
from ramet.frontend.ir import Sampling
from ramet.runtime import messages as m
from ramet.runtime.client import EngineClient
from ramet.runtime.engine import EngineCore
from ramet.runtime.models.decoder import Decoder
from ramet.runtime.models.hub import PRESETS
from ramet.runtime.models.load import random_weights
from ramet.runtime.radix import RadixTree
from ramet.runtime.runner import TorchRunner
from ramet.runtime.snapshot import NAME, Snapshots
from ramet.runtime.start import start
from ramet.runtime.views import STATES, BranchView, OrderSnapshot, ProgramView, Snapshot

from .driving import Drive
from .engines import TINY

ALL = OrderSnapshot(1, 10_000, 1000, 1000)
GREEDY = Sampling(temperature=0, max_tokens=6, ignore_eos=True)
PROMPT = tuple(range(20, 60))


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    torch.set_num_threads(1)
    return Decoder(PRESETS["tiny"], random_weights(PRESETS["tiny"], torch.float32), "cpu", torch.float32)


@pytest.fixture(scope="module")
def core(decoder: Decoder) -> EngineCore:
    """An engine without programs."""
    return drive(decoder).core


def drive(decoder: Decoder, rows: int = 16, **limits: object) -> Drive:
    return Drive(TorchRunner(decoder, capacity=1024, rows=rows, context=512, threads=1), **limits)


def look(d: Drive, order: OrderSnapshot = ALL) -> Snapshot:
    """A snapshot, asked for and told as the client does."""
    d.order(order)
    d.step()
    (found,) = d.port.steps[-1].snapshots
    assert found.token == order.token and found.error == ""
    return found


def branches(program: ProgramView) -> dict[str, BranchView]:
    return {branch.name: branch for branch in program.branches}


def only(snapshot: Snapshot) -> dict[str, BranchView]:
    (program,) = snapshot.programs
    assert sum(program.states) == len(program.branches)
    return branches(program)


# -- the tree


class Wood:
    """A tree of its own, with a look at it."""

    def __init__(self, core: EngineCore) -> None:
        self.tree = RadixTree()
        self.snapshots = Snapshots(self.tree, core.programs, core.scheduler, lambda: 0.0)
        self._slots = 0

    def grow(self, tokens: list[int], namespace: str = "", lock: bool = False) -> None:
        run = np.array(tokens, np.int32)
        slots = np.arange(self._slots, self._slots + len(run), dtype=np.int32)
        self._slots += len(run)
        node, _ = self.tree.insert(self.tree.root(namespace), run, slots)
        if lock:
            self.tree.lock(node)

    def look(self, nodes: int = 10_000, namespace: str | None = None) -> Snapshot:
        found = self.snapshots.take(OrderSnapshot(0, nodes, 0, 0, namespace))
        assert found.error == ""
        return found


def consistent(snapshot: Snapshot, size: int) -> None:
    nodes = snapshot.nodes
    assert sum(n.tokens + n.hidden_tokens for n in nodes) + snapshot.elsewhere == size
    assert len({n.id for n in nodes}) == len(nodes)
    for place, node in enumerate(nodes):
        assert node.parent < place
        above = nodes[node.parent].depth if node.parent >= 0 else 0
        assert node.depth == above + node.tokens
        assert (node.hidden == 0) == (node.hidden_tokens == 0)
        mine = [n for n in nodes if n.parent == place]
        assert node.below == sum(n.tokens + n.below for n in mine) + node.hidden_tokens
        assert node.refs >= max((n.refs for n in mine), default=0)


runs = st.lists(st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=9), st.sampled_from("ab"), st.booleans()))


@settings(max_examples=150, deadline=None)
@given(runs, st.integers(1, 12), st.sampled_from([None, "a", "b", "nobody"]))
def test_nothing_is_lost_whatever_the_limit(core, grown, nodes, namespace):
    wood = Wood(core)
    for tokens, name, lock in grown:
        wood.grow(tokens, name, lock)
    small, whole = wood.look(nodes, namespace), wood.look(10_000, namespace)
    held = {node.id for node in whole.nodes if node.refs}
    assert len(small.nodes) <= nodes
    for snapshot in (small, whole):
        consistent(snapshot, wood.tree.size)
    seen = {node.id for node in small.nodes}
    assert seen <= {node.id for node in whole.nodes}
    assert held <= seen or seen <= held or len(seen) == nodes  # what is held goes first
    if held - seen:
        assert all(node.refs for node in small.nodes)
    if namespace is not None:
        mine = sum(len(n.tokens) for n in wood.tree.nodes() if n.namespace == namespace)
        assert sum(n.tokens for n in whole.nodes) == mine and whole.elsewhere == wood.tree.size - mine


def test_ten_thousand_nodes_fit_into_a_small_answer(core):
    wood = Wood(core)
    for n in range(10_000):
        wood.grow([7, 7, 7, 100 + n % 100, 1000 + n], lock=n < 3)
    snapshot = wood.look(300)
    assert len(snapshot.nodes) == 300
    assert len(msgspec.msgpack.encode(snapshot)) < 20_000
    assert sum(node.refs > 0 and not node.below for node in snapshot.nodes) == 3
    consistent(snapshot, wood.tree.size)


def test_a_walk_has_an_end(core, monkeypatch):
    monkeypatch.setattr("ramet.runtime.snapshot.VISITED", 50)
    wood = Wood(core)
    for n in range(200):
        wood.grow([n, n, n])
    snapshot = wood.look()
    assert len(snapshot.nodes) == 50 and snapshot.elsewhere == 3 * (200 - 49)


def test_ids_stay_and_say_nothing(core):
    """The same place keeps its id while others come, go and split; another engine has other ids."""
    wood, other = Wood(core), Wood(core)
    for each in (wood, other):
        each.grow([1, 2, 3, 4])
        each.grow([5, 6])
    before = {n.id for n in wood.look().nodes}
    wood.grow([1, 2, 9])
    after = {n.id for n in wood.look().nodes}
    assert before < after and len(after) == len(before) + 2
    assert not before & {n.id for n in other.look().nodes}


def test_what_goes_first_is_marked(core):
    wood = Wood(core)
    wood.grow([1, 1])
    wood.grow([2, 2])
    node, _ = wood.tree.match(wood.tree.root(), np.array([1, 1], np.int32))
    wood.tree.lock(node)
    wood.tree.unlock(node, cold=True)
    assert sorted(n.age for n in wood.look().nodes if n.tokens) == [-1, 1]


# -- programs


def test_states_of_branches(decoder):
    d = drive(decoder)
    d.program(
        m.Append("0.0", "0", (PROMPT,)),
        m.Fork("0.1", "0", ("0.1.b0", "0.1.b1", "0.1.b2")),
        m.Append("0.1.b0.0", "0.1.b0", ((1, 2),)),
        m.Generate("0.1.b0.1", "0.1.b0", GREEDY, 0),
        m.Append("0.1.b1.0", "0.1.b1", ((3,), "0.1.b0.1")),
        m.Generate("0.1.b1.1", "0.1.b1", GREEDY, 0),
        m.Join("0.2", "0", ("0.1.b0",)),
        m.Close("0.1.b2.0", "0.1.b2"),
        end=False,
    )
    d.step()
    d.step()
    d.step()
    found = only(look(d))
    one, two = found["0.1.b0"], found["0.1.b1"]
    assert (one.state, one.op, one.limit, one.constrained) == ("decoding", "generate", 6, False)
    assert 0 < one.made < 6 and one.base == len(PROMPT) and one.tokens == len(PROMPT) + 2 + one.made
    assert (two.state, two.op, two.on) == ("waiting", "append", "0.1.b0.1")
    assert (found["0"].state, found["0"].op, found["0"].on) == ("waiting", "join", "0.1.b0")
    assert found["0.1.b2"].state == "done"
    for _ in range(20):
        d.step()
    found = only(look(d))
    assert found["0.1.b1"].state == "idle" and found["0.1.b1"].op == ""
    assert (found["0.1.b1"].tokens, found["0.1.b1"].made) == (len(PROMPT) + 1 + 6 + 6, 0)


def test_the_queue_and_the_prompt(decoder):
    d = drive(decoder, rows=1, chunk_tokens=8, batch_tokens=8)
    for _ in range(2):
        d.program(m.Append("0.0", "0", (PROMPT,)), m.Generate("0.1", "0", GREEDY, 0))
    d.step()
    states = {branch.state for program in look(d).programs for branch in program.branches}
    assert states == {"prompt", "queued"}
    d.run()
    assert look(d).programs == ()


def test_users_of_a_node_are_counted(decoder):
    d = drive(decoder)
    long = Sampling(temperature=0, max_tokens=50, ignore_eos=True)
    for tail in (1, 2, 3):
        d.program(m.Append("0.0", "0", ((*PROMPT, tail, tail),)), m.Generate("0.1", "0", long, 0))
    for _ in range(4):
        d.step()
    snapshot = look(d)
    shared = max(snapshot.nodes, key=lambda node: node.programs)
    assert (shared.programs, shared.refs) == (3, 3)
    ends = {branch.node for program in snapshot.programs for branch in program.branches}
    assert ends <= {node.id for node in snapshot.nodes} and len(ends) == 3


def test_limits_on_programs_and_branches(decoder):
    d = drive(decoder)
    names = tuple(f"0.1.b{n}" for n in range(30))
    for _ in range(3):
        d.program(m.Append("0.0", "0", (PROMPT,)), m.Fork("0.1", "0", names), end=False)
    d.step()
    snapshot = look(d, OrderSnapshot(7, 10, 2, 40))
    assert [len(program.branches) for program in snapshot.programs] == [31, 9]
    assert (len(snapshot.programs), snapshot.more) == (2, 1)
    assert [sum(program.states) for program in snapshot.programs] == [31, 31]
    assert all("0" in branches(program) for program in snapshot.programs)
    assert len(snapshot.programs[0].states) == len(STATES)


def test_names_that_clients_choose_are_cut(decoder):
    d = drive(decoder)
    long = "0.1.b" + "9" * 500
    d.program(m.Append("0.0", "0", (PROMPT,)), m.Fork("0.1", "0", (long,)), end=False)
    d.step()
    assert max(len(name) for name in only(look(d))) == NAME


def test_a_namespace_sees_its_own(decoder):
    d = drive(decoder)
    for namespace in ("mine", "theirs"):
        d.program(m.Append("0.0", "0", (PROMPT,)), m.Generate("0.1", "0", GREEDY, 0), namespace=namespace)
    d.step()
    d.step()
    whole, mine = look(d), look(d, OrderSnapshot(2, 100, 100, 100, "mine"))
    assert (len(whole.programs), len(mine.programs)) == (2, 1)
    assert (whole.namespaces, mine.namespaces) == (2, 1)
    assert mine.elsewhere > 0 == whole.elsewhere


def test_two_prompts_of_one_shape_look_the_same(decoder):
    """No text, no token, nothing that is made of them but keyed hashes."""

    def shown(prompt: tuple[int, ...]) -> list[Any]:
        d = drive(decoder)
        d.program(m.Append("0.0", "0", (prompt,)), m.Generate("0.1", "0", GREEDY, 0))
        d.step()
        d.step()
        snapshot = look(d)
        nodes = [(*msgspec.structs.astuple(node)[1:],) for node in snapshot.nodes]
        return [nodes, [msgspec.structs.astuple(branch)[:-1] for p in snapshot.programs for branch in p.branches]]

    assert shown(PROMPT) == shown(tuple(reversed(PROMPT)))


def test_an_error_while_looking_ends_nothing(decoder, monkeypatch):
    d = drive(decoder)
    name = d.program(m.Append("0.0", "0", (PROMPT,)), m.Generate("0.1", "0", GREEDY, 0))
    d.step()
    monkeypatch.setattr("ramet.runtime.snapshot._chosen", lambda *_: 1 / 0)
    d.order(ALL)
    d.step()
    assert d.port.steps[-1].snapshots == (Snapshot(1, error="ZeroDivisionError"),)
    d.run()
    assert d.over[name].kind == ""


# -- through the client


@pytest.fixture(scope="module", params=[True, False], ids=["thread", "process"])
def client(request: pytest.FixtureRequest) -> Iterator[EngineClient]:
    made = start("random:tiny", TINY, in_process=request.param)
    yield made
    made.close()


@pytest.mark.model
def test_the_client_looks(client):
    snapshot = client.look(nodes=10, programs=10, branches=10).result(60)
    assert (snapshot.programs, snapshot.error) == ((), "")
    assert client.name_of("nobody") == ""


@pytest.mark.model
def test_a_lost_engine_is_not_looked_at():
    made = start("random:tiny", TINY, in_process=True)
    made.close()
    with pytest.raises(TransportError):
        made.look(nodes=1, programs=1, branches=1)
