"""The vote that ends early, against all votes that could still come."""

from collections import Counter
from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.frontend.ballot import Ballot

LABELS = ("a", "b", "c")
NONE = None  # an abstention


def winner_of(votes):
    """The definition: most votes, of equals the answer whose first voter comes first; that voter."""
    counts = Counter(vote for vote in votes if vote is not NONE)
    if not counts:
        return None
    return votes.index(min(counts, key=lambda answer: (-counts[answer], votes.index(answer))))


def settled(votes, known):
    """The winner, if it is the same for all that the others could vote: a known answer, a new one, nothing."""
    open_ = [voter for voter in range(len(votes)) if voter not in known]
    outcomes = set()
    for rest in product((*LABELS, "new", "newer", NONE), repeat=len(open_)):
        full = [votes[voter] if voter in known else None for voter in range(len(votes))]
        for voter, vote in zip(open_, rest, strict=True):
            full[voter] = vote
        outcomes.add(winner_of(full))
    return outcomes.pop() if len(outcomes) == 1 else None


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_it_is_decided_exactly_when_no_vote_to_come_can_change_it(data):
    votes = data.draw(st.lists(st.sampled_from((*LABELS, NONE)), min_size=1, max_size=5))
    order = data.draw(st.permutations(range(len(votes))))
    ballot, known = Ballot(len(votes)), set()
    assert ballot.winner is None
    for voter in order:
        known.add(voter)
        if votes[voter] is NONE:
            ballot.abstain(voter)
        else:
            ballot.cast(voter, votes[voter])
        assert ballot.winner == settled(votes, known)
    assert ballot.winner == winner_of(votes)


@given(st.lists(st.sampled_from(LABELS), min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_an_early_winner_is_the_winner_of_all_votes(votes, random):
    order = list(range(len(votes)))
    random.shuffle(order)
    ballot, early = Ballot(len(votes)), None
    for voter in order:
        ballot.cast(voter, votes[voter])
        early = ballot.winner if early is None else early
    assert early == ballot.winner == winner_of(votes)


def test_the_order_of_equals_is_that_of_their_first_voters():
    ballot = Ballot(4)
    for voter, answer in ((3, "x"), (2, "y"), (1, "x")):
        ballot.cast(voter, answer)
        assert ballot.winner is None
    ballot.cast(0, "y")
    assert ballot.winner == 0
