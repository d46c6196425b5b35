"""The token trie of a Select and the three ways to decide."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.runtime.choices import Trie, decide

CHOICES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5).map(tuple), min_size=1, max_size=8, unique=True)


@given(CHOICES)
def test_a_trie_spells_every_choice_once(choices: list[tuple[int, ...]]) -> None:
    trie = Trie(choices)
    for choice, path in zip(choices, trie.paths, strict=True):
        assert tuple(trie.tokens[node] for node in path) == choice
        assert [trie.parents[node] for node in path] == [-1, *path[:-1]]
        assert [trie.depths[node] for node in path] == list(range(len(path)))
    prefixes = {choice[: n + 1] for choice in choices for n in range(len(choice))}
    assert len(trie.tokens) == len(prefixes)


@given(CHOICES)
def test_chains_cover_the_inner_nodes_ancestors_first(choices: list[tuple[int, ...]]) -> None:
    trie = Trie(choices)
    seen: list[int] = []
    for chain in trie.chains():
        assert [trie.parents[node] for node in chain[1:]] == chain[:-1]
        assert set(trie.ancestors(chain[0])) <= set(seen)
        seen += chain
    assert sorted(seen) == trie.inner
    leaves = {path[-1] for path in trie.paths} - set(trie.inner)
    assert len(leaves) + len(trie.inner) == len(trie.tokens)


def test_a_lone_choice_of_many_tokens_is_one_chain() -> None:
    assert Trie([(1, 2, 3, 4)]).chains() == [[0, 1, 2]]


def test_mean_logprob_does_not_favour_short_choices() -> None:
    winner, scores = decide("token_length_normalized", [[-1.0], [-0.5, -0.7, -0.6]])
    assert winner == 1
    assert scores == pytest.approx((-1.0, -0.6))


def test_unconditional_scores_take_away_what_is_likely_anyway() -> None:
    given_prompt, alone = [[-1.0], [-2.0]], [[-0.5], [-5.0]]
    assert decide("token_length_normalized", given_prompt)[0] == 0
    winner, scores = decide("unconditional_likelihood_normalized", given_prompt, alone)
    assert winner == 1
    assert scores == pytest.approx((-0.5, 3.0))


def test_greedy_follows_the_best_token_step_by_step() -> None:
    rows = [[-0.1, -9.0], [-0.2, -0.1]]  # the first token of choice 0 is likelier, whatever follows
    assert decide("greedy_token_selection", rows)[0] == 0
    assert decide("token_length_normalized", rows)[0] == 1


def test_greedy_weighs_a_choice_that_is_a_prefix_by_its_mean() -> None:
    assert decide("greedy_token_selection", [[-0.5], [-0.5, -0.4]])[0] == 1
    assert decide("greedy_token_selection", [[-0.5], [-0.5, -0.6]])[0] == 0


@pytest.mark.parametrize("method", ["token_length_normalized", "greedy_token_selection"])
def test_ties_go_to_the_first(method: str) -> None:
    assert decide(method, [[-1.0], [-1.0]])[0] == 0  # type: ignore[arg-type]
