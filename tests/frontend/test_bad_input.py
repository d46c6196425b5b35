"""Bad input: each a typed error at the user's line that says what to do, with nothing left running."""

import enum
import math
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

import pytest
from pydantic import Field

import ramet as rt


@dataclass
class City:
    name: str


class Empty(enum.Enum):
    pass


def refused(body, error=rt.ConstraintError, match="", answers="x"):
    mock = rt.Mock(answers)
    handle = rt.function(body).using(backend=mock)()
    with pytest.raises(error, match=match) as caught:
        handle.result(10)
    assert caught.value.where.startswith("test_bad_input.py:")
    assert mock.info()["programs"] == 0
    return caught.value


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_tokens": 0}, r"max_tokens=0: .*leave it out"),
        ({"max_tokens": -3}, r"max_tokens=-3"),
        ({"max_tokens": 1.5}, r"max_tokens=1\.5: must be an integer"),
        ({"max_tokens": True}, r"max_tokens=True"),
        ({"min_tokens": 5, "max_tokens": 2}, r"min_tokens=5: must not exceed"),
        ({"temperature": math.nan}, r"temperature=nan: must be a finite number"),
        ({"temperature": math.inf}, r"temperature=inf"),
        ({"temperature": -1}, r"temperature=-1"),
        ({"top_p": 0}, r"top_p=0"),
        ({"top_k": -2}, r"top_k=-2"),
        ({"stop": [""]}, r"stop=''"),
        ({"stop": ["x"] * 17}, r"stop='17 strings'"),
        ({"stop": [1]}, r"stop=\[1\]"),
        ({"stop": 5}, r"stop=5: must be a string or a list of strings"),
        ({"stop_token_ids": ["a"]}, r"stop_token_ids='a'"),
        ({"logprobs": 99}, r"logprobs=99"),
        ({"logit_bias": {1: 1000}}, r"logit_bias\[1\]"),
        ({"logit_bias": {1: "much"}}, r"logit_bias\[1\]='much': must be a number"),
        ({"logit_bias": [1]}, r"logit_bias=\[1\]: must map ids of tokens to numbers"),
        ({"ignore_eos": "no"}, "ignore_eos='no': must be True or False"),
        ({"return_logprob": 1}, "return_logprob=1: must be True or False"),
        ({"stop_regex": 3}, "stop_regex=3: must be a string"),
        ({"timeout": 0}, "timeout=0: must be a positive number of seconds"),
        ({"seed": "x"}, r"seed='x'"),
        ({"regex": "[0-9"}, r"regex=.*unterminated character set"),
        ({"regex": r"(?=a)b"}, r"regex=.*look-ahead"),
        ({"regex": r"(a)\1"}, r"regex=.*back-reference"),
        ({"regex": 5}, r"regex=5: must be a str"),
        ({"json_schema": {"type": "objekt"}}, r'json_schema: at "#/type"'),
        ({"json_schema": "{"}, r"json_schema=\{: is no JSON"),
        ({"json_schema": {"pattern": {1}}}, r"json_schema"),
        ({"json_schema": {"$ref": "https://example.org/x"}}, r'json_schema: at "#/\$ref"'),
        ({"json_schema": print}, r"print.* is no type"),
        ({"grammar": " "}, r"grammar=' ': must be a text"),
        ({"grammar": 5}, r"grammar=5: must be a text"),
        ({"choices": []}, r"choices=\[\]: give at least one"),
        ({"choices": "yes"}, r"choices='yes': must be a list"),
        ({"regex": "a", "choices": ["a"]}, r"regex='a', choices=.*: a generation has one constraint"),
        ({"type": int, "regex": "a"}, r"type=int, regex='.*': a generation has one constraint"),
        ({"jump": "always"}, r"jump='always': must be one of canonical, exact, off"),
        ({"json_whitespace": "none"}, r"json_whitespace='none': must be one of fixed, flexible"),
        ({"regex": "a", "json_whitespace": "fixed"}, r"json_whitespace='fixed': the text is no JSON"),
        ({"regexp": "a"}, r"regexp='a': no such option; did you mean regex\?"),
        ({"n": 0}, r"n=0: must be an integer from 1"),
        ({"n": 129}, r"n=129"),
        ({"wibble": 1}, r"wibble=1: no such option; known: max_tokens"),
    ],
)
def test_options_of_gen(options, match):
    refused(lambda s: s.gen(name="x", **options), match=match)


@dataclass
class Elsewhere:
    name: "NotDefinedAnywhere"  # noqa: F821


@pytest.mark.parametrize(
    ("type_", "match"),
    [
        (bytes, "type=bytes: bytes is no type that a text can be read as; use a dataclass"),
        (list[bytes], r"type=list\[bytes\]: bytes is no type"),
        (dict[int, str], r"dict\[int, ...\]: keys of JSON objects are str"),
        (TypeVar("T"), "~T is no type"),
        (Literal[b"x"] | None, "b'x' has no JSON"),
        (Empty | None, "Empty has no values"),
        (Elsewhere, "Elsewhere: the annotation 'NotDefinedAnywhere' is not known in its module"),
        (5, "5 is no type"),
        (["a", "b"], r"\['a', 'b'\] is no type"),
        (Annotated[str, Field(pattern="(?=a)b")], "type=.*pydantic says: Error building"),
    ],
)
def test_types_that_no_text_has(type_, match):
    error = refused(lambda s: s.gen(type_), match=match)
    assert error.message.startswith("type=")


def test_other_arguments():
    refused(lambda s: s.gen("x"), match=r"write gen\(name='x'\)")
    refused(lambda s: s.gen(Empty), match="at least one")
    refused(lambda s: s.gen(Literal["1", 1]), match="same text")
    refused(lambda s: s.gen(Literal["a", ""]), match="non-empty")
    refused(lambda s: s.reply(tools=[print]), match="tools: print: the parameter")
    refused(lambda s: s.select([]), match="at least one")
    refused(lambda s: s.select("yes"), match="must be a list")
    refused(lambda s: s.select(["a", "a"]), match="'a' twice")
    refused(lambda s: s.select(["a", ""]), match="non-empty")
    refused(lambda s: s.select([1, 2]), match="contain 1")
    refused(lambda s: s.select(["a"], method="best"), match="must be one of token_length_normalized")
    refused(lambda s: s.role("robot", "x"), match="role='robot': must be one of system")
    refused(lambda s: s.fork(-1), match="must not be negative")
    refused(lambda s: s.fork("abc"), match="give a number of branches")
    refused(lambda s: s.fork(True), match="give a number")
    refused(lambda s: s.fork(2).join("sideways"), match="mode='sideways'")
    refused(lambda s: s.fork(2).join(template="x"), match='needs mode="concat"')
    refused(lambda s: s.fork(2).join("concat", template="{x"), match="template=")
    refused(lambda s: s.fork(2).join("concat", template="{x:>3}"), match="no format")
    refused(lambda s: s.fork(2).join("concat", template="{x}"), error=rt.UnknownVariable, match="no variable 'x'")
    refused(lambda s: s.fork(2).__iadd__(["a"]), match="1 texts for 2 branches")
    refused(lambda s: s.call(5), match="cannot be called")
    refused(lambda s: s.__setitem__("", 1), match="non-empty string")


@pytest.mark.parametrize("piece", [5, None, 1.5, ["a"], {"a": 1}, object()])
def test_what_cannot_be_appended(piece):
    def body(s):
        s += piece

    refused(body, match="cannot be appended")


def test_an_expression_of_something_else():
    with pytest.raises(rt.ConstraintError, match=r"5 of type int.*test_bad_input\.py:\d+"):
        rt.gen("x") + 5
    with pytest.raises(rt.ConstraintError, match="cannot be appended"):
        None + rt.gen("x")


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: rt.gen("x", regex="a("), "regex="),
        (lambda: rt.gen("x", json_schema="{"), "json_schema="),
        (lambda: rt.gen("x", dtype=list), "dtype=.*must be one of int, float, bool, str"),
        (lambda: rt.gen("x", dtype="decimal"), "dtype='decimal'"),
        (lambda: rt.gen("x", dtype=int, regex="a"), "regex=: a generation has one constraint"),
        (lambda: rt.gen("x", regex="a", choices=["a"]), r"regex='a', choices=\['a'\]"),
        (lambda: rt.gen_int("x", temperature=-1), "temperature=-1"),
        (lambda: rt.gen_string("x", n=0), "n=0"),
        (lambda: rt.gen("x", stop_regex="a"), "stop_regex"),
        (lambda: rt.gen("x", logprob_start_len=0), "logprobs of the prompt"),
        (lambda: rt.gen("x", choices=[]), "at least one"),
        (lambda: rt.select("x", choices=["a"], temperature=0.5), "temperature=0.5"),
        (lambda: rt.gen("x", n=0), "n=0"),
        (lambda: rt.gen("x", temperature=math.nan), "temperature=nan"),
        (lambda: rt.select("x"), "choices=None"),
        (lambda: rt.image("cat.png"), "no vision model"),
        (lambda: rt.separate_reasoning(rt.gen("x"), "qwen3"), "reasoning parsers"),
        (lambda: rt.function(num_api_spec_tokens=4), "num_api_spec_tokens=4"),
        (lambda: rt.function(temperature=math.inf), "temperature=inf"),
        (lambda: rt.function(lambda: 1), "first parameter"),
    ],
)
def test_expressions_are_checked_where_they_are_written(make, match):
    with pytest.raises(rt.ConstraintError, match=match) as caught:
        make()
    assert caught.value.where.startswith("test_bad_input.py:")


def test_roles_do_not_nest_and_end_what_they_begin():
    def nested(s):
        with s.user():
            s.system("x")

    def unmatched(s):
        s += rt.user_end()

    def crossed(s):
        s += rt.user_begin() + "x" + rt.assistant_end()

    refused(nested, rt.StateError, "message of 'system' begins inside one of 'user'")
    refused(unmatched, rt.StateError, "no message is open")
    refused(crossed, rt.StateError, "the open message is of 'user'")


def test_closed_and_foreign_branches():
    def joined(s):
        branches = s.fork(1)
        branches.join()
        branches[0].user("x")

    def twice(s):
        branches = s.fork(1)
        branches.join()
        branches.join()

    def itself(s):
        s.adopt(s)

    def no_state(s):
        s.adopt("x")

    def closed(s):
        branches = s.fork(1)
        branches.join()
        s.adopt(branches[0])

    def left(s):
        old = s.fork(1)[0]
        with old.copy() as tmp:
            tmp += "x"
        tmp += "y"

    def open_role(s):
        branches = s.fork(1)
        branches += rt.user_begin()
        branches.join("concat")

    refused(joined, rt.StateError, "was joined")
    refused(twice, rt.StateError, "joined already")
    refused(itself, rt.StateError, "cannot adopt itself")
    refused(no_state, rt.StateError, "got str")
    refused(closed, rt.StateError, "adopt it before")
    refused(left, rt.StateError, "block has ended")
    refused(open_role, rt.StateError, "end the message in the branch")


def test_a_state_outlives_its_program_for_reading_only():
    kept = []

    @rt.function
    def body(s):
        kept.append(s)
        s += rt.gen("x")

    with rt.using(rt.Mock("hi")):
        body().result(10)
        assert kept[0].text() == "hi"
        with pytest.raises(rt.StateError, match="the program has ended"):
            kept[0].gen()


def test_reading_a_variable_that_does_not_exist():
    def body(s):
        s["known"] = 1
        s["unknown"]

    error = refused(body, rt.UnknownVariable, "no variable 'unknown'; known: 'known'")
    assert isinstance(error, KeyError)


def test_a_prompt_longer_than_the_context():
    @rt.function
    def body(s):
        s += "word " * 20 + rt.gen("x", max_tokens=5)
        return s["x"]

    with pytest.raises(rt.ContextOverflow, match=r"26 words.*context of 10") as caught:
        body.using(backend=rt.Mock("x", context_length=10))().result(10)
    assert caught.value.prompt_tail.endswith("word ")


def test_an_empty_prompt_is_the_backends_to_judge():
    assert rt.function(lambda s: s.gen().get()).using(backend=rt.Mock("x"))().result(10) == "x"


def test_a_body_that_raises_cancels_what_it_left_behind():
    mock = rt.Mock(rt.Mock.PENDING)

    @rt.function
    def body(s):
        s += rt.gen("x")
        branches = s.fork(3)
        branches += rt.gen("y")
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine") as caught:
        body.using(backend=mock)().result(10)
    assert caught.value.__notes__ == ["in the ramet program 'body'"]
    assert mock.info()["programs"] == 0


def test_a_branch_that_raises_while_its_siblings_run():
    mock = rt.Mock({"b": rt.Mock.PENDING}, fail={"a": "broken"})

    @rt.function
    def body(s):
        branches = s.fork(["a", "b"])
        for branch in branches:
            branch += rt.gen(branch.item)
        branches[0]["a"]

    with pytest.raises(rt.GenerationError, match="broken"):
        body.using(backend=mock)().result(10)
    assert mock.info()["programs"] == 0


def test_a_block_that_raises_closes_its_role_and_branches():
    @rt.function
    def body(s):
        try:
            with s.user():
                s += "half"
                raise ValueError
        except ValueError:
            pass
        try:
            with s.fork(2) as branches:
                raise ValueError
        except ValueError:
            pass
        with pytest.raises(rt.StateError, match="its block raised"):
            branches[0].gen()
        return s.messages()

    result = body.using(backend=rt.Mock("x"))().result(10)
    assert result == [{"role": "user", "content": "half"}]


def test_no_backend_says_how_to_make_one():
    with pytest.raises(rt.EngineError, match=r"ramet\.using\(ramet\.Engine\(\)\)"):
        rt.function(lambda s: None)()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"timeout": 0}, "timeout=0"),
        ({"timeout": math.nan}, "timeout=nan"),
        ({"budget": 0}, "budget=0"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 1 << 63}, "below"),
        ({"temperature": "hot"}, "temperature='hot'"),
        ({"nonsense": 1}, "nonsense=1: no such option"),
    ],
)
def test_settings(options, match):
    with pytest.raises(rt.ConstraintError, match=match):
        rt.function(lambda s: None).using(**options)


def test_reusing_a_value_of_another_run():
    """A value of another run is no reference: its text is sent as a value of the client."""

    @rt.function
    def first(s):
        return s.gen(name="x")

    @rt.function
    def second(s, value):
        s += "got " + value + rt.gen("y")
        return s.text()

    with rt.using(rt.Mock({"x": "one", "y": "!"})):
        assert second(first().result(10)).result(10) == "got one!"
