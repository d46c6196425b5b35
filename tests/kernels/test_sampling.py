"""Sampling: the exact distribution, the order of the filters, noise from (seed, position) alone, edge values."""

from __future__ import annotations

from functools import cached_property
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.frontend.errors import EngineError, ModelError
from ramet.kernels import reference
from ramet.kernels.cpu import library
from ramet.kernels.cpu import operations as cpu
from ramet.kernels.cpu.draw import NumpyChooser, draw, inverse_cdf, kept, top
from ramet.kernels.noise import mix, uniforms
from ramet.kernels.ops import Drawn
from ramet.runtime.batch import Draws, Masks, Targets

from .ragged import EMPTY, NO_TARGETS, draws, softmax, uniform_logits


class Native:
    """Sampling by the native kernels at one level of instructions, on two threads."""

    def __init__(self, level: str) -> None:
        self.level = level

    @cached_property
    def pool(self) -> library.Pool:
        return library.Pool(library.load(), 2, self.level)

    def sample(
        self, logits: torch.Tensor, made: Draws, at: np.ndarray, targets: Targets, target_at: np.ndarray, masks: Masks
    ) -> Drawn:
        """See `Ops.sample`."""
        found = draw(logits.numpy(), made, at, targets, target_at, masks, self.pool)
        arrays = (found.logprobs, found.top_ids, found.top_logprobs)
        scored = (found.targets, found.target_ids, found.target_logprobs)
        return Drawn(
            torch.from_numpy(found.tokens.astype(np.int64)), *(torch.from_numpy(x.copy()) for x in (*arrays, *scored))
        )


def native_levels() -> list[str]:
    try:
        return list(library.LEVELS[: library.LEVELS.index(library.load().level) + 1])
    except ModelError:  # built without a compiler
        return []


Impl = ModuleType | Native
LEVELS = native_levels()
NATIVE = [Native(level) for level in LEVELS]
FIRST = np.zeros(1, np.int32)  # the row of logits that is drawn from
BOTH = pytest.mark.parametrize(
    "impl", [reference, cpu, *NATIVE], ids=["reference", "cpu", *(f"native {level}" for level in LEVELS)]
)


def sample(impl: Impl, logits: np.ndarray, masks: Masks | None = None, **fields: object) -> Drawn:
    rows = torch.from_numpy(np.atleast_2d(logits).astype(np.float32))
    count = len(np.atleast_1d(fields.get("positions", np.arange(len(rows)))))
    at = np.arange(count, dtype=np.int32) % len(rows)
    return impl.sample(rows, draws(range(count), **fields), at, NO_TARGETS, EMPTY, masks or Masks())


def tokens(impl: Impl, logits: np.ndarray, masks: Masks | None = None, **fields: object) -> list[int]:
    return sample(impl, logits, masks, **fields).tokens.tolist()


def bits(vocab: int, *allowed: int) -> np.ndarray:
    flags = np.zeros(-(-vocab // 32) * 32, np.uint8)
    flags[list(allowed)] = 1
    return np.packbits(flags, bitorder="little").view("<u4").astype(np.uint32)


# -- noise


def test_splitmix_known_values() -> None:
    # the first outputs of splitmix64 seeded with 0, and with 1234567: mix(seed + n * golden)
    golden = np.uint64(0x9E3779B97F4A7C15)
    assert int(mix(np.array([golden]))[0]) == 0xE220A8397B1DCDAF
    assert int(mix(np.array([1234567], np.uint64) + golden)[0]) == 6457827717110365317


def test_uniforms_are_uniform_and_differ_by_seed_and_position() -> None:
    seeds, positions = np.meshgrid(np.arange(300, dtype=np.uint64), np.arange(300, dtype=np.int64))
    u = uniforms(seeds.ravel(), positions.ravel())
    assert u.min() >= 0
    assert u.max() < 1
    assert len(np.unique(u)) == u.size
    counts = np.bincount((u * 100).astype(int), minlength=100)
    assert ((counts - 900) ** 2 / 900).sum() < 149  # chi-square, 99 degrees of freedom, p = 0.001; seeds are fixed
    grid = u.reshape(300, 300)
    assert abs(np.corrcoef(grid[:-1].ravel(), grid[1:].ravel())[0, 1]) < 0.01
    assert abs(np.corrcoef(grid[:, :-1].ravel(), grid[:, 1:].ravel())[0, 1]) < 0.01


def test_uniforms_take_every_seed_and_position() -> None:
    edge = np.array([0, 2**64 - 1], np.uint64), np.array([2**62, 0], np.int64)
    assert np.all((uniforms(*edge) >= 0) & (uniforms(*edge) < 1))


@BOTH
def test_noise_is_a_function_of_seed_and_position(impl: Impl) -> None:
    logits = np.zeros((1, 50))
    many = tokens(impl, logits, temperature=1, seeds=[1, 2, 1, 1], positions=[5, 5, 5, 6])
    assert many[0] == many[2]
    assert len({many[0], many[1], many[3]}) == 3
    assert tokens(impl, logits, temperature=1, seeds=[1], positions=[5]) == many[:1]
    other_temperature = tokens(impl, logits, temperature=2, seeds=[1], positions=[5])
    assert other_temperature == many[:1]  # flat logits: the same uniform chooses the same token


# -- the distribution


CASES = {
    "plain": ({"temperature": 1}, [0.4, 0.3, 0.15, 0.1, 0.05]),
    "cold": ({"temperature": 0.5}, [0.16, 0.09, 0.0225, 0.01, 0.0025]),
    "hot": ({"temperature": 2}, np.sqrt([0.4, 0.3, 0.15, 0.1, 0.05])),
    "top_k": ({"temperature": 1, "top_k": 2}, [0.4, 0.3, 0, 0, 0]),
    "top_p": ({"temperature": 1, "top_p": 0.8}, [0.4, 0.3, 0.15, 0, 0]),
    "top_p of top_k": ({"temperature": 1, "top_k": 3, "top_p": 0.8}, [0.4, 0.3, 0, 0, 0]),  # 0.7 of 0.85 is over 0.8
    "min_p": ({"temperature": 1, "min_p": 0.3}, [0.4, 0.3, 0.15, 0, 0]),
    "all three": ({"temperature": 1, "top_k": 4, "top_p": 0.8, "min_p": 0.5}, [0.4, 0.3, 0, 0, 0]),
}


@BOTH
@pytest.mark.parametrize("case", CASES)
def test_frequencies(impl: Impl, case: str) -> None:
    fields, weights = CASES[case]
    wanted = np.array(weights) / np.sum(weights)
    count = 4000
    drawn = tokens(impl, uniform_logits([0.4, 0.3, 0.15, 0.1, 0.05]), positions=range(count), seeds=7, **fields)
    counts = np.bincount(drawn, minlength=5)
    assert not counts[wanted == 0].any()
    expected = wanted[wanted > 0] * count
    chi2 = ((counts[wanted > 0] - expected) ** 2 / expected).sum()
    assert chi2 < 18.5  # 4 degrees of freedom at p = 0.001; the seed is fixed


def truncated(x: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    """The definition, written out in float64 on sorted lists."""
    p = softmax(x.astype(np.float64) / temperature)
    order = sorted(range(len(x)), key=lambda i: (-x[i], i))
    if top_k:
        order = order[:top_k]
    total, before, nucleus = sum(p[i] for i in order), 0.0, []
    for i in order:
        if top_p < 1 and before >= top_p * total:
            break
        nucleus.append(i)
        before += p[i]
    stays = [i for i in nucleus if p[i] >= min_p * p[order[0]]]
    found = np.zeros(len(x))
    found[stays] = p[stays] / sum(p[i] for i in stays)
    return found


@settings(max_examples=150, deadline=None)
@given(
    vocab=st.sampled_from([1, 2, 3, 50, 64, 700]),
    seed=st.integers(0, 10**6),
    spread=st.sampled_from([0.1, 1.0, 5.0, 40.0]),
    temperature=st.sampled_from([1e-4, 0.3, 1.0, 3.0, 100.0]),
    top_k=st.sampled_from([0, 1, 2, 5, 40, 10**6]),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.05, 1e-6]),
    min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
)
def test_truncation(
    vocab: int, seed: int, spread: float, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    x = (np.random.default_rng(seed).normal(size=vocab) * spread).astype(np.float32)
    options = temperature, top_k, top_p, min_p
    wanted = truncated(x, *options)
    found = reference.probabilities(torch.from_numpy(x), *options).numpy()
    assert np.abs(found - wanted).max() < 1e-12
    if top_p < 1 or 0 < top_k < vocab:
        assert kept(x, x.max(), *options).tolist() == np.flatnonzero(reference_set(x, *options)).tolist()
    fields = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    many = {"positions": range(20), "seeds": seed}
    assert tokens(cpu, x, **many, **fields) == tokens(reference, x, **many, **fields)


def reference_set(x: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    """Which tokens stay, whether or not their probability underflows."""
    order = np.lexsort((np.arange(len(x)), -x))
    y = np.exp((x[order].astype(np.float64) - float(x.max())) / temperature)
    stay = np.arange(len(x)) < (top_k or len(x))
    y = np.where(stay, y, 0)
    if top_p < 1:
        stay &= (y.cumsum() - y) < top_p * y.sum()
    stay &= y >= min_p
    found = np.zeros(len(x), bool)
    found[order] = stay
    return found


@pytest.mark.parametrize("impl", [reference, cpu], ids=["reference", "cpu"])
def test_ties_keep_the_lower_id(impl: Impl) -> None:
    flat = np.zeros(300)
    assert tokens(impl, flat) == [0]
    assert set(tokens(impl, flat, temperature=1, top_k=3, positions=range(200))) == {0, 1, 2}
    assert set(tokens(impl, flat, temperature=1, top_p=0.01, positions=range(200))) == {0, 1, 2}
    assert tokens(impl, flat, temperature=1, top_k=1, positions=range(20)) == [0] * 20


def test_top_finds_the_largest_in_order() -> None:
    rng = np.random.default_rng(0)
    for vocab in (5, 64, 65, 1000, 49152):
        x = rng.integers(0, 50, vocab).astype(np.float32)  # many ties
        wanted = np.lexsort((np.arange(vocab), -x))
        for k in (1, 2, 5, vocab // 200, vocab // 3, vocab):
            assert top(x, max(1, k)).tolist() == wanted[: max(1, k)].tolist()


def test_inverse_cdf_reaches_both_ends_and_never_a_zero() -> None:
    weights = np.zeros(1000, np.float32)
    weights[[3, 400, 998]] = 1, 1e-30, 2
    assert [inverse_cdf(weights, u) for u in (0.0, 0.33, 0.34, 1 - 2.0**-52)] == [3, 3, 998, 998]
    assert inverse_cdf(np.array([1], np.float32), 1 - 2.0**-52) == 0


# -- what changes the logits


@BOTH
def test_penalties(impl: Impl) -> None:
    logits = np.array([2.0, 1.9, -1.0, 0.5])
    history = lambda own, *ids: Masks(history=((0, np.array(ids, np.int32), own),))  # noqa: E731
    assert tokens(impl, logits, history(1, 0)) == [0]
    assert tokens(impl, logits, history(1, 0), presence=0.2) == [1]
    assert tokens(impl, logits, history(0, 0), presence=0.2) == [0]  # a prompt token is not the op's own
    assert tokens(impl, logits, history(3, 0, 0, 0), frequency=0.05) == [1]
    assert tokens(impl, logits, history(1, 0), frequency=0.05) == [0]
    assert tokens(impl, logits, history(0, 0), repetition=1.1) == [1]  # 2 / 1.1 < 1.9
    assert tokens(impl, -logits, history(0, 2), repetition=3.0) == [2]  # 1 / 3 is still the largest
    assert tokens(impl, np.array([-1.0, -1.1]), history(0, 0, 0), repetition=1.2) == [1]  # negative: times, and once
    assert tokens(impl, logits, history(0), presence=2, repetition=1.5) == [0]  # nothing was said yet


@BOTH
def test_bias_and_constraint(impl: Impl) -> None:
    logits = np.arange(70, dtype=np.float32)
    ban = (0, np.array([69, 68], np.int32), np.array([-np.inf, -np.inf], np.float32))
    lift = (0, np.array([3], np.int32), np.array([90], np.float32))
    assert tokens(impl, logits, bias=(ban,)) == [67]
    assert tokens(impl, logits, bias=(ban, lift)) == [3]
    assert tokens(impl, logits, Masks(allowed=((0, bits(70, 1, 33, 64)),))) == [64]
    assert tokens(impl, logits, Masks(allowed=((0, bits(70, 1, 69, 64)),)), bias=(ban,)) == [64]
    sampled = tokens(
        impl,
        logits * 0,
        Masks(allowed=tuple((r, bits(70, 5, 66)) for r in range(99))),
        temperature=1,
        positions=range(99),
    )
    assert set(sampled) == {5, 66}


@BOTH
@pytest.mark.parametrize("temperature", [0, 1])
def test_a_draw_that_cannot_be_made_fails_alone(impl: Impl, temperature: float) -> None:
    logits = np.zeros((4, 40), np.float32)
    logits[:, 7] = 50
    logits[1, 3] = np.nan
    logits[3, 9] = np.inf
    masks = Masks(allowed=((2, bits(40)),))
    found = sample(impl, logits, masks, temperature=temperature, logprobs=2)
    assert found.tokens.tolist() == [7, -1, -1, -1]
    assert found.logprobs.isnan().tolist() == [False, True, True, True]
    assert found.top_ids.tolist() == [[7, 0], [-1, -1], [-1, -1], [-1, -1]]


@BOTH
def test_every_forbidden_token_but_one(impl: Impl) -> None:
    logits = np.full(40, -np.inf)
    logits[11] = -80.0
    for fields in ({}, {"top_p": 0.5}, {"top_k": 5}, {"min_p": 0.5}, {"top_k": 5, "top_p": 0.1, "min_p": 1.0}):
        assert tokens(impl, logits, temperature=0.7, positions=range(5), **fields) == [11] * 5


@BOTH
def test_extreme_temperatures(impl: Impl) -> None:
    logits = np.array([1.0, 3.0, 2.0])
    assert tokens(impl, logits, temperature=1e-30, positions=range(30)) == [1] * 30
    assert set(tokens(impl, logits, temperature=100, positions=range(300))) == {0, 1, 2}


# -- logprobs


@BOTH
def test_logprobs_are_of_the_model(impl: Impl) -> None:
    logits = np.random.default_rng(0).normal(size=(3, 300)).astype(np.float32) * 4
    wanted = np.log(softmax(logits.astype(np.float64)))
    bias = (0, np.array([5], np.int32), np.array([100], np.float32))
    fields = {"logprobs": [3, 0, -1], "temperature": [0, 0.2, 0], "bias": (bias,), "top_k": [0, 2, 0]}
    found = sample(impl, logits, **fields)
    assert found.tokens[0] == 5
    assert np.allclose(found.logprobs[:2], wanted[[0, 1], found.tokens[:2]], atol=1e-5)
    assert found.logprobs.isnan().tolist() == [False, False, True]
    best = np.argsort(-wanted[0])[:3]
    assert found.top_ids.tolist() == [best.tolist(), [-1] * 3, [-1] * 3]
    assert np.allclose(found.top_logprobs[0], wanted[0, best], atol=1e-5)
    assert found.top_logprobs[1:].isnan().all()


@BOTH
def test_targets(impl: Impl) -> None:
    logits = torch.randn(2, 300, generator=torch.Generator().manual_seed(0))
    targets = Targets(np.array([9, 4, 9], np.int32), np.array([0, 299, 7], np.int32))
    found = impl.sample(logits, draws([]), EMPTY, targets, np.array([1, 0, 1], np.int32), Masks())
    wanted = np.log(softmax(logits.double().numpy()))[[1, 0, 1], [0, 299, 7]]
    assert np.allclose(found.targets, wanted, atol=1e-5)
    assert found.tokens.shape == (0,)
    assert found.top_ids.shape == (0, 0)
    assert found.target_ids.shape == found.target_logprobs.shape == (3, 0)


@BOTH
def test_alternatives_of_targets(impl: Impl) -> None:
    """Each target has its own number, whatever the draws ask for; of equals the lower id first."""
    logits = torch.randn(2, 30, generator=torch.Generator().manual_seed(1)).round(decimals=1)
    top = np.array([0, 3, 20, 40], np.int32)
    targets = Targets(np.zeros(4, np.int32), np.array([4, 29, 7, 7], np.int32), top)
    at = np.array([0, 1, 0, 1], np.int32)
    found = impl.sample(logits, draws([0], logprobs=2), np.zeros(1, np.int32), targets, at, Masks())
    wanted = np.log(softmax(logits.double().numpy()))
    assert found.top_ids.shape == (1, 2)
    assert found.target_ids.shape == found.target_logprobs.shape == (4, 40)
    for n, (row, k) in enumerate(zip(at, top, strict=True)):
        best = np.argsort(-logits[row].numpy(), kind="stable")[:k]
        assert found.target_ids[n].tolist() == [*best.tolist(), *[-1] * (40 - len(best))]
        assert np.allclose(found.target_logprobs[n, : len(best)], wanted[row, best], atol=1e-5)
        assert found.target_logprobs[n, len(best) :].isnan().all()


@BOTH
def test_several_draws_of_one_row(impl: Impl) -> None:
    logits = torch.zeros(1, 1000)
    found = impl.sample(
        logits, draws([0] * 8, temperature=1, seeds=range(8)), np.zeros(8, np.int32), NO_TARGETS, EMPTY, Masks()
    )
    assert len(set(found.tokens.tolist())) > 5
    assert not logits.any()  # the logits themselves are never changed


@pytest.mark.parametrize("native", NATIVE, ids=LEVELS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_native_draws_are_those_of_the_definition(native: Native, data: st.DataObject) -> None:
    """Aimed at the middle of a token's share, so that rounding cannot decide: the same token."""
    seed, vocab = data.draw(st.integers(0, 1 << 30)), data.draw(st.sampled_from([1, 31, 64, 100, 777, 4096]))
    random = np.random.default_rng(seed)
    x = (random.standard_normal(vocab) * data.draw(st.sampled_from([0.1, 1.0, 6.0]))).astype(np.float32)
    if data.draw(st.booleans()):  # many equals
        x = np.round(x).astype(np.float32)
    words, allowed = None, np.ones(vocab, bool)
    if data.draw(st.booleans()):
        allowed = random.random(vocab) < data.draw(st.sampled_from([0.02, 0.5, 0.98]))
        allowed[random.integers(vocab)] = True
        words = bits(vocab, *np.flatnonzero(allowed))
    masked = np.where(allowed, x, np.float32(-np.inf))
    temperature = data.draw(st.sampled_from([0.2, 1.0, 3.0]))
    k, p = data.draw(st.sampled_from([0, 2, 7, 50, 5000])), data.draw(st.sampled_from([0.01, 0.3, 0.9, 0.999, 1.0]))
    least = data.draw(st.sampled_from([0.0, 0.01, 0.3, 1.0]))
    p, least = float(np.float32(p)), float(np.float32(least))  # as draws hold them
    share = truncated(masked, temperature, k, p, least)
    target = int(random.choice(vocab, p=share / share.sum()))
    u = min(float(share[:target].sum() + share[target] / 2), 1 - 1e-9)
    if share[target] < 1e-4:
        return
    one = draws([0], temperature=[temperature], top_k=[k], top_p=[p], min_p=[least])
    for chooser in (native.pool, NumpyChooser()):
        allowed = {} if words is None else {0: words}
        assert chooser.choose(x[None], FIRST, {}, allowed, one, np.array([u])).tolist() == [target]


@pytest.mark.parametrize("native", NATIVE, ids=LEVELS)
def test_native_draws_do_not_depend_on_their_neighbours(native: Native) -> None:
    random = np.random.default_rng(0)
    rows = (random.standard_normal((24, 5000)) * 3).astype(np.float32)
    noise = random.random(24)
    fields = {"temperature": [1.0] * 24, "top_k": [0, 40, 0] * 8, "top_p": [1.0, 0.9] * 12}
    fields["min_p"] = [0.0, 0.0, 0.0, 0.1] * 6
    order = np.arange(24, dtype=np.int32)
    together = native.pool.choose(rows, order, {}, {}, draws(range(24), **fields), noise).tolist()
    alone = []
    for r in range(24):
        one = draws([0], **{name: [values[r]] for name, values in fields.items()})
        alone += native.pool.choose(rows[r : r + 1], FIRST, {}, {}, one, noise[r : r + 1]).tolist()
    assert together == alone
    assert len(set(together)) > 5
    own = draws(range(24), seeds=range(24), positions=range(7, 31), **fields)
    assert native.pool.choose(rows, order, {}, {}, own).tolist() == (
        native.pool.choose(rows, order, {}, {}, own, uniforms(own.seeds, own.positions)).tolist()
    )
    edited = {r: rows[23 - r] for r in range(0, 24, 2)}
    turned = native.pool.choose(rows, order[::-1].copy(), edited, {}, draws(range(24), **fields), noise)
    assert (
        turned.tolist()
        == native.pool.choose(rows, order[::-1].copy(), {}, {}, draws(range(24), **fields), noise).tolist()
    )


@pytest.mark.skipif(not NATIVE, reason="built without a compiler")
def test_native_draws_refuse_what_does_not_fit() -> None:
    pool, rows, no = NATIVE[0].pool, np.zeros((1, 40), np.float32), np.zeros(1)
    with pytest.raises(ModelError, match="logits: have to be contiguous rows of float32; they are float64"):
        pool.choose(rows.astype(np.float64), FIRST, {}, {}, draws([0]), no)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="allowed: has 4 bytes"):
        pool.choose(rows, FIRST, {}, {0: np.zeros(1, np.uint32)}, draws([0]), no)
    with pytest.raises(ModelError, match="edited: has 156 bytes"):
        pool.choose(rows, FIRST, {0: rows[0, :39]}, {}, draws([0]), no)
    for wrong in (-1, 1):  # a row that is none
        with pytest.raises(EngineError, match="an index or an offset of the batch"):
            pool.choose(rows, FIRST + np.int32(wrong), {}, {}, draws([0]), no)
        with pytest.raises(EngineError, match="an index or an offset of the batch"):
            pool.normalisers(rows, FIRST + np.int32(wrong))
    with pytest.raises(EngineError, match="an index or an offset of the batch"):
        pool.choose(rows, FIRST, {}, {}, draws([0], temperature=[-1.0]), no)
    never = draws([0], temperature=[1.0], top_p=[0.0])
    assert pool.choose(np.arange(40, dtype=np.float32)[None], FIRST, {}, {}, never, np.array([0.99])).tolist() == [39]
    assert pool.choose(rows, FIRST[:0], {}, {}, draws([]), no[:0]).tolist() == []
    assert pool.normalisers(rows, FIRST)[0] == pytest.approx(np.log(40), rel=1e-6)
