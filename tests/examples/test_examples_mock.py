"""Every example on the Mock backend: its result, and its structure: how many calls, which branches, what overlaps."""

from __future__ import annotations

import ast
import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ramet as rt
from ramet import examples
from ramet.examples import cascade as cascade_module
from ramet.examples.best_of_n import best_of_n
from ramet.examples.cascade import ask, cascade
from ramet.examples.few_shot_classify import few_shot_classify
from ramet.examples.llm_judge import DIMENSIONS, llm_judge
from ramet.examples.map_reduce_summary import map_reduce_summary
from ramet.examples.multi_turn_chat import multi_turn_chat
from ramet.examples.react_agent import INTRODUCTION, calculate, lookup, react_agent
from ramet.examples.self_consistency import self_consistency
from ramet.examples.self_refine import self_refine
from ramet.examples.skeleton_of_thought import skeleton_of_thought
from ramet.examples.subproblem_graph import GRAPH, Subproblem, subproblem_graph
from ramet.examples.tree_of_thought import tree_of_thought

WAIT = 20.0  # seconds until a test gives up on a run that hangs


def until_started(run: rt.Run[object], count: int) -> tuple[list[str], Iterator[rt.Event]]:
    """Follow a run until `count` calls have started: their variables' sequences, and the events to go on with."""
    events = run.events()
    started: list[str] = []
    while len(started) < count:
        event = next(events)
        if isinstance(event, rt.Started):
            started.append(event.seq)
        assert not isinstance(event, rt.Failed | rt.Ended), event
    return started, events


def forks(run: rt.Run[object]) -> list[int]:
    """How many branches each fork had, in the order in which they were carried out."""
    return [len(event.into) for event in run.events() if isinstance(event, rt.Forked)]


def calls(run: rt.Run[object]) -> Counter[str]:
    return Counter(event.var for event in run.events() if isinstance(event, rt.Finished))


def test_skeleton_of_thought():
    outline = "1. Write less\n2. Test more\n3. Talk often"
    mock = rt.Mock({"outline": outline, "body": ["b0", "b1", "b2"]})
    run = skeleton_of_thought.using(backend=mock)("How?", points=3)
    assert run.result(WAIT) == "Write less\nb0\n\nTest more\nb1\n\nTalk often\nb2"
    assert forks(run) == [3]
    assert calls(run) == {"outline": 1, "body": 3}
    assert all(prompt.startswith(mock.prompts[0] + outline) for prompt in mock.prompts[1:])


def test_skeleton_of_thought_expands_all_points_at_once():
    mock = rt.Mock({"outline": "1. a\n2. b\n3. c", "body": rt.Mock.PENDING})
    run = skeleton_of_thought.using(backend=mock)("How?", points=3)
    started, _ = until_started(run, 4)
    assert len(set(started[1:])) == 3, "three branches run while none is answered"
    for text in ("x", "y", "z"):
        mock.release("body", text)
    assert run.result(WAIT) == "a\nx\n\nb\ny\n\nc\nz"


def test_skeleton_of_thought_takes_any_outline():
    run = skeleton_of_thought.using(backend=rt.Mock({"outline": "", "body": "b"}))("How?", points=2)
    assert run.result(WAIT) == "(nothing)\nb\n\n(nothing)\nb"


def test_tree_of_thought_goes_on_from_the_best():
    def rating(prompt: str, var: str) -> str:
        return "5" if "step-3" in prompt or ("step-1" in prompt and "step-4" not in prompt) else "2"

    steps = iter(f"step-{k}" for k in range(100))
    mock = rt.Mock({"step": lambda prompt, var: next(steps), "rating": rating, "answer": "42"})
    run = tree_of_thought.using(backend=mock)("Cross the bridge.", depth=2, width=3, keep=2)
    assert run.result(WAIT) == "42"
    assert calls(run) == {"step": 3 + 6, "rating": 3 + 6, "answer": 1}
    text = run.text()
    assert "step-1" in text, "the best first step is on the path"
    assert "step-3" in text, "and the best second one below it"
    assert "How promising" not in text, "ratings are given on branches of their own"


def test_tree_of_thought_rates_a_level_at_once():
    mock = rt.Mock({"step": rt.Mock.PENDING, "rating": "3", "answer": "done"})
    run = tree_of_thought.using(backend=mock)("P", depth=1, width=4, keep=1)
    started, _ = until_started(run, 4)
    assert len(set(started)) == 4
    for k in range(4):
        mock.release("step", f"s{k}")
    assert run.result(WAIT) == "done"
    assert "s0" in run.text(), "of equals the first"


def test_multi_turn_chat_keeps_the_conversation():
    mock = rt.Mock(["one", "two", "three"])
    run = multi_turn_chat.using(backend=mock)(["q1", "q2", "q3"])
    assert run.result(WAIT) == ["one", "two", "three"]
    assert all(later.startswith(earlier) for earlier, later in zip(mock.prompts, mock.prompts[1:], strict=False))
    assert [message["content"] for message in run.messages()[1:]] == ["q1", "one", "q2", "two", "q3", "three"]


def test_multi_turn_chat_streams_each_character_once():
    run = multi_turn_chat.using(backend=rt.Mock(["a fine answer", "b"]))(["q1", "q2"])
    pieces = [event.text for event in run.events() if isinstance(event, rt.Token)]
    assert "".join(pieces) == "a fine answerb"
    assert len(pieces) > 2


def test_self_consistency_votes():
    mock = rt.Mock({"reasoning": ["so 84", "I say 80", "7 x 12 = 84", "84", "no idea, 12"]})
    run = self_consistency.using(backend=mock)("How many?", samples=5)
    assert run.result(WAIT) == (84, "so 84")
    assert forks(run)[0] == 5
    assert len(set(mock.prompts)) == 1, "all chains go on from one prefix"
    assert run.text().endswith("so 84<|end|>\n"), "and the text from a chain that won"


def test_best_of_n_goes_on_from_the_best():
    mock = rt.Mock(
        {"answer": ["a", "b", "c"], "grade": lambda prompt, var: "5" if "b<" in prompt else "2", "shorter": "s"}
    )
    run = best_of_n.using(backend=mock)("Why?", candidates=3)
    assert run.result(WAIT) == (rt.Best("b", 1, 5.0), "s")
    assert calls(run) == {"answer": 3, "grade": 3, "shorter": 1}
    assert "Grade" not in run.text()
    assert best_of_n.using(backend=rt.Mock("x"))("Why?", candidates=2, judged=False).result(WAIT)[0].score == -0.5


def test_self_refine_revises_until_the_critic_is_content():
    verdicts = iter(["too long.", "good."])
    mock = rt.Mock({"version": ["v0", "v1"], "verdict": lambda prompt, var: next(verdicts), "advice": " Cut it."})
    run = self_refine.using(backend=mock)("Write!", rounds=4)
    assert run.result(WAIT) == rt.Settled("v1", 1, True)
    assert [message["content"] for message in run.messages()[3:]] == [
        "Is this text good as it is, or should it be changed? Then name one change.",
        "It is too long. Cut it.",
        "Write the text again, with this change.",
        "v1",
    ]


def test_llm_judge_merges_its_branches():
    mock = rt.Mock({"why": [f"why-{name}" for name in DIMENSIONS], "score": ["3", "4", "5", "1"], "report": "fine"})
    run = llm_judge.using(backend=mock)("Trees are good.")
    verdict = run.result(WAIT)
    assert verdict.scores == dict(zip(DIMENSIONS, (3, 4, 5, 1), strict=True))
    assert verdict.report == "fine"
    assert forks(run) == [len(DIMENSIONS)]
    assert calls(run) == {"why": 4, "score": 4, "report": 1}
    assert "structure: why-structure (1 of 5)" in mock.prompts[-1]
    assert "Score:" not in mock.prompts[-1], "the branches' own text stays in the branches"


def test_few_shot_classify_batches_over_a_shared_prefix():
    mock = rt.Mock(
        {"label": lambda prompt, var: " negative" if "bad" in prompt.rsplit("Review:", 1)[1] else " positive"}
    )
    rows = [{"review": "a bad thing"}, {"review": "a nice thing"}]
    labels = few_shot_classify.using(backend=mock).batch(rows).result()
    assert labels == ["negative", "positive"]
    assert len({prompt.rsplit("Review:", 1)[0] for prompt in mock.prompts}) == 1


def test_map_reduce_summary_reduces_what_was_mapped():
    mock = rt.Mock({"partial": lambda prompt, var: f"<{prompt.split('<|end|>')[-2].split()[-1]}>", "summary": "all"})
    run = map_reduce_summary.using(backend=mock)("a b c d e f", parts=3)
    assert run.result(WAIT) == "all"
    assert calls(run) == {"partial": 3, "summary": 1}
    assert "- <b>\n- <d>\n- <f>" in mock.prompts[-1]


def test_map_reduce_summary_maps_at_once():
    mock = rt.Mock({"partial": rt.Mock.PENDING, "summary": "all"})
    run = map_reduce_summary.using(backend=mock)("a b c d", parts=4)
    started, _ = until_started(run, 4)
    assert len(set(started)) == 4
    for k in range(4):
        mock.release("partial", str(k))
    assert run.result(WAIT) == "all"


def test_react_agent_uses_its_tools():
    answers = {
        "thought": [" I need the depth.", " I know."],
        "tool": ["lookup", "finish"],
        "input": [" mariana", " 10935 metres"],
    }
    mock = rt.Mock(answers)
    run = react_agent.using(backend=mock)("How deep?")
    assert run.result(WAIT) == "10935 metres"
    transcript = run.text().removeprefix(INTRODUCTION)
    assert "Action: lookup\nInput: mariana\nObservation: The Mariana Trench is 10935 metres deep.\n" in transcript
    assert forks(run) == [], "the transcript is one sequence"


def test_react_agent_gives_up():
    mock = rt.Mock({"thought": "hm", "tool": "calculate", "input": "1 + 1"})
    run = react_agent.using(backend=mock)("?", max_steps=2)
    assert run.result(WAIT) == "gave up"
    assert run.text().count("Observation: 2\n") == 2


@pytest.mark.parametrize(
    ("text", "value"), [("2 + 3", "5"), ("say 7*6 now", "42"), ("1 / 0", "Division by zero."), ("9 / 2", "4.5")]
)
def test_calculator(text, value):
    assert calculate(text) == value


@pytest.mark.parametrize("tool", [lookup, calculate])
@pytest.mark.parametrize("text", ["", "\n", "zzz", "1 + ", "9" * 4000 + " * " + "9" * 4000])
def test_tools_are_total(tool, text):
    assert isinstance(tool(text), str)


def test_cascade_stops_at_the_first_model_that_is_sure():
    small, large = rt.Mock("small", logprob=-0.2), rt.Mock("large", logprob=-0.1)
    answer = cascade("?", [small, large], threshold=-0.5)
    assert (answer.text, answer.model, large.prompts) == ("small", 0, [])


def test_cascade_asks_the_larger_model_when_the_small_one_is_unsure():
    small, large = rt.Mock("small", logprob=-2.0), rt.Mock("large", logprob=-3.0)
    answer = cascade("?", [small, large], threshold=-0.5)
    assert (answer.text, answer.model, answer.confidence) == ("large", 1, -3.0)


def test_cascade_takes_an_empty_answer_for_unsure():
    answer = cascade("?", [rt.Mock(""), rt.Mock("words")])
    assert (answer.text, answer.model) == ("words", 1)
    with pytest.raises(ValueError, match="at least one"):
        cascade("?", [])
    assert ask.using(backend=rt.Mock("x"))("?").result(WAIT).text == "x"


def test_subproblem_graph_overlaps_what_is_independent():
    mock = rt.Mock({"answer": rt.Mock.PENDING})
    run = subproblem_graph.using(backend=mock)(GRAPH)
    started, events = until_started(run, 3)
    assert len(set(started)) == 3, "sun, water and soil need nothing and run together"
    assert not any("Known about" in prompt for prompt in mock.prompts), "nothing starts before its premises are known"
    for answer in ("light", "wetness", "depth"):
        mock.release("answer", answer)
    assert next(event for event in events if isinstance(event, rt.Started)).seq not in started
    mock.release("answer", "slowly")
    mock.release("answer", "south")
    answers = run.result(WAIT)
    assert list(answers) == list(GRAPH)
    assert answers["growth"] == "slowly"
    assert answers["plan"] == "south"
    assert "Known about growth: slowly\nKnown about soil: " in mock.prompts[-1]


def test_subproblem_graph_refuses_a_circle():
    circle = {"a": Subproblem("?", ("b",)), "b": Subproblem("?", ("a",))}
    with pytest.raises(ValueError, match="cycle"):
        subproblem_graph.using(backend=rt.Mock("x"))(circle).result(WAIT)


FILES = sorted(Path(examples.__path__[0]).glob("*.py"))
PROGRAMS = [path for path in FILES if path.stem not in ("__init__", "parse", "demo")]


def test_all_programs_of_the_list_are_here():
    names = "best_of_n cascade durable few_shot_classify json_extract llm_judge map_reduce_summary multi_turn_chat"
    names += " react_agent self_consistency self_refine skeleton_of_thought subproblem_graph tool_agent"
    names += " tree_of_thought typed_judge"
    assert sorted(path.stem for path in PROGRAMS) == names.split()


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_each_runs_by_itself(path):
    """A main() under the usual guard, and sizes as keyword arguments."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert isinstance(tree.body[-1], ast.If)
    assert ast.unparse(tree.body[-1].test) == "__name__ == '__main__'"
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert not functions["main"].args.args
    if path.stem != "few_shot_classify":
        assert any(arg.arg == "max_tokens" for node in functions.values() for arg in node.args.args)


def test_main_prints_answers(monkeypatch, capsys):
    """`cascade`'s main on two engines, with the Mock in their place."""
    monkeypatch.setattr(rt, "Engine", lambda model="default": rt.Mock("Paris"), raising=False)
    monkeypatch.setattr("sys.argv", ["cascade"])
    main: Callable[[], None] = cascade_module.main
    main()
    assert "Paris" in capsys.readouterr().out
    assert inspect.signature(main).parameters == {}
