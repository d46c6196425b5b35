"""Compiling: errors of reads that the program handles itself are for Python; those that it lets pass are not."""

from __future__ import annotations

import contextlib
import gc
import inspect
import threading
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ramet as rt

WAIT = 20.0
FILE = Path(__file__).name
FAILURES = (KeyError, rt.ParseError)


def number(s: rt.State) -> str:
    return f"{s.gen(int, name='n', max_tokens=3, stop='2').get()}"  # here


def _by_type(s: rt.State) -> str:
    try:
        return number(s)
    except rt.ParseError:
        return "none"


def _by_base(s: rt.State) -> str:
    try:
        return number(s)
    except Exception:  # noqa: BLE001
        return "none"


def _by_everything(s: rt.State) -> str:
    try:
        return number(s)
    except:  # noqa: E722
        return "none"


def _second(s: rt.State) -> str:
    try:
        return number(s)
    except KeyError:
        return "key"
    except (ValueError, rt.ProgramError) as error:
        return f"none, {type(error).__name__}"


def _by_variable(s: rt.State) -> str:
    try:
        return number(s)
    except FAILURES:
        return "none"


def _by_call(s: rt.State) -> str:
    try:
        return number(s)
    except failures():
        return "none"


def failures() -> tuple[type[BaseException], ...]:
    return FAILURES


def _further_out(s: rt.State) -> str:
    try:
        with contextlib.nullcontext():
            try:
                return number(s)
            except KeyError:
                return "key"
            finally:
                s += "end"
    except rt.RametError:
        return "none"


def _raises_another(s: rt.State) -> str:
    try:
        return number(s)
    except rt.ParseError as error:
        raise LookupError("no number") from error


def _sometimes_again(s: rt.State, again: bool = False) -> str:
    try:
        return number(s)
    except rt.ParseError:
        if again:
            raise
    return "none"


def _in_groups(s: rt.State) -> str:
    result = "none"
    try:
        result = number(s)
    except* rt.ParseError:
        result = "failed"
    return result


def _loops(s: rt.State) -> str:
    for _ in range(2):
        try:
            return number(s)
        except rt.ParseError:
            continue
    return "none"


def _finally_returns(s: rt.State) -> str:
    try:
        number(s)
    finally:
        return "none"  # noqa: B012


async def _awaits(s: rt.State) -> str:
    try:
        return f"{await s.gen(int, name='n', max_tokens=3, stop='2')}"  # here
    except rt.ParseError:
        return "none"


def _suppresses(s: rt.State) -> str:
    with contextlib.suppress(rt.ParseError):
        return number(s)
    return "none"


def _suppresses_further_out(s: rt.State) -> str:
    with contextlib.suppress(Exception), contextlib.nullcontext():
        return number(s)
    return "none"


def _stacked(s: rt.State) -> str:
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: None)
        stack.enter_context(contextlib.suppress(rt.RametError))
        return number(s)
    return "none"


class Swallows:
    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> bool:
        return kind is not None and issubclass(kind, rt.RametError)


def _by_manager(s: rt.State) -> str:
    with Swallows():
        return number(s)
    return "none"


@contextlib.contextmanager
def lenient() -> Iterator[None]:
    with contextlib.suppress(rt.ParseError):
        yield


@contextlib.contextmanager
def forgiving() -> Iterator[None]:
    try:  # noqa: SIM105
        yield
    except Exception:  # noqa: BLE001
        pass


def _by_generator(s: rt.State) -> str:
    with forgiving():
        return number(s)
    return "none"


def _by_generators_block(s: rt.State) -> str:
    with lenient():
        return number(s)
    return "none"


async def _awaits_in_a_block(s: rt.State) -> str:
    async with forgiving_async():
        return f"{await s.gen(int, name='n', max_tokens=3, stop='2')}"  # here
    return "none"


@contextlib.asynccontextmanager
async def forgiving_async() -> AsyncIterator[None]:
    try:  # noqa: SIM105
        yield
    except rt.ParseError:
        pass


HANDLED = [
    _by_type, _by_base, _by_everything, _second, _by_variable, _by_call, _further_out, _raises_another,
    _sometimes_again, _in_groups, _loops, _finally_returns, _awaits, _suppresses, _suppresses_further_out, _stacked,
    _by_manager, _by_generator, _by_generators_block, _awaits_in_a_block,
]  # fmt: skip


def outcome(start: Callable[..., Any], answer: str) -> Any:
    try:
        return start(backend=rt.Mock({"n": answer})).result(WAIT)
    except Exception as error:  # noqa: BLE001 - whichever it is
        return type(error)


def line(body: Callable[..., Any]) -> str:
    lines, first = inspect.getsourcelines(body)
    return f"{FILE}:{first + next(index for index, each in enumerate(lines) if '# here' in each)}"


@pytest.mark.parametrize("body", HANDLED, ids=lambda body: body.__name__)
@pytest.mark.parametrize("answer", ["25", "35"])
def test_what_the_program_handles_is_for_python(body: Callable[..., Any], answer: str) -> None:
    program = rt.function(body)
    [found] = program.compile().breaks
    assert (found.kind, found.where) == ("feature", line(body if inspect.iscoroutinefunction(body) else number))
    assert found.reason.startswith("the program itself handles an error of what it reads here")
    assert outcome(program.compile().run, answer) == outcome(program.run, answer)


class Keeps:
    def __init__(self, s: rt.State) -> None:
        self.s = s

    def __enter__(self) -> Keeps:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        kept.append(weakref.ref(self))


kept: list[weakref.ref[Keeps]] = []


def test_a_trace_that_is_over_keeps_no_manager() -> None:
    @rt.function
    def enters(s: rt.State) -> None:
        with Keeps(s):
            s.gen(max_tokens=1).get()

    was = gc.isenabled()
    gc.disable()
    try:
        enters.compile()
        assert kept and not any(each() for each in kept)
    finally:
        (gc.enable if was else gc.disable)()


# --- what changes nothing ---


def _finally(s: rt.State) -> str:
    try:
        return number(s)
    finally:
        if len(FAILURES) > 1:
            s += "end"
        for _ in range(2):
            s += "."


def _again(s: rt.State) -> str:
    try:
        return number(s)
    except Exception:
        s += "failed"
        raise


def _others(s: rt.State) -> str:
    try:
        return number(s)
    except (KeyError, ValueError):
        return "key"
    except rt.UnknownVariable:
        return "unknown"
    except OSError as error:
        return str(error)


def _around_others(s: rt.State) -> str:
    try:
        kind = {"a": "b"}["c"]
    except Exception:  # noqa: BLE001
        kind = "none"
    return kind + number(s)


def _in_messages(s: rt.State) -> str:
    with s.user(), contextlib.ExitStack() as stack:
        stack.callback(lambda: None)
        return number(s)


@contextlib.contextmanager
def block() -> Iterator[None]:
    try:
        yield
    finally:
        pass


def _in_generators(s: rt.State) -> str:
    with block():
        return "".join(number(s) for _ in range(1))


async def _awaits_in_blocks(s: rt.State) -> str:
    with s.user():
        return f"{await s.gen(int, name='n', max_tokens=3, stop='2')}"


class Passes:
    def __enter__(self) -> Passes:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None:
            return


def _in_blocks(s: rt.State) -> str:
    with contextlib.suppress(KeyError), Passes(), block(), open(__file__), warnings.catch_warnings():
        return number(s)
    return "none"


def _behind_blocks(s: rt.State) -> str:
    with contextlib.suppress(Exception):
        s += "before"
    with threading.Lock(), contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(LookupError))
        return number(s)
    return "none"


HARMLESS = [
    _finally, _again, _others, _around_others, _in_messages, _in_generators, _awaits_in_blocks, _in_blocks,
    _behind_blocks,
]  # fmt: skip


@pytest.mark.parametrize("body", HARMLESS, ids=lambda body: body.__name__)
@pytest.mark.parametrize("answer", ["25", "35"])
def test_what_passes_an_error_on_stays_whole(body: Callable[..., Any], answer: str) -> None:
    program = rt.function(body)
    plan = program.compile()
    assert plan.whole, plan.breaks
    found, expected = outcome(plan.run, answer), outcome(program.run, answer)
    assert found == expected or issubclass(found, expected)
