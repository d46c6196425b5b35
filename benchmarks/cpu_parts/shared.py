"""The shared prefix through whole engines. In: an engine, sizes. Out: seconds from the call to the last token.

One program: a prefix, a fork, some tokens of its own and a call in each branch. The engine is a process of its own,
and text, planning, sampling and messages are in the figure; its threads run where the system puts them.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

import ramet as rt
from ramet.runtime.text import Tokenizer

WORDS = ("river", "stone", "green", "walks", "seven", "light", "under", "paper", "cold", "music")


@dataclass(frozen=True, slots=True)
class Sizes:
    """Branches; tokens of the prefix, of a branch's own text, and made by a branch."""

    branches: int
    prefix: int
    own: int
    made: int

    @property
    def slots(self) -> int:
        """KV slots that hold it, with room for what is read ahead."""
        return self.prefix + self.branches * (self.own + self.made + 8) + 256


@dataclass(frozen=True, slots=True)
class Outcome:
    """Seconds; tokens of the prefix and of a branch's own text as the engine counted them; tokens made; computed tokens
    over distinct ones (the last one of a branch is never computed)."""

    seconds: float
    prefix: int
    own: int
    made: int
    excess: float


@rt.function(temperature=0, ignore_eos=True)
def forked(s: rt.State, prefix: str, own: list[str], tokens: int) -> list[tuple[int, int]]:
    """A call in each branch; its tokens before, and made."""
    s += prefix
    branches = s.fork(own)
    for branch in branches:
        branch += branch.item
        branch += rt.gen("text", max_tokens=tokens)
    metas = [branch.get_meta_info("text") for branch in branches]
    return [(meta["prompt_tokens"], meta["completion_tokens"]) for meta in metas]


def phrase(tokenizer: Tokenizer, count: int, seed: int) -> str:
    """Words that are `count` tokens, as near as whole words can be."""
    rng = random.Random(seed)
    words = [f" {word}" for word in rng.choices(WORDS, k=count)]
    while len(words) > 1 and (found := len(tokenizer.encode("".join(words)))) > count:
        words = words[: max(1, len(words) * count // found)]
    return "".join(words)


def run(engine: rt.Engine, tokenizer: Tokenizer, sizes: Sizes, seed: int) -> Outcome:
    """Once, with nothing cached."""
    prefix = phrase(tokenizer, sizes.prefix, seed)
    own = [phrase(tokenizer, sizes.own, (seed + 1) * 1000 + branch) for branch in range(sizes.branches)]
    engine.flush_cache()
    before = engine.info()["computed_tokens"]
    start = time.perf_counter()
    counts = forked.using(backend=engine)(prefix, own, sizes.made).result()
    seconds = time.perf_counter() - start
    after = engine.info()["computed_tokens"]
    assert isinstance(before, int) and isinstance(after, int), "counts of tokens"
    first, made = len(tokenizer.encode(prefix)), sum(count for _, count in counts)
    texts = [tuple(tokenizer.encode(text)) for text in own]  # beginnings that branches have in common count once
    distinct = len({ids[:end] for ids in texts for end in range(1, len(ids) + 1)})
    each = round(sum(prompt - first for prompt, _ in counts) / len(counts))
    return Outcome(seconds, first, each, made, (after - before) / (first + distinct + made - len(counts)))
