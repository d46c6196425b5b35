"""Every example, by its body op by op, cut at any point, and whole from its plan: the same operations, the same tokens.

What is compared is what the backend was told and what it answered, operation by operation, and the result.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import pytest

import ramet as rt
from ramet.examples.cascade import ask
from ramet.examples.few_shot_classify import few_shot_classify
from ramet.examples.json_extract import MAILS, json_extract
from ramet.examples.llm_judge import llm_judge
from ramet.examples.map_reduce_summary import TEXT, map_reduce_summary
from ramet.examples.multi_turn_chat import multi_turn_chat
from ramet.examples.react_agent import react_agent
from ramet.examples.self_consistency import self_consistency
from ramet.examples.skeleton_of_thought import skeleton_of_thought
from ramet.examples.subproblem_graph import GRAPH, subproblem_graph
from ramet.examples.tool_agent import tool_agent
from ramet.examples.tree_of_thought import tree_of_thought
from ramet.examples.typed_judge import typed_judge
from ramet.frontend.backends.base import Backend, Deliver, Session
from ramet.frontend.backends.engine import Engine
from ramet.frontend.ir import AnyOp, Close, Ended, Event, Finished, Header
from ramet.frontend.plan_run import PlanRun
from ramet.frontend.replay import Recorder, Recording

WAIT = 120.0
Case = tuple[rt.Program[..., Any], dict[str, Any], dict[str, Any], bool]  # program, static, open arguments, whole
CASES: dict[str, Case] = {
    "cascade": (ask, {"max_tokens": 6}, {"question": "Why?"}, False),
    "few_shot_classify": (few_shot_classify, {}, {"review": "It broke."}, True),
    "json_extract": (json_extract, {"max_tokens": 800}, {"mail": MAILS[0]}, True),
    "llm_judge": (llm_judge, {"max_tokens": 6}, {"essay": "Trees are good."}, False),
    "map_reduce_summary": (map_reduce_summary, {"text": TEXT, "max_tokens": 6}, {}, True),
    "multi_turn_chat": (multi_turn_chat, {"questions": ["Why?", "How?", "When?"], "max_tokens": 6}, {}, True),
    "react_agent": (react_agent, {"max_steps": 3, "max_tokens": 6}, {"question": "How high?"}, False),
    "self_consistency": (self_consistency, {"max_tokens": 8}, {"question": "How many?"}, False),
    "skeleton_of_thought": (skeleton_of_thought, {"outline_tokens": 12, "max_tokens": 6}, {"question": "Why?"}, False),
    "subproblem_graph": (subproblem_graph, {"graph": GRAPH, "max_tokens": 6}, {}, True),
    "tool_agent": (tool_agent, {"max_rounds": 2, "max_tokens": 200}, {"question": "How high?"}, False),
    "tree_of_thought": (tree_of_thought, {"max_tokens": 5}, {"problem": "Why?"}, False),
    "typed_judge": (typed_judge, {"max_tokens": 600}, {"question": "Why?", "answer": "So."}, True),
}
RACES = ("self_consistency", "tree_of_thought")  # which branches are cancelled, and when, is a matter of time
ANSWERS: dict[str, Any] = {
    "verdict": '{"reason": "fine", "score": 4}',
    "words": "12",
    "publish": "False",
    "order": '{"customer": "Ann", "items": [{"product": "apple", "count": 3}], "due": null, "urgency": "low"}',
    "outline": "1. a\n2. b\n3. c\n4. d",
    "score": "3",
    "*": "some words",
}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine("random:tiny", in_process=True, threads=1, kv_tokens=8192) as started:
        yield started


def answers(recording: Recording) -> dict[str, Any]:
    """What each call gave: its text, its tokens, how it ended."""
    return {e.op: answer(e) for e in recording.finished}


def answer(event: Finished) -> tuple[Any, ...]:
    return event.value, event.meta.tokens, event.meta.finish_reason


def assert_same(name: str, found: dict[str, Any], expected: dict[str, Any]) -> None:
    if name in RACES:
        common = found.keys() & expected.keys()
        found, expected = ({op: each[op] for op in common} for each in (found, expected))
    assert found == expected


def told(recording: Recording) -> dict[str, AnyOp]:
    """The operations by id; branches that are collected close whenever that is."""
    return {op.id: op for op in recording.ops if not isinstance(op, Close)}


def by_body(name: str, backend: Backend) -> tuple[Any, Recording]:
    program, static, given, _ = CASES[name]
    recorder = Recorder(backend)
    result = outcome(program.using(backend=recorder, seed=7)(**static, **given))
    return result, recorder.programs[0]


def by_plan(name: str, backend: Backend) -> tuple[Any, Recording, Any]:
    program, static, given, _ = CASES[name]
    recorder = Recorder(backend)
    run = program.compile(**static).run(**given, backend=recorder, seed=7)
    result = outcome(run)
    return result, recorder.programs[0], run


def outcome(run: Any) -> Any:
    try:
        return run.result(WAIT)
    except rt.RametError as error:
        return type(error), str(error)


class Cut:
    """A backend that hands each batch over in two pieces, cut where it is told."""

    def __init__(self, backend: Backend, choose: Callable[[int], int]) -> None:
        self._backend = backend
        self._choose = choose

    def open(self, header: Header, deliver: Deliver) -> Session:
        session, choose = self._backend.open(header, deliver), self._choose

        class Cutting:
            def send(self, ops: Sequence[AnyOp]) -> None:
                at = choose(len(ops))
                for piece in (ops[:at], ops[at:]):
                    if piece:
                        session.send(piece)

            end, cancel = staticmethod(session.end), staticmethod(session.cancel)

        return Cutting()


def singly(backend: Backend, header: Header, ops: Sequence[AnyOp]) -> dict[str, Any]:
    """The same operations, each sent by itself."""
    finished: dict[str, Any] = {}
    ended: Future[Ended] = Future()

    def deliver(event: Event) -> None:
        if isinstance(event, Finished):
            finished[event.op] = answer(event)
        elif isinstance(event, Ended):
            ended.set_result(event)

    session = backend.open(header, deliver)
    for op in ops:
        if not (isinstance(op, Close) and op.now):
            session.send([op])
    session.end()
    assert ended.result(WAIT).kind == ""
    return finished


@pytest.mark.parametrize("name", CASES)
def test_on_the_mock(name):
    expected, body = by_body(name, rt.Mock(ANSWERS))
    result, plan, _ = by_plan(name, rt.Mock(ANSWERS))
    assert result == expected
    assert_same(name, told(plan), told(body))
    assert_same(name, answers(plan), answers(body))


@pytest.mark.model
@pytest.mark.parametrize("name", CASES)
def test_on_the_engine(engine, name):
    expected, body = by_body(name, engine)
    result, plan, run = by_plan(name, engine)
    assert result == expected
    assert_same(name, told(plan), told(body))
    assert_same(name, answers(plan), answers(body))
    assert_same(name, singly(engine, plan.header, plan.ops), answers(body))
    assert isinstance(run, PlanRun) == CASES[name][3]


@pytest.mark.model
@pytest.mark.parametrize("name", CASES)
def test_cut_anywhere(engine, name):
    """Batches are cut at every place where there are few, at seeded ones where there are many."""
    expected, body = by_body(name, engine)
    most = max(len(told(body)), 1)
    places = range(1, most) if most <= 4 else random.Random(name).sample(range(1, most), 3)
    for place in places:
        result, plan, _ = by_plan(name, Cut(engine, lambda size, at=place: min(at, size)))
        assert result == expected, place
        assert_same(name, answers(plan), answers(body))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[3]])
def test_whole_ones_go_in_one_batch_up_to_the_first_decision(name):
    program, static, given, _ = CASES[name]
    plan = program.compile(**static)
    assert plan.whole
    run = plan.run(**given, backend=rt.Mock(ANSWERS))
    run.result(WAIT)
    assert run.batches == 1, "what follows a decision here is the result alone"
