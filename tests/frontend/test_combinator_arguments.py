"""Bad arguments of the combinators: refused at the user's line, with the field, the value and the remedy."""

import pytest

import ramet as rt

from .test_branches import Recorder
from .test_combinators import critique, own_name, rated, revise, run

GOOD = {
    "vote": ((own_name,), {"n": 2}),
    "best_of": ((own_name,), {"n": 2, "score": len}),
    "cascade": (([own_name],), {"accept": bool}),
    "refine_until": ((own_name,), {"critique": critique, "revise": revise, "accept": bool}),
    "beam": ((lambda b, level: b.gen(),), {"n": 2, "width": 2, "depth": 1, "score": len}),
    "tree_search": ((lambda b, level: b.gen(),), {"n": 2, "depth": 1, "score": len}),
}


@pytest.mark.parametrize("name", GOOD)
def test_the_arguments_that_the_bad_ones_are_made_of_are_good(name):
    args, options = GOOD[name]
    run(lambda s: getattr(rt, name)(s, *args, **options), rt.Mock("x"))


@pytest.mark.parametrize(
    ("name", "args", "options", "message"),
    [
        ("vote", None, {"n": 0}, "n=0: must be an integer of at least 1"),
        ("vote", None, {"n": True}, "n=True: must be an integer"),
        ("vote", None, {"key": 3}, "key=3: must be a function"),
        ("vote", (None,), {}, "attempt=None: must be a function"),
        ("vote", (lambda b: None,), {}, r"attempt of vote\(\) returned None: it must return the value that it records"),
        ("best_of", None, {"n": 2.0}, "n=2.0: must be an integer"),
        ("best_of", None, {"judge": rated}, "score and judge given: give one of score, judge"),
        ("best_of", None, {"score": "len"}, "score='len': must be a function"),
        ("best_of", None, {"score": lambda text: "good"}, "score gave 'good': it must be a number"),
        ("best_of", None, {"score": lambda text: float("nan")}, "score gave nan: it must be a number"),
        ("best_of", None, {"score": None}, "add logprobs=0 to its generation, or give a function that rates it"),
        ("best_of", (lambda b: b.gen().map(len),), {"score": None}, "no single generation or choice"),
        ("cascade", ([],), {}, r"attempts=\[\]: must be a list of one function or more"),
        ("cascade", (own_name,), {}, "attempts=<function.*: must be a list"),
        ("cascade", ([own_name, 3],), {}, "attempts=3: must be a function"),
        ("cascade", None, {"accept": None}, "none of them given: give one of accept, judge, threshold"),
        ("cascade", None, {"accept": None, "threshold": "x"}, "threshold gave 'x': it must be a number"),
        ("cascade", None, {"accept": None, "threshold": -1}, "add logprobs=0 to its generation"),
        (
            "cascade",
            None,
            {"accept": None, "judge": lambda b: b.gen(name="v")},
            "it must be a bool, or the text yes or",
        ),
        ("refine_until", None, {"rounds": -1}, "rounds=-1: must be an integer of at least 0"),
        ("refine_until", None, {"critique": "c"}, "critique='c': must be a function"),
        ("beam", None, {"width": 3}, "width=3: must be an integer from 1 to 2"),
        ("beam", None, {"depth": 0}, "depth=0: must be an integer of at least 1"),
        ("beam", None, {"score": None}, "add logprobs=0 to its generation"),
        ("tree_search", None, {"keep": 0}, "keep=0: must be an integer of at least 1"),
        ("tree_search", None, {"score": None}, "none of them given: give one of judge, score"),
        ("tree_search", ("x",), {}, "propose='x': must be a function"),
    ],
)
def test_bad_arguments_are_refused_at_their_line(name, args, options, message):
    good_args, good_options = GOOD[name]
    args, options = good_args if args is None else args, {**good_options, **options}

    def body(s):
        getattr(rt, name)(s, *args, **options)

    async def later(s):
        await getattr(rt, "a" + name)(s, *args, **options)

    for each in (body, later):
        with pytest.raises(rt.ConstraintError, match=message) as caught:
            run(each, rt.Mock("x"))
        assert caught.value.where.startswith("test_combinator_arguments.py:")


def test_the_state_comes_first():
    with pytest.raises(rt.StateError, match=r"expected a branch \(a State\), got str"):
        run(lambda s: rt.vote("s", own_name, n=2), rt.Mock("x"))


def test_the_blocking_form_is_refused_in_an_async_body():
    async def body(s):
        rt.vote(s, own_name, n=2)

    backend = Recorder("x")
    with pytest.raises(rt.StateError, match=r"in an async body: avote\(\)"):
        run(body, backend)
    assert backend.ops == []


def test_answers_that_cannot_be_counted():
    def body(s):
        rt.vote(s, lambda b: b.gen(list[int]), n=2)

    with pytest.raises(rt.ConstraintError, match=r"vote over \[1\]: a list cannot be counted; give key="):
        run(body, rt.Mock("[1]"))
