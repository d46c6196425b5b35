"""What a state is about: a sequence, its variables, its open role. Several State objects may share one (a Run and its
body's).

In: validated requests of `State`. Out: operations recorded on the execution, variables defined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from ramet.frontend.constraints import Wanted, wanted
from ramet.frontend.entries import Entry, Seq
from ramet.frontend.errors import ConstraintError, StateError, UnknownVariable
from ramet.frontend.execution import Execution
from ramet.frontend.ir import Role, Select, SelectMethod, Tool
from ramet.frontend.options import build, check_timeout, checked
from ramet.frontend.sampling import Sampling
from ramet.frontend.values import Value, listed


class Core:
    """`own` names the variables defined since the fork that made it (a dict, for its order)."""

    def __init__(self, execution: Execution, seq: Seq, defaults: Mapping[str, Any], parent: Core | None = None) -> None:
        self.execution = execution
        self.seq = seq
        self.defaults = defaults
        self.variables: dict[str, Value[Any]] = dict(parent.variables) if parent else {}
        self.own: dict[str, None] = {}
        self.role_open: str | None = parent.role_open if parent else None
        self.told: tuple[Tool, ...] = parent.told if parent else ()  # tools that the model knows
        self.known: dict[object, Wanted] = parent.known if parent else {}
        self.unentered: tuple[str, str] | None = None  # role and line of a message block that nobody has entered yet

    def __del__(self) -> None:
        execution = getattr(self, "execution", None)
        if execution is not None and self.seq.parent is not None:  # no lock here: __del__ may run anywhere
            execution.outbox.abandoned.append(self.seq)

    def check(self, where: str) -> None:
        """Raise unless operations may be recorded now."""
        self.execution.check(self.seq, where)
        if self.unentered is not None:
            (role, where), self.unentered = self.unentered, None
            raise StateError(
                f"{role}() without content: give the message's text, or write `with s.{role}(): ...`",
                where=where,
                branch=self.seq.path,
            )

    def define(self, name: str, value: Value[Any]) -> None:
        """Set a variable."""
        if not isinstance(name, str) or not name:
            raise ConstraintError(f"name={name!r}: a variable's name is a non-empty string", where=value.where)
        self.variables[name] = value
        self.own[name] = None
        self.execution.bell.ring()

    def unknown(self, name: str, where: str, branch: str = "") -> UnknownVariable:
        """The error of reading a variable that is not defined here; says which branches define it."""
        entries = list(self.execution.record.entries.values())
        there = list(dict.fromkeys(entry.seq.path for entry in entries if entry.var == name))
        return UnknownVariable(name, self.variables, where=where, branch=branch, branches=there)

    def wanted(self, type_: Any, arguments: Mapping[str, Any], where: str) -> Wanted:
        """See `constraints.wanted`. What was found valid once is not looked at again in this run."""
        given = tuple((name, type(value), value) for name, value in arguments.items() if value is not None)
        try:
            found = self.known.get((type_, given))
        except TypeError:  # a schema that is a dict, choices that are a list
            return self._wanted(type_, arguments, where)
        if found is None:
            found = self.known[type_, given] = self._wanted(type_, arguments, where)
        return found

    def _wanted(self, type_: Any, arguments: Mapping[str, Any], where: str) -> Wanted:
        return wanted(type_, arguments, where)

    def checked(self, options: Mapping[str, Any], where: str) -> dict[str, Any]:
        """See `options.checked`."""
        return checked(options, where)

    def sampling(self, options: Mapping[str, Any], where: str) -> Sampling:
        """See `options.build`."""
        return build(self.defaults, options, where)

    def gen(
        self,
        name: str | None,
        options: Mapping[str, Any],
        n: int,
        timeout: float | None,
        where: str,
        want: Wanted,
        method: SelectMethod = "token_length_normalized",
    ) -> Value[Any]:
        """Record a generation; with n > 1, n - 1 more on branches from here: this state goes on with the first. A
        choice is made by likelihood with `method`, unless a temperature is given or n > 1."""
        check_timeout(timeout, where)
        if want.choices and n == 1 and not options.get("temperature"):
            entry = self._choose(name, want.choices, method, where)
            return self._read(name, entry, want, timeout, where)
        if n > 1:
            return self._samples(name, options, n, timeout, where, want)
        return self._sampled(name, options, timeout, where, want)

    def _sampled(
        self, name: str | None, options: Mapping[str, Any], timeout: float | None, where: str, want: Wanted
    ) -> Value[Any]:
        sampling = self.sampling(options, where)
        if want.stop:
            stop = tuple(dict.fromkeys((*sampling.stop, *want.stop)))
            sampling = self.sampling({**options, "stop": stop}, where)
        entry = self.execution.add_gen(self.seq, name or "", sampling, where, want.constraint, want.jump)
        return self._read(name, entry, want, timeout, where)

    def _samples(
        self, name: str | None, options: Mapping[str, Any], n: int, timeout: float | None, where: str, want: Wanted
    ) -> Value[Any]:
        others = self.child_cores(range(1, n), where)
        parts = [core._sampled(name, options, timeout, where, want) for core in (self, *others)]
        for core in others:
            self.execution.close(core.seq, "was one of n samples")
        value: Value[Any] = listed(self.execution, self.seq, parts, name or "", where)
        if name is not None:
            self.define(name, value)
        return value

    def _read(self, name: str | None, entry: Entry, want: Wanted, timeout: float | None, where: str) -> Value[Any]:
        """The value of a generation: its text, or what that is read as."""
        if want.read is None:
            return self._defined(name, entry, entry.future, timeout, where)
        return self._defined(name, entry, self.execution.typed(entry, want), timeout, where)

    def select(self, name: str | None, choices: Sequence[str], method: SelectMethod, where: str) -> Value[str]:
        """Record a choice."""
        entry = self._choose(name, tuple(choices), method, where)
        return self._defined(name, entry, entry.future, None, where)

    def _choose(self, name: str | None, choices: tuple[str, ...], method: SelectMethod, where: str) -> Entry:
        path = self.seq.path
        return self.execution.add(
            self.seq,
            "select",
            where,
            lambda op: Select(id=op, seq=path, var=name or f"_{op}", choices=choices, method=method),
            name or "",
        )

    def _defined(
        self, name: str | None, entry: Entry, future: Future[Any], timeout: float | None, where: str
    ) -> Value[Any]:
        value = Value(self.execution, self.seq, future, entry=entry, name=name or "", where=where, timeout=timeout)
        if name is not None:
            self.define(name, value)
        return value

    def role(self, role: str, begin: bool, where: str) -> None:
        """Record the begin or the end of a message. Messages do not nest."""
        if begin and self.role_open is not None:
            message = f"the message of {role!r} begins inside one of {self.role_open!r}: end that one first"
            raise StateError(message, where=where, branch=self.seq.path)
        if not begin and self.role_open != role:
            inside = f"the open message is of {self.role_open!r}" if self.role_open else "no message is open"
            raise StateError(f"the end of a message of {role!r}, but {inside}", where=where, branch=self.seq.path)
        path = self.seq.path
        self.execution.add(
            self.seq,
            "role",
            where,
            lambda op: Role(id=op, seq=path, role=role, edge="begin" if begin else "end"),
        )
        self.role_open = role if begin else None

    def child_cores(self, items: Sequence[object], where: str) -> list[Core]:
        """Record a fork; the cores of its branches."""
        seqs = self.execution.fork(self.seq, list(items), where)
        return [type(self)(self.execution, seq, self.defaults, self) for seq in seqs]

    def move_to(self, seq: Seq) -> None:
        """Go on on `seq`; the sequence so far is closed."""
        old, self.seq = self.seq, seq
        self.execution.close(old, "was left: its state goes on from another branch")


class Watched(Core):
    """A core for whoever only reads: all that it knows, at any time, and nothing can be recorded on it."""

    def __init__(self, core: Core) -> None:
        self.__dict__ = core.__dict__

    def __del__(self) -> None:
        """The core itself gives up what it holds."""

    def check(self, where: str) -> None:
        """Raise: only the body records."""
        raise StateError("a Run is for reading; operations are recorded by the body on its own state", where=where)
