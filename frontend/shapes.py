"""Python types as JSON: the schema of a type's values, and how a JSON value becomes one.

In: a type: scalars, `Literal`, `Enum`, dataclasses, named tuples, `TypedDict`s, lists, sets, tuples, dicts, unions,
`Annotated` with bounds, recursive ones. Out: a `Shape`. Records become objects without other properties, in the order
of their fields; a field with a default may be left out. Whatever pydantic has a part in is left to pydantic.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import inspect
import types
import typing
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args, get_origin

from ramet.frontend.bounds import Bounds
from ramet.frontend.scalars import ANYTHING, SCALARS, Mismatch, Read, Shape, expect, short

_LISTS = (list, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
_SETS = (set, collections.abc.Set, collections.abc.MutableSet)
_DICTS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


class Unsupported(TypeError):
    """A type that has no shape."""


class NeedsPydantic(Exception):
    """The type has a part that pydantic defines: it must read the whole."""


class Field(NamedTuple):
    """A property of a record."""

    name: str
    type: Any
    required: bool


def shape_of(type_: Any) -> Shape:
    """The whole schema of a type, with its `$defs`, and its reader. Raises `Unsupported` or `NeedsPydantic`."""
    return _Builder().whole(type_)


def shown(type_: Any) -> str:
    """How a type reads in messages."""
    return type_.__name__ if isinstance(type_, type) and not get_args(type_) else repr(type_).replace("typing.", "")


def is_typed_dict(type_: Any) -> bool:
    """A `TypedDict` of typing or of typing_extensions."""
    return isinstance(type_, type) and issubclass(type_, dict) and hasattr(type_, "__total__")


def enum_value(member: enum.Enum) -> Any:
    """What stands for a member in texts: its value where that is a string or a number, else its name."""
    return member.value if isinstance(member.value, str | int | float) else member.name


class _Builder:
    """Builds one schema. Records stand in `defs`, once each, however often they are used."""

    def __init__(self) -> None:
        self.defs: dict[str, dict[str, Any]] = {}
        self._uses: Counter[str] = Counter()
        self._records: dict[Any, tuple[str, Read]] = {}

    def whole(self, type_: Any) -> Shape:
        schema, read = self.shape(type_)
        name = schema.get("$ref", "").removeprefix("#/$defs/")
        if self._uses[name] == 1:  # the record itself, and nothing inside it refers to it
            schema = self.defs.pop(name)
        return Shape({**schema, "$defs": self.defs} if self.defs else schema, read)

    def shape(self, type_: Any) -> Shape:
        """The shape of a type; records as references to `defs`."""
        type_, metadata = _bare(type_)
        if _is_pydantic(type_) or any(_is_pydantic(type(each)) for each in metadata):
            raise NeedsPydantic
        found = self._plain(type_)
        for bounds in filter(None, map(Bounds.of, metadata)):
            found = Shape(bounds.added_to(found.schema), _bounded(found.read, bounds))
        return found

    def _plain(self, type_: Any) -> Shape:
        if isinstance(type_, type) and not get_args(type_) and type_ in SCALARS:
            return SCALARS[type_]
        if type_ is Any or type_ is None:
            return ANYTHING if type_ is Any else SCALARS[type(None)]
        origin, args = get_origin(type_) or type_, get_args(type_)
        if origin is Literal:
            return _one_of([_literal(value, type_) for value in args], type_)
        if origin in (typing.Union, types.UnionType):
            return self._union(args)
        if origin in _LISTS:
            return self._array(args[0] if args else Any, list)
        if origin in _SETS or origin is frozenset:
            return self._array(args[0] if args else Any, frozenset if origin is frozenset else set)
        if origin is tuple:
            empty = isinstance(type_, types.GenericAlias)  # tuple[()], which has as few arguments as a bare tuple
            return self._tuple(args) if args or empty else self._array(Any, tuple)
        if origin in _DICTS:
            return self._dict(args)
        if isinstance(type_, type):
            return self._class(type_)
        raise Unsupported(f"{shown(type_)} is no type that a text can be read as")

    def _class(self, type_: type) -> Shape:
        if issubclass(type_, enum.Enum):
            return _one_of([(enum_value(member), member) for member in type_], type_)
        if dataclasses.is_dataclass(type_):
            hints = _hints(type_)
            fields = [Field(f.name, hints[f.name], _required(f)) for f in dataclasses.fields(type_) if f.init]
            if wants := _unfilled(type_, {field.name for field in fields}):
                raise Unsupported(f"{shown(type_)} is made with {wants!r}, which is no field: a text has none for it")
            return self._record(type_, fields, type_)
        if is_typed_dict(type_):
            return self._record(type_, _entries(type_), dict)
        if issubclass(type_, tuple) and hasattr(type_, "_fields"):
            hints, defaults = _hints(type_), getattr(type_, "_field_defaults", {})
            named = [Field(name, hints.get(name, Any), name not in defaults) for name in type_._fields]
            return self._record(type_, named, type_)
        raise Unsupported(
            f"{shown(type_)} is no type that a text can be read as; use a dataclass, a TypedDict, a pydantic model, "
            "int, float, bool, str, Literal, Enum, date, datetime, UUID, Decimal, or lists, tuples, dicts and unions "
            "of these"
        )

    def _record(self, type_: type, fields: Sequence[Field], make: Callable[..., Any]) -> Shape:
        if type_ not in self._records:
            name = type_.__name__
            name = name if name not in self.defs else f"{name}_{len(self.defs) + 1}"
            readers: dict[str, Read] = {}
            required = [field.name for field in fields if field.required]
            self._records[type_] = name, _record_reader(shown(type_), readers, required, make)
            self.defs[name] = {}  # its place is taken while its fields, which may refer to it, are built
            shapes = {field.name: self.shape(field.type) for field in fields}
            readers.update({key: shape.read for key, shape in shapes.items()})
            schema: dict[str, Any] = {"type": "object", "properties": {k: s.schema for k, s in shapes.items()}}
            self.defs[name] = schema | ({"required": required} if required else {}) | {"additionalProperties": False}
        name, read = self._records[type_]
        self._uses[name] += 1
        return Shape({"$ref": f"#/$defs/{name}"}, read)

    def _union(self, args: Sequence[Any]) -> Shape:
        shapes = [self.shape(arg) for arg in args]
        others = [shape for shape, arg in zip(shapes, args, strict=True) if arg is not type(None)]

        def read(value: Any, at: str) -> Any:
            if value is None and len(others) < len(shapes):
                return None
            if len(others) == 1:
                return others[0].read(value, at)
            for shape in others:
                try:
                    return shape.read(value, at)
                except Mismatch:
                    continue
            raise Mismatch(at, f"expected one of {', '.join(map(shown, args))}, got {short(value)}")

        return Shape({"anyOf": [shape.schema for shape in shapes]}, read)

    def _array(self, item: Any, make: Callable[[list[Any]], Any]) -> Shape:
        schema, read_item = self.shape(item)

        def read(value: Any, at: str) -> Any:
            found = [read_item(each, f"{at}/{index}") for index, each in enumerate(expect(list, "a list", value, at))]
            try:
                return make(found)
            except TypeError as error:
                raise Mismatch(at, str(error)) from None  # an element of a set that cannot be one

        return Shape({"type": "array", **({"items": schema} if schema else {})}, read)

    def _tuple(self, args: tuple[Any, ...]) -> Shape:
        if args[-1:] == (Ellipsis,):
            return self._array(args[0], tuple)
        shapes = [self.shape(arg) for arg in args if arg != ()]

        def read(value: Any, at: str) -> Any:
            items = expect(list, f"a list of {len(shapes)}", value, at)
            if len(items) != len(shapes):
                raise Mismatch(at, f"expected a list of {len(shapes)}, got {len(items)}")
            return tuple(
                shape.read(each, f"{at}/{k}") for k, (shape, each) in enumerate(zip(shapes, items, strict=True))
            )

        if not shapes:
            return Shape({"type": "array", "maxItems": 0}, read)
        schema = {"type": "array", "prefixItems": [s.schema for s in shapes], "items": False, "minItems": len(shapes)}
        return Shape(schema, read)

    def _dict(self, args: tuple[Any, ...]) -> Shape:
        key, item = args or (str, Any)
        if _bare(key)[0] is not str:
            raise Unsupported(f"dict[{shown(key)}, ...]: keys of JSON objects are str")
        schema, read_item = self.shape(item)
        _, read_key = self.shape(key)

        def read(value: Any, at: str) -> Any:
            table = expect(dict, "an object", value, at)
            return {read_key(k, f"{at}/{k}"): read_item(each, f"{at}/{k}") for k, each in table.items()}

        return Shape({"type": "object", "additionalProperties": schema or True}, read)


def _unfilled(type_: type, fields: Collection[str]) -> str:
    """What its constructor cannot do without, beside its fields (an `InitVar`); "" where there is nothing."""
    try:
        wanted = inspect.signature(type_).parameters.values()
    except (TypeError, ValueError):
        return ""
    named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return next((p.name for p in wanted if p.default is p.empty and p.kind in named and p.name not in fields), "")


def _record_reader(
    name: str, readers: Mapping[str, Read], required: Sequence[str], make: Callable[..., Any]
) -> Callable[[Any, str], Any]:
    def read(value: Any, at: str) -> Any:
        table = expect(dict, name, value, at)
        for key in required:
            if key not in table:
                raise Mismatch(at, f"{name} lacks {key!r}")
        for key in table:
            if key not in readers:
                raise Mismatch(at, f"{name} has no {key!r}")
        found = {key: readers[key](each, f"{at}/{key}") for key, each in table.items()}
        try:
            return make(**found)
        except (TypeError, ValueError) as error:  # of the class's own checks
            raise Mismatch(at, f"{name} refuses it: {error}") from error

    return read


def _one_of(pairs: Sequence[tuple[Any, Any]], type_: Any) -> Shape:
    """Finitely many values: what stands for each in JSON, and the value."""
    if not pairs:
        raise Unsupported(f"{shown(type_)} has no values")
    if any(_same(key, other) for k, (key, _) in enumerate(pairs) for other, _ in pairs[:k]):
        raise Unsupported(f"{shown(type_)}: two of its values are the same JSON")

    def read(value: Any, at: str) -> Any:
        for key, found in pairs:
            if _same(key, value):
                return found
        raise Mismatch(at, f"expected one of {', '.join(repr(key) for key, _ in pairs)}, got {short(value)}")

    return Shape({"enum": [key for key, _ in pairs]}, read)


def _same(key: Any, value: Any) -> bool:
    """The same JSON: 1 is not True, and 1.0 may be written as 1."""
    return isinstance(key, bool) is isinstance(value, bool) and bool(key == value)


def _literal(value: Any, type_: Any) -> tuple[Any, Any]:
    key = enum_value(value) if isinstance(value, enum.Enum) else value
    if not isinstance(key, str | int | float | None):
        raise Unsupported(f"{shown(type_)}: {value!r} has no JSON; use str, int, bool or None")
    return key, value


def _bounded(read: Read, bounds: Bounds) -> Read:
    def checked(value: Any, at: str) -> Any:
        found = read(value, at)
        try:
            problem = bounds.problem(found)
        except TypeError as error:  # bounds of something else than this value
            problem = str(error)
        if problem:
            raise Mismatch(at, problem)
        return found

    return checked


def _bare(type_: Any) -> tuple[Any, list[Any]]:
    """A type without `Annotated`, `NewType`, aliases, `Required` and its like; and the metadata of `Annotated`."""
    metadata: list[Any] = []
    while True:
        if hasattr(type_, "__metadata__"):
            metadata = [*type_.__metadata__, *metadata]
            type_ = type_.__origin__
        elif hasattr(type_, "__supertype__"):
            type_ = type_.__supertype__
        elif type(type_).__name__ == "TypeAliasType":
            type_ = type_.__value__
        elif get_origin(type_) in (typing.Required, typing.NotRequired) or _is_read_only(type_):
            type_ = get_args(type_)[0]
        else:
            return type_, metadata


def _is_read_only(type_: Any) -> bool:
    return getattr(get_origin(type_), "_name", "") == "ReadOnly"


def _is_pydantic(type_: Any) -> bool:
    if not isinstance(type_, type):
        return False
    hooks = ("__pydantic_validator__", "__get_pydantic_core_schema__")
    return type_.__module__.split(".")[0] == "pydantic" or any(hasattr(type_, hook) for hook in hooks)


def _hints(type_: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(type_, localns={type_.__name__: type_}, include_extras=True)
    except NameError as error:
        raise Unsupported(
            f"{shown(type_)}: the annotation {error.name!r} is not known in its module; define that type there"
        ) from None


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _entries(type_: Any) -> list[Field]:
    hints = _hints(type_)
    qualifier = {name: get_origin(hint) for name, hint in hints.items()}
    return [
        Field(
            name,
            hint,
            qualifier[name] is typing.Required
            or (name in type_.__required_keys__ and qualifier[name] is not typing.NotRequired),
        )
        for name, hint in hints.items()
    ]
