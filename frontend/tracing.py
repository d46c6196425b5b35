"""One run of a program's body against symbols.

In: a body, its arguments (some of them symbols), and which outcome each decision takes. Out: the steps that it records,
what it reads, the decisions that it comes to, and how it ends. Nothing is sent anywhere and nothing waits.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any, NoReturn

import msgspec

from ramet.frontend.constraints import Wanted
from ramet.frontend.entries import Entry, merged
from ramet.frontend.errors import PlanError
from ramet.frontend.eyes import taker
from ramet.frontend.handlers import handled
from ramet.frontend.ir import Choices, Gen, Meta, Put, Ref, Select, Text
from ramet.frontend.lineage import named_values
from ramet.frontend.managers import Entered
from ramet.frontend.planned import Break, BreakKind, Param, Part, Read, Return, Step, Use
from ramet.frontend.probes import MIDDLE, Altered, Blank, Probe, marked
from ramet.frontend.sampling import Sampling
from ramet.frontend.sights import looks
from ramet.frontend.symbols import Opaque, Symbol, is_opaque, settled
from ramet.frontend.users import foreign, own, place, places

_META = Meta()
MOST_STEPS = 10_000  # of one path
MOST_TEXTS = 100_000  # that are appended on one path
MOST_LOOKS = 20_000  # at values whose outcome is known, without anything recorded


class Choice(msgspec.Struct, frozen=True):
    """The path takes outcome `taken` of a decision here."""

    on: Use | Param
    outcomes: tuple[str, ...]
    taken: int
    where: str


Found = Step | Read | Choice


class Stop(BaseException):
    """Ends a traced body. Not an Exception: a body's own handlers leave it alone."""


class Unwatched:
    """`with trace.unwatched:` around what is the language's alone: no function watches it (which costs several times
    what it does itself). `watch` (of `sys.setprofile`) is None when nothing is watched, `lines` (of `sys.settrace`)
    when that is somebody else's."""

    __slots__ = ("_depth", "lines", "watch")

    def __init__(self) -> None:
        self._depth = 0
        self.watch: Any = None
        self.lines: Any = None

    def start(self, watch: Any, lines: Any) -> None:
        """Watch from here on."""
        self.watch, self.lines = watch, lines
        self._depth = 1
        self.__exit__(None, None, None)

    def __enter__(self) -> None:
        if not self._depth and self.watch is not None:
            sys.setprofile(None)
            if self.lines is not None:
                sys.settrace(None)
        self._depth += 1

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._depth -= 1
        if not self._depth and self.watch is not None:
            if self.lines is not None:
                sys.settrace(self.lines)
            sys.setprofile(self.watch)

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """Inside, what may be the user's: watched as everywhere."""
        depth, self._depth = self._depth, 1
        if depth:
            self.__exit__(None, None, None)
        try:
            yield
        finally:
            if depth:
                self.__enter__()
            self._depth = depth


class Shared:
    """What the traces of one program have in common: each step once, each set of options checked once. Paths of many
    branches are mostly the same steps."""

    def __init__(self) -> None:
        self.steps: dict[Step, Step] = {}
        self.samplings: dict[tuple[tuple[str, Any], ...], Sampling] = {}
        self.checked: dict[tuple[tuple[str, type, Any], ...], dict[str, Any]] = {}

    def step(self, step: Step) -> Step:
        """The one that is equal to it."""
        try:
            return self.steps.setdefault(step, step)
        except TypeError:  # a bias of logits has no hash
            return step


class Trace:
    """What one run of a body does. `script` has the outcome of its first decisions; later ones take the first."""

    def __init__(
        self, probe: Probe, script: Sequence[int] = (), most_choices: int = 64, shared: Shared | None = None
    ) -> None:
        self.probe = probe
        self.shared = shared if shared is not None else Shared()
        self.unwatched = Unwatched()
        self._most_choices = most_choices
        self.found: list[Found] = []
        self.end: Break | Return | None = None
        self.over = False  # its body has ended: whoever looks at a symbol now has kept it
        self.readers: dict[str, Callable[[str], Any]] = {}  # typed values: op → text → value
        self.result: Any = None  # of a trace whose texts are empty: what its body has returned
        self.refused = False  # the language took an argument for invalid
        self.given: set[tuple[CodeType, int]] = set()  # calls whose first argument is what only a run knows
        self.entered = Entered()
        self.moves = 0  # what was found, and texts that were appended
        self._texts = self._steps = 0
        self._looks = 0  # at values that are decided, since it last moved
        self._script = tuple(script)
        self._taken: dict[Use | Param, str] = {}
        self._read: set[str] = set()

    # --- what ends it ---

    def stop(self, kind: BreakKind, reason: str, where: str = "") -> NoReturn:
        """Python must go on from here. Raises `PlanError` where it has gone on: the trace is over."""
        self._refuse_kept()
        if self.end is None:
            lines = [where] if where else places()  # a line may stand there twice: comprehensions have a frame
            called = f" (called from {lines[-1]})" if lines and lines[-1] != lines[0] else ""
            self.end = Break(kind, reason + called, lines[0] if lines else place())
        raise Stop

    def _refuse_kept(self) -> None:
        if self.over:
            raise PlanError(
                "this stand-in for an argument or a value of a compiled program does not leave it: the body was traced "
                "to compile it, and has kept what it was given there; keep nothing outside of the body, return it"
            )

    def look(self, what: str) -> NoReturn:
        """See `symbols.Observer`."""
        self.stop("look", f"Python {what}")

    def readable(self, text: str) -> str:
        """A text of the trace for people: names of arguments and variables in place of sentinels and operations."""

        def name(op: str) -> str:
            steps = (item for item in self.found if isinstance(item, Step) and item.op.id == op)
            step = next(steps, None)
            var = str(getattr(step.op, "var", "")) if step is not None else ""
            return var if var and var != f"_{op}" else f"the call at {step.where}" if step is not None else op

        def part(found: Param | Use) -> str:
            return found.name if isinstance(found, Param) else name(found.op)

        return named_values(self.probe.readable(text, part), name)

    @property
    def other_kinds(self) -> bool:
        """See `symbols.Observer`."""
        return self.probe.others

    def written(self, frame: FrameType) -> None:
        """See `symbols.Observer`."""
        self.made(frame, MIDDLE)

    def made(self, frame: FrameType, value: object) -> None:
        """The instruction at which a user's frame is makes a text that only a run knows, a stand-in, or a container of
        such."""
        if own(frame) or foreign(frame.f_code.co_filename) or isinstance(self.probe, Blank):
            return
        taken = taker(frame.f_code, frame.f_lasti)
        if taken is None:
            return
        if taken.doing == "calls" and taken.position == 0 and not is_opaque(value):
            self.given.add((frame.f_code, taken.offset))
        said = looks(frame, taken, value)
        if said:
            self.look(f"{said} a {'value' if is_opaque(value) else 'text'} that only a run knows")

    def handed(self, value: Any) -> Any:
        """A value that the user's code has asked for."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and own(frame):
            frame = frame.f_back
        if frame is not None:
            self.made(frame, value)
        return value

    # --- what it reads ---

    def decide(self, on: Param | Use, domain: tuple[str, ...]) -> str:
        """See `symbols.Observer`."""
        self._refuse_kept()
        known = self._taken.get(on)
        if known is not None:
            self._looks += 1
            if self._looks > MOST_LOOKS:
                self.stop("limit", f"{MOST_LOOKS} looks at values, and nothing is recorded: does a loop end?")
        else:
            index = len(self._taken)
            if index >= self._most_choices:
                self.stop("limit", f"a path has more than {index} decisions: does a loop end? (max_paths={index})")
            taken = self._script[index] if index < len(self._script) else 0
            self._add(Choice(on, domain, taken, self._place()))
            known = self._taken[on] = domain[taken]
        return known

    def text_of(self, entry: Entry) -> Any:
        """What reading a text gives."""
        self._reads(entry)
        use = Use(entry.id)
        return self.handed(Symbol.of(self.probe.text(use), self, use, _domain(entry)))

    def typed(self, entry: Entry, want: Wanted) -> Any:
        """What reading a typed value gives."""
        assert want.read is not None
        self._reads(entry)
        read = want.read
        sampled = isinstance(entry.op, Gen)
        use = Use(entry.id, "json") if sampled else Use(entry.id)
        if sampled:  # what chooses by likelihood gives one of the choices
            self.readers[entry.id] = lambda text: read(text, _META)
        values = [read(text, _META) for text in want.choices]
        if want.choices and all(type(v) is str and v == t for v, t in zip(values, want.choices, strict=True)):
            return self.handed(Symbol.of(self.probe.text(use), self, use, want.choices))
        if want.choices:
            return values[want.choices.index(self.decide(use, want.choices))]
        number = {"int": Use(entry.id, "int"), "float": Use(entry.id, "float")}.get(want.name)
        said = self.probe.text(number) if number else None
        return self.handed(Opaque.of(self, number or use, want.kind, said))

    def _reads(self, entry: Entry) -> None:
        self._refuse_kept()
        if entry.id not in self._read:
            self._read.add(entry.id)
            with self.unwatched:
                if handled(sys._getframe(1), self.entered):
                    self.stop("feature", "the program itself handles an error of what it reads here")
            self._add(Read(entry.id, self._steps, self._place()))

    def _place(self) -> str:
        with self.unwatched:
            return place()

    # --- what it records ---

    def _add(self, item: Found) -> None:
        if self.end is not None:
            raise Stop
        self._moved()
        self.found.append(item)

    def _moved(self) -> None:
        self.moves += 1
        self._looks = 0

    def appended(self) -> None:
        """A text is appended; those of one place are recorded together, later."""
        self._moved()
        self._texts += 1
        if self._texts > MOST_TEXTS:
            self.stop("limit", f"a path appends more than {MOST_TEXTS} texts: does a loop end?")

    def record(self, entry: Entry) -> None:
        """An operation leaves."""
        if self.end is not None:
            return  # the body is on its way out
        if len(self.found) >= MOST_STEPS:
            self.stop("limit", f"a path has more than {MOST_STEPS} steps: does a loop end?", entry.where)
        step = self._step(entry)
        if step is not None:
            self._steps += 1
            self._add(self.shared.step(step))

    def _step(self, entry: Entry) -> Step | None:
        if entry.kind in ("text", "put"):
            parts = self._parts(entry)
            if entry.kind == "put":
                var = settled(entry.var, "names a variable by")
                return Step(Put(id=entry.id, seq=entry.seq.path, var=var, value=""), entry.where, parts)
            return Step(Text(id=entry.id, seq=entry.seq.path, parts=()), entry.where, parts) if parts else None
        op = entry.op
        assert op is not None, entry.kind
        if isinstance(op, Select) and any(marked(choice) for choice in op.choices):
            choices = tuple(self._cut(choice, entry.where) for choice in op.choices)
            return Step(msgspec.structs.replace(op, choices=()), entry.where, choices=choices)
        kind = type(op).__name__
        try:
            raw = msgspec.json.encode(op, enc_hook=str.__str__).decode()  # of symbols
        except UnicodeEncodeError as error:
            said = f"an option of this {kind} has a lone surrogate, {error.object[error.start]!a}, which is no text"
            self.stop("feature", said, entry.where)
        if marked(raw):
            self.stop("look", f"an option of this {kind} is made from {self.probe.names(raw)}", entry.where)
        return Step(op, entry.where)

    def _parts(self, entry: Entry) -> tuple[Part, ...]:
        parts: list[Part] = []
        for piece in merged(entry.pieces):
            parts += self._cut(piece, entry.where) if isinstance(piece, str) else [Ref(op=piece.id)]
        return tuple(parts)

    def _cut(self, text: str, where: str) -> tuple[Part, ...]:
        try:
            return self.probe.cut(str.__str__(text))
        except Altered as error:
            self.stop("differs", f"Python changes the text of {self.probe.names(text)}: {error}", where)


def _domain(entry: Entry) -> tuple[str, ...]:
    op = entry.op
    if isinstance(op, Select):
        return () if any(marked(choice) for choice in op.choices) else op.choices
    if isinstance(op, Gen) and isinstance(op.constraint, Choices):
        return op.constraint.choices
    return ()
