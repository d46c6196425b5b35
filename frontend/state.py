"""The state of a program, or of one branch of it: what a body touches.

In: text, expressions, values. Out: recorded operations (at once, without waiting) and handles on their values. Only
reading waits: `s["x"]`, `text()`, `messages()`, `sync()`, `error()`, `get_meta_info()`.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, Unpack, overload

from ramet.frontend import toolturns
from ramet.frontend.constraints import ARGUMENTS
from ramet.frontend.core import Core
from ramet.frontend.errors import ConstraintError, StateError
from ramet.frontend.expressions import ROLES, Concat, GenExpr, Piece, RoleExpr, SelectExpr, check_piece
from ramet.frontend.ir import SelectMethod
from ramet.frontend.options import GenOptions
from ramet.frontend.roles import RoleScope, ScopeVariable
from ramet.frontend.symbols import settled
from ramet.frontend.tools import ToolReply
from ramet.frontend.transcript import chat_messages, full_text, meta_info, settle, settle_async
from ramet.frontend.types import check_choices, check_method
from ramet.frontend.values import Value, call_value, constant
from ramet.frontend.where import user_line

if TYPE_CHECKING:
    from ramet.frontend.branches import Branches

T = TypeVar("T")


class State:
    """Records operations on one branch. Made by ramet: a program's body gets it as its first argument, forks make
    more."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def _child(self, core: Core) -> State:
        """The state of a branch."""
        return State(core)

    @property
    def item(self) -> Any:
        """The element of the sequence that this branch was forked for (its index, for `fork(n)`)."""
        return self._core.seq.item

    # --- recording ---

    def __iadd__(self, other: Piece) -> Self:
        check_piece(other)
        self._append(other, user_line())
        return self

    def _append(self, piece: Piece, where: str) -> None:
        core = self._core
        core.check(where)
        if isinstance(piece, str):
            if piece:
                core.execution.add_text(core.seq, piece, where)
        elif isinstance(piece, Concat):
            for value in piece.parts:
                if isinstance(value, Value):
                    _refuse_echo(core, value, where)
            for part in piece.parts:
                self._append(part, where)
        elif isinstance(piece, Value):
            _refuse_echo(core, piece, where)
            core.execution.add_text(core.seq, piece.as_entry(core.execution, core.seq), where)
        elif isinstance(piece, GenExpr):
            at = piece.where or where
            core.gen(piece.name, piece.options, piece.n, piece.timeout, at, piece.want, piece.method)
        elif isinstance(piece, SelectExpr):
            core.select(piece.name, piece.choices, piece.method, piece.where or where)
        elif isinstance(piece, RoleExpr):
            core.role(piece.role, piece.begin, piece.where or where)
        else:
            raise ConstraintError(f"{type(piece).__name__} is no expression of ramet", where=where)

    @overload
    def gen(self, type: type[T], *, n: int, **options: Unpack[GenOptions]) -> Value[list[T]]: ...
    @overload
    def gen(self, *, n: int, **options: Unpack[GenOptions]) -> Value[list[str]]: ...
    @overload
    def gen(self, type: type[T], **options: Unpack[GenOptions]) -> Value[T]: ...
    @overload
    def gen(self, **options: Unpack[GenOptions]) -> Value[str]: ...
    @overload
    def gen(self, type: object, **options: Unpack[GenOptions]) -> Value[Any]: ...
    def gen(self, type: Any = str, *, n: int | None = None, **options: Any) -> Value[Any]:
        """Generate a value of `type` and append its text.

        str is free text, unless `regex`, `json_schema`, `grammar` or `choices` (one of them, and no other `type`) say
        what it must be; the value is that text. int and float are written as they are, and end at a space or newline.
        `Literal`, `Enum`, bool and `choices` are chosen by likelihood as by `select`, or sampled when `temperature` is
        above 0 here, or `n` above 1. All other types (dataclasses, `TypedDict`, pydantic models, lists, tuples, dicts,
        unions, dates, ...) are written as JSON. Options as in `GenOptions`. With `n` samples the value is a list and
        the text goes on with the first.

        Raises `ConstraintError` at this line for an option, type or constraint that is not valid or not supported.
        Reading the value raises `TruncatedError` when max_tokens ended it before it could be read, and `ParseError`
        when the type's own checks refuse it. A number that max_tokens ends after a digit is taken as it is.
        """
        return self._gen(type, n, options, user_line())

    def _gen(self, type_: Any, n: int | None, options: Mapping[str, Any], where: str) -> Value[Any]:
        core, given = self._core, dict(options)
        name, timeout = given.pop("name", None), given.pop("timeout", None)
        constraint = {key: given.pop(key) if key in given else None for key in ARGUMENTS}
        core.check(where)
        if n is not None and (isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= 128):
            raise ConstraintError(f"n={n!r}: must be an integer from 1 to 128", where=where)
        want = core.wanted(type_, constraint, where)
        return core.gen(name, core.checked(given, where), n or 1, timeout, where, want)

    def select(
        self,
        choices: Sequence[str],
        *,
        name: str | None = None,
        method: SelectMethod = "token_length_normalized",
    ) -> Value[str]:
        """Append the most likely of `choices`; `meta` of the value carries the scores."""
        where = user_line()
        self._core.check(where)
        method = check_method(settled(method, "chooses a method by"), where, "method")
        return self._core.select(name, check_choices(choices, where), method, where)

    @overload
    def reply(
        self,
        *,
        tools: Sequence[Any],
        tool_choice: str | Callable[..., Any] = "auto",
        parallel_tool_calls: bool = True,
        prefix: Piece = "",
        **options: Unpack[GenOptions],
    ) -> Value[ToolReply]: ...
    @overload
    def reply(self, type: type[T], *, prefix: Piece = "", **options: Unpack[GenOptions]) -> Value[T]: ...
    @overload
    def reply(self, *, prefix: Piece = "", **options: Unpack[GenOptions]) -> Value[str]: ...
    @overload
    def reply(self, type: object, *, prefix: Piece = "", **options: Unpack[GenOptions]) -> Value[Any]: ...
    def reply(
        self,
        type: Any = str,
        *,
        prefix: Piece = "",
        tools: Sequence[Any] = (),
        tool_choice: str | Callable[..., Any] = "auto",
        parallel_tool_calls: bool = True,
        **options: Any,
    ) -> Value[Any]:
        """One whole assistant message: its begin, `prefix`, a generation of `type` as by `gen`, its end. Returns the
        generated value.

        With `tools` (functions; classes, schemas in OpenAI's shape) the model may call them, with arguments that are
        always valid under their signatures: the value is a `ToolReply`. `tool_choice`: "auto" (text, calls or both),
        "required" (at least one call), "none", or the function that must be called. Tools that the model does not know
        yet are told in a message before this one, by `tools(...)` at the beginning where its chat template tells them.
        """
        where = user_line()
        check_piece(prefix)
        if tools == ():
            if tool_choice != "auto":
                raise ConstraintError(f"tool_choice={tool_choice!r}: there are no tools; give tools=[...]", where=where)
            with RoleScope(self._core, "assistant", where):
                self._append(prefix, where)
                return self._gen(type, None, options, where)
        if type is not str:
            raise ConstraintError(
                "tools=...: a reply that may call tools has no type; leave one of them out", where=where
            )
        choice, begun = (tool_choice, parallel_tool_calls), lambda: self._append(prefix, where)
        return toolturns.reply_with_tools(self._core, tools, choice, options, begun, where)

    def tools(self, tools: Sequence[Any]) -> None:
        """Tell the model of tools: before the first message where its chat template has a place for them, later in a
        message of their own. The same kinds as in `reply`."""
        toolturns.tell(self._core, tools, user_line())

    def run_tools(self, reply: ToolReply, *, errors: Literal["tell", "raise"] = "tell") -> list[Value[str]]:
        """Run the calls of a reply, side by side, and append a tool message with the result of each. Returns these
        texts, unread. With `errors` "tell" the model is told what a function raised; with "raise" reading anything
        after it raises `ToolError`."""
        where = user_line()
        return toolturns.run_tools(self._core, reply, errors, lambda result: self._append(result, where), where)

    def role(self, role: str, content: Piece | None = None) -> RoleScope | None:
        """A message of `role`: with its content, or `with s.role("user"): ...` around what makes it up."""
        where, role = user_line(), settled(role, "names a role by")
        if role not in ROLES:
            raise ConstraintError(f"role={role!r}: must be one of {', '.join(ROLES)}", where=where)
        return self._role(role, content, where)

    def _role(self, role: str, content: Piece | None, where: str) -> RoleScope | None:
        self._core.check(where)
        if content is None:
            scope = RoleScope(self._core, role, where)
            self._core.unentered = scope.promise
            return scope
        check_piece(content)
        with RoleScope(self._core, role, where):
            self._append(content, where)
        return None

    @overload
    def system(self, content: Piece) -> None: ...
    @overload
    def system(self) -> RoleScope: ...
    def system(self, content: Piece | None = None) -> RoleScope | None:
        """A system message, or `with s.system(): ...`."""
        return self._role("system", content, user_line())

    @overload
    def user(self, content: Piece) -> None: ...
    @overload
    def user(self) -> RoleScope: ...
    def user(self, content: Piece | None = None) -> RoleScope | None:
        """A user message, or `with s.user(): ...`."""
        return self._role("user", content, user_line())

    @overload
    def assistant(self, content: Piece) -> None: ...
    @overload
    def assistant(self) -> RoleScope: ...
    def assistant(self, content: Piece | None = None) -> RoleScope | None:
        """An assistant message (text, generations), or `with s.assistant(): ...`."""
        return self._role("assistant", content, user_line())

    @overload
    def tool(self, content: Piece) -> None: ...
    @overload
    def tool(self) -> RoleScope: ...
    def tool(self, content: Piece | None = None) -> RoleScope | None:
        """A tool's result, or `with s.tool(): ...`."""
        return self._role("tool", content, user_line())

    def call(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Value[Any]:
        """`fn(*args, **kwargs)` as an operation: it runs on a worker thread (awaited when async) once the values
        among its arguments are known. Reading the result raises `ToolError` when it failed; `s += result` appends
        `str(result)`."""
        where = user_line()
        self._core.check(where)
        return call_value(self._core.execution, self._core.seq, fn, args, kwargs, where)

    # --- branches ---

    def fork(self, n: int | Sequence[Any] = 1) -> Branches:
        """`n` branches that go on from here and share everything so far; over a sequence, one per element
        (`branch.item`)."""
        from ramet.frontend.branches import fork

        return fork(self, n, user_line())

    def adopt(self, branch: State) -> None:
        """Go on from the end of `branch` (search, best-of-n). What this state recorded since the fork is left behind;
        a stream that has shown it does not take it back."""
        from ramet.frontend.branches import adopt

        adopt(self, branch, user_line())

    def cancel(self) -> None:
        """Stop this branch, and whatever was forked from it, at once: what it holds in the engine is free again, and
        reading what it had not finished raises `Aborted`. Only for branches: what ends a whole program is raising, or
        `Run.cancel`."""
        from ramet.frontend.branches import cancel

        cancel(self, user_line())

    def copy(self) -> Copy:
        """A branch of one, plain or as `with s.copy() as tmp: ...`; leaving the block brings its new variables back
        as they are."""
        where = user_line()
        self._core.check(where)
        return Copy(self._core.child_cores([None], where)[0], self._core)

    @contextmanager
    def var_scope(self, name: str) -> Iterator[None]:
        """Define `name` as the text that is appended inside the block."""
        scope = ScopeVariable(self._core, name, user_line())
        try:
            yield
        finally:
            scope.end()

    # --- variables and reading ---

    def value(self, name: str) -> Value[Any]:
        """The handle of a variable, without waiting. Raises `UnknownVariable`."""
        found = self._core.variables.get(name)
        if found is None:
            raise self._core.unknown(name, user_line(), self._core.seq.path)
        return found

    def __getitem__(self, name: str) -> Any:
        return self.value(name).get()

    def get_var(self, name: str) -> Any:
        """`self[name]` (SGLang's name)."""
        return self[name]

    def set_var(self, name: str, value: Any) -> None:
        """`self[name] = value` (SGLang's name)."""
        self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        core, where = self._core, user_line()
        core.check(where)
        core.define(name, value if isinstance(value, Value) else constant(core.execution, core.seq, value, name, where))

    def __contains__(self, name: object) -> bool:
        return name in self._core.variables

    def text(self) -> str:
        """The whole text so far, role edges included. Waits for what is under way; raises if any of it failed."""
        settle(self._core)
        return full_text(self._core)

    async def atext(self) -> str:
        """`text()` for async bodies."""
        await settle_async(self._core)
        return full_text(self._core)

    def messages(self) -> list[dict[str, str]]:
        """The finished messages so far, as `{"role", "content"}`."""
        settle(self._core)
        return chat_messages(self._core)

    async def amessages(self) -> list[dict[str, str]]:
        """`messages()` for async bodies."""
        await settle_async(self._core)
        return chat_messages(self._core)

    def sync(self) -> None:
        """Wait until everything recorded on this branch is done. Raises nothing: failures are raised where they are
        read."""
        settle(self._core, raising=False)

    def error(self) -> BaseException | None:
        """Wait like `sync`, and return the first failure on this branch, if any (it counts as read)."""
        return settle(self._core, raising=False)

    def get_meta_info(self, name: str) -> Any:
        """How the generation of `name` went, under SGLang's keys, plus "meta" (an `ir.Meta`); a list of such for a
        variable gathered from branches. Waits for it."""
        return meta_info(self.value(name))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._core.seq.path} of {self._core.execution.name!r}>"


class Copy(State):
    """A branch of one; see `State.copy`."""

    def __init__(self, core: Core, parent: Core) -> None:
        super().__init__(core)
        self._parent = parent

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: builtins.type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        for name in self._core.own:
            self._parent.define(name, self._core.variables[name])
        self._core.execution.close(self._core.seq, "was a copy whose block has ended")


def _refuse_echo(core: Core, value: Value[Any], where: str) -> None:
    """`s += s.gen()` would say everything twice: the method has appended it already."""
    entry = value.entry
    if entry is None or entry.kind not in ("gen", "select") or not where or value.where != where:
        return
    if core.seq.entries and core.seq.entries[-1] is entry:
        raise ConstraintError(
            f"{entry.kind}() of a state appends its text by itself: write s.{entry.kind}(...) alone, or append the "
            f"expression ramet.{entry.kind}(...)",
            where=where,
            branch=core.seq.path,
        )


def check_state(state: object, where: str) -> State:
    """`state` itself, or `StateError` when it is none."""
    if not isinstance(state, State):
        raise StateError(f"expected a branch (a State), got {type(state).__name__}", where=where)
    return state
