"""Plans in files: JSON with a format version and a digest over the content.

In: a document and what was observed of its runs. Out: bytes; and back, checked: nothing in a file is code, and a file
that was changed, is of another version or does not hang together is refused with `PlanError`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib import metadata
from typing import Annotated, Any

import msgspec

from ramet.frontend.errors import PlanError
from ramet.frontend.estimate import Observed
from ramet.frontend.ir import ROOT, Fork, Join, Put, Ref, Text
from ramet.frontend.planned import (
    Break,
    Decision,
    Document,
    Fields,
    Given,
    Many,
    Param,
    Part,
    Return,
    Returned,
    Said,
    Step,
    Use,
    Whole,
)

FORMAT = 1
MOST_BYTES = 64 << 20
MOST_NODES = 1 << 16
MOST_PATH = 1 << 20  # steps of all paths together, when each is counted by itself


class Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of the program that its plan's runs have, unless they name others."""

    seed: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)] | None = None
    timeout: Annotated[float, msgspec.Meta(gt=0)] | None = None


class _Content(msgspec.Struct, forbid_unknown_fields=True):
    plan: Document
    observed: Observed
    settings: Kept = Kept()


class _File(msgspec.Struct, forbid_unknown_fields=True):
    format: int
    ramet: str
    digest: str
    content: Any


def written(document: Document, observed: Observed, kept: Kept | None = None) -> bytes:
    """The file's bytes. Raises `PlanError` for a text that JSON cannot hold, which names its line."""
    content = msgspec.to_builtins(_Content(document, observed, kept or Kept()), str_keys=True)
    try:
        return msgspec.json.encode(_File(FORMAT, version(), _digest(content), content))
    except UnicodeEncodeError as error:
        raise PlanError(
            f"{document.name}: a text at {_unwritable(document)} has a lone surrogate, "
            f"{error.object[error.start]!a}, which no file can hold; make the text without it, as bytes are read by "
            "decode(errors='replace'), or keep the plan in memory"
        ) from None


def _unwritable(document: Document) -> str:
    """The line of the first part of a plan that JSON cannot hold."""
    for node in document.nodes:
        for part in (*node.steps, node.end):
            try:
                msgspec.json.encode(part)
            except UnicodeEncodeError:
                return part.where or document.where
    return document.where


def read(raw: bytes) -> tuple[Document, Observed, Kept]:
    """What a file holds. Raises `PlanError`."""
    if len(raw) > MOST_BYTES:
        raise PlanError(f"the plan has {len(raw)} bytes: at most {MOST_BYTES}")
    try:
        content = _content(msgspec.json.decode(raw), MOST_PATH)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PlanError(f"this is no saved plan: {error}") from None
    return content.plan, content.observed, content.settings


def from_data(data: object, most: int = MOST_PATH) -> tuple[Document, Observed]:
    """What the JSON value of a file holds, without settings; `most` limits the steps of all its paths together. Raises
    `PlanError`."""
    content = _content(data, most)
    return content.plan, content.observed


def _content(data: object, most: int) -> _Content:
    try:
        file = msgspec.convert(data, _File)
    except (msgspec.ValidationError, RecursionError) as error:
        raise PlanError(f"this is no saved plan: {error}") from None
    if file.format != FORMAT:
        raise PlanError(f"format={file.format}: this version reads format {FORMAT}; compile the program again")
    if file.ramet != version():
        raise PlanError(f"ramet={file.ramet!r:.40}: this is {version()}; compile the program again")
    try:
        if _digest(file.content) != file.digest:
            raise PlanError("digest: the content is not what was saved; compile the program again")
        content = msgspec.convert(file.content, _Content, str_keys=True)
    except (msgspec.ValidationError, RecursionError, TypeError) as error:
        raise PlanError(f"content: {error}") from None
    check(content.plan, most)
    return content


def version() -> str:
    """Of ramet: plans run where it is the same."""
    try:
        return metadata.version("ramet")
    except metadata.PackageNotFoundError:
        return "unknown"


def _digest(content: object) -> str:
    """SHA-256 of the content as JSON with sorted keys."""
    return hashlib.sha256(b"ramet plan\n" + msgspec.json.encode(content, order="sorted")).hexdigest()


# --- a document that hangs together ---


def check(document: Document, most: int = MOST_PATH) -> None:
    """Raise `PlanError` unless every path can be followed: nodes lead forwards, and each step needs only what stands
    before it."""
    if not document.nodes or len(document.nodes) > MOST_NODES:
        raise PlanError(f"nodes: {len(document.nodes)}, must be 1 to {MOST_NODES}")
    entered = [0] * len(document.nodes)
    for index, node in enumerate(document.nodes):
        if isinstance(node.end, Decision):
            _branching(node.end, index, len(document.nodes))
            for child in node.end.nodes:
                entered[child] += 1
    if entered[0] or any(count != 1 for count in entered[1:]):
        raise PlanError("nodes: each but the first must be the outcome of one decision")
    params = {parameter.name: parameter.domain for parameter in document.params}
    total = 0
    for path in document.paths():
        seen = _Seen(set(params))
        for index in path:
            node = document.nodes[index]
            total += len(node.steps) + 1
            if total > most:
                raise PlanError(f"nodes: the paths have more than {most} steps together")
            for step in node.steps:
                seen.take(step)
            seen.end(node.end)


def _branching(end: Decision, index: int, count: int) -> None:
    if len(end.outcomes) != len(end.nodes) or len(set(end.outcomes)) != len(end.outcomes) or not end.nodes:
        raise PlanError(f"nodes[{index}].end: one node for each of its distinct outcomes")
    for child in end.nodes:
        if not index < child < count:
            raise PlanError(f"nodes[{index}].end.nodes: {child} does not lead forwards")


class _Seen:
    """What stands before a place of a path."""

    def __init__(self, params: set[str]) -> None:
        self._params = params
        self._seqs = {ROOT}
        self._ops: set[str] = set()

    def take(self, step: Step) -> None:
        op = step.op
        if op.id in self._ops or op.seq not in self._seqs:
            raise PlanError(f"steps: {op.id!r:.80} stands on no sequence that there is, or twice")
        if (isinstance(op, Text) and op.parts) or (isinstance(op, Put) and (op.value or op.due or op.failed)):
            raise PlanError(f"steps: the text of {op.id!r:.80} belongs into `parts`")
        for part in step.needs():
            self.part(part)
        if isinstance(op, Join) and not set(op.branches) <= self._seqs:
            raise PlanError(f"steps: {op.id!r:.80} joins a sequence that there is not")
        if isinstance(op, Fork):
            if not self._seqs.isdisjoint(op.into) or len(set(op.into)) != len(op.into):
                raise PlanError(f"steps: {op.id!r:.80} makes a sequence that there is")
            self._seqs.update(op.into)
        self._ops.add(op.id)

    def part(self, part: Part) -> None:
        if isinstance(part, Param) and part.name not in self._params:
            raise PlanError(f"the plan uses a parameter {part.name!r:.80} that it does not have")
        if isinstance(part, Use | Ref) and part.op not in self._ops:
            raise PlanError(f"the plan uses the value of {part.op!r:.80} before it is there")

    def end(self, end: Decision | Break | Return) -> None:
        if isinstance(end, Decision):
            self.part(end.on)
        elif isinstance(end, Return):
            for value in _inside(end.value):
                if isinstance(value, Said):
                    for part in value.parts:
                        self.part(part)
                elif isinstance(value, Whole):
                    self.part(Use(value.op))
                elif isinstance(value, Given):
                    self.part(Param(value.name))


def _inside(value: Returned) -> Iterator[Returned]:
    stack = [value]
    while stack:
        each = stack.pop()
        yield each
        if isinstance(each, Many):
            stack.extend(each.items)
        elif isinstance(each, Fields):
            stack.extend(each.items.values())
