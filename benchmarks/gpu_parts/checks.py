"""Every kernel against float64. In: the shapes of real models, fresh random inputs, poisoned memory. Out: rows with the
relative error ||out - ref|| / ||ref||, or with what must be exact.

Outputs are allocated where nan stood; slots outside a batch, and partial results, hold nan: what is not written, or
read without leave, shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from gpu_parts.models import spec_of
from gpu_parts.place import Place
from gpu_parts.ragged import EMPTY, NO_TARGETS, Span, batch, cached, draws, planned
from gpu_parts.report import Row, Target
from gpu_parts.session import Session
from ramet.frontend.errors import ModelError
from ramet.kernels import reference
from ramet.kernels.noise import gumbels
from ramet.kernels.ops import Angles, HeadNorms, Layout, Norm
from ramet.kernels.triton import attention, linear, norms, rope, sample, silu, table
from ramet.kernels.triton.quantise import dequantise
from ramet.runtime.batch import Batch, Draws, Masks, Targets
from ramet.runtime.models.decoder import rope_angles
from ramet.runtime.models.spec import Spec

SECTION = "check"


def run(session: Session, name: str) -> None:
    """All kernels in the shapes of one model; attention with head norms, windows and groups among them."""
    session.kept.drop()
    spec = spec_of(name, session.scale)
    for check in (_dense, _rope, _attention, _linear, _sampling, _logprobs):
        for row in check(session, spec, name):
            session.add(row)
    session.place.sync()


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """||found - wanted|| / ||wanted||, nan if anything is not finite."""
    difference = found.double() - wanted.double()
    return float(difference.norm() / wanted.double().norm().clamp(min=1e-300))


def bound(place: Place) -> float:
    """A few roundings of the place's dtype."""
    return 1e-2 if place.dtype is torch.bfloat16 else 2e-3 if place.dtype is torch.float16 else 1e-5


def near(what: str, model: str, found: float, most: float, note: str = "") -> Row:
    """A row whose relative error must be at most `most`."""
    return Row(SECTION, f"{what}, {model}", found, "rel. error", target=Target(most=most), note=note, must=True)


def _rows(session: Session) -> int:
    return 5 if session.scale.toy else 300


def _dense(session: Session, spec: Spec, name: str) -> Iterator[Row]:
    place, rows, eps = session.place, _rows(session), torch.tensor(spec.eps, device=session.place.device)
    norm = Norm(place.random(spec.hidden, dtype=torch.float32), eps)
    start, delta = place.random(rows, spec.hidden, dtype=torch.float32), place.random(rows, spec.hidden)
    wanted_sum, total = start.double(), start.clone()
    place.poison(rows * spec.hidden)
    found = norms.rmsnorm(total, delta, norm, place.dtype)
    wanted = reference.rmsnorm(wanted_sum, delta.double(), norm, torch.float64)
    yield near("rmsnorm + residual", name, max(error(found, wanted), error(total, wanted_sum)), bound(place))
    x = place.random(rows, 2 * spec.intermediate)
    place.poison(rows * spec.intermediate)
    yield near("silu-mul", name, error(silu.silu_mul(x), reference.silu_mul(x.double())), bound(place))
    weights = place.random(min(spec.vocab, 4096), spec.hidden)
    ids = torch.randint(0, len(weights), (rows,), device=place.device)
    place.poison(rows * spec.hidden)
    yield near("embedding", name, error(table.embedding(ids, weights), weights[ids]), 0.0)


def _layout(spec: Spec, window: int | None = None) -> Layout:
    return Layout(spec.heads, spec.kv_heads, spec.head_dim, spec.head_dim**-0.5, (window,))


def _rope(session: Session, spec: Spec, name: str) -> Iterator[Row]:
    place, layout = session.place, _layout(spec)
    made, capacity = batch([Span(0, 3), Span(7, 30), Span(300, 301)], seed=1)
    angles = rope_angles(spec.rope, spec.head_dim, 512, place.device)
    plan = planned(made, layout, angles, capacity, place)
    eps = torch.tensor(spec.eps, device=place.device)
    weight = place.random(spec.heads + spec.kv_heads, spec.head_dim, dtype=torch.float32)
    head_norms = HeadNorms(weight, eps) if spec.qk_norm else None
    qkv = place.random(len(made), (spec.heads + 2 * spec.kv_heads) * spec.head_dim)
    shape = (2, spec.kv_heads, capacity + 1, spec.head_dim)
    cache = torch.full(shape, torch.nan, dtype=place.dtype, device=place.device)
    place.poison(qkv.numel())
    found = rope.rope_store(qkv, head_norms, layout, plan, cache)
    exact = torch.zeros(shape, dtype=torch.float32, device=place.device)
    its = reference.plan(made, layout, angles, capacity)
    wanted = reference.rope_store(qkv, head_norms, layout, its, exact)
    slots = torch.from_numpy(made.slots).long().to(place.device)
    stray = int(cache.isfinite().any(-1).any(0).any(0).sum()) - len(made)
    yield near(
        "rope + KV store", name, max(error(found, wanted), error(cache[:, :, slots], exact[:, :, slots])), bound(place)
    )
    yield Row(SECTION, f"slots written beside the batch's, {name}", stray, "", target=Target(0, 0), must=True)


def attend(q: torch.Tensor, made: Batch, layout: Layout, cache: torch.Tensor, window: int | None) -> torch.Tensor:
    """Attention in float64 `[T, H D]`, a KV head at a time."""
    group = layout.heads // layout.kv_heads
    out = torch.empty(len(q), layout.heads, layout.head_dim, dtype=torch.float64, device=q.device)  # all is written
    qo, kv = made.qo_indptr.tolist(), made.kv_indptr.tolist()
    for s in range(made.segments):
        slots = torch.from_numpy(made.kv_indices[kv[s] : kv[s + 1]]).long().to(q.device)
        count, length = qo[s + 1] - qo[s], len(slots)
        at = torch.arange(length, device=q.device)
        mine = at[length - count :, None]
        hidden = at > mine if window is None else (at > mine) | (at <= mine - window)
        for head in range(layout.kv_heads):
            keys, values = (cache[i, head, slots].double() for i in (0, 1))
            query = q[qo[s] : qo[s + 1], head * group : (head + 1) * group].double().transpose(0, 1)
            weights = (query @ keys.T * layout.scale).masked_fill(hidden, -torch.inf).softmax(-1)
            out[qo[s] : qo[s + 1], head * group : (head + 1) * group] = (weights @ values).transpose(0, 1)
    return out.flatten(1)


def _attention(session: Session, spec: Spec, name: str) -> Iterator[Row]:
    toy = session.scale.toy
    far, chunk = (600, 5) if toy else (2600, 300)
    decode = [Span(n - 1, n) for n in ((1, 17, far) if toy else (1, 17, 128, 511, 512, 513, 1500, far))]
    extend = [Span(far - chunk, far), Span(0, chunk), Span(64, 65), Span(500, 509)]
    forks = [Span(far - 1, far), *(Span(n, n + 1, shared=n - 3) for n in (far - 40, far - 9, 530))]
    cases = [("decode", decode, None), ("extend, mixed", extend, None), ("forks, grouped", forks, None)]
    for what, spans, window in [*cases, ("window of 300, mixed", extend, 300)]:
        for deterministic in (False, True) if not toy or what.startswith("forks") else (False,):
            found = _attended(session.place, spec, spans, window, deterministic)
            yield near(f"attention: {what}{', deterministic' * deterministic}", name, found, bound(session.place))


def _attended(place: Place, spec: Spec, spans: list[Span], window: int | None, deterministic: bool) -> float:
    layout = _layout(spec, window)
    made, capacity = batch(spans, seed=len(spans))
    cache, q = cached(made, layout, capacity, place), place.random(len(made), spec.heads, spec.head_dim)
    angles = Angles(torch.zeros(1, 1, device=place.device), torch.zeros(1, 1, device=place.device))  # not read
    plan = planned(made, layout, angles, capacity, place, deterministic=deterministic, pays=0)
    if any(span.shared for span in spans) and not plan.work[window].has_wide:
        raise RuntimeError("the branches are not grouped: this check is none")
    place.poison(q.numel())
    found = attention.attention(q, layout, plan, cache, window, place.dtype)
    return error(found, attend(q, made, layout, cache, window))


def _linear(session: Session, spec: Spec, name: str) -> Iterator[Row]:
    place = session.place
    weight = place.random(spec.intermediate, spec.hidden) / spec.hidden**0.5
    bias = place.random(spec.intermediate)
    for kind in ("dense", "invariant", "int8", "int4", "fp8"):
        try:
            layer = linear.pack(weight, bias, kind)
        except ModelError as refusal:
            session.add(Row(SECTION, f"linear {kind}, {name}", float("nan"), "", note=str(refusal)))
            continue
        stands = dequantise(layer) if kind in ("int8", "int4") else weight  # type: ignore[arg-type]
        worst = 0.0
        for rows in (1, 8, 33) if session.scale.toy else (1, 8, 33, 64, 65, 300):
            x = place.random(rows, spec.hidden)
            place.poison(rows * spec.intermediate)
            worst = max(worst, error(linear.linear(x, layer), x.double() @ stands.double().T + bias.double()))
        most = 0.06 if kind == "fp8" else bound(place)
        note = "against the exact product: its own rounding" if kind == "fp8" else ""
        yield near(f"linear {kind}", name, worst, most, note)


OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature": {"temperature": 0.8},
    "top-k": {"temperature": 1.1, "top_k": 40},
    "top-p": {"temperature": 0.9, "top_p": 0.9},
    "min-p": {"temperature": 1.0, "min_p": 0.05},
    "all cuts": {"temperature": 1.0, "top_k": 200, "top_p": 0.95, "min_p": 0.001},
}


def _sampling(session: Session, spec: Spec, name: str) -> Iterator[Row]:
    place, count = session.place, 4 if session.scale.toy else 12
    rng = np.random.default_rng(3)
    for what, options in OPTIONS.items():
        for masked in (False, True):
            logits = place.random(count, spec.vocab, dtype=torch.float32) * 3
            words = rng.integers(0, 1 << 32, (count, -(-spec.vocab // 32)), dtype=np.uint64).astype(np.uint32)
            masks = Masks(allowed=tuple(enumerate(words))) if masked else Masks()
            made = draws(count, seed=17, **options)
            place.poison(logits.numel())
            drawn = sample.sample(logits, made, made.rows, NO_TARGETS, EMPTY, masks).tokens.tolist()
            lost = [regret(logits[r], made, r, masks, token) for r, token in enumerate(drawn)]
            label = f"sampling, {what}{', masked' * masked}, {name}"
            note = "to the best kept token, of logits of spread 3"
            yield Row(SECTION, label, max(lost), "score lost", target=Target(most=2e-3), must=True, note=note)


def regret(logits: torch.Tensor, made: Draws, r: int, masks: Masks, token: int) -> float:
    """By how much `token` is not the best: of the kept tokens the one with the largest x / T + Gumbel noise must be
    drawn. Infinite for a token that is not kept, up to what rounding of the cuts may decide."""
    x = reference.adjusted(logits, r, made, masks)
    temperature = float(made.temperature[r])
    if token < 0:
        return float("inf")
    if temperature == 0:
        return float(x.max() - x[token])
    cuts = int(made.top_k[r]), float(made.top_p[r]), float(made.min_p[r])
    kept = reference.probabilities(x, temperature, *cuts) > 0
    loose = reference.probabilities(x, temperature, cuts[0] and cuts[0] + 1, min(1.0, cuts[1] + 1e-5), cuts[2] * 0.9999)
    if not loose[token] > 0:
        return float("inf")
    noise = torch.from_numpy(gumbels(int(made.seeds[r]), int(made.positions[r]), len(x)))
    scores = x.double() / temperature + noise.to(x.device)
    return float((scores[kept].max() - scores[token]).clamp(min=0))


def _logprobs(session: Session, spec: Spec, name: str) -> Iterator[Row]:
    place, count = session.place, 4 if session.scale.toy else 16
    logits = place.random(count, spec.vocab, dtype=torch.float32) * 3
    made = draws(count, logprobs=5)
    targets = Targets(np.arange(count, dtype=np.int32), np.arange(count, dtype=np.int32) * 7)
    place.poison(count * 8)
    drawn = sample.sample(logits, made, made.rows, targets, targets.rows, Masks())
    exact = logits.double().log_softmax(-1)
    best = exact.topk(5, dim=-1)
    index = torch.arange(count, device=place.device)
    scored = error(drawn.targets, exact[index, torch.from_numpy(targets.tokens).long().to(place.device)])
    own = error(drawn.logprobs, exact[index, drawn.tokens])
    yield near("logprobs, 5 best", name, max(own, scored, error(drawn.top_logprobs, best.values)), 1e-5)
