"""Where the parts of a JSON schema are: its subschemas, and what its references lead to.

In: a schema as a JSON value. Out: a `Document` that finds subschemas by JSON pointer and resolves `$ref` inside the
schema itself. Nothing is ever fetched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

from ramet.frontend.errors import ConstraintError

# The keywords that hold subschemas, by how they hold them.
ONE = ("additionalProperties", "propertyNames", "contains", "not", "if", "then", "else", "additionalItems")
LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
MAPS = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
# Those whose subschemas describe the very same value, not a part of it.
IN_PLACE_ONE = ("not", "if", "then", "else")
IN_PLACE_LISTS = ("allOf", "anyOf", "oneOf")


def refusal(pointer: str, what: str) -> ConstraintError:
    """The error of one place of a schema: `json_schema: at "#/a/b": what`."""
    return ConstraintError(f'json_schema: at "{pointer[:300]}": {what}')


def step(pointer: str, *tokens: str | int) -> str:
    """`pointer` followed by reference tokens, escaped as in RFC 6901."""
    return "/".join([pointer, *(str(token).replace("~", "~0").replace("/", "~1") for token in tokens)])


def subschemas(schema: Mapping[str, Any], pointer: str) -> Iterator[tuple[str, Any]]:
    """Pointer and value of every direct subschema of `schema`, wrongly typed holders left out."""
    for key in ONE:
        if key in schema:
            yield step(pointer, key), schema[key]
    for key in LISTS:
        if isinstance(schema.get(key), list):
            yield from ((step(pointer, key, i), one) for i, one in enumerate(schema[key]))
    for key in MAPS:
        if isinstance(schema.get(key), dict):
            yield from ((step(pointer, key, name), one) for name, one in schema[key].items())
    items = schema.get("items")
    if isinstance(items, list):
        yield from ((step(pointer, "items", i), one) for i, one in enumerate(items))
    elif items is not None:
        yield step(pointer, "items"), items
    needs = schema.get("dependencies")
    if isinstance(needs, dict):
        yield from (
            (step(pointer, "dependencies", name), one) for name, one in needs.items() if not isinstance(one, list)
        )


class Document:
    """A schema whose subschemas have names: JSON pointers from its root, `#` first. Read only."""

    def __init__(self, root: Any) -> None:
        self.root = root
        self.old = isinstance(root, dict) and any(d in str(root.get("$schema", "")) for d in ("draft-03", "draft-04"))
        self._resource: dict[str, str] = {}  # a subschema's pointer -> pointer of the resource that it belongs to
        self._base: dict[str, str] = {}  # pointer of a resource -> its URI
        self._places: dict[str, str] = {}  # URI of a resource -> its pointer
        self._anchors: dict[tuple[str, str], str] = {}
        self._values: dict[str, Any] = {}
        self._base["#"], self._places[""] = "", "#"
        self.enter("#", root, "#")

    def __contains__(self, pointer: str) -> bool:
        return pointer in self._values

    def __getitem__(self, pointer: str) -> Any:
        """The subschema at a pointer that `enter` has seen or `resolve` has returned."""
        return self._values[pointer]

    def enter(self, pointer: str, schema: Any, resource: str) -> list[str]:
        """Name a subschema and all below it; returns the pointers that are new."""
        found, todo = [], [(pointer, schema, resource)]
        while todo:
            here, value, home = todo.pop()
            if here in self._values:
                continue
            self._values[here] = value
            found.append(here)
            if isinstance(value, dict):
                home = self._name(here, value, home)
                todo.extend((place, one, home) for place, one in subschemas(value, here))
            self._resource[here] = home
        return found

    def pointers(self) -> list[str]:
        """The pointers of all subschemas that have been entered."""
        return list(self._values)

    def resolve(self, pointer: str) -> str:
        """The pointer that the `$ref` of the subschema at `pointer` leads to. Refuses what is not in the schema."""
        ref = self._values[pointer]["$ref"]
        where = step(pointer, "$ref")
        home = self._resource[pointer]
        uri, fragment = urldefrag(urljoin(self._base[home], ref) if not ref.startswith("#") else ref)
        if uri:
            known = self._places.get(uri)
            if known is None:
                raise refusal(where, f"{ref[:200]!r} is not in this schema, and nothing is fetched; copy it to $defs")
            home = known
        fragment = unquote(fragment)
        if fragment and not fragment.startswith("/"):
            anchor = self._anchors.get((home, fragment))
            if anchor is None:
                raise refusal(where, f"there is no $anchor {fragment[:200]!r} in this schema")
            return anchor
        return self._walk(home, fragment, where)

    def _walk(self, home: str, fragment: str, where: str) -> str:
        value, target = self._values[home], home
        for token in fragment.split("/")[1:]:
            plain = token.replace("~1", "/").replace("~0", "~")
            if isinstance(value, dict) and plain in value:
                value = value[plain]
            elif isinstance(value, list) and plain.isascii() and plain.isdigit() and int(plain[:9]) < len(value):
                value = value[int(plain)]
            else:
                raise refusal(where, f"leads to {fragment[:200]!r}, which is not in this schema")
            target = step(target, plain)
        self.enter(target, value, home)
        return target

    def _name(self, pointer: str, schema: Mapping[str, Any], home: str) -> str:
        """Note the identifier and anchors of a subschema; returns the resource it belongs to."""
        name = schema.get("id" if self.old else "$id")
        if isinstance(name, str) and name.startswith("#"):
            self._anchors.setdefault((home, name[1:]), pointer)
        elif isinstance(name, str) and name:
            uri = urldefrag(urljoin(self._base[home], name))[0]
            home = pointer
            self._base[home] = uri
            self._places.setdefault(uri, home)
        anchor = schema.get("$anchor")
        if isinstance(anchor, str):
            self._anchors.setdefault((home, anchor), pointer)
        return home
