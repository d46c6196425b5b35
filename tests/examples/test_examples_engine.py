"""Every example on the real engine with a small random model: programs are total, and nothing is computed twice.

`random:tiny` speaks the default model's vocabulary, which is fetched on first use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

import ramet as rt
from ramet.examples.best_of_n import best_of_n
from ramet.examples.cascade import ask
from ramet.examples.few_shot_classify import LABELS, few_shot_classify
from ramet.examples.json_extract import MAILS, Order, json_extract
from ramet.examples.llm_judge import DIMENSIONS, llm_judge
from ramet.examples.map_reduce_summary import TEXT, map_reduce_summary
from ramet.examples.multi_turn_chat import multi_turn_chat
from ramet.examples.parse import integer
from ramet.examples.react_agent import react_agent
from ramet.examples.self_consistency import self_consistency
from ramet.examples.self_refine import self_refine
from ramet.examples.skeleton_of_thought import skeleton_of_thought
from ramet.examples.subproblem_graph import GRAPH, subproblem_graph
from ramet.examples.tree_of_thought import tree_of_thought
from ramet.examples.typed_judge import CRITERIA, typed_judge
from ramet.frontend.backends.engine import Engine
from ramet.frontend.ir import Finished, Usage
from ramet.frontend.replay import Recorder, Recording, one_by_one
from ramet.runtime import messages as m

pytestmark = pytest.mark.model
WAIT = 120.0  # seconds until a test gives up on a run that hangs

RUNS: dict[str, Callable[[rt.Backend], rt.Run[object]]] = {
    "skeleton_of_thought": lambda b: skeleton_of_thought.using(backend=b)("Why?", outline_tokens=12, max_tokens=6),
    "tree_of_thought": lambda b: tree_of_thought.using(backend=b, seed=7)("Why?", max_tokens=5),
    "multi_turn_chat": lambda b: multi_turn_chat.using(backend=b)(["Why?", "How?", "When?"], max_tokens=6),
    "self_consistency": lambda b: self_consistency.using(backend=b, seed=7)(
        "How many?",
        max_tokens=8,
        early_stop=False,  # what is stopped depends on the machine's speed
    ),
    "best_of_n": lambda b: best_of_n.using(backend=b, seed=7)("Why?", candidates=3, max_tokens=6),
    "self_refine": lambda b: self_refine.using(backend=b, seed=7)("Write.", rounds=2, max_tokens=6),
    "llm_judge": lambda b: llm_judge.using(backend=b)("Trees are good.", max_tokens=6),
    "few_shot_classify": lambda b: few_shot_classify.using(backend=b)("It broke."),
    "map_reduce_summary": lambda b: map_reduce_summary.using(backend=b)(TEXT, max_tokens=6),
    "react_agent": lambda b: react_agent.using(backend=b)("How high?", max_steps=3, max_tokens=6),
    "cascade": lambda b: ask.using(backend=b)("Why?", max_tokens=6),
    "subproblem_graph": lambda b: subproblem_graph.using(backend=b)(GRAPH, max_tokens=6),
    "json_extract": lambda b: json_extract.using(backend=b)(MAILS[0], max_tokens=800),
    "typed_judge": lambda b: typed_judge.using(backend=b)("Why?", "So.", max_tokens=600),
}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine("random:tiny", in_process=True, threads=1, kv_tokens=8192) as started:
        yield started


def recorded(engine: Engine, name: str) -> tuple[rt.Run[object], Recording]:
    engine.flush_cache()
    recorder = Recorder(engine)
    run = RUNS[name](recorder)
    run.result(WAIT)
    return run, recorder.programs[0]


class Distinct:
    """The token sequences that a recorded program spells, and how many different prefixes they have.

    A generated token counts for its own operation, even where another operation generates the same after the same
    prefix: both are sampled, neither is known before.
    """

    def __init__(self, engine: Engine, recording: Recording) -> None:
        self._results = {event.op: event for event in recording.finished}
        self._values: dict[str, tuple[int, ...]] = {op: event.meta.tokens for op, event in self._results.items()}
        self._sequences: dict[str, list[tuple[str, int]]] = {"0": []}
        self._bases: dict[str, int] = {}
        self.spelled: list[list[tuple[str, int]]] = []
        lowering = engine._client.lowering(recording.header.seed)
        ops = [*lowering.lower(recording.ops)[0], *lowering.end()]
        self._values |= {op.op: op.tokens for op in ops if isinstance(op, m.Put)}  # a value may come after its uses
        for op in ops:
            self._take(op)
        self.spelled += self._sequences.values()

    def _take(self, op: m.AnyOp) -> None:
        tokens = self._sequences[op.seq]
        if isinstance(op, m.Append):
            for part in op.parts:
                tokens += [("", token) for token in (self._values[part] if isinstance(part, str) else part)]
        elif isinstance(op, m.Generate):
            tokens += [(op.op, token) for token in self._values[op.op]]
        elif isinstance(op, m.Choose):
            self.spelled += [[*tokens, *(("", token) for token in choice)] for choice in op.choices]
            scores = self._results[op.op].meta.scores
            self._values[op.op] = op.choices[scores.index(max(scores))]
            tokens += [("", token) for token in self._values[op.op]]
        elif isinstance(op, m.Fork):
            for child in op.into:
                self._sequences[child], self._bases[child] = list(tokens), len(tokens)
        elif isinstance(op, m.Join):
            for branch in op.branches:
                tokens += self._sequences[branch][self._bases[branch] :]

    def count(self) -> int:
        """Nodes of the prefix tree of all sequences."""
        nodes: dict[tuple[int, tuple[str, int]], int] = {}
        for sequence in self.spelled:
            node = 0
            for token in sequence:
                node = nodes.setdefault((node, token), len(nodes) + 1)
        return len(nodes)


@pytest.mark.parametrize("name", RUNS)
def test_nothing_is_computed_twice(engine, name):
    run, recording = recorded(engine, name)
    distinct = Distinct(engine, recording).count()
    assert 0 < run.usage.computed_tokens <= 1.02 * distinct
    assert run.usage.computed_tokens >= 0.5 * distinct, "and the count of distinct tokens is not a loose bound"


@pytest.mark.parametrize(
    "name", ["skeleton_of_thought", "self_consistency", "map_reduce_summary", "llm_judge", "typed_judge"]
)
def test_branches_decode_in_the_same_steps(engine, name):
    run, _ = recorded(engine, name)
    last_fork = max(len(op.into) for op in run.events() if isinstance(op, rt.Forked))
    by_var: dict[str, list[tuple[int, int]]] = {}
    for event in run.events():
        if isinstance(event, Finished) and ".b" in event.seq and event.meta.completion_tokens > 0:
            by_var.setdefault(event.var, []).append((event.meta.first_step, event.meta.last_step))
    spans = max(by_var.values(), key=len)
    assert len(spans) >= last_fork - 1
    assert max(first for first, _ in spans) <= min(last for _, last in spans), f"{spans} have a step in common"


def test_call_by_call_does_the_same_work_unshared(engine):
    run, recording = recorded(engine, "skeleton_of_thought")
    apart = one_by_one(engine, recording)
    assert isinstance(run.usage, Usage)
    assert apart.calls == run.usage.calls
    assert apart.generated_tokens == run.usage.generated_tokens
    assert apart.cached_tokens == 0
    assert apart.computed_tokens > run.usage.computed_tokens
    assert apart.steps > run.usage.steps


def test_results_are_values_of_the_asked_kind(engine):
    verdict = llm_judge.using(backend=engine)("Trees.", max_tokens=4).result(WAIT)
    assert set(verdict.scores) == set(DIMENSIONS)
    assert set(verdict.scores.values()) <= {1, 2, 3, 4, 5}
    rows = [{"review": text} for text in ("Good.", "Bad.", "")]
    assert set(few_shot_classify.using(backend=engine).batch(rows).result()) <= set(LABELS)
    answer, chain = self_consistency.using(backend=engine)("How many?", samples=3, max_tokens=4).result(WAIT)
    assert answer == integer(chain, 0, 9999)
    assert ask.using(backend=engine)("Why?", max_tokens=4).result(WAIT).confidence < 0
    orders = json_extract.using(backend=engine, seed=3).batch([{"mail": mail, "max_tokens": 800} for mail in MAILS])
    assert [type(order) for order in orders.result()] == [Order] * len(MAILS)
    judgement = typed_judge.using(backend=engine, seed=3)("Why?", "So.", max_tokens=600).result(WAIT)
    assert {verdict.score for verdict in judgement.verdicts.values()} <= {1, 2, 3, 4, 5}
    assert set(judgement.verdicts) == set(CRITERIA)
