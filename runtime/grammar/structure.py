"""Structural tags (XGrammar's JSON notation, and the older `structures`/`triggers`) as constraints: free text with
parts that are held to a schema, a pattern or a grammar.

In: the JSON text of a structural tag. Out: a `Translation`. Free text never contains a trigger (what begins like one
must go on as one of its tags) nor the end of the tag that it stands in. Formats that speak of tokens are refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from ramet.frontend import patterns
from ramet.frontend.errors import ConstraintError
from ramet.frontend.regular import EMPTY, Cat, Node, Times, Union, literal
from ramet.runtime.grammar import ebnf, emit
from ramet.runtime.grammar.embed import json_part
from ramet.runtime.grammar.rules import Avoid, Ref, Rules, renamed
from ramet.runtime.grammar.structure_told import told_apart
from ramet.runtime.grammar.translation import Translation

MAX_BYTES, MAX_DEPTH = 64 * 1024, 64
_TOKENS = ("token", "exclude_token", "any_tokens", "token_triggered_tags", "token_dispatch")
_START = "structure"


def translate(spec: str) -> Translation:
    """A structural tag as rules. Raises `ConstraintError`: `structure: at "#/format/tags/0": ...`."""
    try:
        parsed = _parsed(spec)
        reader = _Reader(isinstance(parsed, dict) and told_apart(parsed.get("format")))
        root = reader.read(parsed)
    except ConstraintError as error:
        raise ConstraintError(f"structure: {error.message}") from None
    return emit.translate({_START: root, **reader.rules}, _START, "structure", tuple(reader.notes))


def _parsed(spec: str) -> Any:
    size = len(spec.encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        raise ConstraintError(f"has {size} bytes (limit: {MAX_BYTES}); simplify it")
    try:
        return json.loads(spec)
    except (ValueError, RecursionError) as error:
        raise ConstraintError(f"is no JSON: {error}") from None


@dataclass(frozen=True)
class _Place:
    """Where a format stands: its JSON pointer, what free text must avoid there, and with what (one of `end`, if any)
    its text has to end. `end` is part of the format's text, so that free text can end with the first occurrence."""

    pointer: str
    avoid: tuple[str, ...] = ()
    end: tuple[str, ...] = ()
    depth: int = 0

    def at(self, *keys: str | int) -> _Place:
        """A part of this format, at the end of which nothing is due."""
        pointer = self.pointer + "".join(f"/{str(key).replace('~', '~0').replace('/', '~1')}" for key in keys)
        return _Place(pointer, self.avoid, (), self.depth + 1)

    def last(self, *keys: str | int) -> _Place:
        """A part of this format with which it ends."""
        inner = self.at(*keys)
        return _Place(inner.pointer, inner.avoid, self.end, inner.depth)

    def fail(self, problem: str) -> NoReturn:
        """Raise `ConstraintError` that says where."""
        raise ConstraintError(f'at "{self.pointer}": {problem}')


def _ended(node: Node, place: _Place) -> Node:
    return Cat((node, _one_of(place.end))) if place.end else node


def _one_of(texts: tuple[str, ...]) -> Node:
    return literal(texts[0]) if len(texts) == 1 else Union(tuple(map(literal, texts)))


def _free(place: _Place, avoid: tuple[str, ...], end: tuple[str, ...]) -> Node:
    """Free text. What contains another stop can never come first, and is dropped."""
    stops = {*avoid, *end}
    first = [stop for stop in dict.fromkeys((*avoid, *end)) if not any(o in stop for o in stops - {stop})]
    ends = tuple(stop for stop in first if stop in end)
    if end and not ends:
        place.fail(f"{end[0]!r} can never end free text: it contains what that must not contain")
    return Avoid(tuple(stop for stop in first if stop not in end), ends)


@dataclass
class _Reader:
    """Reads formats into nodes; grammars inside become rules of their own. `told`: JSON is told apart."""

    told: bool = False
    rules: Rules = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def read(self, spec: Any) -> Node:
        root = _Place("#")
        if isinstance(spec, dict) and "structures" in spec:
            return self._legacy(spec, root)
        fields = _fields(spec, root, {"type": None, "format": None}, {})
        if fields["type"] != "structural_tag":
            root.at("type").fail(f'{fields["type"]!r} is not "structural_tag"')
        return self.format(fields["format"], root.at("format"))

    def _legacy(self, spec: dict[str, Any], root: _Place) -> Node:
        fields = _fields(spec, root, {"structures": list, "triggers": list}, {"type": "structural_tag"})
        if fields["type"] != "structural_tag":
            root.at("type").fail(f'{fields["type"]!r} is not "structural_tag"')
        tags = []
        for at, one in enumerate(fields["structures"]):
            place = root.at("structures", at)
            parts = _fields(one, place, {"begin": str, "schema": None, "end": str}, {})
            content = {"type": "json_schema", "json_schema": parts["schema"]}
            tags.append({"type": "tag", "begin": parts["begin"], "content": content, "end": parts["end"]})
        return self.format({"type": "triggered_tags", "triggers": fields["triggers"], "tags": tags}, root)

    def format(self, value: Any, place: _Place) -> Node:
        """The texts of one format, with the end that is due there."""
        if place.depth > MAX_DEPTH:
            place.fail(f"nested more than {MAX_DEPTH} levels deep")
        if not isinstance(value, dict) or not isinstance(value.get("type"), str):
            place.fail('expected an object with a "type"')
        kind = value["type"]
        if kind in _TOKENS:
            place.fail(f"the format {kind!r} is not supported: a constraint describes text, not tokens")
        read = _FORMATS.get(kind)
        if read is None:
            place.fail(f"unknown format {kind!r}; known: {', '.join(_FORMATS)}")
        return read(self, value, place)

    def formats(self, values: Any, place: _Place, last: bool) -> list[Node]:
        """A non-empty list of formats; `last`: each of them ends with what is due."""
        if not isinstance(values, list) or not values:
            place.fail("expected a list of at least one format")
        return [self.format(one, place.last(at) if last else place.at(at)) for at, one in enumerate(values)]


def _fields(value: Any, place: _Place, required: dict[str, type | None], optional: dict[str, Any]) -> dict[str, Any]:
    """The fields of an object: required ones with their type (None: any), optional ones with their default."""
    if not isinstance(value, dict):
        place.fail("expected an object")
    for name in value:
        if name not in required and name not in optional and name != "type":
            place.at(name).fail(f"unknown field; known: {', '.join((*required, *optional))}")
    for name, kind in required.items():
        if name not in value:
            place.fail(f"{name!r} is missing")
        if kind is not None and not isinstance(value[name], kind):
            place.at(name).fail(f"expected a {kind.__name__}, not {value[name]!r:.40}")
    for name, default in optional.items():
        if default is not None and name in value and type(value[name]) is not type(default):
            place.at(name).fail(f"expected a {type(default).__name__}, not {value[name]!r:.40}")
    return {**optional, **value}


def _text(value: Any, place: _Place, empty: bool = False) -> str:
    if not isinstance(value, str) or not (value or empty):
        place.fail("expected a non-empty string")
    if any("\ud800" <= char <= "\udfff" for char in value):
        place.fail("holds a lone surrogate, which is no text")
    return value


def _texts(values: Any, place: _Place) -> tuple[str, ...]:
    if not isinstance(values, list):
        place.fail("expected a list of strings")
    return tuple(dict.fromkeys(_text(one, place.at(at)) for at, one in enumerate(values)))


def _const(reader: _Reader, value: Any, place: _Place) -> Node:
    fields = _fields(value, place, {"value": str}, {})
    return _ended(literal(_text(fields["value"], place.at("value"), empty=True)), place)


def _regex(reader: _Reader, value: Any, place: _Place) -> Node:
    fields = _fields(value, place, {"pattern": str}, {})
    return _ended(_within(place.at("pattern"), lambda: patterns.parse(fields["pattern"])), place)


def _schema(reader: _Reader, value: Any, place: _Place) -> Node:
    fields = _fields(value, place, {"json_schema": None}, {"style": "json", "any_order": False})
    if fields["style"] != "json":
        place.at("style").fail(f'only "json" is supported, not {fields["style"]!r}')
    if fields["any_order"]:
        place.at("any_order").fail("is not supported: properties come in the order of the schema")
    part, notes = _within(
        place.at("json_schema"), lambda: json_part(json.dumps(fields["json_schema"]), marks=reader.told)
    )
    reader.notes += notes
    return _ended(part, place)


def _grammar(reader: _Reader, value: Any, place: _Place) -> Node:
    fields = _fields(value, place, {"grammar": str}, {"syntax": "ebnf"})  # "lark" is ours: custom tools are written so
    if fields["syntax"] not in ("ebnf", "lark"):
        place.at("syntax").fail('must be "ebnf" or "lark"')
    rules, start, notes = _within(place.at("grammar"), lambda: ebnf.read(fields["grammar"], fields["syntax"]))
    prefix = f"{len(reader.rules)}:"
    reader.rules.update((prefix + name, renamed(body, prefix)) for name, body in rules.items())
    reader.notes += notes
    return _ended(Ref(prefix + start), place)


def _within(place: _Place, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except ConstraintError as error:
        place.fail(error.message)


def _any_text(reader: _Reader, value: Any, place: _Place) -> Node:
    fields = _fields(value, place, {}, {"excludes": [], "max_tokens": None, "max_chars": None})
    for name in ("max_tokens", "max_chars"):
        if fields[name] is not None:
            place.at(name).fail("bounds of free text are not supported; use max_tokens of the request")
    avoid = _texts(fields["excludes"], place.at("excludes")) + place.avoid
    return _free(place, avoid, place.end)


def _sequence(reader: _Reader, value: Any, place: _Place) -> Node:
    elements = _fields(value, place, {"elements": list}, {})["elements"]
    inner = reader.formats(elements[:-1], place.at("elements"), last=False) if len(elements) > 1 else []
    if not elements:
        place.at("elements").fail("expected a list of at least one format")
    return Cat((*inner, reader.format(elements[-1], place.last("elements", len(elements) - 1))))


def _or(reader: _Reader, value: Any, place: _Place) -> Node:
    fields = _fields(value, place, {"elements": list}, {})
    return Union(tuple(reader.formats(fields["elements"], place.last("elements"), last=True)))


def _optional(reader: _Reader, value: Any, place: _Place) -> Node:
    fields = _fields(value, place, {"content": dict}, {})
    none = _one_of(place.end) if place.end else EMPTY
    return Union((reader.format(fields["content"], place.last("content")), none))


def _repeated(low: int, high: int | None) -> Callable[[_Reader, Any, _Place], Node]:
    def read(reader: _Reader, value: Any, place: _Place) -> Node:
        fields = _fields(value, place, {"content": dict}, {})
        return _ended(Times(reader.format(fields["content"], place.at("content")), low, high), place)

    return read


def _repeat(reader: _Reader, value: Any, place: _Place) -> Node:
    fields = _fields(value, place, {"min": int, "max": int, "content": dict}, {})
    low, high = fields["min"], fields["max"]
    if isinstance(low, bool) or isinstance(high, bool) or low < 0 or (high != -1 and high < low):
        place.fail(f"min={low!r} and max={high!r} are no bounds; max=-1 means no limit")
    item = reader.format(fields["content"], place.at("content"))
    return _ended(Times(item, low, None if high == -1 else high), place)


def _tag(reader: _Reader, value: Any, place: _Place, trigger: str = "") -> Node:
    """A tag, with the part of its beginning that comes after `trigger`."""
    fields = _fields(value, place, {"begin": None, "content": dict, "end": None}, {})
    begin = _text(fields["begin"], place.at("begin"), empty=True)
    ends = fields["end"] if isinstance(fields["end"], list) else [fields["end"]]
    if not ends:
        place.at("end").fail("expected a string or a list of strings")
    texts = tuple(dict.fromkeys(_text(one, place.at("end"), empty=True) for one in ends))
    if "" in texts and len(texts) > 1:
        place.at("end").fail("an empty end cannot be one of several")
    due = tuple(text for text in texts if text)
    inner = _Place(place.at("content").pointer, due or place.avoid, due, place.depth + 1)
    return _ended(Cat((literal(begin[len(trigger) :]), reader.format(fields["content"], inner))), place)


def _tags(value: Any, place: _Place) -> list[Any]:
    if not isinstance(value, list) or not value:
        place.fail("expected a list of at least one tag")
    for at, one in enumerate(value):
        if not isinstance(one, dict) or one.get("type", "tag") != "tag":
            place.at(at).fail('expected a format of type "tag"')
        _text(one.get("begin"), place.at(at, "begin"), empty=True)
    return value


def _triggered(reader: _Reader, value: Any, place: _Place) -> Node:
    fields = _fields(
        value,
        place,
        {"triggers": list, "tags": list},
        {"at_least_one": False, "stop_after_first": False, "excludes": []},
    )
    triggers = _texts(fields["triggers"], place.at("triggers"))
    tags = _tags(fields["tags"], place.at("tags"))
    by_trigger: dict[str, list[Node]] = {trigger: [] for trigger in triggers}
    for at, tag in enumerate(tags):
        found = [trigger for trigger in triggers if tag["begin"].startswith(trigger)]
        if len(found) != 1:
            place.at("tags", at, "begin").fail(f"{tag['begin']!r} begins with {len(found)} of the triggers; needs one")
        by_trigger[found[0]].append(_tag(reader, tag, place.at("tags", at), found[0]))
    for trigger, options in by_trigger.items():
        if not options:
            place.at("triggers").fail(f"no tag begins with the trigger {trigger!r}")
    once = Union(tuple(_tag(reader, tag, place.at("tags", at)) for at, tag in enumerate(tags)))
    bodies: dict[str, Node] = {trigger: Union(tuple(options)) for trigger, options in by_trigger.items()}
    excludes = _texts(fields["excludes"], place.at("excludes"))
    return _dispatched(
        bodies, once if fields["at_least_one"] else None, not fields["stop_after_first"], excludes, place
    )


def _dispatched(
    bodies: dict[str, Node], first: Node | None, loop: bool, excludes: tuple[str, ...], place: _Place
) -> Node:
    """Free text in which the `bodies` may stand, each after its trigger; with `first`, that comes before all else."""
    triggers, avoid = tuple(bodies), (*excludes, *place.avoid)
    for trigger in triggers:
        for other in (*triggers, *avoid):
            if (other in trigger and other != trigger) or (other in avoid and other == trigger):
                place.fail(f"the trigger {trigger!r} contains {other!r}, which cannot be told apart from it")
    for end in place.end:
        if any(trigger in end for trigger in triggers):
            place.fail(f"the end {end!r} contains a trigger")
    calls = []
    for trigger, body in bodies.items():
        others = tuple(one for one in triggers if one != trigger)
        calls.append(Cat((_free(place, (*others, *avoid), (trigger,)), body)))
    text = _free(place, (*triggers, *avoid), place.end)
    if loop:
        tail: Node = Cat((Times(Union(tuple(calls)), 0, None), text))
        return tail if first is None else Cat((first, tail))
    if first is not None:
        return _ended(first, place)
    return Union((*(_ended(call, place) for call in calls), text))


def _separated(reader: _Reader, value: Any, place: _Place) -> Node:
    fields = _fields(value, place, {"tags": list, "separator": str}, {"at_least_one": False, "stop_after_first": False})
    tags = _tags(fields["tags"], place.at("tags"))
    separator = literal(_text(fields["separator"], place.at("separator"), empty=True))
    tag = Union(tuple(_tag(reader, one, place.at("tags", at)) for at, one in enumerate(tags)))
    found: Node = tag if fields["stop_after_first"] else Cat((tag, Times(Cat((separator, tag)), 0, None)))
    return _ended(found if fields["at_least_one"] else Union((found, EMPTY)), place)


def _dispatch(reader: _Reader, value: Any, place: _Place) -> Node:
    fields = _fields(value, place, {"rules": list}, {"loop": True, "excludes": []})
    bodies: dict[str, Node] = {}
    for at, rule in enumerate(fields["rules"]):
        here = place.at("rules", at)
        if not isinstance(rule, list) or len(rule) != 2:
            here.fail("expected a pattern and a format")
        trigger = _text(rule[0], here.at(0))
        if trigger in bodies:
            here.fail(f"the pattern {trigger!r} is given twice")
        bodies[trigger] = reader.format(rule[1], here.at(1))
    return _dispatched(bodies, None, fields["loop"], _texts(fields["excludes"], place.at("excludes")), place)


_FORMATS: dict[str, Callable[[_Reader, Any, _Place], Node]] = {
    "const_string": _const,
    "json_schema": _schema,
    "regex": _regex,
    "grammar": _grammar,
    "any_text": _any_text,
    "sequence": _sequence,
    "or": _or,
    "optional": _optional,
    "star": _repeated(0, None),
    "plus": _repeated(1, None),
    "repeat": _repeat,
    "tag": _tag,
    "triggered_tags": _triggered,
    "tags_with_separator": _separated,
    "dispatch": _dispatch,
}
