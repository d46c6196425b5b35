"""One test per defect of SGLang's own frontend that a ramet program does not have, named after the defect.

The programs are written as for SGLang, with only the import changed.
"""

import asyncio
import inspect
import threading
import warnings

import pytest

import ramet as sgl

PENDING = sgl.Mock.PENDING


def finished(program, answers="answer", **arguments):
    run = program.using(backend=answers if isinstance(answers, sgl.Mock) else sgl.Mock(answers)).run(**arguments)
    run.sync()
    return run


def test_a_program_of_sglang_runs_with_only_its_import_changed():
    @sgl.function
    def multi_turn_question(s, question_1, question_2):
        s += sgl.system("You are a helpful assistant.")
        s += sgl.user(question_1)
        s += sgl.assistant(sgl.gen("answer_1", max_tokens=256))
        s += sgl.user(question_2)
        s += sgl.assistant(sgl.gen("answer_2", max_tokens=256, stop=["\n"]))

    sgl.set_default_backend(sgl.Mock({"answer_1": "Paris.", "answer_2": "London.\nMore"}))
    try:
        state = multi_turn_question.run(question_1="Capital of France?", question_2="Of the UK?", temperature=0.5)
        assert [m["role"] for m in state.messages()] == ["system", "user", "assistant", "user", "assistant"]
        assert state["answer_1"] == "Paris."
        assert state["answer_2"] == "London."
        assert sgl.get_server_info()["model"] == "mock"
        assert sgl.flush_cache() is True
        states = multi_turn_question.run_batch([{"question_1": "a", "question_2": "b"}] * 3, progress_bar=False)
        assert [s["answer_1"] for s in states] == ["Paris."] * 3
    finally:
        sgl.set_default_backend(None)


def test_errors_surface_instead_of_becoming_warnings():
    @sgl.function
    def program(s):
        s += sgl.gen("x")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(sgl.GenerationError, match="broken"):
            finished(program, sgl.Mock(fail={"x": "broken"})).result()


def test_no_hang_after_a_failed_op():
    @sgl.function
    def program(s):
        s += sgl.gen("x")
        s += "more" + sgl.gen("y")
        with pytest.raises(sgl.GenerationError):
            s["y"]
        with pytest.raises(sgl.GenerationError):
            s.text()
        assert s.error() is not None
        s.sync()
        return "over"

    assert finished(program, sgl.Mock("", fail={"x": "broken"})).result(10) == "over"


def test_a_program_parameter_called_like_an_option_belongs_to_the_program():
    @sgl.function
    def program(s, n, stop, temperature, backend, stream, timeout, seed):
        s += sgl.gen("x", max_tokens=1)
        return n, stop, temperature, backend, stream, timeout, seed

    with sgl.using(sgl.Mock("a b c")):
        run = program.run(n=3, stop="never", temperature="hot", backend="b", stream=1, timeout="late", seed="s")
    assert run.result(10) == (3, "never", "hot", "b", 1, "late", "s")


def test_run_batch_never_calls_the_body_with_dummies():
    seen = []

    @sgl.function
    def program(s, number):
        seen.append(number)
        s += "x" * 100 + sgl.gen("x")
        return number + 1

    runs = program.using(backend=sgl.Mock("y")).run_batch([{"number": i} for i in range(5)])
    assert sorted(seen) == list(range(5))
    assert [run.ret_value for run in runs] == [1, 2, 3, 4, 5]


def test_one_failing_row_does_not_discard_the_others():
    @sgl.function
    def program(s, number):
        if number == 2:
            raise ValueError("two")
        return number

    rows = [{"number": i} for i in range(4)]
    mocked = program.using(backend=sgl.Mock("y"))
    runs = mocked.run_batch(rows)
    assert [run.result() for run in runs if run.error() is None] == [0, 1, 3]
    assert isinstance(runs[2].error(), ValueError)
    results = mocked.batch(rows, on_error="return").result()
    assert results[:2] + results[3:] == [0, 1, 3]
    batch = mocked.batch(rows)
    with pytest.raises(ValueError, match="two") as caught:
        batch.result()
    assert "in row 2 of a batch of 'program'" in caught.value.__notes__
    assert batch.runs[3].result() == 3


def test_a_second_fork_and_join_with_the_same_variable_gathers_the_second_round():
    @sgl.function
    def program(s):
        for _ in range(2):
            forks = s.fork(2)
            forks += sgl.gen("x")
            forks.join()
            yielded.append(list(s["x"]))

    yielded = []
    finished(program, ["1", "2", "3", "4"]).result()
    assert yielded == [["1", "2"], ["3", "4"]]


def test_copy_does_not_turn_variables_into_lists():
    @sgl.function
    def program(s):
        s += sgl.gen("before")
        with s.copy() as tmp:
            tmp += sgl.gen("inside")
        return s["before"], s["inside"]

    assert finished(program, "v").result() == ("v", "v")


def test_the_users_stop_list_is_not_mutated():
    stop = ["\n", "."]

    @sgl.function
    def program(s):
        s += sgl.gen("x", stop=stop)
        s += sgl.gen("y", stop=stop)
        return s["x"]

    assert finished(program, "one. two", stop=stop).result() == "one"
    assert stop == ["\n", "."]


def test_a_bound_argument_loses_to_an_explicit_one():
    @sgl.function
    def program(s, a, b=0, *, c=0):
        return a, b, c

    bound = program.using(backend=sgl.Mock()).bind(a=1, b=2)
    assert bound().result() == (1, 2, 0)
    assert bound(b=5).result() == (1, 5, 0)
    assert bound(7, c=3).result() == (7, 2, 3)
    with pytest.raises(sgl.ConstraintError, match="no such parameter; known: a, b, c"):
        program.bind(d=1)


def test_fork_sends_nothing_of_its_own_and_does_not_wait():
    mock = sgl.Mock({"x": PENDING, "y": "y"})

    @sgl.function
    def program(s):
        s += sgl.gen("x")
        forks = s.fork(2)  # behind a generation that has not finished
        forks += sgl.gen("y")
        mock.release("x", "now")
        forks.join()
        return s["y"]

    assert finished(program, mock).result() == ["y", "y"]


def test_n_samples_are_a_list_and_the_text_goes_on_with_the_first():
    @sgl.function
    def program(s):
        s += "Q: " + sgl.gen("x", n=3) + " end " + sgl.gen("y")
        return s["x"], s.text(), [meta["completion_tokens"] for meta in s.get_meta_info("x")]

    assert finished(program, ["a", "b b", "c", "y"]).result() == (["a", "b b", "c"], "Q: a end y", [1, 2, 1])


def test_join_concate_and_append_works():
    @sgl.function
    def program(s):
        s += "root "
        forks = s.fork(2)
        forks += lambda i: f"[{i}" + sgl.gen("x") + "]"
        forks.join("concate_and_append")
        s += sgl.gen("y")
        return s.text()

    assert finished(program, "v").result() == "root [0v][1v]v"


def test_anonymous_gens_do_not_collide():
    @sgl.function
    def program(s):
        s += "a" + sgl.gen() + "b" + sgl.gen()
        s += sgl.select(choices=["x", "y"])
        first, second = s.gen(), s.gen()
        return s.text(), first.get(), second.get()

    assert finished(program, ["1", "2", "y", "3", "4"]).result() == ("a1b2y34", "3", "4")


def test_fork_300_does_not_make_300_threads():
    @sgl.function
    def program(s):
        forks = s.fork(300)
        forks += sgl.gen("x")
        counted.append(threading.active_count())
        forks.join()
        return len(s["x"])

    counted = []
    before = threading.active_count()
    assert finished(program, "v").result() == 300
    assert counted[0] - before <= 3


def test_meta_info_survives_a_fork():
    @sgl.function
    def program(s):
        s += sgl.gen("x", max_tokens=1)
        forks = s.fork(2)
        inherited = forks[1].get_meta_info("x")
        forks += sgl.gen("y")
        forks.join()
        return inherited["completion_tokens"], [m["completion_tokens"] for m in s.get_meta_info("y")]

    assert finished(program, "one two").result() == (1, [2, 2])


def test_a_stream_over_var_scope_ends():
    @sgl.function
    def program(s):
        with s.var_scope("scope"):
            s += "a " + sgl.gen("x")
            s += " b"
        s += sgl.gen("y")
        return s["y"]

    mock = sgl.Mock({"x": "X", "y": PENDING})
    run = program.using(backend=mock).run(stream=True)
    assert "".join(run.text_iter("scope")) == "a X b"
    assert not run.done
    mock.release("y", "over")
    assert run.result(10) == "over"


def test_roles_close_in_finally():
    @sgl.function
    def program(s):
        try:
            with s.user():
                s += "question"
                raise RuntimeError
        except RuntimeError:
            pass
        with s.assistant():
            s += sgl.gen("x")

    run = finished(program)
    assert run.messages() == [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]


def test_assistant_keeps_its_prefix():
    @sgl.function
    def program(s):
        s += sgl.assistant("Sure: " + sgl.gen("x"))

    run = finished(program)
    assert run.messages() == [{"role": "assistant", "content": "Sure: answer"}]
    assert run["x"] == "answer"


def test_streaming_yields_each_character_once():
    @sgl.function
    def program(s):
        s += "Q" + sgl.gen("x") + "!"

    run = program.using(backend=sgl.Mock("one two  two\n\ntwo")).run(stream=True)
    assert "".join(run.text_iter("x")) == "one two  two\n\ntwo"
    assert "".join(run.text_iter()) == "Qone two  two\n\ntwo!"


def test_a_lost_server_raises_within_the_timeout():
    mock = sgl.Mock(PENDING)

    @sgl.function
    def program(s):
        s += sgl.gen("x")
        mock.close()
        return s["x"]

    with pytest.raises(sgl.TransportError):
        finished(program, mock).result(10)


def test_function_keeps_name_doc_and_signature():
    @sgl.function
    def program(s, question: str, points: int = 4) -> str:
        """What it does."""
        return question * points

    assert program.__name__ == "program"
    assert program.__doc__ == "What it does."
    assert program.__module__ == __name__
    assert list(inspect.signature(program).parameters) == ["question", "points"]
    assert repr(program).startswith("<Program program(question: str")


def test_function_works_on_methods():
    class Asker:
        def __init__(self, word):
            self.word = word

        @sgl.function
        def ask(self, s, times):
            s += self.word * times + sgl.gen("x")
            return s.text()

        @sgl.function(max_tokens=1)
        async def later(self, s: sgl.State):
            return self.word + await s.gen()

    with sgl.using(sgl.Mock("!! ??")):
        asker = Asker("ha")
        assert asker.ask(2).result() == "haha!! ??"
        assert asker.ask.bind(times=1)().result() == "ha!! ??"
        assert asker.later().result() == "ha!!"
        assert Asker("ho").ask.batch([(1,), (2,)]).result() == ["ho!! ??", "hoho!! ??"]


def test_function_works_on_async_def():
    @sgl.function
    async def program(s, word):
        await asyncio.sleep(0)
        return await s.gen() + word

    assert finished(program, "x", word="y").result() == "xy"


def test_dtype_bool_and_choices_are_a_select():
    @sgl.function
    def program(s):
        s += sgl.gen("a", dtype=bool) + sgl.gen("b", choices=["x", "y"], choices_method=sgl.greedy_token_selection)
        s += sgl.select("c", ["p", "q"], choices_method=sgl.unconditional_likelihood_normalized)
        return s["a"], s["b"], s["c"], len(s.get_meta_info("b")["normalized_prompt_logprobs"])

    assert finished(program, {"a": "False", "b": "y", "c": "q"}).result() == ("False", "y", "q", 2)
