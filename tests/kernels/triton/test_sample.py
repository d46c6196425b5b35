"""Sampling on the device against its definition: `reference.probabilities`, `reference.adjusted` and the noise of
`gumbels`. A drawn token must be the largest of logit / temperature + noise over the kept tokens, exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from ramet.kernels import reference
from ramet.kernels.noise import gumbels, keys, shares
from ramet.kernels.ops import Drawn
from ramet.runtime.batch import Draws, Masks, Targets

from ..ragged import EMPTY, NO_TARGETS, draws
from .device import DEVICE

pytest.importorskip("triton")

import triton
import triton.language as tl

from ramet.kernels.triton import noise, sample
from ramet.kernels.triton.draws import DrawRoom, mask_words, pack_draws, view_draws

pytestmark = [pytest.mark.triton, pytest.mark.gpu]
SLOW = settings(
    max_examples=8 if DEVICE == "cpu" else 100, deadline=None, derandomize=True, phases=(Phase.explicit, Phase.generate)
)
OFF = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


@triton.jit
def noise_kernel(w, g, low, high, COUNT: tl.constexpr):  # noqa: N803
    at = tl.arange(0, COUNT)
    tl.store(w + at, noise.shares(tl.load(low), tl.load(high), at))
    tl.store(g + at, noise.gumbel2(tl.load(low), tl.load(high), at))


def run(logits: np.ndarray, drawn: Draws, masks: Masks | None = None, at: list[int] | None = None) -> Drawn:
    rows = torch.from_numpy(logits).to(DEVICE)
    places = np.array(range(len(drawn)) if at is None else at, np.int32)
    found = sample.sample(rows, drawn, places, NO_TARGETS, EMPTY, masks or Masks())
    assert np.array_equal(rows.cpu().numpy(), logits, equal_nan=True)  # never changed
    return found


def tokens(logits: np.ndarray, drawn: Draws, masks: Masks | None = None, at: list[int] | None = None) -> list[int]:
    return run(logits, drawn, masks, at).tokens.tolist()


def options_of(drawn: Draws, r: int) -> tuple[float, int, float, float]:
    return float(drawn.temperature[r]), int(drawn.top_k[r]), float(drawn.top_p[r]), float(drawn.min_p[r])


def possible(x: np.ndarray, drawn: Draws, r: int) -> set[int]:
    """The tokens that draw r may give: one, or more where rounding may decide between them."""
    if not np.isfinite(x.max()):
        return {-1}
    temperature, top_k, top_p, min_p = options_of(drawn, r)
    if temperature == 0:
        return {int(x.argmax())}
    scores = (x.astype(np.float64) - float(x.max())) / temperature
    scores += gumbels(int(drawn.seeds[r]), int(drawn.positions[r]), len(x))
    found = set()
    for nudge in (1 - 1e-5, 1, 1 + 1e-5) if top_p < 1 or min_p > 0 else (1,):
        p = reference.probabilities(
            torch.from_numpy(x), temperature, top_k, min(top_p * nudge, 1), min(min_p * nudge, 1)
        )
        kept = np.flatnonzero(p.numpy() > 0)
        found |= set(kept[scores[kept] >= scores[kept].max() - 1e-4].tolist())
    return found


def check(logits: np.ndarray, drawn: Draws, masks: Masks | None = None) -> None:
    found = tokens(logits, drawn, masks)
    for r, token in enumerate(found):
        x = reference.adjusted(torch.from_numpy(logits[r]), r, drawn, masks or Masks()).numpy()
        assert token in possible(x, drawn, r), options_of(drawn, r)


# -- noise


@pytest.mark.parametrize(("seed", "position"), [(0, 0), (2**64 - 1, 2**31), (7, 123)])
def test_noise_is_its_twin(seed: int, position: int) -> None:
    count = 16384
    key = int(keys(np.array([seed], np.uint64), np.array([position]))[0])
    halves = torch.from_numpy(np.array([key & 0xFFFFFFFF, key >> 32], np.uint32).view(np.int32)).to(DEVICE)
    w, g = torch.empty(2, count, device=DEVICE).unbind()
    noise_kernel[(1,)](w, g, halves, halves[1:], COUNT=count)
    assert (w.cpu().numpy() == shares(key, count)).all()
    wanted = gumbels(seed, position, count) / np.log(2) - np.log2(np.log2(np.e))
    assert np.abs(g.cpu().numpy() - wanted).max() < 4e-5


# -- the kept set and the draw


@SLOW
@given(
    vocab=st.sampled_from([1, 2, 50, 64, 65, 700, 4500]),
    seed=st.integers(0, 10**6),
    spread=st.sampled_from([0.0, 0.1, 1.0, 5.0, 40.0]),
    steps=st.sampled_from([0, 2, 40]),
    hidden=st.sampled_from([0.0, 0.5, 0.99]),
    rows=st.lists(
        st.tuples(
            st.sampled_from([0.0, 1e-4, 0.3, 1.0, 3.0, 100.0]),
            st.sampled_from([0, 1, 2, 5, 40, 10**6]),
            st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.05, 1e-6]),
            st.sampled_from([0.0, 0.01, 0.3, 1.0]),
        ),
        min_size=1,
        max_size=6,
    ),
)
def test_tokens_are_the_best_of_the_kept(
    vocab: int, seed: int, spread: float, steps: int, hidden: float, rows: list[Any]
) -> None:
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(len(rows), vocab)) * spread).astype(np.float32)
    if steps:  # many ties, both zeros among them
        logits = np.float32(spread) * np.round(logits / np.float32(spread or 1) * steps).astype(np.float32) / steps
    logits[rng.random(logits.shape) < hidden] = -np.inf
    columns = dict(zip(OFF, map(list, zip(*rows, strict=True)), strict=True))
    check(logits, draws(range(len(rows)), seeds=seed, positions=range(len(rows)), **columns))


CASES = (
    {"top_p": 0.9},
    {"top_p": 1 - 2.0**-24},
    {"top_k": 300},
    {"top_k": 300, "top_p": 0.7},
    {"min_p": 0.6},
    {"top_k": 290, "top_p": 0.95, "min_p": 0.2},
)


@pytest.mark.parametrize("ties", [False, True])
def test_lists_that_are_too_long_are_walked_in_the_row(monkeypatch: pytest.MonkeyPatch, ties: bool) -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(len(CASES), 3000)).astype(np.float32)
    if ties:
        logits = np.round(logits)
    mask = np.packbits(rng.random(3008) < 0.9, bitorder="little").view("<u4").astype(np.uint32)
    columns = {name: [case.get(name, value) for case in CASES] for name, value in OFF.items()} | {"temperature": 1.3}
    drawn = draws(range(len(CASES)), seeds=5, positions=range(len(CASES)), **columns)
    masks = Masks(allowed=((1, mask), (3, mask)))
    check(logits, drawn, masks)
    listed = run(logits, drawn, masks).tokens
    monkeypatch.setattr(sample, "_CAPACITY", 64)
    assert run(logits, drawn, masks).tokens.tolist() == listed.tolist()


def test_a_list_that_overflows_before_it_holds_the_mass(monkeypatch: pytest.MonkeyPatch) -> None:
    # a first, short try that overflows must not decide what is kept
    monkeypatch.setattr(sample, "_CAPACITY", 16)
    logits = np.random.default_rng(4).normal(size=(8, 1280)).astype(np.float32)
    check(logits, draws(range(8), temperature=30.0, top_p=0.9, seeds=2, positions=range(8)))


def test_flat_rows_longer_than_a_list() -> None:
    logits = np.zeros((4, 5000), np.float32)
    logits[3, ::2] = -1
    drawn = draws(
        range(4), temperature=1.0, seeds=11, positions=range(4), top_p=[0.9, 1.0, 0.3, 0.9], top_k=[0, 4500, 4800, 0]
    )
    check(logits, drawn)


def test_ties_keep_the_lower_id() -> None:
    flat = np.zeros((1, 300), np.float32)
    many = {"temperature": 1.0, "positions": range(12)}
    for fields, kept in (({"top_k": 3}, 3), ({"top_p": 0.01}, 3), ({"top_k": 4, "top_p": 0.5}, 2)):
        found = set(tokens(flat, draws(range(12), **many, **fields), at=[0] * 12))
        assert found <= set(range(kept)) and len(found) > 1
    assert tokens(flat, draws(range(3), temperature=[1, 0, 1], top_k=[1, 0, 1]), at=[0] * 3) == [0] * 3
    signed = np.array([[-0.0, 0.0, 0.0, -1.0]], np.float32)
    assert tokens(signed, draws([0]), at=[0]) == [0]
    assert set(tokens(signed, draws(range(12), top_k=2, **many), at=[0] * 12)) == {0, 1}


@pytest.mark.parametrize(
    ("fields", "weights"),
    [
        ({}, [0.4, 0.3, 0.15, 0.1, 0.05]),
        ({"temperature": 2.0}, np.sqrt([0.4, 0.3, 0.15, 0.1, 0.05])),
        ({"top_k": 3, "top_p": 0.8}, [0.4, 0.3, 0, 0, 0]),
        ({"min_p": 0.3}, [0.4, 0.3, 0.15, 0, 0]),
    ],
    ids=["plain", "hot", "top_k and top_p", "min_p"],
)
def test_frequencies(fields: dict[str, float], weights: list[float]) -> None:
    count = 8000 if DEVICE == "cuda" else 100
    logits = np.log(np.array([[0.4, 0.3, 0.15, 0.1, 0.05]], np.float32))
    drawn = draws(range(count), **({"temperature": 1.0, "seeds": 7, "positions": range(count)} | fields))
    counts = np.bincount(tokens(logits, drawn, at=[0] * count), minlength=5)
    wanted = np.array(weights) / np.sum(weights)
    assert not counts[wanted == 0].any()
    expected = wanted[wanted > 0] * count
    assert ((counts[wanted > 0] - expected) ** 2 / expected).sum() < 18.5  # 4 degrees of freedom at p = 0.001


# -- what changes the logits


@SLOW
@given(seed=st.integers(0, 10**6), vocab=st.sampled_from([40, 300, 4200]), temperature=st.sampled_from([0.0, 0.8]))
def test_penalties_bias_and_constraints(seed: int, vocab: int, temperature: float) -> None:
    rng = np.random.default_rng(seed)
    count = 4
    logits = (rng.normal(size=(count, vocab)) * 3).astype(np.float32)
    history = tuple((r, rng.integers(0, vocab, 30).astype(np.int32), int(rng.integers(0, 31))) for r in (0, 1, 3))
    words = -(-vocab // 32)
    allowed = tuple((r, rng.integers(0, 2**32, words, dtype=np.uint64).astype(np.uint32)) for r in (1, 2))
    ids = rng.choice(vocab, 20, replace=False).astype(np.int32)
    values = np.where(rng.random(20) < 0.3, -np.inf, rng.normal(size=20) * 5).astype(np.float32)
    drawn = draws(
        range(count),
        temperature=temperature,
        seeds=seed,
        repetition=[1.3, 0.7, 1, 1],
        frequency=[0, 0.25, 0, -0.5],
        presence=[0.5, 0, 0, 0.25],
        top_k=[0, 0, 7, 7],
        bias=((0, ids, values), (2, ids, values), (2, ids[:3], values[:3])),
    )
    check(logits, drawn, Masks(history, allowed))


@pytest.mark.parametrize("fields", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.9, "top_k": 3}])
def test_a_draw_that_cannot_be_made_fails_alone(fields: dict[str, Any]) -> None:
    logits = np.zeros((5, 4200), np.float32)
    logits[:, 4100] = 50
    logits[1, 3] = np.nan
    logits[3, 9] = np.inf
    logits[4] = -np.inf
    logits[4, 4150] = -3
    nothing = np.zeros(132, np.uint32)
    found = run(logits, draws(range(5), logprobs=2, **fields), Masks(allowed=((2, nothing),)))
    assert found.tokens.tolist() == [4100, -1, -1, -1, 4150]
    assert found.logprobs.isnan().tolist() == [False, True, True, True, False]
    assert found.top_ids.tolist() == [[4100, 0], [-1, -1], [-1, -1], [-1, -1], [4150, 0]]
    assert found.top_logprobs[4].tolist() == [0, -np.inf]


def test_what_is_masked_does_not_matter() -> None:
    logits = np.array([[0, np.nan, 1, np.inf, 0.5]], np.float32)
    allowed = Masks(allowed=((0, np.array([0b10101], np.uint32)),))
    assert tokens(logits, draws([0]), allowed) == [2]


# -- independence, rooms, shapes


def mixed(count: int, vocab: int) -> tuple[np.ndarray, Draws]:
    logits = np.random.default_rng(0).normal(size=(count, vocab)).astype(np.float32) * 3
    columns = {
        "temperature": [(0.0, 1.0, 0.7, 1.5)[r % 4] for r in range(count)],
        "top_k": [(0, 0, 20, 0)[r % 4] for r in range(count)],
        "top_p": [(1, 1, 0.9, 0.8)[r % 4] for r in range(count)],
    }
    return logits, draws(range(count), seeds=range(count), positions=9, logprobs=3, **columns)


def one(drawn: Draws, r: int) -> Draws:
    part = slice(r, r + 1)
    return Draws(drawn.rows[part], drawn.into[part], drawn.positions[part], drawn.words[part])


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    logits, drawn = mixed(8, 4300)
    together = run(logits, drawn)
    for r in range(8):
        alone = run(logits[r : r + 1], one(drawn, r))
        for name in ("tokens", "logprobs", "top_ids", "top_logprobs"):
            assert getattr(alone, name)[0].tolist() == getattr(together, name)[r].tolist()
    shared = run(np.concatenate((logits[::-1], logits[:1])), drawn, at=list(range(7, -1, -1)))
    assert shared.tokens.tolist() == together.tokens.tolist()


def test_a_mask_of_another_draw_leaves_a_row_its_mass() -> None:
    """To the bit: another variant of the kernels is launched, which must add in the same order."""
    logits = torch.from_numpy(np.random.default_rng(5).normal(0, 3, (2, 9000)).astype(np.float32)).to(DEVICE)
    drawn = draws([0, 1], temperature=1.0, top_p=0.9)
    every = np.full(mask_words(9000), 0xFFFFFFFF, np.uint32)
    found = []
    for masks in (Masks(), Masks(allowed=((1, every),))):
        packed = pack_draws(drawn, np.arange(2, dtype=np.int32), masks, 9000)
        assert packed is not None
        scratch = sample.draw_scratch(packed.room, 9000, logits.device)
        sample.draw(logits, view_draws(torch.from_numpy(packed.words).to(DEVICE), packed.room), scratch)
        found.append((scratch.values, scratch.found))
    assert all(map(torch.equal, *found))


def test_a_larger_room_with_stale_buffers_draws_the_same() -> None:
    logits, drawn = mixed(5, 700)
    wanted = tokens(logits, drawn)
    room = DrawRoom(draws=7, edits=10, masks=2)
    packed = pack_draws(drawn, np.arange(5, dtype=np.int32), Masks(), 700, room)
    assert packed is not None
    scratch = sample.draw_scratch(room, 700, torch.device(DEVICE))
    for name in scratch.__dataclass_fields__:
        buffer = getattr(scratch, name)
        buffer.fill_(torch.nan if buffer.is_floating_point() else 3)
    view = view_draws(torch.from_numpy(packed.words).to(DEVICE), room)
    wide = torch.full((6, 720), torch.inf, device=DEVICE)
    wide[:5, :700] = torch.from_numpy(logits).to(DEVICE)
    for _ in range(2):  # the second time on what the first one left
        found = sample.draw(wide[:, :700], view, scratch)
        assert found.tolist() == [*wanted, -1, -1]


def test_scratch_is_as_large_as_announced() -> None:
    for room in (DrawRoom(3), DrawRoom(64, 100, 4), DrawRoom(8, 2, 0, False)):
        scratch = sample.draw_scratch(room, 5000, torch.device(DEVICE))
        total = sum(getattr(scratch, name).nbytes for name in scratch.__dataclass_fields__)
        assert total == pytest.approx(sample.scratch_bytes(room, 5000), abs=4096)


# -- log-probabilities


def test_logprobs_are_those_of_the_reference() -> None:
    rng = np.random.default_rng(1)
    logits = (rng.normal(size=(4, 4500)) * 4).astype(np.float32)
    logits[1] = np.round(logits[1])  # ties
    logits[2, :4490] = -np.inf
    bias = (0, np.array([5], np.int32), np.array([100], np.float32))
    drawn = draws(range(5), logprobs=[3, 20, 15, 0, -1], bias=(bias,))
    at = np.array([0, 1, 2, 3, 3], np.int32)
    top = np.array([0, 20, 5, 1], np.int32)
    targets, where = Targets(EMPTY, np.array([0, 4499, 7, 7], np.int32), top), np.array([1, 0, 2, 3], np.int32)
    found = sample.sample(torch.from_numpy(logits).to(DEVICE), drawn, at, targets, where, Masks())
    wanted = reference.sample(torch.from_numpy(logits), drawn, at, targets, where, Masks())
    assert found.tokens.tolist() == wanted.tokens.tolist()
    assert found.top_ids.tolist() == wanted.top_ids.tolist()
    assert found.target_ids.tolist() == wanted.target_ids.tolist()
    for name in ("logprobs", "top_logprobs", "targets", "target_logprobs"):
        torch.testing.assert_close(getattr(found, name).cpu(), getattr(wanted, name), atol=1e-5, rtol=0, equal_nan=True)


def test_nothing_to_draw_or_only_targets() -> None:
    logits = torch.randn(2, 300, generator=torch.Generator().manual_seed(0))
    targets, where = Targets(EMPTY, np.array([0, 299, 7], np.int32)), np.array([1, 0, 1], np.int32)
    found = sample.sample(logits.to(DEVICE), draws([]), EMPTY, targets, where, Masks())
    wanted = reference.sample(logits, draws([]), EMPTY, targets, where, Masks())
    torch.testing.assert_close(found.targets.cpu(), wanted.targets, atol=1e-5, rtol=0)
    assert found.tokens.shape == (0,) and found.top_ids.shape == (0, 0)
    none = sample.sample(logits.to(DEVICE), draws([]), EMPTY, NO_TARGETS, EMPTY, Masks())
    assert none.targets.shape == (0,)


@pytest.mark.parametrize(("own", "given"), [(2, 7), (7, 2), (-1, 3), (3, 0)])
def test_draws_and_targets_have_lists_of_their_own_width(own: int, given: int) -> None:
    logits = torch.randn(3, 5000, generator=torch.Generator().manual_seed(2))
    drawn, at = draws(range(2), logprobs=own), np.array([0, 2], np.int32)
    targets = Targets(EMPTY, np.array([4, 4999, 7], np.int32), np.full(3, given, np.int32))
    where = np.array([1, 0, 1], np.int32)
    found = sample.sample(logits.to(DEVICE), drawn, at, targets, where, Masks())
    wanted = reference.sample(logits, drawn, at, targets, where, Masks())
    for name in ("top_ids", "target_ids"):
        assert getattr(found, name).shape == getattr(wanted, name).shape
        assert getattr(found, name).tolist() == getattr(wanted, name).tolist()
    for name in ("logprobs", "top_logprobs", "targets", "target_logprobs"):
        torch.testing.assert_close(getattr(found, name).cpu(), getattr(wanted, name), atol=1e-5, rtol=0, equal_nan=True)


def test_many_alternatives_of_a_small_vocabulary() -> None:
    found = run(np.array([[0, 2, 1]], np.float32), draws([0], logprobs=5))
    assert found.top_ids.tolist() == [[1, 2, 0, -1, -1]]
    assert found.top_logprobs.isnan().tolist() == [[False, False, False, True, True]]
