"""Where failures surface: at the reader, once, with what is known."""

import traceback

import pytest

import ramet as rt
from ramet.frontend.ir import Gen


def test_a_failure_names_line_branch_prompt_and_cause():
    def answer(prompt, var):
        raise ValueError("no idea")

    @rt.function
    def body(s):
        s += "A long prompt. " * 10
        branch = s.fork(1)[0]
        branch += "the tail" + rt.gen("x")
        return branch["x"]

    with pytest.raises(rt.GenerationError, match="ValueError: no idea") as caught:
        body.using(backend=rt.Mock(answer))().result(10)
    error = caught.value
    assert error.where.startswith("test_errors.py:")
    assert error.branch == "0.1.b0"
    assert error.prompt_tail.endswith("prompt. the tail")
    assert len(error.prompt_tail) == 80
    assert "at test_errors.py:" in str(error)


def test_a_failure_poisons_only_what_depends_on_it():
    @rt.function
    def body(s):
        good, bad = s.fork(2)
        bad += rt.gen("bad")
        bad += rt.gen("after")
        good += rt.gen("good")
        good += " and " + good.value("good")
        other = s.fork(1)[0]
        other += "uses " + bad.value("bad") + rt.gen("x")
        with pytest.raises(rt.GenerationError, match="depends on") as caught:
            other["x"]
        assert caught.value.__cause__.message == "broken"
        return good.text()

    mock = rt.Mock("fine", fail={"bad": "broken"})
    assert body.using(backend=mock)().result(10) == "fine and fine"


def test_an_unread_failure_surfaces_at_the_result():
    @rt.function
    def body(s):
        s += rt.gen("x")
        s += rt.gen("y")  # depends on it: no failure of its own
        return 1

    with pytest.raises(rt.GenerationError, match="broken"):
        body.using(backend=rt.Mock("", fail={"x": "broken"}))().result(10)


def test_several_unread_failures_are_a_group():
    @rt.function
    def body(s):
        for branch in s.fork(["a", "b", "c"]):
            branch += rt.gen(branch.item)

    with pytest.raises(ExceptionGroup) as caught:
        body.using(backend=rt.Mock("", fail={"a": "first", "c": "third"}))().result(10)
    assert sorted(error.message for error in caught.value.exceptions) == ["first", "third"]


def test_a_failure_that_was_read_does_not_come_back():
    @rt.function
    def body(s):
        s += rt.gen("x")
        s += rt.gen("y")
        try:
            s["y"]
        except rt.GenerationError:
            return "handled"

    assert body.using(backend=rt.Mock("", fail={"x": "broken"}))().result(10) == "handled"


def test_a_failing_host_function_is_a_tool_error_with_its_cause():
    @rt.function
    def body(s):
        value = s.call(int, s.gen(name="x"))
        s += "got " + value
        s += rt.gen("y")
        other = s.fork(1)[0]
        other += rt.gen("z")
        with pytest.raises(rt.ToolError, match=r"int raised ValueError: invalid literal.*test_errors\.py") as caught:
            value.get()
        assert isinstance(caught.value.__cause__, ValueError)
        for branch, name in ((s, "y"), (other, "z")):
            with pytest.raises(rt.GenerationError, match="which failed: int raised ValueError") as poisoned:
                branch[name]
            assert poisoned.value.__cause__ is caught.value
        return "handled"

    mock = rt.Mock("not a number")
    assert body.using(backend=mock)().result(10) == "handled"
    assert mock.prompts == [""]  # what depended on the tool was never sent


def test_an_unread_tool_error_surfaces():
    @rt.function
    def body(s):
        s.call(int, "x")

    with pytest.raises(rt.ToolError, match="int raised ValueError"):
        body.using(backend=rt.Mock(""))().result(10)


def test_a_failed_argument_fails_the_call_with_its_own_error():
    calls = []

    @rt.function
    def body(s):
        result = s.call(calls.append, s.gen(name="x"))
        with pytest.raises(rt.GenerationError, match="broken"):
            result.get()
        return "handled"

    assert body.using(backend=rt.Mock("", fail={"x": "broken"}))().result(10) == "handled"
    assert calls == []


def test_branches_wait_for_a_slow_tool_without_holding_each_other():
    import threading

    release = threading.Event()

    @rt.function
    def body(s):
        slow, quick = s.fork(2)
        slow += "slow " + slow.call(release.wait, 10).map(lambda _: "tool") + rt.gen("a")
        grandchild = slow.fork(1)[0]
        grandchild += rt.gen("c")
        quick += rt.gen("b")
        assert quick["b"] == "x"
        assert not slow.value("a").done
        release.set()
        return slow.text(), grandchild.text()

    result = body.using(backend=rt.Mock("x"))().result(20)
    assert result == ("slow toolx", "slow toolxx")


def test_a_join_waits_for_a_branch_that_waits_for_a_tool():
    import threading

    release = threading.Event()

    @rt.function
    def body(s):
        branches = s.fork(2)
        for branch in branches:
            branch += "[" + branch.call(lambda: release.wait(10) and "tool") + "]"
        branches.join("concat")
        s += rt.gen("x")
        release.set()
        return s.text()

    assert body.using(backend=rt.Mock("!"))().result(20) == "[tool][tool]!"


def test_a_join_of_a_poisoned_branch_fails():
    @rt.function
    def body(s):
        branches = s.fork(2)
        branches[0] += "fine"
        branches[1] += "[" + branches[1].call(int, "x") + "]"
        branches.join("concat")
        s += rt.gen("x")
        return s["x"]

    with pytest.raises(rt.GenerationError, match="which failed: int raised ValueError"):
        body.using(backend=rt.Mock("!"))().result(10)


def test_gather_raises_one_or_a_group():
    @rt.function
    def body(s):
        a, b, c = (branch.gen(name=branch.item) for branch in s.fork(["a", "b", "c"]))
        with pytest.raises(rt.GenerationError, match="first"):
            rt.gather(a, b)
        with pytest.raises(rt.GenerationError, match="third"):
            c.get()
        with pytest.raises(ExceptionGroup):
            rt.gather(a, b, c)
        return rt.gather(b)

    mock = rt.Mock("fine", fail={"a": "first", "c": "third"})
    assert body.using(backend=mock)().result(10) == ["fine"]


def test_operations_that_a_backend_refuses():
    class Refusing(rt.Mock):
        def open(self, header, deliver):
            session = super().open(header, deliver)

            def refuse(batch):
                raise rt.ConstraintError("this place has no roles")

            session.send = refuse
            return session

    @rt.function
    def body(s):
        s.user("x")
        return s.reply().get()

    with pytest.raises(rt.ConstraintError, match="this place has no roles") as caught:
        body.using(backend=Refusing("x"))().result(10)
    assert caught.value.where.startswith("test_errors.py:")


def test_an_operation_that_a_backend_refuses_fails_alone():
    class Picky(rt.Mock):
        def open(self, header, deliver):
            session = super().open(header, deliver)
            send = session.send

            def pick(batch):
                for op in batch:
                    if isinstance(op, Gen) and op.sampling.max_tokens == 99:
                        raise rt.ContextOverflow("99 tokens do not fit")
                send(batch)

            session.send = pick
            return session

    @rt.function
    def body(s):
        good, bad = s.fork(2)
        bad += rt.gen("a", max_tokens=99)
        bad += rt.gen("b")
        deeper = bad.fork(1)[0]
        deeper += rt.gen("c")
        good += rt.gen("d") + " and "
        other = s.fork(1)[0]
        other += bad.value("a") + rt.gen("e")
        with pytest.raises(rt.ContextOverflow, match=r"99 tokens.*test_errors\.py.*branch 0\.0\.b1"):
            bad["a"]
        for branch, name in ((bad, "b"), (deeper, "c"), (other, "e")):
            with pytest.raises(rt.ContextOverflow, match="which failed: 99 tokens do not fit"):
                branch[name]
        return good["d"]

    mock = Picky("fine")
    assert body.using(backend=mock)().result(10) == "fine"
    assert len(mock.prompts) == 1


def test_a_variable_of_a_branch_is_named_where_it_is():
    @rt.function
    def body(s):
        branches = s.fork(3)
        for branch in branches:
            branch += rt.gen("x")
        branches.gather("x")
        return s["x"]

    handle = body.using(backend=rt.Mock("y"))()
    with pytest.raises(rt.UnknownVariable, match=r"branch 0\.0\.b0 and 2 more defined it: read it there, gather it"):
        handle.result(10)


def test_a_group_says_its_first_error_and_shows_no_frames_of_the_language():
    def fail(number):
        raise ValueError(number)

    @rt.function
    def body(s):
        values = [s.call(fail, number) for number in range(2)]
        for value in values:
            value.future.exception(10)
        return rt.gather(*values)

    with pytest.raises(ExceptionGroup, match="the first: ToolError: fail raised ValueError: 0") as caught:
        body.using(backend=rt.Mock("y"))().result(10)
    files = [trace.name for trace in traceback.extract_tb(caught.value.__traceback__)]
    assert files[-1] == "body"


def test_a_batch_says_how_far_it_is():
    batch = rt.function(lambda s, q: q).using(backend=rt.Mock("y")).batch([{"q": 1}, {"q": 2}])
    assert batch.result() == [1, 2]
    assert repr(batch) == "<Batch of '<lambda>': 2 of 2 rows done>"
