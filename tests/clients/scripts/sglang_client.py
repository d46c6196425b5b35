"""SGLang's frontend language over `RuntimeEndpoint`: what its own test programs leave out. argv: base URL, model."""

import sys

import sglang as sgl

URL, MODEL = sys.argv[1:3]
endpoint = sgl.RuntimeEndpoint(URL)
sgl.set_default_backend(endpoint)
RIVERS = [" Nile", " Amazon", " Danube"]
METHODS = (
    sgl.token_length_normalized,
    sgl.greedy_token_selection,
    sgl.unconditional_likelihood_normalized,
)


@sgl.function
def tips(s, topic):
    """The tip suggestion of SGLang's README: an outline, branches, a join, a summary."""
    s += "Here are two tips for " + topic + ":\n1. Plan ahead.\n2. Keep notes.\n"
    branches = s.fork(2)
    for number, branch in enumerate(branches):
        branch += f"Tip {number + 1}, expanded:" + sgl.gen("more", max_tokens=8, stop="\n\n")
    s += "First:" + branches[0]["more"] + "\nSecond:" + branches[1]["more"] + "\nIn summary,"
    s += sgl.gen("summary", max_tokens=8)


@sgl.function
def talk(s, first, second):
    """Two turns."""
    s += sgl.system("You are brief.")
    s += sgl.user(first)
    s += sgl.assistant(sgl.gen("one", max_tokens=6))
    s += sgl.user(second)
    s += sgl.assistant(sgl.gen("two", max_tokens=6))


@sgl.function
def choose(s, method):
    """One choice of three."""
    s += "The longest river is the" + sgl.select("river", RIVERS, choices_method=method)


@sgl.function
def few_shots(s, word):
    """Examples first."""
    s += "big: small\nhot: cold\nfast: slow\n" + word + ":" + sgl.gen("opposite", stop="\n", max_tokens=6)


@sgl.function
def scored(s):
    """Logprobs of prompt and completion."""
    s += "Once upon a time" + sgl.gen(
        "tale", max_tokens=4, return_logprob=True, logprob_start_len=0, top_logprobs_num=2, return_text_in_logprobs=True
    )


def branches():
    state = tips.run(topic="writing", temperature=0)
    again = tips.run(topic="writing", temperature=0)
    assert state["summary"] == again["summary"]
    assert state.text().endswith(state["summary"])


def turns():
    state = talk.run(first="Name a river.", second="Another.", temperature=0)
    assert [message["role"] for message in state.messages()] == ["system", "user", "assistant", "user", "assistant"]
    assert state.messages()[2]["content"] == state["one"].strip()


def choices():
    for method in METHODS:
        state = choose.run(method=method, temperature=0)
        assert state["river"] in RIVERS
        info = state.get_meta_info("river")
        assert len(info["input_token_logprobs"]) == 3
        for tokens in info["input_token_logprobs"]:
            assert all(logprob <= 0 for logprob, _, _ in tokens)


def shots():
    words = ["tall", "wet", "loud", "young"]
    alone = [few_shots.run(word=word, temperature=0)["opposite"] for word in words]
    batch = few_shots.run_batch([{"word": word} for word in words], temperature=0, num_threads=4)
    assert [state["opposite"] for state in batch] == alone


def streams():
    whole = talk.run(first="Name a river.", second="Another.", temperature=0)
    state = talk.run(first="Name a river.", second="Another.", temperature=0, stream=True)
    assert "".join(state.text_iter()) == whole.text()
    state = talk.run(first="Name a river.", second="Another.", temperature=0, stream=True)
    assert "".join(state.text_iter("two")) == whole["two"]


def logprobs():
    state = scored.run(temperature=0)
    info = state.get_meta_info("tale")
    assert len(info["output_token_logprobs"]) == info["completion_tokens"]
    assert len(info["input_token_logprobs"]) == info["prompt_tokens"]
    assert info["input_token_logprobs"][0][0] is None
    assert "".join(text for _, _, text in info["output_token_logprobs"]) == state["tale"]
    assert all(len(top) == 2 for top in info["output_top_logprobs"])


def control():
    endpoint.flush_cache()
    assert endpoint.get_server_info()["kv"]["cached"] == 0
    endpoint.cache_prefix("The quick brown fox jumps over the lazy dog. " * 4)
    assert endpoint.get_server_info()["kv"]["cached"] > 0
    assert MODEL


for test in (branches, turns, choices, shots, streams, logprobs, control):
    test()
