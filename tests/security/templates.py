"""Chat templates that nobody should send: they explode, do not end, or look for a way out of the sandbox.

Out: sources by name, and what becomes of one.
"""

from __future__ import annotations

import re
import tracemalloc
from typing import Any

from jinja2.exceptions import TemplateError

from ramet.frontend.errors import ModelError

SAYS = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
MOST = 3 << 20  # bytes that a rendering which is refused may have taken, with the small limit that the tests set
_BOUND = re.compile(r"may (not )?(build|repeat|format|pass|pad|raise|compute|sum)|to render: it is refused")

# Name: what is done again and again to n.x, what n.x is first, and how often that is before it has some 100,000
# characters: without bounds, twice as often makes gigabytes.
_GROWING: dict[str, tuple[str, str, int]] = {
    "plus": ("n.x + n.x", "'ab'", 16),
    "tilde": ("n.x ~ n.x", "'ab'", 16),
    "times": ("n.x * 2", "'ab'", 16),
    "percent": ("'%s%s' % (n.x, n.x)", "'ab'", 16),
    "percent of a dictionary": ("'%(a)s%(a)s' % {'a': n.x}", "'ab'", 16),
    "format": ("'{0}{0}'.format(n.x)", "'ab'", 16),
    "format_map": ("'{a}{a}'.format_map({'a': n.x})", "'ab'", 16),
    "format as a filter": ("'%s%s' | format(n.x, n.x)", "'ab'", 16),
    "join": ("n.x.join(['', '', ''])", "'ab'", 16),
    "join of a list": ("[n.x, n.x] | join", "'ab'", 16),
    "join of a generator": ("[n.x, n.x] | map('string') | join('-')", "'ab'", 16),
    "replace": ("n.x.replace('a', n.x)", "'aa'", 5),
    "replace as a filter": ("n.x | replace('a', n.x)", "'aa'", 5),
    "replace of nothing": ("n.x.replace('', n.x)", "'aa'", 5),
    "translate": ("n.x.translate({97: n.x})", "'aa'", 5),
    "indent": ("(n.x ~ '\\n' ~ n.x) | indent(n.x)", "'a'", 5),
    "wordwrap": ("n.x | wordwrap(1, true, n.x)", "'aa'", 5),
    "lists": ("n.x + n.x", "[1]", 16),
    "list times": ("n.x * 2", "[1]", 16),
    "sum of lists": ("[n.x, n.x] | sum(start=[])", "[1]", 16),
    "numbers": ("n.x * n.x", "9", 15),
    "powers": ("n.x ** 60", "9", 3),
}
# The same, but it is only as text that it has so many characters: the same value stands in it again and again.
_NESTED: dict[str, tuple[str, str, str]] = {
    "nested lists as text": ("[n.x, n.x]", "[1]", "{{ n.x }}"),
    "nested lists as JSON": ("[n.x, n.x]", "[1]", "{{ n.x | tojson }}"),
    "nested lists that nobody shows": ("[n.x, n.x]", "[1]", ""),
    "nested tuples": ("(n.x, n.x)", "(1, 2)", "{{ n.x ~ '' }}"),
    "nested dictionaries": ("{'a': n.x, 'b': n.x}", "{}", "{{ n.x | string }}"),
    "nested by dict()": ("dict(a=n.x, b=n.x)", "{}", "{{ n.x | pprint }}"),
    "nested by default()": ("[none, none] | map('default', n.x, true) | list", "[1]", "{{ n.x }}"),
    "nested by batch": ("[1] | batch(3, n.x) | list", "[1]", "{{ n.x }}"),
    "slices": ("[n.x[:], n.x[:]] | map('list') | list", "[1]", "{{ n.x }}"),
}
_BLOCKS = {
    "block": "{% set b %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = b %}",
    "macro": "{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}{% set n.x = m(n.x) %}",
    "filter block": "{% set b %}{% filter trim %}{{ n.x }}{{ n.x }}{% endfilter %}{% endset %}{% set n.x = b %}",
}
# One operation is enough: ten million characters, where a million is the most.
_ONCE = {
    "one repetition": "{{ 'a' * 9999999 }}",
    "one list": "{{ [1] * 9999999 }}",
    "one width": "{{ '%9999999d' % 1 }}",
    "width of format": "{{ '{:9999999}'.format(1) }}",
    "width of a format that is a filter": "{{ '%9999999d' | format(1) }}",
    "width by an argument": "{{ '{:{}}'.format('a', 9999999) }}",
    "width by digits": "{{ '{0:{1}{1}{1}{1}{1}{1}{1}}'.format('a', '9') }}",
    "precision": "{{ '%.9999999f' % 1 }}",
    "width of a star": "{{ '%*d' % (9999999, 1) }}",
    "ljust": "{{ 'a'.ljust(9999999) }}",
    "zfill": "{{ 'a'.zfill(9999999) }}",
    "tabs": "{{ ('\\t' * 10000).expandtabs(1000) }}",
    "center": "{{ 'a' | center(9999999) }}",
    "indent of JSON": "{{ [[[1]]] | tojson(indent=9999999) }}",
    "lines and indents": "{{ ('\\n' * 10000) | indent(1000, true, true) }}",
    "one slice after the other": "{% set x = range(9999) | list %}{% for i in x %}{% set y = x[:] %}{% endfor %}",
    "a list in a text": "{% set x = ['a' * 9999] * 999 %}{{ x | upper }}",
    "a list that is shown": "{% set x = ['a' * 9999] * 999 %}{{ x }}",
    "one power": "{{ 2 ** 9999 }}",
    "one range": "{{ range(99999999) | list }}",
    "one replacement": "{{ ('a' * 9999).replace('a', 'a' * 999) }}",
    "one join": "{{ ('a' * 3333) | list | join('a' * 3333) }}",
    "many texts": "{% for i in range(9999) %}{% set x = 'a'.ljust(999) %}{% endfor %}",
}
SLOW = {
    "silent loops": "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
    "a macro": "{% macro m(k) %}{% for i in range(99) %}{{ m(k - 1) if k }}{% endfor %}{% endmacro %}{{ m(9) }}",
    "outputs of nothing": "{% for i in range(99999) %}{{ '' }}{% for j in range(99) %}{% endfor %}{% endfor %}",
}
ESCAPES = {
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "class by item": "{{ ''['__class__'] }}",
    "class by filter": "{{ '' | attr('__class__') }}",
    "class by map": "{{ [''] | map(attribute='__class__') | list }}",
    "class by groupby": "{{ [''] | groupby('__class__') }}",
    "class by format": "{{ '{0.__class__}'.format('') }}",
    "class by format of items": "{{ '{0[__class__]}'.format('') }}",
    "class by format_map": "{{ '{a.__class__}'.format_map({'a': ''}) }}",
    "class by a method that was kept": "{% set f = '{0.__class__}'.format %}{{ f('') }}",
    "class by a method that is an item": "{{ '{0.__class__}'['format']('') }}",
    "class by a method out of attr": "{{ ('{0.__class__}' | attr('format'))('') }}",
    "class by a method out of map": "{{ (['{0.__class__}'] | map(attribute='format') | first)('') }}",
    "class by safe text": "{{ ('{0.__class__}' | safe).format('') }}",
    "globals of a function": "{{ raise_exception.__globals__ }}",
    "globals of a macro": "{% macro m() %}{% endmacro %}{{ m.__init__.__globals__ }}",
    "globals of the loop": "{% for i in [1] %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "globals of joiner": "{{ joiner.__init__.__globals__ }}",
    "globals of cycler": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "globals of namespace": "{{ namespace.__init__.__globals__ }}",
    "self": "{{ self.__init__.__globals__ }}",
    "self of a function": "{{ strftime_now.__self__ }}",
    "code": "{{ raise_exception.__code__ }}",
    "frames": "{{ (messages | map('string')).gi_frame }}",
    "namespace's class": "{% set n = namespace() %}{% set n.__class__ = 1 %}",
    "appending": "{{ messages.append(1) }}",
    "changing a message": "{{ messages[0].update(role='system') }}",
    "clearing": "{{ messages.clear() }}",
    "import": "{% import 'os' as os %}",
    "include": "{% include '/etc/passwd' %}",
    "extends": "{% extends 'base' %}",
}


def _loop(body: str, start: str, steps: int) -> str:
    return f"{{% set n = namespace(x={start}) %}}{{% for i in range({steps}) %}}{body}{{% endfor %}}"


def bombs(*, real: bool) -> dict[str, str]:
    """Templates that explode; or (`real` False) would, if they went on so: what mutants without bounds may render."""
    times = 2 if real else 1
    made = {
        name: _loop(f"{{% set n.x = {step} %}}", start, times * steps)
        for name, (step, start, steps) in _GROWING.items()
    }
    for name, (step, start, shown) in _NESTED.items():
        made[name] = _loop(f"{{% set n.x = {step} %}}", start, times * 16) + shown
    return {**made, **{name: _loop(body, "'ab'", times * 16) for name, body in _BLOCKS.items()}, **_ONCE}


def rendered(sandbox: Any, source: str) -> str:
    """What `sandbox.compile_template` makes of a template: "bounded", "refused", "accepted", or what else happened."""
    messages = [{"role": "user", "content": "Hi"}]
    try:
        text = "".join(sandbox.compile_template(source + SAYS).generate(messages=messages))
        return "accepted" if messages == [{"role": "user", "content": "Hi"}] and "user: Hi" in text else "changed"
    except (ModelError, TemplateError, TypeError, RecursionError) as error:
        return "bounded" if _BOUND.search(str(error)) else "refused"
    except (MemoryError, ValueError, OverflowError) as error:
        return type(error).__name__


def measured(sandbox: Any, source: str) -> tuple[str, int]:
    """The same, and how many bytes it took at most."""
    tracemalloc.start()
    try:
        return rendered(sandbox, source), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def stopped(sandbox: Any, source: str) -> bool:
    """Whether a template was stopped by a bound, before it took much memory."""
    outcome, peak = measured(sandbox, source)
    return outcome == "bounded" and peak < MOST
