"""A program as a client sends it: values of JSON (or msgpack) in, checked operations out.

What is not understood is refused by name, with its place; what is too much, with the limit and the value. Nothing
here touches the engine.
"""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import msgspec

from ramet.frontend import ir
from ramet.runtime.server.failures import Failure, bad
from ramet.runtime.server.settings import Settings
from ramet.runtime.server.wire import LOWEST

VERSION = 1
SEQUENCES, DEPTH, CHOICES = 4096, 128, 1024
CONSTRAINTS = 4 << 20  # bytes of all constraints and tools of a program, each distinct one counted once
LONGEST = 86_400.0  # seconds of a program, where the server sets no limit for requests
_LABEL = 256  # characters of a name or a namespace
_KINDS: dict[str, type[msgspec.Struct]] = {
    str(kind.__struct_config__.tag): kind for kind in get_args(ir.AnyOp) if issubclass(kind, msgspec.Struct)
}
_HEADER = frozenset(ir.Header.__struct_fields__)
_REF = frozenset(("type", "op"))


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one program may ask for: `ops`; `sequences` that its forks make; `depth` of forks inside forks; `choices` of
    one select; `tokens`, the sum of max_tokens (a gen without one counts as the context); `constraints`, bytes of
    all distinct constraints and tools; `seconds` of its life, time in the queue included."""

    ops: int
    sequences: int
    depth: int
    choices: int
    tokens: int
    constraints: int
    seconds: float


def limits_of(settings: Settings) -> Limits:
    """The server's own."""
    return Limits(
        ops=settings.max_program_ops,
        sequences=SEQUENCES,
        depth=DEPTH,
        choices=CHOICES,
        tokens=settings.max_program_tokens,
        constraints=CONSTRAINTS,
        seconds=settings.request_timeout or LONGEST,
    )


def narrowed(most: Limits, wanted: object, timeout: object) -> Limits:
    """The server's limits, with those of a program that asks for narrower ones. Raises `Failure` 400."""
    if not isinstance(wanted, Mapping | None):
        raise bad("`limits` must be an object", "limits")
    chosen = dict(wanted or {})
    if timeout is not None:
        if "seconds" in chosen:
            raise bad("`timeout` and `limits.seconds` are the same: give one of them", "timeout")
        chosen["seconds"] = timeout
    _known(chosen, Limits.__struct_fields__, "limits")
    for name, value in chosen.items():
        field = "timeout" if name == "seconds" and timeout is not None else f"limits.{name}"
        cap = getattr(most, name)
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or value <= 0 or (name != "seconds" and not isinstance(value, int)):
            kind = "number of seconds" if name == "seconds" else "integer"
            raise bad(f"`{field}` must be a positive {kind}", field)
        if value > cap:
            raise bad(f"`{field}` is {value}: at most {cap:g} here", field)
    return msgspec.structs.replace(most, **chosen)


def check_version(version: object) -> None:
    """`Failure` 400 unless it is the version that is spoken here."""
    if version != VERSION or isinstance(version, bool):
        raise bad(f"`version` is {_shown(version)}: this server speaks version {VERSION}", "version")


def header_of(raw: object) -> ir.Header:
    """A program's header. Raises `Failure` 400."""
    if not isinstance(raw, Mapping | None):
        raise bad("`header` must be an object", "header")
    _known(raw or {}, _HEADER, "header")
    header: ir.Header = _converted(raw or {}, ir.Header, "header")
    for name in ("name", "namespace"):
        if len(getattr(header, name)) > _LABEL:
            raise bad(f"`header.{name}` has more than {_LABEL} characters", f"header.{name}")
    for name, low, high in (("seed", -(1 << 63), (1 << 64) - 1), ("priority", -(1 << 31), (1 << 31) - 1)):
        if not low <= getattr(header, name) <= high:
            raise bad(f"`header.{name}` must be between {low} and {high}", f"header.{name}")
    return header


def operations(raw: object) -> tuple[ir.AnyOp, ...]:
    """Operations, each of a known kind and without unknown fields. Raises `Failure` 400 with the index."""
    if not isinstance(raw, list | tuple):
        raise bad("`ops` must be a list of operations", "ops")
    return tuple(_operation(item, f"ops[{index}]") for index, item in enumerate(raw))


def _operation(item: object, where: str) -> ir.AnyOp:
    if not isinstance(item, Mapping):
        raise bad(f"`{where}` must be an object", where)
    kind = _KINDS.get(str(item.get("type")))
    if kind is None:
        near = difflib.get_close_matches(str(item.get("type")), _KINDS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"kinds: {', '.join(_KINDS)}"
        raise bad(f"`{where}.type` is {_shown(item.get('type'))}: no kind of operation; {hint}", f"{where}.type")
    _known(item, {"type", *kind.__struct_fields__}, where)
    if kind is ir.Text and isinstance(item.get("parts"), list | tuple):
        for index, part in enumerate(item["parts"]):
            if isinstance(part, Mapping):
                _known(part, _REF, f"{where}.parts[{index}]")
    op: ir.AnyOp = _converted(item, kind, where)
    return op


def _known(given: Mapping[Any, Any], fields: Collection[str], where: str) -> None:
    for name in given:
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, 1)
            hint = f"did you mean `{near[0]}`?" if near else f"fields: {', '.join(sorted(fields))}"
            raise Failure(
                400,
                f"`{where}.{str(name)[:64]}` is not known; {hint}",
                code="unknown_parameter",
                param=f"{where}.{str(name)[:64]}",
            )


def _converted(raw: Any, kind: Any, where: str) -> Any:
    try:
        return msgspec.convert(raw, kind, str_keys=True)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$")
        field = where + place.rstrip("`")
        raise bad(f"`{field}`: {reason}", field) from None


def _shown(value: object) -> str:
    return repr(value)[:64]


class Meter:
    """What a program has asked for so far, against its limits. `context` in tokens."""

    def __init__(self, limits: Limits, context: int) -> None:
        self._limits = limits
        self._context = context
        self._used = {"ops": 0, "sequences": 1, "tokens": 0, "constraints": 0}
        self._seen: set[bytes] = set()  # digests of constraints and tools
        self._depth: dict[str, int] = {ir.ROOT: 0}

    def take(self, ops: Sequence[ir.AnyOp]) -> None:
        """Count operations. Raises `Failure` 400 that names the limit and the value."""
        self._count("ops", len(ops), "operations")
        for op in ops:
            if isinstance(op, ir.Gen):
                asked = op.sampling.max_tokens
                self._count("tokens", min(asked or self._context, self._context), "tokens (the sum of max_tokens)")
                self._weigh(op.constraint)
            elif isinstance(op, ir.Tools):
                self._weigh(op.tools)
            elif isinstance(op, ir.Select) and len(op.choices) > self._limits.choices:
                raise _over("choices", len(op.choices), self._limits.choices, f"choices in {op.id!r}")
            elif isinstance(op, ir.Fork):
                self._count("sequences", len(op.into), "sequences")
                depth = self._depth.get(op.seq, 0) + 1
                if depth > self._limits.depth:
                    raise _over("depth", depth, self._limits.depth, "forks inside each other")
                self._depth.update(dict.fromkeys(op.into, depth))

    def _weigh(self, held: ir.Constraint | tuple[ir.Tool, ...] | None) -> None:
        if held is None:
            return
        raw = msgspec.msgpack.encode(held)
        digest = hashlib.blake2b(raw, digest_size=16).digest()
        if digest not in self._seen:
            self._seen.add(digest)
            self._count("constraints", len(raw), "bytes of constraints and tools")

    def _count(self, name: str, more: int, what: str) -> None:
        self._used[name] += more
        most = getattr(self._limits, name)
        if self._used[name] > most:
            raise _over(name, self._used[name], most, what)


def _over(name: str, value: int, most: int, what: str) -> Failure:
    return Failure(
        400,
        f"the program has {value} {what}: at most {most} (limit `{name}`)",
        code="program_limit_exceeded",
        param=f"limits.{name}",
    )


@dataclass(frozen=True, slots=True)
class Opening:
    """What begins a program: its header and its limits, checked."""

    header: ir.Header
    limits: Limits


def opening_of(version: object, header: object, limits: object, timeout: object, most: Limits) -> Opening:
    """Check what begins a program. Raises `Failure` 400."""
    check_version(version)
    return Opening(header_of(header), narrowed(most, limits, timeout))


def json_of(event: ir.Event) -> bytes:
    """An event as JSON. Numbers that JSON does not have: -inf is `LOWEST`, nan is null."""
    numbers = isinstance(event, ir.Finished) or (isinstance(event, ir.Token) and bool(event.logprobs))
    return msgspec.json.encode(plain(event) if numbers else event)


def plain(event: ir.Event) -> Any:
    """An event as values of JSON."""
    return _finite(msgspec.to_builtins(event))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None if math.isnan(value) else math.copysign(-LOWEST, value)
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return value
