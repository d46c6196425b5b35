"""Checks of how a plan's paths end, and of the whole: graph breaks, errors, paths that were not followed, parameters.

In: a document. Out: diagnostics.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ramet.frontend.diagnostics import Diagnostic, Severity
from ramet.frontend.lineage import Lineage, named_values, unmarked
from ramet.frontend.planned import Break, Document

_RAISES = re.compile(r"the body raises (\w+): (.*)", re.DOTALL)
_PLACE = re.compile(r" \((?:at [^()]*)\)$")
_CONSTRAINTS = ("regex=", "json_schema", "grammar", "choices", "type=", "gen(")
_SLIPS = (
    "AttributeError",
    "IndexError",
    "KeyError",
    "NameError",
    "TypeError",
    "UnboundLocalError",
    "ZeroDivisionError",
)
_REMEDIES = {
    "look": "return the handle's value as it is, choose with select or a type of few values, or leave it to Python",
    "host": "nothing to do: Python calls it when the plan comes here",
    "wait": "nothing to do: Python goes on from here",
    "program": "compile the other program by itself",
    "returns": "return texts, numbers, values, lists, dicts or plain dataclasses of these",
    "differs": "keep chance, time and what is outside the program out of its body, or give them as arguments",
    "feature": "nothing to do: Python goes on from here",
}


def ends(lines: Sequence[Lineage]) -> Iterator[Diagnostic]:
    """How the paths end."""
    everywhere = all(isinstance(line.end, Break) and line.end.kind == "raises" for line in lines)
    for line in lines:
        if isinstance(line.end, Break):
            yield from _break(line, line.end, everywhere)


def whole(document: Document, lines: Sequence[Lineage]) -> Iterator[Diagnostic]:
    """What is about no single path."""
    if document.truncated:
        yield Diagnostic(
            "paths-truncated",
            "warning",
            f"{document.name!r} has more paths than were followed: those that are left were not checked",
            document.where,
            "compile with a larger max_paths, or give arguments that decide something statically",
        )
    if all(line.returns for line in lines):
        used = {name for line in lines for name in line.params}
        for parameter in document.params:
            if parameter.name not in used:
                message = f"nothing depends on the argument {parameter.name!r}"
                yield Diagnostic("unused-parameter", "note", message, document.where, "use it, or leave it out")


def _break(line: Lineage, end: Break, everywhere: bool) -> Iterator[Diagnostic]:
    if end.kind == "raises":
        yield _raised(line, end, everywhere)
    elif end.kind == "limit" and not end.reason.startswith("there are more paths"):
        remedy = "bound the loop by an argument, or by a choice that ends it"
        yield _at(line, end, "endless-path", "warning", end.reason, remedy)
    elif end.kind != "limit":
        reason = end.reason[:1].lower() + end.reason[1:] if not end.reason.startswith("Python") else end.reason
        message = f"only Python knows how the program goes on: {named_values(reason, line.name)}"
        yield _at(line, end, "graph-break", "note", message, _REMEDIES[end.kind])


def _raised(line: Lineage, end: Break, everywhere: bool) -> Diagnostic:
    """An error of the body on this path, by what it is about."""
    matched = _RAISES.fullmatch(end.reason)
    kind, text = (matched[1], matched[2]) if matched else ("", end.reason)
    text = _PLACE.sub("", unmarked(text))
    if kind == "ConstraintError" and re.match(r"choices contain .* twice", text):
        return _at(line, end, "duplicate-choices", "error", text, "make them distinct")
    if kind == "ConstraintError":
        code = "bad-constraint" if text.startswith(_CONSTRAINTS) else "bad-argument"
        return _at(line, end, code, "error", text, "see the message; the run would raise it here")
    if kind == "UnknownVariable":
        return _at(line, end, "unknown-variable", "error", text, "define it before this line, on this path")
    if kind == "StateError":
        code = "role-order" if "message" in text else "state-misuse"
        return _at(line, end, code, "error", text, "see the message; the run would raise it here")
    severity: Severity = "error" if everywhere else "warning" if kind in _SLIPS else "note"
    message = f"the body raises {kind or 'an error'} here whatever the model says: {text}"
    return _at(line, end, "body-raises", severity, message, "correct it, unless this is how the path is to end")


def _at(line: Lineage, end: Break, code: str, severity: Severity, message: str, remedy: str) -> Diagnostic:
    return Diagnostic(
        code, severity, message, end.where or line.document.where, remedy, line.path, line.when(len(line.path) - 1)
    )
