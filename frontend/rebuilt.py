"""The result of a plan's run. In: the expression that a path returns, and known values. Out: an object."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from ramet.frontend.course import Course
from ramet.frontend.errors import ParseError, TruncatedError
from ramet.frontend.planned import Const, Document, Given, Many, ReadAs, Returned, Said, Whole


def rebuilt(
    value: Returned,
    course: Course,
    given: Mapping[str, Any],
    readers: Mapping[str, Callable[[str], Any]],
    types: Mapping[str, type],
) -> Any:
    """The object. `readers` make values of typed texts, `types` are the dataclasses by name; where they are missing
    (a plan from a file), JSON data and dicts stand in their place. Raises `ParseError`."""

    def make(each: Returned) -> Any:
        if isinstance(each, Const):
            return each.value
        if isinstance(each, Said):
            return course.render(each.parts)
        if isinstance(each, Given):
            return given[each.name]
        if isinstance(each, Whole):
            return _read(each, course, readers.get(each.op))
        if isinstance(each, Many):
            items = [make(item) for item in each.items]
            return items if each.kind == "list" else tuple(items)
        fields = {name: make(item) for name, item in each.items.items()}
        kind = types.get(each.of)
        return fields if kind is None else kind(**fields)

    return make(value)


def check_reads(document: Document, course: Course, readers: Mapping[str, Callable[[str], Any]]) -> None:
    """Read every typed value that the body reads on this path, also those that it does not return. Raises
    `ParseError`, as reading it in the body would."""
    for index in course.path:
        for read in document.nodes[index].reads:
            if read.op in readers:
                _read(Whole(read.op), course, readers[read.op])


def _read(whole: Whole, course: Course, reader: Callable[[str], Any] | None) -> Any:
    plain: dict[ReadAs, Callable[[str], Any]] = {"text": str, "int": int, "float": float, "json": json.loads}
    text = course.values[whole.op]
    try:
        return (reader or plain[whole.read])(text)
    except (ValueError, RecursionError) as error:
        shown = text if len(text) <= 200 else "..." + text[-200:]
        if whole.op in course.cut:
            raise TruncatedError(
                f"{shown!r}: max_tokens ended it; raise max_tokens, or ask for less", text=text
            ) from error
        raise ParseError(f"{shown!r}: {error}", text=text) from error
