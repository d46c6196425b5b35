"""Batches in the making: columns, many single tokens at once, and parameters by row."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ramet.frontend.ir import Sampling
from ramet.runtime import messages as m
from ramet.runtime.batch import WORDS, Batch
from ramet.runtime.draft import Column, Draft
from ramet.runtime.parameters import Parameters
from ramet.runtime.programs import Program
from ramet.runtime.sequence import Generating, Sequence


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def generating(sampling: Sampling, seed: int = 0) -> Generating:
    return Generating(m.Generate("0.1", "0", sampling, seed), 1, 100, eos=(0,), now=0.0)


def seated(row: int, task: Generating, tokens: int = 3) -> Sequence:
    seq = Sequence(Program("p", "", 0, 0, 0.0), "0", row)
    seq.append(np.arange(tokens, dtype=np.int32))
    seq.row, seq.task = row, task
    return seq


def same(one: Batch, other: Batch) -> None:
    for field in fields(Batch):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype, field.name
            assert a.tolist() == b.tolist(), field.name


@given(st.lists(st.one_of(st.integers(-5, 5), st.lists(st.integers(-5, 5)))))
def test_a_column_is_its_values_in_order(parts: list[int | list[int]]) -> None:
    column, values = Column(), []
    for part in parts:
        if isinstance(part, int):
            column.add(part)
            values.append(part)
        else:
            column.extend(ids(*part))
            values += part
    assert column.array().tolist() == values
    assert column.array().dtype == np.int32
    column.add(3)
    assert column.array().tolist() == [*values, 3]


def test_many_singles_are_as_many_segments() -> None:
    together, apart = (Draft(0, 16, Parameters(1)) for _ in range(2))
    before, kv = ids(4, 5), [ids(1, 2, 3), ids(1), ids(8, 9)]
    for draft in (together, apart):
        assert draft.segment(before, 0, ids(20, 21), ids(20, 21)) == 0
    assert together.singles(ids(6, -1, 7), ids(2, 0, 1), ids(3, 1, 9), kv) == 2
    for i, (token, position, slot) in enumerate([(6, 2, 3), (-1, 0, 1), (7, 1, 9)]):
        assert apart.segment(ids(token), position, ids(slot), kv[i]) == 2 + i
    assert (together.left, together.count) == (apart.left, apart.count) == (11, 5)
    one, other = together.launch(), apart.launch()
    assert one is not None
    assert other is not None
    same(one, other)
    assert one.kv_indices.tolist() == [20, 21, 1, 2, 3, 1, 8, 9]


def test_a_batch_owns_its_slot_lists() -> None:
    row = ids(1, 2, 3)
    draft = Draft(0, 16, Parameters(1))
    draft.segment(ids(5, 6, 7), 0, row, row[:3])
    batch = draft.launch()
    assert batch is not None
    row[:] = -1
    assert batch.kv_indices.tolist() == batch.slots.tolist() == [1, 2, 3]


SAMPLINGS = st.builds(
    Sampling,
    temperature=st.floats(0, 2, width=32),
    top_p=st.floats(0.125, 1, width=32),
    top_k=st.integers(0, 50),
    min_p=st.floats(0, 1, width=32),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    presence_penalty=st.sampled_from([0.0, -1.5]),
    repetition_penalty=st.sampled_from([1.0, 1.25]),
    logprobs=st.integers(-1, 5),
)


@given(st.lists(st.tuples(st.integers(0, 3), SAMPLINGS, st.integers(-(1 << 63), (1 << 64) - 1)), min_size=1))
def test_a_row_has_the_parameters_of_the_op_that_took_it_last(
    held: list[tuple[int, Sampling, int]],
) -> None:
    parameters, last = Parameters(4), {}
    for row, sampling, seed in held:
        task = generating(sampling, seed)
        parameters.hold(row, task)
        parameters.hold(row, task)
        last[row] = (sampling, seed)
    into = ids(*last)
    draws = parameters.draws(ids(*range(len(last))), into, into, ())
    names = {
        "temperature": "temperature",
        "top_p": "top_p",
        "top_k": "top_k",
        "min_p": "min_p",
        "frequency": "frequency_penalty",
        "presence": "presence_penalty",
        "repetition": "repetition_penalty",
        "logprobs": "logprobs",
    }
    for column, name in names.items():
        assert getattr(draws, column).tolist() == [getattr(s, name) for s, _ in last.values()]
    assert draws.seeds.tolist() == [seed % (1 << 64) for _, seed in last.values()]
    assert draws.words.shape == (len(last), WORDS)
    assert draws.words.flags.c_contiguous
    assert draws.positions.dtype == np.int64


def test_bias_bans_and_penalties_follow_their_draws() -> None:
    plain = Sampling()
    draft = Draft(0, 16, Parameters(8))
    draft.segment(ids(1, 2, 3), 0, ids(1, 2, 3), ids(1, 2, 3))
    samplings = [plain, sampling_of(min_tokens=2, stop_token_ids=(9,)), sampling_of(logit_bias={4: 1.5})]
    seqs = [seated(row, generating(s)) for row, s in enumerate([*samplings, sampling_of(presence_penalty=1.0)])]
    for seq in seqs[:2]:
        assert isinstance(seq.task, Generating)
        draft.draw(seq, seq.task, 2)
    for seq in seqs[2:]:
        assert isinstance(seq.task, Generating)
        draft._parameters.hold(seq.row or 0, seq.task)
    tasks = [seq.task for seq in seqs[2:] if isinstance(seq.task, Generating)]
    draft.draw_all(seqs[2:], tasks, ids(2, 2), ids(2, 3), ids(3, 3))
    batch = draft.launch()
    assert batch is not None
    found = [(r, tokens.tolist(), values.tolist()) for r, tokens, values in batch.draws.bias]
    assert found == [(1, [0, 9], [-np.inf, -np.inf]), (2, [4], [1.5])]
    history = draft.notes.masks(batch.draws.positions).history
    assert [(r, tokens.tolist(), made) for r, tokens, made in history] == [(3, [0, 1, 2], 2)]
    seqs[3].turn += 1
    assert draft.notes.masks(batch.draws.positions).history == ()


def test_a_ban_ends_with_the_minimum() -> None:
    task = generating(sampling_of(min_tokens=2))
    seq = seated(0, task)
    for made, flying, banned in ((0, 0, 1), (1, 0, 1), (1, 1, 0), (2, 0, 0)):
        task.made, seq.flying = made, flying
        draft = Draft(0, 4, Parameters(1))
        draft.segment(ids(1), 0, ids(1), ids(1))
        draft.draw(seq, task, 0)
        batch = draft.launch()
        assert batch is not None
        assert len(batch.draws.bias) == banned


def sampling_of(**changes: object) -> Sampling:
    return Sampling(**changes)  # type: ignore[arg-type]
