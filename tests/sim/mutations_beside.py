"""Faults in what stands beside the step loop: the client that a program's owner has, the prefix cache and the
allocator alone.

In: a `MonkeyPatch`. Out: a product with one rule broken; `BESIDE` names each, with the kind of world that shows it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ramet.frontend import ir
from ramet.runtime import messages as m
from ramet.runtime.batch import I32
from ramet.runtime.client import ClientSession, EngineClient
from ramet.runtime.radix import Node, RadixTree
from ramet.runtime.slots import Slots
from ramet.runtime.translate import Pending, Translator

Patch = pytest.MonkeyPatch


def loss_untold(patch: Patch) -> None:
    """Programs hang when their engine is lost."""
    patch.setattr(EngineClient, "_tell_lost", lambda self, session, kind, what: None)


def loss_told_to_one(patch: Patch) -> None:
    """Only the first program hears of it."""
    tell = EngineClient._tell_lost

    def once(self: EngineClient, session: ClientSession, kind: str, what: str) -> None:
        if session is next(iter(_first.setdefault(id(self.ready), [session]))):
            tell(self, session, kind, what)

    _first: dict[int, list[ClientSession]] = {}
    patch.setattr(EngineClient, "_tell_lost", once)


def end_twice(patch: Patch) -> None:
    """A program has two ends."""
    end = Translator._end

    def doubled(self: Translator, ended: ir.Ended, *, retryable: bool) -> None:
        end(self, ended, retryable=retryable)
        self._deliver(ended)

    patch.setattr(Translator, "_end", doubled)


def open_ops_forgotten(patch: Patch) -> None:
    """What was under way when a program ended is never answered."""
    end = Translator._end

    def silent(self: Translator, ended: ir.Ended, *, retryable: bool) -> None:
        self._pending.clear()
        end(self, ended, retryable=retryable)

    patch.setattr(Translator, "_end", silent)


def session_kept(patch: Patch) -> None:
    """A client remembers programs that are over."""
    dispatch = EngineClient._dispatch

    def kept(self: EngineClient, step: m.Step) -> None:
        before = dict(self._sessions)
        dispatch(self, step)
        self._sessions.update(before)

    patch.setattr(EngineClient, "_dispatch", kept)


def text_twice(patch: Patch) -> None:
    """A piece of text is streamed twice."""
    emit = Translator._emit

    def doubled(self: Translator, text: str, pending: Pending, op: ir.Gen) -> None:
        emit(self, text + text[-1:] if len(pending.sent) == 2 else text, pending, op)

    patch.setattr(Translator, "_emit", doubled)


def seeds_of_the_life(patch: Patch) -> None:
    """A program's noise depends on how many programs there are."""
    lowering = EngineClient.lowering

    def other(self: EngineClient, seed: int, **options: Any) -> Any:
        return lowering(self, seed + len(self._sessions), **options)

    patch.setattr(EngineClient, "lowering", other)


def match_too_far(patch: Patch) -> None:
    """A match claims one token more."""
    match = RadixTree.match

    def generous(self: RadixTree, node: Node, tokens: I32) -> tuple[Node, int]:
        end, matched = match(self, node, tokens)
        return end, min(matched + (matched > 2), len(tokens))

    patch.setattr(RadixTree, "match", generous)


def eviction_of_too_much(patch: Patch) -> None:
    """Whole leaves go."""
    cut = RadixTree._cut
    patch.setattr(RadixTree, "_cut", lambda self, leaf, keep: cut(self, leaf, 0))


def eviction_from_the_middle(patch: Patch) -> None:
    """Of a leaf, the first tokens go."""
    cut = RadixTree._cut

    def beheaded(self: RadixTree, leaf: Node, keep: int) -> I32:
        dropped = len(leaf.slots) - keep
        if keep and dropped:
            leaf.bear(np.roll(leaf.tokens, -dropped), np.roll(leaf.slots, -dropped))
        return cut(self, leaf, keep)

    patch.setattr(RadixTree, "_cut", beheaded)


def unlock_of_the_leaf_alone(patch: Patch) -> None:
    """The ancestors stay locked."""

    def shallow(self: RadixTree, node: Node, cold: bool = False) -> None:
        node.refs -= 1
        self.locked -= len(node.tokens) if not node.refs else 0
        self._offer(node)

    patch.setattr(RadixTree, "unlock", shallow)


def release_unchecked(patch: Patch) -> None:
    """Any slot can be given back."""

    def trusting(self: Slots, slots: I32) -> None:
        taken = slots[(slots >= 0) & (slots < self.capacity)]
        taken = taken[self._taken_view[taken] == 1]
        self._taken_view[taken] = 0
        self._fill_view -= np.bincount(taken >> 4, minlength=len(self._fill)).astype(np.uint8)
        self.free += len(taken)

    patch.setattr(Slots, "release", trusting)


def slots_given_twice(patch: Patch) -> None:
    """A run of slots is not marked as taken to its end."""
    take = Slots._take

    def short(self: Slots, start: int, n: int) -> I32:
        slots = take(self, start, n)
        if n > 1:
            self._taken_view[start + n - 1] = 0
            self._fill[(start + n - 1) >> 4] -= 1
            self.free += 1
        return slots

    patch.setattr(Slots, "_take", short)


BESIDE = {
    "a lost engine is not told of": ("offices", loss_untold),
    "a lost engine is told to one program": ("offices", loss_told_to_one),
    "a client has two ends": ("offices", end_twice),
    "open operations are never answered": ("offices", open_ops_forgotten),
    "a client keeps what is over": ("offices", session_kept),
    "a text is streamed twice": ("offices", text_twice),
    "seeds depend on the life": ("offices", seeds_of_the_life),
    "a match goes too far": ("prefixes", match_too_far),
    "an eviction takes too much": ("prefixes", eviction_of_too_much),
    "an eviction takes the middle": ("prefixes", eviction_from_the_middle),
    "an unlock stops at the leaf": ("prefixes", unlock_of_the_leaf_alone),
    "a release is not checked": ("prefixes", release_unchecked),
    "slots are given twice": ("prefixes", slots_given_twice),
}
