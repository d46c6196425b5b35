"""Threads of host functions: order, bound, errors, and that they keep no process alive."""

import gc
import signal
import subprocess
import sys
import threading
import weakref

import pytest

from ramet.frontend.workers import Workers

WAIT = 20.0


def test_calls_give_what_they_return_or_raise():
    workers = Workers(2, "w")

    def fail():
        raise KeyError("x")

    assert workers.submit(lambda: 3).result(WAIT) == 3
    with pytest.raises(KeyError):
        workers.submit(fail).result(WAIT)
    assert workers.submit(lambda: 4).result(WAIT) == 4


@pytest.mark.parametrize("limit", [1, 3])
def test_at_most_so_many_at_a_time_and_all_in_order(limit):
    workers, running, most, order = Workers(limit, "w"), 0, 0, []
    lock, go_on, full = threading.Lock(), threading.Event(), threading.Semaphore(0)

    def work(index):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            order.append(index)
        full.release()
        go_on.wait(WAIT)
        with lock:
            running -= 1

    futures = [workers.submit(lambda index=index: work(index)) for index in range(20)]
    for _ in range(limit):  # as many as may run do run beside each other
        assert full.acquire(timeout=WAIT)
    assert running == limit
    go_on.set()
    for future in futures:
        future.result(WAIT)
    assert most == limit
    assert order == list(range(20)) if limit == 1 else sorted(order) == list(range(20))


def test_a_thread_is_used_again_and_holds_nothing_of_its_last_call():
    class Big:
        pass

    workers, names = Workers(8, "w"), set()
    for _ in range(5):
        big = Big()
        gone = weakref.ref(big)
        workers.submit(lambda big=big: names.add(threading.current_thread().name)).result(WAIT)
        workers._idle.acquire(timeout=WAIT)  # the thread waits again
        workers._idle.release()
        del big
        gc.collect()
        assert gone() is None
    assert names == {"w-0"}


def test_a_cancelled_call_does_not_run():
    workers, go_on, ran = Workers(1, "w"), threading.Event(), []
    first = workers.submit(lambda: go_on.wait(WAIT))
    second = workers.submit(lambda: ran.append(1))
    assert second.cancel()
    go_on.set()
    assert first.result(WAIT)
    assert workers.submit(lambda: "after").result(WAIT) == "after"
    assert not ran


SLEEPER = """
import sys, threading, ramet as rt

def tool():
    print("inside", flush=True)
    threading.Event().wait(600)

@rt.function
def body(s):
    return s.call(tool).get()

run = body.using(backend=rt.Mock())()
{then}
"""


@pytest.mark.parametrize("then", ["run.result()", "sys.stdin.read()"], ids=["Ctrl-C in result()", "the script ends"])
def test_a_tool_that_does_not_return_keeps_no_process_alive(then):
    command = [sys.executable, "-P", "-c", SLEEPER.format(then=then)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout is not None and child.stdout.readline() == "inside\n"
            if then == "run.result()":
                child.send_signal(signal.SIGINT)
            _, said = child.communicate(timeout=WAIT)
        finally:
            child.kill()
    assert child.returncode == (-signal.SIGINT if then == "run.result()" else 0)
    assert ("KeyboardInterrupt" in said) == (then == "run.result()")
