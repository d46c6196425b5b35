"""The handle on a running program: results, streams, cancelling, limits, resources."""

import gc
import itertools
import signal
import sys
import threading
import time
import weakref

import pytest

import ramet as rt
from ramet.frontend.ir import Ended, Failed, Finished, Started, Token

PENDING = rt.Mock.PENDING


@rt.function
def story(s: rt.State, topic: str) -> str:
    s += f"About {topic}: " + rt.gen("a")
    with s.var_scope("tail"):
        s += " then " + rt.gen("b")
    return s["b"]


def test_result_and_ret_value():
    handle = story.using(backend=rt.Mock({"a": "one two", "b": "three"}))("bees")
    assert handle.result(10) == handle.ret_value == "three"
    assert handle["a"] == "one two"
    assert handle.text() == "About bees: one two then three"
    assert handle.usage.calls == 2
    assert handle.usage.generated_tokens == 3
    assert "done" in repr(handle)


def test_a_run_is_for_reading():
    handle = story.using(backend=rt.Mock("x"))("bees")
    handle.sync()
    with pytest.raises(rt.StateError, match="recorded by the body"):
        handle += "x"
    with pytest.raises(rt.UnknownVariable, match="'a', 'tail', 'b'"):
        handle["nope"]


def test_streaming_yields_each_character_once_to_every_reader():
    answer = "one two  three\nfour"
    handle = story.using(backend=rt.Mock(answer))("bees")
    assert [e.text for e in handle.events() if isinstance(e, Token)][:4] == ["one", " two", "  three", "\nfour"]
    for _ in range(2):
        assert "".join(handle.text_iter("a")) == answer
        assert "".join(handle.text_iter()) == handle.text() == f"About bees: {answer} then {answer}"
        assert "".join(handle.text_iter("tail")) == f" then {answer}"


def test_a_stream_follows_while_the_program_runs():
    mock = rt.Mock({"a": "start", "b": PENDING})
    handle = story.using(backend=mock)("bees")
    stream = handle.text_iter()
    seen = ""
    while "then " not in seen:
        seen += next(stream)
    assert not handle.done
    mock.release("b", "late")
    assert seen + "".join(stream) == "About bees: start then late"


def test_streams_of_values_and_of_nothing():
    @rt.function
    def body(s):
        s["five"] = 5
        branches = s.fork(2)
        branches += rt.gen("x")
        branches.join()

    handle = body.using(backend=rt.Mock("x"))()
    assert list(handle.text_iter("five")) == ["5"]
    handle.sync()
    with pytest.raises(rt.ConstraintError, match="list of 2 values"):
        list(handle.text_iter("x"))
    with pytest.raises(rt.UnknownVariable):
        list(handle.text_iter("y"))


def test_events_reach_every_reader_and_end():
    handle = story.using(backend=rt.Mock("hi"))("bees")
    events = list(handle.events())
    assert list(handle.events()) == events
    assert [type(event) for event in events] == [Started, Token, Finished, Started, Token, Finished, Ended]


def test_a_stream_raises_what_the_program_failed_with():
    @rt.function
    def body(s):
        s += "x" + rt.gen("a")
        raise ValueError("mine")

    handle = body.using(backend=rt.Mock(PENDING))()
    with pytest.raises(ValueError, match="mine"):
        list(handle.text_iter())
    with pytest.raises(ValueError, match="mine"):
        list(handle.events())
    with pytest.raises(rt.Aborted):
        list(handle.text_iter("a"))


def test_a_stream_ends_where_the_body_raised():
    @rt.function
    def body(s):
        s += "text that nothing follows"
        raise ValueError("mine")

    stream = body.using(backend=rt.Mock())().text_iter()
    assert next(stream) == "text that nothing follows"
    with pytest.raises(ValueError, match="mine"):
        next(stream)


def test_cancel_frees_the_session_and_wakes_every_reader():
    mock = rt.Mock(PENDING)
    raised = []

    @rt.function
    def body(s):
        s += rt.gen("x")
        try:
            s["x"]
        except rt.ProgramError as error:
            raised.append(error)
            raise

    handle = body.using(backend=mock)()
    assert next(handle.events()) == Started(op="0.0", seq="0", var="x")
    handle.cancel()
    handle.cancel()
    with pytest.raises(rt.Aborted, match="was cancelled"):
        handle.result(10)
    assert isinstance(list(handle.events())[-1], Ended)
    assert mock.info()["programs"] == 0
    assert handle.error() is not None
    wait_for_threads("ramet-body")
    assert isinstance(raised[0], rt.Aborted)
    assert raised[0].where.startswith("test_run.py:")


def wait_for_threads(prefix):
    for thread in threading.enumerate():
        if thread.name.startswith(prefix):
            thread.join(10)


def test_cancelling_a_program_cancels_those_that_it_called():
    mock = rt.Mock(PENDING)
    inner_runs = []

    @rt.function
    def inner(s):
        s += rt.gen("x")
        return s["x"]

    @rt.function
    def outer(s):
        inner_runs.append(inner())  # no backend named: it runs where its caller runs
        started.set()
        return inner_runs[0].result()

    started = threading.Event()
    handle = outer.using(backend=mock)()
    assert started.wait(10)
    handle.cancel()
    with pytest.raises(rt.Aborted):
        handle.result(10)
    with pytest.raises(rt.Aborted):
        inner_runs[0].result(10)
    assert mock.info()["programs"] == 0


def test_ctrl_c_cancels_the_program():
    mock = rt.Mock(PENDING)

    @rt.function
    def body(s):
        s += rt.gen("x")
        return s["x"]

    def waits(frame):
        return frame is not None and (frame.f_code.co_filename.endswith("waiting.py") or waits(frame.f_back))

    def interrupt():
        main = threading.main_thread().ident
        while not waits(sys._current_frames()[main]):  # until it waits in result(): a few microseconds
            pass
        signal.pthread_kill(main, signal.SIGINT)

    handle = body.using(backend=mock)()
    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        handle.result(10)
    with pytest.raises(rt.Aborted):
        handle.result(10)
    assert mock.info()["programs"] == 0


def test_a_program_timeout_ends_it():
    mock = rt.Mock(PENDING)

    @rt.function
    def body(s):
        s += "tail" + rt.gen("x")
        return s["x"]

    handle = body.using(backend=mock, timeout=0.05)()
    with pytest.raises(rt.ProgramTimeout, match=r"longer than 0\.05 s"):
        handle.result(10)
    assert mock.info()["programs"] == 0


def test_a_wait_with_a_timeout_leaves_the_program_running():
    mock = rt.Mock(PENDING)

    @rt.function
    def body(s):
        value = s.gen(name="x", timeout=0.01)
        with pytest.raises(rt.ProgramTimeout, match=r"'x' did not come within 0\.01 s"):
            value.get()
        mock.release("x", "late")
        return value.get(timeout=10)

    handle = body.using(backend=mock)()
    assert handle.result(10) == "late"


def test_result_with_a_timeout_does_not_end_the_program():
    mock = rt.Mock({"a": PENDING, "b": "x"})
    handle = story.using(backend=mock)("bees")
    with pytest.raises(rt.ProgramTimeout):
        handle.result(0.01)
    mock.release("a", "now")
    assert handle.result(10) == "x"


def test_a_budget_is_a_promise():
    @rt.function
    def body(s, each):
        s.gen(name="a", max_tokens=each)
        s["a"]  # finished: its promise is replaced by what it took
        s.gen(name="b")  # no limit of its own: it gets what is left
        s["b"]
        s.gen(name="c", max_tokens=1)

    mock = rt.Mock("one two three four five six seven eight")
    with pytest.raises(rt.BudgetExceeded, match=r"budget=10 tokens: 10 are generated.*test_run\.py"):
        body.using(backend=mock, budget=10)(4).result(10)
    with pytest.raises(rt.BudgetExceeded, match="11 more do not fit"):
        body.using(backend=mock, budget=10)(11).result(10)


def test_a_finished_run_is_collected_with_its_session():
    mock = rt.Mock("x")
    handle = story.using(backend=mock)("bees")
    handle.result(10)
    wait_for_threads("ramet-story")
    gone = weakref.ref(handle._core.execution)
    del handle
    gc.collect()
    assert gone() is None
    assert mock.info()["programs"] == 0


def test_a_dropped_handle_leaves_the_body_running_to_its_end():
    finished = threading.Event()

    @rt.function
    def body(s):
        s += rt.gen("x")
        assert s["x"] == "now"
        finished.set()

    mock = rt.Mock(PENDING)
    body.using(backend=mock)()
    gc.collect()
    mock.release("x", "now")
    assert finished.wait(10)


def test_a_waiting_program_uses_no_processor_time():
    mock = rt.Mock({"a": PENDING, "b": "x"})
    handles = [story.using(backend=mock)("bees") for _ in range(10)]
    streams = [threading.Thread(target=lambda h=h: list(h.text_iter())) for h in handles]
    for stream in streams:
        stream.start()
    for handle in handles:
        assert isinstance(next(handle.events()), Started)
    before = time.process_time()
    assert not threading.Event().wait(0.5)
    used = time.process_time() - before
    for _ in handles:
        mock.release("a", "y")
    for handle, stream in zip(handles, streams, strict=True):
        assert handle.result(10) == "x"
        stream.join(10)
    assert used < 0.1


def test_a_lost_backend_raises_within_the_timeout():
    mock = rt.Mock({"a": PENDING})
    handle = story.using(backend=mock)("bees")
    assert isinstance(next(handle.events()), Started)
    mock.close()
    with pytest.raises(rt.TransportError, match="was closed"):
        handle.result(10)
    with pytest.raises(rt.TransportError, match="is closed"):
        story.using(backend=mock)("bees")


def test_a_value_that_arrived_before_the_loss_stays_readable():
    @rt.function
    def body(s):
        s += rt.gen("a")
        s["a"]
        s += rt.gen("b")

    mock = rt.Mock({"a": "here", "b": PENDING})
    handle = body.using(backend=mock)()
    started = list(itertools.islice(handle.events(), 4))
    assert isinstance(started[-1], Started)
    mock.close()
    with pytest.raises(rt.TransportError):
        handle.result(10)
    assert handle["a"] == "here"


def test_seeds_repeat_a_run():
    first = story.using(backend=rt.Mock("x"))("bees")
    second = story.using(backend=rt.Mock("x"), seed=first.seed)("bees")
    third = story.using(backend=rt.Mock("x"))("bees")
    assert first.seed == second.seed != third.seed


def test_a_failed_event_is_in_the_stream():
    @rt.function
    def body(s):
        s += rt.gen("x")
        return s.error()

    handle = body.using(backend=rt.Mock(fail={"x": "broken"}))()
    assert isinstance(handle.result(10), rt.GenerationError)
    assert [e.message for e in handle.events() if isinstance(e, Failed)] == ["broken"]
