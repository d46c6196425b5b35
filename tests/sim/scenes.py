"""The scenes of the simulation: each one kind of world, and of trouble in it."""

from __future__ import annotations

from ramet.runtime.config import Limits

from .mazes import VOCAB
from .programs import Shape
from .world import Scene

STEMS = ((1, 2, 1, 2, 3, 4, 1, 2, 1, 2, 1, 1), (1, 2, 1, 2, 3, 5, 6, 7), (1, 2, 2))

SCENES = {
    "plain": Scene(),
    "shared prefixes": Scene(shape=Shape(vocab=8, stems=STEMS), namespaces=1),
    "two tokens": Scene(shape=Shape(vocab=3, ops=20), namespaces=1, eos_rate=0.03),
    "one-token chunks": Scene(limits=Limits(batch_tokens=3, chunk_tokens=1, lease_seconds=1.0)),
    "no overlap": Scene(limits=Limits(batch_tokens=64, chunk_tokens=64, lease_seconds=3.0, overlap=False)),
    "tiny pool": Scene(capacity=40, rows=3, at_once=8),
    "pool smaller than the context": Scene(capacity=24, rows=8, at_once=8),
    "retraction and eviction": Scene(retract=0.3, evict=0.3),
    "aborts and flushes": Scene(abort=0.15, flush=0.1),
    "wide": Scene(capacity=400, rows=30, at_once=20, shape=Shape(width=8, ops=20)),
    "grammars": Scene(shape=Shape(vocab=VOCAB, grammars=40, tokens=24), context=96, capacity=200),
    "grammars in trouble": Scene(
        shape=Shape(vocab=VOCAB, grammars=40, tokens=24, width=6),
        limits=Limits(batch_tokens=9, chunk_tokens=4, lease_seconds=2.0),
        context=96,
        capacity=110,
        rows=4,
        abort=0.1,
        retract=0.2,
        evict=0.2,
    ),
    "device faults": Scene(faults=0.02),
    "by age": Scene(
        limits=Limits(batch_tokens=16, chunk_tokens=8, lease_seconds=3.0, policy="age"), capacity=60, rows=4
    ),
    "first come": Scene(
        limits=Limits(batch_tokens=16, chunk_tokens=8, policy="lru-fcfs"), capacity=60, rows=4, abort=0.05, retract=0.1
    ),
    "no overlap, retraction": Scene(
        limits=Limits(batch_tokens=32, chunk_tokens=8, lease_seconds=3.0, overlap=False), retract=0.3, evict=0.1
    ),
    "long leases": Scene(
        limits=Limits(batch_tokens=16, chunk_tokens=8, lease_seconds=100.0), capacity=70, at_once=9, shape=Shape(ops=20)
    ),
    "everything": Scene(capacity=60, rows=3, faults=0.03, abort=0.1, retract=0.1, evict=0.1, flush=0.05),
    "hosts that answer late or never": Scene(
        shape=Shape(hosts=0.15, ops=18), late=0.7, never=0.2, gates=0.3, vanish=0.02, at_once=8
    ),
    "clients that vanish": Scene(capacity=70, vanish=0.1, gates=0.2, at_once=7, echo=0.2),
    "cancel storms": Scene(capacity=80, storm=0.05, abort=0.1, echo=0.3, at_once=9, arrive=0.6),
    "branches cut": Scene(cut=0.3, shape=Shape(ops=20, width=3), retract=0.05),
    "failed allocations": Scene(alloc=0.2, capacity=70, evict=0.1),
    "broken grammars": Scene(
        shape=Shape(vocab=VOCAB, grammars=40, tokens=24), context=96, capacity=150, traps=0.7, retract=0.1
    ),
    "short leases": Scene(
        limits=Limits(batch_tokens=12, chunk_tokens=5, lease_seconds=0.4),
        shape=Shape(hosts=0.1, ops=18),
        late=0.6,
        gates=0.4,
        namespaces=4,
    ),
    "all at once": Scene(
        capacity=110,
        rows=5,
        context=96,
        at_once=8,
        limits=Limits(batch_tokens=9, chunk_tokens=3, lease_seconds=1.0),
        shape=Shape(vocab=VOCAB, grammars=40, tokens=20, hosts=0.08, ops=18),
        abort=0.05,
        flush=0.03,
        retract=0.1,
        evict=0.1,
        storm=0.01,
        cut=0.1,
        vanish=0.03,
        echo=0.1,
        alloc=0.05,
        faults=0.01,
        late=0.5,
        never=0.1,
        gates=0.2,
        traps=0.2,
        namespaces=3,
    ),
}
