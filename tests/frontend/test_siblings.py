"""What a failure in one branch means for the others."""

import threading

import pytest

import ramet as rt


def unfinished():
    """`bad` fails, `slow` never comes."""
    return rt.Mock({"slow": rt.Mock.PENDING, "*": "fine"}, fail={"bad": "broken"})


def fork(s, names=("slow", "bad")):
    branches = s.fork(names)
    for branch in branches:
        branch["x"] = branch.gen(name=branch.item)
    return branches


def read_gather(s, branches):
    branches.gather("x")


def read_values(s, branches):
    rt.gather(*[branch.value("x") for branch in branches])


def read_joined(s, branches):
    branches.join()
    s["x"]


def read_one(s, branches):
    branches[1]["x"]


@pytest.mark.parametrize("read", [read_gather, read_values, read_joined, read_one])
def test_an_error_that_leaves_the_body_cuts_the_siblings_short(read):
    @rt.function
    def body(s):
        read(s, fork(s))

    with unfinished() as mock:
        run = body.using(backend=mock)()
        with pytest.raises(rt.GenerationError, match="broken"):
            run.result(10)
        assert mock.info()["programs"] == 0
        assert [row["kind"] + " " + row["status"] for row in run.trace().rows() if row["kind"] == "gen"] == [
            "gen failed",
            "gen failed",
        ]


async def aread_gather(s, branches):
    await branches.agather("x")


async def aread_values(s, branches):
    await rt.agather(*[branch.value("x") for branch in branches])


async def aread_joined(s, branches):
    branches.join()
    await s.value("x")


@pytest.mark.parametrize("read", [aread_gather, aread_values, aread_joined])
def test_the_same_in_an_async_body(read):
    @rt.function
    async def body(s):
        await read(s, fork(s))

    with unfinished() as mock:
        with pytest.raises(rt.GenerationError, match="broken"):
            body.using(backend=mock)().result(10)
        assert mock.info()["programs"] == 0


@pytest.mark.parametrize("read", [read_gather, read_values, read_joined])
def test_a_failure_that_was_caught_covers_its_siblings(read):
    """Who catches the failure of a fork knows of it: a sibling that fails later is not reported again at the end."""
    caught = threading.Event()

    def late():
        assert caught.wait(10)
        raise ValueError("late")

    @rt.function
    def body(s):
        branches = s.fork(2)
        branches[0]["x"] = late_value = branches[0].call(late)
        branches[1]["x"] = branches[1].gen(name="bad")
        with pytest.raises(rt.GenerationError, match="broken"):
            read(s, branches)
        caught.set()
        with pytest.raises(ValueError, match="late"):
            raise late_value.future.exception(10).__cause__
        return "handled"

    with unfinished() as mock:
        assert body.using(backend=mock)().result(10) == "handled"


def test_gather_returns_errors_and_waits_for_all():
    @rt.function
    def body(s):
        branches = fork(s)
        mock.release("slow", "here")
        return branches.gather("x", on_error="return")

    with unfinished() as mock:
        slow, bad = body.using(backend=mock)().result(10)
    assert slow == "here"
    assert isinstance(bad, rt.GenerationError)


def test_gather_knows_its_options():
    @rt.function
    def body(s):
        fork(s, ["fine"]).gather("x", on_error="ignore")

    with pytest.raises(rt.ConstraintError, match="on_error='ignore': must be 'raise' or 'return'"):
        body.using(backend=unfinished())().result(10)


def test_a_late_value_times_out_in_a_gather():
    @rt.function
    def body(s):
        branches = s.fork(2)
        for branch in branches:
            branch.gen(name="slow", timeout=0.01)
        branches.gather("slow")

    with unfinished() as mock, pytest.raises(rt.ProgramTimeout, match=r"'slow' did not come within 0\.01 s"):
        body.using(backend=mock)().result(10)


@pytest.mark.parametrize("read", [read_gather])
def test_a_caught_error_has_cancelled_the_siblings(read):
    """`slow` would never come: that the body goes on and ends shows that it was stopped."""

    @rt.function
    def body(s):
        branches = fork(s, ("slow", "bad", "slow"))
        with pytest.raises(rt.GenerationError, match="broken"):
            read(s, branches)
        with pytest.raises(rt.StateError, match="cancelled"):
            branches[0] += "more"
        s += "go on"
        return s.gen(name="after").get()

    with unfinished() as mock:
        run = body.using(backend=mock)()
        assert run.result(10) == "fine"
        assert mock.info()["programs"] == 0


def test_on_error_return_leaves_the_siblings_alone():
    @rt.function
    def body(s):
        branches = fork(s, ("good", "bad", "good"))
        results = branches.gather("x", on_error="return")
        branches[0] += " and more"
        return [str(results[0]), type(results[1]).__name__, branches[0].gen(name="good").get()]

    with unfinished() as mock:
        assert body.using(backend=mock)().result(10) == ["fine", "GenerationError", "fine"]


def test_a_block_that_raises_has_cancelled_its_branches():
    @rt.function
    def body(s):
        with pytest.raises(ValueError, match="mine"), s.fork(2) as branches:  # noqa: PT012
            branches += rt.gen("slow")
            raise ValueError("mine")
        s += "go on"
        return s.gen(name="after").get()

    with unfinished() as mock:
        assert body.using(backend=mock)().result(10) == "fine"
