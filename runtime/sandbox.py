"""Jinja for chat templates: transformers' dialect in a sandbox with bounds (R3).

In: a template's source, from the operator or the model at start, never from a request. Out: a compiled template, each
rendering of which has bounds on its time and on what it builds (`meter.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import wraps
from itertools import islice
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from ramet.frontend.errors import ModelError
from ramet.runtime.meter import BUILT, Meter, elements, letters

_LIMIT = 1 << 20  # no sensible template pads or repeats a text to more characters
_SOURCE = 1 << 20  # characters of a template; the longest that models publish have 40,000
_DIGITS = 4096  # bits of a product
# What may give more than it was given: methods of str, and filters.
_GROWING = {"expandtabs", "ljust", "rjust", "center", "zfill", "translate", "format", "format_map"}
_GROWING |= {"indent", "wordwrap", "tojson", "batch", "slice", "urlize", "xmlattr", "round", "truncate", "pprint"}
_SELECTING = {"list", "length", "count", "first", "last", "map", "select", "reject", "selectattr", "rejectattr", "sort"}
_SELECTING |= {"unique", "reverse", "batch", "slice", "groupby", "items", "dictsort", "default", "d", "min", "max"}
_SELECTING |= {"random", "attr", "sum"}  # these do not write their values out as text


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}` marks assistant text for training; here it is its body."""

    tags = {"generation"}  # noqa: RUF012 - the name and type that Jinja reads

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Plain(Namespace):
    """Jinja's namespace without underscore names, which could reach Python's internals."""

    def __setitem__(self, name: str, value: object) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a chat template may not set {name!r} on a namespace")
        super().__setitem__(name, value)


class _Metered(NodeTransformer):
    """Puts the meter's filters around what Jinja compiles to plain Python: loops, `~`, slices, lists, dictionaries."""

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        super().generic_visit(node)
        if isinstance(node, nodes.For):
            node.iter = _around("_paced", node.iter)
        elif isinstance(node, nodes.Concat):
            return _around("_joined", nodes.List(node.nodes, lineno=node.lineno, environment=node.environment))
        elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
            return _around("_taken", node)
        elif isinstance(node, nodes.List | nodes.Tuple | nodes.Dict) and getattr(node, "ctx", "load") == "load":
            plain = all(isinstance(each, nodes.Const) for each in node.iter_child_nodes())
            return node if plain else _around("_made", node)
        return node


def _around(name: str, node: nodes.Node) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno, environment=node.environment)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, whose operators, filters, methods and loops are metered."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.meter = Meter()
        self.finalize = self._shown
        self.concat = self._concat  # type: ignore[method-assign]  # what macros and blocks put together
        self.filters["tojson"] = _tojson
        self.filters |= {name: self._filter(name, work) for name, work in self.filters.items()}
        self.filters |= {
            "_paced": self.meter.paced,
            "_made": self._made,
            "_joined": self._joined,
            "_taken": self._taken,
        }
        del self.globals["lipsum"]

    def _generate(self, source: nodes.Template, name: Any, filename: Any, defer_init: bool = False) -> str:
        return super()._generate(_Metered().visit(source), name, filename, defer_init)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*" and isinstance(left, int) and not isinstance(right, (int, float)):
            left, right = right, left
        numbers = isinstance(left, (int, float)) and isinstance(right, (int, float))
        if operator == "*" and not numbers:
            times = max(int(right), 0)
            if len(left) * times > _LIMIT:
                raise SecurityError(f"a chat template may not repeat a text to more than {_LIMIT} characters")
            self.meter.spend(elements(left) * times)
        if numbers and operator != "+" and any(isinstance(n, int) and n.bit_length() > _DIGITS for n in (left, right)):
            raise SecurityError("a chat template may not compute with such large numbers")
        if operator == "**" and (abs(left) > 1 << 32 or abs(right) > 64):
            raise SecurityError("a chat template may not raise to such powers")
        if operator == "%" and isinstance(left, str):
            if re.search(r"[0-9]{5}|\*", left):
                raise SecurityError("a chat template may not format to such widths")
            self.meter.afford(len(left) * (1 + letters(right)))
        if operator == "+" and not numbers:
            self.meter.spend(elements(left) + elements(right))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, function: Any, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(a, int) and abs(a) > _LIMIT for a in (*args, *kwargs.values())):
            raise SecurityError(f"a chat template may not pass numbers over {_LIMIT}")
        owner = getattr(getattr(function, "__wrapped__", function), "__self__", None)
        if isinstance(owner, str):
            args = self._before(function.__name__, (owner, *args), kwargs)[1:]
        return self._after(super().call(context, function, *args, **kwargs))

    def _filter(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(work)
        def metered(*args: Any, **kwargs: Any) -> Any:
            at = 1 if hasattr(work, "jinja_pass_arg") else 0
            if name not in _SELECTING and not isinstance(args[at], (str, Iterator)):
                self.meter.afford(letters(args[at]))
            given = self._before(name, args[at:], kwargs)
            return self._after(work(*args[:at], *given, **kwargs))

        return metered

    def _before(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """The arguments of a method of str or of a filter, after what it will build was found affordable."""
        if name == "replace":
            text, *others = map(str, (*args, *kwargs.values()))
            self.meter.afford(len(text) + max(map(text.count, others), default=0) * max(map(len, others), default=0))
        elif name == "join":
            args = tuple(list(islice(a, BUILT)) if isinstance(a, Iterator) else a for a in args)
            many = max((len(a) for a in args if isinstance(a, (list, tuple, dict, set, str))), default=0)
            self.meter.afford(sum(map(letters, args)) + many * sum(len(a) for a in args if isinstance(a, str)))
        elif name in _GROWING:
            rest = (*args[1:], *kwargs.values())
            if any(isinstance(a, int) and abs(a) > _LIMIT for a in rest) or _wide(name, args[0]):
                raise SecurityError("a chat template may not pad text to such widths")
            numbers = sum(abs(a) for a in rest if isinstance(a, int))
            self.meter.afford((1 + letters(args[0])) * (1 + numbers + sum(map(letters, rest))))
        return args

    def _after(self, result: Any) -> Any:
        if isinstance(result, (str, list, tuple, dict)):
            self.meter.spend(elements(result))
        return result

    def _shown(self, value: Any) -> Any:
        if not isinstance(value, str):
            self.meter.afford(letters(value))
        return value

    def _concat(self, parts: Iterable[str]) -> str:
        known = list(parts)
        self.meter.spend(sum(map(len, known)))
        return "".join(known)

    def _made(self, value: Any) -> Any:
        self.meter.spend(elements(value))
        return value

    def _joined(self, parts: list[Any]) -> str:
        self.meter.spend(sum(map(letters, parts)))
        return "".join(map(str, parts))

    def _taken(self, part: Any) -> Any:
        self.meter.spend(len(part) if isinstance(part, (str, list, tuple)) else 0)
        return part


def _wide(name: str, text: Any) -> bool:
    """Whether a format asks for widths that are absurd, or that its arguments choose."""
    if not isinstance(text, str) or name not in ("format", "format_map"):
        return False
    nested = re.search(r"\{[^{}]*:[^{}]*\{", text.replace("{{", "").replace("}}", ""))
    return nested is not None or re.search(r"[0-9]{5}|%[^%a-z]*\*", text) is not None


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class Compiled:
    """A compiled template. May be used from any thread; each rendering has bounds of its own."""

    def __init__(self, sandbox: _Sandbox, template: jinja2.Template) -> None:
        self._sandbox, self._template = sandbox, template

    def generate(self, **values: Any) -> Iterator[str]:
        """The rendering in pieces. Raises jinja2's errors, and `ModelError` after `SECONDS` of the thread's time."""
        self._sandbox.meter.begin()
        yield from self._template.generate(**values)


def compile_template(source: str) -> Compiled:
    """Compile as transformers does (trimmed blocks, loop controls, its functions), in the sandbox, with the clock
    stopped so that all edges of one process agree. Raises `ModelError` when it does not compile."""
    now = datetime.now()

    def fail(message: str) -> None:
        raise TemplateError(message)

    if len(source) > _SOURCE:
        raise ModelError(f"the model's chat template has {len(source)} characters; at most {_SOURCE} are accepted")
    sandbox = _Sandbox()
    sandbox.globals |= {"raise_exception": fail, "strftime_now": now.strftime, "namespace": _Plain}
    try:
        return Compiled(sandbox, sandbox.from_string(source))
    except (TemplateError, SyntaxError, RecursionError, MemoryError, ValueError, OverflowError) as error:
        reason = str(error) or type(error).__name__
        raise ModelError(f"the model's chat template does not compile: {reason[:400]}") from error
