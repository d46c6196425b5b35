"""`State.cancel`: a branch that is stopped while the program goes on."""

import threading

import pytest

import ramet as rt
from ramet.frontend.ir import Close

from .test_branches import Recorder

WAIT = 20.0


def run(body, backend):
    handle = rt.function(body).using(backend=backend)()
    handle.result(WAIT)
    return handle


def test_a_cancelled_branch_stops_and_the_program_goes_on():
    def body(s):
        s += "root"
        slow, fine = s.fork(2)
        pending = slow.gen(name="slow")
        slow.cancel()
        with pytest.raises(rt.Aborted):
            pending.get()
        with pytest.raises(rt.StateError, match="this branch was cancelled"):
            slow += "more"
        slow.cancel()  # once more changes nothing
        return fine.gen(name="fine").get()

    with rt.Mock({"slow": rt.Mock.PENDING, "fine": "yes"}) as mock:
        assert run(body, mock).result() == "yes"
        assert mock.info()["programs"] == 0


def test_it_ends_what_was_forked_below_it():
    def body(s):
        [branch] = s.fork(1)
        [below] = branch.fork(1)
        pending = below.gen(name="slow")
        branch.cancel()
        with pytest.raises(rt.StateError, match="was cancelled"):
            below += "more"
        with pytest.raises(rt.Aborted):
            pending.get()
        return "done"

    with rt.Mock(rt.Mock.PENDING) as mock:
        assert run(body, mock).result() == "done"


def test_it_does_not_wait_for_values_of_the_host():
    """The branch holds a text back that refers to a function still running: what runs before it stops all the same."""
    go_on = threading.Event()

    def body(s):
        [branch] = s.fork(1)
        pending = branch.gen(name="slow")
        branch += branch.call(go_on.wait, WAIT)
        branch.cancel()
        try:
            with pytest.raises(rt.Aborted):
                pending.get()
        finally:
            go_on.set()
        return "done"

    with rt.Mock(rt.Mock.PENDING) as mock:
        assert run(body, mock).result() == "done"


def test_it_is_told_at_once(monkeypatch):
    monkeypatch.setattr("ramet.frontend.outbox.QUIET", 60.0)
    backend = Recorder("x")

    def body(s):
        [branch] = s.fork(1)
        branch.gen(name="x").get()
        branch.cancel()
        return [op.now for op in backend.ops if isinstance(op, Close)]

    assert run(body, backend).result() == [True]


def test_a_program_s_own_state_is_no_branch():
    with pytest.raises(rt.StateError, match="the program's own state: raise an exception, or cancel its Run"):
        run(lambda s: s.cancel(), rt.Mock("x"))
