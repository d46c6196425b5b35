"""The trace in which every text that only a run knows is empty, beside one in which none is.

In: what both have found, and what they returned. Out: where they differ in more than these texts. A text that is empty
is no operation there, so that operations are counted anew, as a run counts them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import msgspec

from ramet.frontend.ir import ROOT, Fork, Gen, Join, Put, Ref, Select, Text
from ramet.frontend.planned import Const, Fields, Given, Many, Param, Part, Read, Returned, Said, Step, Use, Whole
from ramet.frontend.symbols import is_opaque
from ramet.frontend.tracing import Found


def difference(found: Sequence[Found], blank: Sequence[Found], whole: bool) -> int | None:
    """The index in `found` from which on the blank trace has found something else, or its length where that has found
    more; None when it has found the same. `whole`: it must have found all of it; otherwise it may have come less
    far."""
    mine, its = _Blanked(found), _Blanked(blank)
    for at, (one, other) in enumerate(zip(mine.items, its.items, strict=False)):
        if one != other:
            return mine.places[at]
    if len(its.items) > len(mine.items):
        return len(found)
    return mine.places[len(its.items)] if whole and len(its.items) < len(mine.items) else None


class _Blanked:
    """What a trace has found, without lines, and without the texts that only a run knows. `places` are indices in
    what it has found."""

    def __init__(self, found: Sequence[Found]) -> None:
        self.items: list[Any] = []
        self.places: list[int] = []
        self._ids: dict[str, str] = {}
        self._seqs = {ROOT: ROOT}
        self._counts: dict[str, int] = {}
        for place, each in enumerate(found):
            item = self._item(each)
            if item is not None:
                self.items.append(item)
                self.places.append(place)

    def _item(self, each: Found) -> Any:
        if isinstance(each, Step):
            return self._step(each)
        if isinstance(each, Read):
            return self._ids[each.op]
        return self._on(each.on), each.outcomes, each.taken

    def _on(self, on: Use | Param) -> Use | Param:
        return Use(self._ids[on.op], on.read) if isinstance(on, Use) else on

    def _step(self, step: Step) -> Any:
        op, parts = step.op, self._parts(step.parts)
        if isinstance(op, Text) and not parts:
            return None
        seq = self._seqs[op.seq]
        count = self._counts[seq] = self._counts.get(seq, -1) + 1
        name = self._ids[op.id] = f"{seq}.{count}"
        changed: dict[str, Any] = {} if (name, seq) == (op.id, op.seq) else {"id": name, "seq": seq}
        choices: list[str] = []
        if isinstance(op, Fork):
            into = tuple(f"{name}.b{index}" for index in range(len(op.into)))
            self._seqs.update(zip(op.into, into, strict=True))
            changed["into"] = into
        elif isinstance(op, Join):
            changed["branches"] = tuple(self._seqs[path] for path in op.branches)
        elif isinstance(op, Select):
            choices = ["".join(part for part in choice if isinstance(part, str)) for choice in step.choices]
            choices += [str.__str__(choice) for choice in op.choices]
            changed["choices"] = ()
        if changed and isinstance(op, Gen | Select | Put) and op.var == f"_{op.id}":
            changed["var"] = f"_{name}"
        return msgspec.structs.replace(op, **changed) if changed else op, parts, choices

    def _parts(self, parts: Sequence[Part]) -> list[str | Ref]:
        out: list[str | Ref] = []
        for part in parts:
            if isinstance(part, Ref):
                out.append(Ref(op=self._ids[part.op]))
            elif isinstance(part, str):
                if out and isinstance(out[-1], str):
                    out[-1] += part
                else:
                    out.append(part)
        return out


def agrees(returned: Returned, value: Any) -> bool:
    """The object is what the expression says, when all texts that only a run knows are empty."""
    if isinstance(returned, Given | Whole):
        return is_opaque(value)
    if isinstance(returned, Said):
        said = "".join(part for part in returned.parts if isinstance(part, str))
        return isinstance(value, str) and str.__str__(value) == said
    if isinstance(returned, Const):
        return type(value) is type(returned.value) and bool(value == returned.value)
    if isinstance(returned, Many):
        same = type(value) is (list if returned.kind == "list" else tuple) and len(value) == len(returned.items)
        return same and all(agrees(item, each) for item, each in zip(returned.items, value, strict=True))
    return _fields_agree(returned, value)


def _fields_agree(returned: Fields, value: Any) -> bool:
    if not returned.of:
        items = value if type(value) is dict else None
    elif dataclasses.is_dataclass(value) and f"{type(value).__module__}.{type(value).__qualname__}" == returned.of:
        items = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    else:
        items = None
    return (
        items is not None
        and [*items] == [*returned.items]
        and all(agrees(item, items[name]) for name, item in returned.items.items())
    )
