"""Programs: functions of a state, as values that can be run, bound, batched and moved between backends.

In: a function whose first parameter is the state. Out: a `Program` with the function's identity and typed calls.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any, Concatenate, Generic, Literal, ParamSpec, Protocol, TypeVar, overload

from ramet.frontend.backends.base import Backend
from ramet.frontend.batch import Batch, check_concurrency, lazily
from ramet.frontend.callers import caller
from ramet.frontend.errors import ConstraintError, StateError
from ramet.frontend.host import check_backend, choose_backend
from ramet.frontend.options import SAMPLING, check_timeout, checked, hint
from ramet.frontend.run import Run, Setting, start
from ramet.frontend.state import State
from ramet.frontend.where import user_line

if TYPE_CHECKING:
    from ramet.frontend.plan import Plan

P = ParamSpec("P")
R = TypeVar("R")
RUN_OPTIONS = ("backend", "timeout", "seed", "budget", "stream", "journal", "resume")
_STATE_NAMES = ("s", "state")


class Program(Generic[P, R]):
    """A program. Calling it starts it and returns its `Run` at once.

    Sampling defaults count in this order, later ones over earlier ones: decorator, `using`, options of `run`, the
    generation's own. The backend is that of `using`, else the option of `run`, else of `with ramet.using(...)`, else
    `set_default_backend`'s.
    """

    def __init__(self, fn: Callable[..., Any], options: Mapping[str, Any], where: str) -> None:
        self._fn = fn
        self._options = dict(options)
        self._bound: dict[str, Any] = {}
        self._instance: tuple[object, ...] = ()
        self._signature, self._state_index = _parse(fn, where)
        if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
            raise ConstraintError(f"{_name_of(fn)}: yields, and nobody would run it; return what it makes", where=where)
        self._is_async = any(map(inspect.iscoroutinefunction, (fn, inspect.unwrap(fn), type(fn).__call__)))
        functools.update_wrapper(self, fn)
        self.__name__ = _name_of(fn)
        self.__signature__ = self._signature

    # --- running ---

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Run[R]:
        """Start the program with these arguments; does not wait."""
        return self.run(*args, **kwargs)

    def run(self, *args: Any, **kwargs: Any) -> Run[R]:
        """Start the program; options (`backend`, `timeout`, `seed`, `budget`, `journal`, `resume`, `stream`, sampling
        defaults) may be mixed in with its arguments. A name that is a parameter of the program is the program's.
        `stream` is accepted for SGLang's sake: every run streams."""
        where = user_line()
        own, options = self._split(kwargs)
        return self._start(args, own, _run_options(options, where))

    def _split(self, kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        names = self._signature.parameters
        options = {
            name: value
            for name, value in kwargs.items()
            if name not in names and (name in SAMPLING or name in RUN_OPTIONS)
        }
        return {name: value for name, value in kwargs.items() if name not in options}, options

    def _arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> inspect.BoundArguments:
        try:
            partial = self._signature.bind_partial(*args, **kwargs)
            for name, value in self._bound.items():
                partial.arguments.setdefault(name, value)
            return self._signature.bind(*_positional(partial), **_keywords(partial))
        except TypeError as error:
            near = [hint(name, known) for name in kwargs if name not in (known := self._known_names())]
            remedy = f"; {near[0]}" if near and "did you mean" in near[0] else ""
            raise TypeError(f"{self.__name__}{self._signature}: {error}{remedy}") from None

    def _known_names(self) -> tuple[str, ...]:
        return (*self._signature.parameters, *RUN_OPTIONS, *SAMPLING)

    def _start(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: Mapping[str, Any]) -> Run[R]:
        arguments = self._arguments(args, kwargs)
        merged = {**options, **{k: v for k, v in self._options.items() if k == "backend" or k not in options}}
        setting = Setting(
            backend=choose_backend(merged.get("backend")),
            sampling={k: v for k, v in merged.items() if k not in RUN_OPTIONS},
            seed=merged.get("seed"),
            timeout=merged.get("timeout"),
            budget=merged.get("budget"),
        )
        above = caller()
        if "journal" in merged or "resume" in merged or (above is not None and above.journal is not None):
            from ramet.frontend.journal import recorded

            setting = recorded(self.__name__, self._fn, arguments, setting, merged)

        def body(state: State) -> Any:
            value = self._fn(*self._instance, state, *arguments.args, **arguments.kwargs)
            if inspect.iscoroutine(value) and not self._is_async:
                value.close()
                raise StateError("the body gave a coroutine, which nobody would run: make the program `async def`")
            return value

        return start(self.__name__, body, self._is_async, setting)

    def batch(
        self,
        rows: Iterable[Any],
        *,
        concurrency: int | None = None,
        on_error: Literal["raise", "return"] = "raise",
        progress: bool = False,
        **options: Any,
    ) -> Batch[R]:
        """Run the program once per row, at most `concurrency` (64) at a time; starts at once, does not wait.

        A row is a dict of arguments, a tuple or list of positional ones, or the one argument. All rows are checked
        against the signature before any starts. With `seed`, row i runs with a seed derived from it and i. See `Batch`.
        """
        where = user_line()
        chosen = _run_options(options, where)
        prepared = self._rows(rows, where)
        return Batch(self.__name__, self._starters(prepared, chosen), concurrency, on_error, progress, where)

    @overload
    def run_batch(
        self, rows: Iterable[Any], *, generator_style: Literal[False] = False, **options: Any
    ) -> list[Run[R]]: ...
    @overload
    def run_batch(self, rows: Iterable[Any], *, generator_style: bool, **options: Any) -> Iterable[Run[R]]: ...
    def run_batch(
        self,
        rows: Iterable[Any],
        *,
        progress_bar: bool = False,
        generator_style: bool = False,
        num_threads: int | Literal["auto"] = "auto",
        **options: Any,
    ) -> Iterable[Run[R]]:
        """SGLang's batch: the finished runs in row order; a row that failed raises where it is read.
        `generator_style` takes rows and gives runs lazily. `num_threads` bounds how many run at a time."""
        where = user_line()
        concurrency = None if num_threads == "auto" else check_concurrency(num_threads, where, "num_threads")
        chosen = _run_options(options, where)
        if generator_style:
            starters = self._starters((self._row(i, row, where) for i, row in enumerate(rows)), chosen)
            return lazily(starters, concurrency, progress_bar, where)
        prepared = self._rows(rows, where)
        batch = Batch(self.__name__, self._starters(prepared, chosen), concurrency, "return", progress_bar, where)
        batch.result()
        return batch.runs

    def _starters(
        self, rows: Iterable[tuple[tuple[Any, ...], dict[str, Any]]], options: dict[str, Any]
    ) -> Iterator[Callable[[], Run[R]]]:
        seed = options.get("seed", self._options.get("seed"))
        if "resume" in options or "resume" in self._options:
            raise ConstraintError("resume=...: resumes one run, and a batch makes one per row: resume each by itself")
        for index, (args, kwargs) in enumerate(rows):
            row = options if seed is None else {**options, "seed": _row_seed(seed, index)}
            yield functools.partial(self._start, args, kwargs, row)

    def _rows(self, rows: Iterable[Any], where: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        if isinstance(rows, str | bytes | Mapping) or not isinstance(rows, Iterable):
            raise ConstraintError(f"rows={rows!r:.80}: must be a list with one row per run", where=where)
        return [self._row(index, row, where) for index, row in enumerate(rows)]

    def _row(self, index: int, row: Any, where: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args: tuple[Any, ...] = tuple(row) if isinstance(row, list | tuple) else () if isinstance(row, dict) else (row,)
        kwargs = dict(row) if isinstance(row, dict) else {}
        try:
            self._arguments(args, kwargs)
        except TypeError as error:
            raise ConstraintError(f"row {index}: {error}", where=where) from None
        return args, kwargs

    # --- variants ---

    def using(
        self,
        *,
        backend: Backend | None = None,
        timeout: float | None = None,
        seed: int | None = None,
        budget: int | None = None,
        journal: str | PathLike[str] | None = None,
        resume: str | None = None,
        **sampling: Any,
    ) -> Program[P, R]:
        """This program with other settings: `backend`; `timeout`, seconds for the whole run; `seed` of all sampling
        noise; `budget`, the most tokens that all its generations together may produce; sampling defaults.

        `journal` is a file in which every run is recorded while it goes on (made when there is none); `resume` the id
        (`Run.id`) of one that was interrupted: called with the same arguments, the program goes on with it. What had
        finished is not done again, what had not gives the same bits. `JournalMismatch` when it cannot go on;
        `UncertainToolCall` at a host call that was interrupted (see `idempotent`)."""
        given = {"backend": backend, "timeout": timeout, "seed": seed, "budget": budget, **sampling}
        given.update(journal=journal, resume=resume)
        other = self._clone()
        other._options.update(_run_options({k: v for k, v in given.items() if v is not None}, user_line()))
        return other

    def bind(self, **arguments: Any) -> Program[..., R]:
        """This program with some arguments given; an explicit argument of a call beats a bound one."""
        unknown = [name for name in arguments if name not in self._signature.parameters]
        if unknown:
            remedy = hint(unknown[0], self._signature.parameters)
            raise ConstraintError(f"bind({unknown[0]}=...): no such parameter; {remedy}", where=user_line())
        other: Program[..., R] = self._clone()
        other._bound.update(arguments)
        return other

    def compile(self, *, max_paths: int = 64, **static: Any) -> Plan:
        """The program as a plan: its body is run against symbols, once for each path through it (at most `max_paths`).

        Parameters with a default are compiled in, with it or with what `static` says, and so are bound ones; `...`
        leaves one open. All others stay open: a str is a text; of an int, a list and the like the text alone may be
        used; a bool, an Enum or a Literal is explored value by value. A body that does more than record operations
        (writes files, sends mail) does it at every run of its body, also at these. Raises `ConstraintError`.
        """
        from ramet.frontend.compiling import compile_program

        return compile_program(self, max_paths, static, user_line())

    def trace(self, **static: Any) -> Plan:
        """`compile(**static)` (SGLang's name)."""
        return self.compile(**static)

    def __get__(self, instance: object | None, owner: type | None = None) -> Program[P, R]:
        if instance is None or self._state_index == 0:
            return self
        other = self._clone()
        other._instance = (instance,)
        return other

    def _clone(self) -> Program[P, R]:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._options, other._bound = dict(self._options), dict(self._bound)
        return other

    def __repr__(self) -> str:
        return f"<Program {self.__name__}{self._signature}>"

    __name__: str


def _parse(fn: Callable[..., Any], where: str) -> tuple[inspect.Signature, int]:
    """The signature without the state (and `self`), and at which place the state stands."""
    if not callable(fn):
        raise ConstraintError(
            f"function({fn!r}): decorate a function; options go by keyword: @function(temperature=0)", where=where
        )
    parameters = list(inspect.signature(fn).parameters.values())
    index = next((i for i, parameter in enumerate(parameters[:2]) if _is_state(parameter)), 0)
    if not parameters or parameters[index].kind not in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    ):
        name = _name_of(fn)
        raise ConstraintError(f"{name}: the first parameter of a program is its state: def {name}(s, ...)", where=where)
    return inspect.Signature(parameters[index + 1 :]), index


def _name_of(fn: Callable[..., Any]) -> str:
    """Of a function, or of what stands for one: a `functools.partial`, an object that can be called."""
    inner = fn.func if isinstance(fn, functools.partial) else fn
    return str(getattr(inner, "__name__", type(inner).__name__))


def _is_state(parameter: inspect.Parameter) -> bool:
    note = parameter.annotation
    named = note if isinstance(note, str) else getattr(note, "__name__", "")
    return named.split(".")[-1] == "State" or (parameter.name in _STATE_NAMES and note is parameter.empty)


def _rest(arguments: inspect.BoundArguments) -> tuple[Any, ...]:
    """What goes to `*rest`."""
    kinds = {parameter.kind: name for name, parameter in arguments.signature.parameters.items()}
    return tuple(arguments.arguments.get(kinds.get(inspect.Parameter.VAR_POSITIONAL, ""), ()))


def _positional(arguments: inspect.BoundArguments) -> tuple[Any, ...]:
    """In the signature's order: those that have no names and, where something goes to `*rest`, all before it."""
    found: list[Any] = []
    rest = _rest(arguments)
    for name, parameter in arguments.signature.parameters.items():
        named = parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        if parameter.kind is not inspect.Parameter.POSITIONAL_ONLY and not (named and rest):
            continue
        value = arguments.arguments.get(name, parameter.default)
        if value is parameter.empty:
            return tuple(found)  # it is missing: so says the signature
        found.append(value)
    return (*found, *rest)


def _keywords(arguments: inspect.BoundArguments) -> dict[str, Any]:
    out: dict[str, Any] = {}
    rest = _rest(arguments)
    for name, value in arguments.arguments.items():
        kind = arguments.signature.parameters[name].kind
        if kind is inspect.Parameter.KEYWORD_ONLY or (kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and not rest):
            out[name] = value
        elif kind is inspect.Parameter.VAR_KEYWORD:
            out.update(value)
    return out


def _run_options(options: Mapping[str, Any], where: str) -> dict[str, Any]:
    out = checked({k: v for k, v in options.items() if k not in RUN_OPTIONS}, where)
    out.update({k: v for k, v in options.items() if k in RUN_OPTIONS and v is not None})
    if "backend" in out:
        check_backend(out["backend"])
    budget, seed = out.get("budget"), out.get("seed")
    check_timeout(out.get("timeout"), where)
    for name, value, least in (("budget", budget, 1), ("seed", seed, 0)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ConstraintError(f"{name}={value!r}: must be an integer of at least {least}", where=where)
    for name, kinds in (("journal", str | PathLike), ("resume", str)):
        if name in out and (not isinstance(out[name], kinds) or out[name] == ""):
            raise ConstraintError(f"{name}={out[name]!r}: must be a path, resp. the id of a run", where=where)
    if seed is not None and seed >= 1 << 63:
        raise ConstraintError(f"seed={seed!r}: must be below 2**63", where=where)
    return out


def _row_seed(seed: int, index: int) -> int:
    """A seed per row: the first 63 bits of BLAKE2b of (seed, index)."""
    import hashlib

    digest = hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class _Decorator(Protocol):
    @overload
    def __call__(self, fn: Callable[Concatenate[State, P], Coroutine[Any, Any, R]], /) -> Program[P, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[State, P], R], /) -> Program[P, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[Any, State, P], Coroutine[Any, Any, R]], /) -> Program[P, R]: ...
    @overload
    def __call__(self, fn: Callable[Concatenate[Any, State, P], R], /) -> Program[P, R]: ...


@overload
def function(fn: Callable[Concatenate[State, P], Coroutine[Any, Any, R]], /) -> Program[P, R]: ...
@overload
def function(fn: Callable[Concatenate[State, P], R], /) -> Program[P, R]: ...
@overload
def function(fn: Callable[Concatenate[Any, State, P], Coroutine[Any, Any, R]], /) -> Program[P, R]: ...
@overload
def function(fn: Callable[Concatenate[Any, State, P], R], /) -> Program[P, R]: ...
@overload
def function(*, num_api_spec_tokens: None = None, **sampling: Any) -> _Decorator: ...
def function(
    fn: Callable[..., Any] | None = None, /, *, num_api_spec_tokens: int | None = None, **sampling: Any
) -> Any:
    """Make a program of a function whose first parameter is the state (the second, for a method). Plain, or with
    sampling defaults: `@function(temperature=0, max_tokens=256)`."""
    where = user_line()
    if num_api_spec_tokens is not None:
        raise ConstraintError(
            f"num_api_spec_tokens={num_api_spec_tokens!r}: speculation over a remote API is not built in; leave it "
            "out: ramet's engine needs no round trip between the calls of a program",
            where=where,
        )
    options = _run_options(sampling, where)
    if fn is None:
        return lambda decorated: Program(decorated, options, where)
    return Program(fn, options, where)
