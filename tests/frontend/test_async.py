"""Async bodies, async readers, and both kinds mixed."""

import asyncio
import gc
import threading

import pytest

import ramet as rt

PENDING = rt.Mock.PENDING


@rt.function
async def ask(s: rt.State, question: str) -> str:
    s.user(question)
    first = s.reply(name="a")
    second = await s.call(str.upper, first)
    s.tool(second)
    return await s.reply(name="b")


def test_an_async_body_outside_any_loop():
    with rt.using(rt.Mock({"a": "one", "b": "two"})):
        handle = ask("q")
        assert handle.result(10) == "two"
        assert "ONE" in handle.text()
        assert "".join(handle.text_iter("a")) == "one"


def test_an_async_body_runs_in_the_callers_loop():
    seen = []

    @rt.function
    async def body(s):
        seen.append(asyncio.get_running_loop())
        await asyncio.sleep(0)
        return await s.gen(name="x")

    async def main():
        seen.append(asyncio.get_running_loop())
        return await body.using(backend=rt.Mock("hi"))()

    assert asyncio.run(main()) == "hi"
    assert seen[0] is seen[1]


def test_async_readers():
    async def main():
        with rt.using(rt.Mock({"a": "one two", "b": "x"})):
            handle = ask("q")
            pieces = [piece async for piece in handle.text_async_iter("a")]
            pairs = [pair async for pair in handle.text_async_iter("a", return_meta_data=True)]
            events = [event async for event in handle.aevents()]
            return pieces, pairs, len(events), await handle, await handle.atext(), await handle.amessages()

    pieces, pairs, count, result, text, messages = asyncio.run(main())
    assert pieces == ["one", " two"] or "".join(pieces) == "one two"
    assert "".join(text for text, _ in pairs) == "one two"
    assert pairs[-1][1]["finish_reason"] == {"type": "stop"}
    assert count > 6
    assert result == "x"
    assert text.endswith("x<|end|>\n")
    assert [m["role"] for m in messages] == ["user", "assistant", "tool", "assistant"]


@pytest.mark.parametrize(
    "read",
    [
        lambda s, v: v.get(),
        lambda s, v: s["x"],
        lambda s, v: f"{v}",
        lambda s, v: s.text(),
        lambda s, v: s.messages(),
        lambda s, v: s.sync(),
        lambda s, v: rt.gather(v),
    ],
)
@pytest.mark.parametrize("answer", [PENDING, "ready"])
def test_reading_without_await_in_an_async_body_says_await(read, answer):
    @rt.function
    async def body(s):
        value = s.gen(name="x")
        with pytest.raises(rt.StateError, match=r"use `await`.*test_async\.py"):
            read(s, value)
        mock.release("x", "ready")
        assert await value == "ready"
        return value.get(), s["x"], f"{value}"

    mock = rt.Mock(answer)
    handle = body.using(backend=mock)()
    assert handle.result(10) == ("ready", "ready", "ready")


def test_waiting_for_a_run_in_its_own_loop_says_await():
    async def main():
        handle = ask.using(backend=rt.Mock("x"))("q")
        with pytest.raises(rt.StateError, match="use `await`"):
            handle.result()
        return await handle

    assert asyncio.run(main()) == "x"


def test_a_sync_program_can_be_read_in_a_notebooks_loop():
    @rt.function
    def body(s):
        s += rt.gen("x")
        return s["x"]

    async def cell():  # a notebook runs its cells inside a loop
        return body.using(backend=rt.Mock("x"))().result(10)

    assert asyncio.run(cell()) == "x"


def test_sync_and_async_programs_call_each_other():
    @rt.function
    async def inner(s, word):
        s += word
        return await s.gen(name="x")

    @rt.function
    def middle(s, word):
        return inner(word).result(10) + "m"

    @rt.function
    async def outer(s):
        return [await middle("a"), *await asyncio.gather(inner("b"), inner("c"))]

    def answer(prompt, var):
        return prompt * 2

    assert outer.using(backend=rt.Mock(answer))().result(10) == ["aam", "bb", "cc"]


def test_async_host_functions_run_in_the_bodys_loop():
    @rt.function
    async def body(s):
        loop = asyncio.get_running_loop()

        async def tool(text):
            await asyncio.sleep(0)
            return text + "!", asyncio.get_running_loop() is loop

        return await s.call(tool, s.gen(name="x"))

    assert body.using(backend=rt.Mock("hi"))().result(10) == ("hi!", True)


def test_async_host_functions_of_sync_bodies():
    async def tool(text):
        await asyncio.sleep(0)
        return text + "!"

    @rt.function
    def body(s):
        return s.call(tool, s.gen(name="x")).get(10), s.gen(name="y").map(tool).get(10)

    assert body.using(backend=rt.Mock("hi"))().result(10) == ("hi!", "hi!")


def test_branches_and_gathering_in_async_bodies():
    @rt.function
    async def body(s):
        branches = s.fork(3)
        branches += lambda i: f"{i}" + rt.gen("x")
        first = await branches.agather("x")
        second = await rt.agather(*[branch.value("x") for branch in branches])
        branches.join()
        return first, second, await s.value("x")

    result = body.using(backend=rt.Mock(lambda p, v: p[-1]))().result(10)
    assert result == (["0", "1", "2"],) * 3


def test_cancelling_an_async_program_cancels_its_task():
    cancelled = threading.Event()
    begun = threading.Event()

    @rt.function
    async def body(s):
        begun.set()
        try:
            await asyncio.Event().wait()  # nothing of ramet's
        finally:
            cancelled.set()

    mock = rt.Mock("x")
    handle = body.using(backend=mock)()
    assert begun.wait(10)
    handle.cancel()
    with pytest.raises(rt.Aborted):
        handle.result(10)
    assert cancelled.wait(10)
    assert mock.info()["programs"] == 0


def test_a_loop_that_ends_takes_its_programs_with_it():
    mock = rt.Mock(PENDING)
    handles = []

    @rt.function
    async def body(s):
        return await s.gen(name="x")

    async def main():
        handles.append(body.using(backend=mock)())
        await asyncio.sleep(0)

    asyncio.run(main())
    gc.collect()
    with pytest.raises(rt.Aborted, match="cancelled"):
        handles[0].result(10)
    assert mock.info()["programs"] == 0


def test_a_cancelled_reader_leaves_the_program_alone():
    async def main():
        mock = rt.Mock(PENDING)

        @rt.function
        async def body(s):
            return await s.gen(name="x")

        handle = body.using(backend=mock)()

        async def read():
            return await handle

        reader = asyncio.create_task(read())
        await asyncio.sleep(0)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        mock.release("x", "still here")
        return await handle

    assert asyncio.run(main()) == "still here"


def test_async_timeouts():
    @rt.function
    async def body(s):
        with pytest.raises(rt.ProgramTimeout):
            await s.gen(name="x", timeout=0.01)
        return await s.gen(name="y")

    with pytest.raises(rt.ProgramTimeout, match="longer"):
        body.using(backend=rt.Mock(PENDING), timeout=0.1)().result(10)


def test_many_async_programs_need_no_threads():
    @rt.function
    async def body(s, i):
        s += str(i)
        return await s.gen(name="x")

    async def main():
        handles = [body(i) for i in range(200)]
        counted = threading.active_count()
        return counted, await asyncio.gather(*handles)

    with rt.using(rt.Mock(lambda p, v: p)):
        before = threading.active_count()
        counted, results = asyncio.run(main())
    assert results == [str(i) for i in range(200)]
    assert counted <= before + 2
