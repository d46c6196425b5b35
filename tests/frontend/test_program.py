"""Programs as values: settings, where they run, batches."""

import asyncio
import threading

import pytest

import ramet as rt
from ramet.frontend.ir import Gen


class Recorder(rt.Mock):
    """A mock that keeps headers and operations."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.headers, self.ops = [], []

    def open(self, header, deliver):
        self.headers.append(header)
        session = super().open(header, deliver)
        send = session.send
        session.send = lambda batch: (self.ops.extend(batch), send(batch))
        return session

    @property
    def samplings(self):
        return [op.sampling for op in self.ops if isinstance(op, Gen)]


def test_sampling_defaults_count_in_order():
    @rt.function(temperature=0.1, max_tokens=10, top_p=0.9, min_p=0.1)
    def program(s):
        s += rt.gen("x", max_tokens=40)
        return s["x"]

    backend = Recorder("x")
    variant = program.using(backend=backend, temperature=0.2, max_tokens=20, top_p=0.8)
    variant.run(temperature=0.3, max_new_tokens=30).result(10)
    [sampling] = backend.samplings
    assert (sampling.temperature, sampling.max_tokens, sampling.top_p, sampling.min_p) == (0.3, 40, 0.8, 0.1)


def test_sglangs_spellings():
    @rt.function
    def program(s):
        s += rt.gen(
            "x", top_k=-1, return_logprob=True, top_logprobs_num=3, stop="a", stop_token_ids=[7], ignore_eos=True
        )

    backend = Recorder("x")
    program.using(backend=backend)().result(10)
    [sampling] = backend.samplings
    assert (sampling.top_k, sampling.logprobs, sampling.stop) == (0, 3, ("a",))
    assert (sampling.stop_token_ids, sampling.ignore_eos) == ((7,), True)


def test_where_a_program_runs():
    @rt.function
    def program(s):
        return s.gen().get()

    default, context, inner, option, used = (
        rt.Mock(name) for name in ("default", "context", "inner", "option", "used")
    )
    rt.set_default_backend(default)
    try:
        assert program().result(10) == "default"
        with rt.using(context) as entered:
            assert entered is context
            assert program().result(10) == "context"
            with rt.using(inner):
                assert program().result(10) == "inner"
            assert program().result(10) == "context"
            assert program.run(backend=option).result(10) == "option"
            assert program.using(backend=used).run(backend=option).result(10) == "used"
        assert program().result(10) == "default"
    finally:
        rt.set_default_backend(None)


def test_using_is_of_its_thread_and_its_task():
    @rt.function
    def program(s):
        return s.gen().get()

    async def one(word):
        with rt.using(rt.Mock(word)):
            await asyncio.sleep(0)
            return await program()

    async def main():
        return await asyncio.gather(one("a"), one("b"))

    assert asyncio.run(main()) == ["a", "b"]
    errors = []

    def other_thread():
        try:
            program()
        except rt.EngineError as error:
            errors.append(error)

    with rt.using(rt.Mock("x")):
        thread = threading.Thread(target=other_thread)
        thread.start()
        thread.join(10)
    assert len(errors) == 1


def test_a_program_is_not_changed_by_its_variants():
    @rt.function
    def program(s, a=1):
        return a

    with rt.using(rt.Mock()):
        assert program.bind(a=2)().result() == 2
        assert program.using(temperature=0.5).bind(a=3)().result() == 3
        assert program().result() == 1


def test_an_unknown_argument_is_an_ordinary_type_error():
    @rt.function
    def program(s, a):
        return a

    with rt.using(rt.Mock()), pytest.raises(TypeError, match="unexpected keyword argument 'b'"):
        program(1, b=2)
    with rt.using(rt.Mock()), pytest.raises(TypeError, match="missing a required argument: 'a'"):
        program()


def test_star_arguments():
    @rt.function
    def program(s, first, /, *rest, key=0, **others):
        return first, rest, key, others

    with rt.using(rt.Mock()):
        assert program(1, 2, 3, key=4, other=5).result() == (1, (2, 3), 4, {"other": 5})


def test_batch_rows_of_every_shape_in_order():
    @rt.function
    def program(s, a, b=0):
        s += f"{a}{b}" + rt.gen("x")
        return s.text()

    batch = program.using(backend=rt.Mock("!")).batch([{"a": 1}, (2, 3), [4], 5, "six"], concurrency=2)
    assert len(batch) == 5
    assert list(batch) == batch.result() == ["10!", "23!", "40!", "50!", "six0!"]
    assert [run.done for run in batch.runs] == [True] * 5


def test_batch_checks_all_rows_first():
    calls = []

    @rt.function
    def program(s, a):
        calls.append(a)

    with pytest.raises(rt.ConstraintError, match=r"row 1: program\(a\): missing a required argument: 'a'"):
        program.using(backend=rt.Mock()).batch([{"a": 1}, {}])
    assert calls == []
    with pytest.raises(rt.ConstraintError, match="concurrency=0"):
        program.using(backend=rt.Mock()).batch([1], concurrency=0)
    with pytest.raises(rt.ConstraintError, match="on_error='explode'"):
        program.using(backend=rt.Mock()).batch([1], on_error="explode")


def test_batch_runs_so_many_at_a_time():
    mock = rt.Mock(rt.Mock.PENDING)
    lock, running, most = threading.Lock(), [0], [0]

    @rt.function
    def program(s, i):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        value = s.gen(name="x").get()
        with lock:
            running[0] -= 1
        return value

    batch = program.using(backend=mock).batch(range(12), concurrency=3)
    for i in range(12):
        mock.release("x", str(i))
    assert sorted(batch.result(), key=int) == [str(i) for i in range(12)]
    assert most[0] <= 3


def test_batch_of_async_programs_can_be_awaited():
    @rt.function
    async def program(s, i):
        return await s.gen() + str(i)

    async def main():
        return await program.using(backend=rt.Mock("x")).batch(range(3))

    assert asyncio.run(main()) == ["x0", "x1", "x2"]


def test_batch_groups_errors_and_keeps_results():
    @rt.function
    def program(s, i):
        if i % 2:
            raise ValueError(i)
        return i

    with pytest.raises(ExceptionGroup, match="2 of 5 rows") as caught:
        program.using(backend=rt.Mock()).batch(range(5)).result()
    assert [error.args for error in caught.value.exceptions] == [(1,), (3,)]


def test_a_cancelled_batch_starts_nothing_more():
    mock = rt.Mock(rt.Mock.PENDING)

    @rt.function
    def program(s, i):
        return s.gen(name="x").get()

    batch = program.using(backend=mock).batch(range(10), concurrency=2, on_error="return")
    batch.cancel()
    results = batch.result()
    assert len(results) == 10
    assert all(isinstance(result, rt.Aborted) for result in results)
    assert mock.info()["programs"] == 0


def test_run_batch_generator_style_takes_rows_lazily():
    taken = []

    @rt.function
    def program(s, i):
        return i

    def rows():
        for i in range(1000):
            taken.append(i)
            yield {"i": i}

    runs = program.using(backend=rt.Mock()).run_batch(rows(), generator_style=True, num_threads=4)
    assert [next(runs).result() for _ in range(5)] == [0, 1, 2, 3, 4]
    assert len(taken) < 20
    runs.close()


def test_batch_seeds_are_one_per_row_and_repeatable():
    @rt.function
    def program(s, i):
        return i

    seeds = []
    for _ in range(2):
        backend = Recorder()
        program.using(backend=backend, seed=7).batch(range(3), concurrency=1).result()
        seeds.append([header.seed for header in backend.headers])
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == 3


def test_an_empty_batch():
    @rt.function
    def program(s, i):
        return i

    mocked = program.using(backend=rt.Mock())
    assert mocked.batch([]).result() == []
    assert mocked.run_batch([]) == []


def test_a_lost_backend_fails_rows_not_the_batch():
    mock = rt.Mock()
    mock.close()

    @rt.function
    def program(s, i):
        return i

    results = program.using(backend=mock).batch(range(3), on_error="return").result()
    assert [type(result) for result in results] == [rt.TransportError] * 3


def test_progress_bars_go_to_stderr(capsys):
    @rt.function
    def program(s, i):
        return i

    mocked = program.using(backend=rt.Mock())
    assert mocked.batch(range(3), progress=True).result() == [0, 1, 2]
    assert len(mocked.run_batch(range(3), progress_bar=True)) == 3
    assert capsys.readouterr().out == ""
