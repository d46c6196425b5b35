"""Tools in a program's turns: telling the model of them, letting it call them, running what it calls.

In: the core of a state, tools, a model's reply. Out: recorded operations. Functions run as `State.call` runs them: off
the body's thread, side by side.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ramet.frontend.core import Core
from ramet.frontend.errors import ConstraintError
from ramet.frontend.expressions import Expr
from ramet.frontend.ir import Tool, Tools
from ramet.frontend.options import checked
from ramet.frontend.roles import RoleScope
from ramet.frontend.symbols import look
from ramet.frontend.tools import Call, ToolReply, all_offered, wanted_reply
from ramet.frontend.values import Value, call_value


def tell(core: Core, tools: Any, where: str) -> None:
    """Record that the model knows `tools` from here on; those that it knows already are left out."""
    _tell(core, [each.tool for each in all_offered(tools, where)], where)


def _tell(core: Core, tools: Sequence[Tool], where: str) -> None:
    core.check(where)
    new = tuple(tool for tool in tools if tool not in core.told)
    if not new:
        return
    path = core.seq.path
    core.execution.add(core.seq, "role", where, lambda op: Tools(id=op, seq=path, tools=new))
    core.told += new


def reply_with_tools(
    core: Core,
    tools: Any,
    choice: tuple[Any, Any],
    options: Mapping[str, Any],
    begun: Callable[[], None],
    where: str,
) -> Value[ToolReply]:
    """An assistant's message that may call `tools`. `choice`: which calls, and whether several; `begun` appends what
    the message begins with."""
    given = dict(options)
    name, timeout, jump = (given.pop(key, None) for key in ("name", "timeout", "jump"))
    others = [key for key in ("regex", "json_schema", "grammar", "choices", "json_whitespace") if given.get(key)]
    if others:
        raise ConstraintError(
            f"{others[0]}=...: a reply that may call tools has no other constraint; leave one of them out", where=where
        )
    offers = all_offered(tools, where)
    want = wanted_reply(offers, *choice, jump, where)
    sampling = checked(given, where)
    _tell(core, [each.tool for each in offers], where)
    with RoleScope(core, "assistant", where):
        begun()
        return core.gen(name, sampling, 1, timeout, where, want)


def run_tools(core: Core, reply: Any, errors: Any, append: Callable[[Expr], None], where: str) -> list[Value[str]]:
    """Run the calls of a reply, and append a tool message with the result of each, in their order."""
    look(reply, "runs the tools of")
    if not isinstance(reply, ToolReply):
        kind = "an unread value: read it with .get() or await" if isinstance(reply, Value) else type(reply).__name__
        raise ConstraintError(f"run_tools takes what reply(tools=...) gave, got {kind}", where=where)
    if errors not in ("tell", "raise"):
        raise ConstraintError(f"errors={errors!r}: must be 'tell' or 'raise'", where=where)
    core.check(where)
    for call in reply.calls:
        if call.function is None:
            raise ConstraintError(
                f"the tool {call.name!r} was declared without a function: run it yourself, and append its result with "
                "tool(...)",
                where=where,
            )
    results = [call_value(core.execution, core.seq, _teller(c, errors), (), c.arguments, where) for c in reply.calls]
    for result in results:
        with RoleScope(core, "tool", where):
            append(result)
    return results


def _teller(call: Call, errors: str) -> Callable[..., Any]:
    """The call's function, returning what the model is told of its result, or with "tell" of its failure."""
    function = call.function
    assert function is not None

    def failed(error: Exception) -> str:
        if errors == "raise":
            raise error
        return f"Error: {type(error).__name__}: {error}"

    @functools.wraps(function, updated=())
    async def tell_async(**arguments: Any) -> str:
        try:
            return result_text(await function(**arguments))
        except Exception as error:  # noqa: BLE001 - whatever a tool raises is a result that the model is told
            return failed(error)

    @functools.wraps(function, updated=())
    def tell_sync(**arguments: Any) -> str:
        try:
            return result_text(function(**arguments))
        except Exception as error:  # noqa: BLE001 - whatever a tool raises is a result that the model is told
            return failed(error)

    awaits = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004
    teller = tell_async if awaits else tell_sync
    teller.__name__ = call.name
    return teller


def result_text(value: Any) -> str:
    """A tool's result as the model reads it: a text as it is, everything else as JSON where it has any."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, default=_as_json)
    except (TypeError, ValueError, RecursionError):
        return str(value)


def _as_json(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)  # pydantic
    if callable(dump):
        return dump(mode="json")
    fields = getattr(value, "__dataclass_fields__", None)
    if fields is not None:
        return {name: getattr(value, name) for name in fields}
    return list(value) if isinstance(value, set | frozenset) else str(value)
