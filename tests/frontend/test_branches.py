"""Forks, joins, copies, adoption."""

import threading

import pytest

import ramet as rt
from ramet.frontend import outbox
from ramet.frontend.execution import Execution
from ramet.frontend.ir import Close, Fork, Header, Join, Sampling


class Recorder(rt.Mock):
    """A mock that keeps the operations it was sent."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.ops = []
        self.batches = []

    def open(self, header, deliver):
        session = super().open(header, deliver)
        send = session.send

        def record(batch):
            self.ops.extend(batch)
            self.batches.append(list(batch))
            send(batch)

        session.send = record
        return session


def run(body, answers="answer", backend=None):
    handle = rt.function(body).using(backend=backend or rt.Mock(answers)).run()
    handle.result(10)
    return handle


def test_fork_over_a_sequence_gives_each_branch_its_item():
    def body(s):
        s += "root "
        branches = s.fork(["a", "b"])
        for branch in branches:
            branch += branch.item + rt.gen("x")
        assert len(branches) == 2
        assert branches[-1].item == "b"
        return branches.gather("x"), [branch.text() for branch in branches]

    mock = rt.Mock(lambda prompt, var: f"<{prompt}>")
    assert run(body, backend=mock).result() == (["<root a>", "<root b>"], ["root a<root a>", "root b<root b>"])


def test_broadcast_takes_text_lists_and_callables():
    def body(s):
        branches = s.fork(2)
        branches += "x"
        branches += ["1", "2"]
        branches += lambda i: str(i) + rt.gen("g")
        branches[0] += "!"
        return [branch.text() for branch in branches]

    assert run(body, "g").result() == ["x10g!", "x21g"]


def test_join_gathers_variables_in_order_and_with_does_it():
    def body(s):
        with s.fork(3) as branches:
            branches += lambda i: str(i) + rt.gen("x")
        assert s["x"] == ["0", "1", "2"]
        return s.value("x").metas()

    assert len(run(body, lambda prompt, var: prompt[-1]).result()) == 3


def test_join_appends_the_exact_text_of_the_branches():
    def body(s):
        s += "root:"
        branches = s.fork(2)
        branches += lambda i: f" {i}=" + rt.gen("x")
        branches.join("concat")
        s += " end"
        return s.text()

    backend = Recorder("v")
    assert run(body, backend=backend).result() == "root: 0=v 1=v end"
    kinds = [type(op) for op in backend.ops]
    assert kinds.index(Join) < kinds.index(Close)
    assert sum(kind is Close for kind in kinds) == 2


def test_join_with_a_template_reuses_the_values():
    def body(s):
        branches = s.fork(["taste", "smell"])
        branches += rt.gen("why") + rt.gen("score")
        branches.join("concat", template="{item}: {why} ({score})\n")
        return s.text()

    assert run(body, {"why": "good", "score": "7"}).result() == "taste: good (7)\nsmell: good (7)\n"


def test_nested_forks():
    def body(s):
        outer = s.fork(2)
        for branch in outer:
            inner = branch.fork(2)
            inner += lambda i: str(i) + rt.gen("x")
            inner.join()
        outer.join()
        return s["x"]

    assert run(body, lambda prompt, var: prompt[-1]).result() == [["0", "1"], ["0", "1"]]


def test_adopt_goes_on_from_the_end_of_a_branch():
    def body(s):
        s += "q "
        branches = s.fork(2)
        branches += lambda i: f"{i} " + rt.gen("x")
        s.adopt(branches[1])
        s += " then " + rt.gen("y")
        return s["x"], s.text(), branches[0].text()

    result = run(body, {"x": "X", "y": "Y"}).result()
    assert result == ("X", "q 1 X then Y", "q 0 X")


def test_copy_plain_and_as_a_block():
    def body(s):
        s += "a"
        other = s.copy()
        other += "b" + rt.gen("x")
        with s.copy() as third:
            third += "c" + rt.gen("y")
        assert "x" not in s
        return s.text(), other.text(), s["y"]

    assert run(body, "!").result() == ("a", "ab!", "!")


def test_fork_of_nothing_is_empty():
    def body(s):
        branches = s.fork([])
        branches.join("concat")
        return s.fork(0).gather("x"), len(branches), s.text()

    assert run(body).result() == ([], 0, "")


def test_a_branch_that_is_dropped_is_closed():
    def body(s):
        branch = s.fork(1)[0]
        branch += rt.gen("x")
        del branch
        s += rt.gen("y")
        assert s["y"] == "answer"
        s += rt.gen("z")

    backend = Recorder("answer")
    run(body, backend=backend)
    [fork] = [op for op in backend.ops if isinstance(op, Fork)]
    assert [op.seq for op in backend.ops if isinstance(op, Close)] == list(fork.into)


def test_what_is_recorded_together_arrives_together(monkeypatch):
    monkeypatch.setattr(outbox, "QUIET", 60.0)  # the machine may be slow; a read ends the wait

    def body(s):
        s += "root"
        branches = s.fork(300)
        branches += lambda i: f"{i}" + rt.gen("x")
        branches += rt.gen("y")
        branches.gather("y")

    backend = Recorder("answer")
    run(body, backend=backend)
    assert len(backend.batches[0]) == 2 + 300 * 3
    assert len([op for batch in backend.batches[1:] for op in batch if not isinstance(op, Close)]) == 0


class Clock:
    """The time and the timers of an outbox, moved by the test."""

    def __init__(self):
        self.now = 100.0
        self.timers = []

    def monotonic(self):
        return self.now

    def later(self, seconds, act):
        self.timers.append((self.now + seconds, act))
        return lambda: None

    def advance(self, seconds):
        end = self.now + seconds
        while due := [timer for timer in self.timers if timer[0] <= end]:
            timer = min(due, key=lambda timer: timer[0])
            self.timers.remove(timer)
            self.now = max(self.now, timer[0])
            timer[1]()
        self.now = end


def recorded_every(gap, count, monkeypatch):
    """The milliseconds after the first at which operations left that were recorded `gap` seconds apart."""
    clock, backend, sent = Clock(), Recorder("answer"), []
    monkeypatch.setattr(outbox, "time", clock)
    monkeypatch.setattr(outbox, "HOST", clock)
    execution = Execution("body", Header(), backend)
    execution.outbox.session.send = lambda ops: sent.append((round((clock.now - 100.0) * 1000), len(ops)))
    for _ in range(count):
        execution.add_gen(execution.record.root, "", Sampling(), "")
        clock.advance(gap)
    clock.advance(1.0)
    assert clock.timers == []  # no timer goes on without operations
    backend.close()
    return sent


def test_operations_leave_when_none_follows_for_two_milliseconds(monkeypatch):
    assert recorded_every(0.001, 1, monkeypatch) == [(2, 1)]
    assert recorded_every(0.001, 30, monkeypatch) == [(31, 30)]
    assert recorded_every(0.003, 3, monkeypatch) == [(2, 1), (5, 1), (8, 1)]


def test_operations_wait_at_most_fifty_milliseconds_for_others(monkeypatch):
    sent = recorded_every(0.001, 120, monkeypatch)
    assert [count for _, count in sent] == [50, 50, 20] or [count for _, count in sent] == [51, 51, 18]
    assert sent[0][0] == 50


def test_operations_are_handed_over_without_a_read():
    reached = threading.Event()

    def answer(prompt, var):
        reached.set()
        return "x"

    def body(s):
        s += rt.gen("x")
        assert reached.wait(10)  # nothing was read

    run(body, answer)


def test_300_forks_make_no_300_threads():
    counts = []

    def body(s):
        branches = s.fork(300)
        branches += lambda i: str(i) + rt.gen("x")
        counts.append(threading.active_count())
        return branches.gather("x")

    before = threading.active_count()
    assert len(run(body).result()) == 300
    assert counts[0] <= before + 3  # the body's, the mock's, the process's event loop


@pytest.mark.parametrize("mode", ["gather_variable", "concat", "concate_and_append"])
def test_joined_branches_are_closed(mode):
    def body(s):
        branches = s.fork(1)
        branches.join(mode)
        branches[0].gen()

    with pytest.raises(rt.StateError, match="was joined"):
        run(body)


def test_failures_of_branches():
    def body(s):
        branches = s.fork(["a", "b", "c"])
        for branch in branches:
            branch += rt.gen(branch.item)
            branch["x"] = branch.value(branch.item)
        both = branches.gather("x", on_error="return")
        assert isinstance(both[0], rt.GenerationError)
        assert both[1] == "fine"
        with pytest.raises(ExceptionGroup) as caught:
            branches.gather("x")
        assert len(caught.value.exceptions) == 2
        with pytest.raises(rt.StateError, match="a branch of its fork failed"):
            branches[1].gen()
        return True

    assert run(body, backend=rt.Mock("fine", fail={"a": "no", "c": "no"})).result()


def test_one_failed_branch_raises_its_own_error():
    def body(s):
        branches = s.fork(["a", "b"])
        for branch in branches:
            branch["x"] = branch.gen(name=branch.item)
        branches.join()
        return s["x"]

    with pytest.raises(rt.GenerationError, match="broken") as caught:
        run(body, backend=rt.Mock("fine", fail={"a": "broken"}))
    assert caught.value.branch == "0.0.b0"
