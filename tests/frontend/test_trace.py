"""A run as rows, tree and page."""

import html.parser
import json

import pytest

import ramet as rt

PENDING = rt.Mock.PENDING


@rt.function
def program(s):
    s.user("<script>alert(1)</script>")
    s += rt.gen("a") + s.call(str.upper, "b & c") + rt.gen("d")
    branches = s.fork(["left", "right"])
    branches += rt.gen("x", max_tokens=2)
    branches.join("concat")
    return s["d"]


def finished(answers="one two three"):
    run = program.using(backend=rt.Mock(answers))()
    run.result(10)
    return run


def test_tree():
    assert finished().tree() == "\n".join(
        [
            "program: done, 4 calls, 10 generated tokens",
            "├─ user '<script>alert(1)</script>'",
            "├─ call upper 'B & C'",
            "├─ gen a 'one two three' [3 tokens, stop]",
            "├─ text 'B & C'",
            "├─ gen d 'one two three' [3 tokens, stop]",
            "├─ fork into 2",
            "│  ├─ branch b0 left",
            "│  │  └─ gen x 'one two' [2 tokens, length]",
            "│  └─ branch b1 right",
            "│     └─ gen x 'one two' [2 tokens, length]",
            "└─ join of 2 'one twoone two'",
        ]
    )


def test_rows_are_json():
    run = finished()
    rows = [json.loads(line) for line in run.trace().json().splitlines()]
    assert rows == run.trace().rows()
    assert {row["seq"] for row in rows} == {"0", "0.7.b0", "0.7.b1"}
    [gen] = [row for row in rows if row["var"] == "d"]
    assert gen["completion_tokens"] == 3
    assert gen["where"].startswith("test_trace.py:")


def test_the_page_is_escaped_and_self_contained():
    page = finished().to_html()

    class Parser(html.parser.HTMLParser):
        def __init__(self):
            super().__init__()
            self.tags, self.text = set(), ""

        def handle_starttag(self, tag, attrs):
            self.tags.add(tag)
            assert not [value for name, value in attrs if name in ("src", "href")]

        def handle_data(self, data):
            self.text += data

    parser = Parser()
    parser.feed(page)
    assert "script" not in parser.tags
    assert "<script>alert(1)</script>" in parser.text
    assert "B & C" in parser.text


def test_a_failing_and_a_running_program():
    @rt.function
    def failing(s):
        s += "x" + rt.gen("a")
        return s["a"]

    run = failing.using(backend=rt.Mock(fail={"a": "broken <b>"}))()
    with pytest.raises(rt.GenerationError):
        run.result(10)
    assert "failing: failed" in run.tree()
    assert "gen a failed: broken <b>" in run.tree()
    assert "broken &lt;b&gt;" in run.to_html()
    mock = rt.Mock({"a": PENDING})
    run = failing.using(backend=mock)()
    next(run.events())
    assert "gen a running ''" in run.tree()
    run.cancel()


def test_the_page_shows_what_failed_and_what_still_runs():
    @rt.function
    def body(s):
        s.user("Hi")
        with s.assistant():
            s += rt.select("mood", ["fine", "bad"])
            for branch in s.fork(["left", "right"]):
                branch += rt.gen(branch.item)

    mock = rt.Mock({"left": PENDING, "*": ""}, fail={"right": "broken <b>"})
    run = body.using(backend=mock)()
    for event in run.events():
        if isinstance(event, rt.Failed):
            break
    page = run.to_html()
    run.cancel()
    assert "gen right failed: broken &lt;b&gt;" in page
    assert "<span class='gen running'" in page
    assert "-0.100 &#x27;fine&#x27;" in page  # the scores of a choice, where one points at it
    assert page.count("<details") == 2
    assert page.count("<div") == page.count("</div>")
