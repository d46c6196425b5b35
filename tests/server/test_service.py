"""The service on an engine in a thread: calls equal programs offline, limits, deadlines, aborts, whole programs."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from ramet.frontend import ir
from ramet.runtime import messages as m
from ramet.runtime.server.bridge import Bridge, Mailbox
from ramet.runtime.server.call import Caller, Chat, Message, Piece
from ramet.runtime.server.failures import Failure, late
from ramet.runtime.server.running import ALL, Run
from ramet.runtime.server.service import YIELDING

from ..runtime.engines import WAIT, words
from .backstage import ME, TEXT, Stage, call, caller, collect, staged, text_of

pytestmark = pytest.mark.model
LONG = 900


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with staged() as made:
        yield made


def offline(stage: Stage, *ops: ir.AnyOp) -> list[ir.Finished]:
    """What the engine answers to the same program without a server."""
    events: list[ir.Event] = []
    over = threading.Event()

    def deliver(event: ir.Event) -> None:
        events.append(event)
        if isinstance(event, ir.Ended):
            over.set()

    session = stage.engine.open(ir.Header(), deliver)
    session.send(ops)
    session.end()
    assert over.wait(WAIT)
    return sorted((e for e in events if isinstance(e, ir.Finished)), key=lambda e: e.op)


def gen(at: str, seq: str = "0", **sampling: Any) -> ir.Gen:
    fields = {"max_tokens": 8, "ignore_eos": True, "seed": 7, **sampling}
    return ir.Gen(id=at, seq=seq, var="x", sampling=ir.Sampling(**fields))


def refused(stage: Stage, what: Any, who: Caller = ME) -> Failure:
    with pytest.raises(Failure) as caught:
        stage.run(lambda: stage.service.complete(what, who))
    return caught.value


async def quiet(stage: Stage) -> None:
    """Wait until the engine has nothing left (each answer comes after what was ordered before it)."""
    while (await stage.service.stats()).programs:
        continue


def opened(stage: Stage, monkeypatch: pytest.MonkeyPatch, *labels: str) -> list[str]:
    """The names under which the engine gets to know requests of these labels."""
    client = stage.engine._client
    names: list[str] = []
    send = client.send

    def noted(order: m.Order) -> None:
        if isinstance(order, m.OrderOpen):
            names.append(order.name)
        send(order)

    with monkeypatch.context() as patch:
        patch.setattr(client, "send", noted)
        for label in labels:
            stage.run(lambda label=label: stage.service.complete(call(tokens=1), caller(label)))
    return names


# -- calls


def test_requests_are_no_call_sites_of_their_own(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the engine learns of lengths, it learns by name: an id that never comes again would only fill its memory."""
    assert opened(stage, monkeypatch, "r1", "r2") == ["", ""]
    open_run = Run.open
    monkeypatch.setattr(Run, "open", lambda run, header, wanted, alike=None: open_run(run, header, wanted))
    assert opened(stage, monkeypatch, "r1", "r2") == ["r1", "r2"], "the control"


def test_a_call_is_the_program_text_gen(stage: Stage) -> None:
    (one,) = offline(stage, ir.Text(id="0.0", seq="0", parts=(TEXT,)), gen("0.1", logprobs=2))
    what = call(sampling={"logprobs": 2})
    begun, pieces = stage.run(lambda: collect(stage.service, what))
    answer = stage.run(lambda: stage.service.complete(what, ME))
    assert text_of(pieces) == one.value == answer.prompts[0].completions[0].text
    assert [b.prompt_tokens for b in begun] == [one.meta.prompt_tokens]
    last = pieces[-1].meta
    assert last is not None
    assert sum(piece.meta is not None for piece in pieces) == 1
    assert [p for piece in pieces for p in piece.logprobs] == list(last.logprobs) == list(one.meta.logprobs)
    assert last.tokens == one.meta.tokens == answer.prompts[0].completions[0].meta.tokens
    assert (answer.prompt_tokens, answer.completion_tokens) == (one.meta.prompt_tokens, 8)
    assert 0 < answer.cached_tokens <= answer.prompt_tokens
    assert 0 <= answer.queued_seconds <= answer.seconds


def test_choices_are_branches_of_one_fork(stage: Stage) -> None:
    branches = ("0.1.b0", "0.1.b1", "0.1.b2")
    program = [ir.Text(id="0.0", seq="0", parts=(TEXT,)), ir.Fork(id="0.1", seq="0", into=branches)]
    want = [done.value for done in offline(stage, *program, *(gen(f"{b}.0", b) for b in branches))]
    assert len(set(want)) == 3
    what = call(n=3)
    begun, pieces = stage.run(lambda: collect(stage.service, what))
    answer = stage.run(lambda: stage.service.complete(what, ME))
    assert [text_of(pieces, 0, i) for i in range(3)] == want
    assert [done.text for done in answer.prompts[0].completions] == want
    assert len(begun) == 1


def test_prompts_of_one_call_run_side_by_side(stage: Stage) -> None:
    texts = [TEXT, words(5), words(9)]
    alone = [stage.run(lambda t=t: stage.service.complete(call(t), ME)) for t in texts]  # type: ignore[misc]
    together = stage.run(lambda: stage.service.complete(call(texts[0], 8, *texts[1:]), ME))
    begun, pieces = stage.run(lambda: collect(stage.service, call(texts[0], 8, *texts[1:])))
    want = [one.prompts[0].completions[0].text for one in alone]
    assert [p.completions[0].text for p in together.prompts] == want
    assert [text_of(pieces, i) for i in range(3)] == want
    counts = [one.prompt_tokens for one in alone]
    assert [p.begun.prompt_tokens for p in together.prompts] == counts
    assert [b.prompt_tokens for b in sorted(begun, key=lambda b: b.prompt)] == counts


def test_a_chat_is_roles(stage: Stage) -> None:
    messages = (Message("system", "Be brief."), Message("user", "Hello <|im_end|>"), Message("assistant", "Hi, "))
    role = lambda n, who, edge: ir.Role(id=f"0.{n}", seq="0", role=who, edge=edge)  # noqa: E731
    ops: list[ir.AnyOp] = []
    for each in messages:
        ops += [role(len(ops), each.role, "begin"), ir.Text(id=f"0.{len(ops) + 1}", seq="0", parts=(each.content,))]
        if each.role != "assistant":
            ops.append(role(len(ops), each.role, "end"))
    (open_end,) = offline(stage, *ops, gen(f"0.{len(ops)}"))
    going_on = Chat(messages, continue_final=True)
    answer = stage.run(lambda: stage.service.complete(call(going_on), ME))
    assert answer.prompts[0].completions[0].text == open_end.value
    assert answer.prompt_tokens == open_end.meta.prompt_tokens == stage.run(lambda: stage.service.count(going_on))
    (reply,) = offline(stage, *ops[:6], role(6, "assistant", "begin"), gen("0.7"))
    answer = stage.run(lambda: stage.service.complete(call(Chat(messages[:2])), ME))
    assert answer.prompts[0].completions[0].text == reply.value


def test_ids_are_a_prompt_like_text(stage: Stage) -> None:
    service = stage.service
    ids = stage.run(lambda: service.encode(TEXT))
    by_text = stage.run(lambda: service.complete(call(TEXT), ME))
    by_ids = stage.run(lambda: service.complete(call(ids), ME))
    assert by_ids.prompts[0].completions[0].text == by_text.prompts[0].completions[0].text
    assert by_ids.prompt_tokens == len(ids) == stage.run(lambda: service.count(ids))
    assert stage.run(lambda: service.decode(ids)) == TEXT
    assert stage.run(lambda: service.encode(TEXT, special=True)) == ids  # this model has no BOS in front of text
    chat = Chat((Message("user", "Hello"),))
    assert len(stage.run(lambda: service.encode(chat))) == stage.run(lambda: service.count(chat))


def test_a_fresh_seed_where_none_was_given(stage: Stage) -> None:
    what = call(sampling={"seed": None})
    answers = [stage.run(lambda: stage.service.complete(what, ME)) for _ in range(2)]
    assert len({answer.prompts[0].completions[0].text for answer in answers}) == 2


def test_a_salt_and_a_namespace_share_no_prefix(stage: Stage) -> None:
    text = "A secret: " + words(40)
    cached = lambda what, who: stage.run(lambda: stage.service.complete(what, who)).cached_tokens  # noqa: E731
    assert cached(call(text), ME) == 0
    assert cached(call(text), ME) > 30
    assert cached(call(text), caller("x", "you")) == 0
    assert cached(call(text, salt="pepper"), ME) == 0
    assert cached(call(text, salt="pepper"), ME) > 30
    assert cached(call(text, salt="pepper"), caller("x", "you")) == 0


def test_tokenising_is_off_the_loop(stage: Stage) -> None:
    """While a very long prompt is tokenised the loop goes on: it counts many turns before the answer is there."""

    async def turns() -> int:
        task = asyncio.ensure_future(stage.service.encode(words(20_000)))
        count = 0
        while not task.done():
            await asyncio.sleep(0)
            count += 1
        assert len(task.result()) > 19_000
        return count

    assert stage.run(turns) > 100


# -- what does not fit


def test_too_long_says_the_figures_before_anything_happens(stage: Stage) -> None:
    service = stage.service
    tokens = stage.run(lambda: service.count(words(1100)))
    before = stage.run(service.stats).generated_tokens
    short = stage.run(lambda: service.count(TEXT))
    for what, prompt, asked in (
        (call(words(1100)), tokens, 8),
        (call(TEXT, service.context), short, service.context),
        (call(TEXT, 8, words(1100)), tokens, 8),
        (call(words(1100), None), tokens, None),
    ):
        failure = refused(stage, what)
        assert (failure.status, failure.code) == (400, "context_length_exceeded")
        figures = f"maximum context length is {service.context} tokens. However, you requested {prompt + (asked or 0)}"
        assert figures in failure.message
        assert f"({prompt} in the prompt" in failure.message
    failure = refused(stage, call("x" * (16 * service.context + 1)))
    assert (failure.status, failure.code) == (400, "context_length_exceeded")
    assert f"your prompt has {16 * service.context + 1} characters" in failure.message
    stage.run(lambda: quiet(stage))
    assert stage.run(service.stats).generated_tokens == before
    ids = stage.run(lambda: service.encode(words(1100)))[: service.context - 3]
    answer = stage.run(lambda: service.complete(call(ids, 3), ME))  # exactly full
    assert (answer.prompt_tokens, answer.completion_tokens) == (service.context - 3, 3)
    assert refused(stage, call(ids, 4)).code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("what", "match"),
    [
        (call(""), "empty prompt"),
        (call((1, 2, 10**8)), "100000000 is not a token id"),
        (call("half \ud800"), "lone surrogate"),
        (call(sampling={"logit_bias": {10**8: 1.0}}), "logit_bias"),
        (call(Chat((Message("wizard", "x"),))), "wizard"),
    ],
)
def test_what_is_not_valid_is_a_400(stage: Stage, what: Any, match: str) -> None:
    failure = refused(stage, what)
    assert failure.status == 400
    assert match in failure.message
    assert stage.run(lambda: stage.service.complete(call(), ME)).completion_tokens == 8


# -- how calls end


def test_a_closed_stream_stops_its_programs(stage: Stage) -> None:
    async def leaves() -> None:
        stream = stage.service.stream(call(TEXT, LONG, words(7), n=2), ME)
        seen = told = 0
        stage.noted.clear()
        async for outs in stream:
            seen += len(outs)
            told += sum(len(out.tokens) for out in outs if isinstance(out, Piece))
            if seen >= 6:
                break
        await stream.aclose()
        assert sum(value for name, value in stage.noted if name == "generated_tokens") == told > 0
        assert stage.service.running == 0
        await quiet(stage)
        stats = await stage.service.stats()
        assert (stats.kv_used, stats.running, stats.waiting) == (0, 0, 0)

    stage.run(leaves)


def test_a_cancelled_task_leaves_nothing_behind(stage: Stage) -> None:
    async def cancels() -> None:
        for turns in (0, 1, 2, 3, 5, 30):  # in the queue, while it is tokenised, while it runs
            tasks = [asyncio.ensure_future(stage.service.complete(call(words(30 + i), LONG), ME)) for i in range(5)]
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(each) for each in done} == {asyncio.CancelledError}
            assert (stage.service.running, stage.service.waiting) == (0, 0)
        await quiet(stage)

    with stage.limited(max_running_requests=3):
        stage.run(cancels)


def test_deadlines(stage: Stage) -> None:
    async def misses(what: Any, who: Caller) -> None:
        with pytest.raises(Failure) as caught:
            await stage.service.complete(what, who)
        assert caught.value.status == 504

    stage.run(lambda: misses(call(TEXT, LONG, n=4, timeout=0.05), ME))
    stage.run(lambda: quiet(stage))

    async def by_the_caller() -> None:
        soon = asyncio.get_running_loop().time() + 0.05
        await misses(call(TEXT, LONG, n=4), caller("x", deadline=soon))
        await misses(call(), caller("x", deadline=soon - 100))
        await quiet(stage)

    stage.run(by_the_caller)

    async def in_the_queue() -> None:
        first = stage.service.stream(call(TEXT, LONG), ME)
        await anext(first)
        await misses(call(timeout=0.02), ME)
        await first.aclose()

    with stage.limited(max_running_requests=1):
        stage.run(in_the_queue)
    late_ones = [value for name, value in stage.noted if name == "request_failed" and value == 504]
    assert len(late_ones) >= 4


def test_aborted_by_label_in_its_own_namespace(stage: Stage) -> None:
    async def aborts() -> None:
        service = stage.service
        labels = ["a", "ab", "a", "b"]
        tasks = [asyncio.ensure_future(collect(service, call(TEXT, LONG), caller(label))) for label in labels]
        others = asyncio.ensure_future(collect(service, call(TEXT, 5), caller("a", "you")))
        while service.running + service.waiting < 5:
            await asyncio.sleep(0)
        assert service.busy("a", ME) and not service.busy("c", ME)
        assert service.abort("a", caller("x", "nobody")) == 0
        assert service.abort("a", ME) == 2
        for task in (tasks[0], tasks[2]):
            with pytest.raises(Failure) as caught:
                await task
            assert (caught.value.status, caught.value.type) == (499, "aborted")
        assert not service.busy("a", ME)
        assert not tasks[1].done() and not tasks[3].done()
        assert service.abort("", ME) == 2
        assert all(isinstance(each, Failure) for each in await asyncio.gather(*tasks, return_exceptions=True))
        assert text_of((await others)[1])
        await quiet(stage)

    stage.run(aborts)
    with stage.limited(max_running_requests=1):  # most of them are still in the queue
        stage.run(aborts)


def test_overload_is_a_429(stage: Stage) -> None:
    async def overload() -> None:
        service = stage.service
        tasks = [asyncio.ensure_future(service.complete(call(words(i + 1), 20), ME)) for i in range(12)]
        done = await asyncio.gather(*tasks, return_exceptions=True)
        full = [each for each in done if isinstance(each, Failure)]
        assert len(full) == 7
        assert {(each.status, each.code) for each in full} == {(429, "rate_limit_exceeded")}
        assert all(each.retry_after is not None and each.retry_after >= 1 for each in full)
        assert sum(not isinstance(each, BaseException) for each in done) == 5

    with stage.limited(max_running_requests=2, max_queue=3):
        stage.run(overload)


def test_many_streams_half_of_them_vanish(stage: Stage) -> None:
    async def crowd() -> None:
        service = stage.service
        alone = [text_of((await collect(service, call(words(i % 4 + 1), 12)))[1]) for i in range(4)]

        async def vanishes(i: int) -> None:
            stream = service.stream(call(words(i % 4 + 1), LONG), ME)
            async for _ in stream:
                break
            await stream.aclose()

        stays = [collect(service, call(words(i % 4 + 1), 12)) for i in range(20)]
        done = await asyncio.gather(*stays, *(vanishes(i) for i in range(20)))
        assert [text_of(pieces) for _, pieces in done[:20]] == [alone[i % 4] for i in range(20)]  # type: ignore[misc]
        await quiet(stage)
        assert (await service.stats()).kv_used == 0

    stage.run(crowd)


# -- whole programs


PROGRAM = (ir.Text(id="0.0", seq="0", parts=(TEXT,)), gen("0.1"))


def test_a_whole_program(stage: Stage) -> None:
    want = offline(stage, *PROGRAM)[0].value

    async def runs() -> list[ir.Event]:
        return [event async for event in stage.service.events(ir.Header(), PROGRAM, ME)]

    events = stage.run(runs)
    assert [e.value for e in events if isinstance(e, ir.Finished)] == [want]
    assert isinstance(events[-1], ir.Ended) and not events[-1].kind


def test_a_program_that_is_not_valid(stage: Stage) -> None:
    async def runs() -> None:
        bad = ir.Select(id="0.1", seq="0", var="x", choices=())
        with pytest.raises(Failure, match="choices") as caught:
            async for _ in stage.service.events(ir.Header(), [PROGRAM[0], bad], ME):
                pass
        assert caught.value.status == 400
        with pytest.raises(Failure) as caught:
            async for _ in stage.service.events(
                ir.Header(), [PROGRAM[0], gen("0.1", max_tokens=LONG)], ME, timeout=0.03
            ):
                pass
        assert caught.value.status == 504
        await quiet(stage)

    stage.run(runs)
    assert stage.service.running == 0


def test_operations_that_come_while_the_program_runs(stage: Stage) -> None:
    want = [done.value for done in offline(stage, *PROGRAM, ir.Text(id="0.2", seq="0", parts=(" And",)), gen("0.3"))]

    async def talks() -> list[str]:
        values: list[str] = []
        async with await stage.service.duplex(ir.Header(), ME) as duplex:
            await duplex.send(PROGRAM)
            async for event in duplex:
                if isinstance(event, ir.Finished):
                    values.append(event.value)
                    if len(values) == 1:
                        more = asyncio.ensure_future(duplex.send([ir.Text(id="0.2", seq="0", parts=(" And",))]))
                        last = asyncio.ensure_future(duplex.send([gen("0.3")]))
                        await asyncio.sleep(0)
                        duplex.end()  # both are on their way: they go first
                        await asyncio.gather(more, last)
                        with pytest.raises(Failure, match="has ended"):
                            await duplex.send([gen("0.4")])
        return values

    assert stage.run(talks) == want


def test_a_cancelled_program_ends_with_its_word(stage: Stage) -> None:
    async def cancels() -> list[ir.Event]:
        events = []
        async with await stage.service.duplex(ir.Header(), ME) as duplex:
            await duplex.send([PROGRAM[0], gen("0.1", max_tokens=LONG)])
            async for event in duplex:
                events.append(event)
                if isinstance(event, ir.Token):
                    duplex.cancel()
        return events

    *_, failed, ended = stage.run(cancels)
    assert isinstance(failed, ir.Failed) and failed.kind == "aborted"
    assert isinstance(ended, ir.Ended) and ended.kind == "aborted"


# -- the bridge


def test_a_batch_of_events_crosses_in_one_call() -> None:
    async def crosses() -> None:
        loop = asyncio.get_running_loop()
        crossings: list[object] = []
        bridge = Bridge(loop)
        boxes = [Mailbox(loop) for _ in range(3)]
        events = [ir.Token(op="0.1", seq="0", text=str(i)) for i in range(50)]
        delivers = [bridge.to(box, n, ALL) for n, box in enumerate(boxes)]
        real = loop.call_soon_threadsafe

        def counted(*arguments: Any, **more: Any) -> Any:
            crossings.append(arguments[0])
            return real(*arguments, **more)

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign]
        try:

            def batch() -> None:
                for event in events:
                    for deliver in delivers:
                        deliver(event)
                bridge.flush()
                bridge.flush()

            thread = threading.Thread(target=batch)
            thread.start()
            taken = [await box.take() for box in boxes]
            thread.join()
        finally:
            loop.call_soon_threadsafe = real  # type: ignore[method-assign]
        assert taken == [[(n, event) for event in events] for n in range(3)]
        assert len(crossings) <= 2  # the second flush had nothing to say, or the first was not taken yet

    asyncio.run(crosses())


def test_a_mailbox_that_fails_gives_what_it_has_first() -> None:
    async def reads() -> None:
        box = Mailbox(asyncio.get_running_loop())
        event = ir.Token(op="0.1", seq="0", text="x")
        box.put((0, event))
        box.fail(late("too late"))
        box.fail(late("not this one"))
        assert await box.take() == [(0, event)]
        with pytest.raises(Failure, match="too late"):
            await box.take()
        box.close()
        box.put((0, event))
        with pytest.raises(Failure, match="too late"):
            await box.take()

    asyncio.run(reads())


@pytest.mark.skipif(sys.platform != "linux", reason="a priority per thread is Linux's")
def test_threads_that_tokenise_stand_back(stage: Stage) -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    assert stage.run(lambda: stage.service._in_thread(niceness)) == min(niceness() + YIELDING, 19)
