"""Plans: running them, what they cost, keeping them."""

from __future__ import annotations

import asyncio
import json
import statistics
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ramet as rt
from ramet.frontend.backends.engine import Engine
from ramet.frontend.ir import Finished, Fork, Started
from ramet.frontend.plan_file import written
from ramet.frontend.plan_run import PlanRun

WAIT = 60.0
RULES = "You read reviews of products. Be short and exact, and judge the product alone. "


@rt.function(temperature=0)
def review(s: rt.State, text: str, max_tokens: int = 12) -> dict[str, str]:
    s.system(RULES)
    s.user(f"Review: {text}\nWhat is said of the product, in one sentence that a buyer can use?")
    points = s.fork(["price", "quality"])
    for point in points:
        point.user(f"And of its {point.item}?")
        point.reply(name="said", max_tokens=max_tokens)
    label = s.select(["good", "bad"], name="label")
    if label.get() == "bad":
        s += " because "
        s.gen(name="why", max_tokens=max_tokens)
        return {"label": "bad", "why": s["why"], "price": points[0]["said"]}
    return {"label": "good", "price": points[0]["said"], "quality": points[1]["said"]}


def mock(label: str = "good") -> rt.Mock:
    return rt.Mock({"label": label, "said": "a b c", "why": "it broke"})


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine("random:tiny", in_process=True, threads=1, kv_tokens=8192) as started:
        yield started


# --- running ---


@pytest.mark.parametrize(("label", "batches"), [("good", 1), ("bad", 2)])
def test_one_batch_up_to_the_decision_and_one_for_the_outcome(label, batches):
    plan = review.compile()
    run = plan.run("fine", backend=mock(label))
    assert isinstance(run, PlanRun)
    assert run.result(WAIT) == review.using(backend=mock(label))("fine").result(WAIT)
    assert run.batches == batches
    assert run.usage.calls == (3 if label == "good" else 4)
    assert sum(isinstance(event, Finished) for event in run.events()) == run.usage.calls


def test_it_can_be_awaited_and_followed():
    plan = review.compile()

    async def main() -> tuple[Any, int]:
        run = plan.run("fine", backend=mock())
        count = sum([isinstance(event, Finished) async for event in run.aevents()])
        return await run, count

    result, count = asyncio.run(main())
    assert result["label"] == "good"
    assert count == 3


def test_arguments_are_checked():
    plan = review.compile()
    for args, kwargs, message in [
        ((), {}, "give text"),
        (("a", "b"), {}, "2 arguments for 1"),
        (("a",), {"text": "b"}, "given twice"),
        (("a",), {"max_tokens": 3}, "was compiled in as 12"),
        (("a",), {"tekst": 3}, "did you mean text"),
        ((3,), {}, "must be a str"),
    ]:
        with pytest.raises(rt.PlanError, match=message):
            plan.run(*args, **kwargs, backend=mock())
    with pytest.raises(rt.PlanError, match="row 1: text=2"):
        plan.batch(["a", 2], backend=mock())


def test_settings_of_the_program_count():
    plan = review.using(backend=mock("bad"), seed=5).compile()
    run = plan.run("x")
    assert run.result(WAIT)["label"] == "bad"
    assert run.seed == 5


def test_batch():
    plan = review.compile()
    rows: list[Any] = ["a", {"text": "b"}, ("c",)]
    batch = plan.batch(rows, backend=mock(), seed=3)
    assert [row["label"] for row in batch.result()] == ["good"] * 3
    assert len({run.seed for run in batch.runs}) == 3
    assert plan.observed.runs == 3


def test_a_failed_operation_is_the_runs_error():
    plan = review.compile()
    for name in ("said", "label"):
        failing = rt.Mock({"label": "bad", "said": "x", "why": "y"}, fail={name: "broken glass"})
        with pytest.raises(rt.GenerationError, match="broken glass") as caught:
            plan.run("x", backend=failing).result(WAIT)
        assert caught.value.where.startswith("test_plan.py:")


def test_a_typed_text_that_is_cut_short():
    @rt.function
    def number(s: rt.State) -> int:
        value = s.gen(list[int], name="n", max_tokens=3).get()
        s.gen(name="after", max_tokens=1)
        return 1 if value is None else 2

    plan = number.compile()
    assert plan.whole, "`is` cannot be seen, and a list is not None"
    assert plan.run(backend=rt.Mock({"n": "[1, 2]", "after": "x"})).result(WAIT) == 2
    with pytest.raises(rt.TruncatedError):
        plan.run(backend=rt.Mock({"n": "[1, 2, 3, 4, 5, 6]", "after": "x"})).result(WAIT)


def test_cancel_and_timeout():
    plan = review.compile()
    pending = rt.Mock({"label": "good", "said": rt.Mock.PENDING})
    run = plan.run("x", backend=pending)
    run.cancel()
    with pytest.raises(rt.Aborted):
        run.result(WAIT)
    with pytest.raises(rt.ProgramTimeout):
        plan.run("x", backend=pending, timeout=0.05).result(WAIT)
    waiting = plan.run("x", backend=pending)
    with pytest.raises(rt.ProgramTimeout):
        waiting.result(timeout=0.01)
    assert not waiting.done
    waiting.cancel()
    assert "failed" in repr(waiting) or not waiting.done


def test_a_lost_backend():
    backend = mock()
    backend.close()
    with pytest.raises(rt.TransportError):
        review.compile().run("x", backend=backend)


# --- the prefix ---


@pytest.mark.model
def test_the_prefix_is_computed_once(engine):
    plan = review.compile()
    engine.flush_cache()
    prefix = plan.warm(engine)
    assert prefix.chars == len(RULES) + len("Review: ")
    assert prefix.tokens is not None and prefix.tokens > 10
    run = plan.run("It fell apart.", backend=engine)
    run.result(WAIT)
    first = next(event for event in run.events() if isinstance(event, Started))
    assert first.cached_tokens >= prefix.tokens - 1, "all but the token at the edge to the argument"
    assert plan.prefix().tokens is None


def test_the_prefix_ends_where_paths_or_arguments_differ():
    @rt.function
    def styles(s: rt.State, formal: bool, q: str) -> str:
        s += "Answer " + ("at length: " if formal else "at once: ") + q
        return s.gen(max_tokens=1).get()

    [op] = styles.compile().prefix().ops
    assert op.parts == ("Answer at ",)

    @rt.function
    def none(s: rt.State, q: str) -> str:
        s += q + " and so on"
        return s.gen(max_tokens=1).get()

    assert none.compile().prefix(rt.Mock("")) == none.compile().warm(rt.Mock(""))
    assert none.compile().prefix().ops == ()


# --- estimates and advice ---


def errors_after(plan: rt.Plan, rows: list[str], backend: Any, warm: int) -> dict[str, float]:
    """Median relative errors of what was expected of runs that came after `warm` others."""
    found: dict[str, list[float]] = {"prompt": [], "generated": []}
    for index, row in enumerate(rows):
        estimate = plan.estimate(row)
        run = plan.run(row, backend=backend, seed=index)
        run.result(WAIT)
        if index >= warm:
            assert estimate.learned == index
            actual = {"prompt": run.usage.prompt_tokens, "generated": run.usage.generated_tokens}
            for name, value in actual.items():
                found[name].append(abs(getattr(estimate, name) - value) / max(value, 1))
    return {name: statistics.median(errors) for name, errors in found.items()}


def rows(count: int) -> list[str]:
    words = ["the", "handle", "broke", "after", "a", "week", "and", "nobody", "answered", "my", "letters"]
    return [" ".join(words[(k * 3) % 7 : (k * 3) % 7 + 3 + k % 9]) + "." for k in range(count)]


def test_estimates_on_the_mock():
    answers = {
        "said": lambda prompt, var: "word " * (6 + len(prompt) % 4),
        "label": lambda prompt, var: "bad" if len(prompt) % 4 == 0 else "good",
        "why": "it is what it is",
    }
    errors = errors_after(review.compile(), rows(24), rt.Mock(answers), 8)
    assert errors["prompt"] <= 0.2
    assert errors["generated"] <= 0.2


@pytest.mark.model
def test_estimates_on_the_engine(engine):
    errors = errors_after(review.compile(max_tokens=8), rows(14), engine, 5)
    assert errors["prompt"] <= 0.2
    assert errors["generated"] <= 0.2


def test_what_an_estimate_says():
    plan = review.compile()
    before = plan.estimate("fine")
    assert before.learned == 0
    assert before.complete
    assert before.width == 3, "two branches and the choice"
    assert before.generated_max == 36, "the worse path: two branches and the reason"
    assert before.shared > 0
    assert before.critical_path <= before.generated
    for _ in range(3):
        plan.run("fine", backend=mock("good")).result(WAIT)
    after = plan.estimate("fine")
    assert (after.learned, after.generated, after.calls) == (3, 6, 3.0)
    assert after.critical_path == 3
    assert plan.observed.outcomes != {}


def test_advice():
    advice = review.compile().advice()
    assert [a.message.partition(":")[0] for a in advice] == ["constant text stands behind the argument 'text'"]
    assert advice[0].tokens >= 8

    @rt.function
    def splices(s: rt.State) -> str:
        first = s.gen(name="first", max_tokens=2).get()
        s += f"again {first}"
        return s.gen(max_tokens=2).get()

    assert "append its handle" in splices.compile().advice()[0].message


# --- files ---


def test_save_and_load(tmp_path):
    plan = review.compile()
    plan.run("fine", backend=mock()).result(WAIT)
    path = tmp_path / "review.json"
    plan.save(path)
    loaded = rt.Plan.load(path)
    assert loaded.document == plan.document
    assert msgspec.to_builtins(loaded.observed) == msgspec.to_builtins(plan.observed)
    assert loaded.run("x", backend=mock("bad")).result(WAIT) == plan.run("x", backend=mock("bad")).result(WAIT)
    assert loaded.estimate("x") == plan.estimate("x")


def test_a_loaded_plan_with_breaks_refuses_to_run():
    @rt.function
    def breaks(s: rt.State) -> str:
        return s.gen(max_tokens=1).get().strip()

    loaded = rt.Plan.loads(breaks.compile().dumps())
    with pytest.raises(rt.PlanError, match=r"graph break at test_plan.py:\d+: Python calls strip"):
        loaded.run(backend=mock())


def changed(**changes: Any) -> bytes:
    return json.dumps({**json.loads(review.compile().dumps()), **changes}).encode()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "no saved plan"),
        (b"{}", "no saved plan"),
        (b"[" * 100_000, "no saved plan"),
        (b"\xff\xfe", "no saved plan"),
        (changed(format=2), "format=2"),
        (changed(ramet="0.0.0.0"), "ramet='0.0.0.0'"),
        (changed(digest="0" * 64), "digest"),
        (changed(content={}), "digest"),
        (changed(code="x"), "no saved plan"),
    ],
)
def test_what_is_no_plan_is_refused(raw, message):
    with pytest.raises(rt.PlanError, match=message):
        rt.Plan.loads(raw)


def document(**changes: Any) -> bytes:
    """A file with a right digest over a document that does not hang together."""
    plan = review.compile()
    return written(msgspec.structs.replace(plan.document, **changes), plan.observed)


def test_documents_that_do_not_hang_together():
    nodes = review.compile().document.nodes
    first, last = nodes[0], nodes[-1]
    unforked = tuple(step for step in first.steps if not isinstance(step.op, Fork))
    loop = msgspec.structs.replace(first, end=msgspec.structs.replace(first.end, nodes=(0, 0)))
    for changes, message in [
        ({"nodes": ()}, "nodes: 0"),
        ({"nodes": (loop, *nodes[1:])}, "does not lead forwards"),
        ({"nodes": (*nodes, last)}, "outcome of one decision"),
        ({"params": ()}, "parameter 'text' that it does not have"),
        ({"nodes": (msgspec.structs.replace(first, steps=unforked), *nodes[1:])}, "stands on no sequence"),
        ({"nodes": (msgspec.structs.replace(first, steps=first.steps * 2), *nodes[1:])}, "twice"),
        ({"nodes": (msgspec.structs.replace(first, steps=()), *nodes[1:])}, "before it is there|no sequence"),
    ]:
        with pytest.raises(rt.PlanError, match=message):
            rt.Plan.loads(document(**changes))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_file_that_was_changed_anywhere_is_refused(data):
    raw = SAVED
    at = data.draw(st.integers(0, len(raw) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda b: b != raw[at]))
    damaged = raw[:at] + bytes([byte]) + raw[at + 1 :]
    try:
        loaded = rt.Plan.loads(damaged)
    except rt.PlanError:
        return
    assert loaded.document == rt.Plan.loads(raw).document, "another spelling of the same JSON"


SAVED = review.compile().dumps()
