"""Every kernel as a share of its floor. In: the shapes of one model at the sizes that matter. Out: microseconds, beside
bytes / bandwidth or FLOP / rate, whichever is larger.

Launches are captured and replayed; inputs rotate through several times the second-level cache.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from gpu_parts.compared import bitmasks
from gpu_parts.models import LLAMA1, LLAMA8, spec_of
from gpu_parts.ragged import EMPTY, Span, batch, cached, draws, planned
from gpu_parts.report import Row, Target
from gpu_parts.session import Session
from ramet.frontend.errors import ModelError
from ramet.kernels.ops import Angles, HeadNorms, Layout, Norm
from ramet.kernels.triton import attention, linear, logprobs, norms, rope, sample, silu, table
from ramet.kernels.triton.draws import pack_draws, upload, view_draws
from ramet.runtime.batch import Masks
from ramet.runtime.models.decoder import rope_angles
from ramet.runtime.models.spec import Spec

SECTION = "kernels"
BLANK = Angles(torch.zeros(1, 1), torch.zeros(1, 1))  # attention does not read them
BYTES = {"dense": 2.0, "invariant": 2.0, "int8": 1 + 2 / 128, "int4": 0.5 + 2 / 64, "fp8": 1.0}  # of a weight
Make = Callable[[], Callable[[], Any]]  # draws fresh inputs, gives what is timed


def run(session: Session, name: str) -> None:
    """All kernels of a model."""
    session.kept.drop()
    spec = spec_of(name, session.scale)
    for part in (dense, attentions, products, sampling):
        part(session, spec, name)


def row(
    session: Session,
    what: str,
    make: Make,
    *,
    moved: float = 0.0,
    flops: float = 0.0,
    peer: float | None = None,
    target: Target | None = None,
    note: str = "",
    graph: bool = True,
) -> float:
    """Measure and report; `moved` bytes and `flops` give the limit. Returns microseconds."""
    place = session.place
    acts = [make() for _ in range(place.copies(int(moved)) if moved else 2)]
    us = 1e3 * place.median_ms(acts, repeats=session.scale.repeats * 4, graph=graph)
    least = 1e6 * max(moved / session.limits.bandwidth, flops / session.limits.rate)
    ratio = least / us if peer is None else peer / us
    session.add(Row(SECTION, what, us, "us", least, peer, ratio, target, note))
    return us


def dense(session: Session, spec: Spec, name: str) -> None:
    """Norms, rotation, activation, embedding."""
    place, width = session.place, spec.hidden
    eps = torch.tensor(spec.eps, device=place.device)
    norm = Norm(place.random(width, dtype=torch.float32), eps)
    weights = place.random(spec.vocab, width)
    for tokens in (4,) if session.scale.toy else (128, 8192):
        size = f"{tokens:,} tokens, {name}"

        def normed(tokens: int = tokens) -> Callable[[], Any]:
            residual, delta = place.random(tokens, width, dtype=torch.float32), place.random(tokens, width)
            return lambda: norms.rmsnorm(residual, delta, norm, place.dtype)

        row(session, f"rmsnorm + residual, {size}", normed, moved=12.0 * tokens * width)

        def gated(tokens: int = tokens) -> Callable[[], Any]:
            x = place.random(tokens, 2 * spec.intermediate)
            return lambda: silu.silu_mul(x)

        row(session, f"silu-mul, {size}", gated, moved=6.0 * tokens * spec.intermediate)
        heads = spec.heads + 2 * spec.kv_heads
        row(session, f"rope + KV store, {size}", rotation(session, spec, tokens),
            moved=4.0 * tokens * heads * spec.head_dim)  # fmt: skip

        def embedded(tokens: int = tokens) -> Callable[[], Any]:
            ids = torch.randint(0, spec.vocab, (tokens,), device=place.device)
            return lambda: table.embedding(ids, weights)

        row(session, f"embedding, {size}", embedded, moved=6.0 * tokens * width)


def rotation(session: Session, spec: Spec, tokens: int) -> Make:
    """Rotation and store of one long segment."""
    place, layout = session.place, _layout(spec)
    angles = rope_angles(spec.rope, spec.head_dim, tokens, place.device)
    made, capacity = batch([Span(0, tokens)])
    plan = planned(made, layout, angles, capacity, place)
    weight = place.random(spec.heads + spec.kv_heads, spec.head_dim, dtype=torch.float32)
    head_norms = HeadNorms(weight, torch.tensor(spec.eps, device=place.device)) if spec.qk_norm else None

    def make() -> Callable[[], Any]:
        qkv = place.random(tokens, (spec.heads + 2 * spec.kv_heads) * spec.head_dim)
        cache = place.random(2, spec.kv_heads, capacity + 1, spec.head_dim)
        return lambda: rope.rope_store(qkv, head_norms, layout, plan, cache)

    return make


def _layout(spec: Spec) -> Layout:
    return Layout(spec.heads, spec.kv_heads, spec.head_dim, spec.head_dim**-0.5, (None,))


def attentions(session: Session, spec: Spec, name: str) -> None:
    """Decode, a long chunk, a tree: merge included."""
    each = 4.0 * spec.kv_heads * spec.head_dim  # bytes of a layer's K and V of one token
    toy = session.scale.toy
    for count, context in ((2, 20),) if toy else ((1, 8192), (32, 1024), (128, 1024), (256, 1024), (32, 8192)):
        make = attending(session, spec, [Span(context - 1, context)] * count)
        what = f"decode attention, {count} x {context:,}, {name}"
        row(session, what, make, moved=each * count * context, target=Target(least=0.9) if count >= 32 else None)
    length = 20 if toy else 8192
    flops = 2.0 * spec.heads * spec.head_dim * length * (length + 1)
    make = attending(session, spec, [Span(0, length)])
    row(session, f"prefill attention, {length:,}, {name}", make, flops=flops, target=Target(least=0.6))
    branches, shared = (2, 520) if toy else (64, 8192)
    spans = [Span(shared, shared + 1), *[Span(shared, shared + 1, shared=shared)] * (branches - 1)]
    flat = row(session, f"{branches} branches over {shared:,}, each reads all, {name}",
               attending(session, spec, spans, grouping=False), moved=each * shared)  # fmt: skip
    make = attending(session, spec, spans)
    what = f"{branches} branches over {shared:,}, read once, {name}"
    row(
        session,
        what,
        make,
        moved=each * shared,
        peer=flat,
        target=Target(least=10),
        note="the cache helps the flat one",
    )


def attending(session: Session, spec: Spec, spans: Sequence[Span], *, grouping: bool = True) -> Make:
    """One layer's attention over scattered slots."""
    place, layout = session.place, _layout(spec)
    made, capacity = batch(spans)

    def make() -> Callable[[], Any]:
        plan = planned(made, layout, BLANK, capacity, place, grouping=grouping)
        cache, q = cached(made, layout, capacity, place), place.random(len(made), spec.heads, spec.head_dim)
        return lambda: attention.attention(q, layout, plan, cache, None, place.dtype)

    return make


def products(session: Session, spec: Spec, name: str) -> None:
    """The widest linear layer in every kind of weight."""
    place, width, columns = session.place, 2 * spec.intermediate, spec.hidden
    size = width * columns
    base: dict[int, float] = {}
    for kind, each in BYTES.items():
        weights = (place.random(width, columns) / columns**0.5 for _ in range(place.copies(int(size * each))))
        try:
            layers = [linear.pack(weight, None, kind) for weight in weights]
        except ModelError as refusal:
            session.add(Row(SECTION, f"linear {kind}, {name}", float("nan"), "us", note=str(refusal)))
            continue
        for rows in (3,) if session.scale.toy else (1, 8, 32, 128, 4096):
            turn = itertools.cycle(layers)

            def make(rows: int = rows, turn: Iterator[linear.Layer] = turn) -> Callable[[], Any]:
                x, layer = place.random(rows, columns), next(turn)
                return lambda: linear.linear(x, layer)

            moved = size * each + 2.0 * rows * (columns + width)
            flops = 2.0 * rows * size / (2 if kind == "fp8" else 1)
            us = row(
                session, f"linear {kind}, {rows} x {columns:,} x {width:,}, {name}", make, moved=moved, flops=flops
            )
            base.setdefault(rows, us)
            session.say(f"    {base[rows] / us:.2f} x dense")


CUTS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature": {"temperature": 0.6},
    "top-k 50, top-p 0.9": {"temperature": 1.0, "top_k": 50, "top_p": 0.9},
    "top-p 0.9": {"temperature": 1.0, "top_p": 0.9},
}


def sampling(session: Session, spec: Spec, name: str) -> None:
    """Draws of a full batch, and log-probabilities."""
    place, vocab, count = session.place, spec.vocab, session.scale.rows
    moved = 4.0 * count * vocab
    for what, options in CUTS.items():
        for masked in (False, True):
            drawn = draws(count, **options)
            masks = Masks(allowed=tuple(enumerate(bitmasks(vocab, count)))) if masked else Masks()
            packed = pack_draws(drawn, drawn.rows, masks, vocab)
            assert packed is not None, "draws fit their own room"
            view = view_draws(upload(packed.words, place.device), packed.room)
            scratch = sample.draw_scratch(packed.room, vocab, place.device)

            def make(view: Any = view, scratch: Any = scratch) -> Callable[[], Any]:
                logits = place.random(count, vocab, dtype=torch.float32) * 3
                return lambda: sample.draw(logits, view, scratch)

            label = f"sampling, {what}{', masked' * masked}, {count} x {vocab:,}, {name}"
            row(session, label, make, moved=moved, note="aim: 100 us at 256 x 128k" if name in (LLAMA1, LLAMA8) else "")
    wanted = draws(count, logprobs=5).logprobs
    tokens = torch.randint(0, vocab, (count,), device=place.device)

    def scored() -> Callable[[], Any]:
        logits = place.random(count, vocab, dtype=torch.float32) * 3
        return lambda: logprobs.score(logits, wanted, draws(count).rows, tokens, EMPTY, EMPTY)

    row(
        session,
        f"logprobs, 5 best, {count} x {vocab:,}, {name}",
        scored,
        moved=moved,
        graph=False,
        note="launched one by one",
    )
