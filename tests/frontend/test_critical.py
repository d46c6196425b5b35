"""Critical paths: known answers, and random graphs against brute force."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from ramet.frontend.critical import binding, longest, ordered

Graph = tuple[dict[str, float], dict[str, list[str]]]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Weights of up to nine operations, and who needs whom (earlier ones, some that are not there)."""
    count = draw(st.integers(1, 9))
    names = [f"0.{index}" for index in range(count)]
    weights = {name: float(draw(st.integers(0, 9))) for name in names}
    needs = {
        name: draw(st.lists(st.sampled_from([*names[:index], "elsewhere"]), max_size=4, unique=True))
        for index, name in enumerate(names)
    }
    shuffled = draw(st.permutations(names))
    return {name: weights[name] for name in shuffled}, needs


def chains(name: str, weights: Mapping[str, float], needs: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Every chain that ends with an operation."""
    before = [chain for other in needs[name] if other in weights for chain in chains(other, weights, needs)]
    return [[name], *([*chain, name] for chain in before)]


def is_chain(chain: Sequence[str], needs: Mapping[str, Sequence[str]]) -> bool:
    return all(one in needs[other] for one, other in pairwise(chain))


@given(graphs())
def test_longest_is_the_heaviest_of_all_chains(graph: Graph) -> None:
    weights, needs = graph
    most = max(sum(weights[n] for n in chain) for name in weights for chain in chains(name, weights, needs))
    total, chain = longest(weights, needs)
    assert total == most == sum(weights[name] for name in chain)
    assert is_chain(chain, needs)


@given(graphs())
def test_order(graph: Graph) -> None:
    weights, needs = graph
    found = ordered(weights, needs)
    assert sorted(found) == sorted(weights)
    place = {name: index for index, name in enumerate(found)}
    assert all(place[other] < place[name] for name in weights for other in needs[name] if other in place)


@given(graphs())
def test_binding_takes_the_latest_need_each_time(graph: Graph) -> None:
    durations, needs = graph
    ends: dict[str, float] = {}
    for name in ordered(durations, needs):  # whoever ends last does so because its latest need did
        ends[name] = max((ends[other] for other in needs[name] if other in ends), default=0.0) + durations[name]
    chain = binding(ends, needs)
    assert is_chain(chain, needs)
    assert ends[chain[-1]] == max(ends.values())
    assert sum(durations[name] for name in chain) == ends[chain[-1]] == longest(durations, needs)[0]


def test_known_answers() -> None:
    needs = {"plan": [], "a": ["plan"], "b": ["plan"], "tool": ["plan"], "end": ["a", "b", "tool"]}
    assert longest({"plan": 12, "a": 16, "b": 24, "tool": 0, "end": 6}, needs) == (42, ["plan", "b", "end"])
    ends = {"plan": 1.0, "a": 2.0, "b": 2.5, "tool": 4.0, "end": 5.0}
    assert binding(ends, needs) == ["plan", "tool", "end"]
    assert binding(ends, needs, "b") == ["plan", "b"]


def test_nothing_and_cycles() -> None:
    assert longest({}, {}) == (0.0, [])
    assert binding({}, {}) == []
    round_about = {"a": ["b"], "b": ["a"]}
    assert sorted(ordered("ab", round_about)) == ["a", "b"]
    assert set(binding({"a": 1.0, "b": 2.0}, round_about)) == {"a", "b"}
