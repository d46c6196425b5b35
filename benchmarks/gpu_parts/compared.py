"""One way beside another, in turn. In: loops over one model. Out: rows with the ratio of their steps.

Both decode at the same time, as far as bookkeeping goes: some steps of one, some of the other, and again, so that a
chip that grows warm or a host that is busy slows both down. They share weights, pool and graphs; what the one writes
into slots that the other reads changes values and not times.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import numpy as np

from gpu_parts import floors
from gpu_parts.engine import steps_of
from gpu_parts.loop import MARGIN, Loop, decoding
from gpu_parts.models import QWEN, Model
from gpu_parts.report import Row, Target
from gpu_parts.session import Session
from ramet.frontend.ir import Sampling
from ramet.runtime.batch import U32
from ramet.runtime.grammar.automaton import HEADER, GrammarCache

K = TypeVar("K", bound=Hashable)
STRUCTURED, GROUPED, EVEN = 1.1, 1.5, 0.98
ENDLESS = f"{HEADER}start: /[a-z0-9 ,.]*/\n"  # a text of plain words, without an end that would be forced
_LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789,.-_()[]{}", np.uint8)


def in_turn(session: Session, loops: Mapping[K, Loop], switch: Callable[[K], None]) -> dict[K, float]:
    """Milliseconds of a step of each loop: median over turns of many steps; `switch` is called before each turn."""
    steps, times = session.scale.steps, {key: [] for key in loops}
    for turn in range(session.scale.repeats + 1):
        for key, loop in loops.items():
            switch(key)
            ms = session.place.wall_ms(lambda loop=loop: loop.steps(steps), repeats=1) / steps  # type: ignore[misc]
            if turn:  # in the first one graphs are captured
                times[key].append(ms)
    return {key: statistics.median(each) for key, each in times.items()}


def tokens_of(session: Session) -> int:
    """That a sequence may make in all turns."""
    return steps_of(session) + session.scale.steps + MARGIN


def forks(session: Session, name: str) -> None:
    """Branches over one prefix, whose KV is read once or by each; and what grouping costs where nothing is shared."""
    model = session.kept.get(name)
    try:
        for shared in session.scale.shared:
            for count in session.scale.forks:
                _fork(session, model, min(count, session.scale.rows), shared)
        batch, context = session.scale.busy[0], session.scale.contexts[0]
        loops = {on: apart(session, model, batch, context) for on in (False, True)}
        times = in_turn(session, loops, model.group)
        label = f"{name}, {batch} that share nothing, grouping on / off"
        target = Target(least=EVEN)
        session.add(Row("forks", label, times[True], "ms/step", None, times[False], times[False] / times[True], target))
    finally:
        model.group(True)


def _fork(session: Session, model: Model, count: int, shared: int) -> None:
    loops = {}
    for on in (False, True):
        model.group(on)
        loops[on] = loop = Loop(model)
        prompt = loop.prompt(shared)
        loop.plant(prompt)
        sampling = Sampling(temperature=0.6, ignore_eos=True, max_tokens=tokens_of(session))
        loop.forks(prompt, [sampling] * count)
        loop.settle(count)
    times = in_turn(session, loops, model.group)
    own = tokens_of(session) / 2
    least = 1e3 * floors.decode_seconds(model.spec, session.limits, count, shared + own, shared=shared)
    ratio = times[False] / times[True]
    wanted = GROUPED if (model.name, count, shared) == (QWEN, 32, 4096) else EVEN
    label = f"{model.name}, {count} over {shared:,}, grouping on / off"
    note = f"{least / times[True]:.2f} of the floor with grouping"
    session.add(Row("forks", label, times[True], "ms/step", least, times[False], ratio, Target(least=wanted), note))


def apart(session: Session, model: Model, batch: int, context: int, grammars: GrammarCache | None = None) -> Loop:
    """Sequences that share nothing; with `grammars` every one of them follows a grammar."""
    scale = session.scale
    options = {"steps": scale.steps, "repeats": scale.repeats + 1}
    if grammars is None:
        return decoding(model, batch, context, session.place, **options)
    return decoding(model, batch, context, session.place, **options, grammars=grammars, grammar=ENDLESS)


def structured(session: Session, name: str) -> None:
    """Every draw under a grammar, or under a mask that is there already, beside none."""
    scale, model = session.scale, session.kept.get(name)
    batch, context = scale.busy[0], scale.contexts[0]
    grammars = GrammarCache(spellings(model.spec.vocab), model.spec.vocab)
    loops = {
        "none": apart(session, model, batch, context),
        "a grammar each": apart(session, model, batch, context, grammars),
        "random bitmasks": apart(session, model, batch, context),
    }
    loops["random bitmasks"].constrain(bitmasks(model.spec.vocab, batch))
    times = in_turn(session, loops, lambda _: None)
    notes = {
        "a grammar each": "llguidance follows [a-z0-9 ,.]* in every sequence",
        "random bitmasks": "half of the tokens, at random: no grammar is followed",
    }
    for what, note in notes.items():
        label, ratio = f"{name}, batch {batch}, {what} / none", times[what] / times["none"]
        target = Target(most=STRUCTURED)
        session.add(Row("structured", label, times[what], "ms/step", None, times["none"], ratio, target, note))


def spellings(count: int) -> list[bytes]:
    """Bytes of `count` tokens: every byte, then random texts of 2 to 9 characters, as many of them words as not."""
    rng = np.random.default_rng(3)
    words = [bytes([value]) for value in range(256)][:count]
    lengths = rng.integers(2, 10, max(0, count - len(words)))
    drawn = _LETTERS[
        rng.integers(0, np.where(rng.random(len(lengths)) < 0.5, 27, len(_LETTERS))[:, None], (len(lengths), 9))
    ]
    return words + [bytes(row[:length]) for row, length in zip(drawn, lengths, strict=True)]


def bitmasks(vocab: int, count: int) -> U32:
    """Random ones `[count, V/32]`; about half of the tokens are allowed."""
    rng = np.random.default_rng(5)
    return rng.integers(0, 1 << 32, (count, -(-vocab // 32)), dtype=np.uint64).astype(np.uint32)
