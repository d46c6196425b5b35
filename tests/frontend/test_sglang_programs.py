"""Programs in the style of SGLang's documentation of its frontend: only the import says ramet."""

import asyncio

import pytest

import ramet as sgl


@sgl.function
def multi_turn_question(s, question_1, question_2):
    s += sgl.system("You are a helpful assistant.")
    s += sgl.user(question_1)
    s += sgl.assistant(sgl.gen("answer_1", max_tokens=256))
    s += sgl.user(question_2)
    s += sgl.assistant(sgl.gen("answer_2", max_tokens=256))


def test_multi_turn_question():
    mock = sgl.Mock({"answer_1": "Washington, D.C.", "answer_2": "The White House."})
    state = multi_turn_question.run(
        question_1="What is the capital of the United States?", question_2="List two local attractions.", backend=mock
    )
    assert state["answer_1"] == "Washington, D.C."
    assert state["answer_2"] == "The White House."
    assert [message["role"] for message in state.messages()] == ["system", "user", "assistant", "user", "assistant"]
    assert state.get_var("answer_2") == state["answer_2"]
    assert state.text().count("<|end|>") == 5


@sgl.function
def text_qa(s, question):
    s += "Q: " + question + "\n"
    s += "A:" + sgl.gen("answer", stop="\n")


def test_the_default_backend_and_batches():
    sgl.set_default_backend(sgl.Mock(lambda prompt, var: f" of {prompt.split()[1]}\nQ: more"))
    try:
        state = text_qa.run(question="France", temperature=0)
        assert state["answer"] == " of France"
        states = text_qa.run_batch(
            [{"question": "UK"}, {"question": "Japan"}], temperature=0.1, max_new_tokens=64, num_threads=1
        )
        assert [state["answer"] for state in states] == [" of UK", " of Japan"]
        states = text_qa.run_batch([{"question": "Peru"}], progress_bar=False, generator_style=True)
        assert [state["answer"] for state in states] == [" of Peru"]
        assert isinstance(sgl.get_server_info(), dict)
        assert sgl.flush_cache()
    finally:
        sgl.set_default_backend(None)


def test_streaming():
    state = text_qa.run(question="Italy", temperature=0.1, stream=True, backend=sgl.Mock(" Rome is it."))
    assert "".join(state.text_iter()) == "Q: Italy\nA: Rome is it."

    async def follow():
        chunks = [chunk async for chunk in state.text_async_iter(var_name="answer")]
        pairs = [pair async for pair in state.text_async_iter(var_name="answer", return_meta_data=True)]
        return chunks, [text for text, _ in pairs], pairs[-1][1]["completion_tokens"]

    chunks, again, tokens = asyncio.run(follow())
    assert "".join(chunks) == "".join(again) == "".join(state.text_iter(var_name="answer")) == " Rome is it."
    assert tokens == 3


@sgl.function
def tip_suggestion(s):
    s += "Here are two tips for staying healthy: 1. Balanced Diet. 2. Regular Exercise.\n\n"
    forks = s.fork(2)
    for i, f in enumerate(forks):
        f += f"Now, expand tip {i + 1} into a paragraph:\n"
        f += sgl.gen("detailed_tip", max_tokens=256, stop="\n\n")
    s += "Tip 1:" + forks[0]["detailed_tip"] + "\n"
    s += "Tip 2:" + forks[1]["detailed_tip"] + "\n"
    s += "In summary" + sgl.gen("summary")


def test_fork():
    mock = sgl.Mock({"detailed_tip": ["Eat.", "Run."], "summary": ", live."})
    state = tip_suggestion.run(backend=mock)
    assert state.text().endswith("Tip 1:Eat.\nTip 2:Run.\nIn summary, live.")


@sgl.function
def parallel_sample(s, question, n):
    s += sgl.user(question)
    forks = s.fork(n)
    forks += sgl.assistant(sgl.gen("answer", temperature=0.7))
    forks.join()


def test_a_parameter_called_n_and_join():
    assert parallel_sample.run("Why?", 3, backend=sgl.Mock("Because."))["answer"] == ["Because."] * 3
    assert parallel_sample.run(question="Why?", n=2, backend=sgl.Mock("So."))["answer"] == ["So."] * 2


@sgl.function
def tool_use(s, question):
    s += "To answer this question: " + question + ". "
    s += "I need to use a " + sgl.gen("tool", choices=["calculator", "search engine"]) + ". "
    if s["tool"] == "calculator":
        s += "The math expression is" + sgl.gen("expression")
    elif s["tool"] == "search engine":
        s += "The key word to search is" + sgl.gen("word")


def test_choices_and_control_flow():
    state = tool_use.run("2 + 2", backend=sgl.Mock({"tool": "calculator", "expression": " 2 + 2"}))
    assert state["expression"] == " 2 + 2"
    assert "word" not in state
    state = tool_use.run("rain", backend=sgl.Mock({"tool": "search engine", "word": " rain"}))
    assert state.text().endswith("I need to use a search engine. The key word to search is rain")
    assert state.get_meta_info("tool")["normalized_prompt_logprobs"] == [-2.0, -0.1]


@sgl.function
def image_qa(s, image_path):
    s += sgl.user(sgl.image(image_path) + "What is this?")


@sgl.function
def character_gen(s, name):
    s += name + " is a character in Harry Potter.\n"
    s += sgl.gen("json_output", max_tokens=256, regex=r"\{\n    \"name\": \"[\w\d\s]{1,16}\"\n\}")


@sgl.function
def typed_gen(s, kind):
    s += "The answer is " + sgl.gen("answer", dtype=kind)


def test_regex():
    text = '{\n    "name": "Harry"\n}'
    assert character_gen.run("Harry", backend=sgl.Mock(text))["json_output"] == text
    with pytest.raises(sgl.GenerationError, match="does not match regex="):
        character_gen.run("Harry", backend=sgl.Mock("Harry")).result(10)


@pytest.mark.parametrize(
    ("kind", "answer", "text"),
    [
        (int, "42\n and more", "42"),
        ("int", "-42 more", "-42"),
        (float, "3.5", "3.5"),
        (str, '"a b"', '"a b"'),
        ("str", '""', '""'),
        (bool, "False", "False"),
    ],
)
def test_dtype_constrains_and_leaves_a_text(kind, answer, text):
    state = typed_gen.run(kind, backend=sgl.Mock(answer))
    assert state["answer"] == text
    assert state.text() == "The answer is " + text


@sgl.function
def number_and_word(s, stop):
    s += "n" + sgl.gen_int("number", max_tokens=4, stop=stop) + sgl.gen_string("word")


def test_gen_int_and_gen_string():
    stop = ["."]
    state = number_and_word.run(stop, backend=sgl.Mock({"number": "+7.5", "word": '"x"'}))
    assert (state["number"], state["word"]) == ("+7", '"x"')
    assert stop == ["."]


@pytest.mark.parametrize(
    ("start", "says"),
    [
        (lambda mock: image_qa.run("cat.png", backend=mock), "image: no vision model"),
    ],
)
def test_what_is_not_built_is_refused_at_the_line_before_anything_is_asked(start, says):
    mock = sgl.Mock("x")
    with pytest.raises(sgl.ConstraintError, match=says) as caught:
        start(mock).result(10)
    assert caught.value.where.startswith("test_sglang_programs.py:")
    assert mock.prompts == []


@sgl.function
def driver_licence(s):
    s += sgl.user("Fill in the form.")
    with s.var_scope("answer"):
        s += sgl.assistant_begin()
        s += "Name:" + sgl.gen("name", max_tokens=8) + "\n"
        s += sgl.assistant_end()


def test_var_scope():
    state = driver_licence.run(backend=sgl.Mock(" Ann"))
    assert state["answer"] == "<|assistant|>\nName: Ann\n<|end|>\n"
    assert "".join(state.text_iter("answer")) == state["answer"]


@sgl.function
def drafts(s, topic):
    s += "About " + topic + ":"
    with s.copy() as tmp:
        tmp += sgl.gen("draft")
    s += " in short," + sgl.gen("final")
    return s["draft"]


def test_copy():
    state = drafts.run("rain", backend=sgl.Mock({"draft": " long", "final": " wet"}))
    assert state.ret_value == " long"
    assert state.text() == "About rain: in short, wet"


@sgl.function
def with_roles(s):
    with s.system():
        s += "Be brief."
    with s.user():
        s += "Hi"
    with s.assistant():
        s += sgl.gen("answer")


def test_roles_as_blocks():
    assert [m["content"] for m in with_roles.run(backend=sgl.Mock("Hello")).messages()] == ["Be brief.", "Hi", "Hello"]


def test_bound_arguments_and_errors():
    bound = multi_turn_question.bind(question_1="One?")
    assert bound.run(question_2="Two?", backend=sgl.Mock("x"))["answer_2"] == "x"
    state = tool_use.run("x", backend=sgl.Mock("x", fail={"expression": "lost"}))
    assert isinstance(state.error(), sgl.GenerationError)
