"""Arguments of a program from a command line.

In: "name=text" pairs, a prompt, the program's signature. Out: values of the types that its annotations name.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from ramet.frontend.commands import WrongUsage
from ramet.frontend.options import hint
from ramet.frontend.program import Program
from ramet.frontend.state import State

_TEXT = (str, Any, object)
_CONTAINERS = (list, tuple, dict, set, frozenset)
_KINDS = inspect.Parameter


def arguments(
    program: Program[..., Any], given: Sequence[str], prompt: str | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments for a call of `program`. `given` are "name=text"; `prompt` is the first
    parameter's that none of them names. Raises `WrongUsage`."""
    signature = _resolved(program)
    whole = f"{program.__name__}({', '.join(_described(p) for p in signature.parameters.values())})"
    named = _pairs(given, signature, whole)
    if prompt is not None:
        free = [p.name for p in signature.parameters.values() if p.name not in named and p.kind not in _MANY]
        if not free:
            raise WrongUsage(f"a prompt was given, but no parameter is left for it: {whole}")
        named[free[0]] = prompt
    values = {name: convert(name, text, _annotation(signature, name)) for name, text in named.items()}
    needed = [p.name for p in signature.parameters.values() if p.default is _KINDS.empty and p.kind not in _MANY]
    missing = [name for name in needed if name not in values and name not in program._bound]
    if missing:
        names = ", ".join(missing)
        raise WrongUsage(f"missing {names}: give {' '.join(f'--arg {name}=...' for name in missing)}; {whole}")
    first = [p.name for p in signature.parameters.values() if p.kind is _KINDS.POSITIONAL_ONLY and p.name in values]
    return tuple(values.pop(name) for name in first), values


def statics(program: Program[..., Any], given: Mapping[str, str]) -> dict[str, Any]:
    """Of the texts by name, those of the program's parameters, as values. Raises `WrongUsage`."""
    signature = _resolved(program)
    mine = {name: text for name, text in given.items() if name in signature.parameters}
    return {name: convert(name, text, _annotation(signature, name)) for name, text in mine.items()}


_MANY = (_KINDS.VAR_POSITIONAL, _KINDS.VAR_KEYWORD)


def _resolved(program: Program[..., Any]) -> inspect.Signature:
    """The signature with annotations as types, where they were strings."""
    try:
        hints = get_type_hints(inspect.unwrap(program), localns={"State": State}, include_extras=True)
    except (NameError, AttributeError, TypeError) as error:
        raise WrongUsage(f"the annotations of {program.__name__} cannot be resolved: {error}") from None
    signature = inspect.signature(program)
    parameters = [p.replace(annotation=hints.get(p.name, p.annotation)) for p in signature.parameters.values()]
    return signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty)


def _described(parameter: inspect.Parameter) -> str:
    """A parameter as one writes it, without the modules of its types."""
    stars = "**" if parameter.kind is _KINDS.VAR_KEYWORD else "*" * (parameter.kind is _KINDS.VAR_POSITIONAL)
    text = stars + parameter.name
    if parameter.annotation is not _KINDS.empty:
        text += f": {_named(parameter.annotation)}"
    default = parameter.default.value if isinstance(parameter.default, enum.Enum) else parameter.default
    return text if default is _KINDS.empty else f"{text} = {default!r:.60}"


def _named(note: Any) -> str:
    return re.sub(r"\b(?:\w+\.)+(?=\w)", "", inspect.formatannotation(note))


def _pairs(given: Sequence[str], signature: inspect.Signature, whole: str) -> dict[str, str]:
    open_ended = any(p.kind is _KINDS.VAR_KEYWORD for p in signature.parameters.values())
    known = [p.name for p in signature.parameters.values() if p.kind not in _MANY]
    named: dict[str, str] = {}
    for pair in given:
        name, equals, text = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise WrongUsage(f"--arg {pair!r}: write --arg name=value")
        if name not in known and not open_ended:
            raise WrongUsage(f"--arg {name}=...: no such parameter; {hint(name, known)}; {whole}")
        if name in named:
            raise WrongUsage(f"--arg {name}=...: is given twice; a list is written as JSON: --arg {name}='[1, 2]'")
        named[name] = text
    return named


def _annotation(signature: inspect.Signature, name: str) -> Any:
    """What is known of a parameter's type: its annotation, else that of its default."""
    parameter = signature.parameters.get(name)
    if parameter is None:  # taken by **kwargs
        return next(p.annotation for p in signature.parameters.values() if p.kind is _KINDS.VAR_KEYWORD)
    if parameter.annotation is _KINDS.empty and isinstance(parameter.default, bool | int | float):
        return type(parameter.default)
    return parameter.annotation


def convert(name: str, text: str, note: Any) -> Any:
    """The value of type `note` that `text` stands for: numbers, booleans, members of enums and literals as they are
    written, everything with parts as JSON. Raises `WrongUsage` with the parameter's name and type."""
    bare = _bare(note)
    if bare in _TEXT or bare is _KINDS.empty:
        return text
    if get_origin(bare) in (Union, types.UnionType):
        return _any_of(name, text, get_args(bare))
    if get_origin(bare) is Literal:
        return _one_of(name, text, {str(value): value for value in get_args(bare)})
    if isinstance(bare, type) and issubclass(bare, enum.Enum):
        values = {str(member.value): member for member in bare}
        return _one_of(name, text, {member.name: member for member in bare} | values, list(values))
    return _validated(name, text, note, bare)


def _bare(note: Any) -> Any:
    """`note` without the names around it."""
    while True:
        if get_origin(note) is Annotated:
            note = get_args(note)[0]
        elif isinstance(note, typing.NewType):
            note = note.__supertype__
        elif type(note).__name__ == "TypeAliasType":  # `type X = ...`, Python 3.12
            note = note.__value__
        else:
            return note


def _any_of(name: str, text: str, members: Sequence[Any]) -> Any:
    if type(None) in members and text.lower() in ("none", "null"):
        return None
    refused = []
    for member in members:
        if member is type(None) or _bare(member) in _TEXT:
            continue
        try:
            return convert(name, text, member)
        except WrongUsage as error:
            refused.append(str(error))
    if any(_bare(member) in _TEXT for member in members if member is not type(None)):
        return text
    raise WrongUsage("; or ".join(refused))


def _one_of(name: str, text: str, table: Mapping[str, Any], shown: Sequence[str] = ()) -> Any:
    if text not in table:
        raise WrongUsage(f"--arg {name}={text!r}: must be one of {', '.join(shown or list(table))}")
    return table[text]


def _validated(name: str, text: str, note: Any, bare: Any) -> Any:
    from pydantic import TypeAdapter, ValidationError
    from pydantic.errors import PydanticUserError

    shown = _named(note)
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(note)
    except PydanticUserError:
        raise WrongUsage(
            f"--arg {name}=...: a {shown} cannot be given on a command line; give the parameter a default, or another "
            "type"
        ) from None
    structured = _structured(bare)
    try:
        return adapter.validate_json(text) if structured else adapter.validate_strings(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        reason = f"{place}: {first['msg']}" if place else first["msg"]
        how = f"; {_example(name, bare)}" if structured else ""
        raise WrongUsage(f"--arg {name}={text!r:.80}: {reason} (type {shown}){how}") from None


def _structured(bare: Any) -> bool:
    """Whether values of a type have parts."""
    if get_origin(bare) is not None or dataclasses.is_dataclass(bare) or typing.is_typeddict(bare):
        return True
    if not isinstance(bare, type):
        return False
    is_mapping = issubclass(bare, Mapping) or (issubclass(bare, Sequence) and not issubclass(bare, bytes))
    return is_mapping or issubclass(bare, _CONTAINERS) or hasattr(bare, "model_validate")


def _example(name: str, bare: Any) -> str:
    kind = get_origin(bare) or bare
    listed = isinstance(kind, type) and issubclass(kind, Sequence | set | frozenset)
    sample = """'["a", "b"]'""" if listed else """'{"key": "value"}'"""
    return f"write it as JSON, such as --arg {name}={sample}"
