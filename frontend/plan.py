"""Plans: compiled programs, to be run, estimated, kept in files.

In: what the compiler found. Out: a `Plan`. A plan without graph breaks runs without Python; one with breaks sends what
comes before them at once, while its program's body runs and goes on from there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from ramet.frontend.backends.base import Backend
from ramet.frontend.batch import Batch
from ramet.frontend.callers import refuse_unrecorded
from ramet.frontend.compile import Compiled
from ramet.frontend.course import Course, broken
from ramet.frontend.diagnostics import Diagnostic
from ramet.frontend.errors import ConstraintError, PlanError
from ramet.frontend.estimate import Advice, Estimate, Observed, Prefix, advised, estimated, observe, prefix_of, warmed
from ramet.frontend.host import choose_backend
from ramet.frontend.ir import Event
from ramet.frontend.options import hint
from ramet.frontend.parameters import text_of
from ramet.frontend.plan_file import Kept, read, written
from ramet.frontend.plan_run import PlanRun
from ramet.frontend.planned import Break, Document, Parameter, Return
from ramet.frontend.rebuilt import check_reads, rebuilt
from ramet.frontend.where import user_line

if TYPE_CHECKING:
    from ramet.frontend.explained import Explanation
    from ramet.frontend.run import Run

_OPTIONS = ("backend", "seed", "timeout")
Start = Callable[..., Any]  # the program's own start: arguments, backend, seed, timeout, a wrapper of the backend


class Plan:
    """A compiled program.

    `document` is the plan as data. A plan from `compile` keeps its program, so that it can go on in Python at graph
    breaks; one from `load` is data alone. `observed` collects how long the generations of its runs were.
    """

    def __init__(
        self,
        compiled: Compiled,
        *,
        start: Start | None = None,
        settings: Mapping[str, Any] | None = None,
        observed: Observed | None = None,
    ) -> None:
        self._compiled = compiled
        self._start = start
        self._raw: bytes | None = None
        self._settings = dict(settings or {})
        self._lock = threading.Lock()  # of what was observed: runs end in any thread
        self.observed = observed if observed is not None else Observed()

    # --- what it is ---

    @property
    def document(self) -> Document:
        """The plan as data."""
        return self._compiled.document

    @property
    def name(self) -> str:
        """The program's name."""
        return self.document.name

    @property
    def params(self) -> tuple[Parameter, ...]:
        """The parameters that are left open, in order."""
        return self.document.params

    @property
    def paths(self) -> list[tuple[int, ...]]:
        """Every way through it, as indices of `document.nodes`."""
        return list(self.document.paths())

    @property
    def breaks(self) -> list[Break]:
        """Its graph breaks."""
        return self.document.breaks()

    @property
    def whole(self) -> bool:
        """It runs without Python: no path ends in a graph break."""
        return not self.breaks

    def __repr__(self) -> str:
        names = ", ".join(parameter.name for parameter in self.params)
        counts = [f"{len(self.paths)} path{'s' * (len(self.paths) != 1)}"]
        if self.breaks:
            counts.append(f"{len(self.breaks)} graph break{'s' * (len(self.breaks) != 1)}")
        return f"<Plan {self.name}({names}): {', '.join(counts)}>"

    # --- running it ---

    def run(self, *args: Any, **kwargs: Any) -> PlanRun[Any] | Run[Any]:
        """Start it with arguments for its open parameters; does not wait. Options: `backend`, `seed`, `timeout`.

        Without graph breaks nothing of the program's Python runs: a `PlanRun`. Otherwise the body runs too, a `Run`,
        and what the plan knows is sent ahead of it. Raises `PlanError` for wrong arguments, and for a plan from a file
        that has graph breaks.
        """
        names = {parameter.name for parameter in self.params}
        options = {name: kwargs.pop(name) for name in _OPTIONS if name in kwargs.keys() - names}
        return self._run(args, kwargs, self._options(options))

    def _options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options of runs, checked as a program's are."""
        from ramet.frontend.program import _run_options

        unknown = next((name for name in options if name not in _OPTIONS), None)
        if unknown is not None:
            raise ConstraintError(
                f"{unknown}={options[unknown]!r:.80}: is no option of a plan, whose sampling is compiled in; "
                f"{hint(unknown, _OPTIONS)}",
                where=user_line(),
            )
        return _run_options(options, user_line())

    def _run(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> PlanRun[Any] | Run[Any]:
        refuse_unrecorded(f"the plan {self.name!r}")
        given = self.arguments(args, kwargs)
        texts = {p.name: text_of(p, given[p.name]) for p in self.params}
        merged = {**options, **{k: v for k, v in self._settings.items() if k not in options or k == "backend"}}
        backend = choose_backend(merged.get("backend"))
        course = Course(self.document, texts)
        if self.breaks:
            return self._ahead(course, given, backend, merged)
        run: PlanRun[Any] = PlanRun(
            self.name, course, partial(self._result, given), backend, merged.get("seed"), self._file
        )
        run.future.add_done_callback(lambda done: self._learn(done, course, run.told))
        return run.start(merged.get("timeout"))

    def _ahead(
        self, course: Course, given: Mapping[str, Any], backend: Backend, options: Mapping[str, Any]
    ) -> Run[Any]:
        from ramet.frontend.ahead import Ahead

        if self._start is None:
            raise broken(self.name, self.breaks[0])
        ahead = Ahead(backend, course)
        run: Run[Any] = self._start(given, {**options, "backend": ahead})
        run.future.add_done_callback(lambda done: self._learn(done, course, ahead.events))
        return run

    def _learn(self, done: Future[Any], course: Course, events: Sequence[Event]) -> None:
        """Runs that went well say how long runs are."""
        if done.exception() is None:
            with self._lock:
                observe(self.observed, self.document, course, events)

    def _result(self, given: Mapping[str, Any], course: Course) -> Any:
        assert isinstance(course.end, Return)
        readers = self._compiled.readers.get(course.path[-1], {})
        check_reads(self.document, course, readers)
        return rebuilt(course.end.value, course, given, readers, self._compiled.types)

    def arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments by name. Raises `PlanError` when some are missing, unknown or given twice."""
        names = [parameter.name for parameter in self.params]
        if len(args) > len(names):
            raise PlanError(f"{self.name}: {len(args)} arguments for {len(names)} open parameters: {', '.join(names)}")
        found = dict(zip(names, args, strict=False))
        for name, value in kwargs.items():
            if name in self.document.static:
                raise PlanError(
                    f"{name}: was compiled in as {self.document.static[name]}; compile({name}=...) leaves it open"
                )
            if name not in names:
                raise PlanError(f"{name}: no open parameter of the plan {self.name!r}; {hint(name, names)}")
            if name in found:
                raise PlanError(f"{name}: is given twice")
            found[name] = value
        missing = [name for name in names if name not in found]
        if missing:
            raise PlanError(f"{self.name}: give {', '.join(missing)}")
        return found

    def batch(
        self,
        rows: Iterable[Any],
        *,
        concurrency: int | None = None,
        on_error: Literal["raise", "return"] = "raise",
        progress: bool = False,
        **options: Any,
    ) -> Batch[Any]:
        """Run it once per row, at most `concurrency` (64) at a time. A row is a dict of arguments, a tuple or list of
        positional ones, or the one argument; all are checked before any starts. The constant prefix is computed once:
        call `warm` before, or let the first row do it."""
        from ramet.frontend.program import _row_seed

        where = user_line()
        if isinstance(rows, str | bytes | Mapping) or not isinstance(rows, Iterable):
            raise ConstraintError(f"rows={rows!r:.80}: must be a list with one row per run", where=where)
        chosen = self._options(options)
        prepared = [self._row(index, row) for index, row in enumerate(rows)]
        seed = chosen.get("seed", self._settings.get("seed"))

        def starters() -> Iterator[Callable[[], Any]]:
            for index, (args, kwargs) in enumerate(prepared):
                yield partial(
                    self._run, args, kwargs, chosen if seed is None else {**chosen, "seed": _row_seed(seed, index)}
                )

        return Batch(self.name, starters(), concurrency, on_error, progress, where)

    def _row(self, index: int, row: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args: tuple[Any, ...] = tuple(row) if isinstance(row, list | tuple) else () if isinstance(row, dict) else (row,)
        kwargs = dict(row) if isinstance(row, dict) else {}
        try:
            given = self.arguments(args, kwargs)
            for parameter in self.params:
                text_of(parameter, given[parameter.name])
        except PlanError as error:
            raise PlanError(f"row {index}: {error}") from None
        return args, kwargs

    # --- what it costs ---

    def prefix(self, backend: Backend | None = None) -> Prefix:
        """The longest constant beginning that all paths share, whatever the arguments. With a backend its `tokens` are
        counted there (which also computes it); without, they are None."""
        prefix = prefix_of(self.document)
        return prefix if backend is None else warmed(prefix, backend, self.name)

    def warm(self, backend: Backend | None = None) -> Prefix:
        """Have the prefix computed on a backend, so that the runs that follow find it in the cache."""
        return self.prefix(choose_backend(backend, self._settings.get("backend")))

    def estimate(self, *args: Any, **kwargs: Any) -> Estimate:
        """What a run with these arguments will cost. It learns from the runs of this plan (`observed`)."""
        given = self.arguments(args, kwargs)
        texts = {p.name: text_of(p, given[p.name]) for p in self.params}
        with self._lock:
            return estimated(self.document, texts, self.observed)

    def explain(self, *args: Any, **kwargs: Any) -> Explanation:
        """What a run with these arguments will do, along its most likely path, operation by operation. Give it to
        `run.explain(before)`, to see beside it what was done."""
        from ramet.frontend.explain_plan import planned

        given = self.arguments(args, kwargs)
        texts = {p.name: text_of(p, given[p.name]) for p in self.params}
        with self._lock:
            return planned(self.document, texts, self.observed)

    def advice(self) -> list[Advice]:
        """What would make its runs cheaper: suggestions alone, nothing is reordered."""
        with self._lock:
            return advised(self.document, self.observed)

    def check(self, backend: Backend | None = None) -> list[Diagnostic]:
        """What is wrong with it, or wasteful, the worst first; see `diagnostics.CODES`.

        Without a backend nothing is computed. With one its context, its chat template and its compiler of constraints
        are asked too, by programs that are stopped when their generation begins.
        """
        from ramet.frontend.checks import checked

        return checked(self.document, self.advice(), self._seen(), backend)

    def show(self) -> str:
        """It as a plain text tree: messages, branches below their forks, outcomes below their decisions."""
        from ramet.frontend.pictures import tree

        return tree(self.document, self._seen())

    def mermaid(self) -> str:
        """It as a Mermaid flowchart."""
        from ramet.frontend.mermaid import flowchart

        return flowchart(self.document, self._seen())

    def html(self) -> str:
        """It as a self-contained web page, with what `check` finds; every text is escaped."""
        from ramet.frontend.plan_page import page

        return page(self.document, self._seen(), self.check())

    def _repr_html_(self) -> str:
        """What notebooks show."""
        from ramet.frontend.plan_page import fragment

        return fragment(self.document, self._seen(), self.check())

    def _seen(self) -> Observed:
        """What was observed so far, as runs in other threads cannot change it any more."""
        with self._lock:
            return msgspec.convert(msgspec.to_builtins(self.observed), Observed)

    # --- keeping it ---

    def _file(self) -> bytes:
        """It as a file without what was observed: the same bytes for every run."""
        if self._raw is None:
            self._raw = written(self.document, Observed())
        return self._raw

    def dumps(self) -> bytes:
        """It as JSON: data alone, with a version and a digest; of the program's settings `seed` and `timeout`. Raises
        `PlanError`."""
        kept = Kept(self._settings.get("seed"), self._settings.get("timeout"))
        with self._lock:
            return written(self.document, self.observed, kept)

    def save(self, path: str | Path) -> None:
        """Write it to a file."""
        Path(path).write_bytes(self.dumps())

    @classmethod
    def loads(cls, raw: bytes | str) -> Plan:
        """A plan from JSON. Raises `PlanError` for what is none, was changed, or is of another version."""
        document, observed, kept = read(raw.encode() if isinstance(raw, str) else raw)
        return cls(Compiled(document), observed=observed, settings=msgspec.structs.asdict(kept))

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """A plan from a file; see `loads`. Typed results come as the data that they are written as."""
        return cls.loads(Path(path).read_bytes())
