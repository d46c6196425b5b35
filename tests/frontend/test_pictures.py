"""Pictures of plans: the text tree, the Mermaid flowchart, the page. What programs say is shown, and obeyed nowhere."""

from __future__ import annotations

import html
import importlib
import pkgutil
import re
from dataclasses import dataclass
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ramet as rt
import ramet.examples
from ramet.frontend.compile import Compiled
from ramet.frontend.ir import ROOT, Select
from ramet.frontend.mermaid import escaped
from ramet.frontend.planned import Const, Decision, Document, Node, Return, Step, Use
from ramet.frontend.program import Program
from ramet.frontend.trace import short

NASTY = 'a "q" <b>b</b> #35; & `c` {x} [y] (z) | end; %% c\n\\n --> ~ *b* _i_ $m$ \x1b[31m'


@dataclass
class Answer:
    label: str
    said: list[str]


@rt.function(temperature=0)
def review(s: rt.State, text: str, most: int = 12) -> Answer:
    s.system("You read reviews.")
    s.user(f"Review: {text}")
    points = s.fork(["price", "quality"])
    for point in points:
        point.user(f"And of its {point.item}?")
        point.reply(name="said", max_tokens=most)
    s.assistant("It is " + rt.select("label", choices=["good", "bad"]))
    if s["label"] == "bad":
        s.user("Why?")
        s.reply(int, name="why", max_tokens=3)
        return Answer("bad", [f"{s['why']}.", points[0]["said"]])
    return Answer("good", points.gather("said"))


TREE = """\
review(text): 2 paths
├─ system 'You read reviews.' [~4 tokens]
├─ user 'Review: {text}' [~2 tokens]
├─ fork into 2
│  ├─ branch b0
│  │  ├─ user 'And of its price?' [~4 tokens]
│  │  └─ assistant: gen said [at most 12 tokens]
│  └─ branch b1
│     ├─ user 'And of its quality?' [~5 tokens]
│     └─ assistant: gen said [at most 12 tokens]
├─ assistant begin
├─ text 'It is ' [~2 tokens]
├─ select label 'good' | 'bad'
├─ assistant end
└─ label?
   ├─ 'good'
   │  └─ return Answer(label='good', said=[{b0.said}, {b1.said}])
   └─ 'bad'
      ├─ user 'Why?' [~1 token]
      ├─ assistant: gen why regex -?(?:0|[1-9][0-9]{0,18})[ \\n]? [at most 3 tokens]
      └─ return Answer(label='bad', said=['{why}.', {b0.said}])"""


def test_the_tree():
    assert review.compile().show() == TREE


def test_it_shows_what_runs_have_shown():
    plan = review.compile()
    mock = rt.Mock({"said": "a b c", "label": "good", "why": "1"})
    plan.run("fine", backend=mock).result(60)
    assert "assistant: gen said [~3 tokens, at most 12 tokens]" in plan.show()


@rt.function
def wide(s: rt.State, q: str) -> str:
    s += NASTY + q
    branches = s.fork(300)
    for branch in branches:
        branch.gen(name="v", max_tokens=3)
    branches.join("concat")
    pick = s.select(['"', "<script>alert(1)</script>"], name="pick").get()
    return s.gen().get().strip() if pick == '"' else "]"


def test_branches_that_are_alike_are_drawn_once():
    lines = wide.compile().show().splitlines()
    assert "│  └─ branches b0 to b299, 300 alike" in lines
    assert "├─ join of 300" in lines
    assert any(re.search(r"graph break at test_pictures.py:\d+: Python calls strip\(\)", line) for line in lines)
    assert "gen [no limit]" in "".join(lines)


def test_branches_that_go_on_after_a_decision():
    @rt.function
    def later(s: rt.State) -> str:
        [branch] = s.fork(1)
        branch += "a"
        if s.select(["x", "y"], name="pick").get() == "x":
            branch.gen(name="more", max_tokens=2)
            return branch["more"]
        return "y"

    assert "   │  ├─ branch b0\n   │  │  ├─ text 'a' \n".replace(" \n", "\n") in later.compile().show() + "\n"
    assert flow(later.compile().mermaid()).labels["n3"]


@rt.function
def stairs(s: rt.State) -> str:
    """Operations of different paths share their ids: 0.2 is `late` on one, a text on the other."""
    if s.select(["yes", "no"], name="early").get() == "yes":
        s += "Well: "
    if s.select(["a", "b"], name="late").get() == "a":
        return f"{s['late']}, {s['early']}"
    return s.gen(name="made", max_tokens=2).get()


STAIRS = """\
stairs(): 4 paths
├─ select early 'yes' | 'no'
└─ early?
   ├─ 'yes'
   │  ├─ text 'Well: ' [~2 tokens]
   │  ├─ select late 'a' | 'b'
   │  └─ late?
   │     ├─ 'a'
   │     │  └─ return '{late}, {early}'
   │     └─ 'b'
   │        ├─ gen made [at most 2 tokens]
   │        └─ return {made}
   └─ 'no'
      ├─ select late 'a' | 'b'
      └─ late?
         ├─ 'a'
         │  └─ return '{late}, {early}'
         └─ 'b'
            ├─ gen made [at most 2 tokens]
            └─ return {made}"""


def test_names_are_those_of_the_path_that_they_stand_on():
    plan = stairs.compile()
    assert plan.show() == STAIRS
    made = list(flow(plan.mermaid()).labels.values())
    assert made.count("late?") == 2 and made.count("return<br>#123;made#125;") == 2
    assert plan.html().count("<b>late?</b>") == 2


# --- Mermaid ---


@dataclass
class Chart:
    labels: dict[str, str]
    arrows: list[tuple[str, str, str]]


LABEL = r"(?:[^\"#<>&`{}\[\]()|;\\%*_~$\n]|\#\d+;|<br>)*"
BEGIN, END = r'(?:\(\["|\(\("|\[\["|\["|\{"|\{\{")', r'(?:"\]\)|"\)\)|"\]\]|"\]|"\}|"\}\})'
NODE = re.compile(rf"  (\w+){BEGIN}({LABEL}){END}:::(\w+)")
ARROW = re.compile(rf'  (\w+) (-->|-\.->)(?:\|"({LABEL})"\|)? (\w+)')


def flow(text: str) -> Chart:
    """A reader of the part of Mermaid that plans are drawn with; refuses everything else."""
    first, *lines = text.splitlines()
    assert first == "flowchart TD"
    chart, classes, used = Chart({}, []), set(), set()
    for line in lines:
        if node := NODE.fullmatch(line):
            assert node[1] not in chart.labels
            chart.labels[node[1]] = node[2]
            used.add(node[3])
        elif arrow := ARROW.fullmatch(line):
            chart.arrows.append((arrow[1], arrow[3] or "", arrow[4]))
        else:
            found = re.fullmatch(r"  classDef (\w+) fill:#\w{6},stroke:#\w{6},color:#\w{6}", line)
            assert found, line
            classes.add(found[1])
    assert used <= classes
    assert {name for source, _, end in chart.arrows for name in (source, end)} == set(chart.labels), "all hang together"
    return chart


def test_the_flowchart():
    chart = flow(review.compile().mermaid())
    by_label = {label: name for name, label in chart.labels.items()}
    fork = by_label["fork into 2"]
    assert [label for source, label, _ in chart.arrows if source == fork] == ["branch b0", "branch b1", ""]
    decision = by_label["label?"]
    assert [label for source, label, _ in chart.arrows if source == decision] == ["'good'", "'bad'"]
    ends = [name for name, label in chart.labels.items() if label.startswith("return")]
    assert [sum(end == name for _, _, end in chart.arrows) for name in ends] == [3, 2], "values come from branches"
    assert len({source for source, _, _ in chart.arrows} | set(ends)) == len(chart.labels), "nothing else ends"


def test_a_flowchart_of_what_means_something_there():
    chart = flow(wide.compile().mermaid())
    assert len(chart.labels) == 10, "300 branches are drawn once"
    shown = [decoded(label) for label in chart.labels.values()]
    assert any("<script>alert(1)</script>" in label for label in shown)
    assert any(label.startswith('a "q" <b>b</b> #35; & `c` {x}') for label in shown)


def decoded(label: str) -> str:
    return re.sub(r"#(\d+);", lambda code: chr(int(code[1])), label.replace("<br>", "\n"))


@given(st.text(max_size=80))
def test_every_label_is_read_as_it_was_meant(text):
    assert re.fullmatch(LABEL, escaped(text))
    meant = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in short(text))
    assert decoded(escaped(text)) == meant


# --- the page ---

TYPED = st.characters(exclude_categories=("Cs", "Co"))  # plans keep private use for themselves
WORD = st.text(TYPED, min_size=1, max_size=6)
TAGS = "html head meta title style body div h1 h2 p b code small details summary ul li span"


class Reader(HTMLParser):
    """Text and tags of a page; refuses what is not closed, and what would fetch or run something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.said = ""

    def handle_starttag(self, tag, attrs):
        assert tag in TAGS.split(), tag
        assert {name for name, _ in attrs} <= {"class", "title", "open", "lang", "charset", "name", "content"}
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            assert "url(" not in data and "@import" not in data
        else:
            self.said += data


def read(page: str) -> str:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader.said


def test_the_page():
    plan = wide.compile()
    said = read(plan.html())
    assert NASTY + "{q}" in said
    assert "'<script>alert(1)</script>'" in said
    assert "gen-without-bound" in said, "what check() finds"
    assert plan.html().startswith("<!doctype html>")
    assert read(plan._repr_html_()) in said
    assert "Nothing found by check()" not in said


def test_the_page_of_a_program_with_nothing_to_say():
    @rt.function
    def plain(s: rt.State, q: str) -> str:
        s += q
        return s.gen(max_tokens=2).get()

    assert "Nothing found by check()" in read(plain.compile().html())


def test_many_outcomes_are_folded():
    @rt.function
    def choose(s: rt.State) -> str:
        label = s.select([f"<{k:03}>" for k in range(60)], name="label").get()
        return "first" if label == "<000>" else label

    page = choose.compile(max_paths=60).html()
    assert "36 more" in page
    assert html.escape("'<059>'") in page
    read(page)


@settings(max_examples=30, deadline=None)
@given(
    st.text(TYPED, max_size=40), st.lists(st.text(TYPED, min_size=1, max_size=6), min_size=1, max_size=3, unique=True)
)
def test_any_text_can_be_drawn(text, choices):
    @rt.function
    def said(s: rt.State, q: str) -> str:
        s.user(text + q)
        s.assistant(rt.select("label", choices=choices))
        return "first" if s["label"] == choices[0] else s["label"]

    plan = said.compile()
    flow(plan.mermaid())
    read(plan.html())
    assert len(plan.show().splitlines()) >= 4 + 2 * len(choices)


EXAMPLES = [
    value
    for module in pkgutil.iter_modules(ramet.examples.__path__)
    for value in vars(importlib.import_module(f"ramet.examples.{module.name}")).values()
    if isinstance(value, Program)
]


@pytest.mark.parametrize("program", EXAMPLES, ids=lambda program: program.__name__)
def test_every_example_can_be_drawn(program):
    plan = program.compile()
    chart = flow(plan.mermaid())
    assert sum(label.startswith("graph break") for label in chart.labels.values()) == len(plan.breaks)
    assert read(plan.html())
    assert plan.show().startswith(f"{plan.name}(")


def test_a_plan_deeper_than_a_stack_can_be_drawn():
    deep = 1200
    nodes = []
    for number in range(deep):
        select = Step(Select(id=f"0.{number}", seq=ROOT, choices=("a", "b"), var=f"v{number}"))
        nodes += [Node((select,), Decision(Use(select.op.id), ("a", "b"), (2 * number + 1, 2 * number + 2)))]
        nodes += [Node((), Return(Const(number)))]
    nodes += [Node((), Return(Const(None)))]
    plan = rt.Plan(Compiled(Document("deep", "deep.py:1", (), {}, tuple(nodes))))
    assert plan.show().count("─ return ") == plan.mermaid().count("<br>None") + deep == deep + 1
    assert f"v{deep - 1}?" in plan.show() and "and so on" in plan.html()
