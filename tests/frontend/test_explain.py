"""EXPLAIN: what runs say of themselves, on records made by hand, on the mock and on the engine."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ramet as rt
from ramet.frontend.backends.engine import Engine
from ramet.frontend.explain import decode_steps, explained
from ramet.frontend.explained import Explanation, Op
from ramet.frontend.facts import Fact, Facts, order
from ramet.frontend.ir import Ended, Meta, Usage
from ramet.frontend.readings import Reading

from ..runtime.engines import WAIT, checked_engine, words
from ..server.browser import browser

PENDING = rt.Mock.PENDING
EVIL = "</script><script>alert(1)</script>' onload=\"x"


@rt.function(temperature=0)
def program(s: rt.State, topic: str = "trees", wait: threading.Event | None = None) -> str:
    """A generation, a host call beside a fork, a join, a choice."""
    s += f"About {topic}. "
    plan = s.gen(name="plan", max_tokens=6, ignore_eos=True)

    def look(text: str) -> str:
        if wait is not None:
            wait.wait(WAIT)
        return text.upper()[:8]

    note = s.call(look, plan)
    branches = s.fork([topic, "bark"])
    for branch in branches:
        branch += " Part: "
        branch += rt.gen("part", max_tokens=8, ignore_eos=True)
    branches[1] += note
    branches[1] += rt.gen("more", max_tokens=4, ignore_eos=True)
    branches.gather("part")
    branches.join("concat")
    s += " Verdict: "
    s += rt.select("verdict", ["good", "bad"])
    s += f" so {s['verdict']}: "
    return s.gen(name="end", max_tokens=3, ignore_eos=True).get()


def by_var(shown: Explanation, var: str) -> Op:
    """The one operation of this variable, or the first."""
    return next(op for op in shown.ops if op.var == var)


# -- by hand


def fact(op: str, kind: str = "gen", **given: Any) -> Fact:
    """An operation that was recorded at 0 and sent at once, unless something else is said."""
    known: dict[str, Any] = {"label": kind, "var": "", "where": "", "text": "x", "status": "done", "error": ""}
    times = {"recorded": 0.0, "sent": 0.0}
    return Fact(op, op.rpartition(".")[0], kind, **{**known, **times, **given})


def went(seconds: float, queued: float = 0.0, first: float = 0.0, steps: tuple[int, int] = (0, 0), **more: Any) -> Meta:
    """How a call of the engine went."""
    return Meta(
        seconds=seconds,
        queued_seconds=queued,
        first_token_seconds=first,
        first_step=steps[0],
        last_step=steps[1],
        completion_tokens=steps[1] - steps[0] + 1,
        **more,
    )


def made(*facts: Fact, now: float, **given: Any) -> Explanation:
    """The explanation of these operations."""
    known = {each.id: each for each in facts}
    order(known)
    parents = {"0": ""} | {path: each.seq for each in facts for path in each.into}
    return explained(Facts("by hand", 7, "done", "", known, parents, {}, now, **given))


def spans(op: Op) -> list[tuple[str, float, float]]:
    return [(s.phase, round(s.begin, 3), round(s.end, 3)) for s in op.segments]


def test_phases_of_a_call() -> None:
    meta = went(seconds=4.0, queued=1.0, first=1.5, steps=(10, 14), memory_seconds=0.25)
    shown = made(fact("0.0", recorded=0.5, sent=1.0, done=5.5, meta=meta), now=6.0)
    [op] = shown.ops
    assert spans(op) == [
        ("python", 0.0, 0.5),
        ("send", 0.5, 1.0),
        ("send", 1.0, 1.5),
        ("queue", 1.5, 2.25),
        ("memory", 2.25, 2.5),
        ("prefill", 2.5, 3.0),
        ("decode", 3.0, 5.5),
    ]
    path = {share.phase: round(share.path, 3) for share in shown.shares}
    assert path == {"python": 1.0, "send": 1.0, "queue": 0.75, "memory": 0.25, "prefill": 0.5, "decode": 2.5}
    assert shown.critical == ("0.0",)
    assert (op.steps, op.queued, op.memory, op.seconds) == (5, 1.0, 0.25, 4.0)


def test_the_chain_that_decided_the_end() -> None:
    """A fork of two; a host call on the first one's value; a join, and the last call behind it."""
    left, right = "0.1.b0", "0.1.b1"
    host = fact("0.2", "put", recorded=0.0, sent=None, host_began=3.0, done=7.0)
    host.need("host", f"{left}.0")
    said = fact(f"{left}.1", "text")
    said.need("host", "0.2")
    shown = made(
        fact("0.0", done=2.0, meta=went(2.0, 0.0, 1.0, (0, 9))),
        fact("0.1", "fork", into=(left, right), done=2.0),
        host,
        fact(f"{left}.0", done=3.0, meta=went(1.0, 0.0, 0.5, (10, 14))),
        said,
        fact(f"{left}.2", done=8.0, meta=went(1.0, 0.0, 0.5, (30, 31))),
        fact(f"{right}.0", done=5.0, meta=went(3.0, 0.0, 0.5, (10, 24))),
        fact("0.3", "join", branches=(left, right), done=8.0),
        fact("0.4", done=9.0, meta=went(1.0, 0.0, 0.5, (32, 34))),
        now=9.5,
    )
    assert shown.critical == ("0.0", f"{left}.0", "0.2", f"{left}.2", "0.3", "0.4")
    assert [op.id for op in shown.ops if op.critical and op.kind == "fork"] == ["0.1"]
    waited = next(op for op in shown.ops if op.id == f"{left}.1").segments
    assert [(s.phase, s.begin, s.end, s.on) for s in waited] == [("wait", 3.0, 7.0, "0.2")]
    assert shown.totals.bound == 10 + 15 + 3  # the other chain, through the slower right branch
    assert sum(share.path for share in shown.shares) == pytest.approx(9.5)
    assert next(share.path for share in shown.shares if share.phase == "host") == pytest.approx(4.0)


def test_python_between_reads() -> None:
    me = (1, 0)
    first = fact("0.0", actor=me, done=2.0, meta=went(2.0, 0.0, 0.5, (0, 3)))
    second = fact("0.1", actor=me, recorded=5.0, sent=5.0, done=6.0, meta=went(1.0, 0.0, 0.5, (4, 7)))
    facts = {each.id: each for each in (first, second)}
    order(facts)
    second.need("read", "0.0")
    reads = [Reading(me, ("0.0",), 0.5, 2.0)]
    shown = explained(Facts("by hand", 7, "done", "", facts, {"0": ""}, {}, 6.0, 6.0, None, reads, me))
    assert [(s.phase, s.begin, s.end) for s in shown.python] == [
        ("python", 0.0, 0.5),
        ("wait", 0.5, 2.0),
        ("python", 2.0, 6.0),
    ]
    assert spans(shown.ops[1])[0] == ("python", 2.0, 5.0)
    assert shown.critical == ("0.0", "0.1")


def test_a_value_of_another_branch() -> None:
    left, right = "0.0.b0", "0.0.b1"
    said = fact(f"{right}.0", "text")
    said.need("value", f"{left}.0")
    shown = made(
        fact("0.0", "fork", into=(left, right), done=0.0),
        fact(f"{left}.0", done=3.0, meta=went(3.0, 0.0, 1.0, (0, 9))),
        said,
        fact(f"{right}.1", done=4.0, meta=went(1.0, 0.0, 0.5, (10, 12))),
        now=4.0,
        ended=Ended(Usage(calls=2, computed_tokens=40, steps=13)),
    )
    assert shown.critical == (f"{left}.0", f"{right}.1")
    assert "waited" not in shown.text().split("text")[0]
    assert (shown.totals.bound, shown.totals.steps, shown.totals.computed) == (13, 13, 40)


def test_a_server_that_tells_tokens_alone() -> None:
    """Its own time is known, where it went is not: until the first text it was busy, then it decoded."""
    meta = Meta(prompt_tokens=9, completion_tokens=4, seconds=3.0)
    shown = made(fact("0.0", recorded=0.5, sent=1.0, started=1.0, first=2.0, done=4.0, meta=meta), now=4.0)
    [op] = shown.ops
    assert spans(op) == [("python", 0.0, 0.5), ("send", 0.5, 1.0), ("busy", 1.0, 2.0), ("decode", 2.0, 4.0)]
    assert (op.first_token, op.seconds, op.queued, op.cached, op.steps) == (1.0, 3.0, None, None, None)


def test_steps_that_a_call_needs() -> None:
    assert decode_steps("gen", Meta(completion_tokens=5, forced_tokens=2, first_step=0)) == 3
    assert decode_steps("gen", Meta(completion_tokens=5, matched=2, tokens=(7, 8), first_step=0)) == 6  # the end token
    assert decode_steps("gen", Meta(completion_tokens=4, forced_tokens=4, first_step=3)) == 1
    assert decode_steps("gen", Meta(completion_tokens=4, forced_tokens=4)) == 0
    assert decode_steps("select", Meta(first_step=4)) == 1


# -- on the mock: what it does not tell is unknown


def test_the_mock_does_not_tell_everything() -> None:
    run = program.using(backend=rt.Mock("one two three"))()
    run.result(WAIT)
    shown = run.explain()
    gen = by_var(shown, "plan")
    assert (gen.generated, gen.cached, gen.computed, gen.steps, gen.queued) == (3, None, None, None, None)
    assert (shown.totals.cached, shown.totals.computed, shown.totals.steps, shown.totals.bound) == (None,) * 4
    assert shown.unit == "characters"
    line = next(line for line in shown.text().splitlines() if "gen plan" in line)
    assert re.search(r" \?  +3  +\?  +\?  +\? ", line)  # cached, generated, computed, steps, queue
    told = json.loads(shown.json())
    assert told["version"] == 1
    assert told["totals"]["cached"] is None
    assert by_var(shown, "look").seconds is not None
    assert [cause.kind for cause in by_var(shown, "look").causes] == ["host"]


def test_a_run_in_progress() -> None:
    hold = threading.Event()
    mock = rt.Mock({"plan": "a plan", "*": PENDING})
    run = program.using(backend=mock)(wait=hold)
    next(event for event in run.events() if type(event).__name__ == "Started" and event.var == "part")
    shown = run.explain()
    assert shown.state == "running"
    assert by_var(shown, "part").status == "running"
    assert by_var(shown, "part").ended is None
    assert by_var(shown, "plan").status == "done"
    assert "(running)" in shown.text()
    assert "running" in shown.html()
    hold.set()
    run.cancel()
    run.sync()
    shown = run.explain()
    assert shown.state == "cancelled"
    assert by_var(shown, "part").status == "failed"
    assert "cancelled" in shown.text()


def test_a_failed_run() -> None:
    mock = rt.Mock("words", fail={"more": "no luck\x1b[2J"})
    run = program.using(backend=mock)()
    with pytest.raises(rt.GenerationError):
        run.result(WAIT)
    shown = run.explain()
    assert shown.state == "failed"
    assert shown.totals.failed >= 1
    assert "no luck" in shown.text()
    assert "\x1b" not in shown.text()
    assert "no luck" in json.loads(shown.json())["error"]


def test_reads_that_are_no_value_are_assumed() -> None:
    """The body follows a stream, and goes on when it has ended: nobody says so, but it is how it must have been."""
    mock = rt.Mock({"slow": PENDING, "*": "done"})
    seen = threading.Event()

    @rt.function
    def body(s: rt.State) -> str:
        s += "Go"
        s += rt.gen("slow")
        seen.set()
        s.text()
        s += "on"
        return s.gen(name="last").get()

    run = body.using(backend=mock)()
    assert seen.wait(WAIT)
    next(event for event in run.events() if type(event).__name__ == "Started")
    mock.release("slow", "came at last")
    run.result(WAIT)
    shown = run.explain()
    slow = by_var(shown, "slow").id
    assert slow in {cause.op for op in shown.ops for cause in op.causes if cause.kind == "assumed"}
    assert "the text" in {segment.on for segment in shown.python if segment.phase == "wait"}


# -- on the engine


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with checked_engine() as started:
        yield started


@pytest.mark.model
def test_figures_of_the_engine(engine: Engine) -> None:
    engine.flush_cache()
    run = program.using(backend=engine)(words(40))
    run.result(WAIT)
    shown = run.explain()
    calls = [op for op in shown.ops if op.kind in ("gen", "select")]
    assert len(calls) == shown.totals.calls == 6
    assert sum(op.computed or 0 for op in calls) == shown.totals.computed == run.usage.computed_tokens
    assert all((op.recomputed, op.retractions, op.forced) == (0, 0, 0) for op in calls)
    assert all((op.prompt or 0) >= (op.cached or 0) for op in calls)
    assert shown.totals.bound == 6 + 8 + 4 + 1 + 3
    assert shown.totals.steps is not None and shown.totals.steps >= shown.totals.bound
    assert all(op.first_token is not None and op.seconds is not None and op.first_token <= op.seconds for op in calls)
    assert shown.critical[-1] == by_var(shown, "end").id
    assert sum(share.path for share in shown.shares) == pytest.approx(shown.totals.seconds)
    assert shown.unit == "tokens"
    [main, *forks] = shown.branches
    plan = by_var(shown, "plan")
    assert {fork.shared for fork in forks} == {float((plan.prompt or 0) + (plan.generated or 0))}
    assert main.length == float((by_var(shown, "end").prompt or 0) + 3)
    assert shown.totals.distinct is not None and shown.totals.computed <= shown.totals.distinct
    kinds = {cause.kind for op in shown.ops for cause in op.causes}
    assert kinds == {"order", "fork", "join", "host", "read"}


@pytest.mark.model
def test_retraction_is_told() -> None:
    """Branches that do not fit together: who gives way computes again, and says so."""

    @rt.function(temperature=0)
    def wide(s: rt.State) -> None:
        s += words(20)
        for index, branch in enumerate(s.fork(4)):
            branch += f"{index} {words(20)}"
            branch += rt.gen("story", max_tokens=60, ignore_eos=True)

    with checked_engine(kv_tokens=224, context=200, policy="lru-fcfs", lease_seconds=0.0) as small:
        run = wide.using(backend=small)()
        run.result(WAIT)
        shown = run.explain()
    totals = shown.totals
    assert totals.retractions is not None and totals.recomputed is not None
    calls = [op for op in shown.ops if op.kind == "gen"]
    assert totals.computed == sum(op.computed or 0 for op in calls)
    assert (totals.recomputed > 0) == (totals.computed > (totals.distinct or 0))
    assert totals.retractions > 0 or any((op.memory or 0.0) > 0 for op in calls)


@pytest.mark.model
def test_text_fits(engine: Engine) -> None:
    plan = program.compile(topic=...)
    before = plan.explain(words(60))
    run = program.using(backend=engine)(words(60))
    run.result(WAIT)
    for shown in (before, run.explain(), run.explain(before)):
        assert max(map(len, shown.text().splitlines())) <= 100
        assert max(map(len, shown.text(80).splitlines())) <= 80
    assert "(est)" in run.explain(before).text()


@pytest.mark.model
def test_a_plan_before_and_after(engine: Engine) -> None:
    @rt.function(temperature=0)
    def judged(s: rt.State, text: str) -> str:
        s += f"Text: {text}. "
        branches = s.fork(3)
        branches += rt.gen("view", max_tokens=5, ignore_eos=True)
        branches.join("concat")
        s += rt.select("verdict", ["good", "bad"])
        if s["verdict"] == "good":
            s += " because "
        s += rt.gen("end", max_tokens=4, ignore_eos=True)
        return s["end"]

    plan = judged.compile()
    before = plan.explain("a tree")
    assert before.state == "planned"
    assert before.totals.bound == 5 + 1 + 4
    assert len([op for op in before.ops if op.critical and op.guess is not None]) == 3
    views = [op.guess for op in before.ops if op.var == "view" and op.guess is not None]
    assert [view.shared > 0 for view in views] == [False, True, True]
    assert any("decision" in note for note in before.notes)
    run = plan.run("a tree", backend=engine)
    run.result(WAIT)
    after = run.explain(before)
    assert after.totals.bound == 10
    assert [op.generated for op in after.ops if op.var == "view"] == [5, 5, 5]
    assert all(op.guess is not None and op.guess.generated == 5 for op in after.ops if op.var == "view")
    assert after.critical[-1] == by_var(after, "end").id
    assert "expected" in after.text()
    assert any(cause.kind == "read" for op in after.ops for cause in op.causes)


# -- the page


class Reader(html.parser.HTMLParser):
    """Tags, their attributes, and the texts of scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script" and data.strip():
            self.scripts.append(data)


def evil() -> Explanation:
    """A run in which every text is markup."""
    run = program.using(backend=rt.Mock(EVIL, fail={"end": EVIL}))(EVIL)
    with pytest.raises(rt.GenerationError):
        run.result(WAIT)
    return run.explain()


def test_the_page_is_escaped_and_self_contained() -> None:
    shown = evil()
    page = shown.html()
    reader = Reader()
    reader.feed(page)
    assert [tag for tag, _ in reader.tags].count("script") == 1
    assert "alert(1)" in page
    assert not any(name.startswith("on") or name in ("src", "href") for _, found in reader.tags for name in found)
    assert not re.search(r"url\(|@import|https?:", page)
    [policy] = [found["content"] or "" for tag, found in reader.tags if tag == "meta" and "http-equiv" in found]
    digest = base64.b64encode(hashlib.sha256(reader.scripts[0].encode()).digest()).decode()
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{digest}'" in policy
    assert json.loads(shown.json())["ops"]


def test_many_branches_are_not_all_shown() -> None:
    @rt.function
    def wide(s: rt.State) -> None:
        s += "Go"
        branches = s.fork(100)
        branches += rt.gen("x")

    run = wide.using(backend=rt.Mock("word"))()
    run.result(WAIT)
    shown = run.explain()
    assert re.search(r"… \d+ more branches", shown.text())
    assert len(shown.text().splitlines()) < 60
    assert len(shown.branches) == 101
    assert "more branches" in shown.html()


@pytest.mark.model
def test_in_a_browser(tmp_path: Path) -> None:
    """No complaint about the policy; zooming stretches the timeline; an operation lights up in all pictures."""
    file = tmp_path / "run.html"
    file.write_text(evil().html(), encoding="utf-8")
    with browser() as tab:
        tab.look(1000, 800)
        tab.open(file.as_uri())
        width = tab.run("document.querySelector('.time').offsetWidth")
        tab.run("document.querySelector('[data-zoom=\"2\"]').click()")
        assert tab.run("document.querySelector('.time').offsetWidth") == pytest.approx(2 * width, rel=0.02)
        tab.run("document.querySelector('[data-zoom=\"0\"]').click()")
        assert tab.run("document.querySelector('.time').offsetWidth") == pytest.approx(width, rel=0.02)
        over = "document.querySelector('.lane i[data-op]').dispatchEvent(new MouseEvent('mouseover', {bubbles: true}))"
        tab.run(over)
        assert tab.run("document.querySelectorAll('.lit').length") >= 1
        assert tab.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        assert tab.complaints() == []
