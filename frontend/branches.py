"""Branches: the states of one fork, together.

In: a state and how many branches, or one item each. Out: states that record independently of each other, their
variables gathered or their texts joined into the parent.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Self, overload

from ramet.frontend.core import Core
from ramet.frontend.entries import Entry, Seq
from ramet.frontend.errors import ConstraintError, StateError
from ramet.frontend.expressions import Piece, check_piece
from ramet.frontend.ir import Join, Role
from ramet.frontend.state import State, check_state
from ramet.frontend.values import Value, listed, mark_read, read_all, wait_for_all, wait_for_all_async
from ramet.frontend.waiting import wait, wait_async
from ramet.frontend.where import user_line

JoinMode = Literal["gather_variable", "concat", "concate_and_append"]
MODES = ("gather_variable", "concat", "concate_and_append")


class Branches(Sequence[State]):
    """The branches of one fork, in order. `with s.fork(3) as b: ...` joins (gathers variables) when the block ends
    well."""

    def __init__(self, parent: State, states: Sequence[State]) -> None:
        self._parent = parent
        self._states = list(states)
        self._seqs = [state._core.seq for state in states]
        self._joined = False

    def __len__(self) -> int:
        return len(self._states)

    @overload
    def __getitem__(self, index: int) -> State: ...
    @overload
    def __getitem__(self, index: slice) -> list[State]: ...
    def __getitem__(self, index: int | slice) -> State | list[State]:
        return self._states[index]

    def __setitem__(self, index: int, state: State) -> None:
        if self._states[index] is not state:  # `branches[i] += x` assigns the branch to itself
            raise StateError("a branch cannot be replaced by another state", where=user_line())

    def __iter__(self) -> Iterator[State]:
        return iter(self._states)

    def __iadd__(self, other: Piece | Sequence[Piece] | Callable[[int], Piece]) -> Self:
        """Append the same to every branch, the i-th element of a list to branch i, or what a function of i returns."""
        where = user_line()
        for index, piece in enumerate(self._pieces(other, where)):
            check_piece(piece)
            self._states[index]._append(piece, where)
        return self

    def _pieces(self, other: Any, where: str) -> list[Piece]:
        if isinstance(other, list | tuple):
            if len(other) != len(self):
                raise ConstraintError(f"{len(other)} texts for {len(self)} branches: one each", where=where)
            return list(other)
        if callable(other):
            return [other(index) for index in range(len(self))]
        check_piece(other)
        return [other] * len(self)

    def value(self, name: str) -> Value[list[Any]]:
        """The list of every branch's `name`, without waiting."""
        where = user_line()
        core = self._parent._core
        return listed(core.execution, core.seq, [state.value(name) for state in self._states], name, where)

    def gather(self, name: str, on_error: Literal["raise", "return"] = "raise") -> list[Any]:
        """Every branch's `name`, in order; waits for all of them.

        As soon as one fails its error is raised (an ExceptionGroup, when several have by then), and the branches are
        cancelled: what they still compute stops. With `on_error="return"` all are waited for, and errors stand in the
        list.
        """
        values = self._values(name, on_error)
        for value in values:
            value._refuse_blocking()
        if on_error == "raise":
            wait_for_all(values)
            return self._read(values)
        for value in values:
            if not value.done:
                wait(value.future, value._timeout, value._what())
        return _results(values)

    async def agather(self, name: str, on_error: Literal["raise", "return"] = "raise") -> list[Any]:
        """`gather` for async bodies."""
        values = self._values(name, on_error)
        if on_error == "raise":
            await wait_for_all_async(values)
            return self._read(values)
        for value in values:
            if not value.done:
                await wait_async(value.future, value._timeout, value._what())
        return _results(values)

    def _values(self, name: str, on_error: str) -> list[Value[Any]]:
        where = user_line()
        if on_error not in ("raise", "return"):
            raise ConstraintError(f"on_error={on_error!r}: must be 'raise' or 'return'", where=where)
        values = [state.value(name) for state in self._states]
        self._parent._core.execution.outbox.flush()
        return values

    def _read(self, values: list[Value[Any]]) -> list[Any]:
        try:
            return read_all(values)
        except Exception:
            self._cut("was cancelled: a branch of its fork failed")
            raise

    def join(self, mode: JoinMode = "gather_variable", template: str | None = None) -> None:
        """End the branches; never waits. Every variable that they defined becomes a list of the parent, in branch
        order.

        "concat" (SGLang: "concate_and_append") also appends the exact tokens of what each branch added since the
        fork, in branch order. With a `template` such as "{item}: {score}\\n", what is appended is the template,
        filled for each branch with its item and its variables (by reference: their tokens are reused).
        """
        where = user_line()
        if mode not in MODES:
            raise ConstraintError(f"mode={mode!r}: must be one of {', '.join(MODES)}", where=where)
        if template is not None and mode == "gather_variable":
            raise ConstraintError('template=...: needs mode="concat"', where=where)
        if self._joined:
            raise StateError("these branches were joined already", where=where, branch=self._parent._core.seq.path)
        parent = self._parent._core
        parent.check(where)
        if mode != "gather_variable" and self._states:
            if template is None:
                self._append_exactly(where)
            else:
                self._append_filled(template, where)
        self._gather_variables(where)
        self._close("was joined")
        self._joined = True

    def _append_exactly(self, where: str) -> None:
        parent = self._parent._core
        for state in self._states:
            if state._core.role_open != parent.role_open:
                raise StateError(
                    f"a branch ends inside a {state._core.role_open!r} message and its parent stands in "
                    f"{parent.role_open!r}: end the message in the branch before joining its text",
                    where=where,
                    branch=state._core.seq.path,
                )
        together: list[Seq] = []
        for state, forked in zip(self._states, self._seqs, strict=True):
            if state._core.seq is forked:
                together.append(forked)
                continue
            # It adopted another branch: its text lies on several sequences. It is said again, by reference.
            _join(parent, together, where)
            together = []
            _repeat(parent, state._core.seq.timeline()[len(forked.timeline()) - len(forked.entries) :], where)
        _join(parent, together, where)

    def _append_filled(self, template: str, where: str) -> None:
        try:
            fields = [(text, name, spec, conv) for text, name, spec, conv in string.Formatter().parse(template)]
        except ValueError as error:
            raise ConstraintError(f"template={template!r}: {error}", where=where) from None
        for state in self._states:
            for text, name, spec, conversion in fields:
                self._parent._append(text, where)
                if name is None:
                    continue
                if spec or conversion:
                    raise ConstraintError(f"template={template!r}: {{{name}}} takes no format", where=where)
                self._parent._append(str(state.item) if name == "item" else state.value(name), where)

    def _gather_variables(self, where: str) -> None:
        parent = self._parent._core
        names = {name: None for state in self._states for name in state._core.own}
        for name in names:
            parts = [state.value(name) for state in self._states if name in state._core.own]
            parent.define(name, listed(parent.execution, parent.seq, parts, name, where))

    def _close(self, reason: str) -> None:
        for state in self._states:
            state._core.execution.close(state._core.seq, reason)

    def _cut(self, reason: str) -> None:
        """Stop the branches: what they still compute is of no use to anybody."""
        for state in self._states:
            state._core.execution.cut(state._core.seq, reason)
        if self._states:
            self._parent._core.execution.outbox.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._cut("was cancelled: its block raised")
        elif not self._joined:
            self.join()

    def __repr__(self) -> str:
        return f"<{len(self)} branches of {self._parent!r}>"


def _results(values: Sequence[Value[Any]]) -> list[Any]:
    mark_read(values)
    return [error if (error := value.future.exception()) is not None else value.future.result() for value in values]


def _join(parent: Core, seqs: list[Seq], where: str) -> None:
    if seqs:
        for seq in seqs:
            parent.execution.seal(seq)
        paths, path = tuple(seq.path for seq in seqs), parent.seq.path
        parent.execution.add(parent.seq, "join", where, lambda op: Join(id=op, seq=path, branches=paths))


def _repeat(parent: Core, entries: Sequence[Entry], where: str) -> None:
    """Record on `parent` what `entries` say: their constants, references to their values, their role edges."""
    for entry in entries:
        if entry.kind == "text":
            for piece in list(entry.pieces):
                parent.execution.add_text(parent.seq, piece, where)
        elif entry.kind in ("gen", "select"):
            parent.execution.add_text(parent.seq, entry, where)
        elif isinstance(entry.op, Role):
            parent.role(entry.op.role, entry.op.edge == "begin", where)
        elif isinstance(entry.op, Join):
            for path in entry.op.branches:
                _repeat(parent, parent.execution.record.seqs[path].entries, where)


def fork(state: State, n: int | Sequence[Any], where: str) -> Branches:
    """See `State.fork`."""
    core = state._core
    core.check(where)
    if isinstance(n, bool | str | bytes) or not isinstance(n, int | Sequence):
        raise ConstraintError(
            f"fork({n!r}): give a number of branches, or a list with one item per branch", where=where
        )
    if isinstance(n, int) and n < 0:
        raise ConstraintError(f"fork({n}): the number of branches must not be negative", where=where)
    items: Sequence[Any] = range(n) if isinstance(n, int) else list(n)
    return Branches(state, [state._child(child) for child in core.child_cores(items, where)])


def adopt(state: State, branch: State, where: str) -> None:
    """See `State.adopt`."""
    core, other = state._core, check_state(branch, where)._core
    core.check(where)
    if other is core:
        raise StateError("a state cannot adopt itself", where=where, branch=core.seq.path)
    if other.execution is not core.execution:
        raise StateError("a branch of another run cannot be adopted", where=where, branch=core.seq.path)
    if other.seq.closed:
        raise StateError(f"the branch {other.seq.closed}: adopt it before that", where=where, branch=other.seq.path)
    [seq] = core.execution.fork(other.seq, [core.seq.item], where)
    core.move_to(seq)
    core.role_open = other.role_open
    for name, value in other.variables.items():
        if core.variables.get(name) is not value:
            core.define(name, value)


def cancel(state: State, where: str) -> None:
    """See `State.cancel`."""
    core = state._core
    if core.seq.parent is None:
        raise StateError(
            "cancel() stops a branch, and this is the program's own state: raise an exception, or cancel its Run",
            where=where,
        )
    core.execution.cut(core.seq, "was cancelled")
    core.execution.outbox.flush()
