"""Jinja for chat templates: transformers' dialect in a sandbox with bounds (R3).

In: a template's source, from the operator or the model at start, never from a request. Out: a compiled template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from ramet.frontend.errors import ModelError

_LIMIT = 1 << 20  # no sensible template builds a longer string by one operator, filter or method


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


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, with bounds on what one operator can build."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*" and isinstance(left, int) and not isinstance(right, (int, float)):
            left, right = right, left
        if operator == "*" and not isinstance(left, (int, float)) and len(left) * max(int(right), 0) > _LIMIT:
            raise SecurityError(f"a chat template may not repeat a text to more than {_LIMIT} characters")
        if operator == "**" and (abs(left) > 1 << 32 or abs(right) > 64):
            raise SecurityError("a chat template may not raise to such powers")
        if operator == "%" and isinstance(left, str) and re.search(r"[0-9]{5}|\*", left):
            raise SecurityError("a chat template may not format to such widths")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, function: Any, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(a, int) and abs(a) > _LIMIT for a in (*args, *kwargs.values())):
            raise SecurityError(f"a chat template may not pass numbers over {_LIMIT}")
        return super().call(context, function, *args, **kwargs)


def compile_template(source: str) -> jinja2.Template:
    """Compile as transformers does (trimmed blocks, loop controls, its functions), in the sandbox, with the clock
    stopped so that all edges of one process agree. Raises `ModelError` when it does not compile."""
    now = datetime.now()

    def fail(message: str) -> None:
        raise TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    sandbox = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    sandbox.filters["tojson"] = tojson
    for name in ("center", "indent", "format"):
        sandbox.filters[name] = _bounded(sandbox.filters[name])
    sandbox.globals |= {"raise_exception": fail, "strftime_now": now.strftime, "namespace": _Plain}
    try:
        return sandbox.from_string(source)
    except TemplateError as error:
        raise ModelError(f"the model's chat template does not compile: {error}") from error


def _bounded(work: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that pads text, refused where a width is absurd."""

    def bounded(value: Any, *args: Any, **kwargs: Any) -> Any:
        wide = isinstance(value, str) and re.search(r"%[^%a-z]*([0-9]{5}|\*)", value)
        if wide or any(isinstance(a, int) and abs(a) > _LIMIT for a in (*args, *kwargs.values())):
            raise SecurityError("a chat template may not pad text to such widths")
        return work(value, *args, **kwargs)

    return bounded
