"""Random programs: op streams with forks, joins, references, choices and generations, some of them ill-formed.

In: a random generator. Out: ops in an order in which a client could send them (each after what creates its sequence).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from ramet.frontend.ir import ROOT, SELECT_METHODS, Jump, Sampling
from ramet.runtime import messages as m


@dataclass(frozen=True, slots=True)
class Shape:
    """What programs look like. `vocab` small makes prefixes collide; `wild` is the rate of ops that must fail."""

    vocab: int = 12
    ops: int = 14
    text: int = 10
    tokens: int = 8
    width: int = 4
    wild: float = 0.02
    stems: tuple[tuple[int, ...], ...] = ()
    hosts: float = 0.0  # rate of values that the host gives, and of texts that end with them
    grammars: int = 0  # so many; half of the generations are held to one of them


@dataclass(slots=True)
class Draft:
    """A program being written. `open` are the sequences that may get ops, with their number of ops and their parent."""

    rng: random.Random
    shape: Shape
    ops: list[m.AnyOp] = field(default_factory=list)
    count: dict[str, int] = field(default_factory=dict)
    open: list[str] = field(default_factory=list)
    children: list[tuple[str, str]] = field(default_factory=list)  # (parent, child), not joined yet
    values: list[str] = field(default_factory=list)

    def name(self, seq: str) -> str:
        """The path of the next op on `seq`."""
        k = self.count.get(seq, 0)
        self.count[seq] = k + 1
        return f"{seq}.{k}"

    def tokens(self, longest: int) -> tuple[int, ...]:
        """A run of tokens, often one that other programs begin with too."""
        run = tuple(self.rng.randrange(1, self.shape.vocab) for _ in range(self.rng.randint(0, longest)))
        if self.shape.stems and self.rng.random() < 0.6:
            stem = self.rng.choice(self.shape.stems)
            return stem[: self.rng.randint(0, len(stem))] + run[:2]
        return run


def program(rng: random.Random, shape: Shape) -> list[m.AnyOp]:
    """One program's op stream, without its end."""
    draft = Draft(rng, shape, open=[ROOT])
    prompt = draft.tokens(shape.text)
    if prompt or rng.random() > shape.wild:
        draft.ops.append(m.Append(draft.name(ROOT), ROOT, (prompt or (1,),)))
    for _ in range(rng.randint(1, shape.ops)):
        if draft.open:
            _step(draft, rng.choice(draft.open))
    return draft.ops


def _step(d: Draft, seq: str) -> None:
    if d.shape.hosts and d.rng.random() < d.shape.hosts:
        failed = "the tool failed" if d.rng.random() < 0.1 else ""
        put = m.Put(d.name(seq), seq, () if failed else d.tokens(3), failed)
        d.ops += [put, m.Append(d.name(seq), seq, (d.tokens(2), put.op))]
        d.values.append(put.op)
        return
    kind = d.rng.random()
    if kind < 0.25:
        d.ops.append(_append(d, seq))
    elif kind < 0.6:
        _generate(d, seq)
    elif kind < 0.7:
        op_choose = _choose(d, seq)
        d.ops.append(op_choose)
        d.values.append(op_choose.op)
    elif kind < 0.82:
        _fork(d, seq)
    elif kind < 0.91:
        _join(d, seq)
    elif kind < 0.97:
        start = d.rng.choice((0, 0, 1, d.rng.randint(0, 40), 1 << 30))
        d.ops.append(m.Score(d.name(seq), seq, start, d.rng.choice((0, 0, 3, 20))))
    elif kind < 0.98:
        told = m.Put(d.name(seq), seq, d.tokens(3))
        d.ops.append(told)
        d.values.append(told.op)
    elif seq != ROOT:
        _close(d, seq)


def _generate(d: Draft, seq: str) -> None:
    op = m.Generate(d.name(seq), seq, _sampling(d), d.rng.getrandbits(64), *_grammar(d))
    d.ops.append(op)
    d.values.append(op.op)


def _fork(d: Draft, seq: str) -> None:
    """Children; half of the time they get work at once, and their parent joins them."""
    name = d.name(seq)
    into = tuple(f"{name}.b{i}" for i in range(d.rng.randint(1, d.shape.width)))
    d.ops.append(m.Fork(name, seq, into))
    d.open += into
    d.children += [(seq, child) for child in into]
    if d.rng.random() < 0.5:
        for child in into:
            if d.rng.random() < 0.7:
                d.ops.append(_append(d, child))
            _generate(d, child)
        _join(d, seq)


def _grammar(d: Draft) -> tuple[str, Jump] | tuple[()]:
    if not d.shape.grammars or d.rng.random() < 0.5:
        return ()
    return str(d.rng.randrange(d.shape.grammars)), d.rng.choice(("canonical", "canonical", "exact", "off"))


def _append(d: Draft, seq: str) -> m.Append:
    parts: list[tuple[int, ...] | str] = [d.tokens(d.shape.text)]
    if d.values and d.rng.random() < 0.4:
        parts.append(d.rng.choice(d.values))
    if d.rng.random() < d.shape.wild:
        parts.append("never")
    if d.rng.random() < d.shape.wild:
        parts.append((1,) * 1000)
    return m.Append(d.name(seq), seq, tuple(parts))


def _join(d: Draft, seq: str) -> None:
    """Join children of `seq`: closed by the client before or after, or not at all (the program's end closes them)."""
    mine = [child for parent, child in d.children if parent == seq]
    if not mine:
        return
    joined = d.rng.sample(mine, d.rng.randint(1, len(mine)))
    late = d.rng.random() < 0.5
    if not late:
        for child in joined:
            _close(d, child)
    d.ops.append(m.Join(d.name(seq), seq, tuple(joined)))
    if late:
        for child in joined:
            _close(d, child)
    d.children = [(parent, child) for parent, child in d.children if child not in joined]


def _close(d: Draft, seq: str) -> None:
    if seq in d.open:
        d.open.remove(seq)
        d.ops.append(m.Close(d.name(seq), seq))
        if d.rng.random() < d.shape.wild:
            d.ops.append(_append(d, seq))


def _choose(d: Draft, seq: str) -> m.Choose:
    base = d.tokens(2)
    count = d.rng.randint(1, 5)
    choices = {
        base + tuple(d.rng.randrange(1, d.shape.vocab) for _ in range(d.rng.randint(1, 4))) for _ in range(count)
    }
    method = d.rng.choice(SELECT_METHODS)
    context = d.tokens(2) or (1,)
    distinct = tuple(sorted(choices))
    plain = method != "unconditional_likelihood_normalized"
    return m.Choose(d.name(seq), seq, distinct, method, () if plain else context)  # type: ignore[arg-type]


def _sampling(d: Draft) -> Sampling:
    rng, longest = d.rng, d.shape.tokens
    most = rng.choice((None, 1, 2, longest, longest))
    options: dict[str, object] = {"temperature": rng.choice((0.0, 0.0, 0.7)), "max_tokens": most}
    if rng.random() < 0.3:
        options["min_tokens"] = rng.randint(0, most or longest)
    if rng.random() < 0.2:
        options["ignore_eos"] = True
        options["max_tokens"] = most or longest
    if rng.random() < 0.2:
        options["stop_token_ids"] = (rng.randrange(d.shape.vocab),)
    if rng.random() < 0.2:
        options["logprobs"] = rng.randint(0, 3)
    if rng.random() < 0.2:
        options["presence_penalty"] = 0.5
    if rng.random() < 0.15:
        options["logit_bias"] = {rng.randrange(d.shape.vocab): rng.choice((-100.0, 3.0))}
    if rng.random() < 0.2:
        options |= {"top_p": 0.9, "top_k": 5}
    return Sampling(**options)  # type: ignore[arg-type]
