"""The foundry: prototypes built in a thread of their own, owners in turn, nothing kept that nobody waits for."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from ramet.runtime.grammar.automaton import HEADER, WORN_SECONDS, GrammarCache
from ramet.runtime.grammar.base import GrammarError
from ramet.runtime.grammar.foundry import MOST_REFUSED, Foundry

from .small import EOS_IDS, TOKENS, VOCAB

WAIT = 60.0  # seconds until a test gives up on what hangs


def program(text: str) -> str:
    return f"{HEADER}start: /{text}/\n"


class Bell:
    """Counts the wakings. While `held` the thread that wakes does not go on."""

    def __init__(self) -> None:
        self.rung = threading.Semaphore(0)
        self.held = threading.Event()
        self.held.set()

    def ring(self) -> None:
        self.rung.release()
        assert self.held.wait(WAIT)

    def wait(self, times: int = 1) -> None:
        for _ in range(times):
            assert self.rung.acquire(timeout=WAIT)


@pytest.fixture
def bell() -> Bell:
    return Bell()


@pytest.fixture
def cache() -> GrammarCache:
    return GrammarCache(TOKENS, VOCAB, EOS_IDS)


@pytest.fixture
def foundry(bell: Bell, cache: GrammarCache) -> Iterator[Foundry]:
    made = Foundry(cache, bell.ring)
    yield made
    bell.held.set()
    made.close()


def test_what_was_asked_for_is_built_elsewhere_and_told(foundry: Foundry, bell: Bell, cache: GrammarCache) -> None:
    assert not foundry.prepare(program("ab"), "one")
    assert not foundry.prepare(program("ab"), "two")
    bell.wait()
    assert foundry.built() == ["one", "two"]
    assert foundry.built() == []
    known = cache.known(program("ab"))
    assert foundry.prepare(program("ab"), "three")
    automaton = foundry.automaton(program("ab"))
    automaton.advance(list(b"ab"))
    assert automaton.complete
    assert cache.known(program("ab")) is known


def test_it_is_built_once_for_all_who_wait(foundry: Foundry, bell: Bell) -> None:
    for owner in "abc":
        foundry.prepare(program("x"), owner)
    bell.wait()
    foundry.prepare(program("y"), "a")
    bell.wait()
    assert sorted(foundry.built()) == ["a", "b", "c"]
    assert not bell.rung.acquire(blocking=False)


def test_a_program_that_cannot_be_built_fails_who_asks_for_it_and_nobody_else(foundry: Foundry, bell: Bell) -> None:
    assert not foundry.prepare("start: (", "bad")
    assert not foundry.prepare(program("ok"), "good")
    bell.wait(2)
    assert foundry.built() == ["bad", "good"]
    assert foundry.prepare("start: (", "bad")
    with pytest.raises(GrammarError):
        foundry.automaton("start: (")
    assert foundry.automaton(program("ok")).forced() == b"ok"


def test_refusals_are_remembered_in_bounds(foundry: Foundry, bell: Bell) -> None:
    for i in range(MOST_REFUSED + 9):
        foundry.prepare(f"start: ({i}", "bad")
    bell.wait(MOST_REFUSED + 9)
    while foundry._made:
        assert foundry.built() == ["bad"]
    assert len(foundry._refused) == MOST_REFUSED


def test_what_was_built_at_once_is_told_over_several_steps(foundry: Foundry, bell: Bell) -> None:
    for i in range(5):
        foundry.prepare(program(f"step{i}"), str(i))
    bell.wait(5)
    assert [foundry.built() for _ in range(4)] == [["0", "1"], ["2", "3"], ["4"], []]
    bell.wait(2)  # the loop is woken for the rest


def test_what_nobody_waits_for_any_more_is_not_built(foundry: Foundry, bell: Bell, cache: GrammarCache) -> None:
    bell.held.clear()
    foundry.prepare(program("first"), "one")
    bell.wait()  # it is built, and the thread waits for us
    foundry.prepare(program("second"), "one")
    foundry.prepare(program("third"), "two")
    foundry.forget("one")
    bell.held.set()
    bell.wait()  # the third: the second was never begun
    assert foundry.built() == ["two"]
    assert cache.known(program("first")) is None and cache.known(program("second")) is None
    assert cache.known(program("third")) is not None
    assert not foundry._wanted and not foundry._queues and not foundry._made


def test_owners_take_turns(foundry: Foundry, bell: Bell) -> None:
    bell.held.clear()
    foundry.prepare(program("begun"), "many")
    bell.wait()
    for i in range(20):
        foundry.prepare(program(f"many{i}"), "many")
    foundry.prepare(program("one"), "few")
    foundry.built()
    bell.held.set()
    bell.wait(2)  # one of each
    assert "few" in foundry.built()
    foundry.forget("many")


def test_a_worn_prototype_serves_until_another_has_taken_its_place(
    foundry: Foundry, bell: Bell, cache: GrammarCache
) -> None:
    foundry.prepare(program("[a-z]+"), "one")
    bell.wait()
    foundry.built()
    old = cache.known(program("[a-z]+"))
    assert old is not None
    old.worn = WORN_SECONDS * 2
    assert foundry.prepare(program("[a-z]+"), "two")
    foundry.automaton(program("[a-z]+"))
    assert cache.known(program("[a-z]+")) is old
    bell.wait()
    assert foundry.built() == []
    assert cache.known(program("[a-z]+")) is not old
    assert foundry.prepare(program("[a-z]+"), "three")
    assert not bell.rung.acquire(blocking=False)


def test_closing_ends_the_thread_whatever_it_has_to_do(bell: Bell, cache: GrammarCache) -> None:
    before = set(threading.enumerate())
    foundry = Foundry(cache, bell.ring)
    for i in range(30):
        foundry.prepare(program(f"[a-z]{{1,{i + 1}}}"), str(i % 3))
    assert len(set(threading.enumerate()) - before) == 1
    foundry.close()
    foundry.close()
    assert set(threading.enumerate()) == before
    assert not foundry.prepare(program("late"), "one")
    assert set(threading.enumerate()) == before


def test_without_grammars_there_is_no_thread(bell: Bell, cache: GrammarCache) -> None:
    before = set(threading.enumerate())
    foundry = Foundry(cache, bell.ring)
    assert foundry.built() == [] and set(threading.enumerate()) == before
    foundry.close()
